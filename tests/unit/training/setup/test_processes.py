"""Processes that are lost, and those of `parallel` that are refused.

Runs of several processes are in `tests/integration/test_processes.py`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import distributed
from torch._C._distributed_c10d import HashStore

from curricle.errors import DataError, LostProcessError, SpecError
from curricle.training.setup.processes import (
    DataParallel,
    absent,
    is_failed_exchange,
    note_end,
    noted_ends,
)
from curricle.training.setup.settings import TrainingSettings

FAILED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"


@pytest.fixture(scope="module", autouse=True)
def placement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataParallel]:
    """Open a process group of one process, which reaches no network."""
    store: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield DataParallel("cpu", 20.0)
    distributed.destroy_process_group()


@pytest.fixture
def store(placement: DataParallel, monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """Return the store in which processes of a group note their ends, here a new one."""
    made = HashStore()
    monkeypatch.setattr(placement, "_store", made)
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
    placement: DataParallel, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_number", 2)
    monkeypatch.setattr("curricle.training.setup.processes.MOST_WAIT", 0.01)
    message = "process 1 of 2, counted from 0, must answer within the 20 seconds of 'timeout'"
    with pytest.raises(LostProcessError, match=message) as caught, placement.lost_process_errors():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.usefixtures("store")
def test_other_errors_pass(placement: DataParallel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_number", 2)
    with pytest.raises(DataError, match="labels"), placement.lost_process_errors():
        raise DataError("labels")


def test_a_failed_exchange_passes_where_no_process_is_lost_or_the_group_is_that_of_the_caller(
    placement: DataParallel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in (None, HashStore()):
        monkeypatch.setattr(placement, "_store", store)
        with (
            pytest.raises(RuntimeError, match="Connection closed"),
            placement.lost_process_errors(),
        ):
            raise RuntimeError(FAILED)


def test_the_error_that_has_ended_a_process_is_named_without_a_wait(
    placement: DataParallel, store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_number", 3)
    message = "process 2 of 3, counted from 0, has ended by KeyError: 'loss \\x1b'; the run goes on"
    note_end(store, 2, KeyError("loss \x1b"))
    with pytest.raises(LostProcessError, match=re.escape(message)), placement.lost_process_errors():
        raise RuntimeError(FAILED)


def test_an_error_is_noted_until_the_next_run_of_the_process(
    placement: DataParallel, store: HashStore
) -> None:
    with pytest.raises(KeyboardInterrupt), placement.lost_process_errors():
        raise KeyboardInterrupt
    assert noted_ends(store, 1) == {0: "KeyboardInterrupt"}
    with placement.lost_process_errors():
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


def test_replicas_without_shares_are_refused() -> None:
    message = r"'replicas' has no effect with parallel='ddp', .*; choose 'fsdp2', .*got 2"
    with pytest.raises(SpecError, match=message):
        TrainingSettings(parallel="ddp", replicas=2)
