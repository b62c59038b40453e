"""Contract of strategies: a curriculum of exactly the requested length."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.curriculum.durations import Duration
from curricle.curriculum.selection import PlannedCheckpoints
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import STRATEGIES, build
from curricle.errors import SpecError
from curricle.values import parse, plain

Arguments = Callable[[Duration], dict[str, Any]]
TRAJECTORY = PlannedCheckpoints((100, 200, 400))


def written(total: Duration) -> list[dict[str, Any]]:
    """Return two stages that last one unit and the rest."""
    parts = {"first": 1, "second": total.number - 1}
    return [
        {"name": name, "duration": f"{number} {total.unit}", "objectives": [{"kind": "labels"}]}
        for name, number in parts.items()
    ]


CATALOG: dict[str, Arguments] = {
    "extraction": lambda total: {"kind": "extraction"},
    "extraction of three layers": lambda total: {
        "kind": "extraction",
        "pairs": 3,
        "layer_fraction": 0.4,
        "projection": {"kind": "sign"},
        "trainable": "new",
        "teacher": 100,
    },
    "extraction in given lengths": lambda total: {
        "kind": "extraction",
        "pairs": [{"student": 1, "teacher": "blocks.2"}, {"student": 0.5, "teacher": 2}],
        "durations": [f"1 {total.unit}", f"2 {total.unit}"],
        "final_objective": {"kind": "labels"},
    },
    "extraction after a start": lambda total: {
        "kind": "extraction",
        "shared_projection": True,
        "projection": {"kind": "sign"},
        "init": {"kind": "random", "projection": {"kind": "sign"}},
    },
    "progressive": lambda total: {"kind": "progressive"},
    "progressive two-shot": lambda total: {
        "kind": "progressive",
        "trajectory": [100, 400],
        "durations": [f"3 {total.unit}"],
        "objective": {"kind": "logits", "teacher_temperature": 2.0},
    },
    "progressive through the transition": lambda total: {
        "kind": "progressive",
        "select": "transition",
    },
    "progressive through selected checkpoints": lambda total: {
        "kind": "progressive",
        "select": [100, 400],
    },
    "one_shot": lambda total: {"kind": "one_shot", "objective": {"kind": "logits", "weight": 2}},
    "one_shot after a start": lambda total: {"kind": "one_shot", "init": {"kind": "principal"}},
    "low_rank_clone": lambda total: {
        "kind": "low_rank_clone",
        "start": "random",
        "label_weight": 0.5,
    },
    "from_labels": lambda total: {"kind": "from_labels"},
    "from_labels after a start": lambda total: {"kind": "from_labels", "init": "principal"},
    "hidden_first": lambda total: {"kind": "hidden_first"},
    "hidden_first by CKA": lambda total: {
        "kind": "hidden_first",
        "pairs": [{"student": 1, "teacher": 2}, {"student": 2, "teacher": "blocks.3"}],
        "layer_fraction": 0.3,
        "layer_objective": {"kind": "cka"},
        "teacher": 100,
    },
    "hidden_first after a start": lambda total: {
        "kind": "hidden_first",
        "pairs": 3,
        "layer_objective": {
            "kind": "hidden",
            "shared_projection": True,
            "projection": {"kind": "sign"},
        },
        "init": {"kind": "random", "projection": {"kind": "sign"}},
    },
    "joint": lambda total: {"kind": "joint", "layer_objective": "procrustes"},
    "joint with relations": lambda total: {
        "kind": "joint",
        "pairs": 2,
        "layer_objective": {"kind": "relations", "heads": 8, "causal": True},
        "layer_weight": 0.5,
        "init": "principal",
    },
    "auto": lambda total: {"kind": "auto"},
    "auto without labels": lambda total: {"kind": "auto", "labels": None},
    "auto without a start": lambda total: {"kind": "auto", "init": None},
    "staged": lambda total: {"kind": "staged", "stages": written(total)},
}
every_strategy = pytest.mark.parametrize("arguments", CATALOG.values(), ids=CATALOG.keys())
totals = st.builds(
    Duration,
    number=st.integers(8, 10**10),
    unit=st.sampled_from(["steps", "examples", "tokens"]),
)


def made(arguments: Arguments, total: Duration) -> Curriculum:
    return build(arguments(total), total=total, trajectory=TRAJECTORY)


def test_every_strategy_is_in_the_catalog() -> None:
    total = Duration(number=10)
    assert {arguments(total)["kind"] for arguments in CATALOG.values()} == set(STRATEGIES)


@every_strategy
@given(total=totals)
def test_durations_add_up_to_the_total_exactly(arguments: Arguments, total: Duration) -> None:
    durations = [stage.duration for stage in made(arguments, total).stages]
    assert {duration.at_most.unit for duration in durations} == {total.unit}
    assert sum(duration.at_most.number for duration in durations) == total.number


@every_strategy
def test_the_result_is_a_valid_curriculum_named_after_its_method(arguments: Arguments) -> None:
    actual = made(arguments, Duration(number=1000))
    assert isinstance(actual, Curriculum)
    assert actual.name == arguments(Duration(number=1000))["kind"]


@every_strategy
def test_equal_arguments_give_equal_curricula(arguments: Arguments) -> None:
    total = Duration(number=997, unit="examples")
    assert made(arguments, total) == made(arguments, total)


@every_strategy
def test_the_name_can_be_chosen(arguments: Arguments) -> None:
    total = Duration(number=50)
    named = build(arguments(total) | {"name": "mine"}, total=total, trajectory=TRAJECTORY)
    assert named.name == "mine"


@every_strategy
def test_the_curriculum_survives_plain_data(arguments: Arguments) -> None:
    actual = made(arguments, Duration(number=1000))
    assert parse(Curriculum, plain(actual)) == actual


@every_strategy
def test_teachers_are_final_or_of_the_trajectory(arguments: Arguments) -> None:
    assert set(made(arguments, Duration(number=50)).teachers) <= {"final", *TRAJECTORY.steps}


@every_strategy
def test_an_unknown_argument_is_an_error(arguments: Arguments) -> None:
    call = arguments(Duration(number=50))
    with pytest.raises(
        SpecError, match=rf"^'nme' is not an argument of {call['kind']}; did you mean 'name'"
    ):
        build(call | {"nme": "x"}, total=Duration(number=50), trajectory=TRAJECTORY)


@pytest.mark.parametrize("name", ["one_shot", "from_labels", "joint"])
def test_a_single_stage_may_last_one_unit(name: str) -> None:
    (stage,) = made(CATALOG[name], Duration(number=1)).stages
    assert stage.duration == Duration(number=1)


@pytest.mark.parametrize(
    "name", [name for name in CATALOG if name.startswith(("extr", "progr", "hidden"))]
)
def test_a_total_of_one_unit_is_too_short_for_several_stages(name: str) -> None:
    with pytest.raises(SpecError, match=r"^'total' 1 steps must be longer than the stages before"):
        made(CATALOG[name], Duration(number=1))
