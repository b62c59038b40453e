"""The spec of a run, as a YAML file holds it.

One format serves every command. `curricle teach` needs `task` and `teacher`; `distill` also
`student`, `curriculum` and `budget`; `compare` reads `strategies` and `seeds` instead of
`curriculum`. A stored spec can be run again as it is.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Annotated, TypeVar, cast, final

from pydantic import BeforeValidator, Field

from curricle.curriculum.checkpoint_selection import PlannedCheckpoints
from curricle.curriculum.durations import AnyDuration, Duration
from curricle.curriculum.strategies import build
from curricle.data.streams import examples_per_epoch
from curricle.errors import CheckpointError, CurricleError, SpecError, near_names
from curricle.field_errors import PLAIN_NAME
from curricle.metrics import ACCURACY, METRICS, MetricName, is_reached
from curricle.models.cnn import CNNSpec
from curricle.models.huggingface import HuggingFaceSpec, PretrainedSpec
from curricle.models.mlp import MLPSpec
from curricle.models.sentence_encoder import SentenceEncoderSpec
from curricle.runs.budget import PROVISIONAL, AnyBudget
from curricle.task_data import with_objectives
from curricle.tasks import PairedTextTask, PcfgTask, Task, TextTask
from curricle.teachers.trajectory import checkpoint_steps, hugging_face_steps
from curricle.trackers import TrackerName, tracker_names
from curricle.training.setup.compatibility import check_compatible
from curricle.training.setup.optimizers import Optimizer
from curricle.training.setup.settings import TrainingSettings
from curricle.training.targets.capture import TargetCompression
from curricle.values import LONGEST_NAME, Line, Plain, override, parse, plain, read_yaml, value

Model = Annotated[
    MLPSpec | CNNSpec | HuggingFaceSpec | PretrainedSpec | SentenceEncoderSpec,
    Field(discriminator="kind"),
]
FieldType = TypeVar("FieldType")
Name = Annotated[str, Field(pattern=PLAIN_NAME, max_length=LONGEST_NAME)]
MOST_CHECKPOINTS = 100_000
"""Maximum number of checkpoints of a teacher's training."""
CHECKPOINTS = 5
"""Default number of checkpoints of a teacher's training."""
SEEDS = (0, 1, 2)
"""Default seeds of the students of a comparison."""


@final
@value
class TeacherSpec:
    """The model that teaches, and how it was or will be trained."""

    model: Model
    """The model; larger than the student."""
    total: AnyDuration | None = None
    """Length of its training from labels; None takes the model as it is (`pretrained`)."""
    optimizer: Optimizer | None = None
    """How it is trained; None takes the run's optimizer."""
    checkpoints: int = Field(default=CHECKPOINTS, gt=0, le=MOST_CHECKPOINTS)
    """Checkpoints kept of its training, equally spaced; the last is the finished teacher."""
    folders: tuple[str, ...] = ()
    """Hugging Face folders that serve as the trajectory of a pretrained teacher."""

    def __post_init__(self) -> None:
        """Check that a teacher is either trained here or already trained.

        Raises:
            SpecError: If neither or both is given, it has an optimizer without effect, or its
                checkpoints are not in order.
        """
        is_pretrained = getattr(self.model, "path", None) is not None
        if is_pretrained == (self.total is not None):
            raise SpecError(
                f"'total' must be given exactly for teachers that are not pretrained; "
                f"got {self.total} for kind {self.model.kind!r}"
            )
        if is_pretrained:
            self._check_untrained()
        if self.folders and not isinstance(self.model, PretrainedSpec):
            raise SpecError(f"'folders' must go with a pretrained teacher; got {self.model.kind!r}")
        try:
            self.pretrained_steps()
        except CheckpointError as error:
            raise SpecError(str(error)) from None

    def _check_untrained(self) -> None:
        """Refuse settings that only affect training.

        Raises:
            SpecError: If there is any.
        """
        rule = "must be left out for a teacher that is not trained here"
        if self.optimizer is not None:
            raise SpecError(f"'optimizer' {rule}; got {self.optimizer.kind!r}")
        if self.checkpoints != CHECKPOINTS:
            raise SpecError(f"'checkpoints' {rule}; got {self.checkpoints}")

    def pretrained_steps(self) -> tuple[int, ...]:
        """Return the steps that the names of `folders` stand for."""
        return hugging_face_steps([Path(folder) for folder in self.folders])


