"""Numbers of a figure that no single run holds.

A recipe of a paper's figure leaves `recipe.json` (what was reproduced, and how it is drawn) and,
if it measures something besides training runs, `points.jsonl`, one JSON object a line. Reports
make the figure from these and from the records of its runs, without torch.

Axes of a chart: `x` is a number or a name, `y` a number; points of one series at one `x` are
repetitions (seeds, or draws) of the same measurement.
"""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, final

from pydantic import Field

from curricle.errors import CheckpointError, SpecError, reason
from curricle.files import write_bytes
from curricle.seals import read_lines, read_sealed, sealed_lines, write_sealed
from curricle.values import parse, plain, value

POINTS, RECIPE, PANELS = "points.jsonl", "recipe.json", "panels"
SMOKE = "scale smoke only shows that everything runs; its numbers say nothing about the methods"


@final
@value
class Point:
    """One measurement."""

    panel: str = ""
    """Panel of the figure; empty if there is only one."""
    series: str
    """What is compared: one line, or one color of bars."""
    x: float | str
    """Where on the horizontal axis: a number, or the name of a group."""
    y: float
    """The measured number."""
    seed: int = 0
    """Number of the repetition."""


@final
@value
class Chart:
    """How a figure is drawn."""

    kind: Literal["curves", "bars", "lines", "spread"]
    """`curves` are the learning curves of each panel's runs; `bars` and `lines` show means with
    95 % intervals over the repetitions, `spread` the repetitions' quartiles with whiskers around
    the middle 95 % of them."""
    of: Literal["points", "final", "examples"] = "points"
    """`final` and `examples` take, instead of points, each panel's final metric and its examples
    to the target as `y`, with strategies as series; in `bars` each panel stands alone and the
    strategies are names on its horizontal axis, however many there are."""
    x: str = ""
    """What the horizontal axis shows, with its unit."""
    y: str = ""
    """What the vertical axis shows, with its unit."""
    log_x: bool = False
    """Whether the horizontal axis is logarithmic."""
    log_y: bool = False
    """Whether the vertical axis is logarithmic."""
    slopes: bool = False
    """Whether a power law y ~ x^slope is fitted to every series and told with its interval."""


@final
@value
class Panel:
    """One comparison of a recipe."""

    name: str = Field(pattern=r"^[\w+-][\w.+-]*$")
    """Name of its folder below `panels`."""
    x: float | str | None = None
    """Where its numbers stand on a chart's horizontal axis; None takes the name."""
    chart: Chart | None = None
    """How it is drawn, if otherwise than the recipe's other panels."""


@final
@value
class RecipeRecord:
    """What was reproduced."""

    name: str
    """Name of the recipe."""
    scale: str
    """Size at which it was run."""
    title: str
    """What it shows."""
    source: str
    """Paper and figure."""
    known: str
    """What is known of the original's result."""
    panels: tuple[Panel, ...] = ()
    """Comparisons, in the order of the figure."""
    chart: Chart
    """How the figure is drawn."""
    line: str = ""
    """What to type to run it again, without the folder; see `line_again`."""

    @property
    def caution(self) -> str:
        """Return why its numbers say nothing; empty if they may say something."""
        return SMOKE if self.scale == "smoke" else ""


def write_recipe(folder: Path, record: RecipeRecord) -> None:
    """Write what is reproduced in a folder."""
    write_sealed(folder / RECIPE, plain(record))


def read_recipe(folder: Path) -> RecipeRecord:
    """Return what is reproduced in a folder.

    Raises:
        CheckpointError: If it holds no recipe.
    """
    path = folder / RECIPE
    try:
        # Version 0.1 wrote no check.
        data = read_sealed(path, needs_check=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} must say what is reproduced: {reason(error)}; restore it, or reproduce "
            f"into another folder"
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
    """Return why the numbers of a run folder say nothing: those of a recipe at some scales."""
    recipe = folder.resolve().parent.parent
    return read_recipe(recipe).caution if (recipe / RECIPE).is_file() else ""


def usual_folder(name: str, scale: str) -> Path:
    """Return the folder of a recipe that is given none."""
    return Path("runs") / "reproduce" / f"{name}-{scale}"


def line_again(recipe: RecipeRecord, folder: Path) -> str:
    """Return what to type to run a recipe again in its folder, as the folder is called now."""
    usual = usual_folder(recipe.name, recipe.scale)
    if not recipe.line or folder.resolve() == usual.resolve():
        return recipe.line
    return f"{recipe.line} {shlex.join(['--output-dir', str(folder)])}"


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
