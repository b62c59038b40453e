"""Room, device and signals of a Ray cluster; runs on one are in a process of their own."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import curricle
from curricle.errors import BindError, SpecError
from curricle.runs import ray_cluster
from curricle.runs.ray_cluster import RayCluster, RayWorkers, check_device

ROOT = Path(__file__).parents[3]
CASES = "tests/unit/runs/ray_cases.py"


@pytest.mark.integration
@pytest.mark.xdist_group("processes")
def test_runs_on_a_cluster_are_those_of_one_process_also_when_workers_and_nodes_are_lost() -> None:
    pytest.importorskip("ray")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", CASES]
    ended = subprocess.run(line, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"\d+ passed", ended.stdout)
    assert "skipped" not in ended.stdout


@pytest.mark.parametrize(
    ("cluster", "room"),
    [
        (RayCluster(), 7),
        (RayCluster(num_cpus=2), 3),
        (RayCluster(num_gpus=0.5), 4),
        (RayCluster(num_cpus=0, num_gpus=1), 2),
    ],
)
def test_the_room_of_a_cluster_is_that_of_its_nodes(cluster: RayCluster, room: int) -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0, "memory": 1e9}, {"CPU": 3.0}]
    assert ray_cluster._room(cluster, nodes) == room


class FakeRay:
    """Ray with a node of one core, which takes over SIGTERM as Ray does."""

    def __init__(self) -> None:
        self.is_connected = False

    def is_initialized(self) -> bool:
        return self.is_connected

    def init(self, **_options: object) -> None:
        self.is_connected = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda _number, _frame: None)

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def shutdown(self) -> None:
        self.is_connected = False


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setattr(ray_cluster, "imported", lambda *_names, **_words: ray)
    return ray


@pytest.fixture
def _terminated() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("_terminated")
def test_workers_that_find_no_room_leave_ray_and_the_handler_of_sigterm_as_before(
    fake_ray: FakeRay,
) -> None:
    def handler(_number: int, _frame: object) -> None:
        raise AssertionError

    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(BindError, match="must have the 8 CPUs"):
        RayWorkers(RayCluster(num_cpus=8))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not fake_ray.is_connected


def test_a_connection_of_the_caller_stays_when_there_is_no_room(fake_ray: FakeRay) -> None:
    fake_ray.is_connected = True
    with pytest.raises(BindError, match="must have the 8 CPUs"):
        RayWorkers(RayCluster(num_cpus=8))
    assert fake_ray.is_connected


def test_a_thread_connects_without_handlers_of_signals(fake_ray: FakeRay) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(BindError, match="must have the 8 CPUs"),
    ):
        pool.submit(RayWorkers, RayCluster(num_cpus=8)).result()
    assert not fake_ray.is_connected


@pytest.mark.parametrize(
    ("has_gpu", "num_gpus", "sentence"),
    [
        (True, 0.0, r"'auto' is 'cuda' here and 'cpu' in tasks with num_gpus=0; name the device"),
        (False, 0.5, r"'auto' is 'cpu' here and 'cuda' in tasks with num_gpus=0.5; name"),
    ],
)
def test_a_device_that_differs_here_and_in_the_tasks_is_refused(
    has_gpu: bool, num_gpus: float, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    with pytest.raises(BindError, match=sentence):
        check_device(curricle.TrainingSettings(), RayCluster(num_gpus=num_gpus))
    same = RayCluster(num_gpus=0.5 - num_gpus)
    check_device(curricle.TrainingSettings(), same)
    check_device(curricle.TrainingSettings(device="cpu"), RayCluster(num_gpus=num_gpus))


def test_a_run_takes_some_resource() -> None:
    with pytest.raises(SpecError, match="'num_cpus' or 'num_gpus' must be above 0"):
        RayCluster(num_cpus=0)
    with pytest.raises(SpecError, match="'num_gpus' must be at least 0; got -1"):
        RayCluster(num_gpus=-1)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BindError, match=r"pip install 'curricle\[ray\]'"):
        RayWorkers(RayCluster())
