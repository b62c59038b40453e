"""Timeline of a run: the stage of each step, the steps at which something is due, and their ends.

Binding plans a `Span` for each stage: its longest and its shortest number of steps. A `Timeline` is
the state of one run on these spans. It closes stages, by their length, by the rule of their
duration or because the run's goal is reached, leaves out others, and gives the number of steps
before the next record, evaluation, checkpoint or check of a rule.

Steps are counted over the whole run, and a batch belongs to a step. A stage after one that has
ended early begins at the next step, so it may read batches that were planned for its predecessor.

Design: a checkpoint holds the ends of stages with a rule alone; those of fixed lengths follow. The
sum over an unfinished window is a float64 beside the student, so that no step waits for a GPU
and a resumed run continues with the same bits.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from torch import Tensor

from curricle.curriculum.durations import (
    Duration,
    Rule,
    StageDuration,
    Unit,
    UnlessExplained,
    UntilMetric,
    UntilPlateau,
    length_or_rule,
)
from curricle.curriculum.stages import Stage
from curricle.errors import BindError
from curricle.records import EndReason
from curricle.values import value


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Planned steps of one stage."""

    name: str
    """Name of the stage."""
    duration: StageDuration
    """Duration as declared."""
    start: int
    """First step if all earlier stages take their longest."""
    earliest: int
    """First step if all earlier stages take their shortest."""
    most: int
    """Largest number of steps."""
    least: int
    """Smallest number of steps, unless the stage is left out; that of a fixed length is the
    largest."""
    worth: Fraction = Fraction(0)
    """Steps of the last stage for each planned step that the stage does not take."""

    @property
    def rule(self) -> Duration | Rule:
        """Return the duration of the stage if it is not left out."""
        return length_or_rule(self.duration)

    @property
    def is_optional(self) -> bool:
        """Return whether the stage may be left out."""
        return isinstance(self.duration, UnlessExplained)

    @property
    def end(self) -> int:
        """Return the step after the last if all stages take their longest."""
        return self.start + self.most

    @property
    def possible_steps(self) -> range:
        """Return the steps that can belong to the stage, whenever earlier stages end."""
        return range(self.earliest, self.end)


def plan_spans(
    stages: Sequence[Stage],
    *,
    batch_size: int,
    tokens_per_batch: int,
    examples_per_epoch: int | None = None,
) -> tuple[Span, ...]:
    """Return the planned steps of some stages.

    Args:
        stages: The stages in order.
        batch_size: Examples per step.
        tokens_per_batch: Tokens per step.
        examples_per_epoch: Examples of an epoch; None for data without a known length.
    """

    def steps(length: Duration) -> int:
        return length.steps(
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            examples_per_epoch=examples_per_epoch,
        )

    declared: dict[Unit, Fraction] = {}
    spans: list[Span] = []
    start = earliest = 0
    for stage in stages:
        longest = stage.duration.at_most
        declared[longest.unit] = declared.get(longest.unit, Fraction(0)) + longest.length
        # Borders are rounded, not lengths: many rounded stages would prolong the run.
        covering = sum(steps(Duration.of(length, unit)) for unit, length in declared.items())
        # Every stage gets a step, even one whose length rounding has given to its predecessors.
        most = max(covering, start + 1) - start
        least = most
        rule = length_or_rule(stage.duration)
        if not isinstance(rule, Duration):
            at_least = rule.at_least
            least = max(_shortest(rule), 0 if at_least is None else steps(at_least))
        spans.append(
            Span(
                name=stage.name,
                duration=stage.duration,
                start=start,
                earliest=earliest,
                most=most,
                # A minimum beyond the maximum is cut here, and refused by `check_rule` in words.
                least=min(least, most),
            )
        )
        start += most
        earliest += 0 if spans[-1].is_optional else spans[-1].least
    return tuple(spans)


def _shortest(duration: UntilPlateau | UntilMetric) -> int:
    """Return the number of steps before which a rule cannot end a stage."""
    # The first window has nothing to improve on.
    return duration.window * (duration.patience + 1) if isinstance(duration, UntilPlateau) else 1


