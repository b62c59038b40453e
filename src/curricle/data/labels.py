"""Words for labels that are under another name or in another form than they are read in.

Axes: example.
"""

from collections.abc import Mapping

from torch import Tensor

RENAMED = ("label", "label_ids")
"""Names under which data sets for transformers have labels, and which its collators rename."""
USUAL = ("labels", *RENAMED, "target", "targets", "y")
"""Names that labels have elsewhere; a model may have inputs of these names, too."""


def misplaced(inputs: Tensor | Mapping[str, Tensor]) -> str:
    """Return the end of an error sentence for labels that are among the inputs; empty if none are.

    Args:
        inputs: What a model is given of a batch without labels.
    """
    if isinstance(inputs, Tensor):
        return ""
    found = [f"{name!r} of shape {tuple(inputs[name].shape)}" for name in USUAL if name in inputs]
    if not found:
        return ""
    return (
        f"; {found[0]} is among the inputs, and labels go under 'labels' in what a loader collates "
        f"or to the argument of that name of curricle.Batch"
    )
