"""Experiment trackers as observers of runs: TensorBoard, Weights & Biases, Trackio, MLflow.

Each adapter passes the records of a run on to one tracker: losses, terms, learning rates and cost
below `train/`, metrics below `eval/`, all by the number of optimizer steps. The setup of the run
becomes its configuration. Project and server are chosen as each tracker documents it, by
`WANDB_PROJECT`, `MLFLOW_TRACKING_URI` and so on.

Design: trackers only read records, which are written without them, so a run with trackers is the
same run. A tracker opens with the first record after the opening one: resuming a finished run adds
nothing. An error of a tracker, such as an unreachable server, ends the reports to it and not the
run. The packages are extras, imported when a run reports to them.
"""

import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal, final

from curricle.errors import SpecError, near_names
from curricle.extras import imported
from curricle.records import (
    EndRecord,
    EvaluationRecord,
    Record,
    RunRecord,
    StageRecord,
    StepRecord,
    Usage,
)
from curricle.values import plain

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
"""Name of a tracker, as in the training arguments of transformers."""
LOGGER = logging.getLogger("curricle")
PROJECT = "curricle"
"""Project of the runs where the user has set none."""
TENSORBOARD = "tensorboard"
"""Folder of the events of TensorBoard in a run folder."""
NONE = "none"
"""Word for no tracker, also from transformers."""
LONGEST_PARAMETER = 500
"""Characters of a parameter that every server of MLflow takes."""


class Tracker(ABC):
    """Destination of the numbers of one run."""

    @abstractmethod
    def open(self, run: RunRecord, name: str, step: int) -> None:
        """Begin a run in the tracker; `step` is the number of steps that it has already taken."""

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add numbers at a step."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """End the run in the tracker."""


@final
class TensorBoard(Tracker):
    """Event files in the run folder, or in torch's default folder `runs/` without one."""

    def __init__(self, module: ModuleType, folder: Path | None) -> None:
        """Set the folder; nothing is written before `open`."""
        self._module, self._folder = module, folder
        self._writer: Any = None

    def open(self, run: RunRecord, name: str, step: int) -> None:
        """Begin an event file, which hides earlier events of steps that are repeated."""
        del name
        place = os.environ.get("TENSORBOARD_LOGGING_DIR") or (
            None if self._folder is None else str(self._folder / TENSORBOARD)
        )
        self._writer = self._module.SummaryWriter(place, purge_step=step)
        lines = "\n".join(f"    {key}: {text}" for key, text in _parameters(run).items())
        self._writer.add_text("run", lines, step)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add one scalar for each number."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the event file."""
        del failed
        self._writer.close()


@final
class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, online or offline (`WANDB_MODE`)."""

    def __init__(self, module: ModuleType, folder: Path | None) -> None:
        """Set the folder of the local files; without one wandb uses its default."""
        self._module, self._folder = module, folder
        self._run: Any = None

    def open(self, run: RunRecord, name: str, step: int) -> None:
        """Begin a run beside other open ones, since students may take turns."""
        del step
        self._run = self._module.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", name),
            dir=None if self._folder is None else str(self._folder),
            config=plain(run),
            reinit="create_new",
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add numbers at a step."""
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run, with exit code 1 if it failed."""
        self._run.finish(exit_code=int(failed))


@final
class Trackio(Tracker):
    """A run of Trackio."""

    def __init__(self, module: ModuleType, folder: Path | None) -> None:
        """Take the module; Trackio keeps its data in a folder of its own (`TRACKIO_DIR`)."""
        del folder
        self._module = module
        self._run: Any = None

    def open(self, run: RunRecord, name: str, step: int) -> None:
        """Begin a run."""
        del step
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = self._module.init(project=project, name=name, config=plain(run))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add numbers at a step."""
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        del failed
        self._run.finish()


@final
class MLflow(Tracker):
    """A run of MLflow, through its client, which allows several open runs."""

    def __init__(self, module: ModuleType, folder: Path | None) -> None:
        """Take the module; MLflow has one place for all runs (`MLFLOW_TRACKING_URI`)."""
        del folder
        self._module = module
        self._client: Any = None
        self._run = ""

    def open(self, run: RunRecord, name: str, step: int) -> None:
        """Begin a run in the experiment of `MLFLOW_EXPERIMENT_NAME`."""
        del step
        self._client = self._module.MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        number = (
            self._client.create_experiment(experiment) if known is None else known.experiment_id
        )
        self._run = self._client.create_run(number, run_name=name).info.run_id
        for key, text in _parameters(run).items():
            self._client.log_param(self._run, key, text[:LONGEST_PARAMETER])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add numbers at a step, under names with the characters that MLflow allows."""
        milliseconds = int(time.time() * 1000)
        entity = self._module.entities.Metric
        metrics = [
            entity(re.sub(r"[^\w\-. :/]", "_", name), number, milliseconds, step)
            for name, number in numbers.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """End the run as finished or failed."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


TRACKERS: Mapping[TrackerName, tuple[str, Callable[[ModuleType, Path | None], Tracker]]] = (
    MappingProxyType(
        {
            "tensorboard": ("torch.utils.tensorboard", TensorBoard),
            "wandb": ("wandb", WeightsAndBiases),
            "trackio": ("trackio", Trackio),
            "mlflow": ("mlflow", MLflow),
        }
    )
)
"""Module and adapter of each tracker; its package and the extra of curricle have its name."""