def check_rule(span: Span, *, eval_every: int) -> None:
    """Check that a rule can end a stage before its maximum.

    Args:
        span: The planned steps of the stage.
        eval_every: Steps between evaluations.

    Raises:
        BindError: If it cannot, so that it would have no effect.
    """
    # One that may be left out has an effect without an early end, so a short run takes it, too.
    if isinstance(span.duration, UntilPlateau) and span.least >= span.most:
        raise BindError(
            f"'at_most' must be longer than the {_shortest(span.duration)} steps of 'patience' + 1 "
            f"windows and than 'at_least', before which a plateau cannot end a stage; got "
            f"{span.most} steps"
        )
    if isinstance(span.rule, UntilMetric) and not _is_evaluated_early(span, eval_every):
        room = span.most - span.least
        smaller = f"an 'eval_every' of at most {room}, or " if room else ""
        raise BindError(
            f"'eval_every' must give an evaluation after at least {span.least} and before the last "
            f"of the {span.most} steps of 'at_most', at which the metric can end the stage; got "
            f"{eval_every}; choose {smaller}a longer 'at_most'"
        )


def _is_evaluated_early(span: Span, eval_every: int) -> bool:
    """Return whether the student is sure to be evaluated where a metric can end a stage early."""
    if span.start > span.earliest:
        # Evaluations lie at multiples counted over the run: an interval no longer than the range is
        # sure to fall into it, wherever the stage begins.
        return eval_every <= span.most - span.least
    first = span.start + span.least
    # Up to the next multiple of the interval.
    return first + -first % eval_every < span.end


@final
@value
class StageEnd:
    """End of a stage."""

    stage: str
    """Name of the stage."""
    planned: int
    """Largest number of steps that was planned."""
    done: int
    """Number of steps taken."""
    why: EndReason
    """Reason of the end."""


@final
@value
class TimelineState:
    """State of a timeline in a checkpoint."""

    ends: tuple[StageEnd, ...] = ()
    """Ends of the stages with a rule."""
    window_sum: float = 0.0
    """Sum of the losses of the unfinished window."""
    best_mean: float | None = None
    """Smallest mean loss of a window of the open stage; None before the first."""
    stale_windows: int = 0
    """Number of windows since the last improvement."""
    window_gaps: int = 0
    """Number of steps of the unfinished window without a loss."""


