"""Sizes of a stage's models and of its passes, measured by passes without data.

A pass ends at the deepest tap that the stage reads, as in training. Not counted are projections,
adapters, and temporary memory inside of blocks; the memory of a loss of logits follows from their
number. Passes are those of the kernels of a CPU.

Units: bytes, FLOPs.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from curricle.curriculum.stages import Stage
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.heads import LinearHead
from curricle.models.restoring import frozen_but, train
from curricle.models.shape_passes import ShapePasses
from curricle.models.tapped import Activations, Place, TappedModel, run_trial
from curricle.objectives.base import Objective, Reads, merge_reads
from curricle.objectives.chunked import Chunk, chunk_rows
from curricle.training.setup.costs import Meter
from curricle.training.setup.optimizers import Optimizer
from curricle.training.setup.rank_costs import Passes, StageSizes, Unit, Weight
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.sharding import unit_paths

FLOAT_BYTES, LOW_BYTES = 4, 2
"""Bytes of a number in float32 and bfloat16."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Sizes of a pass of one model."""

    calls: "_Calls"
    """Blocks that it has reached."""
    trained: frozenset[str] = frozenset()
    """Names of the parameters with a gradient."""
    num_bytes: int
    """Bytes that are kept: for the backward pass, or as targets."""
    flops: int
    """FLOPs of the pass, with those of its backward pass."""
    logits: Tensor | None
    """The logits, without data."""
    head_bytes: int = 0
    """Bytes of a teacher's head that is read in chunks."""


