from typing import Any

from curricle.experiments.recipes.ablations import ABLATION_PROJECTION
from curricle.experiments.spec import RunSpec
from curricle.training.optimizers import SGD


def calls(panel: str) -> dict[str, dict[str, Any]]:
    spec: RunSpec = ABLATION_PROJECTION.panels("small")[panel].spec
    return {name: dict(one.curriculum) for name, one in spec.strategies.items()}


def test_every_arm_of_extraction_differs_from_the_reference_in_one_thing() -> None:
    for panel in ("parity", "grammar", "text"):
        found = calls(panel)
        reference = found.pop("reference")
        learned = found.pop("learned-projections", None)
        if learned is not None:
            assert learned == found["own-projections"] | {"projection": {"kind": "learned"}}
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
    for panel in ("grammar", "text"):
        found = calls(panel)
        assert found["last-layer-alone"]["pairs"] == [{"student": 4, "teacher": 4}]
        assert found["last-layer-alone"]["share"] == found["reference"]["share"]
        (stage,) = found["hidden-all-along"]["stages"]
        assert [one["kind"] for one in stage["objectives"]] == ["logits"] + 4 * ["hidden"]
        assert found["hidden-all-along-slow"] == found["hidden-all-along"]
