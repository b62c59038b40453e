"""Numbered trials, the file of their results and the Markdown tables made from it.

A trial is a function of (seed, number) alone, so trials can be run in any order, in several
processes (`--first`), and again one by one. Results are appended to a JSON-lines file; a call that
finds some of its trials there goes on with the rest.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECONDS_A_MINUTE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of one trial."""

    seed: int
    trial: int
    group: str
    """Row of the table."""
    outcome: str
    """Column of the table."""
    detail: str = ""
    """Identity of a defect: equal for trials that fail for the same reason."""
    weight: int = 1
    """How much the trial adds to `--count`: the kills of a run, otherwise 1."""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    """What is needed to understand or repeat the trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which trials are run, and for how long."""

    seed: int
    count: int
    first: int = 0
    minutes: float | None = None


def read_results(path: Path) -> list[Result]:
    """Return the results in a file; a last line cut by a kill is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Result(**json.loads(line)) for line in lines if line.endswith("\n")]


def run_trials(
    trial: Callable[[int], Result], plan: Plan, path: Path, watch: Callable[[Result], None]
) -> list[Result]:
    """Return the results of a plan, of which those in the file are not run again.

    A trial of weight 0 proved nothing (a process ended before its kill) and is made up for by one
    more trial.
    """
    known = {
        result.trial: result
        for result in read_results(path)
        if result.seed == plan.seed and result.trial >= plan.first
    }
    results: list[Result] = []
    deadline = None if plan.minutes is None else time.monotonic() + plan.minutes * SECONDS_A_MINUTE
    path.parent.mkdir(parents=True, exist_ok=True)
    number = plan.first
    _drop_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        while sum(result.weight for result in results) < plan.count:
            result = known.get(number)
            if result is None:
                if deadline is not None and time.monotonic() > deadline:
                    break
                result = trial(number)
                file.write(json.dumps(asdict(result)) + "\n")
                file.flush()
                watch(result)
            results.append(result)
            number += 1
    return results


def _drop_torn_line(path: Path) -> None:
    """Cut a last line without its end, to which the next result would be joined."""
    if path.is_file():
        data = path.read_bytes()
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def outcome_table(results: Sequence[Result], outcomes: Sequence[str], *, rows: str) -> str:
    """Return trials by group and outcome as a Markdown table, with a row of sums."""
    counts = Counter((result.group, result.outcome) for result in results)
    groups = sorted({result.group for result in results})
    table = [[group, *(counts[group, outcome] for outcome in outcomes)] for group in groups]
    sums = [sum(counts[group, outcome] for group in groups) for outcome in outcomes]
    return markdown([rows, *outcomes], [*table, ["all", *sums]])


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose first column is text and the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def defects(results: Iterable[Result], clean: Iterable[str]) -> list[str]:
    """Return failures without repetitions, most frequent first, as Markdown list items."""
    accepted = frozenset(clean)
    failures = [result for result in results if result.outcome not in accepted]
    counts = Counter((result.outcome, result.group, result.detail) for result in failures)
    first = {
        (result.outcome, result.group, result.detail): result.trial for result in reversed(failures)
    }
    return [
        f"- {count} x **{outcome}** {group}: {detail} (first in trial {first[identity]})"
        for identity, count in counts.most_common()
        for outcome, group, detail in [identity]
    ]
