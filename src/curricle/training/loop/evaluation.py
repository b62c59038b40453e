"""How good is the student on data that it has not seen?

Metrics are exact means over all scored positions of the held-out batches, not means of batch
means.

Units: accuracy is a share; nll is mean nats a scored position.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curricle.data.finiteness import non_finite_words
from curricle.data.labels import misplaced, require_classes
from curricle.data.streams import Batch, check_positions
from curricle.errors import DataError
from curricle.models.axes import observing
from curricle.models.tapped import Activations, Reader, TappedModel
from curricle.objectives.base import logits_of, require
from curricle.objectives.losses import cross_entropy
from curricle.training.binding.trials import check_places
from curricle.training.process.placement import HOST, Placement

LOSS = "nll"
"""The metric that is a loss: that of a teacher is kept with its checkpoints."""
Evaluator = Callable[[TappedModel], dict[str, float]]
"""A function from a model, in evaluation mode and without gradient, to named metrics."""


def chance_of(evaluate: Evaluator) -> float | None:
    """Return the accuracy that says nothing, of evaluators that know it; see `RunRecord.chance`."""
    chance = getattr(evaluate, "chance", None)
    return chance if isinstance(chance, float) else None


def _chance(labels: Tensor) -> float:
    """Return the share of the most frequent label and two standard errors of it."""
    share = float(labels.unique(return_counts=True)[1].max()) / len(labels)
    return min(1.0, share + 2.0 * math.sqrt(share * (1.0 - share) / len(labels)))


def label_metrics(batches: Sequence[Batch], placement: Placement = HOST) -> Evaluator:
    """Return an evaluator that gives `accuracy` and `nll` against the labels of fixed batches.

    Raises:
        DataError: If there is no labeled position, labels are no classes, or all are the tokens at
            their own positions; from the evaluator, if a label is no class of
            the model, if the model gives logits elsewhere, or if a metric is not finite for inputs
            that are not.
    """
    if not any(batch.labels is not None and batch.labels.numel() for batch in batches):
        words = next(filter(None, (misplaced(batch.inputs) for batch in batches)), "")
        raise DataError(
            f"'evaluation' must hold labels; got {len(batches)} batches without any{words}"
        )
    if any(batch.repeats_inputs and not batch.is_decoded for batch in batches):
        raise DataError(
            "'evaluation' must not have the input ids as labels, which a model only copies; "
            "curricle.stream(loader, next_token=True) shifts them by one position"
        )
    for batch in batches:
        if batch.labels is not None:
            require_classes(batch.labels, "'labels' of 'evaluation'")
    moved = [placement.part_of(batch) for batch in batches]
    labels = torch.cat([one.labels.long().cpu() for one in batches if one.labels is not None])
    lowest, highest = int(labels.min()), int(labels.max())

    def evaluate(model: TappedModel) -> dict[str, float]:
        right, nats, count = 0, 0.0, 0
        with observing(model), model.reading((), logits=True) as read:
            for batch in moved:
                shown = _shown(read, batch)
                logits = logits_of(shown)
                check_positions("'logits' in 'evaluation'", shown.positions, batch)
                labels = require(batch.labels, "labels")
                _check(labels, logits, lowest=lowest, highest=highest)
                right += int((logits.argmax(-1) == labels).sum())
                nats += float(cross_entropy(logits, labels))
                count += batch.num_selected
        hits, loss, number = map(placement.total, (right, nats, count))
        if not math.isfinite(loss):
            _check_inputs(moved, loss)
        return {"accuracy": hits / number, LOSS: loss / number}

    # A function keeps it as an attribute, so that evaluators of users need not know of it.
    evaluate.chance = _chance(labels)  # type: ignore[attr-defined]
    return evaluate


def _shown(read: Reader, batch: Batch) -> Activations:
    """Return what the student shows of a batch.

    Raises:
        DataError: If its logits are elsewhere than the labels.
        LookupError: If something else was looked up in vain.
    """
    try:
        return read(batch.inputs, batch.selected)
    except (DataError, LookupError):
        name = "'labels' of 'evaluation'"
        check_places("the student", read, batch, kind=DataError, name=name)
        raise


def _check_inputs(batches: Sequence[Batch], nats: float) -> None:
    """Check that inputs are finite, after a metric was not.

    Raises:
        DataError: If some are not.
    """
    for number, batch in enumerate(batches):
        if words := non_finite_words(batch, f"its batch {number}"):
            raise DataError(
                f"'evaluation' must have finite inputs to give a finite {LOSS!r}; got {nats}{words}"
            )


def _check(labels: Tensor, logits: Tensor, *, lowest: int, highest: int) -> None:
    *places, classes = logits.shape
    if places != [*labels.shape]:
        raise DataError(
            f"'labels' of 'evaluation' must be one for each place with logits, of shape "
            f"{tuple(places)}; got {tuple(labels.shape)}"
        )
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"'labels' of 'evaluation' must lie between 0 and {classes - 1}, the student's last "
            f"class; got {lowest} to {highest}"
        )
