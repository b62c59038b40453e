"""Capture of a teacher's targets, once for any number of students.

`capture` walks through a run as training would, stage by stage and step by step, but no student
moves: the teacher runs, and the target of each objective is packed and written. Targets in the
folder are not computed again, so a capture that was killed goes on where it stopped, epochs after
the first cost nothing, and several runs may be captured into one folder.

Axes: example (rows of a batch), row (counted positions).

Design: targets come from the same passes as in training, of whole batches, so that with the codec
`float32` a student trained from the store is the student that the teacher itself would have taught.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from curricle.colocation import beside
from curricle.curriculum.stages import TeacherReference
from curricle.data.batch import Batch
from curricle.data.example_keys import example_keys
from curricle.data.finiteness import non_finite_words
from curricle.data.loader_workers import ended_workers
from curricle.errors import BindError, DataError
from curricle.models.heads import LinearHead
from curricle.models.tapped import TappedModel
from curricle.models.weights import weights_digest
from curricle.objectives.base import BoundObjective, Target, target_description
from curricle.teachers.live import LiveTeacher, num_parameters
from curricle.teachers.store.codecs import BFloat16, Codec, HiddenCodec, Sampled
from curricle.teachers.store.manifest import (
    DataFacts,
    Manifest,
    TargetSet,
    TeacherFacts,
    target_key,
)
from curricle.teachers.store.shards import SHARD_BYTES, ShardWriter, uniforms
from curricle.teachers.store.writing import open_writer
from curricle.teachers.stored import check_readable
from curricle.training.binding.batches import LocatedErrors
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.loop.stage_loss import CALIBRATION_BATCHES, StageLoss, open_stage_loss
from curricle.training.setup.torch_state import standard_state
from curricle.values import value

Watch = Callable[[int, int], None]
"""Receives the numbers of captured steps and of all steps."""
FindMissing = Callable[
    [Sequence[TargetSet], Sequence[Shaped[np.ndarray, " example"]]],
    list[Shaped[np.ndarray, " example"]],
]
"""Returns masks of the examples of a batch whose targets are to be stored; it takes the kinds of
targets and the keys of the examples for each."""


@final
@value
class TargetCompression:
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
    compression: TargetCompression = TargetCompression(),
    data: DataFacts = DataFacts(),
    watch: Watch | None = None,
) -> Manifest:
    """Capture the missing targets of some runs.

    Args:
        runs: Runs of one live teacher.
        folder: Where the store is or will be.
        compression: In which form targets are kept.
        data: Facts about the data.
        watch: Receives the progress after every step.

    Returns:
        The manifest of the store.

    Raises:
        BindError: If a run has no live teacher or an objective has no targets to store.
        CheckpointError: If the folder holds targets of another teacher, or in another form, or
            another process writes into it.
    """
    plan = plan_capture(runs, compression, data)
    with open_writer(folder, plan.manifest, shard_bytes=plan.shard_bytes) as writer:
        plan.capture(writer, partial(_find_missing, writer), watch)
        # Of this capture alone: one that was interrupted still lacks targets of its own kinds.
        return writer.finish(plan.manifest.sections)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """Targets that some runs need, and how they are kept."""

    queries: tuple["TeacherQuery", ...]
    """The targets of each stage."""
    manifest: Manifest
    """Manifest of a store without files."""
    shard_bytes: int
    """Bytes of targets after which a file is written."""

    @property
    def num_steps(self) -> int:
        """Return the number of steps of all stages."""
        return sum(len(query.stage.span.possible_steps) for query in self.queries)

    def capture(self, writer: ShardWriter, find_missing: FindMissing, watch: Watch | None) -> None:
        """Run the teacher and hand the targets to a writer.

        Args:
            writer: Writer of the targets.
            find_missing: Examples whose targets this process stores.
            watch: Receives the progress after every step.
        """
        done, total = 0, self.num_steps
        for query in self.queries:
            # Threads as in training: their number decides the order of sums, and so the last
            # digits.
            with query.run.settings.stated_threads():
                for _ in query.capture(writer, find_missing):
                    done += 1
                    if watch is not None:
                        watch(done, total)


def _find_missing(
    writer: ShardWriter,
    target_sets: Sequence[TargetSet],
    keys: Sequence[Shaped[np.ndarray, " example"]],
) -> list[Shaped[np.ndarray, " example"]]:
    return list(map(writer.find_missing, target_sets, keys))


def plan_capture(
    runs: Sequence[BoundRun], compression: TargetCompression, data: DataFacts
) -> CapturePlan:
    """Return the plan of a capture.

    Args:
        runs: Runs of one live teacher.
        compression: In which form targets are kept.
        data: Facts about the data.

    Raises:
        BindError: If a run has no live teacher or an objective has no targets to store.
    """
    teacher = runs[0].teacher
    if not isinstance(teacher, LiveTeacher):
        raise BindError(
            f"'teacher' must be a model to capture its targets; got {type(teacher).__name__!r}"
        )
    queries = queries_of(runs, compression)
    if not any(query.target_sets for query in queries):
        raise BindError(
            f"'curriculum' must compare with a teacher somewhere to have targets to capture; got "
            f"{runs[0].name!r}"
        )
    # Before hashing the teacher's weights and running it take their time.
    _check_readable(runs, compression)
    manifest = Manifest(
        teacher=_facts(teacher, runs),
        data=data if data.fingerprint else replace(data, fingerprint=runs[0].stream.fingerprint),
        sections=tuple(
            {
                target_set.name: target_set
                for query in queries
                for target_set, _ in query.target_sets
            }.values()
        ),
    )
    return CapturePlan(
        queries=tuple(queries), manifest=manifest, shard_bytes=compression.shard_bytes
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherQuery:
    """Targets that a stage needs from its teacher."""

    run: BoundRun
    """The run."""
    stage: BoundStage
    """One of its stages."""
    target_sets: list[tuple[TargetSet, int]]
    """Each kind of target, and the number of the objective that reads it."""

    def capture(self, writer: ShardWriter, find_missing: FindMissing) -> Iterator[None]:
        """Store the targets of the stage; yield after each step."""
        run, stage = self.run, self.stage
        with self._open() as loss:
            # If an earlier stage may end early, a student may read any of these steps.
            for step in stage.span.possible_steps:
                with LocatedErrors(stage.declared.name, step, run.seed):
                    # In the parts of training: a pass of another size rounds differently.
                    for micro_batch in run.stream.batch(step).split(
                        run.settings.gradient_accumulation_steps
                    ):
                        self._store(writer, find_missing, loss, micro_batch)
                yield

    def recomputed(
        self, steps: int
    ) -> Iterator[tuple[TargetSet, BoundObjective, Batch, Float[Tensor, "row width"]]]:
        """Yield the targets of the first steps as the teacher computes them now.

        Args:
            steps: Number of steps.

        Yields:
            The kind of target, its objective, the batch and the target.
        """
        stage = self.stage
        with self._open() as loss:
            for step in stage.span.possible_steps[:steps]:
                for micro_batch in self._parts(step):
                    with LocatedErrors(stage.declared.name, step, self.run.seed):
                        targets = loss.targets(micro_batch)
                        rows = [_rows(loss, targets[number]) for _, number in self.target_sets]
                    for (target_set, number), target in zip(self.target_sets, rows, strict=True):
                        yield target_set, loss.terms[number].objective, micro_batch, target

    def _parts(self, step: int) -> list[Batch]:
        """Return the parts of the batch of a step where the teacher lies."""
        run = self.run
        with LocatedErrors(self.stage.declared.name, step, run.seed):
            micro_batches = run.stream.batch(step).split(run.settings.gradient_accumulation_steps)
            return [run.settings.placement.part_of(micro_batch) for micro_batch in micro_batches]

    @contextmanager
    def _open(self) -> Iterator[StageLoss]:
        """Open the teacher as the stage reads it, with calibrated objectives.

        Yields:
            The loss of the stage, which can give targets only.
        """
        run, stage = self.run, self.stage
        teacher, place = run.teacher, run.settings.placement.part_of
        assert isinstance(teacher, LiveTeacher)  # noqa: S101 - checked by `capture`
        with (
            ended_workers(run.stream),
            teacher.teaching(run.settings.teacher_inference),
            open_stage_loss(run, stage, only_targets=True) as loss,
        ):
            # As a stage does at its start, over the same batches: the mean is part of a centered
            # target.
            with LocatedErrors(stage.declared.name, stage.span.start, run.seed):
                loss.calibrate(
                    lambda: (place(run.stream.batch(step)) for step in range(CALIBRATION_BATCHES))
                )
            yield loss

    def _store(
        self, writer: ShardWriter, find_missing: FindMissing, loss: StageLoss, micro_batch: Batch
    ) -> None:
        # On the CPU, before the batch is moved: where nothing is missing, as in a second epoch, the
        # teacher does not run.
        keys = [
            example_keys(micro_batch, selected=target_set.selected)
            for target_set, _ in self.target_sets
        ]
        missing = find_missing([target_set for target_set, _ in self.target_sets], keys)
        if not any(is_missing.any() for is_missing in missing):
            return
        placed = self.run.settings.placement.part_of(micro_batch)
        numbers = {
            number
            for (_, number), is_missing in zip(self.target_sets, missing, strict=True)
            if is_missing.any()
        }
        # Of the whole part even if few examples are missing: fewer would round differently.
        targets = loss.targets(placed, numbers)
        columns = zip(self.target_sets, keys, missing, strict=True)
        for (target_set, number), keys_of_set, is_missing in columns:
            if not is_missing.any():
                continue
            target = _rows(loss, targets[number])
            _check_numbers(target, placed)
            counts = counts_of(loss.terms[number].objective, micro_batch)
            # A target has rows and not examples, so the mask is repeated for the rows of each.
            rows = torch.from_numpy(np.flatnonzero(np.repeat(is_missing, counts)))
            random = uniforms(target_set, keys_of_set[is_missing], counts[is_missing])
            entries = target_set.codec.encode(target[beside(rows, target)], random)
            writer.add(target_set, keys_of_set[is_missing], counts[is_missing], entries)


def _rows(loss: StageLoss, target: Target) -> Float[Tensor, "row width"]:
    """Return a target as rows; of a head with chunked logits, all logits."""
    with torch.no_grad(), loss.teacher_autocast():
        rows: Tensor = target.logits() if isinstance(target, LinearHead) else target.flatten(0, -2)
        return rows


def queries_of(runs: Sequence[BoundRun], compression: TargetCompression) -> list[TeacherQuery]:
    """Return the targets that the stages of some runs need; stages without a teacher have none."""
    queries = [_query(run, stage, compression) for run in runs for stage in run.stages]
    return [query for query in queries if query.target_sets]


def _query(run: BoundRun, stage: BoundStage, compression: TargetCompression) -> TeacherQuery:
    # Several objectives may need the same targets.
    distinct = {
        target_set.name: (target_set, number)
        for target_set, number in _target_sets(run, stage, compression)
    }
    return TeacherQuery(run=run, stage=stage, target_sets=list(distinct.values()))


def _target_sets(
    run: BoundRun, stage: BoundStage, compression: TargetCompression
) -> Iterator[tuple[TargetSet, int]]:
    """Yield the kind of target of each objective with a teacher, and the objective's number."""
    for number, term in enumerate(stage.terms):
        if term.needs_teacher:
            reference, stream = stage.declared.teacher, run.stream.fingerprint
            yield _target_set(term.objective, reference, stream, compression), number


