"""The stages of each strategy, in numbers computed by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curricle.curriculum.checkpoint_selection import PlannedCheckpoints
from curricle.curriculum.durations import Duration
from curricle.curriculum.initialization import (
    LeastSquaresStart,
    PrincipalStart,
    RandomStart,
    WarmStart,
)
from curricle.curriculum.layer_pairs import evenly_spaced_pairs
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import (
    build,
    extraction,
    from_labels,
    one_shot,
    progressive,
    staged,
)
from curricle.errors import SpecError
from curricle.models.tapped import tap_number
from curricle.objectives.divergences import SquaredError
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Orthogonal, Sign
from curricle.teachers.trajectory import Trajectory


def steps(number: int) -> Duration:
    return Duration(number=number)


def lengths(curriculum: Curriculum) -> list[int]:
    return [stage.duration.at_most.number for stage in curriculum.stages]


def plan(curriculum: Curriculum) -> list[tuple[Any, int]]:
    return [(stage.teacher, stage.duration.at_most.number) for stage in curriculum.stages]


def hidden(stage: Stage) -> MatchHidden:
    objective = stage.objectives[0]
    assert isinstance(objective, MatchHidden)
    return objective


# --- where uniform pairs lie ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_pairs", "depth", "taps"),
    [
        # Tap ceil(i * depth / (r + 1)) for i = 1..r.
        (1, 1, [1]),
        (1, 2, [1]),
        (1, 3, [2]),
        (1, 12, [6]),
        (2, 3, [1, 2]),
        (3, 4, [1, 2, 3]),
        (3, 12, [3, 6, 9]),
        (5, 12, [2, 4, 6, 8, 10]),
        (11, 12, list(range(1, 12))),
        (2, 1, [1, 1]),
        (4, 2, [1, 1, 2, 2]),
    ],
)
def test_uniform_pairs_are_spread_over_the_depth(
    num_pairs: int, depth: int, taps: list[int]
) -> None:
    pairs = evenly_spaced_pairs(num_pairs)
    assert [tap_number(float(pair.student), depth) for pair in pairs] == taps
    assert [pair.teacher for pair in pairs] == [pair.student for pair in pairs]


@pytest.mark.parametrize("num_pairs", [0, -1, 1001, 2**63])
def test_uniform_needs_a_number_of_pairs_that_a_curriculum_can_have(num_pairs: int) -> None:
    sentence = rf"^'num_pairs' must lie between 1 and 1,000; got {num_pairs}$"
    with pytest.raises(SpecError, match=sentence):
        evenly_spaced_pairs(num_pairs)


# --- starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RandomStart(), PrincipalStart()], ids=lambda kind: kind.kind)
def test_a_start_changes_no_stage(kind: WarmStart) -> None:
    labels = Stage(name="labels", duration=steps(40), objectives=(LabelLoss(),))
    calls: list[Callable[..., Curriculum]] = [
        partial(extraction, total=steps(40), shared_projection=True),
        partial(one_shot, total=steps(40)),
        partial(progressive, total=steps(40), trajectory=[10, 20]),
        partial(staged, total=steps(40), stages=(labels,)),
    ]
    for call in calls:
        assert call().init is None
        assert call(init=kind) == replace(call(), init=kind)


def test_layers_share_the_projection_of_a_random_start() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'shared_projection' must be true with a random 'init', so that the layers use "
        r"its projection; got False$",
    ):
        extraction(total=steps(40), init=RandomStart())
    assert extraction(total=steps(40), init=PrincipalStart()).init == PrincipalStart()


def test_a_start_is_given_in_a_spec_by_its_kind() -> None:
    call = {"kind": "one_shot", "init": {"kind": "random", "projection": {"kind": "sign"}}}
    made = build(call, total=steps(5), trajectory=None)
    assert made.init == RandomStart(projection=Sign())


def test_an_unknown_start_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"^'init': .*'random', 'principal'"):
        build({"kind": "one_shot", "init": {"kind": "warm"}}, total=steps(5), trajectory=None)


# --- extraction -----------------------------------------------------------------------------------


def test_extraction_is_layers_and_then_logits() -> None:
    stages = extraction(total=steps(100), pairs=2).stages
    assert [stage.name for stage in stages] == ["layer 1", "layer 2", "logits"]
    assert [hidden(stage).pair for stage in stages[:2]] == list(evenly_spaced_pairs(2))
    assert stages[2].objectives == (MatchLogits(),)


def test_a_quarter_of_the_total_is_for_the_layers_together() -> None:
    assert lengths(extraction(total=steps(1000), pairs=2)) == [125, 125, 750]


def test_the_share_can_be_chosen() -> None:
    assert lengths(extraction(total=steps(1000), pairs=4, layer_fraction=0.5)) == [125] * 4 + [500]


def test_what_cannot_be_divided_is_spread_over_the_layers() -> None:
    # 0.25 * 40 = 10 steps for 4 layers: the borders 2.5, 5, 7.5, 10 are rounded half up.
    assert lengths(extraction(total=steps(40), pairs=4)) == [3, 2, 3, 2, 30]


def test_every_layer_lasts_at_least_one_unit() -> None:
    assert lengths(extraction(total=steps(5), pairs=4)) == [1, 1, 1, 1, 1]


def test_the_share_has_no_effect_beside_lengths_and_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"^'layer_fraction' must not be combined with 'durations'; got 0\.3$"
    ):
        extraction(total=steps(100), layer_fraction=0.3, durations=(steps(10),))


def test_labels_at_the_end_read_no_teacher() -> None:
    actual = extraction(total=steps(8), teacher=70, final_objective=LabelLoss())
    assert [stage.teacher for stage in actual.stages] == [70, "final"]


def test_layer_lengths_may_be_given() -> None:
    pairs = (LayerPair(student=1, teacher=2), LayerPair(student=2, teacher=4))
    actual = extraction(total=steps(100), pairs=pairs, durations=(steps(10), steps(30)))
    assert lengths(actual) == [10, 30, 60]
    assert [hidden(stage).pair for stage in actual.stages[:2]] == list(pairs)


def test_the_options_of_layer_stages_reach_them() -> None:
    layer = extraction(
        total=steps(8),
        projection=Orthogonal(),
        shared_projection=True,
        normalize="rms",
        center=True,
        positions="selected",
        trainable="new",
    ).stages[0]
    assert hidden(layer) == MatchHidden(
        pair=LayerPair(student=0.5, teacher=0.5),
        projection=Orthogonal(),
        shared_projection=True,
        normalize="rms",
        center=True,
        positions="selected",
    )
    assert layer.trainable == "new"


def test_freezing_ends_with_the_layers() -> None:
    assert extraction(total=steps(8), trainable="new").stages[-1].trainable == "reached"


def test_borders_and_teacher_hold_for_all_stages() -> None:
    actual = extraction(total=steps(8), schedule="own", optimizer_state="reset", teacher=70)
    chosen = [(stage.schedule, stage.optimizer_state, stage.teacher) for stage in actual.stages]
    assert chosen == [("own", "reset", 70)] * 2


def test_the_last_objective_can_be_chosen() -> None:
    assert extraction(total=steps(8), final_objective=LabelLoss()).stages[-1].objectives == (
        LabelLoss(),
    )


def test_extraction_needs_pairs() -> None:
    with pytest.raises(SpecError, match=r"^'pairs' must hold at least one layer pair; got \(\)$"):
        extraction(total=steps(10), pairs=())


def test_there_is_one_duration_for_each_pair() -> None:
    with pytest.raises(
        SpecError, match=r"^'durations' must have one entry for each of the 2 pairs; got 1$"
    ):
        extraction(total=steps(10), pairs=2, durations=(steps(1),))


@pytest.mark.parametrize(("total", "pairs", "taken"), [(1, 1, 1), (3, 3, 3), (2, 5, 5)])
def test_the_last_stage_needs_a_rest(total: int, pairs: int, taken: int) -> None:
    with pytest.raises(
        SpecError,
        match=rf"^'total' {total} steps must be longer than the stages before the last; "
        rf"they take {taken}$",
    ):
        extraction(total=steps(total), pairs=pairs)


def test_durations_are_in_the_unit_of_the_total() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'durations' must be in steps like 'total' \(in steps for a budget of FLOPs or "
        r"seconds\); got 5 tokens$",
    ):
        extraction(total=steps(10), durations=(Duration(number=5, unit="tokens"),))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_is_neither_nothing_nor_all(share: float) -> None:
    with pytest.raises(SpecError, match=rf"^'layer_fraction' .*; got {share}$"):
        extraction(total=steps(10), layer_fraction=share)


# --- progressive ----------------------------------------------------------------------------------


def test_checkpoints_share_the_total_equally() -> None:
    actual = progressive(total=steps(100), trajectory=(10, 20, 40, 80))
    assert plan(actual) == [(10, 25), (20, 25), (40, 25), (80, 25)]
    assert actual.stages[0].name == "checkpoint 10"


def test_checkpoints_that_do_not_divide_the_total_differ_by_one_step() -> None:
    assert sorted(lengths(progressive(total=steps(10), trajectory=(1, 2, 3, 4)))) == [2, 2, 3, 3]


def test_one_step_for_each_checkpoint_is_enough() -> None:
    assert lengths(progressive(total=steps(9), trajectory=tuple(range(9)))) == [1] * 9


def test_half_a_step_more_than_one_for_each_checkpoint_is_enough() -> None:
    # Rounding 1.5 up in each stage would exceed the total.
    assert sum(lengths(progressive(total=steps(15), trajectory=tuple(range(10))))) == 15


def test_one_checkpoint_teaches_all_along() -> None:
    assert plan(progressive(total=steps(10), trajectory=(5,))) == [(5, 10)]


def test_a_trajectory_can_be_passed_as_it_is() -> None:
    class Two:
        steps = (3, 9)

    assert plan(progressive(total=steps(10), trajectory=Two())) == [(3, 5), (9, 5)]


def test_two_shot_is_two_checkpoints_and_one_duration() -> None:
    actual = progressive(total=steps(100), trajectory=(20, 80), durations=(steps(10),))
    assert plan(actual) == [(20, 10), (80, 90)]


def test_the_refresh_rule_of_the_paper() -> None:
    # R = 1000, f = 1: checkpoints 1k to 8k for 1000 steps each.
    ladder = tuple(range(1000, 9000, 1000))
    actual = progressive(total=steps(8000), trajectory=ladder, refresh=1000)
    assert plan(actual) == [(step, 1000) for step in ladder]


def test_a_faster_teacher_runs_ahead_of_the_student() -> None:
    actual = progressive(total=steps(45), trajectory=(10, 20, 30, 40), refresh=10, speed=2)
    # Bounds 20, 40, 60, 80, 100; the last three find checkpoint 40.
    assert plan(actual) == [(20, 10), (40, 35)]


def test_between_checkpoints_the_largest_below_the_bound_teaches() -> None:
    actual = progressive(total=steps(30), trajectory=(7, 25), refresh=10)
    assert plan(actual) == [(7, 20), (25, 10)]


def test_before_the_first_checkpoint_the_first_one_teaches() -> None:
    actual = progressive(total=steps(30), trajectory=(25, 30), refresh=10)
    assert plan(actual) == [(25, 20), (30, 10)]


def test_rounding_does_not_hide_a_checkpoint() -> None:
    # In floating point 0.29 * 100 = 28.999999999999996.
    actual = progressive(total=steps(100), trajectory=(1, 29), refresh=100, speed=0.29)
    assert plan(actual) == [(29, 100)]


@pytest.mark.parametrize("trajectory", [None, (), (20, 10), (10, 10)])
def test_checkpoints_ascend(trajectory: object) -> None:
    got = re.escape(str(trajectory or ()))
    with pytest.raises(
        SpecError, match=rf"^'trajectory' must hold ascending checkpoint steps; got {got}$"
    ):
        progressive(total=steps(10), trajectory=trajectory)


@pytest.mark.parametrize("trajectory", [5, ["a"], "500"])
def test_checkpoints_are_numbers(trajectory: object) -> None:
    with pytest.raises(SpecError, match=r"^'trajectory.*got "):
        progressive(total=steps(10), trajectory=trajectory)


def test_refresh_and_durations_exclude_each_other() -> None:
    with pytest.raises(SpecError, match=r"^'refresh' must not be combined with 'durations'"):
        progressive(total=steps(10), trajectory=(1, 2), refresh=2, durations=(steps(2),))


def test_speed_alone_has_no_effect_and_is_an_error() -> None:
    with pytest.raises(
        SpecError, match=r"^'speed' has no effect without 'refresh'; .*\(got 2.0\)$"
    ):
        progressive(total=steps(10), trajectory=(1, 2), speed=2)


def test_the_refresh_rule_counts_in_steps() -> None:
    with pytest.raises(SpecError, match=r"'total' in steps; got 2, 10 tokens$"):
        progressive(total=Duration(number=10, unit="tokens"), trajectory=(1,), refresh=2)


def test_refresh_is_not_so_short_that_nobody_could_list_the_times() -> None:
    with pytest.raises(SpecError, match=r"^'refresh' must be at least 10000000 for a total of 10"):
        progressive(total=steps(10**12), trajectory=(1,), refresh=3)
    many = progressive(total=steps(10**12), trajectory=(1, 2), refresh=10**7)
    assert [stage.duration for stage in many.stages] == [steps(10**12)]


def test_refresh_is_positive() -> None:
    with pytest.raises(SpecError, match=r"^'refresh' must be positive and .*; got 0, 10 steps$"):
        progressive(total=steps(10), trajectory=(1,), refresh=0)


def test_the_last_checkpoint_takes_what_is_left() -> None:
    with pytest.raises(
        SpecError, match=r"^'durations' must have one entry fewer than the 2 checkpoints; got 2$"
    ):
        progressive(total=steps(10), trajectory=(1, 2), durations=(steps(2), steps(2)))


FALL = ((10, 0.69), (20, 0.69), (30, 0.4), (40, 0.01), (50, 0.01))
"""A teacher's losses with checkpoint 30 inside the transition."""


