"""Gains of methods over a baseline along budgets, and the budget at which each gain ends.

The gain of a method at a budget is the mean difference of its metric from the baseline's, signed so
that a positive gain is better, with its 95 % interval over seeds, paired where the seeds are equal
(see `comparisons`). A gain *ends* at the smallest budget from which on, up to the largest, the
interval contains zero or lies below it. So a gain that is measurable at the largest budget does not
end, and one that is measurable nowhere ends at the smallest.

Design: without an interval, at a budget with fewer than two seeds, or without finished runs of both
at every budget, nothing is said about the end.
"""

from collections.abc import Mapping, Sequence
from typing import final

from curricle.figure_points import Chart, Panel
from curricle.metrics import Direction
from curricle.reports.comparisons import Difference, difference
from curricle.reports.formatting import NONE, is_share, short
from curricle.reports.scores import Evaluated
from curricle.reports.summary import Summary
from curricle.reports.tables import Grid, to_markdown
from curricle.values import Plain, value

ENDS_AT = "gain ends at"
"""Heading of the column with the end of a gain."""
Numbers = Mapping[str, Mapping[float, Mapping[int, float]]]
"""Final values of a metric: by method, by budget, by seed."""


@final
@value
class MethodGains:
    """Gains of one method over a baseline, at rising budgets."""

    method: str
    """Name of the method."""
    gains: dict[float, Difference]
    """Gain by budget, in rising order; positive is better."""
    is_complete: bool
    """Whether method and baseline have finished runs at every budget."""

    @property
    def is_determined(self) -> bool:
        """Return whether every budget has a gain with an interval."""
        has_intervals = all(gain.ci95 is not None for gain in self.gains.values())
        return self.is_complete and bool(self.gains) and has_intervals

    @property
    def end(self) -> float | None:
        """Return the budget at which the gain ends; None if it does not, or is not determined."""
        if not self.is_determined:
            return None
        last = None
        for budget, gain in reversed(self.gains.items()):
            if is_gain(gain):
                break
            last = budget
        return last

    def words(self, unit: str) -> str:
        """Return the end of the gain in words.

        Args:
            unit: Unit of the budgets.
        """
        if not self.is_determined:
            reason = "fewer than two seeds" if self.is_complete else "runs are missing"
            return f"not determined: {reason}"
        if self.end is None:
            return f"none up to {short(max(self.gains))} {unit}"
        if not any(map(is_gain, self.gains.values())):
            return f"no gain at any budget from {short(self.end)} {unit}"
        return f"{short(self.end)} {unit}"


def is_gain(gain: Difference) -> bool:
    """Return whether the interval of a gain lies above zero."""
    return gain.is_measurable and gain.mean > 0


def gains_over(numbers: Numbers, baseline: str, better: Direction) -> tuple[MethodGains, ...]:
    """Return the gains of every other method over the baseline.

    Args:
        numbers: Final values of the metric.
        baseline: Name of the method with which the others are compared.
        better: Which values of the metric are better.
    """
    budgets = sorted({budget for by_budget in numbers.values() for budget in by_budget})
    reference = numbers.get(baseline, {})
    return tuple(
        MethodGains(
            method=method,
            gains={
                budget: _gain(by_budget[budget], reference[budget], better)
                for budget in budgets
                if by_budget.get(budget) and reference.get(budget)
            },
            is_complete=all(by_budget.get(budget) and reference.get(budget) for budget in budgets),
        )
        for method, by_budget in numbers.items()
        if method != baseline
    )


def _gain(
    numbers: Mapping[int, float], reference: Mapping[int, float], better: Direction
) -> Difference:
    """Return the difference of two methods, positive where the first is better."""
    return difference(numbers, reference) if better == "higher" else difference(reference, numbers)


