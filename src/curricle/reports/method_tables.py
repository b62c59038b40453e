"""Tables of methods whose learning rates were chosen by a first pass.

One table has a row a method and a column a task; further ones have, for each task, rate, final
metric, share of the gap closed, and cost to the goal, as one-shot's mean final metric. Runs that
are left out stand in the tables with the reason, those to come as missing. The gap is that of
`gaps`.

Units: costs are those of the student and the teacher until the first evaluation at or past the
goal; seconds are of training, without evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import final

from curricle.figure_points import Panel
from curricle.reports.formatting import NONE, short
from curricle.reports.summary import MethodSummary, Summary
from curricle.reports.tables import Grid, to_markdown
from curricle.values import value

MISSING, ABSENT = "missing", "left out"
NOT_REACHED = "not reached"
OVERVIEW = (
    "Mean final metric over seeds with half of its 95 % interval. In brackets the FLOPs of student "
    "and teacher to the goal, which the table of each task names, as a share of the budget; "
    "without brackets not every seed has reached it."
)


@final
@value
class TunedPanel:
    """Results of a panel and the learning rates of its methods."""

    panel: Panel
    """The panel, with the reasons why methods are left out."""
    summary: Summary | None
    """Numbers of its runs; None if there are none yet."""
    rates: dict[str, float]
    """Chosen learning rates by method; empty before the end of the first pass."""

    def method(self, name: str) -> MethodSummary | None:
        """Return the numbers of a method; None if it has no run."""
        return None if self.summary is None else self.summary.methods.get(name)

    def share(self, name: str) -> float | None:
        """Return the FLOPs to the goal as a share of the budget; None if not reached."""
        method = self.method(name)
        if self.summary is None or method is None or method.to_goal.total_flops is None:
            return None
        limit = self.summary.budget.get("number")
        return method.to_goal.total_flops / limit if isinstance(limit, (int, float)) else None


def overview_grid(panels: Sequence[TunedPanel]) -> Grid:
    """Return one row a method and one column a panel."""
    names = dict.fromkeys(name for panel in panels for name in panel.panel.methods)
    return Grid(
        title="All methods",
        columns=("method", *(panel.panel.name for panel in panels)),
        rows=tuple((name, *(_cell(panel, name) for panel in panels)) for name in names),
        numeric=(False, *[True] * len(panels)),
    )


def _cell(panel: TunedPanel, name: str) -> str:
    method, reason = panel.method(name), panel.panel.methods.get(name)
    if reason != "":
        return NONE if reason is None else ABSENT
    if method is None or not method.finals:
        return MISSING
    share = panel.share(name)
    return method.final_text if share is None else f"{method.final_text} ({share:.2f})"


def panel_grid(panel: TunedPanel) -> Grid:
    """Return one row a method of a panel: rate, final metric, gap closed, costs and seeds."""
    summary = panel.summary
    metric = "metric" if summary is None else summary.metric
    goal = "" if summary is None or not summary.goal_words else f": to {summary.goal_words}"
    return Grid(
        title=f"{panel.panel.name}{goal}",
        columns=(
            "method",
            "rate",
            f"final {metric}",
            "gap closed",
            "total FLOPs to goal",
            "seconds to goal",
            "seeds",
            "note",
        ),
        rows=tuple((name, *_row(panel, name)) for name in panel.panel.methods),
        numeric=(False, True, True, True, True, True, True, False),
    )


def _row(panel: TunedPanel, name: str) -> tuple[str, ...]:
    rate = f"{panel.rates[name]:g}" if name in panel.rates else NONE
    method, reason = panel.method(name), panel.panel.methods[name]
    if method is None or not method.finals:
        return (rate, NONE, NONE, NONE, NONE, NONE, reason or MISSING)
    closed, goal = method.gap_closed, method.to_goal
    costs = (NOT_REACHED, NOT_REACHED)
    if goal.total_flops is not None and goal.seconds is not None:
        costs = (short(goal.total_flops), short(goal.seconds))
    unfinished = len(method.seeds) - len(method.finals)
    return (
        rate,
        method.final_text,
        NONE if closed is None else str(closed),
        *costs,
        str(len(method.finals)),
        f"{unfinished} without an end" if unfinished else "",
    )


def methods_markdown(panels: Sequence[TunedPanel], left_out: Mapping[str, str]) -> str:
    """Return the table of all methods and that of each panel in Markdown.

    Args:
        panels: The panels in order.
        left_out: Reasons by panel why it is not run.
    """
    parts = [to_markdown(overview_grid(panels)).strip(), OVERVIEW]
    parts += [f"{name}: left out, {reason}" for name, reason in left_out.items()]
    for panel in panels:
        grid = panel_grid(panel)
        parts += [grid.title, to_markdown(grid).strip(), panel.panel.note]
    return "\n\n".join(filter(None, parts)) + "\n"
