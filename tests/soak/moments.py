"""Moments at which a process is killed: at random, or aimed at what it does to its files.

Aimed moments are seen by looking at the run folder again and again. `file` is just after a file or
folder has got its final name, `rename` while a temporary one exists, `record` just after a line was
added to the records. Two of these are aimed at by themselves: `checkpoint` while the temporary
folder of a checkpoint exists, and `border` just after the record of a stage's begin or end.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.soak.processes import exit_code, kill_group

MOMENTS = ("uniform", "file", "rename", "record", "checkpoint", "border")
BORDERS = ('"kind": "stage"', '"kind": "stage_end"', '"kind": "end"')
POLL_SECONDS = 0.001
LONGEST_DELAY = 0.003
"""Seconds after an aimed moment within which the kill falls in half of the cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What an undisturbed run does: how long it takes and how many aimed moments were seen."""

    seconds: float
    events: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A moment to kill at."""

    moment: str
    event: int = 0
    """Number of the aimed moment, from 1 on."""
    seconds: float = 0.0
    """For `uniform` since the start, otherwise after the event."""


def draw_aim(generator: np.random.Generator, activity: Activity) -> Aim:
    """Return a moment among those that an undisturbed run has."""
    possible = ["uniform", *(name for name in MOMENTS if activity.events.get(name))]
    moment = possible[generator.integers(len(possible))]
    if moment == "uniform":
        return Aim(moment=moment, seconds=float(generator.uniform(0, activity.seconds)))
    delay = float(generator.uniform(0, LONGEST_DELAY)) if generator.random() < 0.5 else 0.0
    event = int(generator.integers(1, activity.events[moment] + 1))
    return Aim(moment=moment, event=event, seconds=delay)


class Watcher:
    """Counts the aimed moments of a process by looking at a folder."""

    def __init__(self, folder: Path) -> None:
        """Take what is there already as seen."""
        self._folder = folder
        self.events = dict.fromkeys(MOMENTS[1:], 0)
        self._final, self._hidden, self._sizes = self._scan()

    def look(self) -> None:
        """Count what has happened since the last look."""
        final, hidden, sizes = self._scan()
        self.events["file"] += len(final - self._final)
        self.events["rename"] += len(hidden - self._hidden)
        self.events["checkpoint"] += sum(
            Path(path).name.startswith(".step-") for path in hidden - self._hidden
        )
        grown = [path for path in sizes if sizes[path] != self._sizes.get(path)]
        self.events["record"] += len(grown)
        self.events["border"] += sum(_is_border(Path(path)) for path in grown)
        self._final, self._hidden, self._sizes = final, hidden, sizes

    def _scan(self) -> tuple[set[str], set[str], dict[str, int]]:
        final: set[str] = set()
        hidden: set[str] = set()
        sizes: dict[str, int] = {}
        for path, is_hidden in _entries(self._folder):
            (hidden if is_hidden else final).add(str(path))
            if path.name == "records.jsonl":
                try:
                    sizes[str(path)] = path.stat().st_size
                except OSError:
                    continue
        return final, hidden, sizes


def _is_border(path: Path) -> bool:
    """Return whether the last record of a file is of the begin or end of a stage."""
    try:
        last = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").rpartition("\n")[2]
    except OSError:
        return False
    return any(kind in last for kind in BORDERS)


def kill_at(pid: int, folder: Path, aim: Aim) -> int | None:
    """Kill a process group at a moment.

    Returns:
        None if it was killed, and the exit code of a process that had ended before.
    """
    watcher, started = Watcher(folder), time.monotonic()
    while (code := exit_code(pid)) is None:
        if aim.moment == "uniform":
            is_due = time.monotonic() - started >= aim.seconds
        else:
            watcher.look()
            is_due = watcher.events[aim.moment] >= aim.event
        if is_due:
            time.sleep(0.0 if aim.moment == "uniform" else aim.seconds)
            if (code := exit_code(pid)) is not None:
                return code
            kill_group(pid)
            return None
        time.sleep(POLL_SECONDS)
    return code


def observe(pid: int, folder: Path) -> tuple[int, Activity]:
    """Return the exit code of an undisturbed process and what it did."""
    watcher, started = Watcher(folder), time.monotonic()
    while (code := exit_code(pid)) is None:
        watcher.look()
        time.sleep(POLL_SECONDS)
    return code, Activity(seconds=time.monotonic() - started, events=dict(watcher.events))


def interrupted_stage(folder: Path) -> str:
    """Return the kind of the stage that a killed process was in, as its records show."""
    records = sorted(folder.rglob("records.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    if not records:
        return "before the first step"
    path = records[-1]
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    parsed = [json.loads(line) for line in lines]
    if not parsed or parsed[-1]["kind"] == "end":
        return "between runs"
    if path.parent.name == "teacher":
        return "teacher"
    names = [record["stage"] for record in parsed if record["kind"] == "stage"]
    plans = {plan["name"]: plan for plan in parsed[0].get("stages", [])}
    return _stage_kind(plans.get(names[-1], {})) if names else "before the first step"


def _stage_kind(plan: dict[str, Any]) -> str:
    if not plan.get("reads_logits", True):
        return "layer"
    teacher = str(plan.get("teacher", ""))
    return {"final": "logits", "none": "labels"}.get(teacher, "checkpoint's logits")


def _entries(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield everything below a folder, with whether its name or that of a parent is hidden."""
    waiting = [(folder, False)]
    while waiting:
        here, was_hidden = waiting.pop()
        try:
            children = list(here.iterdir())
        except OSError:
            # Removed or not made yet.
            continue
        for path in children:
            is_hidden = was_hidden or path.name.startswith(".")
            yield path, is_hidden
            if path.is_dir():
                waiting.append((path, is_hidden))