@final
@value
class MetricGains:
    """Gains of all methods in one metric."""

    metric: str
    """Name of the metric."""
    baseline: str
    """Name of the method with which the others are compared."""
    unit: str
    """Unit of the budgets."""
    methods: tuple[MethodGains, ...]
    """Gains of each other method."""

    def grid(self) -> Grid:
        """Return one row a method: its gain at every budget, and the budget at which it ends."""
        budgets = sorted({budget for method in self.methods for budget in method.gains})
        words = self.metric.replace("_", " ")
        scale = "percentage points" if is_share(self.metric) else "higher is better"
        return Grid(
            title=f"Gain over {self.baseline} in {words} ({scale})",
            columns=("method", *(f"{short(budget)} {self.unit}" for budget in budgets), ENDS_AT),
            rows=tuple(
                (
                    method.method,
                    *(gain_text(self.metric, method.gains.get(budget)) for budget in budgets),
                    method.words(self.unit),
                )
                for method in self.methods
            ),
            numeric=(False, *[True] * len(budgets), False),
        )

    def line(self) -> str:
        """Return the end of each method's gain in a sentence."""
        words = self.metric.replace("_", " ")
        ends = "; ".join(f"{method.method}: {method.words(self.unit)}" for method in self.methods)
        return f"end of the gain over {self.baseline} in {words}: {ends}"

    def plain(self) -> Plain:
        """Return plain data, as JSON has it."""
        return {
            "metric": self.metric,
            "baseline": self.baseline,
            "unit": self.unit,
            "methods": {
                method.method: {
                    "gains": [
                        {"budget": budget, "mean": gain.mean, "ci95": gain.ci95}
                        for budget, gain in method.gains.items()
                    ],
                    "is_determined": method.is_determined,
                    "end": method.end,
                }
                for method in self.methods
            },
        }


def gains_markdown(gains: Sequence[MetricGains]) -> str:
    """Return a Markdown table of gains for each metric, under its title."""
    grids = [metric.grid() for metric in gains]
    return "\n".join(f"**{grid.title}**\n\n{to_markdown(grid)}" for grid in grids)


def recipe_gains(
    chart: Chart, panels: Sequence[tuple[Panel, Summary]], scores: Sequence[Evaluated]
) -> tuple[MetricGains, ...]:
    """Return the gains in the metric of a recipe's comparisons and in each score.

    Args:
        chart: Names the baseline; without one, or without numbers as places of the panels, there
            are no gains.
        panels: Comparisons with their summaries; their places are the budgets.
        scores: Scores of their students on other data.
    """
    budgets = {panel.name: panel.x for panel, _ in panels if isinstance(panel.x, float)}
    if not chart.baseline or len(budgets) < len(panels):
        return ()
    first = panels[0][1]
    finals = {
        panel.name: {name: method.finals for name, method in summary.methods.items()}
        for panel, summary in panels
    }
    metrics = [(first.metric, first.better, finals)] if first.better else []
    metrics += [(evaluation.metric, "higher", evaluation.students) for evaluation in scores]
    return tuple(
        MetricGains(
            metric=metric,
            baseline=chart.baseline,
            unit=str(first.budget.get("unit", "")),
            methods=gains_over(_by_method(by_panel, budgets), chart.baseline, better),
        )
        for metric, better, by_panel in metrics
    )


def _by_method(
    by_panel: Mapping[str, Mapping[str, Mapping[int, float]]], budgets: Mapping[str, float]
) -> Numbers:
    """Return numbers by method and budget, from those by panel and method."""
    methods = dict.fromkeys(method for panel in by_panel.values() for method in panel)
    return {
        method: {
            budget: by_panel.get(panel, {}).get(method, {}) for panel, budget in budgets.items()
        }
        for method in methods
    }


def gain_text(metric: str, gain: Difference | None) -> str:
    """Return a gain with its sign and half of its interval; shares in percentage points."""
    if gain is None:
        return NONE
    scale, digits = (100.0, 2) if is_share(metric) else (1.0, 3)
    spread = "" if gain.ci95 is None else f" ± {scale * gain.ci95:.{digits}f}"
    return f"{scale * gain.mean:+.{digits}f}{spread}"
