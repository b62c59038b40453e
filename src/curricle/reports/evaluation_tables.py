"""Tables of evaluations: metrics, size and speed of a student beside its teacher.

One row a number and one column a model, with the ratio of size and speed, since a person who ships
a student reads how much it loses and how much it saves.
"""

from collections.abc import Mapping, Sequence

from curricle.reports.formatting import NONE, metric_text, short
from curricle.reports.tables import Grid
from curricle.values import Plain

COSTS = {
    "parameters": "parameters",
    "bytes": "bytes",
    "ms_per_example": "ms an example, in a batch",
    "ms_alone": "ms an example, alone",
}
"""Numbers of size and speed with their headings."""
RATIO = "teacher : student"


def evaluation_grid(models: Mapping[str, Plain], *, title: str = "") -> Grid:
    """Return one row a metric, then size and speed.

    Args:
        models: Plain data of one or two evaluated models by name, the student first.
        title: Heading.
    """
    columns = list(models.values())
    names = dict.fromkeys(name for column in columns for name in _metrics(column))
    has_ratio = len(columns) > 1
    gap = ("",) if has_ratio else ()
    rows = [
        (name, *(metric_text(name, _metrics(column).get(name)) for column in columns), *gap)
        for name in names
    ]
    rows += [
        (
            heading,
            *(short(float(column[name])) for column in columns),
            *([_ratio([float(column[name]) for column in columns])] if has_ratio else []),
        )
        for name, heading in COSTS.items()
    ]
    headings = ("", *models, *((RATIO,) if has_ratio else ()))
    return Grid(
        title=title,
        columns=headings,
        rows=tuple(rows),
        numeric=(False, *(True for _ in headings[1:])),
    )


def accuracy_grid(
    names: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    total: bool = False,
) -> Grid:
    """Return one row a kind of sentence or a seed, with shares in percent.

    Args:
        names: Headings, that of the row's name first.
        rows: Shares by the name of their row.
        title: Heading.
        total: Whether the last row sums up the others.
    """
    return Grid(
        title=title,
        total=total,
        columns=tuple(names),
        rows=tuple(
            (name, *(metric_text("accuracy", share) for share in shares))
            for name, shares in rows.items()
        ),
        numeric=(False, *(True for _ in names[1:])),
    )


def _metrics(model: Plain) -> Mapping[str, float]:
    numbers: Mapping[str, float] = model["metrics"]
    return numbers


def _ratio(numbers: Sequence[float]) -> str:
    student, teacher = numbers
    return f"{teacher / student:.3g}" if student else NONE
