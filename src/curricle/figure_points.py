"""Records of a reproduced figure: its description and measured points.

A recipe of a paper's figure writes `recipe.json` (the recipe and the chart) and, for measurements
besides training runs, `points.jsonl`, one JSON object a line. Reports make the figure from these
and from the records of its runs, without torch.

Axes of a chart: `x` is a number or a name, `y` a number; points of one series at one `x` are
repetitions (seeds, or draws) of the same measurement.
"""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, final

from pydantic import Field

from curricle.checksums import read_lines, read_sealed, sealed_lines, write_sealed
from curricle.errors import CheckpointError, SpecError, reason
from curricle.field_errors import PLAIN_NAME
from curricle.files import write_bytes
from curricle.values import parse, plain, value

POINTS, RECIPE, PANELS = "points.jsonl", "recipe.json", "panels"
SMOKE = "scale smoke only shows that everything runs; its numbers do not compare the methods"


def _is_missing(allotment: object) -> bool:
    return allotment is None


@final
@value
class Point:
    """One measurement."""

    panel: str = ""
    """Panel of the figure; empty if there is only one."""
    series: str
    """Name of the compared series: a line, or a color of bars."""
    x: float | str
    """Place on the horizontal axis: a number, or the name of a group."""
    y: float
    """The measured number."""
    seed: int = 0
    """Number of the repetition."""


@final
@value
class Chart:
    """Form and axes of a figure."""

    kind: Literal["curves", "bars", "lines", "spread"]
    """`curves` are the learning curves of each panel's runs; `bars` and `lines` show means with
    95 % intervals over the repetitions, `spread` the repetitions' quartiles with whiskers around
    the middle 95 % of them."""
    of: Literal["points", "final", "examples"] = "points"
    """`final` and `examples` take, instead of points, each panel's final metric and its examples
    to the target as `y`, with strategies as series; in `bars` each panel stands alone and the
    strategies are names on its horizontal axis, however many there are."""
    x: str = ""
    """Label of the horizontal axis, with its unit."""
    y: str = ""
    """Label of the vertical axis, with its unit."""
    log_x: bool = False
    """Whether the horizontal axis is logarithmic."""
    log_y: bool = False
    """Whether the vertical axis is logarithmic."""
    x_from: Literal["panel", "total_flops"] = "panel"
    """Where numbers of comparisons stand on the horizontal axis: at their panel's place, or at the
    mean FLOPs of a strategy's runs, student and teacher."""
    baseline: str = ""
    """Strategy over which gains are measured along the panels, whose places are the budgets; the
    report names the budget at which each gain ends. Empty measures none."""
    slopes: bool = False
    """Whether a power law y ~ x^slope is fitted to every series and given with its interval."""


@final
@value
class Panel:
    """One comparison of a recipe."""

    name: str = Field(pattern=PLAIN_NAME)
    """Name of its folder below `panels`."""
    x: float | str | None = None
    """Place of its numbers on a chart's horizontal axis; None takes the name."""
    chart: Chart | None = None
    """Chart of this panel, if it differs from that of the recipe."""
    rates: str = ""
    """Name of the folder below `panels` with the first pass, which sets the learning rates; empty
    if there is none."""
    methods: dict[str, str] = Field(default_factory=dict)
    """Strategies in the order of tables, each with the reason why it has no runs; empty if it has
    some."""
    note: str = ""
    """How rates and seeds are chosen, in a sentence."""


@final
@value
class Allotment:
    """Runs that fit into a limit of time, chosen before the first of them."""

    limit: float = Field(gt=0)
    """Seconds for all runs, the pilot included."""
    estimate: float
    """Seconds of the runs by the pilot."""
    seeds: dict[str, int]
    """Number of seeds by panel; zero of one that is left out."""
    note: str
    """Rule and result in a sentence."""


@final
@value
class RecipeRecord:
    """Description of a reproduced figure."""

    name: str
    """Name of the recipe."""
    scale: str
    """Size at which it was run."""
    title: str
    """Title of the figure."""
    source: str
    """Paper and figure."""
    known: str
    """Result of the original, as far as it is published."""
    panels: tuple[Panel, ...] = ()
    """Comparisons, in the order of the figure."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Reasons by panel why it is not run."""
    selected: tuple[str, ...] = ()
    """Panels named by `--panels` in all calls on the folder; empty if all panels are run."""
    allotment: Allotment | None = Field(default=None, exclude_if=_is_missing)
    """Runs that fit into a limit of time; None without a limit."""
    chart: Chart
    """Chart of the figure."""
    line: str = ""
    """Command that runs it again, without folder and panels; see `line_again`."""

    @property
    def caution(self) -> str:
        """Return the reason not to compare methods by its numbers; empty if there is none."""
        return SMOKE if self.scale == "smoke" else ""


def write_recipe(folder: Path, record: RecipeRecord) -> None:
    """Write the description of a reproduced figure into its folder."""
    write_sealed(folder / RECIPE, plain(record))


def read_recipe(folder: Path) -> RecipeRecord:
    """Return the description of the figure that is reproduced in a folder.

    Raises:
        CheckpointError: If it holds no recipe.
    """
    path = folder / RECIPE
    try:
        # Version 0.1 wrote no check.
        data = read_sealed(path, needs_check=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} must describe a reproduction: {reason(error)}; restore it, or "
            f"reproduce into another folder"
        ) from None
    record: RecipeRecord = parse(RecipeRecord, data, source=str(path))
    return record


def where_runs_are(folder: Path) -> str:
    """Return the end of an error about a folder that holds no run itself; empty if no recipe's."""
    if not (folder / RECIPE).is_file():
        return ""
    panels = ", ".join(repr(str(panel)) for panel in sorted((folder / PANELS).glob("*/")))
    return f"; it is a recipe's folder, with {f'runs in {panels}' if panels else 'no runs'}"


def caution(folder: Path) -> str:
    """Return the reason not to compare methods by the numbers of a run folder, if any."""
    recipe = folder.resolve().parent.parent
    return read_recipe(recipe).caution if (recipe / RECIPE).is_file() else ""


def usual_folder(name: str, scale: str) -> Path:
    """Return the default folder of a recipe."""
    return Path("runs") / "reproduce" / f"{name}-{scale}"


def line_again(recipe: RecipeRecord, folder: Path) -> str:
    """Return the command that runs a recipe again in its folder, under the present name."""
    if not recipe.line:
        return ""
    usual = usual_folder(recipe.name, recipe.scale)
    panels = ["--panels", ",".join(recipe.selected)] if recipe.selected else []
    output = [] if folder.resolve() == usual.resolve() else ["--output-dir", str(folder)]
    return " ".join(filter(None, (recipe.line, shlex.join([*panels, *output]))))


def write_points(folder: Path, points: Iterable[Point]) -> None:
    """Write the points of a figure, all at once."""
    write_bytes(folder / POINTS, sealed_lines(map(plain, points)))


def read_points(folder: Path) -> Iterator[Point]:
    """Yield the points in a folder; none if it holds no file of them.

    Raises:
        CheckpointError: If a line is damaged.
        SpecError: If a line is not a point.
    """
    path = folder / POINTS
    if not path.is_file():
        return
    number = 0
    try:
        for number, data in enumerate(read_lines(path.read_bytes()), start=1):
            yield parse(Point, data, source=f"line {number} of {str(path)!r}")
    except SpecError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"line {number + 1} of {str(path)!r} is damaged: {error}; remove the file, and "
            f"'curricle reproduce' measures it again"
        ) from None
