"""Records of a run, as values and as lines of a file.

A run folder holds `records.jsonl`, one JSON object a line, in the order things happened. Every
report and figure is made from these lines alone, without torch and without the models.

Each line ends with a `check` of itself and of all lines before it (see `curricle.checksums`), so
that a damaged, missing or foreign line is detected on reading. Files of version 0.1 have none.

The field `kind` names the kind of a record: `run` (once at the start: the setup of the run),
`stage` (a stage begins), `step` (training loss at intervals), `evaluation` (metrics at intervals),
`stage_end` (the end of a stage with a rule as duration), `recovery` (a failed step that the run has
survived) and `end` (once, when the run is complete).
All but the first hold `Usage`, the cost until then.

Results of probes of a finished run are in `probes.jsonl` beside it, one `ProbeRecord` a line; they
can be computed again at any time and are not part of the run. Neither are the scores of a finished
model on other data, a `Score` in each file of its folder `scores`.

Units: steps, examples, tokens, FLOPs (multiply and add count as two), seconds of training without
evaluation and checkpoints.
"""

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, final

from pydantic import Field

from curricle.checksums import (
    UNSEALED,
    LineChain,
    check_sealed,
    is_cut,
    read_lines,
    read_sealed,
    sealed_lines,
    sealed_names,
    write_sealed,
)
from curricle.errors import CheckpointError, reason
from curricle.files import disk_errors, write_bytes
from curricle.values import parse, plain, value
from curricle.yaml_specs import Document

RECORDS, PROBES = "records.jsonl", "probes.jsonl"
"""Names of the files of a run folder with the records of the run, and of its probes."""
SCORES = "scores"
"""Name of the folder, beside the records of a model, with its scores on other data."""


@final
@value
class Usage:
    """Cost of a run until some step."""

    steps: int = 0
    """Optimizer updates."""
    examples: int = 0
    """Training examples read, repeats included."""
    tokens: int = 0
    """Training tokens read; equals `examples` for models without positions."""
    student_flops: int = 0
    """FLOPs of the student's forward and backward passes."""
    teacher_flops: int = 0
    """FLOPs of the teacher's forward passes, up to the taps that were read, and projections."""
    seconds: float = 0.0
    """Seconds of training, without evaluation and checkpoints."""

    @property
    def total_flops(self) -> int:
        """Return the FLOPs of student and teacher together."""
        return self.student_flops + self.teacher_flops

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum of two costs."""
        return Usage(
            steps=self.steps + other.steps,
            examples=self.examples + other.examples,
            tokens=self.tokens + other.tokens,
            student_flops=self.student_flops + other.student_flops,
            teacher_flops=self.teacher_flops + other.teacher_flops,
            seconds=self.seconds + other.seconds,
        )


@final
@value
class StagePlan:
    """A bound stage: its inputs, its length and the cost of a step."""

    name: str
    """Name of the stage, unique in its curriculum."""
    teacher: str
    """`final`, or `step N` of the trajectory; `none` if the stage reads no teacher."""
    taps: str
    """Tap pairs as `student <- teacher`, and `logits` or `labels`."""
    objective: str
    """Objectives with their weights, in words."""
    projection: str
    """Law and shape of the projections, student width x teacher width; `-` if there is none."""
    widths: str
    """Student and teacher width of each pair."""
    steps: int
    """Length of the stage, in steps; the longest if a rule may end it."""
    student_flops: int
    """FLOPs of the student in one step."""
    teacher_flops: int
    """FLOPs of the teacher in one step."""
    trained_parameters: int
    """Number of student parameters that the stage can change."""
    memory_bytes: int
    """Bytes of trained weights, their gradients and optimizer state, and saved activations."""
    adapter_parameters: int = 0
    """Number of parameters that the objectives train beside the student; part of the memory."""
    reads_logits: bool = True
    """Whether an objective reads the student's logits. If none does, the stage does not train the
    output, and a goal that is reached in it is reached by chance."""
    until: str = Field(default="", exclude_if=operator.not_)
    """Rule that may end the stage before `steps`, in words; left out of files for a fixed
    length."""


def _is_missing(number: float | None) -> bool:
    return number is None


EndReason = Literal["length", "plateau", "metric", "explained", "goal"]
"""Reason of a stage's end."""
SUBJECTS = ("data", "goal", "length", "student", "teacher")
"""Subjects with which notes begin, before a colon."""
REMEDY = "restore it, or move the folder {!r} away and run again"