def _check_readable(runs: Sequence[BoundRun], compression: TargetCompression) -> None:
    """Check that objectives can read the stored form, before the teacher runs.

    Raises:
        BindError: If one cannot; its stage is named.
    """
    for run in runs:
        for stage in run.stages:
            for target_set, number in _target_sets(run, stage, compression):
                try:
                    check_readable(stage.terms[number].objective, target_set)
                except BindError as error:
                    raise BindError(
                        f"stage {stage.declared.name!r}: {error}; 'compression.logits' sets the "
                        f"codec"
                    ) from None


def _target_set(
    objective: BoundObjective,
    reference: TeacherReference,
    stream: str,
    compression: TargetCompression,
) -> TargetSet:
    """Return the description of an objective's targets."""
    facts = target_key(objective, stream)
    description = target_description(objective)
    assert description is not None  # noqa: S101 - or it would have no facts
    return TargetSet(
        reference=reference,
        facts=facts,
        selected=description.reads_selected,
        codec=compression.of(str(facts["kind"])),
        width=int(facts["num_classes"] if facts["kind"] == "logits" else facts["width"]),
    )


def _facts(teacher: LiveTeacher, runs: Sequence[BoundRun]) -> TeacherFacts:
    """Return the facts about a teacher, with a digest of all its weights."""
    references = dict.fromkeys(reference for run in runs for reference in run.teachers)
    teacher.check(references)
    digests = {
        str(reference): weights_digest(teacher.at(reference).module)
        # The finished teacher even if no stage reads it: by its digest a folder refuses another
        # teacher whose checkpoints it does not have yet.
        for reference in dict.fromkeys(("final", *references))
    }
    settings = runs[0].settings
    return TeacherFacts(
        weights=digests,
        taps=_taps(teacher.model),
        is_residual=teacher.model.is_residual,
        parameters=num_parameters(teacher.model),
        precision=settings.precision_of_teacher,
    )


def _taps(model: TappedModel) -> tuple[str, ...]:
    numbers = range(model.depth + 1) if model.depth else ()
    return tuple(str(model.place(number)) for number in numbers)


def _check_numbers(target: Float[Tensor, "row width"], batch: Batch) -> None:
    """Check that targets are finite numbers.

    Infinities that come of finite inputs are left alone: some heads give them for classes that they
    rule out.

    Raises:
        DataError: If they are not.
    """
    if bool(target.isfinite().all()):
        return
    # After a failure only, since this reads all inputs.
    words = non_finite_words(batch)
    if words or bool(target.isnan().any()):
        wrong = int((~target.isfinite()).any(-1).sum())
        raise DataError(
            f"'targets' must be finite; got {wrong} of {len(target)} rows of the teacher that are "
            f"not{words}"
        )


def counts_of(objective: BoundObjective, batch: Batch) -> Int[np.ndarray, " example"]:
    """Return the number of rows of each example of a batch, as an objective counts them."""
    return np.array([objective.count(example) for example in batch.chunks(1)], dtype=np.int64)
