"""Running of recipes, also after an interruption.

A recipe's folder holds `recipe.json`, one comparison below `panels/` for each panel, and
`points.jsonl` if the recipe measures something besides. Finished panels are left alone. Panels
with the same teacher share it: it is trained in the first and copied to the others.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from curricle.errors import CheckpointError, SpecError
from curricle.figure_points import PANELS, POINTS, RECIPE, read_recipe, write_points, write_recipe
from curricle.files import new_folder
from curricle.runs.folder import TEACHER, end_of, teacher_digest
from curricle.runs.spec import RunSpec, changed
from curricle_papers.recipes.recipe import Recipe, Scale, placed


def claim(
    recipe: Recipe, scale: Scale, folder: Path, line: str, *, assignments: Sequence[str] = ()
) -> None:
    """Write the recipe's record into a folder, after a check of every panel's spec.

    Args:
        recipe: The recipe.
        scale: At which size.
        folder: Where; new, or that of the same command.
        line: Command that runs it again.
        assignments: `path=value` overrides of every panel's spec.

    Raises:
        CheckpointError: If the folder holds something else.
    """
    _specs(recipe, scale, folder, assignments)
    if (folder / RECIPE).exists():
        stored = read_recipe(folder)
        if stored.line != line:
            raise CheckpointError(
                f"'output_dir' {str(folder)!r} must be new or hold what {line!r} makes; it holds "
                f"what {stored.line!r} made"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"'output_dir' {str(folder)!r} must be new or hold {recipe.name!r}; it holds "
            f"something else"
        )
    write_recipe(folder, recipe.record(scale, line))


def panels(
    recipe: Recipe, scale: Scale, folder: Path, assignments: Sequence[str] = ()
) -> Iterator[tuple[str, RunSpec]]:
    """Yield each panel's name and spec; a teacher that an earlier panel has taught is there.

    Args:
        recipe: The recipe.
        scale: At which size.
        folder: The recipe's folder.
        assignments: `path=value` overrides of every panel's spec.
    """
    taught: dict[str, Path] = {}
    for name, spec in _specs(recipe, scale, folder, assignments).items():
        teacher = spec.folder / TEACHER
        digest = teacher_digest(spec)
        if digest in taught and not teacher.exists():
            with new_folder(teacher) as copy:
                shutil.copytree(taught[digest], copy, dirs_exist_ok=True)
        yield name, spec
        if end_of(teacher) is not None:
            taught.setdefault(digest, teacher)


def _specs(
    recipe: Recipe, scale: Scale, folder: Path, assignments: Sequence[str]
) -> dict[str, RunSpec]:
    """Return each panel's spec by its name.

    Raises:
        SpecError: If there is no spec that overrides could change, or one would leave its folder.
    """
    places = {
        name: placed(comparison, folder / PANELS / name)
        for name, comparison in recipe.panels(scale).items()
    }
    if assignments and not places:
        raise SpecError(
            f"'--set' must be left out for {recipe.name!r}, which has no spec; "
            f"got {assignments[0]!r}"
        )
    specs = {name: changed(spec, list(assignments)) for name, spec in places.items()}
    for name, spec in specs.items():
        if spec.folder != places[name].folder:
            raise SpecError(
                f"'output_dir' of a recipe must be given by '--output-dir', below which its "
                f"panels lie; got {spec.output_dir!r}"
            )
    return specs


def measure(recipe: Recipe, scale: Scale, folder: Path) -> None:
    """Write the points that a recipe measures besides its panels, unless they are there."""
    if recipe.measure is not None and not (folder / POINTS).is_file():
        write_points(folder, recipe.measure(scale, folder))