@final
@value
class RunRecord:
    """Beginning of a run."""

    kind: Literal["run"] = "run"
    method: str
    """Name of the curriculum, for example `extraction`."""
    seed: int
    """Seed of the run."""
    task: str
    """Description of the data, in a few words."""
    metric: str
    """Name of the metric by which the run is judged."""
    better: Literal["higher", "lower"] | None = None
    """Which values of the metric are better, if that was declared; None leaves it to its name."""
    batch_size: int
    """Examples a step."""
    stages: tuple[StagePlan, ...]
    """The bound stages, in order."""
    student_parameters: int
    """Number of parameters of the student."""
    teacher_parameters: int
    """Number of parameters of the teacher; 0 if the curriculum needs none."""
    versions: dict[str, str]
    """Versions of curricle, torch and Python."""
    device: str
    """Device and precision."""
    run: str = ""
    """Digest of everything the run depends on; empty in records of earlier versions."""
    chance: float | None = None
    """Accuracy below which a student does not differ, at 95 %, from a constant prediction of the
    most frequent held-out label; None if the evaluation is a function of the user."""
    notes: tuple[str, ...] = ()
    """Decisions of binding, one sentence each: the choice of stages, the output that is taken for
    the logits, positions outside the loss."""

    def __str__(self) -> str:
        """Return the method, its stages and their lengths in a line."""
        stages = ", ".join(f"{stage.name} ({stage.steps} steps)" for stage in self.stages)
        return f"{self.method} with seed {self.seed}: {stages}"


@final
@value
class StageRecord:
    """Beginning of a stage."""

    kind: Literal["stage"] = "stage"
    stage: str
    """Name of the stage."""
    usage: Usage
    """Consumed before the stage."""
    explained: float | None = Field(default=None, exclude_if=_is_missing)
    """Share of the final targets that the student explains before the stage, at most 1, where it
    decides whether the stage is left out; left out of files otherwise."""

    def __str__(self) -> str:
        """Return the step and the name of the stage in a line, with the explained share."""
        line = f"step {self.usage.steps}: stage {self.stage!r} begins"
        if self.explained is None:
            return line
        share = f"{100 * self.explained:.1f} %"
        return f"{line}; the student explains {share} of the final targets"


@final
@value
class StepRecord:
    """Training loss of a step."""

    kind: Literal["step"] = "step"
    stage: str
    """Name of the stage."""
    loss: float
    """Weighted sum of the stage's objectives."""
    terms: dict[str, float]
    """Each objective's own mean, unweighted."""
    learning_rate: float
    """Learning rate of the step."""
    usage: Usage
    """Consumed including this step."""

    def __str__(self) -> str:
        """Return the step, stage and loss in a line."""
        rate = f"learning rate {self.learning_rate:.3g}"
        return f"step {self.usage.steps} ({self.stage}): loss {self.loss:.4g}, {rate}"


@final
@value
class EvaluationRecord:
    """Metrics of the student on held-out data."""

    kind: Literal["evaluation"] = "evaluation"
    stage: str
    """Name of the stage."""
    metrics: dict[str, float]
    """Metrics by name, such as `accuracy` and `nll`: those of the task, or of the
    user's evaluation."""
    usage: Usage
    """Consumed before the evaluation."""

    def __str__(self) -> str:
        """Return the step, stage and metrics in a line."""
        return f"step {self.usage.steps} ({self.stage}): {_listed(self.metrics)}"


@final
@value
class StageEndRecord:
    """End of a stage with a rule as duration.

    A stage of a fixed length has no such record: it ends after its planned steps, or earlier if
    the goal of the run is reached, which ends the whole run.
    """

    kind: Literal["stage_end"] = "stage_end"
    stage: str
    """Name of the stage."""
    planned: int
    """Largest number of steps that was planned."""
    done: int
    """Number of steps that the stage has taken."""
    why: EndReason
    """Reason of the end: `length` (its maximum), `plateau`, `metric`, `explained` (left out before
    its first step), or `goal` of the run."""
    usage: Usage
    """Consumed by the end of the stage."""

    def __str__(self) -> str:
        """Return the step, and the length and reason of the end in a line."""
        length = f"ends after {self.done} of {self.planned} steps"
        return f"step {self.usage.steps}: stage {self.stage!r} {length} ({self.why})"


