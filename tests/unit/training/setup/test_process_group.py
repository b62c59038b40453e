"""The group of processes, and processes of it that are lost.

Runs of several processes are in `tests/integration/test_processes.py`.
"""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch._C._distributed_c10d import HashStore

from curricle.errors import BindError, DataError, LostProcessError
from curricle.training.setup import process_group
from curricle.training.setup.process_group import (
    ProcessGroup,
    absent,
    is_failed_exchange,
    joined,
    note_end,
    noted_ends,
)

FAILED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessGroup]:
    """Open a process group of one process, which reaches no network."""
    store: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield joined("cpu", 20.0)
    distributed.destroy_process_group()


@pytest.fixture
def store(group: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """Return the store in which processes of a group note their ends, here a new one."""
    made = HashStore()
    monkeypatch.setattr(group, "store", made)
    # There are no others for which a holder of the store would wait.
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return made


def test_processes_that_note_no_failure_are_absent() -> None:
    store = HashStore()
    store.set("failed/2", "")
    assert absent(store, 0, 4, wait=0.01) == [1, 3]
    # The process itself has noted that it lives.
    assert absent(store, 3, 4, wait=0.01) == [1]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "error", [RuntimeError(FAILED), DataError(f"a pass failed with: {FAILED}")]
)
def test_the_lost_process_is_named(
    group: ProcessGroup, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "size", 2)
    monkeypatch.setattr("curricle.training.setup.process_group.MOST_WAIT", 0.01)
    message = "process 1 of 2, counted from 0, must answer within the 20 seconds of 'timeout'"
    with pytest.raises(LostProcessError, match=message) as caught, group.lost_process_errors():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.usefixtures("store")
def test_other_errors_pass(group: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "size", 2)
    with pytest.raises(DataError, match="labels"), group.lost_process_errors():
        raise DataError("labels")


def test_a_failed_exchange_in_a_group_of_the_caller_passes(
    group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "store", None)
    with pytest.raises(RuntimeError, match="Connection closed"), group.lost_process_errors():
        raise RuntimeError(FAILED)


@pytest.mark.usefixtures("store")
def test_exchanges_that_do_not_meet_are_told_where_no_process_is_lost(group: ProcessGroup) -> None:
    message = "all 1 processes must make the same exchanges; all answer, but an exchange has failed"
    with pytest.raises(LostProcessError, match=message), group.lost_process_errors():
        raise RuntimeError(FAILED)


def test_the_error_that_has_ended_a_process_is_named_without_a_wait(
    group: ProcessGroup, store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "size", 3)
    message = "process 2 of 3, counted from 0, has ended by KeyError: 'loss \\x1b'; the run goes on"
    note_end(store, 2, KeyError("loss \x1b"))
    with pytest.raises(LostProcessError, match=re.escape(message)), group.lost_process_errors():
        raise RuntimeError(FAILED)


def test_an_error_is_noted_until_the_next_run_of_the_process(
    group: ProcessGroup, store: HashStore
) -> None:
    with pytest.raises(KeyboardInterrupt), group.lost_process_errors():
        raise KeyboardInterrupt
    assert noted_ends(store, 1) == {0: "KeyboardInterrupt"}
    with group.lost_process_errors():
        assert noted_ends(store, 1) == {}


def test_with_its_store_the_first_process_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(HashStore):
        def set(self, key: str, value: str) -> None:
            raise RuntimeError(key, value)

    store = Lost()
    assert absent(store, 1, 2, wait=0.01) == [0]
    note_end(store, 1, KeyError())
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert absent(store, 1, 2, wait=0.01) == []


def test_errors_of_exchanges_are_told_from_others() -> None:
    assert is_failed_exchange(distributed.DistNetworkError("reset"))
    assert not is_failed_exchange(RuntimeError("shapes"))


@pytest.mark.usefixtures("store")
def test_a_lost_process_that_an_inner_block_has_named_is_no_end_of_this_process(
    group: ProcessGroup, store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "size", 3)
    note_end(store, 1, KeyError("loss"))
    with (
        pytest.raises(LostProcessError, match="process 1 of 3"),
        group.lost_process_errors(),
        group.lost_process_errors(),
    ):
        raise RuntimeError(FAILED)
    assert noted_ends(store, 3) == {1: "KeyError: 'loss'"}


def test_the_holder_of_the_store_leaves_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[list[str], float]] = []

    class Noting(HashStore):
        def wait(self, keys: list[str], timeout: timedelta) -> None:  # type: ignore[override]
            waits.append((keys, timeout.total_seconds()))

    process_group.leave(Noting(), 1, [0, 1, 3])
    process_group.leave(Noting(), 0, [0, 1, 3])
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    process_group.leave(Noting(), 0, [0, 1, 3])
    assert waits == [(["left/0", "left/1", "left/3"], process_group.MOST_WAIT)]


def test_runs_of_all_placements_have_the_group_that_the_first_has_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = ProcessGroup(HashStore(), 3.0, has_gpus=False)
    monkeypatch.setattr(process_group, "_MADE", [made])
    assert joined("cpu", 20.0) is made
    assert joined("cpu", 20.0).timeout == 3.0
    # Another group, that of the caller, has come since.
    monkeypatch.setattr(made, "_world", 0)
    assert joined("cpu", 20.0).store is None


def test_numbers_of_the_host_have_a_group_of_their_own_beside_gpus() -> None:
    assert ProcessGroup(None, 20.0, has_gpus=False).host is None
    host = ProcessGroup(None, 20.0, has_gpus=True).host
    assert host is not None
    assert host is not distributed.group.WORLD
    assert distributed.get_backend(host) == "gloo"
    number = torch.ones(())
    distributed.all_reduce(number, group=host)
    assert number == 1.0


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BindError, match="process 2, counted from 0, has none of 2; start as many"):
        joined("cuda", 20.0)


@pytest.mark.parametrize(
    ("number", "gpus", "current", "visible", "taken"),
    [
        (1, 2, 0, None, [1]),
        # The caller has chosen.
        (1, 4, 3, None, []),
        # The launcher shows each process one GPU.
        (3, 1, 0, "3", []),
    ],
)
def test_a_process_takes_the_gpu_of_its_number_unless_it_has_one(
    number: int,
    gpus: int,
    current: int,
    visible: str | None,
    taken: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", str(number))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    # Also where the group is there already, as after a run on CPUs.
    joined("cuda", 20.0)
    assert chosen == taken


def test_the_group_for_numbers_of_the_host_is_freed_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = ProcessGroup(HashStore(), 3.0, has_gpus=True, margin=60.0)
    assert (made.timeout, made.device_timeout) == (3.0, 63.0)
    monkeypatch.setattr(process_group, "_MADE", [made])
    # The group of these tests stays.
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    process_group._leave_group()
    assert made.host is None