@final
class Timeline:
    """Stages of one run as they really follow each other."""

    def __init__(
        self, spans: Sequence[Span], *, intervals: Iterable[int] = (), moments: Iterable[int] = ()
    ) -> None:
        """Begin before the first step.

        Args:
            spans: The planned steps of the stages, in order.
            intervals: Intervals in steps; something is due after every multiple of one.
            moments: Further numbers of steps after which something is due.
        """
        self._spans = tuple(spans)
        self._intervals, self._moments = tuple(intervals), sorted(moments)
        self.restart()

    def restart(self) -> None:
        """Return to the state before the first step."""
        self._ends: list[StageEnd] = []
        self._start = 0
        self._losses = _LossWindows(TimelineState())

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the stages."""
        return tuple(span.name for span in self._spans)

    @property
    def start(self) -> int:
        """Return the first step of the open stage; without one, the number of steps taken."""
        return self._start

    @property
    def ends(self) -> tuple[StageEnd, ...]:
        """Return the ends of the closed stages."""
        return tuple(self._ends)

    def remaining(self) -> range:
        """Return the numbers of the stages that are not closed; the first of them is open."""
        # A goal is the last end, whatever number of stages is left.
        is_over = bool(self._ends) and self._ends[-1].why == "goal"
        return range(len(self._ends), len(self._ends) if is_over else len(self._spans))

    @property
    def num_steps(self) -> int:
        """Return the number of steps of the run if all remaining stages take their longest."""
        return self._start + sum(map(self._most, self.remaining()))

    def _most(self, number: int) -> int:
        """Return the largest number of steps of a stage, for the last with the rest of the others.

        Args:
            number: Number of the stage.
        """
        longest = self._spans[number].most
        if number < len(self._spans) - 1:
            return longest
        closed = zip(self._spans, self._ends, strict=False)
        # Added up before rounding: many short stages must not lose a step each.
        saved = sum(((end.planned - end.done) * span.worth for span, end in closed), Fraction(0))
        return longest + int(saved)

    def due(self, step: int) -> int:
        """Return the next number of steps after which something is due, at most the stage's end.

        Args:
            step: Number of steps taken; the next one is in the open stage.

        Raises:
            ValueError: If it is not.
        """
        span = self._open_span(step, step + 1)
        due = [self._start + self._most(len(self._ends))]
        # The next multiple and never this step: what was due here is done. Intervals count from the
        # start of the run, windows from that of the stage.
        due += [step - step % interval + interval for interval in self._intervals]
        later = bisect_right(self._moments, step)
        due += self._moments[later : later + 1]
        if isinstance(span.rule, UntilPlateau):
            window = span.rule.window
            due.append(step - (step - self._start) % window + window)
        return min(due)

    def _open_span(self, *steps: int) -> Span:
        """Return the span of the open stage.

        Args:
            *steps: Numbers of steps taken that must be possible in it.

        Raises:
            ValueError: If one is not, or all stages are closed.
        """
        if not self.remaining():
            raise ValueError(f"the run of {self._start} steps is over; got step {steps[0]}")
        number = len(self._ends)
        span, longest = self._spans[number], self._most(number)
        if not all(0 <= step - self._start <= longest for step in steps):
            raise ValueError(
                f"'step' must lie in stage {span.name!r}, steps {self._start} to "
                f"{self._start + longest}; got {steps[0]}"
            )
        return span

    def add(self, losses: Iterable[Tensor | float | None]) -> None:
        """Add the losses of steps of the open stage; not read unless its rule needs them.

        Args:
            losses: Loss of each step; None leaves a step out of the mean of its window.
        """
        # Stages of fixed length do not even add up: on a GPU each sum would be one more kernel.
        if isinstance(self._spans[len(self._ends)].rule, UntilPlateau):
            self._losses.add(losses)

    def look(
        self,
        step: int,
        metrics: Mapping[str, float] | None = None,
        *,
        reaches_goal: bool = False,
    ) -> StageEnd | None:
        """Close the open stage if it ends here; called once after each step that was due.

        Args:
            step: Number of steps taken.
            metrics: Metrics of the student if it was evaluated at its interval.
            reaches_goal: Whether the goal of the run is reached, so that all stages end.

        Returns:
            The end of the stage, or None if it goes on.
        """
        span = self._open_span(step)
        why = self._reason(span, step - self._start, metrics or {})
        # The goal outranks the rule: the record has the reason for which the run ended.
        if reaches_goal:
            why = "goal"
        return None if why is None else self.close(step, why)

    def _reason(self, span: Span, done: int, metrics: Mapping[str, float]) -> EndReason | None:
        """Return why a stage ends after some steps; None if it goes on."""
        duration = span.rule
        may_end = done >= span.least
        match duration:
            case UntilPlateau(window=window) if done % window == 0:
                # Also called before the stage may end, since a new window begins here.
                if self._losses.has_plateau(duration) and may_end:
                    return "plateau"
            # An evaluation outside of the interval, as where weights are kept, gives no metrics
            # here: the end of a stage must not depend on what a run writes.
            case UntilMetric(metric=name) if may_end and name in metrics:
                if duration.is_reached(metrics[name]):
                    return "metric"
        # Last, so that a rule that is met at the maximum is the reason on record.
        return "length" if done == self._most(len(self._ends)) else None

    def close(self, step: int, why: EndReason) -> StageEnd:
        """Close the open stage; the next one begins at once.

        Args:
            step: Number of steps taken.
            why: Reason of the end; `goal` closes all stages.

        Returns:
            The end of the stage.

        Raises:
            ValueError: If the stage has taken no step, or would be longer than planned.
        """
        # The step before must be possible too, or the stage would end without having taken one.
        return self._close(self._open_span(step, step - 1), step, why)

    def leave_out(self) -> StageEnd:
        """Close the open stage before its first step; the next one begins at once.

        Returns:
            The end of the stage.

        Raises:
            ValueError: If its duration does not allow that.
        """
        span = self._open_span(self._start)
        if not span.is_optional:
            raise ValueError(f"stage {span.name!r} cannot be left out; its length is {span.rule}")
        return self._close(span, self._start, "explained")

    def _close(self, span: Span, step: int, why: EndReason) -> StageEnd:
        planned = self._most(len(self._ends))
        end = StageEnd(stage=span.name, planned=planned, done=step - self._start, why=why)
        self._ends.append(end)
        # The best mean and the patience belong to one stage, since losses of other objectives are
        # no measure for it.
        self._start, self._losses = step, _LossWindows(TimelineState())
        return end

    def state(self) -> TimelineState:
        """Return the state for a checkpoint."""
        spans = zip(self._spans, self._ends, strict=False)
        # Ends of fixed lengths follow from the plan, so a run without rules writes what it wrote
        # before there were any, and older checkpoints restore.
        ends = [end for span, end in spans if not isinstance(span.duration, Duration)]
        return self._losses.state(tuple(ends))

    def restore(self, state: TimelineState, step: int) -> None:
        """Go on from a checkpoint.

        Args:
            state: Its state; empty for one of a version without rules.
            step: Number of steps taken.

        Raises:
            ValueError: If the state does not fit the spans.
        """
        # Replayed in order, since the start of a stage follows from the ends of all before it.
        ends = {end.stage: end for end in state.ends}
        for number, span in enumerate(self._spans):
            stop = self._start + self._most(number)
            if isinstance(span.duration, Duration) and stop <= step:
                self.close(stop, "length")
            elif span.name in ends:
                end = ends.pop(span.name)
                if end.done:
                    self.close(self._start + end.done, end.why)
                else:
                    self.leave_out()
            else:
                break
        # Ends that are left over belong to stages that this curriculum lacks, or has in another
        # order.
        if ends:
            raise ValueError(f"stages {sorted(ends)} cannot have ended after {step} steps")
        # Inside of a stage a next step must be possible; at a border the run may be over.
        if step != self._start:
            self._open_span(step, step + 1)
        # At the end, since closing a stage begins with empty windows.
        self._losses = _LossWindows(state)


@final
class _LossWindows:
    """Mean losses over windows of steps."""

    def __init__(self, state: TimelineState) -> None:
        """Take the sums of a state."""
        self._sum: Tensor | float = state.window_sum
        self._best, self._stale = state.best_mean, state.stale_windows
        self._gaps = state.window_gaps

    def state(self, ends: tuple[StageEnd, ...]) -> TimelineState:
        """Return the sums with the ends of stages."""
        return TimelineState(
            ends=ends,
            window_sum=float(self._sum),
            best_mean=self._best,
            stale_windows=self._stale,
            window_gaps=self._gaps,
        )

    def add(self, losses: Iterable[Tensor | float | None]) -> None:
        """Add losses to the window, where they lie."""
        for loss in losses:
            if loss is None:
                self._gaps += 1
                continue
            # Double, the precision of numbers in a checkpoint: the sum comes back with the same
            # bits. It stays a tensor, so that no step waits for a GPU to know it.
            self._sum = self._sum + (loss if isinstance(loss, float) else loss.double())

    def has_plateau(self, rule: UntilPlateau) -> bool:
        """Return whether the loss has ceased to fall, and begin the next window."""
        number, total = rule.window - self._gaps, float(self._sum)
        self._sum, self._gaps = 0.0, 0
        if not number:
            return False
        mean, best = total / number, self._best
        # A share of the absolute value, since objectives of users may be negative.
        if best is None or mean < best - rule.min_improvement * abs(best):
            self._best, self._stale = mean, 0
        else:
            self._stale += 1
        return self._stale >= rule.patience
