import pytest

from curricle.cli import launching
from curricle.errors import SpecError


def test_processes_of_a_launcher_do_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"'WORLD_SIZE' must be 1 for 'compare'.*'--jobs'; got 2"):
        launching.refuse(1, "compare")


def test_a_process_of_a_launcher_starts_no_further_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"'--nproc' must be left out.*started 2; got 4"):
        launching.launch(4, [])


@pytest.mark.parametrize(
    ("world_size", "rank", "number"), [("2", "1", 1), ("1", "1", 0), ("x", "1", 0)]
)
def test_the_rank_is_that_of_a_launcher_of_several_processes(
    world_size: str, rank: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.setenv("RANK", rank)
    assert launching.rank() == number


def test_a_restart_by_torchrun_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not launching.is_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not launching.is_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert launching.is_restarted()
