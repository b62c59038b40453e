"""Recipe of a figure: its comparisons and measurements at a scale.

A `Recipe` is a value: subject, source, knowledge of the original, and two functions of
the scale. `panels` gives the comparisons to run, as ordinary run specs; `measure` gives numbers
that no training run leaves behind. One dial, the scale, sets all sizes: `smoke` really trains for
some steps, `small` gives the qualitative result on two CPU cores, `paper` is the original size.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, final, get_args

from curricle.curriculum.durations import Duration
from curricle.errors import SpecError
from curricle.figure_points import Chart, Panel, Point, RecipeRecord
from curricle.runs.budget import Budget
from curricle.runs.spec import RunSpec, StrategySpec

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Measure = Callable[[Scale, Path], Iterable[Point]]
"""Gives the points of a figure at a scale; models trained for them go below the folder."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPass:
    """Runs of a held-out seed that set the learning rate of each strategy and the number of seeds.

    Every strategy is trained with every rate, and the rate with the best final metric is that of
    its other runs. The panel has as many of its seeds as the seconds pay for, at the speed of the
    first pass: a seed has runs of all strategies or of none, so the rule favors no strategy.
    """

    rates: tuple[float, ...]
    """Learning rates that every strategy tries."""
    seconds: float
    """Seconds of training for all students of the panel, those of the first pass included."""
    seed: int = 100
    """Seed of the first pass; not among the panel's seeds."""

    def __str__(self) -> str:
        """Return the rule in a sentence."""
        rates = ", ".join(f"{rate:g}" for rate in self.rates)
        return (
            f"The learning rate of each method is the best of {rates} by the final metric with "
            f"seed {self.seed}; the seeds are as many as {self.seconds:,.0f} seconds of training "
            f"pay for, the first pass included, and at least one, the same for all methods."
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One panel of a figure: strategies and seeds on one task."""

    spec: RunSpec
    """Spec of the comparison; its folder is set when it runs."""
    x: float | str | None = None
    """Where its numbers stand on the chart's horizontal axis; None takes the panel's name."""
    chart: Chart | None = None
    """How it is drawn, if otherwise than the recipe's other panels."""
    first_pass: FirstPass | None = None
    """Choice of learning rates and seeds; None takes those of the spec."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Reasons by strategy why it has no runs."""


Panels = Callable[[Scale], Mapping[str, Comparison]]
"""Gives the comparisons of a figure at a scale, by name."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a figure of a paper is made again."""

    name: str
    """Name on the command line."""
    title: str
    """Subject, in one sentence."""
    source: str
    """Paper and figure."""
    known: str
    """Knowledge of the original numbers."""
    costs: Mapping[Scale, str]
    """Expected cost at each scale, in words."""
    chart: Chart
    """How the figure is drawn."""
    panels: Panels = lambda _scale: {}
    """Comparisons to run."""
    measure: Measure | None = None
    """Numbers to measure besides."""

    def describe(self) -> tuple[str, ...]:
        """Return name, subject, source, knowledge of the original and costs."""
        costs = "; ".join(f"{scale}: {self.costs[scale]}" for scale in SCALES)
        return self.name, self.title, self.source, self.known, costs

    def record(
        self,
        scale: Scale,
        line: str = "",
        *,
        left_out: Mapping[str, str] = MappingProxyType({}),
        selected: tuple[str, ...] = (),
    ) -> RecipeRecord:
        """Return the record of this recipe for its folder.

        Args:
            scale: Size at which it is run.
            line: Command that runs it again.
            left_out: Reasons by panel why it is not run.
            selected: Panels that are run; empty for all.
        """
        return RecipeRecord(
            name=self.name,
            scale=scale,
            title=self.title,
            source=self.source,
            known=self.known,
            panels=tuple(
                Panel(
                    name=name,
                    x=comparison.x,
                    chart=comparison.chart,
                    rates="" if comparison.first_pass is None else rates_name(name),
                    methods=dict.fromkeys(comparison.spec.strategies, "")
                    | dict(comparison.left_out),
                    note=str(comparison.first_pass or ""),
                )
                for name, comparison in self.panels(scale).items()
                if name not in left_out
            ),
            left_out=dict(left_out),
            selected=selected,
            chart=self.chart,
            line=line,
        )


def rates_name(panel: str) -> str:
    """Return the name of the folder with a panel's first pass."""
    return f"{panel}-rates"


def checked_scale(scale: str) -> Scale:
    """Return a scale.

    Raises:
        SpecError: If there is none of that name.
    """
    for name in SCALES:
        if scale == name:
            return name
    raise SpecError(f"'scale' must be one of {list(SCALES)}; got {scale!r}")


def placed(comparison: Comparison, folder: Path) -> RunSpec:
    """Return the spec of a panel with its run folder."""
    return replace(comparison.spec, output_dir=str(folder))


def four_strategies(
    extraction: Mapping[str, object], progressive: Mapping[str, object] | None = None
) -> dict[str, StrategySpec]:
    """Return the four strategies that most figures compare.

    Args:
        extraction: Arguments of `extraction`.
        progressive: Arguments of `progressive`; by default it has none.
    """
    arguments: dict[str, Mapping[str, object]] = {
        "from_labels": {},
        "one_shot": {},
        "progressive": progressive or {},
        "extraction": extraction,
    }
    return {
        kind: StrategySpec(curriculum={"kind": kind, **call}) for kind, call in arguments.items()
    }


def taps(*numbers: int) -> list[dict[str, int]]:
    """Return layer pairs between equal taps of student and teacher, as specs write them."""
    return [{"student": number, "teacher": number} for number in numbers]


def steps(number: int) -> Budget:
    """Return a budget of steps."""
    return Budget(number=number, unit="steps")


def length(number: int) -> Duration:
    """Return a length in steps."""
    return Duration(number=number)
