"""Binding of a curriculum to models, data and placement, with checks that they fit together.

Binding resolves taps to places, draws the projections, checks widths and vocabularies, and plans
the steps of each stage, all before a weight has moved; reach and cost of the stages come from
`bound_stages`. `curricle plan` prints the result, also before the teacher's checkpoints exist:
`loop.engine` checks that they are there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from curricle.curriculum.durations import Duration, UnlessExplained
from curricle.curriculum.initialization import AutoStart
from curricle.curriculum.stages import Curriculum, Saved, Stage, TeacherReference
from curricle.data.loader_workers import ended_workers
from curricle.data.streams import Stream, examples_per_epoch
from curricle.data.text.paired import PairedTexts
from curricle.errors import BindError, rule
from curricle.models.aliasing import check_apart
from curricle.models.eligibility import (
    check_present,
    check_real,
    check_trainable,
    weight_notes,
)
from curricle.models.restoring import mode_notes
from curricle.models.tapped import Place, TappedModel, tap_number
from curricle.models.weights import architecture
from curricle.objectives.base import Objective, explained_objective
from curricle.objectives.hidden import LayerPair
from curricle.objectives.labels import labeled_output
from curricle.objectives.logits import output_notes, temperature_notes
from curricle.records import StagePlan
from curricle.teachers.live import LiveTeacher
from curricle.teachers.shared import SharedTeacher
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.batches import (
    TableLimit,
    check_epochs,
    check_token_lengths,
    epoch_notes,
    position_notes,
)
from curricle.training.binding.bound_stages import BoundStage, StageProbe
from curricle.training.binding.causality import check_causal
from curricle.training.binding.start_choice import choose_start
from curricle.training.binding.starting import BoundStart
from curricle.training.binding.timeline import check_rule, plan_spans
from curricle.training.setup.optimizers import AdamW, Optimizer
from curricle.training.setup.placement import place_model
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.sizing import settings_by_size
from curricle.training.setup.torch_state import standard_state, surrounding_notes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRun:
    """Everything that the engine executes."""

    name: str
    """Name of the curriculum."""
    student: TappedModel
    """The model that learns."""
    teacher: LiveTeacher | SharedTeacher | StoredTeacher | None
    """The model that teaches, or its stored targets, if any stage needs one."""
    stages: tuple[BoundStage, ...]
    """The bound stages, in order."""
    stream: Stream
    """Training data."""
    optimizer: Optimizer
    """How the weights move."""
    settings: TrainingSettings
    """How the engine runs."""
    seed: int
    """Seed of the run."""
    draws_noise: bool
    """Whether the student's forward pass draws from torch's global generator, as dropout does."""
    draws_foreign_noise: bool = False
    """Whether it depends on the global generators of Python or numpy."""
    warm_start: BoundStart | None = None
    """Initialization before the first step, if any."""
    saved: Saved = "drop"
    """Use of the planned steps that a stage does not take."""
    notes: tuple[str, ...] = ()
    """Decisions made by default, one sentence each; see `RunRecord.notes`."""
    tables: tuple[TableLimit, ...] = ()
    """Index ranges of the embeddings of the models."""

    @property
    def teachers(self) -> tuple[TeacherReference, ...]:
        """Return the teachers that the stages read."""
        stages = tuple(stage.declared for stage in self.stages)
        # The rule of which teachers are read is that of the curriculum, a start included.
        start = None if self.warm_start is None else self.warm_start.declared
        return Curriculum(name=self.name, stages=stages, init=start).teachers

    @property
    def objectives(self) -> list[Objective]:
        """Return the objectives of all stages as declared."""
        return [term for stage in self.stages for term in stage.declared.objectives]

    @property
    def is_noisy(self) -> bool:
        """Return whether the student's forward pass draws from any global generator."""
        return self.draws_noise or self.draws_foreign_noise

    @property
    def has_buffers(self) -> bool:
        """Return whether the student has state that is no parameter, as a running mean."""
        return any(True for _ in self.student.module.buffers())

    @property
    def plans(self) -> tuple[StagePlan, ...]:
        """Return description and cost of the start, if any, and of the stages."""
        start = () if self.warm_start is None else (self.warm_start.plan,)
        return (*start, *(stage.plan for stage in self.stages))

    @property
    def num_steps(self) -> int:
        """Return the length of the run if every stage takes its longest."""
        return self.stages[-1].span.end


