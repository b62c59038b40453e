"""Every recipe can be planned and run, at a size that takes a moment and on the shipped text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from curricle.curriculum.durations import AnyDuration
from curricle.records import EndRecord, RunRecord, read_records
from curricle.values import parse

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])


def smaller(model: dict[str, Any], path: str, width: int) -> list[str]:
    """Return overrides that make a model narrow."""
    if model["kind"] == "mlp":
        return [f"{path}.widths={[width for _ in model['widths']]}"]
    names = {"hidden_size": width, "num_attention_heads": 2, "intermediate_size": 2 * width}
    given = model["config"]
    return [f"{path}.config.{name}={size}" for name, size in names.items() if name in given]


def overrides(recipe: Path) -> list[str]:
    """Return overrides that make a recipe small; strategies and stages stay as they are."""
    spec = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    sets = [*smaller(spec["teacher"]["model"], "teacher.model", 16)]
    if "student" in spec:
        sets += smaller(spec["student"], "student", 8)
    if spec["task"]["kind"] == "text":
        task = {"corpus": "sample", "vocabulary_size": 300, "window": 16, "batch_size": 4}
        sets += [f"task.{name}={size}" for name, size in task.items()]
        sets += ["task.evaluation_batches=1", "cache_dir=cache"]
    return [part for one in sets for part in ("--set", one)]


def test_the_recipes_are_found() -> None:
    assert RECIPES


@EVERY_RECIPE
def test_a_recipe_can_be_planned(command: Command, recipe: Path, tmp_path: Path) -> None:
    code, shown, told = command("plan", recipe, *overrides(recipe))
    assert (code, told) == (0, "")
    assert "whole run" in shown
    assert not (tmp_path / "runs").exists()


def hundredth(steps: Any) -> Any:
    """Return a hundredth of a checkpoint or of several; what is none is shortened."""
    if isinstance(steps, list):
        return [hundredth(step) for step in steps]
    return steps // 100 if isinstance(steps, int) else shortened(steps)


def shortened(given: Any) -> Any:
    """Return plain data with all durations and checkpoints a hundredth of what they were."""
    if isinstance(given, dict):
        return {
            name: hundredth(one) if name in ("teacher", "trajectory") else shortened(one)
            for name, one in given.items()
        }
    if isinstance(given, list):
        return [shortened(one) for one in given]
    if isinstance(given, str) and re.fullmatch(r"\S+ (steps|examples|tokens)", given):
        length = parse(AnyDuration, given)
        return f"{length.number // 100} {length.unit}"
    return given


@EVERY_RECIPE
def test_a_recipe_can_be_run(command: Command, recipe: Path, tmp_path: Path) -> None:
    spec = shortened(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    short = tmp_path / recipe.name
    short.write_text(yaml.safe_dump(spec))
    is_comparison = "strategies" in spec
    sets = [*overrides(recipe), "--set", "output_dir=run"]
    # One seed is enough to see that a strategy runs.
    sets += ["--set", "seeds=[0]"] if is_comparison else []
    code, _, told = command("compare" if is_comparison else "distill", short, *sets)
    assert (code, told) == (0, "")
    runs = sorted(tmp_path.rglob("records.jsonl"))
    assert len(runs) == 1 + len(spec.get("strategies", "x"))
    for run in runs:
        opening, *_, end = read_records(run)
        assert isinstance(opening, RunRecord)
        assert isinstance(end, EndRecord)
        # The teacher's training and the shortest student's.
        assert end.usage.steps == sum(stage.steps for stage in opening.stages) >= 4


@EVERY_RECIPE
def test_a_recipe_says_what_to_type(recipe: Path) -> None:
    assert f"recipes/{recipe.name}" in recipe.read_text(encoding="utf-8")
