"""Do the declared parts fit together, and what does each stage cost?

Binding gives a curriculum its models, data and device. It resolves taps to places, draws the
projections, checks widths, vocabularies and teacher checkpoints, finds which parameters each
stage reaches, and measures the FLOPs and memory of one step of each stage, all before a weight
has moved. `curricle plan` prints what it finds.

Design: what a stage reaches is found by running one step of it and asking autograd, so it is
right for every module, tied weights and unused branches included.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from curricle import seeding
from curricle.curriculum.stages import Curriculum, Stage, TeacherReference
from curricle.data.streams import Batch, Stream
from curricle.errors import BindError
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.objectives.terms import BoundObjective, Objective, Reads, Sample
from curricle.records import StagePlan
from curricle.teachers.live import LiveTeacher
from curricle.training.optimizers import AdamW, Optimizer
from curricle.training.settings import EngineSettings


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One objective of a stage, bound."""

    weight: float
    """Factor in the stage's loss."""
    needs_teacher: bool
    """Whether it has a target from a teacher."""
    objective: BoundObjective
    """The bound objective."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundStage:
    """A stage with its models known."""

    declared: Stage
    """The stage as declared."""
    start: int
    """First step of the stage, counted over the whole run."""
    end: int
    """Step after the last."""
    terms: tuple[Term, ...]
    """The bound objectives."""
    reads: Reads
    """What both models must show, all objectives together."""
    trained: frozenset[str]
    """Names of the student parameters that the stage changes."""
    plan: StagePlan
    """What the stage is and costs, for people."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRun:
    """Everything that the engine executes."""

    name: str
    """Name of the curriculum."""
    student: TappedModel
    """The model that learns."""
    teacher: LiveTeacher | None
    """The model that teaches, if any stage needs one."""
    stages: tuple[BoundStage, ...]
    """The bound stages, in order."""
    stream: Stream
    """Training data."""
    optimizer: Optimizer
    """How the weights move."""
    settings: EngineSettings
    """How the engine runs."""
    seed: int
    """Seed of the run."""
    draws_noise: bool
    """Whether the student's forward pass draws from torch's global generator, as dropout does."""

    @property
    def teachers(self) -> tuple[TeacherReference, ...]:
        """Return the teachers that the stages read."""
        stages = tuple(stage.declared for stage in self.stages)
        return Curriculum(name=self.name, stages=stages).teachers

    @property
    def num_steps(self) -> int:
        """Return the length of the run."""
        return self.stages[-1].end


def bind(
    curriculum: Curriculum,
    *,
    student: TappedModel,
    teacher: LiveTeacher | None,
    stream: Stream,
    optimizer: Optimizer,
    settings: EngineSettings,
    seed: int,
) -> BoundRun:
    """Return a curriculum bound to models and data.

    Args:
        curriculum: What to run.
        student: The model that learns; moved to the device.
        teacher: The model that teaches; moved to the device.
        stream: Training data.
        optimizer: How the weights move.
        settings: How the engine runs.
        seed: Seed of the run.

    Raises:
        BindError: If the parts do not fit; the stage is named.
    """
    device = settings.torch_device()
    student.module.to(device)
    if teacher is not None:
        teacher.model.module.to(device)
    elif curriculum.teachers:
        raise BindError(f"'teacher' must be given to run {curriculum.name!r}; got none")
    probe = _Probe(student, teacher, stream, optimizer, settings, seed)
    bound: list[BoundStage] = []
    reached: frozenset[str] = frozenset()
    for stage in curriculum.stages:
        start = bound[-1].end if bound else 0
        try:
            next_stage = probe.stage(stage, start=start, reached=reached)
        except BindError as error:
            raise BindError(f"stage {stage.name!r}: {error}") from None
        bound.append(next_stage)
        reached |= next_stage.trained
    _check_order(bound, student)
    return BoundRun(
        name=curriculum.name,
        student=student,
        teacher=teacher,
        stages=tuple(bound),
        stream=stream,
        optimizer=optimizer,
        settings=settings,
        seed=seed,
        draws_noise=probe.draws_noise,
    )