def _strategy_fields(fields: object) -> object:
    """Return the fields of a strategy as they are.

    Raises:
        SpecError: If they have the form that `curricle.compare` takes.
    """
    if isinstance(fields, Mapping) and "kind" in fields and "curriculum" not in fields:
        raise SpecError(
            f"a strategy of a spec must hold its curriculum, as "
            f"{{curriculum: {{kind: {fields['kind']}}}}}; got {{kind: {fields['kind']}}}, the form "
            f"of curricle.compare in Python"
        )
    return fields


@final
@value
class StrategySpec:
    """One strategy of a comparison."""

    curriculum: Plain
    """`kind` names the strategy, the other fields are its arguments."""
    optimizer: Optimizer | None = None
    """How the student is trained; None takes the run's optimizer."""


@final
@value
class Goal:
    """Metric and value that count as learned."""

    metric: MetricName = ACCURACY.name  # type: ignore[assignment] # of the same names
    """Metric by which runs are judged; `kl` compares with the finished teacher."""
    number: float | None = None
    """Value to be reached; None sets no goal."""
    final_of: str | None = None
    """Strategy that sets the value to be reached: its final value, mean over seeds."""
    ends_run: bool = False
    """Whether a student's run ends at the first evaluation that reaches `number`, which saves time;
    final values are then those at the goal."""

    def __post_init__(self) -> None:
        """Check that there is a single goal.

        Raises:
            SpecError: If there are two, no value of the metric can reach it, or runs are to end
                at a number that is not given.
        """
        if self.number is not None and self.final_of is not None:
            raise SpecError(f"'number' must not be given with 'final_of'; got {self.number}")
        least, most = METRICS[self.metric].least, METRICS[self.metric].most
        if self.number is not None and isfinite(most) and not least <= self.number <= most:
            raise SpecError(
                f"'number' must lie between {least:g} and {most:g} for {self.metric!r}; got "
                f"{self.number}"
            )
        if self.ends_run and self.number is None:
            raise SpecError("'ends_run' must come with a 'number'; got none")

    def is_reached(self, metrics: Mapping[str, float]) -> bool:
        """Return whether metrics are at the goal number or better."""
        if self.number is None:
            return False
        return is_reached(self.metric, metrics[self.metric], self.number)


@final
@value
class TargetsSpec:
    """Where a teacher's targets are kept, and how."""

    folder: Line = Field(min_length=1)
    """Folder that `curricle targets capture` fills and that students then read."""
    compression: TargetCompression = TargetCompression()
    """Compression used when targets are captured. Ignored when reading: the manifest records it."""


def from_folder(data: object) -> object:
    """Return the fields of a plain text, which is the folder."""
    return {"folder": data} if isinstance(data, str) else data


