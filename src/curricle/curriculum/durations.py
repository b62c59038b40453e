"""Durations of training: a fixed length, or a rule that ends a stage earlier.

A `Duration` is a number with a unit. It replaces families of `num_steps` / `num_examples`
parameters, and only this module converts units into steps. `UntilPlateau` and `UntilMetric` end a
stage by a measurement while it runs, and at the latest after `at_most`. `UnlessExplained` leaves
a stage out by a measurement before it.

Design: every duration has an `at_most`, on which budgets, plans and learning-rate schedules are
based before a run. `training.binding.timeline` applies the rules; here they are values.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, cast, final, get_args, overload

from pydantic import BeforeValidator, Discriminator, Field, Tag

from curricle.errors import SpecError
from curricle.values import LONGEST_NAME, Line, value

Unit = Literal["steps", "examples", "tokens", "epochs"]
LONGEST = 1e18
"""Maximum number of units in a duration, above any budget."""
LARGEST_DIVISOR = 1_000_000
"""Largest divisor of a part of an epoch."""
SUFFIXES = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
DECIMAL = r"-?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?"
"""Text of a number, as `1500`, `.5`, `1e4` or `1e-1`."""
FRACTION = r"\d+/0*[1-9]\d*"
"""Text of a fraction, as `1/3`."""
SHAPE = rf"\s*(?:({DECIMAL})\s*([kMG]?)|({FRACTION}))(?:\s+(\S.*?))?\s*"
"""Text of a duration: a decimal with a suffix, or a fraction, and the unit."""


def _is_one(divisor: int) -> bool:
    return divisor == 1


@final
@value
class Duration:
    """A length of training."""

    number: int = Field(gt=0)
    """Number of units; positive."""
    unit: Unit = "steps"
    """Steps are optimizer updates; examples and tokens are counted before masking; an epoch is the
    number of examples of data of a known length."""
    divisor: int = Field(default=1, gt=0, exclude_if=_is_one)
    """Number by which `number` is divided, for parts of epochs: `0.75 epochs` are 3 / 4."""

    def __post_init__(self) -> None:
        """Reduce the fraction.

        Raises:
            SpecError: If it is no whole number of another unit.
        """
        if self.divisor == 1:
            return
        length = self.length
        if self.unit != "epochs" and length.denominator > 1:
            raise SpecError(f"'divisor' must be 1 for {self.unit}; got {self.divisor}")
        # A value is frozen for all but its own construction.
        object.__setattr__(self, "number", length.numerator)
        object.__setattr__(self, "divisor", length.denominator)

    @classmethod
    def of(cls, length: Fraction, unit: Unit) -> "Duration":
        """Return the duration of an exact length.

        Args:
            length: Number of units; whole for all but epochs.
            unit: The unit.
        """
        return cls(number=length.numerator, unit=unit, divisor=length.denominator)

    @property
    def length(self) -> Fraction:
        """Return the exact number of units."""
        return Fraction(self.number, self.divisor)

    def steps(
        self, *, batch_size: int, tokens_per_batch: int, examples_per_epoch: int | None = None
    ) -> int:
        """Return the number of whole steps that cover the duration; at least one.

        Args:
            batch_size: Examples per step.
            tokens_per_batch: Tokens per step.
            examples_per_epoch: Examples of an epoch; None for data without a known length.

        Raises:
            SpecError: If the unit is epochs and the data have no known length.
        """
        if self.unit == "epochs":
            if examples_per_epoch is None:
                raise SpecError(f"{self} must have data of a known length; got data without")
            return math.ceil(self.length * examples_per_epoch / batch_size)
        units_per_step = {"steps": 1, "examples": batch_size, "tokens": tokens_per_batch}[self.unit]
        return math.ceil(self.number / units_per_step)

    @property
    def at_most(self) -> "Duration":
        """Return the duration itself, the maximum of a fixed length."""
        return self

    def __str__(self) -> str:
        """Return the text that `duration` reads as this length."""
        if self.divisor == 1:
            return f"{self.number} {self.unit}"
        # A decimal only where it is the exact length, as 0.75 is, and 0.333333 for 1 / 3 is not.
        decimal = f"{float(self.length):.6f}".rstrip("0")
        is_exact = exact_fraction(float(decimal)) == self.length
        return f"{decimal if is_exact else self.length} {self.unit}"


@overload
def duration(text: Duration | str) -> Duration: ...
@overload
def duration(text: object) -> object: ...
def duration(text: object) -> object:
    """Return the `Duration` of a text such as `1500 steps`, `2.5M examples` or `1/3 epochs`.

    A `Duration` or its fields are returned unchanged, for validation by pydantic.

    Raises:
        SpecError: If the text is not a positive whole number with a unit, or a part of epochs that
            is too small for a decimal, or is a rule that ends a stage.
    """
    if _kind_of(text) in RULES:
        raise SpecError(
            f"a length must be fixed here, such as '1500 steps'; only the 'duration' of a stage "
            f"may be a rule that ends it; got kind {_kind_of(text)!r}"
        )
    if isinstance(text, Mapping):
        return {name: field for name, field in text.items() if (name, field) != ("kind", FIXED)}
    if isinstance(text, Duration):
        return text
    length, unit = _read_text(text)
    if length > LONGEST:
        raise SpecError(f"a duration must be at most {LONGEST:.0e} {unit}; got {text!r}")
    if unit == "epochs" and length > 0:
        return Duration.of(_epochs(length, text), "epochs")
    if length != int(length) or length <= 0:
        raise SpecError(
            f"a duration must be a positive whole number of {unit}, such as '1500 {unit}'; "
            f"got {text!r}"
        )
    return Duration(number=int(length), unit=unit)


def _read_text(text: object) -> tuple[float | Fraction, Unit]:
    """Return the length in a text, exact if it is written as a fraction, and its unit.

    Raises:
        SpecError: If the text has another form.
    """
    match = re.fullmatch(SHAPE, str(text))
    number, suffix, fraction, last = match.groups("") if match is not None else ("",) * 4
    unit = f"{last.removesuffix('s')}s"
    if unit not in get_args(Unit):
        fault = f", not in {last!r}" if last else ", with a number and a unit"
        raise SpecError(
            f"a duration must read like '1500 steps' or '2.5M examples', in steps, examples, "
            f"tokens or epochs{fault}; got {text!r}"
        )
    decimal = number.replace("_", "")
    length = Fraction(fraction) if fraction else float(decimal) * SUFFIXES[suffix]
    return length, cast("Unit", unit)


def _epochs(length: float | Fraction, text: object) -> Fraction:
    """Return the exact number of epochs for which a length was written.

    Raises:
        SpecError: If it is a decimal that is too small.
    """
    if isinstance(length, Fraction):
        return length
    # Below it the nearest fraction is zero, or another length.
    if length < 1 / LARGEST_DIVISOR:
        raise SpecError(
            f"a duration must be at least {1 / LARGEST_DIVISOR:f} epochs, or a fraction such as "
            f"'1/3 epochs'; got {text!r}"
        )
    return exact_fraction(length)


def exact_fraction(number: float) -> Fraction:
    """Return the fraction that a decimal number was written for, such as 3 / 10 for 0.3."""
    return Fraction(number).limit_denominator(LARGEST_DIVISOR)


AnyDuration = Annotated[Duration, BeforeValidator(duration)]
"""Field type for a `Duration`, its fields, or a text such as `1500 steps`."""
DurationText = Annotated[Duration | str, BeforeValidator(duration)]
"""Type of a `checked` function's argument: accepts a text, passes a `Duration`."""

