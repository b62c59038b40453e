"""Stages bound to their models, with the reach and the cost of one trial step each.

A `StageProbe` runs one step of each stage with autograd and puts everything back that the step has
changed. The step gives the parameters that the stage trains, its FLOPs and its memory, and shows
whether models and batches fit together.

Design: the reach of a stage is found by running one step of it with autograd, so it is
right for every module, tied weights and unused branches included.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Stage
from curricle.data.batch import Batch, named
from curricle.data.streams import Stream
from curricle.errors import BindError, DataError
from curricle.models.axes import observing
from curricle.models.eligibility import (
    readable,
)
from curricle.models.heads import LinearHead
from curricle.models.model_notes import check_pair, model_notes, probability_note
from curricle.models.outputs import heads_note
from curricle.models.restoring import buffers_kept, frozen_but, modes_kept, train
from curricle.models.tapped import Activations, TappedModel, check_head
from curricle.objectives.base import (
    Objective,
    Reads,
    Sample,
    Target,
    compares_examples,
    label_check,
    merge_reads,
    require,
)
from curricle.records import StagePlan
from curricle.teachers.live import LiveTeacher, aligned
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.axis_checks import check_decoder_inputs, check_orientation
from curricle.training.binding.batches import (
    RunBatches,
    TableWatch,
    has_token_lengths,
)
from curricle.training.binding.bound_objectives import (
    Term,
    adapters_of,
    bound_term,
    copy_trainable_terms,
    plan_columns,
    update_flops,
)
from curricle.training.binding.first_passes import run_first_pass
from curricle.training.binding.recomputing import check_recomputation, without_reentrant_checkpoints
from curricle.training.binding.timeline import Span
from curricle.training.setup.costs import Meter
from curricle.training.setup.optimizers import Optimizer
from curricle.training.setup.settings import TrainingSettings


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundStage:
    """A stage bound to its models."""

    declared: Stage
    """The stage as declared."""
    span: Span
    """Planned steps of the stage; a `Timeline` has the real ones."""
    terms: tuple[Term, ...]
    """The bound objectives."""
    reads: Reads
    """Places read by all objectives together."""
    trained: frozenset[str]
    """Names of the student parameters that the stage changes."""
    plan: StagePlan
    """Description and cost of the stage, for people."""


@final
class StageProbe:
    """Runs one step of each stage without changing anything."""

    def __init__(
        self,
        *,
        student: TappedModel,
        teacher: LiveTeacher | StoredTeacher | None,
        stream: Stream,
        optimizer: Optimizer,
        settings: TrainingSettings,
        seed: int,
    ) -> None:
        """Read the first batch.

        Args:
            student: The model that learns, placed.
            teacher: The model that teaches, placed, or its stored targets.
            stream: Training data.
            optimizer: How the weights move.
            settings: How the engine runs.
            seed: Seed of the run.

        Raises:
            BindError: If a decoder has no inputs of its own.
        """
        self._student, self._teacher = student, teacher
        self._optimizer, self._settings, self._seed = optimizer, settings, seed
        self._stream, self.tables = stream, TableWatch()
        # The whole batch stays beside the part of it that runs: positions are counted, and labels
        # looked at, before a batch is cut.
        self._whole, self._fingerprint = stream.batch(0), stream.fingerprint
        # One micro-batch is enough, since all have one size, and keeps the memory of binding as low
        # as that of a step.
        self._part = settings.placement.part_of(
            self._whole.split(settings.gradient_accumulation_steps)[0]
        )
        self.draws_noise = self.draws_foreign_noise = self._teacher_draws = False
        self._compares_logits = False
        self._logits_notes = {"student": "", "teacher": ""}
        self._heads: dict[str, tuple[str, ...]] = {"student": (), "teacher": ()}
        # Of all stages, since a later one may read the head that an earlier one leaves out.
        self._outputs: dict[str, set[str]] = {"student": set(), "teacher": set()}
        # Before any pass: one without them may succeed, on inputs that the model derives from the
        # encoder's.
        check_decoder_inputs(student.module, self._whole)

    def notes(self) -> Iterator[str]:
        """Yield findings of the passes that the owner of the models may not expect."""
        if self.draws_foreign_noise:
            yield (
                "the student draws from the global generator of Python or numpy, which is seeded "
                "for every step of the run and put back after it"
            )
        if self._teacher_draws:
            yield (
                "the teacher draws random numbers in evaluation mode, so targets differ from run "
                "to run"
            )

    def checked_stream(self, stages: Sequence[BoundStage]) -> RunBatches:
        """Return the stream with the checks that the bound stages need.

        Args:
            stages: All stages of the run, bound.
        """
        limits = [
            # From the earliest possible step on: if a rule ends a stage early, the next one reads
            # batches that were planned for it.
            (stage.span.earliest, stage.span.end, label_check(term.objective))
            for stage in stages
            for term in stage.terms
        ]
        return RunBatches(
            self._stream,
            self._whole,
            tables=self.tables.limits,
            labels=[(start, end, check) for start, end, check in limits if check is not None],
            is_uniform=has_token_lengths([stage.declared for stage in stages]),
        )

    def bind(self, stage: Stage, span: Span, *, reached: frozenset[str]) -> BoundStage:
        """Return a stage bound to the models, after one trial step of it.

        Args:
            stage: The stage as declared.
            span: Its planned steps.
            reached: Names of the student parameters that earlier stages train.

        Raises:
            BindError: If models, data or objectives of the stage do not fit, or it trains nothing.
        """
        all_reads = [self._reads(objective) for objective in stage.objectives]
        # A pass ends at the deepest tap that is read; only 'all' runs the rest of the student, on
        # purpose.
        reads = merge_reads(all_reads, full_student=stage.trainable == "all")
        needs_teacher = any(objective.needs_teacher for objective in stage.objectives)
        # The checkpoint would be loaded for nothing; most likely the stage lacks an objective.
        if stage.teacher != "final" and not needs_teacher:
            raise BindError(
                f"'teacher' must be given only where an objective reads it; got {stage.teacher}"
            )
        if stage.optimizer_state == "reset" and not self._optimizer.moments:
            raise BindError(
                "'optimizer_state' must be 'keep' for an optimizer without state, as SGD without "
                "momentum is, where a reset has no effect; got 'reset'"
            )
        # Weights and the batch lie in memory anyway; what autograd saves beyond them is the cost.
        # The teacher's passes save nothing, so its meter needs no such list.
        student_meter = Meter([*self._student.module.parameters(), *_data(self._part)])
        teacher_meter = Meter()
        # Frozen as in training: a frozen weight is not reached, and costs no part of the backward
        # pass.
        with self._undisturbed(frozen=reached if stage.trainable == "new" else frozenset()):
            # The student first, because placeholders of a stored teacher take shapes and positions
            # from it.
            student = self._run_student(reads, student_meter)
            taught = self._run_teacher(all_reads, student, teacher_meter) if needs_teacher else None
            # Ramps of an objective span the longest length of the stage, as schedules do; the real
            # one is not known before the stage ends.
            sample = Sample(batch=self._part, student=student, teacher=taught, seed=self._seed)
            terms = self._terms(stage, all_reads, replace(sample, num_steps=span.most))
            self._note_logits(all_reads, student, taught)
            # Copies, so that `terms` keep the first values of their adapters: every entry into the
            # stage, also after an interrupt, begins from those.
            trial_terms = copy_trainable_terms(terms)
            adapters = list(adapters_of(trial_terms).parameters())
            # Their numbers are counted with those of the optimizer, so they must not count as
            # saved.
            student_meter.exclude(adapters)
            # Projections of the teacher's states are a cost of the teacher: stored targets spare
            # them.
            with teacher_meter.running():
                targets = self._targets(trial_terms, taught)
            with student_meter.running():
                trained = self._reached(trial_terms, student, targets)
            # The teacher's logits of a chunk are made while the student's are.
            for target in targets:
                if isinstance(target, LinearHead):
                    student_meter.move_flops(target.flops, teacher_meter)
        if not trained:
            raise BindError(self._untrained(stage, all_reads, reached))
        adapter_parameters = sum(parameter.numel() for parameter in adapters)
        plan = StagePlan(
            name=stage.name,
            teacher=_teacher_words(stage) if needs_teacher else "none",
            **plan_columns(terms),
            steps=span.most,
            until="" if isinstance(stage.duration, Duration) else str(stage.duration),
            # A step takes as many passes as there are micro-batches, but holds the activations of
            # only one at a time, so the memory below is not multiplied. Shares of processes may
            # differ in their positions.
            student_flops=self._of_step(student_meter) + update_flops(adapters_of(terms)),
            teacher_flops=self._of_step(teacher_meter),
            trained_parameters=self._count(trained),
            adapter_parameters=adapter_parameters,
            reads_logits=any(reads.student_logits or reads.student_head for reads in all_reads),
            memory_bytes=self._memory(
                self._count(trained) + adapter_parameters, student_meter.saved_bytes
            ),
        )
        return BoundStage(
            declared=stage,
            span=span,
            terms=terms,
            reads=reads,
            trained=trained,
            plan=plan,
        )

    def _of_step(self, meter: Meter) -> int:
        """Return the FLOPs of all processes in a step from those of a micro-batch in this one."""
        settings = self._settings
        return int(settings.placement.total(meter.flops)) * settings.gradient_accumulation_steps

    def _untrained(self, stage: Stage, all_reads: Sequence[Reads], reached: frozenset[str]) -> str:
        """Return the sentence about a stage that trains nothing."""
        if stage.trainable == "new" and reached:
            return (
                "'trainable' must leave something to train; got 'new' where all that the "
                "objectives reach is frozen"
            )
        named = self._student.module.named_parameters()
        free = [name for name, parameter in named if parameter.requires_grad]
        cause = (
            "its logits carry no gradient, as those of a 'forward' under torch.no_grad or with a "
            "detach()"
            if any(reads.student_logits or reads.student_head for reads in all_reads)
            else "they come after the last tap or output that the objectives read, or the state "
            "there is detached"
        )
        return (
            f"objectives must reach weights of the student that train; got none of its "
            f"{len(free)} with requires_grad, of which {free[0]!r} is the first: {cause}; or they "
            f"belong to an adapter that is merged or not active"
        )

    def _note_logits(
        self, all_reads: Sequence[Reads], student: Activations, teacher: Activations | None
    ) -> None:
        """Note the output taken as logits, where an objective reads them."""
        by_model = {"student": student, "teacher": teacher}
        is_read = {
            "student": any(reads.student_logits for reads in all_reads),
            "teacher": any(reads.teacher_logits for reads in all_reads),
        }
        for owner, activations in by_model.items():
            self._outputs[owner] |= {
                place.entry
                for reads in all_reads
                for place in (reads.student if owner == "student" else reads.teacher)
                if place.entry and not place.path
            }
            if activations is None or activations.logits is None or not is_read[owner]:
                continue
            self._heads[owner] = activations.heads
            self._logits_notes[owner] = activations.logits_note or probability_note(
                activations.logits
            )
        # One stage is enough to make classes and vocabularies of both models matter. With positions
        # of two tokenizers no objective compares classes by id.
        self._compares_logits |= self._part.matched is None and any(
            reads.teacher_logits or reads.teacher_head for reads in all_reads
        )

    def decisions(self, teacher: LiveTeacher | None) -> tuple[str, ...]:
        """Return the decisions about the models.

        Args:
            teacher: The model that teaches, if one runs.
        """
        student, taught = self._part, self._part.for_teacher
        logits_notes = {
            owner: heads_note(self._heads[owner], self._outputs[owner]) or note
            for owner, note in self._logits_notes.items()
        }
        notes = model_notes(self._student, "student", student.inputs, logits_notes["student"])
        if teacher is None:
            return notes
        # Where only hidden states are compared, labels and tokens of the two models may differ.
        pair = check_pair(self._student, teacher.model) if self._compares_logits else ()
        teacher_notes = model_notes(
            teacher.model, "teacher", taught.inputs, logits_notes["teacher"]
        )
        return (*notes, *teacher_notes, *pair)

    def _reads(self, objective: Objective) -> Reads:
        teacher = None if self._teacher is None else self._teacher.model
        return objective.reads(self._student, teacher)

    def _run_teacher(
        self, all_reads: Sequence[Reads], student: Activations, meter: Meter
    ) -> Activations:
        if isinstance(self._teacher, StoredTeacher):
            # The last precision of the settings is the teacher's.
            self._teacher.check_precision(self._settings.precisions[-1])
            return self._teacher.placeholders(all_reads, student)
        reads = merge_reads(all_reads, full_student=False)
        model, head = require(self._teacher, "teacher").model, reads.teacher_head
        batch = self._part.for_teacher
        if head:
            # Before the pass: if a model changes the output of its head, chunks would be logits of
            # another model, without any error.
            check_head(model, batch.inputs)
        with (
            torch.no_grad(),
            self._settings.teacher_autocast(),
            meter.running(),
            readable(
                "teacher", model.open_taps(reads.teacher, logits=reads.teacher_logits, head=head)
            ) as forward,
        ):
            # A generator that has moved shows a draw of any code; a search for dropout modules
            # would miss functions.
            before = seeding.global_state()
            activations = run_first_pass("teacher", forward, batch, model.module)
        self._teacher_draws |= before != seeding.global_state()
        # Outside of the meter, since its passes are none of a step.
        check_orientation("teacher", model, activations, batch)
        if batch is self._part:
            return activations
        try:
            return aligned(activations, self._part)
        except DataError as error:
            # As an error of binding it gets the name of the stage; an error of the data would get
            # none.
            raise BindError(str(error)) from error

    def _run_student(self, reads: Reads, meter: Meter) -> Activations:
        model, head = self._student, reads.student_head
        if head:
            check_head(model, self._part.inputs)
        before, foreign = seeding.global_state(), seeding.foreign_state()
        with (
            self._settings.autocast(),
            meter.running(),
            readable(
                "student", model.open_taps(reads.student, logits=reads.student_logits, head=head)
            ) as forward,
        ):
            activations = run_first_pass("student", forward, self._part, model.module)
        self.draws_noise |= before != seeding.global_state()
        # Two more passes, made only on suspicion: seeding these generators costs every step time,
        # and libraries around the model may have drawn from them.
        if foreign != seeding.foreign_state():
            self.draws_foreign_noise |= self._depends_on_foreign_state(reads)
        check_orientation("student", model, activations, self._part)
        return activations

    @torch.no_grad()
    def _depends_on_foreign_state(self, reads: Reads) -> bool:
        """Return whether the student's activations depend on Python's and numpy's generators.

        Others than the model may draw from them during a pass, as checks of types do.
        """
        model, passes = self._student, list[Activations]()
        with model.open_taps(
            reads.student, logits=reads.student_logits, head=reads.student_head
        ) as forward:
            for number in range(2):
                # Torch's generator is seeded alike in both passes, so a difference can come from
                # the others alone.
                with seeding.scoped(self._seed, "probe/noise"), seeding.foreign(number):
                    passes.append(forward(self._part.inputs, self._part.selected))
        first, second = map(_tensors, passes)
        return not all(
            torch.equal(tensor, repeated) for tensor, repeated in zip(first, second, strict=True)
        )

    def _terms(self, stage: Stage, all_reads: Sequence[Reads], sample: Sample) -> tuple[Term, ...]:
        # By default states are normalized only where both models have residual streams.
        residual = self._student.is_residual and (
            self._teacher is None or self._teacher.model.is_residual
        )
        stored = self._teacher if isinstance(self._teacher, StoredTeacher) else None
        source = stored, stage.teacher, self._fingerprint
        terms = tuple(
            bound_term(objective, reads, sample, residual=residual, source=source)
            for objective, reads in zip(stage.objectives, all_reads, strict=True)
        )
        parts = self._settings.gradient_accumulation_steps
        for term, objective, reads in zip(terms, stage.objectives, all_reads, strict=True):
            self._check_divided(objective, reads)
            if parts > 1 and compares_examples(term.objective):
                raise BindError(
                    f"'gradient_accumulation_steps' must be 1 for {type(objective).__name__}, "
                    f"which compares the examples of a batch with each other; got {parts}"
                )
            if self._settings.placement.num_processes > 1 and compares_examples(term.objective):
                raise BindError(
                    f"'parallel' must be 'none' for {type(objective).__name__}, which compares "
                    f"the examples of a batch with each other; got {self._settings.parallel!r}"
                )
        return terms

    def _check_divided(self, objective: Objective, reads: Reads) -> None:
        """Check that an objective can read its inputs where processes hold shares of the student.

        Raises:
            BindError: If it reads the student's weights.
        """
        if self._settings.parallel == "fsdp2" and reads.student_weights:
            raise BindError(
                f"'parallel' must be 'ddp' for {type(objective).__name__}, which computes on whole "
                f"weights of the student; got 'fsdp2'"
            )

    @torch.no_grad()
    def _targets(self, terms: Sequence[Term], activations: Activations | None) -> list[Target]:
        """Return the target of each objective; of stored ones only the form."""
        batch, targets = self._part, list[Target]()
        for term in terms:
            target: Target = None
            if term.stored is not None:
                rows = term.objective.count(batch)
                # Zeros of the stored form: whether the objective can read it shows without a
                # look-up.
                target = term.stored.blank(rows, batch.leading)
            elif activations is not None and term.needs_teacher:
                target = term.objective.target(activations, batch)
            targets.append(target)
        return targets

    def _reached(
        self, terms: Sequence[Term], student: Activations, targets: Sequence[Target]
    ) -> frozenset[str]:
        """Return the names of the parameters to which the loss has a gradient."""
        # Called for its checks alone: missing labels raise an error with a sentence here, before
        # torch raises one in the loss.
        for term in terms:
            term.objective.count(self._whole)
        losses = [
            term.objective.total(student, target, self._part)
            for term, target in zip(terms, targets, strict=True)
        ]
        # Without the weights of the terms, on which neither reach nor cost depends.
        loss = torch.stack(losses).sum()
        # All that is read lies below frozen weights, where autograd would raise an error of its
        # own.
        if not loss.requires_grad:
            return frozenset()
        # Before the gradients: weights inside of such a checkpoint would silently be missing among
        # them.
        check_recomputation(loss)
        named = dict(self._student.module.named_parameters())
        free = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        # Adapters too, since their gradient costs as it will in training.
        parameters = [*free.values(), *adapters_of(terms).parameters()]
        # A weight without a gradient is an answer here. Gradients are returned rather than stored,
        # so the `grad` of the owner's weights stays as it was.
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        # The shorter list of names leaves out the gradients of adapters, which come last.
        return frozenset(name for name, grad in zip(free, grads, strict=False) if grad is not None)

    @contextmanager
    def _undisturbed(self, *, frozen: frozenset[str]) -> Iterator[None]:
        """Restore the effects of a step: buffers, modes, generators, frozen weights."""
        module = self._student.module
        names = {name for name, _ in module.named_parameters()}
        with ExitStack() as stack:
            stack.enter_context(buffers_kept(module))
            stack.enter_context(modes_kept(module))
            stack.enter_context(frozen_but(module, names - frozen))
            stack.enter_context(self.tables.watching("student", module, self._part))
            stack.enter_context(observing(self._student))
            # As in training, since noise and running statistics show in this mode only; the buffers
            # are put back above.
            train(module)
            if self._teacher is not None:
                teacher = self._teacher.model.module
                stack.enter_context(modes_kept(teacher))
                stack.enter_context(observing(self._teacher.model))
                stack.enter_context(self.tables.watching("teacher", teacher, self._part))
                # In evaluation mode a pass changes no buffer, so those of the teacher need no copy.
                teacher.eval()
            # Python's and numpy's generators too: whether the model draws from them is only found
            # out inside.
            stack.enter_context(seeding.scoped(self._seed, "probe", beyond_torch=True))
            stack.enter_context(without_reentrant_checkpoints())
            yield

    def _count(self, names: frozenset[str]) -> int:
        named = dict(self._student.module.named_parameters())
        return sum(named[name].numel() for name in names)

    def _memory(self, parameters: int, saved_bytes: int) -> int:
        """Return bytes of trained weights, gradients, optimizer state and saved activations."""
        # Four bytes a number: weights that train are float32, and a student in float64 gets a note.
        return parameters * 4 * (2 + self._optimizer.moments) + saved_bytes


def _tensors(activations: Activations) -> list[Tensor]:
    logits = [] if activations.logits is None else [activations.logits]
    head = [] if activations.head is None else [activations.head.states]
    return [*activations.hidden.values(), *logits, *head]


def _data(batch: Batch) -> Iterable[Tensor]:
    inputs = [*named(batch.inputs).values()]
    # A loss saves its labels for the backward pass, but they are data of the stream all the same.
    return inputs if batch.labels is None else [*inputs, batch.labels]


def _teacher_words(stage: Stage) -> str:
    return "final" if stage.teacher == "final" else f"step {stage.teacher}"
