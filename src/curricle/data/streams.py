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

from curricle.data.labels import way_out
from curricle.errors import DataError

Inputs = Tensor | Mapping[str, Tensor]
"""A model's input: one tensor, or named tensors passed as keywords; examples on the first axis."""

ENOUGH = 8
"""From so many labels on it is no chance if all are their own inputs."""
DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
"""Names of the inputs of a decoder, whose positions are scored where an encoder reads others."""
SCORED_INPUTS = (*DECODER_INPUTS, "input_ids", "inputs_embeds")
"""Names of inputs with the positions that are scored, whatever inputs come before them."""
ID_TYPES = (torch.int32, torch.int64)
"""Types that an embedding reads; other whole numbers are pixels, flags or features."""


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
    length: int | None = None
    """Positions of an example where no input tensor has them, as with labels of the patches of an
    image; None takes those of `valid`, and otherwise those of the inputs."""

    def __post_init__(self) -> None:
        """Check that positions and labels fit the examples.

        Only shapes are compared: a look at values would wait for a GPU.

        Raises:
            DataError: If there are no examples, or not one class for each place whose logits are
                wanted.
        """
        if not _leading(self.inputs).ndim:
            raise DataError("'inputs' must have the examples on their first axis; got a 0-dim one")
        if self.selected is not None and len(self.positions) < 2:  # noqa: PLR2004 - and position
            raise DataError(
                f"'selected' must come with the positions of an example, which inputs of shape "
                f"{tuple(self.leading.shape)} do not have; 'length' gives their number"
            )
        if self.labels is None:
            return
        if self.labels.is_floating_point():
            raise DataError(
                f"'labels' must be whole numbers; got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}{way_out(self.labels)}"
            )
        if tuple(self.labels.shape) != (self.num_selected,):
            places = "examples" if self.selected is None else "selected positions"
            raise DataError(
                f"'labels' must be one for each of the {self.num_selected} {places}; "
                f"got shape {tuple(self.labels.shape)}{way_out(self.labels)}"
            )

    @property
    def leading(self) -> Shaped[Tensor, "example ..."]:
        """Return the input that has the examples and, if any does, the positions that are scored.

        Inputs of a decoder come before token ids, and these before all others, such as images.
        """
        return _leading(self.inputs)

    @property
    def is_decoded(self) -> bool:
        """Return whether positions are those of a decoder, which are not those of all inputs."""
        return not isinstance(self.inputs, Tensor) and any(
            name in self.inputs for name in DECODER_INPUTS
        )

    @property
    def num_examples(self) -> int:
        """Return the number of rows."""
        return self.leading.shape[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """Return the shape of the positions, padding included; one an example without any."""
        if self.valid is not None:
            return tuple(self.valid.shape)
        if self.length is not None:
            return self.num_examples, self.length
        if self.selected is not None:
            return tuple(self.leading.shape[:2])
        return tuple(self.leading.shape[:-1] if self.is_flat else self.leading.shape)

    @property
    def num_tokens(self) -> int:
        """Return the number of positions that hold data; one an example without positions."""
        return math.prod(self.positions) if self.valid is None else int(self.valid.sum())

    @property
    def has_tokens(self) -> bool:
        """Return whether the data have positions: a mask, labels or token ids give them.

        Pixels and features are none, though a model may make positions of them.
        """
        is_said = self.valid is not None or self.length is not None or self.selected is not None
        return is_said or self._is_scored_by_name or not self.is_flat

    @property
    def num_read_tokens(self) -> int:
        """Return the number of positions that a budget counts, padding included.

        A model computes on padding too. It is one an example where `has_tokens` is false.
        """
        return math.prod(self.positions) if self.has_tokens else self.num_examples

    @property
    def is_flat(self) -> bool:
        """Return whether examples are numbers, such as features or pixels, and not token ids.

        Ids are two axes of 32 or 64 bits; inputs of that name are ids in any form.
        """
        leading = self.leading
        if leading.is_floating_point() or leading.is_complex():
            return True
        if self._is_scored_by_name:
            return False
        return leading.dtype not in ID_TYPES or leading.ndim > 2  # noqa: PLR2004 - and position

    @property
    def _is_scored_by_name(self) -> bool:
        return not isinstance(self.inputs, Tensor) and any(
            name in self.inputs for name in SCORED_INPUTS
        )

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
        return (
            tokens.ndim == 2  # noqa: PLR2004 - example and position
            and tuple(tokens.shape) == self.positions
            and torch.equal(tokens.flatten()[self.selected].long(), self.labels.long())
        )

    def map(self, change: "TensorMap") -> "Batch":
        """Return the batch with each of its tensors changed, as by a move to other memory."""
        return Batch(
            inputs=_each(self.inputs, change),
            labels=None if self.labels is None else change(self.labels),
            selected=None if self.selected is None else change(self.selected),
            valid=None if self.valid is None else change(self.valid),
            length=self.length,
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
        self._require_examples()
        labels, selected = self.labels, self.selected
        if selected is None:
            labels = None if labels is None else labels[start:stop]
        else:
            width = self.positions[1]
            inside = (selected >= start * width) & (selected < stop * width)
            labels = None if labels is None else labels[inside]
            selected = selected[inside] - start * width
        return Batch(
            inputs=_each(self.inputs, lambda tensor: tensor[start:stop]),
            labels=labels,
            selected=selected,
            valid=None if self.valid is None else self.valid[start:stop],
            length=self.length,
        )

    def _require_examples(self) -> None:
        """Check that each input can be cut by example.

        Raises:
            DataError: If one has no row for each example, as a number or a table for all has.
        """
        named = {"inputs": self.inputs} if isinstance(self.inputs, Tensor) else self.inputs
        for name, tensor in named.items():
            if not tensor.ndim or tensor.shape[0] != self.num_examples:
                raise DataError(
                    f"{name!r} must have a row for each of the {self.num_examples} examples, so "
                    f"that the batch can be cut into parts; got shape {tuple(tensor.shape)}; "
                    f"expand it in the collate function, or leave out 'accumulation'"
                )


def _leading(inputs: Inputs) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs
    name = next((name for name in SCORED_INPUTS if name in inputs), None)
    return next(iter(inputs.values())) if name is None else inputs[name]


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