if TYPE_CHECKING:

    @final
    class DurationField:
        """`AnyDuration` for type checkers: assignable from a text, always read as a `Duration`."""

        def __get__(self, owner: object, kind: type | None = None) -> Duration: ...
        def __set__(self, owner: object, value: Duration | str) -> None: ...

else:
    DurationField = AnyDuration


@final
@value
class UntilPlateau:
    """A stage that ends when its training loss no longer falls.

    The signal is the stage's training loss, averaged over windows of equally many steps that are
    counted from the first step of the stage. An improvement is a mean below the best mean so far.
    """

    kind: Literal["plateau"] = "plateau"
    at_most: DurationField
    """Length after which the stage ends in any case; budgets, plans and schedules use it."""
    window: int = Field(default=100, gt=0)
    """Number of steps over which the loss is averaged; the rule is checked after each window."""
    patience: int = Field(default=3, gt=0)
    """Number of successive windows without an improvement after which the stage ends."""
    min_improvement: float = Field(default=0.01, ge=0, lt=1)
    """Smallest improvement that counts, as a share of the best mean so far."""
    at_least: AnyDuration | None = None
    """Length before which the stage does not end, in the unit of `at_most`; None sets none."""

    def __post_init__(self) -> None:
        """Check that both lengths have one unit."""
        _check_unit(self.at_least, self.at_most)

    def __str__(self) -> str:
        """Return the rule in words."""
        share = f"{100 * self.min_improvement:g} %"
        return f"plateau of the loss ({self.patience} windows of {self.window} steps below {share})"