@final
class SizeProbe:
    """Measures stages, in their order."""

    def __init__(
        self,
        student: TappedModel,
        teacher: TappedModel | None,
        *,
        optimizer: Optimizer,
        settings: TrainingSettings,
        is_stored: bool = False,
    ) -> None:
        """Copy the models without weights.

        Args:
            student: The model that learns.
            teacher: The model that teaches, if any.
            optimizer: How the weights move.
            settings: Precision, micro-batches, device.
            is_stored: Whether stored targets stand for the teacher, which does not run.
        """
        self._shapes = ShapePasses()
        self._student = self._shapes.copied(student)
        # Of stored targets only the places are looked up, which need no module.
        self._teacher = (
            self._shapes.copied(teacher) if teacher is not None and not is_stored else teacher
        )
        self._optimizer, self._settings, self._is_stored = optimizer, settings, is_stored
        self._reached: frozenset[str] = frozenset()
        train(self._student.module)
        if self._teacher is not None and not is_stored:
            self._teacher.module.eval()

    def measure(self, stage: Stage, batches: Sequence[Batch]) -> tuple[StageSizes, list[Passes]]:
        """Return the sizes of the next stage, and its passes on each batch.

        Args:
            stage: The stage.
            batches: Micro-batches, such as a whole one and the share of a process; at least one.

        Raises:
            BindError: If a model has no such tap or cannot run, or the stage trains nothing.
        """
        student, teacher = self._student, self._teacher
        reads = merge_reads(
            [item.reads(student, teacher) for item in stage.objectives],
            full_student=stage.trainable == "all",
        )
        named = student.module.named_parameters()
        # Frozen as in training: the backward pass ends there, and gathers no unit below.
        frozen = self._reached if stage.trainable == "new" else frozenset()
        free = {name for name, parameter in named if parameter.requires_grad} - frozen
        passes = list[Passes]()
        with frozen_but(student.module, free):
            for batch in batches:
                student_pass = self._student_pass(reads, batch)
                teacher_pass = self._teacher_pass(reads, batch)
                passes.append(
                    Passes(
                        activations=student_pass.num_bytes
                        + (0 if teacher_pass is None else teacher_pass.num_bytes),
                        logits=self._logits_bytes(stage, student_pass, teacher_pass),
                        student_flops=student_pass.flops,
                        teacher_flops=0 if teacher_pass is None else teacher_pass.flops,
                    )
                )
        if not student_pass.trained:
            raise BindError(
                f"objectives must reach weights of the student that train; got none with "
                f"requires_grad and trainable={stage.trainable!r}"
            )
        self._reached |= student_pass.trained
        sizes = StageSizes(
            student=student_pass.calls.units(student_pass.trained, self._reached),
            teacher=() if teacher_pass is None else teacher_pass.calls.units(),
            teacher_copies=0 if teacher_pass is None else self._teacher_copies(),
            teacher_head=0 if teacher_pass is None else teacher_pass.head_bytes,
            moments=self._optimizer.moments,
            micro_batches=self._settings.gradient_accumulation_steps,
        )
        return sizes, passes

    def _student_pass(self, reads: Reads, batch: Batch) -> _Pass:
        model, parameters = self._student, list(self._student.module.parameters())
        has_logits = reads.student_logits or reads.student_head
        meter, calls = Meter(parameters), _Calls(model)
        with (
            self._shapes.running(),
            calls.watched(),
            self._autocast(self._settings.precision),
            meter.running(),
        ):
            states = self._forward("student", model, reads.student, batch, logits=has_logits)
        outputs = [tensor for tensor in _tensors(states) if tensor.requires_grad]
        free = {name: item for name, item in model.module.named_parameters() if item.requires_grad}
        trained = frozenset[str]()
        if outputs and free:
            with self._shapes.running(), meter.running():
                loss = torch.stack([tensor.float().sum() for tensor in outputs]).sum()
                gradients = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
            trained = frozenset(
                name for name, item in zip(free, gradients, strict=True) if item is not None
            )
        return _Pass(
            calls=calls,
            trained=trained,
            num_bytes=meter.saved_bytes,
            flops=meter.flops,
            logits=states.logits,
        )

    def _teacher_pass(self, reads: Reads, batch: Batch) -> _Pass | None:
        """Return the sizes of the teacher's pass; None if it does not run."""
        model, has_logits = self._teacher, reads.teacher_logits or reads.teacher_head
        if model is None or self._is_stored or not (reads.teacher or has_logits):
            return None
        meter, calls = Meter(), _Calls(model)
        with (
            torch.no_grad(),
            self._shapes.running(),
            calls.watched(),
            self._autocast(self._settings.precision_of_teacher),
            meter.running(),
        ):
            states = self._forward(
                "teacher", model, reads.teacher, batch.for_teacher, logits=has_logits
            )
        state_bytes = sum(tensor.nbytes for tensor in states.hidden.values())
        return _Pass(
            calls=calls,
            num_bytes=state_bytes,
            flops=meter.flops,
            logits=states.logits,
            head_bytes=self._head_bytes(model, batch) if reads.teacher_head else 0,
        )

    def _head_bytes(self, teacher: TappedModel, batch: Batch) -> int:
        """Return the bytes of the weights of a teacher's head."""
        empty = batch.for_teacher.map(self._shapes.emptied)
        head: LinearHead | None = None
        # A model without such a head is refused where the run is bound.
        with (
            suppress(BindError),
            torch.no_grad(),
            self._shapes.running(),
            teacher.open_taps((), logits=False, head=True) as forward,
        ):
            head = run_trial("teacher", forward, empty.inputs, empty.selected).head
        tensors = () if head is None else (head.weight, head.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _forward(
        self, role: str, model: TappedModel, places: Sequence[Place], batch: Batch, *, logits: bool
    ) -> Activations:
        empty = batch.map(self._shapes.emptied)
        with model.open_taps(places, logits=logits) as forward:
            return run_trial(role, forward, empty.inputs, empty.selected)

    def _autocast(self, precision: str) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def _logits_bytes(self, stage: Stage, student_pass: _Pass, teacher_pass: _Pass | None) -> int:
        """Return the bytes of logits and of a loss between them.

        Each model has its logits and, in float32, probabilities; the student has their gradient.
        """
        if student_pass.logits is None:
            return 0
        num_classes = student_pass.logits.shape[-1]
        rows = student_pass.logits.numel() // num_classes
        chunks = [chunk for chunk in map(_chunk, stage.objectives) if chunk is not None]
        if chunks:
            is_cpu = self._settings.device == "cpu"
            rows = min(rows, max(chunk_rows(num_classes, item, is_cpu=is_cpu) for item in chunks))
        sides = [student_pass.logits]
        if teacher_pass is not None and teacher_pass.logits is not None:
            sides.append(teacher_pass.logits)
        sizes = [side.element_size() + FLOAT_BYTES for side in sides]
        return rows * num_classes * (sum(sizes) + FLOAT_BYTES)

    def _teacher_copies(self) -> int:
        """Return the bytes of the weights that a teacher keeps in bfloat16 beside its own."""
        if self._teacher is None or self._settings.precision_of_teacher == "float32":
            return 0
        linear = (item for item in self._teacher.module.modules() if type(item) is nn.Linear)
        return LOW_BYTES * sum(
            item.weight.numel() for item in linear if item.weight.dtype == torch.float32
        )


@final
class _Calls:
    """Blocks that a pass reaches, and those whose output has a gradient."""

    def __init__(self, model: TappedModel) -> None:
        """Take the model."""
        self._paths, self._module = unit_paths(model), model.module
        self.forward: set[str] = set()
        self.backward: set[str] = set()

    def watched(self) -> ExitStack:
        """Return a context in which calls are noted."""
        stack = ExitStack()
        for path in self._paths:
            block = self._module.get_submodule(path)
            stack.callback(block.register_forward_hook(self._hook(path)).remove)
        return stack

    def _hook(self, path: str) -> Callable[[nn.Module, object, object], None]:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            self.forward.add(path)
            if any(isinstance(item, Tensor) and item.requires_grad for item in tree_leaves(output)):
                self.backward.add(path)

        return note

    def units(
        self, trained: Collection[str] = (), has_state: Collection[str] = ()
    ) -> tuple[Unit, ...]:
        """Return the root and the blocks.

        Args:
            trained: Names of the trained weights.
            has_state: Names of the weights with optimizer state.
        """
        members: dict[str, list[Weight]] = {"": [], **{path: [] for path in self._paths}}
        for name, parameter in self._module.named_parameters():
            owners = (path for path in self._paths if name.startswith(f"{path}."))
            members[next(owners, "")].append(
                Weight(
                    shape=tuple(parameter.shape),
                    item_bytes=parameter.element_size(),
                    trained=name in trained,
                    has_state=name in has_state,
                )
            )
        return tuple(
            Unit(
                weights=tuple(weights),
                in_forward=not path or path in self.forward,
                # The backward pass begins at the root's output.
                in_backward=path in self.backward if path else bool(trained),
            )
            for path, weights in members.items()
        )


def _chunk(objective: Objective) -> Chunk | None:
    chunk: Chunk | None = getattr(objective, "chunk", None)
    return chunk


def _tensors(states: Activations) -> list[Tensor]:
    return [*states.hidden.values(), *([] if states.logits is None else [states.logits])]
