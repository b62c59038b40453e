"""Which objectives can a stage hold?

The shipped ones form a discriminated union, so that a YAML file can name them by `kind`. Python
code may put any object with the methods of `Objective` into a stage.
"""

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from curricle.objectives.hidden import MatchHidden
from curricle.objectives.outputs import FitLabels, MatchLogits
from curricle.objectives.terms import Objective

Shipped = Annotated[MatchHidden | MatchLogits | FitLabels, Field(discriminator="kind")]


def _own_or_shipped(given: Any, handler: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401
    """Return an objective object as it is, and anything else as pydantic validates it."""
    return given if isinstance(given, Objective) else handler(given)


AnyObjective = Annotated[SerializeAsAny[Shipped], WrapValidator(_own_or_shipped)]
"""Field type of a stage's objectives."""
