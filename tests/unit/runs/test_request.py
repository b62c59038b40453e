"""The question of a comparison beside its runs."""

from pathlib import Path

import pytest

from curricle.errors import CheckpointError
from curricle.runs.budget import budget_of
from curricle.runs.request import REQUEST, Request, read_request, write_request

REQUESTS = (
    Request(),
    Request(metric="f1", better="higher", goal=0.5, budget=budget_of("4k steps")),
    Request(metric="nll", goal_of="one_shot", budget=budget_of("2T flops")),
)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_is_read_as_it_was_written(tmp_path: Path, request_: Request) -> None:
    write_request(tmp_path / "run", request_, resume=False)
    assert read_request(tmp_path / "run") == request_


def test_a_folder_without_one_leaves_all_open(tmp_path: Path) -> None:
    assert read_request(tmp_path) == Request()


def test_a_resumed_comparison_must_ask_the_same(tmp_path: Path) -> None:
    write_request(tmp_path, REQUESTS[1], resume=False)
    write_request(tmp_path, REQUESTS[1], resume=True)
    with pytest.raises(CheckpointError, match="must not hold a comparison already"):
        write_request(tmp_path, REQUESTS[1], resume=False)
    with pytest.raises(CheckpointError, match=r"must hold the metric, goal and budget .*'f1'"):
        write_request(tmp_path, REQUESTS[2], resume=True)


@pytest.mark.parametrize("text", ["", "{}", '{"metric": "f1"}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / REQUEST).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"must be the file that curricle.compare wrote; "):
        read_request(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_request(tmp_path, REQUESTS[1], resume=False)
    path = tmp_path / REQUEST
    path.write_text(path.read_text(encoding="utf-8").replace("f1", "f2"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"must be the file that curricle.compare wrote"):
        read_request(tmp_path)
