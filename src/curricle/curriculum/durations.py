"""Durations of training in steps, examples or tokens.

A `Duration` is a number with a unit. It replaces families of `num_steps` / `num_examples`
parameters, and only this module converts units into steps.
"""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, cast, final, get_args, overload

from pydantic import BeforeValidator, Field

from curricle.errors import SpecError
from curricle.values import value

Unit = Literal["steps", "examples", "tokens"]
LONGEST = 1e18
"""Maximum number of units in a duration, above any budget."""
SUFFIXES = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


@final
@value
class Duration:
    """A length of training."""

    number: int = Field(gt=0)
    """Number of units; positive."""
    unit: Unit = "steps"
    """Steps are optimizer updates; examples and tokens are counted before masking."""

    def steps(self, *, batch_size: int, tokens_per_batch: int) -> int:
        """Return the number of whole steps that cover the duration; at least one.

        Args:
            batch_size: Examples per step.
            tokens_per_batch: Tokens per step.
        """
        units_per_step = {"steps": 1, "examples": batch_size, "tokens": tokens_per_batch}[self.unit]
        return math.ceil(self.number / units_per_step)

    def __str__(self) -> str:
        """Return the text accepted by `duration`."""
        return f"{self.number} {self.unit}"


@overload
def duration(text: Duration | str) -> Duration: ...
@overload
def duration(text: object) -> object: ...
def duration(text: object) -> object:
    """Return the `Duration` of a text such as `1500 steps` or `2.5M examples`.

    A `Duration` or its fields are returned unchanged, for validation by pydantic.

    Raises:
        SpecError: If the text is not a positive whole number with a unit.
    """
    if isinstance(text, (Duration, Mapping)):
        return text
    shape = r"\s*(-?[\d_]+(?:\.\d+)?)\s*([kMG]?)(?:\s+(\S.*?))?\s*"
    match = re.fullmatch(shape, str(text))
    number, suffix, last = match.groups("") if match is not None else ("", "", "")
    unit = f"{last.removesuffix('s')}s"
    if unit not in get_args(Unit):
        fault = f", not in {last!r}" if last else ", with a number and a unit"
        raise SpecError(
            f"a duration must read like '1500 steps' or '2.5M examples', in steps, examples or "
            f"tokens{fault}; got {text!r}"
        )
    exact = float(number.replace("_", "")) * SUFFIXES[suffix]
    if exact > LONGEST:
        raise SpecError(f"a duration must be at most {LONGEST:.0e} {unit}; got {text!r}")
    if exact != int(exact) or exact <= 0:
        raise SpecError(
            f"a duration must be a positive whole number of {unit}, such as '1500 {unit}'; "
            f"got {text!r}"
        )
    return Duration(number=int(exact), unit=cast("Unit", unit))


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
