"""Field type of a stage's objectives.

The built-in objectives form a discriminated union, so that a YAML file selects them by `kind`.
Python code may put any object with the methods of `Objective` into a stage.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, SerializeAsAny, WrapSerializer, WrapValidator
from pydantic_core import to_jsonable_python

from curricle.objectives.base import Objective
from curricle.objectives.hidden import MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.low_rank_clone import LowRankClone
from curricle.objectives.matched_embeddings import MatchEmbeddings, MatchMargins, MatchSimilarities
from curricle.objectives.matched_geometries import MatchCKA, MatchProcrustes
from curricle.objectives.matched_relations import MatchRelations
from curricle.objectives.paired_logits import MatchPairedLogits
from curricle.objectives.temperature import LearnedTemperature
from curricle.protocols import conforms

Shipped = Annotated[
    MatchHidden
    | MatchLogits
    | MatchPairedLogits
    | MatchEmbeddings
    | MatchSimilarities
    | MatchMargins
    | LabelLoss
    | LearnedTemperature
    | LowRankClone
    | MatchCKA
    | MatchProcrustes
    | MatchRelations,
    Field(discriminator="kind"),
]

SHIPPED = (
    MatchHidden,
    MatchLogits,
    MatchPairedLogits,
    MatchEmbeddings,
    MatchSimilarities,
    MatchMargins,
    LabelLoss,
    LearnedTemperature,
    LowRankClone,
    MatchCKA,
    MatchProcrustes,
    MatchRelations,
)


def _validate(objective: object, handler: Callable[[object], object]) -> object:
    """Return an objective object unchanged, and any other value as validated by pydantic."""
    # A class has the methods too, for example `MatchLogits` where `MatchLogits()` was meant.
    is_objective = conforms(objective, Objective) and not isinstance(objective, type)
    return objective if is_objective else handler(objective)


def _serialize(objective: object, handler: Callable[[object], object]) -> object:
    """Return an objective as plain data; a user-defined one as its class name and attributes.

    Digests of runs are computed from these data. User-defined objectives are not read back, since
    only Python code can create them.
    """
    if isinstance(objective, SHIPPED):
        data = handler(objective)
        # The default stays unwritten, so that runs from before this field keep their digests.
        is_default = isinstance(objective, LabelLoss) and objective.loss == "cross_entropy"
        if is_default and isinstance(data, dict):
            del data["loss"]
        return data
    kind = type(objective)
    attributes = to_jsonable_python(objective, fallback=lambda item: getattr(item, "__dict__", {}))
    return {"own": f"{kind.__module__}.{kind.__qualname__}", "holds": attributes}


AnyObjective = Annotated[
    SerializeAsAny[Shipped], WrapSerializer(_serialize), WrapValidator(_validate)
]
"""Field type of a stage's objectives."""
