"""Inputs that hold NaN or infinities, in words.

Nothing here runs while all goes well: where a loss, a metric or a target is not finite, the data
are searched for values that are not.

Axes: example (rows of a batch).
"""

from torch import Tensor

from curricle.data.batch import Batch, named


def non_finite_words(batch: Batch, owner: str = "the batch") -> str:
    """Return the end of an error sentence that names inputs which are not finite.

    A look at values waits for a GPU. Infinities of a mask are left out, since a mask that is added
    to scores has them.

    Args:
        batch: The batch.
        owner: Owner of the inputs, for the error sentence.

    Returns:
        The words, after a semicolon; empty if all inputs are finite.
    """
    tensors = [(name or "inputs", tensor) for name, tensor in named(batch.inputs).items()]
    teacher_inputs = named(batch.teacher_inputs)
    tensors += [(name or "teacher_inputs", tensor) for name, tensor in teacher_inputs.items()]
    if batch.labels is not None:
        tensors.append(("labels", batch.labels))
    words = list(filter(None, (_words(name, tensor) for name, tensor in tensors)))
    return f"; inputs of {owner} are not finite: {'; '.join(words)}" if words else ""


def _words(name: str, tensor: Tensor) -> str:
    """Return a description of the non-finite numbers of an input; empty if there are none."""
    wrong = tensor.isnan() if "mask" in name else ~tensor.isfinite()
    if not bool(wrong.any()):
        return ""
    nans = int(tensor.isnan().sum())
    numbers = {"nan": nans, "infinite": int(wrong.sum()) - nans}
    counts = " and ".join(f"{count} {kind}" for kind, count in numbers.items() if count)
    first = int(wrong.nonzero()[0][0]) if tensor.ndim else 0
    return f"{name!r} holds {counts} of {tensor.numel()} numbers, first in example {first}"
