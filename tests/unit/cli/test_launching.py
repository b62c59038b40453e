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
