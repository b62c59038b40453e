"""The picture of the packages in docs/images: it is current, and its measures hold."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
MOST_FLOORS, MOST_ARROWS = 5, 20
"""Limits for `training`: floors of its wings and imports between them."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "architecture", REPOSITORY / "tools" / "architecture.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wings_of_training_stay_few_and_loosely_coupled(script: ModuleType) -> None:
    _, training = script.houses()
    assert len(training.rows) <= MOST_FLOORS
    assert len(training.edges) <= MOST_ARROWS


def test_every_box_and_arrow_of_the_source_is_in_the_picture(script: ModuleType) -> None:
    # Sizes change with every commit, so they are left out of the comparison.
    drawn = script.PICTURE.read_text(encoding="utf-8")
    for plan in script.houses():
        assert drawn.count(f">{plan.title}<") == 1
        for row in plan.rows:
            assert all(f">{unit}<" in drawn for unit in row)
    arrows = sum(len(script.reduced(plan.edges)) for plan in script.houses())
    assert drawn.count("marker-end") == arrows


def test_arrows_that_a_chain_implies_are_left_out(script: ModuleType) -> None:
    edges = frozenset({("a", "b"), ("b", "c"), ("a", "c")})
    assert script.reduced(edges) == {("a", "b"), ("b", "c")}
    assert script.floors(["a", "b", "c"], edges) == (("a",), ("b",), ("c",))


def test_a_cycle_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="must not form a cycle"):
        script.floors(["a", "b"], frozenset({("a", "b"), ("b", "a")}))
