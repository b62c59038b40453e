from curricle.objectives.catalog import AnyObjective
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.temperature import LearnedTemperature
from curricle.runs.spec import RunSpec
from curricle.values import parse
from curricle_papers.recipes.learned_temperature import LEARNED_TEMPERATURE

ARMS = {
    "one_shot",
    "one_shot+T4",
    "one_shot+temperature",
    "one_shot+instances",
    "extraction",
    "extraction+temperature",
}


def small(panel: str) -> RunSpec:
    return LEARNED_TEMPERATURE.panels("small")[panel].spec


def test_both_panels_have_every_arm() -> None:
    panels = LEARNED_TEMPERATURE.panels("small")
    assert set(panels) == {"parity", "pcfg"}
    assert set(panels["pcfg"].spec.strategies) == ARMS
    assert set(panels["parity"].spec.strategies) == ARMS | {"one_shot-fast"}
    assert [len(panel.spec.seeds or ()) for panel in panels.values()] == [5, 3]


def test_the_temperature_arms_differ_from_their_method_in_one_objective() -> None:
    for panel in ("parity", "pcfg"):
        calls = {name: one.curriculum for name, one in small(panel).strategies.items()}
        for name, field in (("one_shot", "objective"), ("extraction", "final_objective")):
            tempered = dict(calls[f"{name}+temperature"])
            assert parse(AnyObjective, tempered.pop(field)) == LearnedTemperature()
            assert tempered == calls[name]


def test_the_fixed_temperature_has_the_weights_of_the_learned_one() -> None:
    (stage,) = small("parity").strategies["one_shot+T4"].curriculum["stages"]
    divergence, labels = (parse(AnyObjective, one) for one in stage["objectives"])
    assert isinstance(divergence, MatchLogits)
    assert isinstance(labels, LabelLoss)
    learned = LearnedTemperature()
    assert (divergence.weight, labels.weight) == (learned.divergence_weight, learned.label_weight)
    assert (divergence.student_temperature, divergence.scale) == (4, "temperature_squared")


def test_the_fast_arm_differs_from_one_shot_in_the_rate_alone() -> None:
    spec = small("parity")
    plain, fast = spec.strategies["one_shot"], spec.strategies["one_shot-fast"]
    assert fast.optimizer is not None
    assert fast.optimizer.learning_rate == 2 * spec.optimizer.learning_rate
    assert fast.curriculum == plain.curriculum
