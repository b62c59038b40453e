"""Direction of a metric in reports: whether lower or higher values are better.

A run may declare it (`RunRecord.better`), and built-in metrics have one. Otherwise the words of the
name decide (`metric_words`). A name that neither a declaration nor the words settle has no
direction, and no report ranks by it.
"""

from collections.abc import Sequence

from curricle.errors import CheckpointError
from curricle.metric_words import direction_by_name
from curricle.metrics import Direction
from curricle.reports.run_folders import Run


def direction_of(runs: Sequence[Run], metric: str) -> Direction | None:
    """Return which values of a metric are better: as declared, else by its name.

    A declaration counts for the metric by which its run is judged.

    Raises:
        CheckpointError: If two runs declare opposite directions.
    """
    declared: dict[Direction, Run] = {}
    for run in runs:
        if run.opening.better is not None and run.opening.metric == metric:
            declared.setdefault(run.opening.better, run)
    if len(declared) > 1:
        lower, higher = (str(declared[better].path) for better in ("lower", "higher"))
        raise CheckpointError(
            f"runs of one report must declare one direction of {metric!r}; got better='lower' in "
            f"{lower!r} and better='higher' in {higher!r}"
        )
    return next(iter(declared), direction_by_name(metric))


def remedy(metric: str) -> str:
    """Return why a metric ranks nothing and how to declare its direction."""
    return (
        f"it is not known whether lower or higher values of {metric!r} are better; pass "
        f"better='lower' or better='higher' to 'distill', or to 'write_report' for recorded runs"
    )
