"""First passes of the models of a run, with errors that name the labels if they are at fault.

A pass with labels among the inputs fails in words about the inputs, and so does a look-up of logits
at places that only the labels have. Nothing here costs a pass that succeeds.
"""

import torch

from curricle.data.batch import Batch
from curricle.data.collation import IGNORED
from curricle.data.label_checks import misplaced, way_out
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.tapped import REFUSALS, Activations, Forward, run_trial


def run_first_pass(owner: str, forward: Forward, batch: Batch) -> Activations:
    """Return the activations of a model for a first batch; see `models.tapped.run_trial`.

    Args:
        owner: Owner of the model, for people.
        forward: Forward pass with open taps.
        batch: The batch.

    Raises:
        BindError: If its forward pass fails; labels are named if they are the reason.
        DataError: If the batch selects more places than there are, and has no labels.
    """
    try:
        return run_trial(owner, forward, batch.inputs, batch.selected)
    except (BindError, DataError) as error:
        # Labels first: a pass that selects places which the model lacks fails in words about
        # shapes, which would send the reader to the inputs.
        check_places(f"the {owner}", forward, batch, kind=BindError)
        # An input that the model does not take is a TypeError, and most often it is the labels,
        # left under another name in what a loader gives.
        if batch.labels is None and isinstance(error.__cause__, TypeError):
            raise BindError(f"{error}{misplaced(batch.inputs)}") from error.__cause__
        raise


def check_places(
    owner: str, forward: Forward, batch: Batch, *, kind: type[CurricleError], name: str = "'labels'"
) -> None:
    """Check that a model gives logits where the labels are, after a pass that has failed.

    Args:
        owner: Owner of the model, for people.
        forward: Forward pass with open taps.
        batch: The batch.
        kind: Class of the error.
        name: Name of the labels.

    Raises:
        CurricleError: If it gives them elsewhere, of the given kind.
    """
    if batch.labels is None or batch.selected is None:
        return
    try:
        # The first place exists in every output, so this pass fails by the inputs alone.
        positions = forward(batch.inputs, batch.selected.new_zeros(1)).positions
    except (CurricleError, *REFUSALS):
        # Whatever the labels are, it cannot take these inputs.
        return
    if positions is None or positions == batch.positions:
        return
    # Put back where the data have them, since their layout shows which mistake was made. Copies to
    # the CPU cost nothing here: the run has failed.
    labels = torch.full(batch.positions, IGNORED).flatten()
    labels[batch.selected.cpu()] = batch.labels.cpu().long()
    labels = labels.view(batch.positions)
    several = ""
    if len(positions) == 1:
        several = "; positions='example' of curricle.stream reads them as labels of examples"
    raise kind(
        f"{name} must be one for each place with logits of {owner}, of shape {positions}; got "
        f"shape {batch.positions}{way_out(labels) or several}"
    )
