"""Tables and figures of what probes have found."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from curricle.records import ProbeRecord
from curricle.reports.probe_tables import probe_grids, rank_notes, save_probe_figure


def record(
    probe: str = "correlations",
    model: str = "teacher",
    *,
    step: int = 10,
    seed: int = 0,
    **numbers: float,
) -> ProbeRecord:
    return ProbeRecord(
        probe=probe,
        model=model,
        is_teacher=model == "teacher",
        seed=seed,
        step=step,
        examples=2000,
        numbers=numbers,
    )


TRAJECTORY = [
    record(step=2000, in_1_mean=0.25, in_1_max=0.5, out_1_mean=0.0),
    record(step=1000, in_1_mean=0.125, in_1_max=0.5, out_1_mean=0.0),
]
STUDENTS = [
    record(model="one_shot", step=40, seed=seed, in_1_mean=number, out_1_mean=0.0)
    for seed, number in ((0, 0.1), (1, 0.3))
]


def test_checkpoints_stay_apart_and_seeds_are_averaged() -> None:
    (grid,) = probe_grids([*TRAJECTORY, *STUDENTS])
    assert grid.columns == ("network", "steps", "seeds", "in 1", "out 1")
    assert grid.rows == (
        ("teacher", "2k", "1", "0.2500", "0.0000"),
        ("teacher", "1k", "1", "0.1250", "0.0000"),
        ("one_shot", "40", "2", "0.2000", "0.0000"),
    )
    assert grid.title.endswith("by degree; 2,000 held-out examples")


def test_each_probe_has_a_table_with_what_is_shown_of_it() -> None:
    grids = probe_grids([
        record("ngrams", robust_3_median=0.5, robust_3_mean=0.4, close_3_median=0.1),
        record("similarity", "one_shot", cka_1_2=0.75),
        record("similarity", "progressive", cka_2_2=0.5),
        record("linear", linear_0_accuracy=0.5, linear_1_accuracy=1.0),
        record("nonterminals", level_0_accuracy=1.0, level_1_accuracy=0.5, accuracy=0.75),
        record("own", anything=1.0),
    ])  # fmt: skip
    assert [grid.columns[3:] for grid in grids] == [
        ("robust 3", "close 3"),
        ("1 ~ 2", "2 ~ 2"),
        ("tap 0", "tap 1"),
        ("level 0", "level 1"),
        ("anything",),
    ]
    assert grids[1].rows[0] == ("one_shot", "10", "1", "0.7500", "–")


def test_students_of_different_length_tell_the_range() -> None:
    (grid,) = probe_grids([
        record(model="a", step=40, in_1_mean=0.0),
        record(model="a", step=1200, seed=1, in_1_mean=0.0),
    ])  # fmt: skip
    assert grid.rows[0][1] == "40 to 1.2k"


def test_a_student_called_teacher_is_none() -> None:
    student = ProbeRecord(
        probe="correlations",
        model="teacher",
        is_teacher=False,
        seed=0,
        step=10,
        examples=2000,
        numbers={"in_1_mean": 0.5},
    )
    (grid,) = probe_grids([record(in_1_mean=0.1), student])
    assert [row[3] for row in grid.rows] == ["0.1000", "0.5000"]


def test_the_training_of_the_teacher_is_drawn_the_same_every_time(tmp_path: Path) -> None:
    ngrams = [record("ngrams", step=step, robust_3_median=0.5) for step in (10, 20)]
    records = [*TRAJECTORY, *STUDENTS, *ngrams]
    png, svg = save_probe_figure(records, tmp_path / "deep" / "probes")
    assert (png.name, svg.name) == ("probes.png", "probes.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    again = save_probe_figure(records, tmp_path / "probes")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]


@pytest.mark.parametrize("smallest", [0.0, 0.001, 0.3])
def test_small_and_vanishing_numbers_are_drawn(tmp_path: Path, smallest: float) -> None:
    records = [
        record("ngrams", step=step, robust_3_median=number, close_3_median=0.5)
        for step, number in ((10, smallest), (20, 0.8))
    ]
    assert len(save_probe_figure(records, tmp_path / "probes")) == 2


@pytest.mark.parametrize("records", [[], TRAJECTORY[:1], STUDENTS])
def test_without_a_trajectory_nothing_is_drawn(tmp_path: Path, records: list[ProbeRecord]) -> None:
    assert save_probe_figure(records, tmp_path / "probes") == ()
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_student_teacher_and_target_stand_side_by_side() -> None:
    (grid,) = probe_grids([
        record("ranks", rank_1=6.0),
        record("ranks", "extraction", rank_1=2.0, teacher_1=5.0, target_1=3.0),
    ])  # fmt: skip
    assert grid.columns[3:] == ("rank 1", "teacher 1", "target 1")
    assert [row[3:] for row in grid.rows] == [
        ("6.0000", "–", "–"),
        ("2.0000", "5.0000", "3.0000"),
    ]


def test_a_rank_below_half_of_the_teachers_is_noted() -> None:
    """Means of 2.0 and 5.0 over the seeds: below 2.5 at tap 1; 3.0 at tap 2 is not."""
    records = [
        record("ranks", rank_1=10.0),
        *(
            record(
                "ranks", "extraction", seed=seed, rank_1=rank, teacher_1=5.0, target_1=3.0,
                rank_2=3.0, teacher_2=5.0,
            )
            for seed, rank in ((0, 1.5), (1, 2.5))
        ),
        record("ranks", "one_shot", rank_1=2.5, teacher_1=5.0),
    ]  # fmt: skip
    (note,) = rank_notes(records)
    assert note == (
        "extraction: the effective rank of the hidden states at tap 1, 2, is below half of the "
        "teacher's, 5, in as many directions as the student is wide; that of the projected target "
        "is 3"
    )


def test_without_a_target_the_note_ends_with_the_teacher() -> None:
    (note,) = rank_notes([record("ranks", "one_shot", rank_1=1.0, teacher_1=5.0)])
    assert note.endswith("in as many directions as the student is wide")


def test_other_probes_give_no_note_of_ranks() -> None:
    assert rank_notes([*TRAJECTORY, *STUDENTS]) == []
