"""Batches of a training step, and the interface of the streams that produce them.

A `Batch` is the one value that a step consists of: the inputs of the student, those of the teacher
where they differ, the labels, and the positions where logits are compared. A `Stream` returns the
batch of a step as a pure function of (seed, step), so resuming in the middle of a stage is a
lookup.

Axes: example (rows of the batch), position (places in a sequence), selected (places where logits
are compared, counted over the whole batch), value (values of one label).

Design: positions are declared, never inferred from a data type. They follow from `valid`, `length`,
`alignment` or `selected`, or from the names of token inputs; a batch with none of these has one
position an example. `selected` holds flat indexes (example * positions + position), and labels are
aligned with it, so the number of compared positions is known without reading a tensor's values, and
a sum over micro-batches can be divided by the count of the whole batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final, overload

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from curricle.colocation import beside
from curricle.data.label_checks import way_out
from curricle.errors import BindError, CurricleError, DataError
from curricle.renamed import known_fields

Inputs = Tensor | Mapping[str, Tensor]
"""A model's input: one tensor, or named tensors passed as keywords; examples on the first axis."""
BatchKey = tuple[int, int, int]
"""Step of a batch, offset of its first example in the whole batch, and number of examples."""

ENOUGH = 8
"""Number of labels from which on it is no coincidence that all equal their own inputs."""
DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")
"""Names of the inputs of a decoder; their positions are scored if an encoder reads others."""
DECODER_PREFIX = "decoder_"
"""Beginning of the names of all that a decoder alone reads."""
TOKEN_INPUTS = (*DECODER_INPUTS, "input_ids", "inputs_embeds")
"""Names of inputs with one position a token, which are those of the logits."""
SEQUENCE_AXES = 2
"""Axes of positions: example and position."""