@final
class TrackedRun:
    """Observer that passes the records of one run on to a tracker."""

    def __init__(self, tracker: Tracker, kind: TrackerName, prefix: str = "") -> None:
        """Set the tracker.

        Args:
            tracker: An adapter that is not open yet.
            kind: Its name, for warnings.
            prefix: Name of the run in the tracker; by default the curriculum's name.
        """
        self._tracker, self._kind, self._prefix = tracker, kind, prefix
        self._run: RunRecord | None = None
        self._state: Literal["waiting", "open", "closed"] = "waiting"

    def __call__(self, record: Record) -> None:
        """Pass a record on."""
        if isinstance(record, RunRecord):
            self._run = record
            return
        if self._state == "waiting" and not isinstance(record, EndRecord):
            self._try(lambda: self._open(record.usage.steps))
        if self._state == "open":
            self._try(lambda: self._tracker.log(self._numbers(record), record.usage.steps))

    def close(self, *, failed: bool) -> None:
        """End the run in the tracker, if one was opened.

        Args:
            failed: Whether the run was ended by an error.
        """
        if self._state == "open":
            self._state = "closed"
            self._try(lambda: self._tracker.close(failed=failed))

    def _open(self, step: int) -> None:
        assert self._run is not None  # noqa: S101 - the first record of every run
        name = self._prefix or f"{self._run.method} seed {self._run.seed}"
        self._tracker.open(self._run, name, step)
        self._state = "open"

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - trackers have no common base of errors
            self._state = "closed"
            # Hours of training are worth more than their curve in a tracker, and the records on
            # disk have all of it.
            LOGGER.warning(
                "curricle: reports to %r end here, the run goes on: %s", self._kind, error
            )

    def _numbers(self, record: Record) -> dict[str, float]:
        """Return the numbers of a record by their names in trackers."""
        match record:
            case StepRecord():
                numbers = {"loss": record.loss, "learning_rate": record.learning_rate}
                numbers |= {f"terms/{name}": number for name, number in record.terms.items()}
                numbers |= _cost(record.usage)
                return {f"train/{name}": number for name, number in numbers.items()}
            case StageRecord():
                names = [] if self._run is None else [stage.name for stage in self._run.stages]
                place = names.index(record.stage) + 1 if record.stage in names else 0
                return {"train/stage": float(place)}
            case EvaluationRecord() | EndRecord():
                return {f"eval/{name}": number for name, number in record.metrics.items()}
        return {}


def tracker_names(report_to: object) -> tuple[TrackerName, ...]:
    """Return the names of trackers in an argument or field `report_to`.

    Args:
        report_to: A name, several names, or nothing as None, an empty list or `none`.

    Raises:
        SpecError: If it is something else.
    """
    if report_to is None or report_to == NONE:
        return ()
    names = [report_to] if isinstance(report_to, str) else report_to
    if not isinstance(names, (list, tuple)):
        raise SpecError(f"'report_to' must be a list of names; got {report_to!r}")
    for name in names:
        if not isinstance(name, str) or name not in TRACKERS:
            raise SpecError(
                f"'report_to' must name trackers; got {name!r}; {near_names(str(name), TRACKERS)}"
            )
    return tuple(dict.fromkeys(names))


def check_trackers(names: tuple[TrackerName, ...]) -> None:
    """Check that the packages of trackers are installed, before anything is trained."""
    for name in names:
        _module(name)


@contextmanager
def tracking(
    names: tuple[TrackerName, ...], folder: Path | None, prefix: str = ""
) -> Iterator[tuple[Callable[[Record], None], ...]]:
    """Report one run to trackers.

    Args:
        names: Names of trackers.
        folder: Run folder; None if the run writes nothing.
        prefix: Name of the run in the trackers; by default the curriculum's name and the seed.

    Yields:
        Observers of the run.
    """
    observers = [
        TrackedRun(TRACKERS[name][1](_module(name), folder), name, prefix) for name in names
    ]
    with ExitStack() as stack:
        for observer in observers:
            stack.push(
                lambda kind, _error, _trace, observer=observer: observer.close(
                    failed=kind is not None
                )
            )
        yield tuple(observers)


def _module(name: TrackerName) -> ModuleType:
    return imported(TRACKERS[name][0], package=name, extra=name, use=f"'report_to' {name!r}")


def _cost(usage: Usage) -> dict[str, float]:
    """Return the usage of a run except its steps, which are the axis of the curves."""
    numbers: dict[str, float] = plain(usage)
    return {name: number for name, number in numbers.items() if name != "steps"}


def _parameters(run: RunRecord) -> dict[str, str]:
    """Return the setup of a run as texts by name, each stage in a few words."""
    facts = {key: fact for key, fact in plain(run).items() if key not in {"kind", "stages"}}
    facts |= {
        f"stage_{number}": f"{stage.name}: {stage.steps} steps, {stage.objective}"
        for number, stage in enumerate(run.stages, start=1)
    }
    return {key: str(fact) for key, fact in facts.items()}
