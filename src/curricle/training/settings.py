"""How is a curriculum executed, whatever it teaches?

These settings change speed, memory and what is written down; but for precision, accumulation
rounding and clipping they do not change what is learned.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, final

import torch
from pydantic import Field

from curricle.errors import BindError, SpecError
from curricle.models.inference import Inference
from curricle.specs import value

Precision = Literal["float32", "bfloat16"]


@final
@value
class EngineSettings:
    """How the engine runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run; `auto` takes a GPU if there is one."""
    precision: Precision = "float32"
    """Precision of the forward passes; bfloat16 by autocast, weights stay float32."""
    teacher_precision: Precision | None = None
    """Precision of the teacher's passes while it teaches; None takes `precision`. On a CPU a wide
    teacher is faster in bfloat16 and a student with narrow heads in float32."""
    accumulation: int = Field(default=1, gt=0)
    """Parts into which a batch is cut to save memory; the loss is that of the whole batch."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; None does not clip."""
    evaluate_every: int = Field(default=250, gt=0)
    """Steps between evaluations; the end of the run is always evaluated."""
    record_every: int = Field(default=50, gt=0)
    """Steps between records of the training loss."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints to resume from; None writes none."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of torch; None leaves torch's choice."""
    compiled_teacher: bool = False
    """Whether each block of the teacher is compiled while it teaches, which takes seconds when a
    run begins; blocks that are read inside are not. Results agree within rounding."""
    prefetch: Literal["none", "batch", "targets"] = "none"
    """What a second thread makes ready for the next step while a step runs: its batch, or also what
    the teacher says of it, on a GPU beside the student's step. Results are the same; what
    two steps read is held at a time, of all parts of a batch, and on a CPU as many threads again
    run."""
    compiled_steps: int = Field(default=1, gt=0)
    """Steps that one compiled call takes, for small students, whose time goes into calls; 1
    compiles nothing. Results agree with those of single steps within rounding."""

    def __post_init__(self) -> None:
        """Check that nothing asks for single steps where several are compiled as one.

        Raises:
            SpecError: If something does.
        """
        for name, given, plain in (
            ("clip_norm", self.clip_norm, None),
            ("accumulation", self.accumulation, 1),
            ("prefetch", self.prefetch, "none"),
        ):
            if self.compiled_steps > 1 and given != plain:
                raise SpecError(
                    f"{name!r} must be {plain!r} where several steps are compiled as one; got "
                    f"{given!r} with 'compiled_steps' {self.compiled_steps}"
                )
        shortest = min(self.intervals)
        if self.prefetch != "none" and shortest == 1:
            raise SpecError(
                f"'prefetch' must be 'none' where every step is recorded, evaluated or saved, "
                f"before which nothing is made ahead; got {self.prefetch!r}"
            )
        if self.compiled_steps > 1 and self.compiled_steps > shortest:
            raise SpecError(
                f"'compiled_steps' must not exceed the {shortest} steps between two records, "
                f"evaluations or checkpoints, at which it ends; got {self.compiled_steps}"
            )

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            BindError: If a GPU is asked for and there is none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BindError("'device' must be available; got 'cuda' on a machine without a GPU")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def intervals(self) -> tuple[int, ...]:
        """Return the steps between records, evaluations and, if any are written, checkpoints."""
        return tuple(filter(None, (self.record_every, self.evaluate_every, self.checkpoint_every)))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the student's precision, and the teacher's where it is another."""
        return tuple(dict.fromkeys((self.precision, self.teacher_precision or self.precision)))

    @property
    def teacher_inference(self) -> Inference:
        """Return how the teacher is made fast while it teaches."""
        is_wide = (self.teacher_precision or self.precision) == "float32"
        return Inference(linear=None if is_wide else torch.bfloat16, compiled=self.compiled_teacher)

    @contextmanager
    def stated_threads(self) -> Iterator[None]:
        """Run a block with the stated number of CPU threads; torch's own comes back after.

        Yields:
            Nothing.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the student's forward passes run."""
        return self._autocast(self.precision)

    def teacher_autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the teacher's forward passes run while it teaches."""
        return self._autocast(self.teacher_precision or self.precision)

    def _autocast(self, precision: Precision) -> AbstractContextManager[object]:
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device().type, torch.bfloat16)