@final
@value
class RunSpec:
    """Everything about a run, or about a comparison of runs."""

    seed: int = 0
    """Seed of the teacher, and of the student in `distill`."""
    output_dir: Line = Field(min_length=1)
    """Run folder; must not hold a run yet."""
    cache_dir: Line = "runs/cache"
    """Where tokenized texts are kept for all runs."""
    task: Task
    """Data and labels."""
    teacher: TeacherSpec
    """Model and training of the teacher."""
    student: Model | None = None
    """Model of the students."""
    curriculum: Plain | None = None
    """For `distill`: the strategy's name as `kind`, and its arguments."""
    strategies: dict[Name, Annotated[StrategySpec, BeforeValidator(_strategy_fields)]] = Field(
        default_factory=dict
    )
    """For `compare`: strategies by name."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """For `compare`: seeds of the students; None takes 0, 1 and 2."""
    data_seed: int | None = None
    """Seed of the data that students read; None gives each the data of its own seed."""
    share_teacher: bool = False
    """For `compare`: train students of the same data in turns, with one forward pass of the teacher
    for all of them: the strategies of a seed, or with `data_seed` all students. Results do not
    change; all these students are in memory."""
    batch_students: bool = False
    """For `compare`: as `share_teacher`, and students of one architecture and strategy also take
    their steps as one batched model, which is faster for small models. Results agree within
    rounding. Needs `data_seed`."""
    targets: Annotated[TargetsSpec, BeforeValidator(from_folder)] | None = None
    """Stored targets that students read instead of running the teacher; a text is their folder.
    They are captured from the finished teacher for the data of this spec, so with several seeds and
    fresh or masked data give all students one `data_seed`. None runs the teacher at each step."""
    budget: AnyBudget | None = None
    """Limit for each student."""
    goal: Goal = Goal()
    """Metric and value that count as learned."""
    optimizer: Optimizer
    """How students are trained, and the teacher unless it has its own."""
    engine: TrainingSettings = TrainingSettings()
    """Device, precision and intervals."""
    report_to: Annotated[tuple[TrackerName, ...], BeforeValidator(tracker_names)] = ()
    """Trackers that receive every run beside its records, each an extra of curricle."""

    def __post_init__(self) -> None:
        """Check the fields as far as possible without opening the task or building a model.

        Raises:
            SpecError: If models do not suit the task, a strategy does not exist or take its
                arguments, the goal names none, seeds are equal or have no strategies, or two
                features exclude each other.
        """
        self._check_models()
        self._check_metric()
        self._check_seeds()
        self._check_features()
        total = self._total()
        # Which checkpoints a teacher will have whose length is in epochs is known from its data,
        # which a spec does not read; `rehearse` binds all strategies before anything is trained.
        has_steps = self.teacher.total is None or self.teacher.total.unit != "epochs"
        for path, call in self._calls().items():
            if call.get("kind") == "progressive" and not has_steps:
                continue
            steps = self.trajectory_steps() if has_steps else ()
            try:
                build(call, total=total, trajectory=PlannedCheckpoints(steps))
            except CurricleError as error:
                raise SpecError(f"{path!r}: {error}") from None
        if self.goal.final_of not in (None, *self.strategies):
            raise SpecError(
                f"'goal.final_of' must name a strategy; got {self.goal.final_of!r}; "
                f"{near_names(str(self.goal.final_of), self.strategies)}"
            )

    def _check_metric(self) -> None:
        """Judge by the task's metric if none is named, and refuse one of another kind of labels.

        Raises:
            SpecError: If the metric does not read the task's labels or the teacher.
        """
        judge = METRICS[self.task.metric]
        if self.goal == Goal() and judge != ACCURACY:
            # A value is frozen for all but its own construction.
            object.__setattr__(self, "goal", Goal(metric=cast("MetricName", judge.name)))
        metric = METRICS[self.goal.metric]
        if metric.reads not in (judge.reads, "teacher"):
            fitting = [name for name, other in METRICS.items() if other.reads == judge.reads]
            raise SpecError(
                f"'goal.metric' must be {' or '.join(map(repr, fitting))} for the task "
                f"{self.task.kind!r}; got {metric.name!r}"
            )

    def _check_seeds(self) -> None:
        if self.seeds is None:
            return
        if len(set(self.seeds)) != len(self.seeds):
            raise SpecError(f"'seeds' must differ; got {list(self.seeds)}")
        if not self.strategies:
            raise SpecError(
                f"'seeds' must come with 'strategies' for 'curricle compare'; got "
                f"{list(self.seeds)} without; 'seed' is that of 'curricle distill'"
            )

    def _check_features(self) -> None:
        """Check that shared teacher, budget, stored targets and settings fit.

        Raises:
            SpecError: If two exclude each other, or a shared teacher lacks a setting that it needs.
        """
        way = "batch_students" if self.batch_students else "share_teacher"
        is_shared = self.batch_students or self.share_teacher
        features = self.engine.features("engine.")
        if is_shared:
            features[way] = f"'{way}=true'"
        if self.budget is not None and not self.budget.is_length:
            features[self.budget.unit] = f"a budget of {self.budget}"
        if self.targets is not None:
            features["stored targets"] = "'targets'"
        check_compatible(features, SpecError)
        if is_shared and not self.strategies:
            raise SpecError(f"{way!r} needs 'strategies', for 'curricle compare'; got none")
        if self.batch_students and self.data_seed is None:
            raise SpecError(
                "'batch_students' needs 'data_seed': students of one strategy, which differ in "
                "their seeds, must read the same data"
            )

    def _check_models(self) -> None:
        if isinstance(self.task, PairedTextTask) and self.teacher.total is not None:
            raise SpecError(
                f"'teacher.total' must be left out with the task 'paired_text', whose teacher is "
                f"loaded with its tokenizer; got {self.teacher.total}"
            )
        if not self.task.is_labeled and self.teacher.total is not None:
            raise SpecError(
                f"'teacher.total' must be left out with the task {self.task.kind!r}, which has no "
                f"labels to train a teacher from; got {self.teacher.total}; 'teacher.model' with a "
                f"'path' is a finished one"
            )
        models = {"teacher.model": self.teacher.model, "student": self.student}
        suitable = self.task.models
        for path, model in models.items():
            if model is not None and model.kind not in suitable:
                raise SpecError(
                    f"'{path}.kind' must be {' or '.join(map(repr, suitable))} for the task "
                    f"{self.task.kind!r}; got {model.kind!r}"
                )
            reads_maps = getattr(self.task, "encoding", None) == "image"
            if isinstance(model, MLPSpec) and reads_maps != (model.axes > 0):
                raise SpecError(
                    f"'{path}.axes' must be {'1 or 2' if reads_maps else '0'} for the data of the "
                    f"task {self.task.kind!r}, which are {'maps' if reads_maps else 'vectors'}; "
                    f"got {model.axes}"
                )
            head = getattr(model, "head", None)
            if head is not None and head not in self.task.heads:
                raise SpecError(
                    f"'{path}.head' must be {' or '.join(map(repr, self.task.heads))} for the task "
                    f"{self.task.kind!r}; got {head!r}"
                )
            if _sees_the_answer(self.task, model):
                raise SpecError(
                    f"'{path}.head' must be 'causal_lm' to predict the next token, which a model "
                    f"with head 'masked_lm' sees"
                )

    def _calls(self) -> dict[str, Plain]:
        """Return every strategy with its arguments by its path in the spec."""
        calls = {
            f"strategies.{name}.curriculum": strategy.curriculum
            for name, strategy in self.strategies.items()
        }
        if self.curriculum is not None:
            calls["curriculum"] = self.curriculum
        return {path: with_objectives(call, self.task) for path, call in calls.items()}

    def _total(self) -> Duration:
        """Return the length of a student's training as far as the spec determines it."""
        if self.budget is None or not self.budget.is_length:
            return PROVISIONAL
        return self.budget.duration()

    def teacher_steps(self) -> int:
        """Return the length of the teacher's training in steps; 0 if it is pretrained."""
        if self.teacher.total is None:
            return 0
        epoch = None
        if self.teacher.total.unit == "epochs":
            epoch = _epoch_of(json.dumps(plain(self.task)), self.seed, self.cache_dir)
        return self.teacher.total.steps(
            batch_size=self.task.batch_size,
            tokens_per_batch=self.task.tokens_per_batch,
            examples_per_epoch=epoch,
        )

    def trajectory_steps(self) -> tuple[int, ...]:
        """Return the steps at which the teacher's checkpoints are or will be kept."""
        total = self.teacher_steps()
        if total == 0:
            return self.teacher.pretrained_steps()
        return checkpoint_steps(total, self.teacher.checkpoints)

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return Path(self.output_dir)


