"""Where do targets come from while a student trains?

A `LiveTeacher` is a model in evaluation mode whose weights are those of the finished teacher or
of a checkpoint of its trajectory. Changing the checkpoint changes the weights in place; the
finished weights are kept and put back when the teacher is released.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, final

import torch
from torch import Tensor

from curricle.errors import BindError
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Place, Reader, TappedModel
from curricle.teachers.trajectory import Trajectory


@final
class LiveTeacher:
    """A teacher that runs beside the student."""

    def __init__(self, model: TappedModel, trajectory: Trajectory | None = None) -> None:
        """Take a finished model and, for progressive stages, its trajectory."""
        self.model = model
        self.trajectory = trajectory
        self._current: Literal["final"] | int = "final"
        self._final: dict[str, Tensor] = {}

    def check(self, references: Iterable[Literal["final"] | int]) -> None:
        """Check that every checkpoint that stages name is there and fits.

        Raises:
            BindError: If a checkpoint is named and there is no trajectory.
        """
        for reference in references:
            if reference != "final":
                self._of(reference).check(self.model.module, [reference])

    def use(self, reference: Literal["final"] | int) -> None:
        """Put the weights of a checkpoint, or the finished ones, into the model."""
        if reference == self._current:
            return
        module = self.model.module
        if not self._final:
            self._final = {name: kept.clone() for name, kept in module.state_dict().items()}
        if reference == "final":
            module.load_state_dict(self._final)
        else:
            self._of(reference).load(module, reference)
        self._current = reference

    def reading(
        self,
        reference: Literal["final"] | int,
        places: Iterable[Place],
        *,
        logits: bool,
        head: bool = False,
    ) -> AbstractContextManager[Reader]:
        """Return an open reading of a checkpoint, or of the finished teacher.

        Args:
            reference: `final`, or the step of a checkpoint; its weights are put into the model.
            places: What is read.
            logits: Whether the logits are read, too.
            head: Whether what the logits come from is.
        """
        self.use(reference)
        return self.model.reading(places, logits=logits, head=head)

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Hold the model in evaluation mode; its modes and finished weights come back after.

        Yields:
            Nothing.
        """
        with modes_kept(self.model.module):
            self.model.module.eval()
            try:
                yield
            finally:
                self.use("final")
                self._final = {}

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
