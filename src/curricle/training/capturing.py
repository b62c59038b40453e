"""How are a teacher's targets made once, for any number of students?

`capture` walks through a run as training would, stage by stage and step by step, but no student
moves: the teacher is asked, and what each objective would compare with is packed and written. What
the folder holds already is not made again, so a capture that was killed goes on where it stopped,
epochs after the first cost nothing, and several runs may be captured into one folder.

Axes: example (rows of a batch), row (counted positions).

Design: targets come from the same passes as in training, of whole batches, so that with the codec
`float32` a student trained from the store is the student that the teacher itself would have taught.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curricle.data.digests import example_keys
from curricle.data.streams import Batch
from curricle.errors import BindError, CheckpointError
from curricle.files import usable_folder
from curricle.locks import locked
from curricle.models.heads import LinearHead
from curricle.models.tapped import Activations, Reader, TappedModel
from curricle.models.weights import weights_digest
from curricle.objectives.terms import BoundObjective, Storable, pending_calibration
from curricle.protocols import conforms
from curricle.specs import value
from curricle.teachers.codecs import BFloat16, Codec, HiddenCodec, Sampled
from curricle.teachers.live import LiveTeacher, Reference, num_parameters
from curricle.teachers.manifest import (
    MANIFEST,
    DataFacts,
    Manifest,
    Section,
    TeacherFacts,
    facts_of,
    read_manifest,
)
from curricle.teachers.shards import SHARD_BYTES, ShardWriter, uniforms
from curricle.teachers.stored import check_readable
from curricle.training.ambient import standard_state
from curricle.training.batches import guarded
from curricle.training.binding import BoundRun, BoundStage
from curricle.training.stepping import CALIBRATION_BATCHES

Watch = Callable[[int, int], None]
"""Is told how many steps of how many are captured."""


@final
@value
class TargetCodecs:
    """In which form targets are kept."""

    hidden: HiddenCodec = BFloat16()
    """Codec of hidden states: `float32`, `bfloat16` or `int8`."""
    logits: Codec = Sampled()
    """Codec of logits: `sampled`, `top_k`, or one of hidden states."""
    shard_bytes: int = SHARD_BYTES
    """Bytes of targets after which a file is written; a kill costs at most as much."""

    def of(self, kind: str) -> Codec:
        """Return the codec of a kind of target."""
        return self.hidden if kind == "hidden" else self.logits


@standard_state()
def capture(
    runs: Sequence[BoundRun],
    folder: Path,
    *,
    codecs: TargetCodecs = TargetCodecs(),  # noqa: B008 - a frozen value
    data: DataFacts = DataFacts(),  # noqa: B008 - a frozen value
    watch: Watch | None = None,
) -> Manifest:
    """Make the targets that some runs read, or what is missing of them.

    Args:
        runs: Runs of one live teacher.
        folder: Where the store is or will be.
        codecs: In which form targets are kept.
        data: What is known of the data.
        watch: Told of every step.

    Returns:
        The manifest of the store.

    Raises:
        BindError: If a run has no live teacher or an objective has no targets to store.
        CheckpointError: If the folder holds targets of another teacher, or in another form, or
            somebody else writes into it.
    """
    teacher = runs[0].teacher
    if not isinstance(teacher, LiveTeacher):
        raise BindError(
            f"'teacher' must be a model to capture its targets; got {type(teacher).__name__!r}"
        )
    inquiries = inquiries_of(runs, codecs)
    if not any(one.wanted for one in inquiries):
        raise BindError(
            f"'curriculum' must compare with a teacher somewhere to have targets to capture; got "
            f"{runs[0].name!r}"
        )
    _check_readable(runs, codecs)
    folder = usable_folder(folder, "folder")
    wanted = Manifest(
        teacher=_facts(teacher, runs),
        data=data if data.fingerprint else replace(data, fingerprint=runs[0].stream.fingerprint),
        sections=tuple(
            {section.name: section for one in inquiries for section, _ in one.wanted}.values()
        ),
    )
    with locked(folder, remedy="wait for its end or take another folder"):
        writer = ShardWriter(folder, _merged(folder, wanted), shard_bytes=codecs.shard_bytes)
        done, total = 0, sum(one.stage.end - one.stage.start for one in inquiries)
        for inquiry in inquiries:
            with inquiry.run.settings.stated_threads():
                for _ in inquiry.captured(writer):
                    done += 1
                    if watch is not None:
                        watch(done, total)
        return writer.finish(wanted.sections)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What a stage asks its teacher."""

    run: BoundRun
    """The run."""
    stage: BoundStage
    """One of its stages."""
    wanted: list[tuple[Section, BoundObjective]]
    """Each kind of target, and the objective that reads it."""

    def captured(self, writer: ShardWriter) -> Iterator[None]:
        """Store the targets of the stage; yield after each step."""
        run, stage = self.run, self.stage
        with _open(run, stage) as read:
            objectives = [self._calibrated(objective, read) for _, objective in self.wanted]
            for step in range(stage.start, stage.end):
                batch = run.stream.batch(step)
                for part in batch.split(run.settings.accumulation):
                    self._store(writer, read, objectives, part)
                yield

    def compared(
        self, steps: int
    ) -> Iterator[tuple[Section, BoundObjective, Batch, Float[Tensor, "row width"]]]:
        """Yield what the teacher says now at the first steps, and of which objective and batch."""
        stage = self.stage
        with _open(self.run, stage) as read:
            objectives = [self._calibrated(objective, read) for _, objective in self.wanted]
            for step in range(stage.start, min(stage.start + steps, stage.end)):
                for part in self.run.stream.batch(step).split(self.run.settings.accumulation):
                    moved = part.to(self.run.settings.torch_device())
                    shown = _shown(self.run, read, moved)
                    for (section, _), objective in zip(self.wanted, objectives, strict=True):
                        yield section, objective, moved, self._target(objective, shown, moved)

    def _target(
        self, objective: BoundObjective, shown: Activations, batch: Batch
    ) -> Float[Tensor, "row width"]:
        with torch.no_grad(), self.run.settings.teacher_autocast():
            target = objective.target(shown, batch)
            return target.logits() if isinstance(target, LinearHead) else target.flatten(0, -2)

    def _store(
        self,
        writer: ShardWriter,
        read: Reader,
        objectives: Sequence[BoundObjective],
        part: Batch,
    ) -> None:
        keys = [example_keys(part, selected=section.selected) for section, _ in self.wanted]
        lacking = [
            writer.lacks(section, own) for (section, _), own in zip(self.wanted, keys, strict=True)
        ]
        if not any(one.any() for one in lacking):
            return
        moved = part.to(self.run.settings.torch_device())
        shown = _shown(self.run, read, moved)
        columns = zip(self.wanted, objectives, keys, lacking, strict=True)
        for (section, _), objective, own, missing in columns:
            if not missing.any():
                continue
            target = self._target(objective, shown, moved)
            counts = counts_of(objective, part)
            rows = torch.from_numpy(np.flatnonzero(np.repeat(missing, counts)))
            random = uniforms(section, own[missing], counts[missing])
            entries = section.codec.encode(target[rows.to(target.device)], random)
            writer.add(section, own[missing], counts[missing], entries)

    def _calibrated(self, objective: BoundObjective, read: Reader) -> BoundObjective:
        needy = pending_calibration(objective)
        if needy is None:
            return objective
        device = self.run.settings.torch_device()
        batches = [self.run.stream.batch(step).to(device) for step in range(CALIBRATION_BATCHES)]
        with torch.no_grad(), self.run.settings.teacher_autocast():
            return needy.calibrated([(_shown(self.run, read, one), one) for one in batches])