@final
@value
class RecoveryRecord:
    """Failure that the run has survived."""

    kind: Literal["recovery"] = "recovery"
    stage: str
    """Name of the stage."""
    fault: str
    """The failure, as a sentence."""
    action: str
    """Reaction of the run, as a sentence."""
    usage: Usage
    """Consumed until then; after a return to a checkpoint with its steps, and the cost of the steps
    that are taken again."""

    def __str__(self) -> str:
        """Return the step, the reaction and the failure in a line."""
        return f"step {self.usage.steps} ({self.stage}): {self.action}: {self.fault}"


@final
@value
class EndRecord:
    """End of a complete run."""

    kind: Literal["end"] = "end"
    metrics: dict[str, float]
    """Metrics of the finished student."""
    usage: Usage
    """Consumed by the whole run."""
    weights: str = ""
    """SHA-256 of the finished student's `model.safetensors`; empty in records of version 0.1."""
    best_metric: str = Field(default="", exclude_if=operator.not_)
    """Metric by which the best weights were kept (`keep_best`); left out of files if none were."""
    best_step: int = Field(default=0, exclude_if=operator.not_)
    """Steps after which the student had them; `metrics` are those of that evaluation."""
    skipped_steps: int = Field(default=0, exclude_if=operator.not_)
    """Number of steps whose update was left out (`on_divergence`); left out of files if none."""
    roll_backs: int = Field(default=0, exclude_if=operator.not_)
    """Number of returns to a checkpoint (`on_divergence`); left out of files if none."""

    def __str__(self) -> str:
        """Return the number of steps, the seconds and the metrics in a line."""
        cost = f"end after {self.usage.steps} steps in {self.usage.seconds:.1f} seconds"
        best = f" (best {self.best_metric} at step {self.best_step})" if self.best_metric else ""
        return f"{cost}: {_listed(self.metrics)}{best}"


@final
@value
class ProbeRecord:
    """Result of a probe on a finished student, or on the teacher at a checkpoint."""

    kind: Literal["probe"] = "probe"
    probe: str
    """Name of the probe, for example `correlations`."""
    model: str
    """Name of the student's strategy; `teacher` for the teacher."""
    is_teacher: bool
    """Whether it is the teacher, since a strategy may have any name."""
    seed: int
    """Seed of that model's training."""
    step: int
    """Steps that the model had trained by then; 0 for a pretrained teacher."""
    examples: int
    """Held-out examples that the probe has read."""
    numbers: dict[str, float]
    """Measured numbers by name."""


@final
@value
class Score:
    """Accuracy of a finished model on data other than those of its run."""

    name: str
    """Name of the data, and of the file."""
    accuracy: float
    """Share of right answers; a mean over kinds of sentences, or over seeds of a fine-tuning."""
    settings: dict[str, object]
    """Evaluation with its data and options; scores with equal settings can be compared."""
    details: dict[str, object]
    """All numbers of the evaluation."""


Record = Annotated[
    RunRecord
    | StageRecord
    | StepRecord
    | EvaluationRecord
    | StageEndRecord
    | RecoveryRecord
    | EndRecord,
    Field(discriminator="kind"),
]


def has_subject(note: str) -> bool:
    """Return whether a note names its subject, so that it is clear without that of its run.

    Args:
        note: One of `RunRecord.notes`.
    """
    return note.partition(":")[0] in SUBJECTS


def _listed(metrics: Mapping[str, float]) -> str:
    """Return metrics with their names, for people."""
    return ", ".join(f"{name} {number:.4g}" for name, number in metrics.items())