@final
@value
class UntilMetric:
    """A stage that ends at the first evaluation at which a metric reaches a threshold.

    The student is evaluated at the run's interval between evaluations.
    """

    kind: Literal["metric"] = "metric"
    metric: Line = Field(min_length=1, max_length=LONGEST_NAME)
    """Name of the metric; the evaluation of the run must return it."""
    reaches: float
    """Threshold, in the unit of the metric; a metric that equals it has reached it."""
    direction: Literal["above", "below"]
    """Side of the threshold on which the stage ends."""
    at_most: DurationField
    """Length after which the stage ends in any case; budgets, plans and schedules use it."""
    at_least: AnyDuration | None = None
    """Length before which the stage does not end, in the unit of `at_most`; None sets none."""

    def __post_init__(self) -> None:
        """Check that both lengths have one unit."""
        _check_unit(self.at_least, self.at_most)

    def is_reached(self, number: float) -> bool:
        """Return whether a value of the metric is at the threshold or past it."""
        return number >= self.reaches if self.direction == "above" else number <= self.reaches

    def __str__(self) -> str:
        """Return the rule in words."""
        return f"{self.metric} {self.direction} {self.reaches:g}"


Rule = UntilPlateau | UntilMetric
"""A duration that may end before its maximum."""


FIXED, RULES = "length", ("plateau", "metric", "unless_explained")
"""Kinds of durations; a fixed length is written without its kind."""


def _kind_of(length: object) -> str:
    """Return the kind of a duration, or of its fields; that of a text is a fixed length."""
    fields = length if isinstance(length, Mapping) else {"kind": getattr(length, "kind", FIXED)}
    return str(fields.get("kind", FIXED))


if TYPE_CHECKING:

    @final
    class RuleField:
        """Field type of a length or a rule for type checkers: assignable from a text."""

        def __get__(self, owner: object, kind: type | None = None) -> Duration | Rule: ...
        def __set__(self, owner: object, value: Duration | Rule | str) -> None: ...

else:
    RuleField = Annotated[
        Annotated[Duration, BeforeValidator(duration), Tag("length")]
        | Annotated[UntilPlateau, Tag("plateau")]
        | Annotated[UntilMetric, Tag("metric")],
        Discriminator(_kind_of),
    ]


