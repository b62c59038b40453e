"""The closed gap: base, share, interval and where it is undefined."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.metrics import Direction
from curricle.reports.gaps import gap_closed
from curricle.reports.headline import headline
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Summary, summarize
from curricle.reports.tables import summary_grid
from tests.unit.reports.conftest import WriteRun

LABELS = {0: 0.60, 1: 0.62, 2: 0.64}
STRATEGY = {0: 0.70, 1: 0.71, 2: 0.75}
TEACHER = 0.82


def compared(
    write_run: WriteRun,
    folder: Path,
    finals: dict[str, list[float]],
    *,
    teacher: float | None = TEACHER,
    metric: str = "accuracy",
    untaught: tuple[str, ...] = ("from_labels",),
) -> Summary:
    """Return the summary of strategies whose seeds end at given values."""
    for method, numbers in finals.items():
        for seed, number in enumerate(numbers):
            write_run(
                folder / "students" / method / f"seed-{seed}",
                {10: number},
                method=method,
                seed=seed,
                metric=metric,
                teacher_parameters=0 if method in untaught else 1024,
            )
    return summarize(load_runs([folder]), teacher_final=teacher)


FINALS = {"from_labels": [*LABELS.values()], "extraction": [*STRATEGY.values()]}


def test_half_of_the_way_from_labels_to_the_teacher_is_half_of_the_gap() -> None:
    """(0.72 - 0.62) / (0.82 - 0.62) = 0.5.

    The interval is that of x - b / 2 = 0.40, 0.40, 0.43 by the gap of 0.2: s = sqrt(0.0003), so
    4.3027 * s / sqrt(3) / 0.2 = 0.043027 / 0.2.
    """
    gap = gap_closed(STRATEGY, LABELS, TEACHER, "higher")
    assert gap is not None
    assert gap.mean == pytest.approx(0.5)
    assert gap.ci95 == pytest.approx(0.215135, abs=1e-5)


def test_lower_perplexities_close_the_gap_alike() -> None:
    """(32 - 42) / (22 - 42) = 0.5; x - b / 2 = 10, 10, 13, so 4.3027 * sqrt(3) / sqrt(3) / 20."""
    gap = gap_closed({0: 30, 1: 31, 2: 35}, {0: 40, 1: 42, 2: 44}, 22, "lower")
    assert gap is not None
    assert gap.mean == pytest.approx(0.5)
    assert gap.ci95 == pytest.approx(0.215135, abs=1e-5)


def test_the_base_is_at_zero_without_noise() -> None:
    assert str(gap_closed(LABELS, LABELS, TEACHER, "higher")) == "0.00"


def test_a_strategy_below_the_base_has_a_negative_share() -> None:
    gap = gap_closed({0: 0.52}, {0: 0.62}, TEACHER, "higher")
    assert gap is not None
    assert gap.mean == pytest.approx(-0.5)
    assert gap.ci95 is None


@pytest.mark.parametrize(
    ("teacher", "better"), [(0.62, "higher"), (0.5, "higher"), (0.82, "lower"), (0.66, "higher")]
)
def test_no_share_where_the_teacher_is_not_better_beyond_the_interval_of_the_base(
    teacher: float, better: Direction
) -> None:
    # The interval of the base is 0.62 ± 4.3027 * 0.02 / sqrt(3) = 0.62 ± 0.0497.
    assert gap_closed(STRATEGY, LABELS, teacher, better) is None


def test_seeds_that_differ_give_the_interval_of_two_independent_means() -> None:
    """Against Welch's formula in numpy, with 2 degrees of freedom at least: t = 4.3027."""
    strategy, base = {3: 0.70, 4: 0.71, 5: 0.75}, LABELS
    gap = gap_closed(strategy, base, TEACHER, "higher")
    variances = np.var([*strategy.values()], ddof=1) / 3, np.var(np.multiply(0.5,
        [*base.values()]), ddof=1) / 3  # fmt: skip
    degrees = int(sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances))
    quantile = {2: 4.3027, 3: 3.1824, 4: 2.7764}[degrees]
    assert gap is not None
    assert gap.ci95 == pytest.approx(quantile * np.sqrt(sum(variances)) / 0.2, rel=1e-4)


