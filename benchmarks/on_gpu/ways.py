"""Ways to take the steps that `benchmarks/gpu.py` measures.

Each way opens a function that takes the next step and does not wait for a GPU.

- `curricle`: the engine's `Stepper`, as a run takes its steps between two records;
- `by hand`: an uncompiled loop with the same loss, batches in pinned memory, no block behind the
  tap, and logits at the selected positions only;
- `trainer`: the Trainer of transformers with its own loss of labels, or with `compute_loss`
  overridden; it makes logits at all positions.
"""

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from on_gpu.tasks import Task
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import curricle
from curricle.models.wrapping import tapped
from curricle.objectives.projections import Gaussian
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.loop.stepping import Stepper, stepping
from curricle.training.setup.optimizers import AdamW
from curricle.training.setup.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
from hf_trainer import Distilling, arguments

STAGES = ("early", "late", "logits", "one_shot", "labels")
"""Stages of extraction, and the curricula of one stage."""
RATE, BETAS, TOTAL = 1e-4, (0.9, 0.95), "40000 steps"
Step = Callable[[], object]


@dataclass(frozen=True)
class Models:
    """The models of a task, whose student is copied for each measurement."""

    task: Task
    device: str
    teacher: PreTrainedModel
    student: PreTrainedModel

    @classmethod
    def of(cls, task: Task, device: str) -> "Models":
        """Return new models."""
        return cls(task, device, task.model("teacher", device), task.model("student", device))

    def fresh_student(self) -> PreTrainedModel:
        """Return a copy of the student."""
        return copy.deepcopy(self.student)


def bound(models: Models, stage: str, settings: Mapping[str, Any]) -> BoundRun:
    """Return a run with a stage; the setting `chunk` is that of the loss of logits."""
    settings = dict(settings)
    loss = curricle.MatchLogits(chunk=settings.pop("chunk", None))
    curricula: dict[str, Callable[[], curricle.Curriculum]] = {
        "one_shot": lambda: curricle.one_shot(total=TOTAL, objective=loss),
        "labels": lambda: curricle.from_labels(total=TOTAL),
    }
    pairs = [curricle.LayerPair(student=tap, teacher=of) for tap, of in models.task.pairs]
    layers_first = partial(curricle.extraction, total=TOTAL, pairs=pairs, final_objective=loss)
    curriculum = curricula.get(stage, layers_first)()
    return bind(
        curriculum,
        student=tapped(models.fresh_student()),
        teacher=None if stage == "labels" else LiveTeacher(tapped(models.teacher)),
        stream=models.task.stream,
        optimizer=AdamW(learning_rate=RATE, betas=BETAS),
        settings=TrainingSettings(device=models.device, precision="bfloat16", **settings),
        seed=0,
    )


def number_of(stage: str) -> int:
    """Return the number of a stage in its curriculum."""
    return ("early", "late", "logits").index(stage) if stage in {"late", "logits"} else 0


@contextmanager
def engine_steps(run: BoundRun, stage: str) -> Iterator[Stepper]:
    """Open the steps of the engine.

    Yields:
        The stepper.
    """
    optimizer = run.optimizer.build(run.student.module.parameters())
    with ExitStack() as stack:
        stack.enter_context(run.settings.stated_threads())
        if run.teacher is not None:
            stack.enter_context(run.teacher.teaching(run.settings.teacher_inference))
        stepper = stack.enter_context(stepping(run, run.stages[number_of(stage)], optimizer))
        run.student.module.train()
        yield stepper


@contextmanager
def with_curricle(
    models: Models, stage: str, settings: Mapping[str, Any], *, run: BoundRun | None = None
) -> Iterator[Step]:
    """Open the steps of the engine as a function.

    Yields:
        The function.
    """
    run = bound(models, stage, settings) if run is None else run
    with engine_steps(run, stage) as stepper:
        step, stop = stepper.start, stepper.stage.span.end

        def take() -> object:
            nonlocal step
            step += 1
            return stepper.take(step - 1, stop)

        yield take


class _ReachedError(BaseException):
    """Ends a forward pass behind a block."""


