"""Invariants of timelines, whatever durations follow each other and however they end."""

import itertools
from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.curriculum.durations import Duration, StageDuration, UntilMetric, UntilPlateau
from curricle.curriculum.stages import Stage
from curricle.objectives.labels import LabelLoss
from curricle.training.binding.timeline import Span, Timeline, plan_spans

LENGTHS = st.builds(
    Duration,
    number=st.integers(1, 60),
    unit=st.sampled_from(["steps", "examples", "tokens"]),
)
PLATEAUS = st.builds(
    UntilPlateau,
    at_most=LENGTHS,
    window=st.integers(1, 7),
    patience=st.integers(1, 3),
    min_improvement=st.floats(0, 0.9),
)
METRICS = st.builds(
    UntilMetric,
    metric=st.just("accuracy"),
    reaches=st.floats(0, 1),
    direction=st.sampled_from(["above", "below"]),
    at_most=LENGTHS,
)
DURATIONS = st.lists(st.one_of(LENGTHS, PLATEAUS, METRICS), min_size=1, max_size=5)
INTERVALS = st.lists(st.integers(1, 9), max_size=3)
MOMENTS = st.lists(st.integers(1, 80), max_size=4)
NUMBERS = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)


def spans_of(durations: Sequence[StageDuration]) -> tuple[Span, ...]:
    stages = [
        Stage(name=str(number), duration=duration, objectives=(LabelLoss(),))
        for number, duration in enumerate(durations)
    ]
    return plan_spans(stages, batch_size=4, tokens_per_batch=8)


def run(
    timeline: Timeline, numbers: Sequence[float], *, start: int = 0, until: int | None = None
) -> int:
    """Return the number of steps after taking them; losses and metrics are the numbers in turn."""
    step = start
    while timeline.remaining() and step != until:
        stop = timeline.due(step)
        assert stop > step
        last = stop if until is None else min(stop, until)
        timeline.add(torch.tensor(numbers[at % len(numbers)]) for at in range(step, last))
        step = last
        if step == stop:
            timeline.look(step, {"accuracy": numbers[step % len(numbers)]})
    return step


@given(DURATIONS)
def test_the_planned_steps_follow_each_other_without_a_gap(
    durations: list[StageDuration],
) -> None:
    spans = spans_of(durations)
    assert spans[0].start == spans[0].earliest == 0
    for before, after in itertools.pairwise(spans):
        assert after.start == before.end
        assert after.earliest == before.earliest + before.least <= after.start
    assert all(0 < span.least <= span.most for span in spans)


@given(DURATIONS, INTERVALS, MOMENTS, NUMBERS)
def test_every_step_belongs_to_exactly_one_stage(
    durations: list[StageDuration], intervals: list[int], moments: list[int], numbers: list[float]
) -> None:
    spans = spans_of(durations)
    timeline = Timeline(spans, intervals=intervals, moments=moments)
    taken = run(timeline, numbers)
    assert taken == timeline.num_steps == sum(end.done for end in timeline.ends)
    expected = [number for number, end in enumerate(timeline.ends) for _ in range(end.done)]
    assert all(step in spans[number].possible_steps for step, number in enumerate(expected))


@given(DURATIONS, INTERVALS, MOMENTS, NUMBERS)
def test_no_stage_is_longer_than_planned_or_ends_before_its_rule_can(
    durations: list[StageDuration], intervals: list[int], moments: list[int], numbers: list[float]
) -> None:
    spans = spans_of(durations)
    timeline = Timeline(spans, intervals=intervals, moments=moments)
    run(timeline, numbers)
    for span, end in zip(spans, timeline.ends, strict=True):
        assert span.least <= end.done <= end.planned == span.most
        assert end.why != "length" or end.done == span.most


@given(DURATIONS, INTERVALS, MOMENTS, st.integers(0, 100))
def test_what_is_due_is_never_passed(
    durations: list[StageDuration], intervals: list[int], moments: list[int], step: int
) -> None:
    spans = spans_of(durations)
    timeline = Timeline(spans, intervals=intervals, moments=moments)
    step %= spans[0].most
    stop = timeline.due(step)
    passed = range(step + 1, stop)
    assert step < stop <= spans[0].end
    assert not any(number % interval == 0 for number in passed for interval in intervals)
    assert not set(passed) & set(moments)


@given(DURATIONS, NUMBERS, st.integers(1, 120))
def test_closing_a_stage_never_prolongs_the_run(
    durations: list[StageDuration], numbers: list[float], step: int
) -> None:
    timeline = Timeline(spans_of(durations))
    before = timeline.num_steps
    taken = run(timeline, numbers, until=step)
    if not timeline.remaining() or taken == timeline.start:
        return
    planned = timeline.num_steps
    timeline.close(taken, "metric")
    assert timeline.num_steps <= planned <= before


@given(DURATIONS, INTERVALS, NUMBERS, st.integers(1, 120))
def test_a_restored_timeline_goes_on_as_the_one_that_was_kept(
    durations: list[StageDuration], intervals: list[int], numbers: list[float], step: int
) -> None:
    spans = spans_of(durations)
    kept = Timeline(spans, intervals=intervals)
    taken = run(kept, numbers, until=step)
    restored = Timeline(spans, intervals=intervals)
    restored.restore(kept.state(), taken)
    assert restored.ends == kept.ends
    # Both go on from the same step.
    run(kept, numbers, start=taken)
    run(restored, numbers, start=taken)
    assert restored.ends == kept.ends