@final
class RecordWriter:
    """Writer that appends records to a file, one line each.

    After every call the line is with the operating system, so it outlives this process; after
    `sync` it is on the disk and outlives the machine.
    """

    def __init__(self, path: Path, *, keep_bytes: int = 0, head: str | None = None) -> None:
        """Open the file and drop everything after `keep_bytes`, as resuming needs.

        Args:
            path: The file.
            keep_bytes: Length of the lines that stay.
            head: Check of the last of them; None takes that of the file.

        Raises:
            CheckpointError: If the file is shorter than that, its lines are others, or it is a
                symbolic link, through which nothing may be dropped.
        """
        if path.is_symlink():
            raise CheckpointError(
                f"{str(path)!r} must be a file of its run folder; it is a symbolic link to "
                f"{str(path.readlink())!r}"
            )
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            rule = f"must hold the {keep_bytes} bytes from which the checkpoint resumes"
            raise CheckpointError(_faulty(path, f"{rule}; got {size}"))
        self._path = path
        self._chain = _chain_of(path, keep_bytes, head)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, a line that the disk refuses is not written again on closing.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(keep_bytes)

    @property
    def size(self) -> int:
        """Return the bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def head(self) -> str:
        """Return the check of the last line."""
        return self._chain.head

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
            OSError: As a `CheckpointError`, if the disk refuses; the file keeps its whole lines.
        """
        line, before = self._chain.line(plain(record)), self.size
        with disk_errors(self._path):
            try:
                written = self._file.write(line)
                if written != len(line):
                    self._file.write(line[written:])
            except OSError:
                # Half a line would be taken for the trace of a crash.
                self._file.truncate(before)
                raise

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order; a last line cut by a crash is left out.

    Raises:
        CheckpointError: If the file is missing, a line is damaged or not a record, or the manifest
            of a finished run lists another file.
    """
    if path.is_file() and path.name in sealed_names(path.parent, remedy=UNSEALED):
        # Only a manifest can show that whole lines are missing at the end.
        check_sealed(path.parent, [path.name], remedy=REMEDY.format(str(path.parent)))
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} must be a records file; there is none")
    chain = LineChain()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") and is_cut(line):
                return
            try:
                yield parse(Record, _current(chain.read(line)))
            except ValueError as error:
                # A `SpecError` and wrong UTF-8 are such errors too.
                rule = f"line {number} is not a record: {error}"
                raise CheckpointError(_faulty(path, rule)) from None


def _faulty(path: Path, rule: str) -> str:
    return f"{str(path)!r} {rule}; {REMEDY.format(str(path.parent))}"


def write_probes(path: Path, records: Iterable[ProbeRecord]) -> None:
    """Write results of probes in place of earlier ones."""
    write_bytes(path, sealed_lines(map(plain, records)))


def read_probes(path: Path) -> list[ProbeRecord]:
    """Return the results of probes in a file; none if it does not exist.

    Raises:
        CheckpointError: If it is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [parse(ProbeRecord, line) for line in read_lines(path.read_bytes())]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} must be the file that 'curricle probe' wrote; {reason(error)}"
        ) from None


def score_file(folder: Path, name: str) -> Path:
    """Return the file of a score of the model in a folder.

    Args:
        folder: Folder of the records of a model.
        name: Name of the data.
    """
    return folder / SCORES / f"{name}.json"


def write_score(folder: Path, score: Score) -> None:
    """Write a score of the model in a folder, in place of an earlier one of the same name."""
    path = score_file(folder, score.name)
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, plain(score))


def read_score(path: Path) -> Score:
    """Return the score in a file.

    Raises:
        CheckpointError: If it is damaged.
    """
    try:
        score: Score = parse(Score, read_sealed(path), source=str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} must hold a score: {reason(error)}; remove it, and 'curricle evaluate' "
            f"measures it again"
        ) from None
    return score


def check_head(path: Path, size: int, head: str) -> None:
    """Check the first lines of a records file.

    Args:
        path: The file.
        size: Bytes that the lines must fill.
        head: Check of the last of them; empty for none.

    Raises:
        CheckpointError: If a line is damaged, or the lines are others.
    """
    if not path.is_file() or path.stat().st_size < size:
        raise CheckpointError(_faulty(path, f"must hold the {size} bytes before a checkpoint"))
    _chain_of(path, size, head)


def _chain_of(path: Path, size: int, head: str | None) -> LineChain:
    """Return the chain of the first lines of a file, which must fill some bytes.

    Raises:
        CheckpointError: If a line is damaged, or the lines are others.
    """
    chain, place = LineChain(), 0
    if not size:
        return chain
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if place >= size:
                break
            place += len(line)
            try:
                chain.read(line)
            except ValueError as error:
                raise CheckpointError(_faulty(path, f"line {number} is damaged: {error}")) from None
    if place != size or chain.head != (chain.head if head is None else head):
        rule = f"must begin with the {size} bytes from which the checkpoint resumes"
        raise CheckpointError(_faulty(path, f"{rule}; got other lines"))
    return chain


def _current(data: Document) -> Document:
    """Return a record with the field names of this version.

    Version 0.1 wrote a single `note` into the run's record, and `usage` was named `usage`.
    """
    if "note" in data:
        note = data.pop("note")
        data = data | {"notes": [note] if note else []}
    if "usage" in data:
        data = data | {"usage": data.pop("usage")}
    return data