def fallen() -> Trajectory:
    return Trajectory(tuple((step, Path(str(step))) for step, _ in FALL), FALL)


def test_the_transition_gives_two_shots_the_first_for_a_twentieth() -> None:
    actual = progressive(total=steps(100), trajectory=fallen(), select="transition")
    assert plan(actual) == [(30, 5), (50, 95)]
    assert actual.note == (
        "checkpoint 30 lies inside the teacher's transition (loss 0.69 -> 0.010 between 20 and 40)"
    )


def test_the_checkpoint_in_the_transition_may_teach_for_a_length_of_its_own() -> None:
    actual = progressive(
        total=steps(100), trajectory=fallen(), select="transition", durations=("8 steps",)
    )
    assert plan(actual) == [(30, 8), (50, 92)]


def test_checkpoints_may_be_selected_by_their_steps() -> None:
    actual = progressive(total=steps(100), trajectory=fallen(), select=(20, 50))
    assert (plan(actual), actual.note) == ([(20, 50), (50, 50)], "")


def test_selected_checkpoints_may_be_refreshed() -> None:
    actual = progressive(total=steps(40), trajectory=fallen(), select=(10, 40), refresh=20)
    assert plan(actual) == [(10, 20), (40, 20)]


def test_a_transition_is_not_refreshed() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'refresh' must not be combined with 'select' 'transition'; got both$",
    ):
        progressive(total=steps(9), trajectory=fallen(), select="transition", refresh=2)