@dataclass(frozen=True)
class HandWritten:
    """A loop by hand with the usual means of speed, but not compiled."""

    models: Models
    student: PreTrainedModel
    optimizer: torch.optim.Optimizer
    stage: str
    matrix: Tensor | None

    @classmethod
    def of(cls, models: Models, stage: str, *, optimizer: str = "fused") -> "HandWritten":
        """Return the loop with a new student."""
        student, task, matrix = models.fresh_student(), models.task, None
        keywords = {optimizer: True}
        groups = torch.optim.AdamW(
            student.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0, **keywords
        )
        if stage in {"early", "late"}:
            widths = {"student_width": task.student[1], "teacher_width": task.teacher[1]}
            matrix = Gaussian().matrix(seed=0, name="by hand", **widths).to(models.device)
        return cls(models, student, groups, stage, matrix)

    def step(self, number: int) -> Tensor:
        """Take a step.

        Returns:
            Its loss.
        """
        task, device = self.models.task, self.models.device
        batch = task.stream.batch(number)
        if device == "cuda":
            batch = batch.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        self.optimizer.zero_grad()
        inputs, selected = batch.inputs, batch.selected
        with torch.autocast(device, torch.bfloat16):
            if self.stage in {"early", "late"}:
                loss = self._state_error(inputs, batch.valid)
            elif self.stage == "labels":
                logits = self._logits(self.student, inputs, selected)
                loss = functional.cross_entropy(logits.float(), batch.labels)
            else:
                with torch.no_grad():
                    target = self._logits(self.models.teacher, inputs, selected).float()
                logits = self._logits(self.student, inputs, selected).float()
                loss = functional.kl_div(
                    logits.log_softmax(-1),
                    target.log_softmax(-1),
                    log_target=True,
                    reduction="batchmean",
                )
        loss.backward()
        self.optimizer.step()
        return loss

    def _logits(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        task = self.models.task
        states = task.body(model)(**inputs).last_hidden_state.flatten(0, 1)
        return task.logits(model, states.index_select(0, rows))

    def _state_error(self, inputs: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        student_tap, teacher_tap = self.models.task.pairs[number_of(self.stage)]
        with torch.no_grad():
            target = _normalized(self._state(self.models.teacher, teacher_tap, inputs, valid))
            target = _normalized(target @ self.matrix.mT)
        state = _normalized(self._state(self.student, student_tap, inputs, valid))
        return functional.mse_loss(state, target.float())

    def _state(
        self, model: PreTrainedModel, tap: int, inputs: Mapping[str, Tensor], valid: Tensor | None
    ) -> Tensor:
        states: list[Tensor] = []

        def note(_module: nn.Module, _inputs: object, output: Any) -> None:  # noqa: ANN401
            states.append(output if isinstance(output, Tensor) else output[0])
            raise _ReachedError

        handle = self.models.task.blocks(model)[tap - 1].register_forward_hook(note)
        try:
            self.models.task.body(model)(**inputs)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return states[0].flatten(0, 1) if valid is None else states[0][valid]


def _normalized(states: Tensor) -> Tensor:
    return functional.layer_norm(states.float(), states.shape[-1:])


@contextmanager
def by_hand(models: Models, stage: str, settings: Mapping[str, Any]) -> Iterator[Step]:
    """Open the steps of the hand-written loop as a function.

    Yields:
        The function.
    """
    loop, number = HandWritten.of(models, stage, **settings), -1

    def take() -> object:
        nonlocal number
        number += 1
        return loop.step(number)

    yield take


class Rows(Dataset[dict[str, Tensor]]):
    """Whole batches of a task, as a data set."""

    def __init__(self, task: Task, steps: int) -> None:
        """Take the data of a task."""
        self._stream, self._steps = task.stream, steps

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return a batch."""
        return self._stream.row(step)


class _Labels(Trainer):
    """The Trainer with its own loss, on batches that are ready."""

    def get_train_dataloader(self) -> Any:  # noqa: ANN401
        """Return ready batches."""
        return DataLoader(
            self.train_dataset, batch_size=None, pin_memory=self.args.device.type == "cuda"
        )


class _Clock(TrainerCallback):
    """Calls a function after each step."""

    def __init__(self, after: Callable[[int], None]) -> None:
        """Take the function."""
        self._after = after

    def on_step_end(self, _args: object, state: Any, _control: object, **_: object) -> None:  # noqa: ANN401
        """Call the function with the number of steps."""
        self._after(state.global_step)


def train_with_trainer(
    models: Models, stage: str, *, steps: int, after: Callable[[int], None]
) -> None:
    """Take steps with the Trainer of transformers.

    Args:
        models: The models.
        stage: `labels`, or `one_shot` for the logits of the teacher.
        steps: Number of steps.
        after: Function that is called with the number of steps after each of them.
    """
    student, rows = models.fresh_student(), Rows(models.task, steps)
    with tempfile.TemporaryDirectory() as folder:
        options = arguments(
            folder,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=True,
            optim="adamw_torch_fused",
            use_cpu=models.device == "cpu",
        )
        keywords = {"args": TrainingArguments(**options), "callbacks": [_Clock(after)]}
        if stage == "labels":
            trainer: Trainer = _Labels(model=student, train_dataset=rows, **keywords)
        else:
            lesson = SimpleNamespace(
                student=student,
                teacher=models.teacher.eval(),
                rows=lambda: rows,
                loader=partial(
                    DataLoader, rows, batch_size=None, pin_memory=torch.cuda.is_available()
                ),
            )
            trainer = Distilling(lesson, [], **keywords)
        trainer.train()