@lru_cache(maxsize=8)
def _epoch_of(task: str, seed: int, cache_dir: str) -> int | None:
    """Return the examples of an epoch of a task.

    Args:
        task: The task as JSON, by which the result is kept.
        seed: Seed of the data.
        cache_dir: Where tokenized texts are kept.
    """
    opened: Task = parse(Task, json.loads(task))
    return examples_per_epoch(opened.open(seed=seed, cache_dir=Path(cache_dir)).stream)


def _sees_the_answer(task: Task, model: Model | None) -> bool:
    """Return whether a model reads the token that it is to predict."""
    predicts_next = isinstance(task, PairedTextTask) or (
        isinstance(task, (TextTask, PcfgTask)) and task.objective == "next_token"
    )
    return predicts_next and getattr(model, "head", None) == "masked_lm"


def load_spec(path: Path, assignments: list[str] | None = None) -> RunSpec:
    """Return the spec in a YAML file, with `path=value` overrides applied.

    Args:
        path: The file.
        assignments: Overrides.
    """
    data = override(read_yaml(path, listed="docs/spec.md"), assignments or [])
    spec: RunSpec = parse(RunSpec, data, source=str(path))
    return spec


def changed(spec: RunSpec, assignments: list[str], *, option: str = "--set") -> RunSpec:
    """Return a spec with `path=value` overrides applied.

    Args:
        spec: The spec.
        assignments: The overrides.
        option: Option of the command line that gives them, for error sentences.
    """
    result: RunSpec = parse(RunSpec, override(plain(spec), assignments), source=option)
    return result


def require_field(field: FieldType | None, name: str, command: str) -> FieldType:
    """Return a field that a command needs.

    Raises:
        SpecError: If the spec does not have it.
    """
    if not field:
        raise SpecError(f"{name!r} must be in the spec for 'curricle {command}'; it is not")
    return field
