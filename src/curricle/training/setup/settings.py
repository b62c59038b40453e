"""Settings of training: precision, memory, speed, intervals.

Apart from precision, clipping and rounding they do not change the trained student.
"""

import importlib
import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Annotated, Literal, final

import torch
from pydantic import Field

from curricle.errors import SpecError
from curricle.models.inference import Inference
from curricle.training.setup.compatibility import check_compatible
from curricle.training.setup.divergence import OnDivergence, RollBack, StopRun
from curricle.training.setup.placement import Device, Placement, Precision, find_placement
from curricle.training.setup.processes import data_parallel
from curricle.values import LONGEST_NAME, Line, value

BestMetric = Annotated[Line, Field(min_length=1, max_length=LONGEST_NAME)]
EXCLUSIVE = MappingProxyType(
    {
        "compiled_steps": 1,
        "max_grad_norm": None,
        "gradient_accumulation_steps": 1,
        "prefetch": "none",
        "parallel": "none",
    }
)
"""Settings that exclude others, with the value that switches them off."""
TIMEOUT = 1800.0
"""Seconds within which a process must answer by default, those of torch for gloo."""


def _is_single(parallel: str) -> bool:
    return parallel == "none"


def _is_whole(teacher_parallel: str) -> bool:
    return teacher_parallel == "whole"


def _is_one(replicas: int) -> bool:
    return replicas == 1


def _is_usual_timeout(timeout: float) -> bool:
    return timeout == TIMEOUT


def _is_pair(number: int) -> bool:
    return number == 2  # noqa: PLR2004 - the default


def _is_stop(reaction: str) -> bool:
    return reaction == "stop"


def _is_plain_stop(reaction: OnDivergence) -> bool:
    return reaction == StopRun()