# Binding trains nothing, so each process of a launcher may bind, as for a plan; only running is
# refused there.
@standard_state(is_training=False)
def bind(
    curriculum: Curriculum,
    *,
    student: TappedModel,
    teacher: LiveTeacher | StoredTeacher | None,
    stream: Stream,
    optimizer: Optimizer,
    settings: TrainingSettings,
    seed: int,
) -> BoundRun:
    """Return a curriculum bound to models and data.

    Args:
        curriculum: The curriculum.
        student: The model that learns; it is placed.
        teacher: The model that teaches, which is placed, or its stored targets.
        stream: Training data.
        optimizer: How the weights move.
        settings: How the engine runs.
        seed: Seed of the run.

    Raises:
        BindError: If the parts do not fit; the stage is named.
    """
    # Of the first batches, which are read here, workers would fetch many more.
    with ended_workers(stream):
        return _bound(
            curriculum,
            student,
            teacher,
            stream=stream,
            optimizer=optimizer,
            settings=settings,
            seed=seed,
        )


def _bound(
    curriculum: Curriculum,
    student: TappedModel,
    teacher: LiveTeacher | StoredTeacher | None,
    *,
    stream: Stream,
    optimizer: Optimizer,
    settings: TrainingSettings,
    seed: int,
) -> BoundRun:
    """Return a bound curriculum; workers of the stream may go on.

    Raises:
        BindError: As in `bind`.
    """
    live = None if isinstance(teacher, StoredTeacher) else teacher
    # Before the models are placed: weights that are not there cannot be moved, and torch would not
    # name them.
    teaching = None if live is None else live.model.module
    _check_models(student.module, teaching, optimizer)
    settings = settings_by_size(
        settings,
        student.module,
        teaching,
        optimizer,
        # A start that is chosen is left out where weights are divided.
        has_start=not isinstance(curriculum.init, AutoStart | None),
    )
    # Before the trial steps, which must run where training will: whether a pass succeeds there is a
    # part of the check.
    _place_student(student, settings)
    if live is not None:
        teacher = live = _placed(live, settings)
    # Stored targets are those of stages; a start reads weights, which their folder lacks.
    elif not isinstance(curriculum.init, AutoStart | None) and teacher is not None:
        raise BindError(f"'init' {curriculum.init.kind!r} needs a teacher with weights; got none")
    elif teacher is None and curriculum.teachers:
        raise BindError(f"'teacher' must be given to run {curriculum.name!r}; got none")
    probe = StageProbe(
        student=student,
        teacher=teacher,
        stream=stream,
        optimizer=optimizer,
        settings=settings,
        seed=seed,
    )
    # Before lengths become steps: in data without positions an example would silently count as one
    # token.
    check_token_lengths(curriculum.stages, stream)
    check_epochs(curriculum.stages, stream)
    curriculum, refusals = _fitting(curriculum, probe, stream, student)
    bound: list[BoundStage] = []
    reached: frozenset[str] = frozenset()
    spans = plan_spans(
        curriculum.stages,
        batch_size=stream.batch_size,
        tokens_per_batch=stream.tokens_per_batch,
        examples_per_epoch=examples_per_epoch(stream),
    )
    for stage, span in zip(curriculum.stages, spans, strict=True):
        try:
            # Before the trial step, which may take long on a wide model.
            check_rule(span, eval_every=settings.eval_every)
            next_stage = probe.bind(stage, span, reached=reached)
        except BindError as error:
            # Not chained: it would be the same sentence twice, since only the name of the stage is
            # new.
            raise BindError(f"stage {stage.name!r}: {error}") from None
        bound.append(next_stage)
        # In order, since `trainable='new'` freezes all that earlier stages have trained.
        reached |= next_stage.trained
    _check_explained(bound)
    # After all stages are bound: a tap that is not there has been refused with its stage by now.
    _check_order(curriculum.stages, student)
    _check_pairing(stream, student, live, settings)
    choice = choose_start(
        curriculum.init, student, live, stream=stream, seed=seed, placement=settings.placement
    )
    return BoundRun(
        name=curriculum.name,
        student=student,
        teacher=teacher,
        stages=_with_worth(bound, curriculum.saved),
        # Only now: the tables that batches are checked against show in the passes of all stages.
        stream=probe.checked_stream(bound),
        optimizer=optimizer,
        settings=settings,
        seed=seed,
        draws_noise=probe.draws_noise,
        draws_foreign_noise=probe.draws_foreign_noise,
        warm_start=choice.start,
        saved=curriculum.saved,
        notes=(
            *((curriculum.note,) if curriculum.note else ()),
            *choice.notes,
            *refusals,
            *epoch_notes(curriculum.stages, stream, spans[-1].end),
            *surrounding_notes(),
            *weight_notes(student.module),
            *mode_notes(student.module),
            *_process_notes(student.module, settings),
            *probe.notes(),
            *position_notes(stream, stream.batch(0)),
            *probe.decisions(live),
            *_objective_notes(bound, student),
        ),
        tables=probe.tables.limits,
    )


