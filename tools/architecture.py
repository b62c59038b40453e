"""Picture of the packages and their imports, `docs/images/architecture.svg`.

    make architecture

Rows are the layers of the import contract in `pyproject.toml`; a box is a package with its files
and lines. Arrows are direct imports between packages that no chain of other arrows implies.
Below, the wings of `training` in the same way. The script prints, for every picture, the number of
rows and of arrows before that reduction.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import final

import grimp

REPOSITORY = Path(__file__).parents[1]
PICTURE = REPOSITORY / "docs" / "images" / "architecture.svg"
PACKAGES = ("curricle", "curricle_papers")
WIDTH, ROW, BOX_HEIGHT, GAP, MARGIN = 1120, 78, 44, 14, 24
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"

Edges = frozenset[tuple[str, str]]
"""Pairs (importing unit, imported unit)."""


@final
@dataclass(frozen=True, slots=True)
class House:
    """Units of a part of the source, with the imports between them."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    """Names of the units by floor, importers first."""
    edges: Edges
    sizes: Mapping[str, tuple[int, int]]
    """Files and lines of each unit."""


def unit_of(module: str, parent: str) -> str:
    """Return the child of `parent` that holds a module, or the module's own root package."""
    if not module.startswith(f"{parent}."):
        return module.partition(".")[0]
    return module.removeprefix(f"{parent}.").partition(".")[0]


def direct_imports(graph: grimp.ImportGraph, parent: str, modules: Iterable[str]) -> Edges:
    """Return the imports between units of `parent`, without those inside of one unit."""
    members = set(modules)
    pairs = {
        (unit_of(module, parent), unit_of(target, parent))
        for module in members
        for target in graph.find_modules_directly_imported_by(module)
        if target in members
    }
    return frozenset((importer, target) for importer, target in pairs if importer != target)


