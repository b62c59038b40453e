"""Objective on the labels of the data: classes, several labels, values or embeddings.

Outputs of the student are read at the selected positions; where the data select none, there is one
output per example.

| `loss` | labels | a row's loss | unit |
|---|---|---|---|
| `cross_entropy` | class, a whole number | -log softmax(s)[label] | nats |
| `binary` | probability of each of several labels, NaN if missing | mean over labels | nats |
| `squared_error` | values, as many as the student has | mean of squares | squared units of values |
| `cosine` | embedding of the student's width | 1 - cos(s, t) | 1, from 0 to 2 |
| `similarity` | cosine similarity of a pair, at both of its texts | (cos(s, s') - t)^2 | 1 |

With `similarity`, texts 2 i and 2 i + 1 are a pair, as `Batch.group` declares; each has the label
and the loss of its pair.

Axes: leading (example, position), row (counted positions), class, label, value.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.data.batch import Batch, check_positions
from curricle.data.label_checks import misplaced
from curricle.errors import BindError, CurricleError, DataError, SpecError
from curricle.models.model_notes import check_problem_type
from curricle.models.tapped import OUTPUT, Activations, Place, TappedModel
from curricle.objectives.base import (
    MOST_WEIGHT,
    BoundObjective,
    Reads,
    Sample,
    check_classes,
    check_group,
    logits_of,
    refuse_embeddings,
    require,
)
from curricle.objectives.chunked import Chunk, chunked_cross_entropy
from curricle.objectives.logits import at_output, check_scores, is_none, logits_shape
from curricle.objectives.losses import (
    binary_cross_entropy,
    cosine_distance,
    cross_entropy,
    squared_error,
    value_rows,
)
from curricle.objectives.similarities import pair_error
from curricle.values import value

LabelLossName = Literal["cross_entropy", "binary", "squared_error", "cosine", "similarity"]
"""Losses against labels."""
PAIR = 2
"""Consecutive texts with one label, for `similarity`."""


@final
@value
class LabelLoss:
    """Fit the data's labels; mean over labeled positions."""

    kind: Literal["labels"] = "labels"
    loss: LabelLossName = "cross_entropy"
    """`cross_entropy` of one class, `binary` cross-entropy of several labels with a logit each,
    `squared_error` of values, `cosine` distance of embeddings, or squared error of the cosine
    `similarity` of two consecutive texts."""
    chunk: Chunk | None = None
    """As in `MatchLogits`, for cross-entropy. If both set it, each computes the student's
    logits."""
    output: str | None = Field(default=None, exclude_if=is_none)
    """Name of the entry of the student's outputs that the labels belong to, as one head of several;
    None for the logits. Evaluations read it, too."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that `chunk` comes with cross-entropy of the logits.

        Raises:
            SpecError: If it comes with another loss, or with a named output.
        """
        if self.output is not None and self.chunk is not None:
            raise SpecError(
                f"'chunk' has no effect with 'output', whose head is unknown; remove it (got "
                f"{self.chunk})"
            )
        if self.chunk is not None and self.loss != "cross_entropy":
            raise SpecError(
                f"'chunk' has no effect with loss={self.loss!r}; choose 'cross_entropy' or remove "
                f"it (got {self.chunk})"
            )

    @property
    def needs_teacher(self) -> bool:
        """Return False: the target is in the data."""
        return False

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the student's logits or named output, or its head with `chunk`."""
        del teacher
        if self.output is not None:
            return Reads(student=(student.place(f"{OUTPUT}:{self.output}"),))
        if self.loss == "cross_entropy":
            check_problem_type(student, "student")
        return Reads(student_logits=self.chunk is None, student_head=self.chunk is not None)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term after checking the labels of the first batch.

        Raises:
            BindError: If the student's outputs and the labels have different positions, or there
                are fewer than two classes.
            DataError: If the labels are not those of the loss.
        """
        del is_residual
        # Taps of other objectives are no outputs of this one.
        place = reads.student if self.output else ()
        batch, student = sample.batch, at_output(sample.student, place, sample.batch)
        shape = logits_shape(self.chunk, student)
        is_classes = self.loss == "cross_entropy"
        if is_classes:
            refuse_embeddings("student", student, "cross-entropy")
        *leading, width = check_scores("student", shape) if is_classes else shape
        if self.loss == "similarity":
            check_group(batch, PAIR, "loss='similarity' (two texts of a pair)", kind=BindError)
        check_positions("'logits' of the student", student.positions, batch, kind=BindError)
        # Missing labels raise an error in `count`.
        if batch.labels is not None:
            _check_places(leading, batch, kind=BindError)
            _check_labels(batch.labels, self.loss, width, " in the first batch")
        return _BoundLabels(declared=self, width=width, place=place)


def labeled_output(objectives: Iterable[object]) -> str:
    """Return the name of the output that the labels belong to; empty for the logits.

    Args:
        objectives: Objectives of a curriculum. Where they declare several outputs, none is chosen.
    """
    names = {item.output for item in objectives if isinstance(item, LabelLoss)}
    return next(iter(names)) or "" if len(names) == 1 else ""


def _check_labels(labels: Tensor, loss: LabelLossName, width: int, where: str = "") -> None:
    """Check that labels are those of a loss; reads values, so it synchronizes with a GPU.

    Args:
        labels: The labels.
        loss: The loss.
        width: Classes or values of the student.
        where: Name of the batch in error messages; empty where the message has it elsewhere.

    Raises:
        DataError: If their type, shape or range is another.
    """
    shape = tuple(labels.shape)
    if loss == "cross_entropy":
        check_classes(labels, width, where)
    elif loss == "similarity":
        _check_pairs(labels)
    elif shape[1:] != (width,) and (width, labels.ndim, loss) != (1, 1, "squared_error"):
        raise DataError(
            f"'labels' must have the {width} values of the student's output at each position for "
            f"loss={loss!r}; got shape {shape}"
        )
    elif loss == "binary" and bool(((labels < 0) | (labels > 1)).any()):
        raise DataError(
            f"'labels' must lie between 0 and 1 for loss='binary', or be NaN where missing; got "
            f"{float(labels[~labels.isnan()].min()):g} to {float(labels[~labels.isnan()].max()):g}"
            f"{where}"
        )


def _check_pairs(labels: Tensor) -> None:
    """Check that labels are cosine similarities of consecutive texts.

    Raises:
        DataError: If they are not one a text, equal within a pair and between -1 and 1.
    """
    shape = tuple(labels.shape)
    is_single = labels.ndim == 1 or shape[1:] == (1,)
    if not is_single or len(labels) % 2 or not labels.is_floating_point():
        raise DataError(
            f"'labels' must be floats, one for each of two consecutive texts of a pair, for "
            f"loss='similarity'; got {labels.dtype} of shape {shape}"
        )
    pairs = labels.reshape(-1, 2)
    if not torch.equal(pairs[:, 0], pairs[:, 1]) or bool((pairs.abs() > 1).any()):
        raise DataError(
            f"'labels' must be cosine similarities between -1 and 1, equal for both texts of a "
            f"pair, for loss='similarity'; got {float(labels.min()):g} to {float(labels.max()):g}"
        )


def _loss(loss: LabelLossName, outputs: Tensor, labels: Tensor) -> Float[Tensor, ""]:
    """Return a loss other than with `chunk`, summed over rows."""
    match loss:
        case "cross_entropy":
            return cross_entropy(outputs, labels)
        case "binary":
            return binary_cross_entropy(outputs.flatten(0, -2), labels.flatten(0, -2))
        case "squared_error":
            return squared_error(*value_rows(outputs.flatten(0, -2), labels))
        case "cosine":
            return cosine_distance(outputs.flatten(0, -2), labels.flatten(0, -2))
        case "similarity":
            return pair_error(outputs, labels.flatten())


def _check_places(
    leading: Sequence[int], batch: Batch, *, kind: type[CurricleError] = DataError
) -> None:
    """Check that each label has outputs; see `check_positions`."""
    if math.prod(leading) != batch.num_selected:
        places = "examples" if batch.selected is None else "selected positions"
        raise kind(
            f"'logits' must have one row for each label, for {batch.num_selected} {places}; got "
            f"shape {tuple(leading)}; to select positions, give labels two axes (example, position)"
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundLabels:
    """`LabelLoss` with the student's number of classes."""

    declared: LabelLoss
    width: int
    """Number of classes or values of the student."""
    place: tuple[Place, ...] = ()
    """Place of the named output; empty for the logits."""

    @property
    def label_classes(self) -> int | None:
        """Return the number of classes of the student; None for labels that are no classes."""
        return self.width if self.declared.loss == "cross_entropy" else None

    def check_labels(self, labels: Tensor) -> None:
        """Check the labels of a batch.

        Args:
            labels: The labels.
        """
        _check_labels(labels, self.declared.loss, self.width)

    def count(self, batch: Batch) -> int:
        """Return the number of labeled positions.

        Raises:
            BindError: If the data have no labels.
        """
        if batch.labels is None:
            names = "" if isinstance(batch.inputs, Tensor) else f" of {[*batch.inputs]}"
            raise BindError(
                f"'labels' must be in the data for LabelLoss, under that name; got batches{names} "
                f"without labels{misplaced(batch.inputs)}"
            )
        return batch.num_selected

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        """Return the labels; never called, since no teacher is needed."""
        del teacher
        return require(batch.labels, "labels")

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss summed over labeled positions."""
        del target
        labels, chunk = require(batch.labels, "labels"), self.declared.chunk
        student = at_output(student, self.place, batch)
        check_positions("'logits'", student.positions, batch)
        if chunk is None:
            logits = logits_of(student)
            _check_places(logits.shape[:-1], batch)
            return _loss(self.declared.loss, logits, labels)
        head = require(student.head, "head")
        _check_places(head.states.shape[:-1], batch)
        return chunked_cross_entropy(head, labels, chunk=chunk)

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        name = self.declared.loss.replace("cross_entropy", "cross-entropy").replace("_", " ")
        taps = "labels" if not self.place else f"labels of {OUTPUT}:{self.declared.output}"
        return taps, f"{self.declared.weight:g} x {name}", "-", "-"
