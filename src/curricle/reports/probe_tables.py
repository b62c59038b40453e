"""Tables and figures of probe measurements.

One table a probe, one row a network, students as means over their seeds; and a static figure of
the teacher's training, one panel a probe.

Design: a probe gives more numbers than a table holds. The numbers in tables are listed here; all
of them stay in `probes.jsonl`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from curricle.records import ProbeRecord
from curricle.reports.curves import colors
from curricle.reports.formatting import NONE, mean, short
from curricle.reports.printed import MARKERS, drawing, save
from curricle.reports.tables import Grid

SHOWN = MappingProxyType(
    {
        "correlations": (
            r"(in|out)_(\d+)_mean",
            r"\1 \2",
            "mean correlation of the output with monomials in and out of the support, by degree",
        ),
        "ngrams": (
            r"(robust|close)_(\d+)_median",
            r"\1 \2",
            "median L1 distance when the n-gram is hidden (robust), or all around it (close)",
        ),
        "linear": (
            r"linear_(.+)_accuracy",
            r"tap \1",
            "accuracy of the labels read off each tap, on the quarter not learned from",
        ),
        "nonterminals": (
            r"level_(\d+)_accuracy",
            r"level \1",
            "accuracy of the symbols above each token read off the last tap; level 0 is the token",
        ),
        "ranks": (
            r"(rank|teacher|target)_(.+)",
            r"\1 \2",
            "effective rank of each tap, of the teacher there (cut to this width), of the target",
        ),
        "similarity": (
            r"cka_(.+)_(.+)",
            r"\1 ~ \2",
            "CKA of student tap ~ teacher tap",
        ),
    }
)
"""For each probe its printed numbers with name and meaning."""
COLLAPSED = 0.5
"""Share of the teacher's effective rank, in as many directions as the student is wide, below which
a student's is noted."""
WIDE = 30.0
"""Ratio of the largest number to the smallest from which on an axis is logarithmic."""
WIDTH, HEIGHT = 5.2, 3.6
"""Inches of one panel."""


def probe_grids(records: Sequence[ProbeRecord]) -> list[Grid]:
    """Return one table a probe, in the order of the records."""
    return [
        _grid(name, [record for record in records if record.probe == name])
        for name in dict.fromkeys(record.probe for record in records)
    ]


def rank_notes(records: Sequence[ProbeRecord]) -> list[str]:
    """Return a sentence for each tap at which a strategy's effective rank is far below the teacher.

    The rule: the mean over the seeds is below `COLLAPSED` times that of the teacher's states at the
    corresponding tap, in as many leading directions as the student is wide.

    Args:
        records: Measurements of probes; those of `ranks` count.
    """
    groups: dict[str, list[ProbeRecord]] = {}
    for record in records:
        if record.probe == "ranks" and not record.is_teacher:
            groups.setdefault(record.model, []).append(record)
    notes = []
    for model, group in groups.items():
        means = {
            name: mean([record.numbers[name] for record in group if name in record.numbers])
            for name in dict.fromkeys(name for record in group for name in record.numbers)
        }
        for name, rank in means.items():
            kind, _, tap = name.partition("_")
            teacher = means.get(f"teacher_{tap}")
            if kind != "rank" or teacher is None or rank >= COLLAPSED * teacher:
                continue
            target = means.get(f"target_{tap}")
            cause = "" if target is None else f"; that of the projected target is {target:.3g}"
            notes.append(
                f"{model}: the effective rank of the hidden states at tap {tap}, {rank:.3g}, is "
                f"below half of the teacher's, {teacher:.3g}, in as many directions as the student "
                f"is wide{cause}"
            )
    return notes


def save_probe_figure(
    records: Sequence[ProbeRecord], path_without_suffix: Path
) -> tuple[Path, ...]:
    """Return the paths of a PNG and an SVG of probe measurements along the teacher's training.

    Nothing is drawn if there are fewer than two checkpoints of the teacher.

    Args:
        records: Probe measurements.
        path_without_suffix: Path to which `.png` and `.svg` are appended.
    """
    names = [
        name
        for name in dict.fromkeys(record.probe for record in records)
        if len(_trajectory(records, name)) > 1
    ]
    if not names:
        return ()
    with drawing():
        size = (WIDTH * len(names), HEIGHT)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        for panel, name in zip(
            figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
        ):
            _draw(panel, name, _trajectory(records, name))
        return save(figure, path_without_suffix)


