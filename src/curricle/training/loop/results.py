"""Results of an evaluation, checked and as plain numbers.

Evaluations are functions of the caller, so their results are checked once before training, when
nothing is lost yet, and every time after.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import SupportsFloat, SupportsIndex

from curricle.errors import BindError

LONGEST = 40
"""Characters of a wrong value that are shown; of longer ones the type is named."""


def plain_metrics(returned: object, *names: str) -> dict[str, float]:
    """Return the metrics of an evaluation as floats by name.

    Args:
        returned: Result of the evaluation.
        *names: The metric by which the run is judged, and those that end stages.

    Raises:
        BindError: If it is no dictionary of numbers, or lacks a metric.
    """
    if not isinstance(returned, Mapping):
        raise BindError(
            f"'evaluation' must return a dictionary of numbers by name, as {{{names[0]!r}: 0.5}}; "
            f"got {_described(returned)}"
        )
    # Plain floats: records keep them, and a tensor would hold its memory or graph.
    metrics = {str(name): _number(name, item) for name, item in returned.items()}
    for name in names:
        if name not in metrics:
            # The facts of a run name its metric before an evaluation, so no entry is taken for it.
            is_judge = name == names[0] and len(metrics) == 1
            remedy = f"; metric={next(iter(metrics))!r} judges by it" if is_judge else ""
            raise BindError(
                f"'metric' must be one of the entries that 'evaluation' returns, "
                f"{sorted(metrics)}; got {name!r}{remedy}"
            )
    return metrics


def _number(name: object, item: object) -> float:
    """Return a metric as a float.

    Raises:
        BindError: If `float` does not take it, or it is a text or a boolean, which `float` takes
            but which measure nothing.
    """
    scalar = _scalar(item)
    if isinstance(scalar, (SupportsFloat, SupportsIndex)) and not isinstance(scalar, bool):
        # An integer may be too large, and objects have conversions of their own.
        with suppress(ArithmeticError, RuntimeError, TypeError, ValueError):
            return float(scalar)
    raise BindError(f"'evaluation' must return numbers; got {_described(scalar)} for {name!r}")


def _scalar(item: object) -> object:
    """Return the number in an array or tensor of one element; anything else as it is."""
    unpack: Callable[[], object] | None = getattr(item, "item", None)
    if unpack is None:
        return item
    # An array or tensor of several elements refuses, and is then no number.
    try:
        return unpack()
    except (RuntimeError, TypeError, ValueError):
        return item


def _described(item: object) -> str:
    text = repr(item)
    return text if len(text) <= LONGEST else repr(type(item).__qualname__)
