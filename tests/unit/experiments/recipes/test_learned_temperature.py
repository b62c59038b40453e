from curricle.experiments.recipes.learned_temperature import LEARNED_TEMPERATURE
from curricle.experiments.spec import RunSpec
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.outputs import FitLabels, MatchLogits
from curricle.objectives.temperature import LearnedTemperature
from curricle.specs import parse

ARMS = {
    "one_shot",
    "one_shot+T4",
    "one_shot+temperature",
    "one_shot+instances",
    "extraction",
    "extraction+temperature",
    "extraction+trained",
}


def small(panel: str) -> RunSpec:
    return LEARNED_TEMPERATURE.panels("small")[panel].spec


def test_both_panels_have_every_arm() -> None:
    panels = LEARNED_TEMPERATURE.panels("small")
    assert set(panels) == {"parity", "pcfg"}
    assert all(set(panel.spec.strategies) == ARMS for panel in panels.values())
    assert [len(panel.spec.seeds or ()) for panel in panels.values()] == [5, 3]


def test_the_temperature_arms_differ_from_their_method_in_one_objective() -> None:
    for panel in ("parity", "pcfg"):
        calls = {name: one.curriculum for name, one in small(panel).strategies.items()}
        for name, field in (("one_shot", "objective"), ("extraction", "last")):
            tempered = dict(calls[f"{name}+temperature"])
            assert parse(AnyObjective, tempered.pop(field)) == LearnedTemperature()
            assert tempered == calls[name]


def test_the_fixed_temperature_has_the_weights_of_the_learned_one() -> None:
    (stage,) = small("parity").strategies["one_shot+T4"].curriculum["stages"]
    divergence, labels = (parse(AnyObjective, one) for one in stage["objectives"])
    assert isinstance(divergence, MatchLogits)
    assert isinstance(labels, FitLabels)
    learned = LearnedTemperature()
    assert (divergence.weight, labels.weight) == (learned.divergence_weight, learned.label_weight)
    assert (divergence.student_temperature, divergence.scale) == (4, "temperature_squared")


def test_one_arm_has_a_trained_projection() -> None:
    call = small("pcfg").strategies["extraction+trained"].curriculum
    assert call["projection"] == {"kind": "learned"}
