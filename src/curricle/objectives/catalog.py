"""Which objectives can a stage hold?

The shipped ones form a discriminated union, so that a YAML file can name them by `kind`. Python
code may put any object with the methods of `Objective` into a stage.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, WrapSerializer, WrapValidator
from pydantic_core import to_jsonable_python

from curricle.objectives.hidden import MatchHidden
from curricle.objectives.outputs import FitLabels, MatchLogits
from curricle.objectives.temperature import LearnedTemperature
from curricle.objectives.terms import Objective
from curricle.protocols import conforms

Shipped = Annotated[
    MatchHidden | MatchLogits | FitLabels | LearnedTemperature, Field(discriminator="kind")
]


def _own_or_shipped(given: Any, handler: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Return an objective object as it is, and anything else as pydantic validates it."""
    # A class has the methods too: a pair of brackets was forgotten.
    is_own = conforms(given, Objective) and not isinstance(given, type)
    return given if is_own else handler(given)


def _plain(objective: Any, handler: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Return an objective as plain data; one of the user's own by its class and what it holds.

    The data tell runs apart. They are not read back: only Python code can make such an object.
    """
    if isinstance(objective, MatchHidden | MatchLogits | FitLabels | LearnedTemperature):
        return handler(objective)
    own = type(objective)
    held = to_jsonable_python(objective, fallback=lambda part: getattr(part, "__dict__", {}))
    return {"own": f"{own.__module__}.{own.__qualname__}", "holds": held}


AnyObjective = Annotated[
    SerializeAsAny[Shipped], WrapSerializer(_plain), WrapValidator(_own_or_shipped)
]
"""Field type of a stage's objectives."""
