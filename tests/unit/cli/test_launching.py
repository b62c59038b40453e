import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from curricle.cli import launching
from curricle.errors import CurricleError, LostProcessError, SpecError


def test_processes_of_a_launcher_do_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"'WORLD_SIZE' must be 1 for 'compare'.*'--jobs'; got 2"):
        launching.refuse(1, "compare")


def test_a_process_of_a_launcher_starts_no_further_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"'--nproc' must be left out.*started 2; got 4"):
        launching.launch(4, [])


def test_equal_mistakes_of_all_processes_are_the_sentence_of_the_first(tmp_path: Path) -> None:
    failures = {
        1: failed(tmp_path, 1, 2, SpecError("'seed' is wrong")),
        0: failed(tmp_path, 0, 2, SpecError("'seed' is wrong; its batch is in 'failed-steps'")),
    }
    end = launching.failure_end(failures)
    assert end == ("'seed' is wrong; its batch is in 'failed-steps'", 2)


def test_a_mistake_comes_before_the_loss_of_its_process(tmp_path: Path) -> None:
    failures = {
        0: failed(tmp_path, 0, 2, LostProcessError("process 1 must answer")),
        1: failed(tmp_path, 1, -signal.SIGTERM, SpecError("'seed' is wrong")),
    }
    assert launching.failure_end(failures) == ("'seed' is wrong", 2)


def test_a_killed_process_is_named_and_not_the_one_that_misses_it(tmp_path: Path) -> None:
    failures = {
        0: failed(tmp_path, 0, 2, LostProcessError("process 1 must answer")),
        1: failed(tmp_path, 1, -signal.SIGKILL),
        2: failed(tmp_path, 2, -signal.SIGTERM),
    }
    end = launching.failure_end(failures)
    assert end == (
        "process 1, counted from 0, was ended by SIGKILL; the run goes on by resuming it",
        128 + 9,
    )


def test_a_process_that_hangs_is_that_which_others_miss_before_the_launcher_kills_it(
    tmp_path: Path,
) -> None:
    missing = failed(tmp_path, 0, 2, LostProcessError("process 1 must answer within 10 seconds"))
    killed = failed(tmp_path, 1, -signal.SIGKILL)
    killed.timestamp = missing.timestamp + 30
    end = launching.failure_end({0: missing, 1: killed})
    assert end == ("process 1 must answer within 10 seconds", 2)


def test_a_process_with_a_traceback_is_named_with_its_exit_code(tmp_path: Path) -> None:
    end = launching.failure_end({1: failed(tmp_path, 1, 1)})
    assert end == ("process 1, counted from 0, ended with exit code 1", 1)


@pytest.mark.parametrize(
    ("codes", "number"),
    [
        ((138, 138), signal.SIGUSR1),
        # The launcher has ended the second before its own end.
        ((138, 143), signal.SIGUSR1),
        ((130, -signal.SIGTERM), signal.SIGINT),
        ((143, 143), signal.SIGTERM),
        ((143, -signal.SIGKILL), 0),
        ((143, 1), 0),
    ],
)
def test_a_signal_that_has_ended_all_processes_is_told_from_a_failure(
    codes: tuple[int, int], number: int, tmp_path: Path
) -> None:
    failures = {rank: failed(tmp_path, rank, code) for rank, code in enumerate(codes)}
    assert launching.stop_signal(failures) == number


def test_a_report_in_torch_s_own_form_is_a_cause(tmp_path: Path) -> None:
    failure = failed(tmp_path, 0, 2, SpecError("'seed' is wrong"))
    failure.error_file_data["message"].pop("extraInfo")
    assert launching.failure_end({0: failure}) == ("'seed' is wrong", 2)


def failed(
    folder: Path, rank: int, exit_code: int, error: CurricleError | None = None
) -> ProcessFailure:
    """Return a failed process, which has left a mistake if there is one."""
    file = folder / f"{rank}.json"
    if error is not None:
        launching.leave_mistake(error, str(error), file)
    return ProcessFailure(rank, pid=1, exitcode=exit_code, error_file=str(file))
