"""Words for labels that are under another name or in another form than they are read in.

Axes: example, class.
"""

from collections.abc import Mapping

from torch import Tensor

from curricle.errors import DataError

LABEL_ALIASES = ("label", "label_ids")
"""Names under which data sets for transformers have labels, and which its collators rename."""
USUAL = ("labels", *LABEL_ALIASES, "target", "targets", "y")
"""Names that labels have elsewhere; a model may have inputs of these names, too."""

TABLE_AXES = 2
"""Axes of one-hot labels at the least, and of labels in a column."""


def way_out(labels: Tensor) -> str:
    """Return the end of an error sentence on the correct form of labels.

    It looks at values, so on a GPU it waits.

    Args:
        labels: Labels of a shape or type that is not read.

    Returns:
        The words, after a semicolon; empty if the form is unknown.
    """
    if labels.ndim == TABLE_AXES and labels.shape[1] == 1:
        return "; labels.squeeze(1) gives one an example"
    if is_one_hot(labels):
        return "; they are one-hot, and labels.argmax(-1) gives the classes"
    return ""


def require_classes(labels: Tensor, owner: str = "'labels'") -> None:
    """Check that labels are classes: whole numbers, one for each place.

    Args:
        labels: The labels.
        owner: Name of the labels in the error message.

    Raises:
        DataError: If they are floats or several values each.
    """
    if labels.is_floating_point() or labels.ndim > 1:
        raise DataError(
            f"{owner} must be whole numbers, one for each place with logits, to be classes; got "
            f"{labels.dtype} of shape {tuple(labels.shape)}{way_out(labels) or _other_use(labels)}"
        )


def _other_use(labels: Tensor) -> str:
    """Return the use of labels that are no classes, after a semicolon; empty if there is none."""
    if labels.is_floating_point():
        return (
            "; values are fitted by loss='squared_error' of LabelLoss or from_labels, and judged "
            "by metric='mean_squared_error'"
        )
    if labels.ndim == TABLE_AXES:
        return (
            "; labels of positions are flat, those of 'selected', as curricle.stream"
            "(loader, next_token=True) gives them"
        )
    return ""


def is_one_hot(labels: Tensor) -> bool:
    """Return whether each row of the last axis is a single one among zeros."""
    if labels.ndim < TABLE_AXES or labels.shape[-1] < TABLE_AXES or not labels.numel():
        return False
    is_binary = bool(((labels == 0) | (labels == 1)).all())
    return is_binary and bool((labels != 0).sum(-1).eq(1).all())


def misplaced(inputs: Tensor | Mapping[str, Tensor]) -> str:
    """Return the end of an error sentence for labels that are among the inputs; empty if none are.

    Args:
        inputs: Model inputs of a batch without labels.
    """
    if isinstance(inputs, Tensor):
        return ""
    likely = [f"{name!r} of shape {tuple(inputs[name].shape)}" for name in USUAL if name in inputs]
    if not likely:
        return ""
    return (
        f"; {likely[0]} is among the inputs, and labels go under 'labels' in what a loader "
        f"collates or to the argument of that name of curricle.Batch"
    )
