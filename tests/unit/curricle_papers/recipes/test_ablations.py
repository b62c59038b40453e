from typing import Any

from curricle.runs.spec import RunSpec
from curricle.training.setup.optimizers import SGD
from curricle_papers.recipes.ablations import ABLATION_PROJECTION


def calls(panel: str) -> dict[str, dict[str, Any]]:
    spec: RunSpec = ABLATION_PROJECTION.panels("small")[panel].spec
    return {name: dict(one.curriculum) for name, one in spec.strategies.items()}


def test_every_arm_of_extraction_differs_from_the_reference_in_one_thing() -> None:
    for panel in ("parity", "grammar", "text"):
        found = calls(panel)
        reference = found.pop("reference")
        for name, base in (
            ("learned-projections", "own-projections"),
            ("learned-layernorm", "layernorm"),
        ):
            if name in found:
                learned = {"projection": {"kind": "learned"}}
                assert found.pop(name) == found[base] | learned
        for call in found.values():
            if call["kind"] == "extraction":
                names = set(reference) | set(call)
                assert sum(reference.get(name) != call.get(name) for name in names) == 1


def test_nothing_is_reset_where_the_optimizer_keeps_nothing() -> None:
    spec = ABLATION_PROJECTION.panels("small")["parity"].spec
    assert isinstance(spec.optimizer, SGD)
    assert spec.optimizer.momentum == 0
    assert not any("optimizer_state" in call for call in calls("parity").values())
    assert any("optimizer_state" in call for call in calls("grammar").values())


def test_order_and_matching_are_told_apart() -> None:
    for panel, last in (("grammar", 4), ("text", 3)):
        found = calls(panel)
        assert found["last-layer-alone"]["pairs"] == [{"student": last, "teacher": last}]
        assert found["last-layer-alone"]["layer_fraction"] == found["reference"]["layer_fraction"]
        (stage,) = found["hidden-all-along"]["stages"]
        logits, *hidden = stage["objectives"]
        assert logits == {"kind": "logits"}
        assert [one["pair"] for one in hidden] == found["reference"]["pairs"]
        shared = {one["shared_projection"] for one in hidden}
        assert shared == {found["reference"]["shared_projection"]}


def test_what_is_compared_with_extraction_has_the_same_rates_to_choose_from() -> None:
    for panel in ("grammar", "text"):
        spec = ABLATION_PROJECTION.panels("small")[panel].spec
        rates = {
            name: (one.optimizer or spec.optimizer).learning_rate
            for name, one in spec.strategies.items()
        }
        for name in ("hidden-all-along", "one_shot"):
            whole = rates["reference"]
            found = [rates[name], rates[f"{name}-half-rate"], rates[f"{name}-quarter-rate"]]
            assert found == [whole, whole / 2, whole / 4]
