"""What does one training step read, and how is it found again?

A `Stream` gives the batch of a step as a pure function of (seed, step): resuming, also in the
middle of a stage, is a lookup. A `Batch` is what both models read: the inputs, the labels, and
*where* logits are wanted. Losses per position compute the head at `selected` only.

Axes: example (rows of the batch), position (places in a sequence), selected (places where logits
are wanted, counted over the whole batch).

Design: `selected` holds flat indexes (example * positions + position) and `labels` are aligned
with it, so the number of scored positions is known without looking at a tensor's values, and a
sum over micro-batches can be divided by the count of the whole batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from curricle.errors import DataError

Inputs = Tensor | Mapping[str, Tensor]
"""A model's input: one tensor, or named tensors passed as keywords; examples on the first axis."""

ENOUGH = 8
"""From so many labels on it is no chance if all are their own inputs."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the teacher and the student read in one step."""

    inputs: Inputs
    """Model inputs; the first axis counts examples."""
    labels: Int[Tensor, " selected"] | None = None
    """Class of each selected position, or of each example if `selected` is None."""
    selected: Int[Tensor, " selected"] | None = None
    """Ascending flat indexes of the positions whose logits are wanted; None for one an example."""
    valid: Bool[Tensor, "example position"] | None = None
    """True where a position holds data rather than padding; None if all do."""

    def __post_init__(self) -> None:
        """Check that there is one class for each place whose logits are wanted.

        Raises:
            DataError: If not.
        """
        if self.labels is None:
            return
        if self.labels.is_floating_point():
            raise DataError(f"'labels' must be whole numbers; got {self.labels.dtype}")
        if tuple(self.labels.shape) != (self.num_selected,):
            places = "examples" if self.selected is None else "selected positions"
            raise DataError(
                f"'labels' must be one for each of the {self.num_selected} {places}; "
                f"got shape {tuple(self.labels.shape)}"
            )

    @property
    def leading(self) -> Shaped[Tensor, "example ..."]:
        """Return the input tensor that tells the number of examples and positions."""
        return self.inputs if isinstance(self.inputs, Tensor) else next(iter(self.inputs.values()))

    @property
    def num_examples(self) -> int:
        """Return the number of rows."""
        return self.leading.shape[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """Return the shape of the positions, padding included; one an example without any."""
        if self.valid is not None:
            return tuple(self.valid.shape)
        return tuple(self.leading.shape[:-1] if self.is_flat else self.leading.shape)

    @property
    def num_tokens(self) -> int:
        """Return the number of positions that hold data; one an example without positions."""
        return math.prod(self.positions) if self.valid is None else int(self.valid.sum())

    @property
    def is_flat(self) -> bool:
        """Return whether examples are feature vectors rather than sequences of token ids."""
        return self.leading.is_floating_point()

    @property
    def num_selected(self) -> int:
        """Return the number of positions whose logits are wanted."""
        return self.num_examples if self.selected is None else self.selected.numel()

    @property
    def repeats_inputs(self) -> bool:
        """Return whether every label is the token at its own position, which a model only copies.

        Few labels say nothing: masking leaves one token in ten as it was.
        """
        if self.labels is None or self.selected is None or len(self.labels) < ENOUGH:
            return False
        tokens = self.leading
        return tokens.ndim == 2 and torch.equal(  # noqa: PLR2004 - example and position
            tokens.flatten()[self.selected].long(), self.labels.long()
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device; nothing is copied if it is there already."""
        if self.leading.device == device:
            return self
        return Batch(
            inputs=_each(self.inputs, lambda tensor: tensor.to(device, non_blocking=True)),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
            selected=None if self.selected is None else self.selected.to(device, non_blocking=True),
            valid=None if self.valid is None else self.valid.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> tuple["Batch", ...]:
        """Return the batch cut along the examples into `parts` of equal size.

        Raises:
            DataError: If the number of examples is not a multiple of `parts`.
        """
        if parts == 1:
            return (self,)
        if self.num_examples % parts:
            raise DataError(
                f"'accumulation' must divide the {self.num_examples} examples of a batch; "
                f"got {parts}"
            )
        size = self.num_examples // parts
        return tuple(self._rows(start, start + size) for start in range(0, self.num_examples, size))

    def chunks(self, most: int) -> tuple["Batch", ...]:
        """Return the batch cut along the examples into parts of at most `most`, in order."""
        starts = range(0, self.num_examples, most)
        return tuple(self._rows(start, min(start + most, self.num_examples)) for start in starts)

    def _rows(self, start: int, stop: int) -> "Batch":
        labels, selected = self.labels, self.selected
        if selected is None:
            labels = None if labels is None else labels[start:stop]
        else:
            width = self.leading.shape[1]
            inside = (selected >= start * width) & (selected < stop * width)
            labels = None if labels is None else labels[inside]
            selected = selected[inside] - start * width
        return Batch(
            inputs=_each(self.inputs, lambda tensor: tensor[start:stop]),
            labels=labels,
            selected=selected,
            valid=None if self.valid is None else self.valid[start:stop],
        )


def _each(inputs: Inputs, change: "TensorMap") -> Inputs:
    if isinstance(inputs, Tensor):
        return change(inputs)
    return {name: change(tensor) for name, tensor in inputs.items()}


@runtime_checkable
class TensorMap(Protocol):
    """A function from a tensor to a tensor."""

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """Return the changed tensor."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Batches as a pure function of the step."""

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        ...

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch; `batch_size` without positions."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything the batches depend on."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0; the same step gives the same batch."""
        ...
