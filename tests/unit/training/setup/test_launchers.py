"""Variables of a launcher, set by hand."""

import pytest

from curricle.training.setup import launchers


@pytest.mark.parametrize(("value", "number"), [("4", 4), ("1", 1), ("", 1), ("-2", 1), ("x", 1)])
def test_a_world_size_in_another_form_is_that_of_another_program(
    value: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    assert launchers.num_processes() == number


@pytest.mark.parametrize(
    ("world_size", "rank", "number"), [("2", "1", 1), ("1", "1", 0), ("x", "1", 0), ("2", "x", 0)]
)
def test_the_rank_is_that_of_a_launcher_of_several_processes(
    world_size: str, rank: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.setenv("RANK", rank)
    assert launchers.rank() == number


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launchers.VARIABLES, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (launchers.num_processes(), launchers.rank(), launchers.local_rank()) == (1, 0, 0)
    assert launchers.absent_variables() == ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]


def test_the_number_of_the_gpu_is_that_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert launchers.local_rank() == 3


@pytest.mark.parametrize(("count", "restarts"), [(None, 0), ("0", 0), ("2", 2)])
def test_restarts_by_torchrun_are_counted(
    count: str | None, restarts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert launchers.restarts() == restarts
