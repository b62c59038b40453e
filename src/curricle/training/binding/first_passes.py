"""First passes of the models of a run, with errors that name labels or types if they are at fault.

A pass with labels among the inputs fails in words about the inputs, and so does a look-up of logits
at places that only the labels have. Inputs of another type than the weights fail in words of a
kernel. Nothing here costs a pass that succeeds.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from curricle.data.batch import Batch, named
from curricle.data.collation import IGNORED
from curricle.data.label_checks import misplaced, way_out
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.eligibility import LOW_PRECISION
from curricle.models.tapped import REFUSALS, Activations, Forward, Inputs, run_trial

CASTS: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float16: "half",
        torch.bfloat16: "bfloat16",
        torch.float32: "float",
        torch.float64: "double",
    }
)
"""Method that converts to a type of weights."""
WHOLE: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.uint8: r"Byte|unsigned char",
        torch.int16: r"Short|short",
        torch.int32: r"Int|int",
        torch.int64: r"Long|long",
    }
)
"""Names of the types of whole numbers in errors of torch, as patterns."""


def run_first_pass(owner: str, forward: Forward, batch: Batch, module: nn.Module) -> Activations:
    """Return the activations of a model for a first batch; see `models.tapped.run_trial`.

    Args:
        owner: Owner of the model, for people.
        forward: Forward pass with open taps.
        batch: The batch.
        module: The model.

    Raises:
        BindError: If its forward pass fails; labels are named if they are the reason, and types if
            inputs and weights have different ones.
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
        if words := type_words(owner, module, batch.inputs, str(error.__cause__)):
            raise BindError(f"{error}; {words}") from error.__cause__
        raise


def type_words(owner: str, module: nn.Module, inputs: Inputs, cause: str) -> str:
    """Return the conversion of an input whose type failed a pass; empty without one.

    Args:
        owner: `student` or `teacher`.
        module: The model.
        inputs: Inputs of the pass.
        cause: The error of torch.
    """
    weights = {item.dtype for item in module.parameters() if item.is_floating_point()}
    if "type" not in cause or not weights:
        return ""
    names = " and ".join(sorted(map(_name, weights)))
    where = "in the data set or the collate function"
    for name, tensor in named(inputs).items():
        label = f"{name or 'inputs'!r} of type {_name(tensor.dtype)}"
        is_float = tensor.is_floating_point()
        # Tables take whole numbers of 32 or 64 bits, and torch's words about them name these.
        if "'indices'" in cause:
            if tensor.dtype not in (torch.int32, torch.int64):
                return f"{label} are read as ids: convert them to int64 {where}, by .long()"
            continue
        # Whole numbers are ids of other inputs unless torch names their type.
        if tensor.dtype in weights or not (is_float or _is_named(tensor.dtype, cause)):
            continue
        is_low = weights <= {*LOW_PRECISION}
        if is_low and is_float:
            return (
                f"{label} meet weights of type {names}: pass {owner}.float(), with "
                f"TrainingSettings(teacher_precision='bfloat16') for fast passes"
            )
        if not weights <= CASTS.keys():
            # As of 8 bits, to which no inputs are converted.
            return ""
        cast = CASTS[max(weights, key=lambda dtype: dtype.itemsize)]
        scale = "" if is_float else ", and scale them as the model was trained"
        return f"{label} meet weights of type {names}: convert them {where}, by .{cast}(){scale}"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_named(dtype: torch.dtype, cause: str) -> bool:
    pattern = WHOLE.get(dtype)
    return pattern is not None and re.search(rf"\b({pattern})\b", cause) is not None


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
