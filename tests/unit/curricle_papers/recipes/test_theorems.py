from pathlib import Path

import pytest

from curricle.figure_points import Point
from curricle_papers.recipes.theorems import CORRELATION_GAP, THEOREM_CHECK


def measured(recipe_points: object) -> list[Point]:
    assert isinstance(recipe_points, list)
    return recipe_points


@pytest.mark.integration
def test_projections_of_a_trained_layer_correlate_more_with_the_support(tmp_path: Path) -> None:
    assert CORRELATION_GAP.measure is not None
    points = list(CORRELATION_GAP.measure("smoke", tmp_path))
    last = [point for point in points if point.x == "step 100"]
    sizes = {
        series: sum(point.y**2 for point in last if point.series == series)
        for series in ("in support", "off support")
    }
    assert sizes["in support"] > 1.5 * sizes["off support"]
    # The teacher's training is below the recipe's folder, and used again.
    assert (tmp_path / "teacher-run" / "teacher" / "trajectory").is_dir()
    assert list(CORRELATION_GAP.measure("smoke", tmp_path)) == points


@pytest.mark.integration
def test_one_step_on_projections_finds_what_labels_do_not(tmp_path: Path) -> None:
    assert THEOREM_CHECK.measure is not None
    points = list(THEOREM_CHECK.measure("smoke", tmp_path))
    found = {point.series: point.y for point in points if point.panel == "finds the support"}
    assert found["vector"] == 1
    assert found["one_shot"] == 0
    assert {point.panel for point in points} >= {"accuracy", "gradient in / off support"}
