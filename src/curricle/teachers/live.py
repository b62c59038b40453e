"""Teacher that runs beside the student.

A `LiveTeacher` is a model in evaluation mode with the weights of the finished teacher or of a
checkpoint of its trajectory.

Design: the finished weights are never changed. A checkpoint is a copy of the model, made when a
stage that reads it opens and dropped when that closes. So other readers, evaluations and probes
among them, always find the finished teacher. Where several processes divide the weights of the
teacher, the model that runs, and that of each checkpoint, is a copy in shares of a whole model.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from curricle.colocation import beside
from curricle.curriculum.stages import TeacherReference
from curricle.data.batch import Batch, BatchKey, Inputs, check_positions
from curricle.errors import BindError, DataError
from curricle.models.dispatching import is_dispatched, offloaded_weights
from curricle.models.inference import Inference
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.models.weights import weights_digest
from curricle.teachers.trajectory import Trajectory

PLAIN = Inference()
"""Makes nothing faster."""
Divide = Callable[[TappedModel], TappedModel]
"""A function from a whole model to one whose weights several processes divide."""
TeacherForward = Callable[[Inputs, Tensor | None, BatchKey | None], Activations]
"""A forward pass of a teacher: inputs, positions with logits, and the key of the batch."""


@final
class LiveTeacher:
    """A teacher that runs beside the student."""

    def __init__(
        self,
        model: TappedModel,
        trajectory: Trajectory | None = None,
        *,
        divide: Divide | None = None,
    ) -> None:
        """Take a finished model and, for progressive stages, its trajectory.

        Args:
            model: The model, whole.
            trajectory: Its checkpoints.
            divide: Returns the model that runs, with weights in shares; None runs the whole one.
        """
        self._whole, self._divide = model, divide
        self.model = model if divide is None else divide(model)
        """The model that runs."""
        self.trajectory = trajectory
        self._inference = PLAIN
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Return the digest of all finished weights; they are read once, since they stay."""
        if self._digest is None:
            self._digest = weights_digest(self._whole.module)
        return self._digest

    @property
    def is_divided(self) -> bool:
        """Return whether the model that runs holds shares of the weights."""
        return self.model is not self._whole

    def divided(self, divide: Divide) -> "LiveTeacher":
        """Return this teacher with weights in shares, or this one where nothing is divided.

        Args:
            divide: Places a model; returns a copy in shares, or the model itself.
        """
        teacher = LiveTeacher(self._whole, self.trajectory, divide=divide)
        return teacher if teacher.is_divided else self

    def check(self, references: Iterable[TeacherReference]) -> None:
        """Check that every checkpoint that stages name is there and fits.

        Raises:
            BindError: If a checkpoint is named and there is no trajectory, or weights of the
                teacher lie outside of the memory, where a checkpoint cannot replace them.
        """
        for reference in references:
            if reference != "final":
                if offloaded := offloaded_weights(self._whole.module):
                    raise BindError(
                        f"'teacher' must have all weights in memory to teach with those of a "
                        f"checkpoint; {min(offloaded)!r} is offloaded by its 'device_map'; load "
                        f"the model without offloading"
                    )
                self._of(reference).check(self._whole.module, [reference])

    def at(self, reference: TeacherReference) -> TappedModel:
        """Return the model with the weights of a checkpoint, or the finished one.

        It is the finished model itself, or a copy that is the caller's.

        Args:
            reference: `final`, or the step of a checkpoint.

        Raises:
            BindError: If a checkpoint is named that is not there, or the model cannot be copied.
        """
        if reference == "final":
            return self.model
        try:
            copied = copy.deepcopy(self._whole)
        except RuntimeError as error:
            raise BindError(
                f"'teacher' must be a module that copy.deepcopy can copy to teach with the weights "
                f"of a checkpoint; torch says: {error}; build its weights as leaves of autograd "
                f"(tied adapters of PEFT are none), or merge them"
            ) from error
        self._of(reference).load(copied.module, reference)
        if self._divide is not None:
            copied = self._divide(copied)
            copied.module.train(self.model.module.training)
        self._inference.apply(copied)
        return copied

    @contextmanager
    def open_taps(
        self,
        reference: TeacherReference,
        places: Iterable[Place],
        *,
        logits: bool,
        head: bool = False,
    ) -> Iterator[TeacherForward]:
        """Open a checkpoint, or the finished teacher, for forward passes.

        Args:
            reference: `final`, or the step of a checkpoint.
            places: Places of the hidden states.
            logits: Whether the logits are read, too.
            head: Whether the head is read.

        Yields:
            The forward pass.
        """
        model = self.at(reference)
        is_spread = is_dispatched(model.module)
        with model.open_taps(places, logits=logits, head=head) as forward:

            def run(inputs: Inputs, selected: Tensor | None, _: BatchKey | None) -> Activations:
                activations = forward(inputs, selected)
                return collected(activations, inputs) if is_spread else activations

            yield run

    @contextmanager
    def teaching(self, inference: Inference = PLAIN) -> Iterator[None]:
        """Hold the model in evaluation mode; its modes come back after.

        Args:
            inference: How it, and each of its checkpoints, is made fast meanwhile. A model in
                shares keeps no whole copies of its weights in lower precision.

        Yields:
            Nothing.
        """
        if self.is_divided:
            inference = replace(inference, linear=None)
        with modes_kept(self.model.module), inference.applying(self.model):
            self.model.module.eval()
            self._inference = inference
            try:
                yield
            finally:
                self._inference = PLAIN

    def _of(self, step: int) -> Trajectory:
        if self.trajectory is None:
            raise BindError(
                f"'trajectory' must be given to read teacher checkpoint {step}; got none; pass "
                f"curricle.distill(..., trajectory=...) the one of the curriculum"
            )
        return self.trajectory


