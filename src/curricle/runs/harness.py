"""Tasks of the LM Evaluation Harness on a finished language model.

`curricle evaluate RUN --lm-eval TASKS` calls the package `lm_eval` with the model's Hugging Face
folder. A task is a name that the package knows, whose data it loads from the Hub, or a YAML file of
one's own, whose data may be local.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from curricle import seeding
from curricle.errors import BindError, SpecError, reason
from curricle.extras import imported
from curricle.models.huggingface import language_head
from curricle.reports.formatting import NONE
from curricle.reports.tables import Grid, to_markdown
from curricle.values import Plain

EXTRA = "lm-eval"
"""Extra of curricle that installs the package."""
BATCH_SIZE = 8
"""Texts in one forward pass."""
TASK_LINE = re.compile(r"^task:\s*['\"]?([^'\"\s#]+)", re.MULTILINE)
STDERR = "_stderr"
"""End of the names of standard errors in results."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessScores:
    """Metrics of some tasks, as the package gives them; its text is a table."""

    by_task: Mapping[str, Mapping[str, float]]
    """Metrics by task and name; standard errors are named with `_stderr`."""
    version: str
    """Version of the package."""

    def plain(self) -> Plain:
        """Return plain data, as JSON has it."""
        return {
            "lm_eval": self.version,
            "tasks": {task: dict(numbers) for task, numbers in self.by_task.items()},
        }

    def grid(self, title: str = "LM Evaluation Harness") -> Grid:
        """Return one row a metric of a task, with its standard error.

        Args:
            title: Heading.
        """
        rows = [
            (task, name, f"{number:.4f}", _error(numbers, name))
            for task, numbers in self.by_task.items()
            for name, number in numbers.items()
            if not name.endswith(STDERR)
        ]
        return Grid(
            title=title,
            columns=("task", "metric", "value", "standard error"),
            rows=tuple(rows),
            numeric=(False, False, True, True),
        )

    def __str__(self) -> str:
        """Return the table."""
        return to_markdown(self.grid())


def harness_scores(
    folder: Path, tasks: Sequence[str], *, limit: int | None = None, device: str = "cpu"
) -> HarnessScores:
    """Return the metrics of a language model on tasks of the LM Evaluation Harness.

    Args:
        folder: Hugging Face folder with the model and its tokenizer.
        tasks: Names of tasks, or paths of YAML files that define one.
        limit: Number of examples of each task; None takes all.
        device: Device of the model.

    Raises:
        BindError: If the package is missing, or the model does not predict next tokens.
        SpecError: If a task does not exist or cannot be evaluated.
    """
    package = imported("lm_eval", package="lm_eval", extra=EXTRA, use="'--lm-eval'")
    head = language_head(folder)
    if head != "causal_lm":
        raise BindError(
            f"'--lm-eval' must be of a model that predicts next tokens; got one with head {head!r}"
        )
    names, folders = _named_tasks(tasks)
    manager = imported("lm_eval.tasks", package="lm_eval", extra=EXTRA, use="'--lm-eval'")
    try:
        # The package seeds the global generators.
        with seeding.scoped(0, "evaluation/lm_eval", beyond_torch=True):
            results: Any = package.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder), "device": device},
                tasks=names,
                limit=limit,
                batch_size=BATCH_SIZE,
                task_manager=manager.TaskManager(include_path=folders or None),
            )
    except Exception as error:
        # The package raises errors of its own, of data sets and of the Hub.
        raise SpecError(
            f"'--lm-eval' must name tasks that lm_eval can evaluate; got {', '.join(tasks)}: "
            f"{type(error).__name__}: {reason(error)}"
        ) from error
    return HarnessScores(
        by_task={task: _numbers(metrics) for task, metrics in results["results"].items()},
        version=str(getattr(package, "__version__", "unknown")),
    )


def _named_tasks(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of tasks and the folders of those that are files.

    Raises:
        SpecError: If a file is missing or names no task.
    """
    names: list[str] = []
    folders: list[str] = []
    for task in tasks:
        path = Path(task)
        if path.suffix not in {".yaml", ".yml"}:
            names.append(task)
            continue
        if not path.is_file():
            raise SpecError(f"'--lm-eval' must name tasks or YAML files; got {task!r}, no file")
        match = TASK_LINE.search(path.read_text(encoding="utf-8"))
        if match is None:
            raise SpecError(f"{task!r} must have a line 'task: NAME', as lm_eval reads it")
        names.append(match[1])
        folders.append(str(path.resolve().parent))
    return names, list(dict.fromkeys(folders))


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers among the results of a task, without the name of the filter."""
    # Names are `metric,filter`; `none` is the filter that does nothing.
    return {
        name.removesuffix(",none"): float(number)
        for name, number in metrics.items()
        if isinstance(number, (int, float)) and "," in name
    }


def _error(numbers: Mapping[str, float], name: str) -> str:
    metric, _, rule = name.partition(",")
    error = numbers.get(f"{metric}{STDERR},{rule}" if rule else f"{metric}{STDERR}")
    return NONE if error is None else f"{error:.4f}"
