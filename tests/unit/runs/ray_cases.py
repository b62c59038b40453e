"""Comparisons and captures as tasks of a Ray cluster of two nodes on this machine.

Tests that `test_ray_cluster.py` runs in a process of their own: processes that are forked after a
connection to a cluster, as workers of a DataLoader are, can hang in a lock of Ray.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import curricle
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError, DivergenceError
from curricle.files import new_file
from curricle.runs.folder import end_of
from curricle.runs.pool import compare, work_off
from curricle.runs.ray_cluster import RayCluster, RayWorkers
from curricle.runs.report import summarized
from curricle.runs.spec import RunSpec
from curricle.runs.train import student_runs, teach
from curricle.runs.workers import RecordWatcher
from tests.parts import StoredRows, mlp, parity, stored_rows
from tests.soak.contents import without_seconds

MakeSpec = Callable[..., RunSpec]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Start a cluster of two nodes of a core each."""
    handler = signal.getsignal(signal.SIGTERM)
    ray = pytest.importorskip("ray")
    utilities = pytest.importorskip("ray.cluster_utils")
    nodes = utilities.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20},
    )
    nodes.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 << 20)
    # Workers find the modules of the tests where this process does.
    paths = os.pathsep.join(path for path in sys.path if path)
    ray.init(
        address=nodes.address,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    # Nodes and drivers set one of their own, which other tests in this process would meet.
    signal.signal(signal.SIGTERM, handler)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def address(nodes: Any) -> str:
    """Return the address of the cluster."""
    found: str = nodes.address
    return found


def taught(make_spec: MakeSpec, folder: Path) -> RunSpec:
    spec = make_spec(f"output_dir={folder}", "seeds=[0]", "engine.threads=1")
    teach(spec)
    return spec


def test_students_of_a_cluster_are_those_of_one_process(
    make_spec: MakeSpec, address: str, tmp_path: Path
) -> None:
    here, there = taught(make_spec, tmp_path / "here"), taught(make_spec, tmp_path / "there")
    compare(here, watch=lambda run, record: None)
    told: set[str] = set()
    workers = RayWorkers(RayCluster(address=address))
    compare(there, workers=workers, watch=lambda run, record: told.add(str(run)))
    assert told == {"one_shot seed 0", "progressive seed 0"}
    for run, other in zip(student_runs(here), student_runs(there), strict=True):
        end, same = end_of(run.folder), end_of(other.folder)
        assert end is not None
        assert same is not None
        assert end.metrics == same.metrics
    summaries = [
        without_seconds(json.loads(json.dumps(asdict(summarized([spec.folder])[1]))))
        for spec in (here, there)
    ]
    assert summaries[0] == summaries[1]


@dataclass(frozen=True)
class FaultyStream:
    """Parity batches; the first process that reads one of them dies, or waits to be killed."""

    folder: str
    step: int
    waits: bool = False

    def batch(self, step: int) -> Batch:
        with Path(self.folder, "steps").open("a") as file:
            file.write(f"{step} ")
        marker = Path(self.folder, "faulty")
        if step == self.step and not marker.exists():
            import ray

            with new_file(marker) as temporary:
                temporary.write_text(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}")
            if self.waits:
                time.sleep(120)
            os.kill(os.getpid(), signal.SIGKILL)
        return parity().batch(step)

    @property
    def batch_size(self) -> int:
        return parity().batch_size

    @property
    def tokens_per_batch(self) -> int:
        return parity().tokens_per_batch

    @property
    def fingerprint(self) -> str:
        return parity().fingerprint


def distilled(place: Path, step: int, on: RayCluster | None, **faults: bool) -> curricle.Comparison:
    """Return a comparison of one student, of which a process fails at a step."""
    return curricle.compare(
        mlp(5, 4),
        mlp(16, 12, seed=1),
        FaultyStream(str(place), step, **faults),
        evaluation=[parity().batch(0)],
        budget="12 steps",
        strategies=["one_shot"],
        seeds=(0,),
        settings=curricle.TrainingSettings(device="cpu", save_every=4, threads=1),
        output_dir=place / "run",
        on=on,
    )


def wait_for_nodes(number: int) -> None:
    """Wait until the cluster has noticed that nodes were removed, for the tests that follow."""
    import ray

    end = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) != number:
        assert time.monotonic() < end
        time.sleep(0.05)