def collected(teacher: Activations, inputs: Inputs) -> Activations:
    """Return activations of a model spread over devices, all of them where its inputs lie.

    Args:
        teacher: Activations, each where its module lies.
        inputs: Inputs of the pass.
    """
    like = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    head = teacher.head
    return replace(
        teacher,
        hidden={place: beside(state, like) for place, state in teacher.hidden.items()},
        logits=None if teacher.logits is None else beside(teacher.logits, like),
        head=head
        and replace(
            head,
            states=beside(head.states, like),
            weight=beside(head.weight, like),
            bias=None if head.bias is None else beside(head.bias, like),
        ),
    )


def aligned(teacher: Activations, batch: Batch) -> Activations:
    """Return activations of a teacher at the positions of the student.

    Args:
        teacher: Activations of `batch.for_teacher`.
        batch: The batch.

    Raises:
        DataError: If the model has other positions than its inputs, or the alignment exceeds them.
    """
    if batch.selected is not None:
        check_positions("'logits' of the teacher", teacher.positions, batch.for_teacher)
        teacher = replace(teacher, positions=teacher.positions and batch.positions)
    if batch.alignment is None:
        return teacher
    hidden = {
        place: _aligned(f"tap {place}", state, batch) for place, state in teacher.hidden.items()
    }
    if batch.selected is not None:
        return replace(teacher, hidden=hidden)
    logits, head = teacher.logits, teacher.head
    return replace(
        teacher,
        hidden=hidden,
        logits=None if logits is None else _aligned("logits", logits, batch),
        head=head and replace(head, states=_aligned("logits", head.states, batch)),
    )


def _aligned(name: str, states: Tensor, batch: Batch) -> Tensor:
    """Return the aligned positions of states; a state without positions stays as it is.

    Raises:
        DataError: If the states have other axes, or the alignment exceeds their positions.
    """
    alignment = batch.alignment
    assert alignment is not None  # noqa: S101 - checked by the caller
    if states.ndim == 2:  # noqa: PLR2004 - example and width
        return states
    if states.ndim != 3 or len(states) != batch.num_examples:  # noqa: PLR2004 - and position
        raise DataError(
            f"{name!r} of the teacher must have the axes example and position to be aligned; got "
            f"shape {tuple(states.shape[:-1])}"
        )
    # Out of range, a GPU would fail in an assertion and stay unusable. Of a batch that was made
    # there only shapes are read.
    readable = batch.readable.alignment
    if readable is not None and readable.is_cpu and readable.numel():
        lowest, highest = map(int, readable.aminmax())
        if lowest < 0 or highest >= states.shape[1]:
            raise DataError(
                f"'alignment' must lie between 0 and {states.shape[1] - 1}, the last position of "
                f"the teacher; got {lowest if lowest < 0 else highest}"
            )
    index = alignment.long()[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, index)


def num_parameters(model: TappedModel) -> int:
    """Return the number of parameters of a model, tied ones counted once."""
    parameters: Iterable[torch.nn.Parameter] = model.module.parameters()
    return sum(parameter.numel() for parameter in parameters)