def inquiries_of(runs: Sequence[BoundRun], codecs: TargetCodecs) -> list[Inquiry]:
    """Return what the stages of some runs ask; those that need no teacher are left out."""
    inquiries = [_inquiry(run, stage, codecs) for run in runs for stage in run.stages]
    return [inquiry for inquiry in inquiries if inquiry.wanted]


def _inquiry(run: BoundRun, stage: BoundStage, codecs: TargetCodecs) -> Inquiry:
    distinct = {section.name: (section, one) for section, one in _asked(run, stage, codecs)}
    return Inquiry(run=run, stage=stage, wanted=list(distinct.values()))


def _asked(
    run: BoundRun, stage: BoundStage, codecs: TargetCodecs
) -> Iterator[tuple[Section, BoundObjective]]:
    """Yield what each objective of a stage asks the teacher; several may ask the same."""
    told = stage.declared.teacher, run.stream.fingerprint
    for term in stage.terms:
        if term.needs_teacher:
            yield _section(term.objective, *told, codecs), term.objective


def _check_readable(runs: Sequence[BoundRun], codecs: TargetCodecs) -> None:
    """Check that objectives can read what would be kept, before a teacher is asked.

    Raises:
        BindError: If one cannot; its stage is named.
    """
    for run in runs:
        for stage in run.stages:
            for section, objective in _asked(run, stage, codecs):
                try:
                    check_readable(objective, section)
                except BindError as error:
                    raise BindError(
                        f"stage {stage.declared.name!r}: {error}; 'codecs.logits' says how they "
                        f"are kept"
                    ) from None


