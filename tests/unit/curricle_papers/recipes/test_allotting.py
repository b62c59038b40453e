"""Choice of seeds and panels within a limit of time, with a pilot and a clock of the test."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.errors import SpecError
from curricle.figure_points import read_recipe
from curricle.runs.spec import RunSpec
from curricle_papers.recipes.allotting import (
    MARGIN,
    PanelTimes,
    allotment,
    allotted,
    seconds,
    timed,
)
from curricle_papers.recipes.recipe import Comparison, FirstPass, Recipe, Scale
from curricle_papers.recipes.running import claim
from curricle_papers.recipes.sparse_parity import PARITY_MLP

(BASE,) = (comparison.spec for comparison in PARITY_MLP.panels("smoke").values())
SPEC = replace(BASE, seeds=(0, 1, 2))
OTHER = replace(SPEC, seed=7)
"""The same with another teacher."""
TIMES = PanelTimes(teacher=10.0, strategies={"one_shot": 2.0, "extraction": 3.0})


def panels(_scale: Scale) -> dict[str, Comparison]:
    return {"first": Comparison(spec=SPEC), "last": Comparison(spec=OTHER)}


TWO = replace(PARITY_MLP, panels=panels)


def chosen(limit: float, **options: object) -> dict[str, int]:
    specs = {"first": SPEC, "last": OTHER}
    times = dict.fromkeys(specs, TIMES)
    return allotment(specs, times, limit=limit / MARGIN, **options).seeds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("8m", 480), ("1.5h", 5400), (" 8m ", 480)]
)
def test_a_time_has_a_unit(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["8", "m", "-1m", "0s", "8 m", "8d", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"'--within' must be a time such as 90s, 8m or 1\.5h"):
        seconds(text)


def test_all_seeds_run_if_they_fit() -> None:
    # Two teachers, and three seeds of two strategies in two panels.
    assert chosen(2 * 10 + 2 * 3 * 5) == {"first": 3, "last": 3}


def test_seeds_are_dropped_first_and_of_all_panels_alike() -> None:
    assert chosen(2 * 10 + 2 * 3 * 5 - 1) == {"first": 2, "last": 2}


def test_panels_are_dropped_from_the_last_on_when_one_seed_each_is_too_long() -> None:
    assert chosen(2 * 10 + 2 * 5 - 1) == {"first": 3, "last": 0}


def test_a_limit_below_one_seed_of_the_first_panel_is_refused() -> None:
    message = "must leave time for the first panel with one seed; the pilot says 15 s"
    with pytest.raises(SpecError, match=message):
        chosen(14)


def test_the_pilot_is_paid_for() -> None:
    assert chosen(50, spent=1 / MARGIN) == chosen(49) == {"first": 2, "last": 2}


def test_runs_beside_each_other_take_less_time() -> None:
    # Two teachers, one after the other, and three seeds of two strategies in two panels.
    assert chosen(2 * 10 + 2 * 3 * 5 / 2, parallel=2) == {"first": 3, "last": 3}
    assert chosen(2 * 10 + 2 * 3 * 5 / 2 - 1, parallel=2) == {"first": 2, "last": 2}


def test_a_panel_takes_its_teacher_and_its_longest_student_at_least() -> None:
    specs = {"first": replace(SPEC, seeds=(0,)), "last": replace(OTHER, seeds=(0,))}
    long = PanelTimes(teacher=100.0, strategies={"one_shot": 10.0})
    short = PanelTimes(teacher=1.0, strategies={"one_shot": 10.0})
    plan = allotment(specs, {"first": short, "last": long}, limit=80, parallel=2)
    assert plan.seeds == {"first": 1, "last": 0}
    assert plan.estimate == 1 + 10
    with pytest.raises(SpecError, match="the pilot says 110 s"):
        allotment({"first": specs["first"]}, {"first": long}, limit=80, parallel=2)


def test_equal_teachers_are_trained_once() -> None:
    specs = {"first": SPEC, "last": SPEC}
    plan = allotment(specs, dict.fromkeys(specs, TIMES), limit=100)
    assert plan.estimate == 10 + 2 * 3 * 5


def test_a_first_pass_has_a_run_with_each_rate() -> None:
    passes = {"first": FirstPass(rates=(0.1, 0.2), seconds=1)}
    plan = allotment({"first": SPEC}, {"first": TIMES}, limit=100, passes=passes)
    assert plan.estimate == 10 + (2 + 3) * 5


@given(
    limit=st.floats(min_value=1, max_value=1e4),
    costs=st.lists(st.floats(min_value=0.01, max_value=100), min_size=2, max_size=2),
)
def test_what_is_chosen_fits_and_strategies_are_never_separated(
    limit: float, costs: list[float]
) -> None:
    times = PanelTimes(teacher=1.0, strategies=dict(zip("ab", costs, strict=True)))
    try:
        plan = allotment({"first": SPEC}, {"first": times}, limit=limit)
    except SpecError:
        assert 1 + sum(costs) > MARGIN * limit
        return
    assert plan.estimate == pytest.approx(1 + plan.seeds["first"] * sum(costs))
    assert plan.estimate <= MARGIN * limit


def run_once(folder: Path, limit: float, pilot: object = None) -> tuple[dict[str, RunSpec], str]:
    specs = claim(TWO, "smoke", folder, f"it --within {limit}s")
    ticks = iter([100.0, 100.5])
    return allotted(
        TWO,
        "smoke",
        folder,
        specs,
        limit=limit,
        jobs=1,
        pilot=pilot or (lambda _: TIMES),  # type: ignore[arg-type]
        clock=lambda: next(ticks),
    )


def test_the_choice_stands_in_the_recipe_and_its_specs(tmp_path: Path) -> None:
    specs, note = run_once(tmp_path / "run", 25)
    assert {name: spec.seeds for name, spec in specs.items()} == {"first": (0, 1)}
    record = read_recipe(tmp_path / "run")
    assert [panel.name for panel in record.panels] == ["first"]
    assert record.left_out == {"last": "beyond the 25 s of '--within'"}
    assert record.allotment is not None
    assert record.allotment.note == note
    assert "the pilot (0 s) estimates 20 s for first with 2 of 3 seeds; without last" in note


def test_a_second_call_makes_no_pilot(tmp_path: Path) -> None:
    first = run_once(tmp_path / "run", 25)

    def fail(_spec: RunSpec) -> PanelTimes:
        raise AssertionError

    assert run_once(tmp_path / "run", 25, fail) == first
    assert read_recipe(tmp_path / "run").left_out == {"last": "beyond the 25 s of '--within'"}


def test_other_panels_than_in_the_first_call_are_refused(tmp_path: Path) -> None:
    folder, line = tmp_path / "run", "it --within 60s"
    specs = claim(TWO, "smoke", folder, line, selected=["first"])
    allotted(TWO, "smoke", folder, specs, limit=60, jobs=1, pilot=lambda _: TIMES)
    specs = claim(TWO, "smoke", folder, line, selected=["last"])
    with pytest.raises(SpecError, match="'--panels' must name those of the first call"):
        allotted(TWO, "smoke", folder, specs, limit=60, jobs=1, pilot=lambda _: TIMES)


def test_a_recipe_without_panels_is_refused(tmp_path: Path) -> None:
    recipe: Recipe = replace(PARITY_MLP, panels=lambda _: {})
    with pytest.raises(SpecError, match="'--within' must be left out for 'parity-mlp'"):
        allotted(recipe, "smoke", tmp_path, {}, limit=60, jobs=1)


def test_a_pilot_times_the_teacher_and_every_strategy() -> None:
    times = timed(SPEC)
    assert times.teacher > 0
    assert list(times.strategies) == list(SPEC.strategies)
    assert all(each > 0 for each in times.strategies.values())