@given(
    st.lists(st.floats(0.6, 0.9), min_size=3, max_size=3),
    st.floats(0.1, 100),
    st.floats(-10, 10),
)
def test_the_share_does_not_depend_on_unit_origin_or_direction(
    numbers: list[float], scale: float, shift: float
) -> None:
    finals = dict(enumerate(numbers))
    first = gap_closed(finals, LABELS, TEACHER, "higher")

    def moved(number: float) -> float:
        return shift - scale * number

    second = gap_closed(
        {seed: moved(number) for seed, number in finals.items()},
        {seed: moved(number) for seed, number in LABELS.items()},
        moved(TEACHER),
        "lower",
    )
    assert first is not None
    assert second is not None
    assert second.mean == pytest.approx(first.mean, abs=1e-6)
    assert second.ci95 == pytest.approx(first.ci95, abs=1e-6)


def test_a_comparison_with_labels_has_the_column_and_names_both_ends(
    tmp_path: Path, write_run: WriteRun
) -> None:
    summary = compared(write_run, tmp_path, FINALS)
    grid = summary_grid(summary)
    assert grid.columns[2] == "gap closed, from_labels to teacher"
    assert {row[0]: row[2] for row in grid.rows} == {
        "extraction": "0.50 ± 0.22",
        "from_labels": "0.00",
    }
    assert summary.gap_note == (
        "Gap closed: 0 is from_labels (62.00 ± 4.97 %), 1 is the teacher (82.00 %)."
    )


def test_the_verdict_names_the_strategy_that_closed_most(
    tmp_path: Path, write_run: WriteRun
) -> None:
    line = headline(compared(write_run, tmp_path, FINALS | {"one_shot": [0.65, 0.66, 0.67]}))
    clause = (
        "extraction closed 0.50 ± 0.22 of the gap between from_labels and the teacher (82.00 %)"
    )
    assert clause in line


def test_a_verdict_has_no_gap_where_all_strategies_are_below_labels(
    tmp_path: Path, write_run: WriteRun
) -> None:
    finals = {"from_labels": [0.7, 0.71, 0.72], "extraction": [0.5, 0.51, 0.52]}
    assert "of the gap" not in headline(compared(write_run, tmp_path, finals))


def test_without_labels_one_shot_is_the_base_and_the_verdict_is_silent(
    tmp_path: Path, write_run: WriteRun
) -> None:
    finals = {"one_shot": [*LABELS.values()], "extraction": [*STRATEGY.values()]}
    summary = compared(write_run, tmp_path, finals)
    assert summary.gap_base == "one_shot"
    assert summary.methods["extraction"].gap_closed is not None
    assert "of the gap" not in headline(summary)


def test_of_two_strategies_without_a_teacher_the_better_is_the_base(
    tmp_path: Path, write_run: WriteRun
) -> None:
    finals = {"slow": [30.0, 31.0], "fast": [20.0, 21.0], "extraction": [10.0, 11.0]}
    summary = compared(
        write_run, tmp_path, finals, teacher=1.0, metric="perplexity", untaught=("slow", "fast")
    )
    assert summary.gap_base == "fast"


@pytest.mark.parametrize(
    ("finals", "teacher", "metric"),
    [
        (FINALS, None, "accuracy"),
        (FINALS, TEACHER, "quux"),
        ({"extraction": [0.7], "progressive": [0.6]}, TEACHER, "accuracy"),
        (FINALS, 0.5, "accuracy"),
    ],
    ids=["no teacher", "no direction", "no base", "teacher below labels"],
)
def test_where_the_gap_is_undefined_no_column_is_printed(
    tmp_path: Path,
    write_run: WriteRun,
    finals: dict[str, list[float]],
    teacher: float | None,
    metric: str,
) -> None:
    summary = compared(write_run, tmp_path, finals, teacher=teacher, metric=metric)
    assert (summary.gap_base, summary.gap_note) == (None, "")
    assert len(summary_grid(summary).columns) == 2


def test_the_recorded_training_of_the_teacher_gives_its_metric(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "teacher", {10: 0.5, 20: TEACHER}, teacher_parameters=0)
    summary = compared(write_run, tmp_path, FINALS, teacher=None)
    assert summary.teacher_final == TEACHER
    gap = summary.methods["extraction"].gap_closed
    assert gap is not None
    assert gap.mean == pytest.approx(0.5)
