from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.errors import CheckpointError
from curricle.reports.directions import direction_of
from curricle.reports.run_folders import load_runs

WriteRun = Callable[..., Path]


def test_a_declaration_counts_for_the_metric_of_its_run_alone(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {10: 0.5}, metric="xyz", better="lower")])
    assert direction_of(runs, "xyz") == "lower"
    assert direction_of(runs, "accuracy") == "higher"
    assert direction_of(runs, "abc") is None


def test_opposite_declarations_are_refused(tmp_path: Path, write_run: WriteRun) -> None:
    folders = [
        write_run(tmp_path / better, {10: 0.5}, metric="xyz", better=better)
        for better in ("higher", "lower")
    ]
    match = "must declare one direction of 'xyz'; got better='lower' in '.*lower' and better='high"
    with pytest.raises(CheckpointError, match=match):
        direction_of(load_runs(folders), "xyz")