@pytest.mark.parametrize("select", ["transitio", 5, ["x"]])
def test_a_selection_is_known_or_a_list_of_steps(select: Any) -> None:
    with pytest.raises(SpecError, match=r"^'select.*got "):
        progressive(total=steps(9), trajectory=fallen(), select=select)


def test_a_spec_may_ask_for_the_transition_before_the_teacher_is_taught() -> None:
    call = {"kind": "progressive", "select": "transition"}
    actual = build(call, total=steps(100), trajectory=PlannedCheckpoints((1, 2, 3, 4, 5)))
    assert plan(actual) == [(3, 5), (5, 95)]
    assert "provisional" in actual.note


# --- the others -----------------------------------------------------------------------------------


def test_one_shot_adds_the_labels_with_a_weight() -> None:
    (stage,) = one_shot(total=steps(10), label_weight=0.5).stages
    assert stage.objectives == (MatchLogits(), LabelLoss(weight=0.5))
    assert one_shot(total=steps(10), label_weight=0) == one_shot(total=steps(10))


def test_labels_beside_values_are_fitted_by_their_squared_error() -> None:
    values = MatchLogits(divergence=SquaredError())
    (stage,) = one_shot(total=steps(10), objective=values, label_weight=0.5).stages
    assert stage.objectives == (values, LabelLoss(weight=0.5, loss="squared_error"))
    (stage,) = one_shot(total=steps(10), label_weight=1.0, label_loss="binary").stages
    assert stage.objectives == (MatchLogits(), LabelLoss(loss="binary"))


