"""Teachers that run beside the student.

A `LiveTeacher` is a model in evaluation mode with the weights of the finished teacher or of a
checkpoint of its trajectory.

Design: the finished weights are never changed. A checkpoint is a copy of the model, created when a
stage that reads it starts and dropped at its end. Evaluations and probes therefore always read the
finished teacher.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, final

import torch

from curricle.errors import BindError
from curricle.models.inference import Inference
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Place, Reader, TappedModel
from curricle.models.weights import weights_digest
from curricle.teachers.trajectory import Trajectory

PLAIN = Inference()
"""Inference without speed-ups."""
Reference = Literal["final"] | int
"""The finished teacher, or the checkpoint of a step."""


@final
class LiveTeacher:
    """A teacher that runs beside the student."""

    def __init__(self, model: TappedModel, trajectory: Trajectory | None = None) -> None:
        """Take a finished model and, for progressive stages, its trajectory."""
        self.model = model
        self.trajectory = trajectory
        self._inference = PLAIN
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Return the digest of all finished weights, computed once."""
        if self._digest is None:
            self._digest = weights_digest(self.model.module)
        return self._digest

    def check(self, references: Iterable[Reference]) -> None:
        """Check that every checkpoint named by a stage exists and fits the model.

        Raises:
            BindError: If a checkpoint is named and there is no trajectory.
        """
        for reference in references:
            if reference != "final":
                self._of(reference).check(self.model.module, [reference])

    def at(self, reference: Reference) -> TappedModel:
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
            copied = copy.deepcopy(self.model)
        except RuntimeError as error:
            raise BindError(
                f"'teacher' must be a module that copy.deepcopy can copy to teach with the weights "
                f"of a checkpoint; torch says: {error}; build its weights as leaves of autograd "
                f"(tied adapters of PEFT are none), or merge them"
            ) from error
        self._of(reference).load(copied.module, reference)
        self._inference.apply(copied)
        return copied

    def reading(
        self,
        reference: Reference,
        places: Iterable[Place],
        *,
        logits: bool,
        head: bool = False,
    ) -> AbstractContextManager[Reader]:
        """Return a forward function of a checkpoint, or of the finished teacher.

        Args:
            reference: `final`, or the step of a checkpoint.
            places: Places of the hidden states to return.
            logits: Whether the logits are returned.
            head: Whether the input and the weight of the output layer are returned.
        """
        return self.at(reference).reading(places, logits=logits, head=head)

    @contextmanager
    def teaching(self, inference: Inference = PLAIN) -> Iterator[None]:
        """Set the model to evaluation mode and restore its modes on exit.

        Args:
            inference: Speed-ups of the model, and of each of its checkpoints, inside the block.

        Yields:
            Nothing.
        """
        with modes_kept(self.model.module), inference.held(self.model):
            self.model.module.eval()
            self._inference = inference
            try:
                yield
            finally:
                self._inference = PLAIN

    def _of(self, step: int) -> Trajectory:
        if self.trajectory is None:
            raise BindError(
                f"'trajectory' must be given to read teacher checkpoint {step}; got none"
            )
        return self.trajectory


def num_parameters(model: TappedModel) -> int:
    """Return the number of parameters of a model, tied ones counted once."""
    parameters: Iterable[torch.nn.Parameter] = model.module.parameters()
    return sum(parameter.numel() for parameter in parameters)
