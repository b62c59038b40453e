"""First passes of the models of a run, whose failures may lie with the labels.

A model that is given labels as an input fails in words about the input.
"""

from curricle.data.labels import misplaced
from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.models.tapped import Activations, Reader, tried


def tried_on(who: str, read: Reader, batch: Batch) -> Activations:
    """Return what a model shows of a first batch; see `models.tapped.tried`.

    Args:
        who: Whose model it is, for people.
        read: An open reading of it.
        batch: The batch.

    Raises:
        BindError: If its forward pass fails; labels are named if they are the reason.
    """
    try:
        return tried(who, read, batch.inputs, batch.selected)
    except BindError as error:
        if batch.labels is None and isinstance(error.__cause__, TypeError):
            raise BindError(f"{error}{misplaced(batch.inputs)}") from error.__cause__
        raise