def _place_student(student: TappedModel, settings: TrainingSettings) -> None:
    """Place the student, with the same weights in every process.

    Raises:
        BindError: If it has another architecture in one of them.
    """
    place_model(settings.placement, student)
    shapes = settings.placement.gathered([architecture(student.module)])
    if len(set(shapes)) > 1:
        raise BindError(
            f"'student' must have the same architecture in all processes; that of process "
            f"{next(rank for rank, digest in enumerate(shapes) if digest != shapes[0])}, counted "
            f"from 0, differs from that of process 0"
        )
    # Each process may have drawn other weights.
    settings.placement.copy_first((*student.module.parameters(), *student.module.buffers()))


def _placed(teacher: LiveTeacher, settings: TrainingSettings) -> LiveTeacher:
    """Return a teacher with its weights where they are read: whole, or in shares."""
    if settings.teacher_parallel == "whole":
        place_model(settings.placement, teacher.model)
        return teacher
    return teacher.divided(settings.placement.divided)


def _process_notes(student: nn.Module, settings: TrainingSettings) -> tuple[str, ...]:
    """Return the number of processes, and a note on batch statistics; none for one process."""
    number = settings.placement.num_processes
    if number == 1:
        return ()
    statistics = [path for path, item in student.named_modules() if isinstance(item, _BatchNorm)]
    share = (
        f"; batch statistics of {statistics[0]!r} are those of the share of a process, on a GPU "
        f"torch.nn.SyncBatchNorm.convert_sync_batchnorm(student) takes those of the batch"
        if statistics
        else ""
    )
    divided = "every batch"
    if settings.parallel == "fsdp2":
        has_shares = settings.teacher_parallel == "fsdp2"
        divided += ", student and teacher" if has_shares else " and the student"
    return (f"{number} processes divide {divided} among them{share}",)


def _fitting(
    curriculum: Curriculum, probe: StageProbe, stream: Stream, student: TappedModel
) -> tuple[Curriculum, tuple[str, ...]]:
    """Return a curriculum without the stages that do not fit and are not required, with reasons.

    The length of such a stage is added to the last.

    Raises:
        BindError: If it does not fit, and cannot be added since the last stage ends by a rule or
            has a length in another unit.
    """
    stages, notes = list[Stage](), list[str]()
    *earlier, last = curriculum.stages
    for stage in earlier:
        if not stage.required:
            try:
                (span,) = plan_spans(
                    [stage],
                    batch_size=stream.batch_size,
                    tokens_per_batch=stream.tokens_per_batch,
                    examples_per_epoch=examples_per_epoch(stream),
                )
                probe.bind(stage, span, reached=frozenset())
                # Two fractions mean one block where there are few.
                _check_order([*stages, stage], student)
            except BindError as error:
                most, final = stage.duration.at_most, last.duration
                if not isinstance(final, Duration) or final.unit != most.unit:
                    raise
                notes.append(
                    f"stage {stage.name!r} does not apply to these models and its time goes to "
                    f"{last.name!r} ({rule(error)})"
                )
                last = replace(last, duration=Duration.of(final.length + most.length, final.unit))
                continue
        stages.append(stage)
    return replace(curriculum, stages=(*stages, last)), tuple(notes)