def check_continued(place: Path) -> None:
    """Check that the process after the one that failed at step 10 has begun at a checkpoint."""
    steps = [int(step) for step in (place / "steps").read_text().split()]
    after = steps[steps.index(10) + 1 :]
    assert (place / "faulty").exists()
    # The checkpoint is that after step 8; binding reads the first batch.
    assert set(range(1, 8)).isdisjoint(after)
    assert {8, 9, 10, 11} <= set(after)


def test_a_run_whose_node_is_lost_goes_on_on_another_from_its_checkpoint(
    nodes: Any, tmp_path: Path
) -> None:
    # The only nodes with room for the run.
    large = [nodes.add_node(num_cpus=2, num_gpus=0, object_store_memory=80 << 20) for _ in range(2)]

    def lose_node() -> None:
        while not (tmp_path / "faulty").exists():
            time.sleep(0.05)
        pid, name = (tmp_path / "faulty").read_text().split()
        (place,) = (place for place, node in enumerate(large) if node.node_id == name)
        nodes.remove_node(large.pop(place), allow_graceful=False)
        # The nodes are processes of one machine, on which a worker may outlive its node.
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(lose_node)
        cluster = RayCluster(address=nodes.address, num_cpus=2)
        result = distilled(tmp_path, 10, cluster, waits=True)
        lost.result()
    nodes.remove_node(*large)
    wait_for_nodes(2)
    assert set(result.students) == {("one_shot", 0)}
    check_continued(tmp_path)


def test_a_run_whose_worker_is_lost_goes_on_elsewhere_from_its_checkpoint(
    address: str, tmp_path: Path
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    undisturbed = distilled(tmp_path / "here", -1, None)
    killed = distilled(tmp_path / "there", 10, RayCluster(address=address))
    check_continued(tmp_path / "there")
    for parameter, expected in zip(
        killed.students["one_shot", 0].parameters(),
        undisturbed.students["one_shot", 0].parameters(),
        strict=True,
    ):
        assert torch.equal(parameter, expected)


def test_targets_of_a_cluster_are_those_of_one_process_also_when_a_worker_is_lost(
    address: str, tmp_path: Path
) -> None:
    def captured(name: str, step: int, on: RayCluster | None) -> StoredRows:
        place = tmp_path / name
        place.mkdir()
        progress: list[tuple[int, int]] = []
        manifest = curricle.capture_targets(
            mlp(5, 4),
            mlp(16, 12, seed=1),
            curricle.extraction(total="12 steps"),
            FaultyStream(str(place), step),
            folder=place / "store",
            compression=curricle.TargetCompression(shard_bytes=500),
            settings=curricle.TrainingSettings(device="cpu", threads=1),
            watch=lambda done, total: progress.append((done, total)),
            on=on,
        )
        assert manifest.is_complete
        assert progress[-1] == (12, 12)
        return stored_rows(place / "store")

    alone = captured("here", -1, None)
    assert {len(entries) for entries in alone.values()} == {1}
    assert captured("there", 10, RayCluster(address=address)) == alone
    assert (tmp_path / "there" / "faulty").exists()
    assert not (tmp_path / "there" / "store" / "shares").exists()


def fail(number: int, watch: RecordWatcher) -> None:
    if number == 0:
        raise DivergenceError("the loss is not finite")
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_of_a_task_is_that_of_the_run(address: str) -> None:
    with pytest.raises(DivergenceError, match=r"^the loss is not finite$"):
        work_off(
            [0],
            fail,
            workers=RayWorkers(RayCluster(address=address)),
            watch=lambda name, record: None,
            again="x",
        )


def test_a_worker_that_is_lost_too_often_is_told(address: str) -> None:
    with pytest.raises(CheckpointError, match=r"Ray has lost a worker too often: .*; 'x' goes on"):
        work_off(
            [1],
            fail,
            workers=RayWorkers(RayCluster(address=address, max_retries=0)),
            watch=lambda name, record: None,
            again="x",
        )


def test_a_run_that_no_node_has_room_for_is_refused(address: str) -> None:
    with pytest.raises(
        BindError, match=r"must have the 8 CPUs and 0 GPUs of a run; the largest have 1 and 0"
    ):
        RayWorkers(RayCluster(address=address, num_cpus=8))