def test_one_shot_refuses_a_negative_weight_of_the_labels() -> None:
    with pytest.raises(SpecError, match="'label_weight' must be greater than or equal"):
        one_shot(total=steps(10), label_weight=-1)


@pytest.mark.parametrize("pair", [LayerPair(student=1, teacher=2), {"student": 1, "teacher": 2}])
def test_a_single_pair_needs_no_list(pair: Any) -> None:
    listed = extraction(total=steps(40), pairs=(LayerPair(student=1, teacher=2),))
    assert extraction(total=steps(40), pairs=pair) == listed


def test_one_shot_is_one_stage_of_logits() -> None:
    (stage,) = one_shot(total=steps(10), teacher=4).stages
    assert (stage.objectives, stage.teacher, stage.duration) == ((MatchLogits(),), 4, steps(10))


def test_training_from_labels_reads_no_teacher() -> None:
    assert from_labels(total=steps(10)).teachers == ()


def test_labels_may_follow_a_start_that_reads_the_teacher() -> None:
    curriculum = from_labels(total=steps(10), init="least_squares")
    assert curriculum.init == LeastSquaresStart()
    assert curriculum.teachers == ("final",)
    assert curriculum.stages == from_labels(total=steps(10)).stages


def test_written_stages_add_up_to_the_total() -> None:
    (stage,) = one_shot(total=steps(4)).stages
    with pytest.raises(
        SpecError,
        match=r"^'stages' must add up to 'total' 10 steps; stage 'logits' would have to last "
        r"10 steps; got 4 steps$",
    ):
        staged(total=steps(10), stages=(stage,))