def _check_explained(stages: Sequence[BoundStage]) -> None:
    """Check that a stage which can be left out refers to targets that can be explained.

    Raises:
        BindError: If the last stage has no objective with an explained share.
    """
    last = stages[-1]
    for stage in stages:
        is_measured = isinstance(stage.declared.duration, UnlessExplained)
        if is_measured and not any(explained_objective(term.objective) for term in last.terms):
            raise BindError(
                f"stage {stage.declared.name!r} can be left out only before a last stage that "
                f"matches logits; got {last.plan.objective!r} in {last.declared.name!r}"
            )


def _with_worth(stages: Sequence[BoundStage], saved: Saved) -> tuple[BoundStage, ...]:
    """Return stages with the steps of the last that a step of each is worth."""
    if saved == "drop":
        return tuple(stages)
    flops = [stage.plan.student_flops + stage.plan.teacher_flops for stage in stages]
    # At most one, so that a run is never longer than planned.
    worths = [
        Fraction(1) if saved == "steps" else min(Fraction(1), Fraction(number, flops[-1] or 1))
        for number in flops
    ]
    return tuple(
        replace(stage, span=replace(stage.span, worth=worth))
        for stage, worth in zip(stages, worths, strict=True)
    )


def _objective_notes(stages: Sequence[BoundStage], student: TappedModel) -> tuple[str, ...]:
    """Return notes on temperatures that differ, and on the output that labels are compared with."""
    objectives = [term for stage in stages for term in stage.declared.objectives]
    outputs = () if labeled_output(objectives) else output_notes(objectives, student)
    return (*temperature_notes(objectives), *outputs)


def _check_models(student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer) -> None:
    """Check that the models can be trained and read, and that they have nothing in common."""
    # Comes first, since the other checks look at types and memory, which weights without data lack.
    check_present(student, "student")
    check_trainable(student)
    # Plain descent moves complex weights; only the fused kernel of AdamW cannot.
    if isinstance(optimizer, AdamW):
        check_real(student)
    if teacher is not None:
        check_present(teacher, "teacher")
        check_apart(student, teacher, names=("student", "teacher"))


def _check_pairing(
    stream: Stream, student: TappedModel, teacher: LiveTeacher | None, settings: TrainingSettings
) -> None:
    """Check that models of texts with two tokenizers are decoders."""
    if not isinstance(stream, PairedTexts):
        return
    batch = settings.placement.moved(stream.batch(0))
    check_causal(student, batch.inputs, "student")
    if teacher is not None:
        check_causal(teacher.model, batch.for_teacher.inputs, "teacher")


def _check_order(stages: Sequence[Stage], student: TappedModel) -> None:
    """Refuse two fractions that mean one tap, which `evenly_spaced_pairs` gives if blocks run out.

    Taps given as numbers or paths may repeat: then somebody has meant it.

    Raises:
        BindError: If there are two.
    """
    seen: dict[Place, tuple[str, float]] = {}
    for stage in stages:
        for objective in stage.objectives:
            pair = getattr(objective, "pair", None)
            tap = pair.student if isinstance(pair, LayerPair) else None
            # Only fractions coincide by rounding, without anybody having written the same tap
            # twice.
            if not isinstance(tap, float):
                continue
            # The first fraction of a place stays, so that equal fractions pass: to train one pair
            # in two stages is a choice.
            name, first = seen.setdefault(student.place(tap), (stage.name, tap))
            if first != tap:
                where = f"pairs of stage {name!r}"
                if name != stage.name:
                    where = f"stages {name!r} and {stage.name!r}"
                raise BindError(
                    f"{where} must read different taps of the student; "
                    f"fractions {first:.3g} and {tap:.3g} of its {student.depth} blocks are both "
                    f"tap {tap_number(tap, student.depth)}; pairs={student.depth} is the most that "
                    f"can be spread over them"
                )
