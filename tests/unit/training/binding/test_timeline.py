"""Timelines: planned steps, what is due, rules by hand, and states that do not fit."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from curricle.curriculum.durations import (
    Duration,
    StageDuration,
    UnlessExplained,
    UntilMetric,
    UntilPlateau,
)
from curricle.curriculum.stages import Curriculum, Stage
from curricle.errors import BindError
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.training.binding.timeline import (
    Span,
    StageEnd,
    Timeline,
    TimelineState,
    check_rule,
    plan_spans,
)
from curricle.training.loop.stage_loss import StepLoss
from tests.parts import bound

PLATEAU = UntilPlateau(at_most="40 steps", window=5, patience=2, min_improvement=0.1)
OPTIONAL = UnlessExplained(share=0.5, duration=PLATEAU)
METRIC = UntilMetric(metric="accuracy", reaches=0.9, direction="above", at_most="40 steps")


def spans(*durations: StageDuration | str) -> tuple[Span, ...]:
    stages = [
        Stage(name=f"stage {number}", duration=duration, objectives=(LabelLoss(),))
        for number, duration in enumerate(durations, start=1)
    ]
    return plan_spans(stages, batch_size=10, tokens_per_batch=50)


def window(timeline: Timeline, step: int, *losses: float) -> StageEnd | None:
    """Take one step for each loss and look at the rule."""
    timeline.add(torch.tensor(loss) for loss in losses)
    return timeline.look(step + len(losses))


def test_lengths_in_several_units_are_rounded_together() -> None:
    found = spans("15 examples", "15 examples", "60 tokens", "1 steps")
    assert [(span.start, span.end) for span in found] == [(0, 2), (2, 3), (3, 5), (5, 6)]


def test_later_stages_begin_at_the_earliest_after_the_shortest_of_a_rule() -> None:
    found = spans(PLATEAU, "10 steps", METRIC, "3 steps")
    # A plateau needs the first window and two without an improvement.
    assert [span.least for span in found] == [15, 10, 1, 3]
    assert [span.earliest for span in found] == [0, 15, 25, 26]
    assert [span.start for span in found] == [0, 40, 50, 90]
    assert found[1].possible_steps == range(15, 50)


def test_a_minimum_counts_in_its_unit() -> None:
    rule = UntilMetric(
        metric="accuracy",
        reaches=1,
        direction="above",
        at_most="400 examples",
        at_least=Duration(number=121, unit="examples"),
    )
    assert (spans(rule)[0].least, spans(rule)[0].most) == (13, 40)


def test_the_next_of_all_intervals_moments_and_windows_is_due() -> None:
    timeline = Timeline(spans("3 steps", PLATEAU), intervals=(10, 4), moments=(17, 6))
    assert timeline.due(0) == 3
    timeline.close(3, "length")
    # Windows end after 8, 13, ... steps, counted from the first step of the stage.
    due = [3]
    while due[-1] < 20:
        due.append(timeline.due(due[-1]))
    assert due == [3, 4, 6, 8, 10, 12, 13, 16, 17, 18, 20]


def test_a_loss_that_falls_does_not_end_a_stage() -> None:
    timeline = Timeline(spans(PLATEAU))
    losses = [2.0**-number for number in range(8)]
    ends = [window(timeline, 5 * at, *[loss] * 5) for at, loss in enumerate(losses)]
    assert [end and end.why for end in ends] == [None] * 7 + ["length"]


def test_a_stage_ends_after_windows_that_do_not_fall_below_the_best_by_enough() -> None:
    timeline = Timeline(spans(PLATEAU))
    # 0.95 and 0.91 are less than 10 % below the best mean, 1.0, although they fall.
    means = [4.0, 1.0, 0.95, 0.91]
    ends = [window(timeline, 5 * at, *[mean] * 5) for at, mean in enumerate(means)]
    assert ends == [None] * 3 + [StageEnd(stage="stage 1", planned=40, done=20, why="plateau")]


def test_an_improvement_begins_the_patience_anew() -> None:
    timeline = Timeline(spans(PLATEAU))
    means = [4.0, 4.0, 1.0, 1.0, 1.0]
    ends = [window(timeline, 5 * at, *[mean] * 5) for at, mean in enumerate(means)]
    assert [end and end.done for end in ends] == [None] * 4 + [25]


def test_the_mean_of_a_window_is_compared_and_not_its_last_loss() -> None:
    timeline = Timeline(spans(PLATEAU))
    for at in range(2):
        assert window(timeline, 5 * at, 1.0, 1.0, 1.0, 1.0, 1.0 - at) is None
    # 0.8 is below 0.9 of the first mean, so one more window is needed than without it.
    assert window(timeline, 10, *[0.8] * 5) is None
    end = window(timeline, 15, *[0.8] * 5)
    assert end is not None
    assert end.done == 20


def test_a_step_without_a_loss_is_left_out_of_the_mean_of_its_window() -> None:
    rule = UntilPlateau(at_most="40 steps", window=2, patience=1, min_improvement=0.1)
    timeline = Timeline(spans(rule))
    # A window without any loss is no improvement and no lack of one.
    for step, losses in enumerate([(None, None), (None, 4.0), (3.0, 3.0)]):
        timeline.add(losses)
        assert timeline.look(2 * step + 2) is None
    assert timeline.state() == TimelineState(best_mean=3.0)


def test_steps_without_a_loss_go_through_a_checkpoint() -> None:
    rule = UntilPlateau(at_most="40 steps", window=3, patience=1, min_improvement=0.1)
    timeline, resumed = Timeline(spans(rule)), Timeline(spans(rule))
    timeline.add([None, 4.0])
    resumed.restore(timeline.state(), 2)
    resumed.add([5.0])
    assert resumed.look(3) is None
    assert resumed.state().best_mean == 4.5


@pytest.mark.parametrize("mean", [0.0, -1.0])
def test_a_loss_that_is_not_positive_has_plateaus_too(mean: float) -> None:
    timeline = Timeline(spans(PLATEAU))
    ends = [window(timeline, 5 * at, *[mean] * 5) for at in range(3)]
    assert [end and end.why for end in ends] == [None, None, "plateau"]


@pytest.mark.parametrize(
    ("direction", "number", "why"),
    [("above", 0.9, "metric"), ("above", 0.89, None), ("below", 0.9, "metric"), ("below", 1, None)],
)
def test_a_metric_ends_a_stage_at_its_threshold(direction: str, number: float, why: str) -> None:
    rule = UntilMetric(
        metric="accuracy",
        reaches=0.9,
        direction="above" if direction == "above" else "below",
        at_most="40 steps",
    )
    end = Timeline(spans(rule)).look(5, {"accuracy": number})
    assert (end and end.why) == why


def test_a_metric_that_is_missing_ends_nothing() -> None:
    timeline = Timeline(spans(METRIC))
    assert timeline.look(5) is None
    assert timeline.look(6, {"nll": 0.1}) is None


def test_a_rule_that_is_met_at_the_maximum_is_the_reason() -> None:
    end = Timeline(spans(METRIC)).look(40, {"accuracy": 1.0})
    assert end == StageEnd(stage="stage 1", planned=40, done=40, why="metric")


def test_a_goal_closes_all_stages() -> None:
    timeline = Timeline(spans(PLATEAU, "10 steps"))
    end = timeline.look(7, {}, reaches_goal=True)
    assert end == StageEnd(stage="stage 1", planned=40, done=7, why="goal")
    assert not timeline.remaining()
    assert timeline.num_steps == timeline.start == 7


def test_stages_after_an_early_end_follow_at_once() -> None:
    timeline = Timeline(spans(METRIC, "10 steps", "5 steps"))
    assert list(timeline.remaining()) == [0, 1, 2]
    timeline.close(12, "metric")
    assert list(timeline.remaining()) == [1, 2]
    assert (timeline.start, timeline.due(12), timeline.num_steps) == (12, 22, 27)


@pytest.mark.parametrize("step", [0, 41])
def test_a_stage_cannot_be_closed_outside_its_steps(step: int) -> None:
    timeline = Timeline(spans(METRIC, "15 steps"))
    with pytest.raises(
        ValueError, match=rf"must lie in stage 'stage 1', steps 0 to 40; got {step}"
    ):
        timeline.close(step, "metric")


def test_a_run_that_is_over_has_nothing_due() -> None:
    timeline = Timeline(spans("5 steps"))
    timeline.close(5, "length")
    with pytest.raises(ValueError, match=r"the run of 5 steps is over; got step 5"):
        timeline.due(5)


def test_losses_are_read_only_where_a_rule_needs_them() -> None:
    loss = StepLoss([torch.tensor(2.0)], [1], [1.0])
    read: list[int] = []

    def losses() -> Iterator[Tensor]:
        read.append(1)
        yield loss.loss

    rules: list[StageDuration] = [Duration(number=5), METRIC, PLATEAU]
    for rule in rules:
        Timeline(spans(rule)).add(losses())
        assert bool(read) == (rule is PLATEAU)


def test_a_state_of_fixed_lengths_is_empty() -> None:
    timeline = Timeline(spans("5 steps", "5 steps"))
    timeline.close(5, "length")
    assert timeline.state() == TimelineState()


def test_a_state_without_a_timeline_follows_from_fixed_lengths() -> None:
    timeline = Timeline(spans("5 steps", "5 steps", "5 steps"))
    timeline.restore(TimelineState(), 10)
    assert [end.done for end in timeline.ends] == [5, 5]
    assert timeline.start == 10


END = StageEnd(stage="stage 1", planned=40, done=20, why="plateau")


@pytest.mark.parametrize(
    ("state", "step", "fault"),
    [
        (TimelineState(ends=(END,)), 19, "must lie in stage 'stage 2'"),
        (TimelineState(ends=(END,)), 61, "must lie in stage 'stage 2'"),
        (TimelineState(), 40, "must lie in stage 'stage 1'"),
        (
            TimelineState(ends=(StageEnd(stage="other", planned=1, done=1, why="metric"),)),
            20,
            r"stages \['other'\] cannot have ended after 20 steps",
        ),
        (
            TimelineState(ends=(StageEnd(stage="stage 1", planned=40, done=41, why="plateau"),)),
            45,
            "must lie in stage 'stage 1', steps 0 to 40; got 41",
        ),
    ],
)
def test_a_state_of_other_stages_is_refused(state: TimelineState, step: int, fault: str) -> None:
    timeline = Timeline(spans(PLATEAU, METRIC))
    with pytest.raises(ValueError, match=fault):
        timeline.restore(state, step)


def curriculum(duration: StageDuration) -> Curriculum:
    stage = Stage(name="logits", duration=duration, objectives=(MatchLogits(),))
    return Curriculum(name="x", stages=(stage,))


NO_PLATEAU = (
    r"^stage 'logits': 'at_most' must be longer than the 15 steps of 'patience' \+ 1 windows and "
    r"than 'at_least', before which a plateau cannot end a stage; got 15 steps$"
)
NO_METRIC = (
    r"^stage 'logits': 'eval_every' must give an evaluation after at least 1 and before the last "
    r"of the 40 steps of 'at_most', .*; got 50; choose an 'eval_every' of at most 39, or a longer "
    r"'at_most'$"
)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (UntilPlateau(at_most="15 steps", window=5, patience=2), NO_PLATEAU),
        (METRIC, NO_METRIC),
    ],
)
def test_a_rule_that_cannot_end_a_stage_is_refused(rule: StageDuration, sentence: str) -> None:
    with pytest.raises(BindError, match=sentence):
        bound(curriculum(rule), settings={"eval_every": 50})


LATE = UntilMetric(
    metric="accuracy",
    reaches=0.9,
    direction="above",
    at_most="40 steps",
    at_least=Duration(number=31),
)
"""Ends after 31 to 39 steps, or after 40 in any case."""


@pytest.mark.parametrize(
    ("durations", "fitting", "unfitting"),
    [
        # An evaluation at the end alone cannot shorten the stage.
        ([METRIC], [1, 20, 39], [40, 41, 250]),
        ([LATE], [9, 16, 35, 39], [20, 30, 40]),
        # Intervals count from the start of the run: after 11 to 49 steps, or after 41 to 49.
        (["10 steps", METRIC], [11, 40, 49], [50, 51]),
        (["10 steps", LATE], [9, 41, 22], [10, 20, 40, 50]),
        # Where the start is not known, the interval must fit wherever the stage begins.
        ([PLATEAU, METRIC], [39], [40, 55]),
        ([PLATEAU, LATE], [9], [10, 35]),
    ],
)
def test_a_metric_must_be_evaluated_where_it_can_end_the_stage(
    durations: list[StageDuration | str], fitting: list[int], unfitting: list[int]
) -> None:
    span = spans(*durations)[-1]
    for interval in fitting:
        check_rule(span, eval_every=interval)
    for interval in unfitting:
        with pytest.raises(BindError, match=rf"^'eval_every' must .*; got {interval}; choose an "):
            check_rule(span, eval_every=interval)


def test_a_stage_of_one_step_has_no_interval_to_choose() -> None:
    rule = UntilMetric(metric="nll", reaches=1, direction="below", at_most="1 step")
    with pytest.raises(BindError, match=r"; got 1; choose a longer 'at_most'$"):
        check_rule(spans(rule)[0], eval_every=1)


def test_a_stage_that_may_be_left_out_is_followed_at_once_at_the_earliest() -> None:
    found = spans(OPTIONAL, "10 steps")
    assert [(span.most, span.least, span.earliest) for span in found] == [(40, 15, 0), (10, 10, 0)]


def test_a_stage_that_is_left_out_takes_no_step() -> None:
    timeline = Timeline(spans(OPTIONAL, "10 steps"))
    end = timeline.leave_out()
    assert end == StageEnd(stage="stage 1", planned=40, done=0, why="explained")
    assert (timeline.start, timeline.num_steps, timeline.remaining()) == (0, 10, range(1, 2))


def test_a_stage_that_is_not_left_out_ends_by_its_own_rule() -> None:
    timeline = Timeline(spans(OPTIONAL, "10 steps"))
    ends = [window(timeline, 5 * at, *[1.0] * 5) for at in range(3)]
    assert [end and end.why for end in ends] == [None, None, "plateau"]


def test_a_stage_of_another_duration_cannot_be_left_out() -> None:
    timeline = Timeline(spans("10 steps"))
    with pytest.raises(
        ValueError, match=r"^stage 'stage 1' cannot be left out; its length is 10 steps$"
    ):
        timeline.leave_out()


def test_a_stage_after_an_omitted_stage_takes_steps_of_its_own() -> None:
    timeline = Timeline(spans(OPTIONAL, OPTIONAL, "10 steps"))
    timeline.leave_out()
    timeline.close(7, "plateau")
    assert [(end.done, end.why) for end in timeline.ends] == [(0, "explained"), (7, "plateau")]
    assert timeline.num_steps == 17


@pytest.mark.parametrize(
    ("worth", "last"), [(Fraction(0), 10), (Fraction(1), 83), (Fraction(1, 3), 34)]
)
def test_the_last_stage_takes_what_unused_steps_are_worth(worth: Fraction, last: int) -> None:
    planned = spans(OPTIONAL, OPTIONAL, "10 steps")
    timeline = Timeline([replace(span, worth=worth) for span in planned])
    timeline.leave_out()
    timeline.close(7, "plateau")
    # Unused are 40 and 33 steps.
    assert timeline.num_steps == 7 + last
    assert timeline.due(7) == 7 + last
    assert timeline.close(7 + last, "length").planned == last


def test_a_timeline_goes_on_after_a_stage_that_was_left_out() -> None:
    planned = [replace(span, worth=Fraction(1)) for span in spans(OPTIONAL, PLATEAU, "10 steps")]
    timeline = Timeline(planned)
    timeline.leave_out()
    window(timeline, 0, *[1.0] * 5)
    restored = Timeline(planned)
    restored.restore(timeline.state(), 5)
    assert restored.ends == timeline.ends
    assert restored.state() == timeline.state()
    assert restored.num_steps == timeline.num_steps == 90