def test_written_stages_are_not_empty() -> None:
    with pytest.raises(SpecError, match=r"^'stages' must have at least 1 item"):
        staged(total=steps(10), stages=())


def test_a_total_may_be_written_as_text() -> None:
    assert lengths(one_shot(total="2k tokens")) == [2000]


# --- from plain data ------------------------------------------------------------------------------


def test_plain_data_become_a_curriculum() -> None:
    call = {"kind": "extraction", "pairs": [{"student": 1, "teacher": 2}], "durations": ["3 steps"]}
    actual = build(call, total=steps(10), trajectory=None)
    assert lengths(actual) == [3, 7]
    assert hidden(actual.stages[0]).pair == LayerPair(student=1, teacher=2)


def test_the_runs_trajectory_is_used_unless_checkpoints_are_listed() -> None:
    everything = build({"kind": "progressive"}, total=steps(10), trajectory=(1, 2))
    listed = build({"kind": "progressive", "trajectory": [2]}, total=steps(10), trajectory=(1, 2))
    assert (plan(everything), plan(listed)) == ([(1, 5), (2, 5)], [(2, 10)])


@pytest.mark.parametrize("kind", ["extractio", "progressiv"])
def test_a_misspelt_strategy_is_recognized(kind: str) -> None:
    with pytest.raises(
        SpecError, match=rf"^'kind' '{kind}' is not a strategy; did you mean '\w+'\? available: "
    ):
        build({"kind": kind}, total=steps(10), trajectory=None)


def test_a_misspelt_argument_is_recognized() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'layer_frac' is not an argument of extraction; did you mean 'layer_fraction'",
    ):
        build({"kind": "extraction", "layer_frac": 0.2}, total=steps(10), trajectory=None)


def test_the_total_is_not_an_argument_of_the_call() -> None:
    with pytest.raises(SpecError, match=r"^'total' is not an argument of one_shot; "):
        build({"kind": "one_shot", "total": "5 steps"}, total=steps(10), trajectory=None)


def test_a_wrong_value_is_named_by_its_path() -> None:
    call = {"kind": "extraction", "pairs": [{"student": 1, "teachr": 2}]}
    with pytest.raises(SpecError, match=r"'teachr' is not a field; did you mean 'teacher'"):
        build(call, total=steps(10), trajectory=None)


def test_a_misspelt_argument_is_told_the_near_name() -> None:
    misspelt: dict[str, Any] = {"total": Duration(number=10), "pair": 1}
    with pytest.raises(SpecError, match="'pair' is not an argument; did you mean 'pairs'"):
        extraction(**misspelt)


@pytest.mark.parametrize("pairs", [[(1, 2)], [[1, 2]], [1]])
def test_a_pair_must_name_its_taps(pairs: Any) -> None:
    sentence = r"'pairs.0': a layer pair must name its taps, as curricle.LayerPair\(student=1"
    with pytest.raises(SpecError, match=sentence):
        extraction(total="10 steps", pairs=pairs)