def _section(
    objective: BoundObjective, reference: Reference, stream: str, codecs: TargetCodecs
) -> Section:
    """Return what an objective's targets are."""
    facts = facts_of(objective, stream)
    assert conforms(objective, Storable)  # noqa: S101 - or it would have no facts
    return Section(
        reference=reference,
        facts=facts,
        selected=objective.reads_selected,
        codec=codecs.of(str(facts["kind"])),
        width=int(facts["num_classes"] if facts["kind"] == "logits" else facts["width"]),
    )


def _facts(teacher: LiveTeacher, runs: Sequence[BoundRun]) -> TeacherFacts:
    """Return what is known of a teacher, after looking at all of its weights."""
    references = dict.fromkeys(one for run in runs for one in run.teachers)
    teacher.check(references)
    digests = {
        str(reference): weights_digest(teacher.at(reference).module)
        for reference in dict.fromkeys(("final", *references))
    }
    settings = runs[0].settings
    return TeacherFacts(
        weights=digests,
        taps=_taps(teacher.model),
        is_residual=teacher.model.is_residual,
        parameters=num_parameters(teacher.model),
        precision=settings.teacher_precision or settings.precision,
    )


def _taps(model: TappedModel) -> tuple[str, ...]:
    numbers = range(model.depth + 1) if model.depth else ()
    return tuple(str(model.place(number)) for number in numbers)


def _merged(folder: Path, wanted: Manifest) -> Manifest:
    """Return what a folder will hold: what it does, and what is wanted besides.

    Raises:
        CheckpointError: If the two do not go together.
    """
    if not (folder / MANIFEST).is_file():
        return wanted
    there = read_manifest(folder)
    both = {**there.teacher.weights, **wanted.teacher.weights}
    for reference, digest in there.teacher.weights.items():
        if both[reference] != digest:
            raise CheckpointError(
                f"{str(folder)!r} must hold targets of this teacher {reference!r}, whose weights "
                f"have the SHA-256 {both[reference][:16]}...; got {digest[:16]}...; capture into "
                f"another folder"
            )
    if there.teacher.precision != wanted.teacher.precision:
        raise CheckpointError(
            f"{str(folder)!r} must hold targets of a teacher in {wanted.teacher.precision!r}; got "
            f"{there.teacher.precision!r}; capture into another folder"
        )
    for section in wanted.sections:
        found = there.section(section.name)
        if found is not None and found != section:
            raise CheckpointError(
                f"{str(folder)!r} must hold targets packed as {section.codec}; got {found.codec}; "
                f"capture into another folder"
            )
    sections = {one.name: one for one in (*there.sections, *wanted.sections)}
    return replace(
        there,
        teacher=replace(wanted.teacher, weights=both),
        sections=tuple(sections.values()),
    )


@contextmanager
def _open(run: BoundRun, stage: BoundStage) -> Iterator[Reader]:
    """Open the teacher as a stage reads it.

    Yields:
        Its forward pass.
    """
    teacher, reads = run.teacher, stage.reads
    assert isinstance(teacher, LiveTeacher)  # noqa: S101 - `capture` has looked
    with ExitStack() as stack:
        stack.enter_context(teacher.teaching(run.settings.teacher_inference))
        yield stack.enter_context(
            teacher.reading(
                stage.declared.teacher,
                reads.teacher,
                logits=reads.teacher_logits,
                head=reads.teacher_head,
            )
        )


def _shown(run: BoundRun, read: Reader, batch: Batch) -> Activations:
    with torch.no_grad(), run.settings.teacher_autocast():
        return guarded(run.tables, "teacher", read)(batch.inputs, batch.selected)


def counts_of(objective: BoundObjective, batch: Batch) -> Int[np.ndarray, " example"]:
    """Return the number of rows of each example of a batch, as an objective counts them."""
    return np.array([objective.count(one) for one in batch.chunks(1)], dtype=np.int64)