@final
@known_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Inputs of both models in one step, with labels and positions."""

    inputs: Inputs
    """Inputs of the student, and of the teacher unless `teacher_inputs` are given; the first axis
    counts examples."""
    labels: Shaped[Tensor, "selected ..."] | None = None
    """Label of each selected position, or of each example if `selected` is None: a class as a whole
    number, a float, or several values on further axes."""
    selected: Int[Tensor, " selected"] | None = None
    """Ascending flat indexes of the positions with logits; None for one an example."""
    valid: Bool[Tensor, "example position"] | None = None
    """True where a position holds data rather than padding; None if all do."""
    length: int | None = None
    """Number of positions of an example where neither `valid` nor token inputs have them, as with
    labels of the patches of an image, or token ids in a tensor without a name."""
    teacher_inputs: Inputs | None = None
    """Inputs of the teacher, such as another tokenization or another size of image; None for those
    of the student."""
    alignment: Int[Tensor, "example position"] | None = None
    """For each position of the student the position of the teacher, within the same example, with
    which it is compared; None where both have the same positions. Entries of padding are
    ignored but must be positions of the teacher."""
    matched: Bool[Tensor, "example position"] | None = None
    """True where a position of the student has a counterpart of the teacher, as where the tokens of
    two tokenizers end at the same character; None if all have one. Hidden states and logits of both
    models are compared there only, and labels count everywhere."""
    group: int = 1
    """Number of consecutive examples that belong together, as the texts of a pair or of a query
    with its positive and negatives; 1 for examples by themselves."""
    step: int | None = None
    """Step of the run, by which a teacher that several students share recognizes the batch; set by
    the run."""
    offset: int = 0
    """Number of examples of the whole batch before the first of this part of it."""
    host: "Batch | None" = field(default=None, init=False, repr=False, compare=False)
    """The same batch on the CPU, where values are read without waiting for a GPU; set by `moved`
    alone, and None in every batch made by `dataclasses.replace`, whose values may differ."""

    def __post_init__(self) -> None:
        """Check that positions, labels and the teacher's inputs fit the examples.

        Only shapes are compared: reading values would wait for a GPU.

        Raises:
            DataError: If there are no examples or no whole groups, or not one label for each place
                with logits, or the teacher's inputs have other examples or, without alignment,
                other positions.
        """
        if not _leading(self.inputs).ndim:
            raise DataError("'inputs' must have the examples on their first axis; got a 0-dim one")
        if self.group < 1 or self.num_examples % self.group:
            raise DataError(
                f"'group' must be a divisor of the {self.num_examples} examples; got {self.group}"
            )
        if self.selected is not None and len(self.positions) < SEQUENCE_AXES:
            raise DataError(
                f"'selected' must come with the positions of an example, which inputs of shape "
                f"{tuple(self.leading.shape)} do not have; 'length' gives their number"
            )
        if self.labels is not None and tuple(self.labels.shape[:1]) != (self.num_selected,):
            places = "examples" if self.selected is None else "selected positions"
            raise DataError(
                f"'labels' must be one for each of the {self.num_selected} {places}; "
                f"got shape {tuple(self.labels.shape)}{way_out(self.labels)}"
            )
        if self.matched is not None:
            self._check_matched(self.matched)
        if self.teacher_inputs is not None or self.alignment is not None:
            self._check_teacher()

    def _check_matched(self, matched: Tensor) -> None:
        if self.alignment is None or matched.shape != self.alignment.shape:
            shape = None if self.alignment is None else tuple(self.alignment.shape)
            raise DataError(
                f"'matched' must come with an 'alignment' of its shape {tuple(matched.shape)}; got "
                f"{shape}"
            )

    def _check_teacher(self) -> None:
        if self.alignment is not None and tuple(self.alignment.shape) != self.positions:
            raise DataError(
                f"'alignment' must have the examples and positions of 'inputs', {self.positions}; "
                f"got shape {tuple(self.alignment.shape)}"
            )
        inputs = self.inputs if self.teacher_inputs is None else self.teacher_inputs
        shape = tuple(_leading(inputs).shape)
        if shape[:1] != (self.num_examples,):
            raise DataError(
                f"'teacher_inputs' must have the {self.num_examples} examples of 'inputs'; got "
                f"shape {shape}"
            )
        is_placed = self.alignment is not None and self.selected is not None
        if is_placed and len(shape) < SEQUENCE_AXES:
            raise DataError(
                f"'teacher_inputs' must have positions where 'alignment' and 'selected' refer to "
                f"them; got shape {shape}"
            )
        if self.alignment is not None:
            return
        teacher = self.for_teacher
        are_known = self.has_positions and teacher.has_positions
        if are_known and teacher.positions != self.positions:
            raise DataError(
                f"'alignment' must be given where the positions {teacher.positions} of "
                f"'teacher_inputs' are not the {self.positions} of 'inputs'; got None; it holds "
                f"for each position of the student the position of the teacher"
            )

    @property
    def leading(self) -> Shaped[Tensor, "example ..."]:
        """Return the input with the examples and, if any has them, the compared positions.

        Inputs of a decoder come before token ids, and these before all others, such as images.
        """
        # The common case first: several properties of every step read it.
        inputs = self.inputs
        return inputs if isinstance(inputs, Tensor) else _leading(inputs)

    @property
    def is_decoded(self) -> bool:
        """Return whether positions are those of a decoder, which are not those of all inputs."""
        return not isinstance(self.inputs, Tensor) and any(
            name in self.inputs for name in DECODER_INPUTS
        )

    @property
    def for_encoder(self) -> "Batch":
        """Return the batch with the positions that an encoder reads, without labels.

        A batch without inputs of a decoder has no others.
        """
        if isinstance(self.inputs, Tensor) or not self.is_decoded:
            return self
        inputs = {
            name: tensor
            for name, tensor in self.inputs.items()
            if not name.startswith(DECODER_PREFIX)
        }
        mask = data_mask(inputs)
        valid = None if mask is None else mask.bool()
        batch = Batch(
            inputs=inputs, valid=valid, group=self.group, step=self.step, offset=self.offset
        )
        return batch if self.host is None else with_host(batch, self.host.for_encoder)

    @property
    def readable(self) -> "Batch":
        """Return the batch whose values are read without waiting for a GPU, if there is one."""
        return self if self.host is None else self.host

    @property
    def num_examples(self) -> int:
        """Return the number of rows."""
        return self.leading.shape[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """Return the shape of the positions, padding included: (examples,) without any."""
        if self.valid is not None:
            return tuple(self.valid.shape)
        if self.length is not None:
            return self.num_examples, self.length
        if self.selected is not None:
            return tuple(self.leading.shape[:SEQUENCE_AXES])
        name = _token_input(self.inputs)
        if name is not None:
            # Embedded tokens have their features on one more axis.
            shape = self.leading.shape
            return tuple(shape[:-1] if name.endswith("embeds") else shape)
        return (self.num_examples,) if self.alignment is None else tuple(self.alignment.shape)

    @property
    def has_positions(self) -> bool:
        """Return whether examples have positions; without any, an example counts as one token."""
        return len(self.positions) > 1

    @property
    def num_tokens(self) -> int:
        """Return the number of positions that hold data; one an example without positions."""
        valid = self.readable.valid
        return math.prod(self.positions) if valid is None else int(valid.sum())

    @property
    def num_read_tokens(self) -> int:
        """Return the number of positions in budgets, padding included.

        A model computes on padding, too.
        """
        return math.prod(self.positions)

    @property
    def num_selected(self) -> int:
        """Return the number of positions with logits."""
        return self.num_examples if self.selected is None else self.selected.numel()

    @property
    def repeats_inputs(self) -> bool:
        """Return whether every label is the token at its own position, which a model only copies.

        Few labels prove nothing: masking leaves one token in ten as it was.
        """
        labels, tokens = self.labels, self.leading
        if labels is None or self.selected is None or len(labels) < ENOUGH or labels.ndim > 1:
            return False
        if tuple(tokens.shape) != self.positions:
            return False
        return torch.equal(tokens.flatten()[self.selected].double(), labels.double())

    @property
    def predicts_tokens(self) -> bool:
        """Return whether every label is the token after its position, as of a decoder."""
        labels, ids = self.labels, self.leading
        if labels is None or self.selected is None or not len(labels) or labels.ndim > 1:
            return False
        if ids.is_floating_point() or tuple(ids.shape) != self.positions:
            return False
        # The last token has none after it, and is compared with itself.
        following = (self.selected + 1).clamp(max=ids.numel() - 1)
        return torch.equal(ids.flatten()[following].long(), labels.long())

    @property
    def key(self) -> BatchKey | None:
        """Return the key by which the batch is recognized; None without a step."""
        return None if self.step is None else (self.step, self.offset, self.num_examples)

    @property
    def for_matching(self) -> "Batch":
        """Return the batch with the positions that both models have, and without labels."""
        if self.matched is None:
            return self
        valid = self.matched if self.valid is None else self.matched & self.valid
        batch = replace(self, valid=valid, labels=None, selected=self.matched_selected)
        return batch if self.host is None else with_host(batch, self.host.for_matching)

    @property
    def matched_selected(self) -> Int[Tensor, " selected"] | None:
        """Return the selected positions that both models have; None without selection."""
        if self.selected is None or self.matched is None:
            return self.selected
        matched = None if self.host is None else self.host.matched_selected
        if matched is not None:
            return beside(matched, self.selected)
        return self.selected[self.matched.flatten()[self.selected]]

    @property
    def for_teacher(self) -> "Batch":
        """Return the batch as the teacher reads it: its inputs and its positions with logits."""
        if self.teacher_inputs is None and self.alignment is None:
            return self
        inputs = self.inputs if self.teacher_inputs is None else self.teacher_inputs
        mask = data_mask(inputs)
        length = None if mask is None else mask.shape[1]
        teacher = Batch(inputs=inputs, length=length)
        if self.alignment is None and not teacher.has_positions:
            # Without alignment the positions are those of the student.
            length = self.positions[1] if self.has_positions else None
            return Batch(inputs=inputs, length=length, selected=self.selected)
        selected = self.matched_selected
        if selected is not None and self.alignment is not None:
            shape = teacher.positions if teacher.has_positions else tuple(teacher.leading.shape)
            rows = selected.div(self.positions[1], rounding_mode="floor")
            selected = rows * shape[1] + self.alignment.flatten()[selected]
        return Batch(inputs=inputs, length=length, selected=selected)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with each of its tensors changed, as by a move to other memory."""
        labels, selected = _each(self.labels, change), _each(self.selected, change)
        return self._changed(change, labels, selected, group=self.group)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with each of its tensors moved, which keeps this one as its `host`."""
        labels, selected = _each(self.labels, move), _each(self.selected, move)
        return with_host(self._changed(move, labels, selected, group=self.group), self)

    def split(self, number: int) -> tuple["Batch", ...]:
        """Return the batch split along the examples into a number of batches of equal size.

        Raises:
            DataError: If the number of examples, or of groups, is not a multiple of it.
        """
        if number == 1:
            return (self,)
        if self.num_examples % number:
            raise DataError(
                f"'gradient_accumulation_steps' must divide the {self.num_examples} examples of a "
                f"batch; got {number}"
            )
        if self.num_examples // number % self.group:
            raise DataError(
                f"'gradient_accumulation_steps' must divide the {self.num_examples // self.group} "
                f"groups of {self.group} examples of a batch, which stay together; got {number}"
            )
        return self.chunks(self.num_examples // number)

    def chunks(self, size: int) -> tuple["Batch", ...]:
        """Return the batch split along the examples into batches of at most `size`, in order.

        Parts that cut a group consist of examples by themselves.
        """
        self._require_examples()
        starts = range(0, self.num_examples, size)
        return tuple(self._rows(start, min(start + size, self.num_examples)) for start in starts)

    def _rows(self, start: int, stop: int) -> "Batch":
        labels, selected = self.labels, self.selected
        if selected is not None:
            width = self.positions[1]
            inside = (selected >= start * width) & (selected < stop * width)
            labels = None if labels is None else labels[inside]
            selected = selected[inside] - start * width
        elif labels is not None:
            labels = labels[start:stop]
        group = 1 if start % self.group or stop % self.group else self.group
        return self._changed(
            lambda tensor: tensor[start:stop], labels, selected, group=group, start=start
        )

    def _changed(
        self,
        change: Callable[[Tensor], Tensor],
        labels: Tensor | None,
        selected: Tensor | None,
        *,
        group: int,
        start: int = 0,
    ) -> "Batch":
        """Return the batch with other labels and selected positions, and the rest changed."""
        return Batch(
            inputs=_each(self.inputs, change),
            labels=labels,
            selected=selected,
            valid=_each(self.valid, change),
            length=self.length,
            teacher_inputs=_each(self.teacher_inputs, change),
            alignment=_each(self.alignment, change),
            matched=_each(self.matched, change),
            group=group,
            step=self.step,
            offset=self.offset + start,
        )

    def _require_examples(self) -> None:
        """Check that each input can be cut by example.

        Raises:
            DataError: If one has no row for each example, as a number or a table for all has.
        """
        tensors = [(name or "inputs", tensor) for name, tensor in named(self.inputs).items()]
        teacher_inputs = named(self.teacher_inputs)
        tensors += [(name or "teacher_inputs", tensor) for name, tensor in teacher_inputs.items()]
        for name, tensor in tensors:
            if not tensor.ndim or tensor.shape[0] != self.num_examples:
                raise DataError(
                    f"{name!r} must have a row for each of the {self.num_examples} "
                    f"examples, so that the batch can be cut into parts; got shape "
                    f"{tuple(tensor.shape)}; expand it in the collate function, or leave out "
                    f"'gradient_accumulation_steps'"
                )


def with_host(batch: Batch, host: Batch) -> Batch:
    """Return a new batch after attaching its copy on the CPU.

    Args:
        batch: A batch that nothing else refers to yet; changed in place.
        host: The batch with equal values on the CPU.
    """
    # Not an argument of the constructor: `replace` would pass it on beside changed values.
    object.__setattr__(batch, "host", host)
    return batch


def named(inputs: Inputs | None) -> Mapping[str, Tensor]:
    """Return inputs by name; the name of a single tensor is empty."""
    if inputs is None:
        return {}
    return {"": inputs} if isinstance(inputs, Tensor) else inputs


def data_mask(inputs: Inputs) -> Tensor | None:
    """Return the attention mask of the compared positions, with the axes example and position."""
    is_decoded = any(name in named(inputs) for name in DECODER_INPUTS)
    mask = named(inputs).get("decoder_attention_mask" if is_decoded else "attention_mask")
    return None if mask is None or mask.ndim != SEQUENCE_AXES else mask


def _leading(inputs: Inputs) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs
    return inputs[_token_input(inputs) or next(iter(inputs))]


def _token_input(inputs: Inputs) -> str | None:
    """Return the name of the input with one position a token; None without one."""
    if isinstance(inputs, Tensor):
        return None
    return next((name for name in TOKEN_INPUTS if name in inputs), None)


@overload
def _each(tensors: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor: ...
@overload
def _each(tensors: None, change: Callable[[Tensor], Tensor]) -> None: ...
@overload
def _each(
    tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]: ...
def _each(tensors: Inputs | None, change: Callable[[Tensor], Tensor]) -> Inputs | None:
    """Return one tensor or named tensors changed; None for none."""
    if tensors is None or isinstance(tensors, Tensor):
        return None if tensors is None else change(tensors)
    return {name: change(tensor) for name, tensor in tensors.items()}


def sequence_first_remedy(shape: tuple[int, ...], batch: Batch) -> str:
    """Return a remedy for states with positions on their first axis; empty for others.

    Args:
        shape: Shape of a state without the width.
        batch: The batch of the forward pass.
    """
    data = batch.positions
    if shape[1:2] == data[:1] and (not batch.has_positions or shape[:1] == data[1:2]):
        return (
            "; its first axis are positions: modules of torch accept 'batch_first=True', and "
            "curricle.tapped(model, batch_axis=1) declares states of those without it"
        )
    return ""


def _position_remedy(shape: tuple[int, ...], batch: Batch) -> str:
    """Return a remedy for states with other positions than the data; empty if there is none."""
    remedy = sequence_first_remedy(shape, batch)
    if remedy or batch.has_positions:
        return remedy
    return (
        "; positions='token' of curricle.stream, or 'length' of a curricle.Batch, declares "
        "positions of the inputs"
    )


def check_positions(
    name: str,
    leading: Sequence[int] | None,
    batch: Batch,
    *,
    kind: type[CurricleError] = DataError,
) -> None:
    """Check that a state or logits have the positions of the data, the index of labels and masks.

    Every objective that selects rows by position calls this in each forward pass, as do
    evaluations. Only shapes are compared, so it causes no synchronization with a GPU.

    Args:
        name: Name of the state in error messages.
        leading: Its shape without the width; None if the model does not report it.
        batch: The batch of the forward pass.
        kind: Class of the error: `BindError` while binding.
    """
    if leading is None or tuple(leading) in {batch.positions, (math.prod(batch.positions),)}:
        return
    raise kind(
        f"{name} must have the positions {batch.positions} of the data; got {tuple(leading)}: a "
        f"model that adds positions, as prompt tuning does, or drops some cannot be compared by "
        f"position"
    )


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """The counted rows of a state, determined before a batch is split and the model has run."""

    per_example: int | None
    """Positions per example defined by the model, as with images or after pooling; None for a
    state with the positions of the data."""

    @classmethod
    def of(cls, name: str, leading: Sequence[int], batch: Batch) -> "Rows":
        """Return the rows of a state.

        Args:
            name: Name of the state in error messages.
            leading: Its shape without the width.
            batch: The batch of the forward pass.

        Raises:
            BindError: If its positions belong to no example, or padding among them is unknown.
        """
        data, shape = batch.positions, tuple(leading)
        if shape in {data, (math.prod(data),)}:
            return cls(None)
        if shape[:1] != data[:1]:
            raise BindError(
                f"{name} must have the {batch.num_examples} examples on its first axis; got {shape}"
                + _position_remedy(shape, batch)
            )
        if batch.is_decoded and len(shape) > 1:
            raise BindError(
                f"{name} must have the positions {data} of the decoder, which masks and labels "
                f"refer to; got {shape}; 'encoder:1' and so on are the taps of an encoder"
            )
        if batch.valid is not None and len(shape) > 1:
            raise BindError(
                f"{name} must have the positions {data} of the padded data, or a single position "
                f"per example; got {shape}"
            )
        return cls(math.prod(shape[1:]))

    def count(self, batch: Batch) -> int:
        """Return the number of rows in a batch."""
        if self.per_example is None:
            return batch.num_tokens
        return batch.num_examples * self.per_example

    def take(
        self, states: Shaped[Tensor, "*leading width"], batch: Batch
    ) -> Shaped[Tensor, "row width"]:
        """Return the counted rows on a single axis.

        Raises:
            DataError: If the number of positions differs from that of the first batch.
        """
        leading, per_example = tuple(states.shape[:-1]), self.per_example
        if per_example is None:
            check_positions("a state", leading, batch)
        elif leading[:1] != (batch.num_examples,) or math.prod(leading[1:]) != per_example:
            raise DataError(
                f"a state must have the same positions per example in every batch, here "
                f"{batch.num_examples * per_example} in total; got {math.prod(leading)}"
                + _position_remedy(leading, batch)
            )
        rows = states.flatten(0, -2)
        if per_example is not None or batch.valid is None:
            return rows
        if batch.host is None or batch.host.valid is None:
            return rows[batch.valid.flatten()]
        # By numbers: a mask on a GPU is waited for, in the pass and again in that of its gradient.
        numbers = batch.host.valid.flatten().nonzero().squeeze(1)
        return rows.index_select(0, beside(numbers, rows))
