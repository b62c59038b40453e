"""What do probes find in the networks of a run folder?

The teacher is looked at at every checkpoint of its training and each finished student once, on
held-out data that are the same for all:

- `correlations` (parity): the output against monomials of the input bits;
- `ngrams` (masked tokens): how much predictions lean on the nearest tokens;
- `similarity` (all): the CKA of every student tap with every tap of the finished teacher.

What is found goes to `probes.jsonl` in the folder; tables and figures are made from that alone.

Design: nothing that the run has written is changed, and probing again gives the same numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.experiments.folders import TEACHER, end_of, read_origin, stored_spec
from curricle.experiments.runner import (
    StudentRun,
    finished_student,
    finished_teacher,
    single_run,
    student_runs,
)
from curricle.experiments.spec import RunSpec
from curricle.experiments.tasks import EVALUATION_SEED, ParityTask, Task, TaskData
from curricle.models.tapped import TappedModel
from curricle.probes.correlations import output_correlations
from curricle.probes.ngrams import POSITIONS, ngram_reliance
from curricle.probes.readings import Probe
from curricle.probes.representations import tap_similarity
from curricle.records import ProbeRecord, write_probes
from curricle.teachers.live import LiveTeacher

FINAL: Final = 0
"""Step of a pretrained teacher without checkpoints."""
PROBES: Final = "probes.jsonl"
EXAMPLES: Final = MappingProxyType({"signs": 100_000, "tokens": 16_384, "sequences": 256})
"""Held-out examples by default: parity as in the paper, parity as tokens, and language."""
SIMILARITY_POSITIONS: Final = 16_384
"""Positions, or examples without any, on which taps are compared; more change no digit shown."""

Watcher = Callable[[str], None]
"""Is told of every network before it is looked at."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A network in the state in which it is looked at."""

    name: str
    seed: int
    step: int
    model: TappedModel
    is_teacher: bool = False

    def __str__(self) -> str:
        """Return what people call it."""
        seed = "" if self.is_teacher else f" seed {self.seed}"
        return f"{self.name}{seed} after {self.step} steps"


def probe_run(folder: Path, *, examples: int | None, watch: Watcher) -> list[ProbeRecord]:
    """Return what the probes that fit a run's task find, after writing it into the run folder.

    Args:
        folder: Run folder of `teach`, `distill` or `compare`; students that are not finished are
            left out.
        examples: Held-out examples that are read; None takes the default of the task.
        watch: Told of every network.

    Raises:
        BindError: If no probe fits the task and there is no student.
    """
    command, spec = read_origin(folder).command, stored_spec(folder)
    with spec.engine.stated_threads():
        data, batch = _opened(spec, examples)
        teacher = finished_teacher(spec, data)
        probes = _fitting(spec, data, batch)
        records: list[ProbeRecord] = []
        for subject in _subjects(spec, command, data, teacher):
            watch(str(subject))
            fitting = dict(probes)
            if not subject.is_teacher:
                fitting["similarity"] = partial(tap_similarity, teacher=teacher.model)
            for name, probe in fitting.items():
                read = _shortened(batch) if name == "similarity" else batch
                records.append(_record(subject, name, probe, read))
    if not records:
        raise BindError(
            f"{str(folder)!r} must hold a finished student, or a task that probes know (parity or "
            f"masked tokens); got {data.name!r} without a student"
        )
    write_probes(folder / PROBES, records)
    return records


def _opened(spec: RunSpec, examples: int | None) -> tuple[TaskData, Batch]:
    """Return the task, and one batch of held-out examples that no spec's sizes depend on."""
    task = spec.task
    kind = task.encoding if isinstance(task, ParityTask) else "sequences"
    count = EXAMPLES[kind] if examples is None else examples
    chosen: Task = (
        replace(task, batch_size=count, evaluation_examples=count)
        if isinstance(task, ParityTask)
        else replace(task, batch_size=count, evaluation_batches=1)
    )
    data = chosen.open(seed=EVALUATION_SEED, cache_dir=Path(spec.cache_dir))
    return data, data.evaluation[0]


def _fitting(spec: RunSpec, data: TaskData, batch: Batch) -> Mapping[str, Probe]:
    """Return the probes of single networks that fit the task."""
    task = spec.task
    if isinstance(task, ParityTask):
        # A tree has a parity for every node, and its labels follow none alone.
        probe = partial(output_correlations, support=range(task.degree))
        return {"correlations": probe} if task.depth == 1 else {}
    if data.mask_token is None:
        return {}
    length = batch.leading.shape[1]
    # Texts shorter than the paper's strings are looked at in their middle.
    positions = [one for one in POSITIONS if one < length] or [length // 2]
    return {"ngrams": partial(ngram_reliance, mask_token=data.mask_token, positions=positions)}


def _subjects(
    spec: RunSpec, command: str, data: TaskData, teacher: LiveTeacher
) -> Iterator[_Subject]:
    """Yield every network, the teacher's checkpoints first; while one is used it stays as it is."""
    device = spec.engine.torch_device()
    teacher.model.module.to(device)
    with teacher.teaching():
        for step in spec.trajectory_steps() or (FINAL,):
            teacher.use(step or "final")
            yield _Subject(
                name=TEACHER, seed=spec.seed, step=step, model=teacher.model, is_teacher=True
            )
        teacher.use("final")
        for run in _students(spec, command):
            end = end_of(run.folder)
            if end is not None:
                model = finished_student(spec, run, data)
                model.module.to(device)
                yield _Subject(name=run.name, seed=run.seed, step=end.spent.steps, model=model)


def _students(spec: RunSpec, command: str) -> list[StudentRun]:
    if command == "compare":
        return student_runs(spec)
    return [single_run(spec)] if command == "distill" else []


def _shortened(batch: Batch) -> Batch:
    """Return as many examples as taps are compared on."""
    positions = 1 if batch.is_flat else batch.leading.shape[1]
    return batch.chunks(max(1, SIMILARITY_POSITIONS // positions))[0]


def _record(subject: _Subject, name: str, probe: Probe, batch: Batch) -> ProbeRecord:
    return ProbeRecord(
        probe=name,
        model=subject.name,
        is_teacher=subject.is_teacher,
        seed=subject.seed,
        step=subject.step,
        examples=batch.num_examples,
        numbers=probe(subject.model, batch),
    )