def _grid(probe: str, records: Sequence[ProbeRecord]) -> Grid:
    columns = list(dict.fromkeys(name for record in records for name in _shown(record)))
    groups: dict[tuple[str, bool, int], list[ProbeRecord]] = {}
    for record in records:
        # Checkpoints of the teacher stay apart; seeds of a student belong together.
        key = (record.model, record.is_teacher, record.step if record.is_teacher else 0)
        groups.setdefault(key, []).append(record)
    counts = dict.fromkeys(f"{record.examples:,}" for record in records)
    return Grid(
        title=f"{probe}: {_words(probe)}; {' or '.join(counts)} held-out examples",
        columns=("network", "steps", "seeds", *columns),
        rows=tuple(_row(model, group, columns) for (model, *_), group in groups.items()),
        numeric=(False, *[True] * (len(columns) + 2)),
    )


def _row(model: str, group: Sequence[ProbeRecord], columns: Sequence[str]) -> tuple[str, ...]:
    readings = [_shown(record) for record in group]
    numbers = [[record[name] for record in readings if name in record] for name in columns]
    steps = sorted({record.step for record in group})
    steps_text = short(steps[0]) if len(steps) == 1 else f"{short(steps[0])} to {short(steps[-1])}"
    cells = [
        f"{mean(column_numbers):.4f}" if column_numbers else NONE for column_numbers in numbers
    ]
    return (model, steps_text, str(len(group)), *cells)


def _shown(record: ProbeRecord) -> Mapping[str, float]:
    """Return the numbers to print by name; all numbers of a probe that is not listed."""
    if record.probe not in SHOWN:
        return record.numbers
    pattern, called, _ = SHOWN[record.probe]
    matches = {name: re.fullmatch(pattern, name) for name in record.numbers}
    return {match.expand(called): record.numbers[name] for name, match in matches.items() if match}


def _words(probe: str) -> str:
    return SHOWN[probe][2] if probe in SHOWN else "all numbers"


def _trajectory(records: Sequence[ProbeRecord], probe: str) -> list[ProbeRecord]:
    """Return the measurements of a probe on the teacher's checkpoints, by step."""
    trajectory = [record for record in records if record.probe == probe and record.is_teacher]
    return sorted(trajectory, key=lambda record: record.step)


def _draw(panel: Axes, probe: str, records: Sequence[ProbeRecord]) -> None:
    names = list(_shown(records[0]))
    # One color for each size or degree, and a dashed line for the second of a pair.
    sizes = colors(dict.fromkeys(name.split()[-1] for name in names))
    kinds = list(dict.fromkeys(name.split()[0] for name in names))
    styles = dict(zip(kinds, cycle(("-", "--")), strict=False))
    markers = dict(zip(kinds, cycle(MARKERS), strict=False))
    for name in names:
        kind, size = name.split()[0], name.split()[-1]
        panel.plot(
            [record.step for record in records],
            [_shown(record)[name] for record in records],
            color=sizes[size],
            linestyle=styles[kind],
            marker=markers[kind],
            markersize=3.5,
            label=name,
        )
    panel.set_title(f"teacher: {probe}", fontsize=10)
    panel.set_xlabel("training steps")
    _scale(panel, [number for record in records for number in _shown(record).values()])
    panel.grid(axis="y", color="#dddddd", linewidth=0.7)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda number, _: short(number)))
    panel.legend(frameon=False, fontsize=8, ncols=2)


def _scale(panel: Axes, numbers: Sequence[float]) -> None:
    """Make the vertical axis logarithmic if numbers differ so much that the small would vanish."""
    positive = [number for number in numbers if number > 0]
    if positive and max(positive) > WIDE * min(positive):
        panel.set_yscale("log", nonpositive="mask")
    else:
        panel.set_ylim(bottom=0)