@final
@value
class TrainingSettings:
    """How the engine runs."""

    device: Device = "auto"
    """Where the models run; `auto` takes a GPU if there is one."""
    parallel: Literal["none", "ddp", "fsdp2", "auto"] = Field(default="none", exclude_if=_is_single)
    """Processes of a launcher such as torchrun, which divide every batch: with `ddp` each holds
    both models (`DistributedDataParallel`), with `fsdp2` the teacher and a share of the student and
    of the optimizer's state (`fully_shard`). `auto` takes `fsdp2` if weights, gradients and moments
    would fill more than half of a process's memory, else `ddp`. Without a launcher there is one
    process; `none` refuses several. The loss is that of the whole batch, so results agree with one
    process within rounding, but for dropout and batch statistics."""
    teacher_parallel: Literal["whole", "fsdp2"] = Field(default="whole", exclude_if=_is_whole)
    """The teacher in several processes: `whole` in each, or with `fsdp2` a share of its weights in
    each, which needs `parallel: fsdp2`. `parallel: auto` takes `fsdp2` for a teacher that alone
    would fill more than half of a process's memory, unless there is a start. Results do not change;
    the teacher's blocks are gathered for every pass, and it stays whole only in the memory where it
    was loaded."""
    replicas: int = Field(default=1, gt=0, exclude_if=_is_one)
    """Number of groups of processes that each hold the student once, with `parallel: fsdp2`.
    Weights are gathered inside of a group, as of the GPUs of a machine, and gradients are added up
    over all. Divides the number of processes."""
    timeout: float = Field(default=TIMEOUT, gt=0, exclude_if=_is_usual_timeout)
    """Seconds within which a process of a launcher must answer the others, the time of a checkpoint
    and of an evaluation included; else the run ends and the process is named."""
    precision: Precision = "float32"
    """Precision of the forward passes; bfloat16 by autocast, weights stay float32."""
    teacher_precision: Precision | None = None
    """Precision of the teacher's passes while it teaches; None takes `precision`. On a CPU a wide
    teacher is faster in bfloat16 and a student with narrow heads in float32."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Parts into which a batch is cut to save memory; the loss is that of the whole batch."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; None does not clip."""
    eval_every: int = Field(default=250, gt=0)
    """Steps between evaluations; the end of the run is always evaluated."""
    log_every: int = Field(default=50, gt=0)
    """Steps between records of the training loss."""
    save_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints to resume from; None writes none."""
    keep_checkpoints: int = Field(default=2, gt=0, exclude_if=_is_pair)
    """Number of checkpoints that stay, the newest included; the one before it serves where the
    newest is damaged (`curricle resume --fallback`)."""
    async_save: bool = Field(default=False, exclude_if=operator.not_)
    """Whether checkpoints are written in the background: a step with a checkpoint copies all
    tensors to host memory, and a thread writes the files while the next steps are taken. At most
    one checkpoint is being written; the next one, a return to a checkpoint, an evaluation with
    `keep_best` and the end of the run wait for it, and an error of the disk is raised there."""
    keep_best: bool | BestMetric = Field(default=False, exclude_if=operator.not_)
    """Whether the student ends with the weights of its best evaluation, by the metric of the run or
    by one that is named here; of equal values the earlier counts. A teacher that a spec trains
    keeps its last weights."""
    on_divergence: OnDivergence = Field(default=StopRun(), exclude_if=_is_plain_stop)
    """Reaction to a step whose loss is not finite or explodes: `stop`, `skip` a limited number of
    steps, or `roll_back` to the newest checkpoint with a lower learning rate. All but the plain
    `stop` look at the loss of each step, for which a GPU is waited for."""
    on_out_of_memory: Literal["stop", "halve"] = Field(default="stop", exclude_if=_is_stop)
    """Reaction to a step for which the memory does not suffice. `stop` ends the run, naming stage,
    batch and remedy; `halve` doubles `gradient_accumulation_steps` for the rest of the run and
    takes the step again, so that the batch of the step stays the same. Results then agree within
    rounding. On a CPU it works where an allocation fails; a system that overcommits memory kills
    the process instead. A lack of memory in the update ends the run: smaller micro-batches need the
    same there."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of torch; None leaves torch's choice."""
    compile: Literal["none", "student", "teacher", "both"] = "none"
    """Models whose blocks are compiled by `torch.compile`. Compiling takes seconds to minutes at
    the first steps of a stage; blocks with taps inside stay as they are. Results agree within
    rounding; the noise of compiled dropout is another."""
    prefetch: Literal["none", "batch", "targets"] = "none"
    """Prefetch in a background thread. `batch` prepares the next batch; `targets` also runs the
    teacher on it, on a GPU beside the student's step. Results do not change; inputs and targets of
    two steps are in memory, and on a CPU twice as many threads run."""
    compiled_steps: int = Field(default=1, gt=0)
    """Number of optimizer steps fused into one compiled graph. Helps small models that are limited
    by Python overhead. 1 disables it. Results agree with single steps within rounding."""

    def __post_init__(self) -> None:
        """Check that no two settings exclude each other.

        Raises:
            SpecError: If two do, fused steps do not fit between two records, or there is nothing
                to roll back to.
        """
        check_compatible(self.features(), SpecError)
        if self.replicas > 1 and self.parallel != "fsdp2":
            raise SpecError(
                f"'replicas' has no effect with parallel={self.parallel!r}, where each process "
                f"holds the student whole; choose 'fsdp2', or remove it (got {self.replicas})"
            )
        if self.teacher_parallel != "whole" and self.parallel != "fsdp2":
            raise SpecError(
                f"'teacher_parallel' must be 'whole' with parallel={self.parallel!r}; got "
                f"{self.teacher_parallel!r}; 'parallel: fsdp2' divides student and teacher"
            )
        if isinstance(self.on_divergence, RollBack) and self.save_every is None:
            raise SpecError(
                "'save_every' must be set where 'on_divergence' rolls back to a checkpoint; got "
                "None, which writes none"
            )
        # A block ends where something is due, so a longer one would never be taken as a whole and
        # every step would be single.
        shortest = self._shortest_interval
        if self.compiled_steps > 1 and self.compiled_steps > shortest:
            raise SpecError(
                f"'compiled_steps' must not exceed the {shortest} steps between two records, "
                f"evaluations or checkpoints, at which it ends; got {self.compiled_steps}"
            )

    @property
    def _shortest_interval(self) -> int:
        """Return the steps between two records, evaluations or checkpoints."""
        return min(self.intervals)

    def features(self, path: str = "") -> dict[str, str]:
        """Return the settings that are on, for `compatibility.check_compatible`.

        Args:
            path: Prefix of their names in error sentences, such as `engine.`.
        """
        features = {
            name: f"'{path}{name}={getattr(self, name)}'"
            for name, default in EXCLUSIVE.items()
            if getattr(self, name) != default
        }
        # One feature a model, since each excludes other things.
        sides = {"student": self.compiles_student, "teacher": self.compiles_teacher}
        features |= {
            f"compile {side}": f"'{path}compile={self.compile}'"
            for side, is_compiled in sides.items()
            if is_compiled
        }
        if self.parallel == "fsdp2":
            features["fsdp2"] = f"'{path}parallel=fsdp2'"
        if self.teacher_parallel == "fsdp2":
            features["teacher_parallel"] = f"'{path}teacher_parallel=fsdp2'"
        if self.prefetch == "targets":
            features["prefetch targets"] = f"'{path}prefetch=targets'"
        reaction = self.on_divergence
        if reaction.kind != "stop":
            features[reaction.kind] = f"'{path}on_divergence.kind={reaction.kind}'"
        if reaction.explosion is not None:
            features["explosion"] = f"'{path}on_divergence.explosion={reaction.explosion:g}'"
        if self.on_out_of_memory == "halve":
            features["halve"] = f"'{path}on_out_of_memory=halve'"
        # A property of three settings together; no single one of them is at fault.
        if self._shortest_interval == 1:
            features["every step"] = "an interval of 1 step between records or evaluations"
        return features

    @property
    def compiles_student(self) -> bool:
        """Return whether loss and gradient of the student are compiled."""
        return self.compile in {"student", "both"}

    @property
    def compiles_teacher(self) -> bool:
        """Return whether the teacher's blocks are compiled."""
        return self.compile in {"teacher", "both"}

    @property
    def placement(self) -> Placement:
        """Return where models and batches are put."""
        # The size of a student that `auto` depends on is known where it is bound.
        if self.parallel in {"ddp", "auto"}:
            return data_parallel(self.device, self.timeout)
        if self.parallel == "fsdp2":
            # Imported where it is needed: this part of torch takes a second to import.
            sharding = importlib.import_module("curricle.training.setup.sharding")
            placement: Placement = sharding.fully_sharded(self.device, self.timeout, self.replicas)
            return placement
        return find_placement(self.device)

    @property
    def intervals(self) -> tuple[int, ...]:
        """Return the steps between records, evaluations and, if any are written, checkpoints."""
        return tuple(filter(None, (self.log_every, self.eval_every, self.save_every)))

    @property
    def checks_each_loss(self) -> bool:
        """Return whether the loss of each step is judged, on a GPU too."""
        return not _is_plain_stop(self.on_divergence)

    @property
    def best_metric(self) -> str:
        """Return the metric that `keep_best` names; empty for that of the run, or none."""
        return self.keep_best if isinstance(self.keep_best, str) else ""

    @property
    def precision_of_teacher(self) -> Precision:
        """Return the precision of the teacher's passes while it teaches."""
        return self.teacher_precision or self.precision

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the student's precision, and the teacher's where it is another."""
        # Equal ones count once: the tuple enters the digest of a run, which must not depend on
        # whether the default was spelled out. The teacher's is the last.
        return tuple(dict.fromkeys((self.precision, self.precision_of_teacher)))

    @property
    def teacher_inference(self) -> Inference:
        """Return how the teacher is made fast while it teaches."""
        # In float32 a copy in lower precision would change what the teacher computes; in bfloat16
        # autocast would make the same cast at every pass.
        is_wide = self.precision_of_teacher == "float32"
        return Inference(linear=None if is_wide else torch.bfloat16, compiled=self.compiles_teacher)

    @contextmanager
    def stated_threads(self) -> Iterator[None]:
        """Run a block with the stated number of CPU threads; torch's own comes back after.

        Yields:
            Nothing.
        """
        # The number belongs to the process, so without a way back one run would slow down whatever
        # the program does after it.
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the student's forward passes run."""
        return self.placement.autocast(self.precision)

    def teacher_autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the teacher's forward passes run while it teaches."""
        return self.placement.autocast(self.precision_of_teacher)