def reachable(start: str, edges: Edges) -> set[str]:
    """Return the units that a chain of imports leads to."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        unit = waiting.pop()
        targets = {target for importer, target in edges if importer == unit} - reached
        reached |= targets
        waiting += targets
    return reached


def reduced(edges: Edges) -> Edges:
    """Return the imports that no chain of other imports implies."""
    return frozenset(
        (importer, target)
        for importer, target in edges
        if not any(
            target in reachable(middle, edges)
            for source, middle in edges
            if source == importer and middle != target
        )
    )


def floors(units: Sequence[str], edges: Edges) -> tuple[tuple[str, ...], ...]:
    """Return the units by the length of their longest chain of imports, longest first.

    Raises:
        ValueError: If the imports form a cycle.
    """
    heights: dict[str, int] = {}

    def height(unit: str, above: tuple[str, ...] = ()) -> int:
        if unit in above:
            raise ValueError(f"imports must not form a cycle; got {[*above, unit]}")
        if unit not in heights:
            below = [target for importer, target in edges if importer == unit]
            heights[unit] = max((height(target, (*above, unit)) + 1 for target in below), default=0)
        return heights[unit]

    for unit in units:
        height(unit)
    return tuple(
        tuple(sorted(unit for unit in units if heights[unit] == number))
        for number in range(max(heights.values(), default=0), -1, -1)
    )


def lines_of(modules: Iterable[str]) -> tuple[int, int]:
    """Return the number of files and of lines of modules."""
    counts = []
    for module in modules:
        path = REPOSITORY / "src" / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        counts.append(len(file.read_text(encoding="utf-8").splitlines()))
    return len(counts), sum(counts)


def house(graph: grimp.ImportGraph, title: str, parent: str, keep: Callable[[str], bool]) -> House:
    """Return the house of the modules that are kept.

    Args:
        graph: All imports.
        title: Heading of the picture.
        parent: Package whose children are the units.
        keep: Whether a module belongs to the picture.
    """
    modules = sorted(module for module in graph.modules if keep(module))
    units = sorted({unit_of(module, parent) for module in modules})
    edges = direct_imports(graph, parent, modules)
    sizes = {
        unit: lines_of([module for module in modules if unit_of(module, parent) == unit])
        for unit in units
    }
    return House(title, floors(units, edges), edges, sizes)


def boxes(plan: House, top: int) -> dict[str, tuple[float, float, float]]:
    """Return left edge, top and width of every box."""
    places = {}
    for number, row in enumerate(plan.rows):
        width = min(190.0, (WIDTH - 2 * MARGIN + GAP) / len(row) - GAP)
        left = (WIDTH - len(row) * (width + GAP) + GAP) / 2
        for index, unit in enumerate(row):
            places[unit] = (left + index * (width + GAP), top + number * ROW, width)
    return places


def drawn(plan: House, top: int) -> list[str]:
    """Return the SVG elements of a house."""
    places = boxes(plan, top + 40)
    lines = [
        (
            f"<text x='{MARGIN}' y='{top + 20}' {FONT} font-size='15' font-weight='bold'>"
            f"{escape(plan.title)}</text>"
        )
    ]
    for importer, target in sorted(reduced(plan.edges)):
        left, above, width = places[importer]
        end, below, end_width = places[target]
        lines.append(
            f"<line x1='{left + width / 2:.1f}' y1='{above + BOX_HEIGHT}' "
            f"x2='{end + end_width / 2:.1f}' y2='{below - 1}' stroke='#8795a8' "
            "stroke-width='1.2' marker-end='url(#tip)'/>"
        )
    for unit, (left, above, width) in places.items():
        files, length = plan.sizes[unit]
        count = f"{files} files, {length:,} lines" if files > 1 else f"{length:,} lines"
        middle = left + width / 2
        lines += [
            (
                f"<rect x='{left:.1f}' y='{above}' width='{width:.1f}' height='{BOX_HEIGHT}' "
                f"rx='6' fill='{'#dbe9ff' if files > 1 else '#f1f4f8'}' stroke='#5b6b82'/>"
            ),
            (
                f"<text x='{middle:.1f}' y='{above + 18}' {FONT} font-size='13' "
                f"text-anchor='middle'>{escape(unit)}</text>"
            ),
            (
                f"<text x='{middle:.1f}' y='{above + 35}' {FONT} font-size='10' fill='#516073' "
                f"text-anchor='middle'>{count}</text>"
            ),
        ]
    return lines


def houses() -> tuple[House, ...]:
    """Return the pictures: the whole source, and the wings of `training`."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=False)

    def is_package_part(module: str) -> bool:
        # Inits re-export names for users; the library itself imports from the defining modules.
        return not graph.find_children(module) and not module.endswith(".__main__")

    def is_training(module: str) -> bool:
        return module.startswith("curricle.training.")

    return (
        house(graph, "curricle and curricle_papers", "curricle", is_package_part),
        house(graph, "curricle.training", "curricle.training", is_training),
    )


def picture(plans: Sequence[House]) -> str:
    """Return the SVG file of several houses, one below the other."""
    top, lines = 10, []
    for plan in plans:
        lines += drawn(plan, top)
        top += 40 + len(plan.rows) * ROW
    return "\n".join(
        [
            (
                f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{top}' "
                f"viewBox='0 0 {WIDTH} {top}'>"
            ),
            (
                "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
                "markerHeight='7' orient='auto'><path d='M0 0 L8 4 L0 8 z' fill='#8795a8'/>"
                "</marker></defs>"
            ),
            f"<rect width='{WIDTH}' height='{top}' fill='white'/>",
            *lines,
            "</svg>",
            "",
        ]
    )


def main() -> None:
    """Write the picture and print its measures."""
    plans = houses()
    PICTURE.write_text(picture(plans), encoding="utf-8")
    for plan in plans:
        print(f"{plan.title}: {len(plan.rows)} floors, {len(plan.edges)} arrows")


if __name__ == "__main__":
    main()