@final
@value
class UnlessExplained:
    """A stage that is left out if the student explains the targets of the last stage before it.

    The explained share is measured on batches that the run has not read. It is 0 for a student
    whose outputs have nothing to do with its inputs, whatever their level and scale, and 1 for one
    that equals its teacher: 1 - L / C, with the loss L of its outputs at the best scale and the
    loss C of the best constant output.
    """

    kind: Literal["unless_explained"] = "unless_explained"
    share: float = Field(gt=0, lt=1)
    """Explained share of the targets of the last stage from which on the stage is left out."""
    duration: RuleField
    """Length of the stage otherwise: a fixed length, or a rule that ends it."""

    @property
    def at_most(self) -> Duration:
        """Return the length after which the stage ends in any case."""
        return self.duration.at_most

    @property
    def at_least(self) -> Duration | None:
        """Return None: the stage may take no step."""
        return None

    def __str__(self) -> str:
        """Return the rule in words."""
        rule = "its end" if isinstance(self.duration, Duration) else str(self.duration)
        return f"{rule}; left out from {100 * self.share:g} % explained on"


StageDuration = Duration | Rule | UnlessExplained
"""Duration of a stage."""


def length_or_rule(duration: StageDuration) -> Duration | Rule:
    """Return the duration of a stage that is not left out."""
    return duration.duration if isinstance(duration, UnlessExplained) else duration


def _check_unit(at_least: Duration | None, at_most: Duration) -> None:
    """Check that a minimum has the unit of the maximum and is below it.

    Raises:
        SpecError: If it does not.
    """
    if at_least is None:
        return
    if at_least.unit != at_most.unit or at_least.length >= at_most.length:
        raise SpecError(
            f"'at_least' must be shorter than 'at_most' and in its unit; got {at_least} and "
            f"{at_most}"
        )


AnyStageDuration = Annotated[
    Annotated[Duration, BeforeValidator(duration), Tag("length")]
    | Annotated[UntilPlateau, Tag("plateau")]
    | Annotated[UntilMetric, Tag("metric")]
    | Annotated[UnlessExplained, Tag("unless_explained")],
    Discriminator(_kind_of),
]
"""Field type for the duration of a stage: a fixed length as in `AnyDuration`, or a rule."""

if TYPE_CHECKING:

    @final
    class StageDurationField:
        """`AnyStageDuration` for type checkers: assignable from a text."""

        def __get__(self, owner: object, kind: type | None = None) -> StageDuration: ...
        def __set__(self, owner: object, value: StageDuration | str) -> None: ...

    StageDurationText = StageDuration | str
else:
    StageDurationField = StageDurationText = AnyStageDuration


def split_evenly(total: Duration, share: float, count: int) -> tuple[Duration, ...]:
    """Return lengths of equal size up to one unit.

    Args:
        total: Length of the curriculum.
        share: Sum of the lengths as a part of the total.
        count: Number of lengths.
    """
    if total.unit == "epochs" and count:
        # Parts of epochs are exact, since only the data say how many steps they are.
        length = total.length * exact_fraction(share) / count
        return (Duration.of(length, total.unit),) * count
    # The borders are rounded, not the lengths, so that rounding errors do not accumulate.
    borders = [
        math.floor(total.number * share * index / max(count, 1) + 0.5) for index in range(count + 1)
    ]
    return tuple(
        Duration(number=max(1, end - start), unit=total.unit)
        for start, end in itertools.pairwise(borders)
    )


def remaining_time(total: Duration, durations: Sequence[StageDuration]) -> Duration:
    """Return the total minus the lengths, that of a rule being its maximum.

    Args:
        total: Length of the curriculum.
        durations: Lengths of the stages before the last.

    Raises:
        SpecError: If no time remains or the units differ.
    """
    lengths = [length.at_most for length in durations]
    for length in lengths:
        if length.unit != total.unit:
            raise SpecError(
                f"'durations' must be in {total.unit} like 'total' (in steps for a budget of FLOPs "
                f"or seconds); got {length}"
            )
    earlier = sum((length.length for length in lengths), Fraction(0))
    remaining = total.length - earlier
    if remaining <= 0:
        raise SpecError(
            f"'total' {total} must be longer than the stages before the last; they take "
            f"{earlier if earlier.denominator == 1 else float(earlier)}"
        )
    return Duration.of(remaining, total.unit)
