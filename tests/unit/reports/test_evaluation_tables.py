"""A table has a row for each number, and ratios for size and speed only."""

from curricle.reports.evaluation_tables import accuracy_grid, evaluation_grid


def numbers(accuracy: float, parameters: int, milliseconds: float) -> dict[str, object]:
    return {
        "metrics": {"accuracy": accuracy},
        "parameters": parameters,
        "bytes": 4 * parameters,
        "ms_per_example": milliseconds,
        "ms_alone": 2 * milliseconds,
    }


def test_student_and_teacher_stand_beside_each_other() -> None:
    grid = evaluation_grid(
        {"student": numbers(0.5, 1000, 0.5), "teacher": numbers(0.75, 4000, 2.0)}, title="signs"
    )
    assert grid.title == "signs"
    assert grid.columns == ("", "student", "teacher", "teacher : student")
    assert grid.rows == (
        ("accuracy", "50.00 %", "75.00 %", ""),
        ("parameters", "1k", "4k", "4"),
        ("bytes", "4k", "16k", "4"),
        ("ms an example, in a batch", "0.5", "2", "4"),
        ("ms an example, alone", "1", "4", "4"),
    )


def test_one_model_has_no_ratio() -> None:
    grid = evaluation_grid({"student": numbers(0.5, 0, 0.5)})
    assert grid.columns == ("", "student")
    assert grid.rows[1] == ("parameters", "0")


def test_a_model_without_weights_has_no_ratio_of_sizes() -> None:
    grid = evaluation_grid({"a": numbers(0.5, 0, 0.5), "b": numbers(0.5, 4, 1.0)})
    assert grid.rows[1][3] != "inf"
    assert grid.rows[3][3] == "2"


def test_shares_are_printed_in_percent() -> None:
    grid = accuracy_grid(("kind", "accuracy"), {"islands": [0.125]}, title="pairs")
    assert grid.rows == (("islands", "12.50 %"),)
    assert grid.numeric == (False, True)