def _check_order(stages: Sequence[BoundStage], student: TappedModel) -> None:
    """Refuse two stages of one kind at the same place, which `uniform` gives if blocks run out."""
    seen: dict[tuple[object, ...], str] = {}
    for stage in stages:
        if not stage.reads.student or stage.reads.student_logits:
            continue
        key = (stage.reads.student, stage.reads.teacher, stage.declared.teacher)
        if key in seen:
            raise BindError(
                f"stages {seen[key]!r} and {stage.declared.name!r} must read different taps; both "
                f"read {stage.plan.taps!r}: there are more layer stages than the student's "
                f"{student.depth} blocks"
            )
        seen[key] = stage.declared.name


@final
class _Probe:
    """Runs one step of each stage without changing anything."""

    def __init__(
        self,
        student: TappedModel,
        teacher: LiveTeacher | None,
        stream: Stream,
        optimizer: Optimizer,
        settings: EngineSettings,
        seed: int,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._stream, self._optimizer = stream, optimizer
        self._settings, self._seed = settings, seed
        self._whole = stream.batch(0)
        self._part = self._whole.split(settings.accumulation)[0].to(settings.torch_device())
        self.draws_noise = False

    def stage(self, stage: Stage, *, start: int, reached: frozenset[str]) -> BoundStage:
        each = [self._reads(objective) for objective in stage.objectives]
        reads = _merge(each, whole=stage.trains == "all")
        needs_teacher = any(objective.needs_teacher for objective in stage.objectives)
        with self._undisturbed():
            shown, teacher_flops = self._teach(reads) if needs_teacher else (None, 0)
            before = seeding.global_state()
            student, forward_flops = self._counted(
                lambda: _read(self._student, self._part, reads.student, logits=reads.student_logits)
            )
            self.draws_noise |= before != seeding.global_state()
            terms = self._terms(
                stage, each, Sample(student=student, teacher=shown, seed=self._seed)
            )
            cost = self._backward(terms, student, shown)
        trained = cost.reached - reached if stage.trains == "own" else cost.reached
        if not trained:
            raise BindError(
                f"'trains' must leave something to train; got {stage.trains!r} where earlier "
                f"stages have reached all {len(cost.reached)} parameters"
            )
        steps = stage.duration.steps(
            batch_size=self._stream.batch_size, tokens_per_batch=self._stream.tokens_per_batch
        )
        parts = self._settings.accumulation
        plan = StagePlan(
            name=stage.name,
            teacher=_teacher_words(stage) if needs_teacher else "none",
            **_words(terms),
            steps=steps,
            student_flops=(forward_flops + cost.student_flops) * parts,
            teacher_flops=(teacher_flops + cost.target_flops) * parts,
            trained_parameters=self._count(trained),
            memory_bytes=self._memory(trained, cost.saved_bytes),
        )
        return BoundStage(
            declared=stage,
            start=start,
            end=start + steps,
            terms=terms,
            reads=reads,
            trained=trained,
            plan=plan,
        )

    def _reads(self, objective: Objective) -> Reads:
        teacher = None if self._teacher is None else self._teacher.model
        return objective.reads(self._student, teacher)

    def _teach(self, reads: Reads) -> tuple[Activations, int]:
        if self._teacher is None:
            raise BindError("'teacher' must be given; got none")
        model = self._teacher.model
        with torch.no_grad():
            return self._counted(
                lambda: _read(model, self._part, reads.teacher, logits=reads.teacher_logits)
            )

    def _terms(self, stage: Stage, each: Sequence[Reads], sample: Sample) -> tuple[Term, ...]:
        residual = self._student.is_residual and (
            self._teacher is None or self._teacher.model.is_residual
        )
        return tuple(
            Term(
                weight=objective.weight,
                needs_teacher=objective.needs_teacher,
                objective=objective.bind(reads, sample, is_residual=residual),
            )
            for objective, reads in zip(stage.objectives, each, strict=True)
        )

    def _backward(
        self, terms: Sequence[Term], student: Activations, teacher: Activations | None
    ) -> "_StepCost":
        batch = self._part
        with torch.no_grad(), FlopCounterMode(display=False) as targets_counter:
            targets = [
                term.objective.target(teacher, batch)
                if term.needs_teacher and teacher is not None
                else None
                for term in terms
            ]
        saved = _SavedBytes()
        named = dict(self._student.module.named_parameters())
        free = {name: one for name, one in named.items() if one.requires_grad}
        with FlopCounterMode(display=False) as counter, saved.watching():
            losses = [
                term.objective.total(student, target, batch)
                for term, target in zip(terms, targets, strict=True)
            ]
            for term in terms:
                term.objective.count(self._whole)
            loss = torch.stack(losses).sum()
            grads = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
        reached = {name for name, grad in zip(free, grads, strict=True) if grad is not None}
        return _StepCost(
            reached=frozenset(reached),
            student_flops=counter.get_total_flops(),
            target_flops=targets_counter.get_total_flops(),
            saved_bytes=saved.total + self._forward_saved,
        )

    def _counted(self, forward: Callable[[], Activations]) -> tuple[Activations, int]:
        saved = _SavedBytes()
        with (
            self._settings.autocast(),
            FlopCounterMode(display=False) as counter,
            saved.watching(),
        ):
            shown = forward()
        self._forward_saved = saved.total
        return shown, counter.get_total_flops()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Put back what a forward pass changes: buffers, training modes, generators."""
        module = self._student.module
        kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
        was_training = module.training
        teacher_modes = _modes(self._teacher.model.module) if self._teacher is not None else []
        module.train()
        if self._teacher is not None:
            self._teacher.model.module.eval()
        try:
            with seeding.scoped(self._seed, "probe"):
                yield
        finally:
            module.train(was_training)
            for part, mode in teacher_modes:
                part.training = mode
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)

    def _count(self, names: frozenset[str]) -> int:
        named = dict(self._student.module.named_parameters())
        return sum(named[name].numel() for name in names)

    def _memory(self, names: frozenset[str], saved_bytes: int) -> int:
        """Return bytes of trained weights, gradients, optimizer state and saved activations."""
        moments = 2 if isinstance(self._optimizer, AdamW) else int(self._optimizer.momentum > 0)
        return self._count(names) * 4 * (2 + moments) + saved_bytes


@final
@dataclass(frozen=True, slots=True)
class _StepCost:
    """What one probing step has found."""

    reached: frozenset[str]
    student_flops: int
    target_flops: int
    saved_bytes: int


@final
class _SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    @property
    def total(self) -> int:
        return sum(self._seen.values())

    def watching(self) -> Any:  # noqa: ANN401 - torch does not export the context's type
        def keep(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                storage = tensor.untyped_storage()
                self._seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def _read(
    model: TappedModel, batch: Batch, places: Sequence[Place], *, logits: bool
) -> Activations:
    with model.reading(places, logits=logits) as read:
        return read(batch.inputs, batch.selected)


def _merge(each: Sequence[Reads], *, whole: bool) -> Reads:
    return Reads(
        student=tuple(dict.fromkeys(place for reads in each for place in reads.student)),
        teacher=tuple(dict.fromkeys(place for reads in each for place in reads.teacher)),
        student_logits=whole or any(reads.student_logits for reads in each),
        teacher_logits=any(reads.teacher_logits for reads in each),
    )


def _words(terms: Sequence[Term]) -> dict[str, str]:
    described = [term.objective.describe() for term in terms]
    joined = [" + ".join(dict.fromkeys(words)) for words in zip(*described, strict=True)]
    return dict(zip(("taps", "objective", "projection", "widths"), joined, strict=True))


def _teacher_words(stage: Stage) -> str:
    return "final" if stage.teacher == "final" else f"step {stage.teacher}"


def _modes(module: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(part, part.training) for part in module.modules()]
