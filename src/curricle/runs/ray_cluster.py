"""Workers of a Ray cluster: each run is a task with resources, on whatever node has room for it.

Run folders lie on storage that all nodes share, at the same path; the nodes have the same version
of curricle. A task whose worker or node is lost is started again by Ray, elsewhere, and goes on
from its newest checkpoint.
"""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

from curricle.errors import BindError, SpecError
from curricle.extras import imported
from curricle.runs.workers import Job, Message, Work
from curricle.training.setup.placement import kind_of
from curricle.training.setup.settings import TrainingSettings
from curricle.values import value

if TYPE_CHECKING:
    from ray.util.queue import Queue


@final
@value
class RayCluster:
    """A Ray cluster and what a run takes of it."""

    num_cpus: float = 1.0
    """CPU cores that a run takes."""
    num_gpus: float = 0.0
    """GPUs that a run takes; with a part, as .25, several runs share one."""
    address: str | None = None
    """Address of the cluster; None takes that of RAY_ADDRESS or of a cluster started on this
    machine, and otherwise starts one."""
    max_retries: int = 3
    """Times that a run is started again after its worker was lost."""

    def __post_init__(self) -> None:
        """Check the resources.

        Raises:
            SpecError: If a run takes nothing, or a negative number.
        """
        for name in ("num_cpus", "num_gpus"):
            if getattr(self, name) < 0:
                raise SpecError(f"{name!r} must be at least 0; got {getattr(self, name)}")
        if not self.num_cpus and not self.num_gpus:
            raise SpecError(
                "'num_cpus' or 'num_gpus' must be above 0, or all runs start at once; got 0 and 0"
            )


def require_cluster(on: object) -> RayCluster:
    """Return the cluster of an argument `on`.

    Args:
        on: A cluster, or `'ray'` for tasks of a CPU core each.

    Raises:
        BindError: If it is something else.
    """
    if on == "ray":
        return RayCluster()
    if not isinstance(on, RayCluster):
        raise BindError(f"'on' must be 'ray', curricle.RayCluster(...) or None; got {on!r}")
    return on


def check_device(settings: TrainingSettings, cluster: RayCluster) -> None:
    """Check that the device is one of the tasks, and that `auto` means the same here and there.

    Args:
        settings: Settings with the device.
        cluster: The cluster, and the resources of a task.

    Raises:
        BindError: If not.
    """
    here, there = kind_of("auto"), "cuda" if cluster.num_gpus else "cpu"
    if settings.device == "auto" and here != there:
        raise BindError(
            f"'device' must be the same here and in the tasks of the cluster; 'auto' is {here!r} "
            f"here and {there!r} in tasks with num_gpus={cluster.num_gpus:g}; name the device or "
            f"change 'num_gpus', or start on a machine that has the tasks' device"
        )
    if settings.device == "cuda" and there == "cpu":
        raise BindError(
            "'device' must be 'cpu' in tasks without GPUs; got 'cuda' with num_gpus=0; set "
            "curricle.RayCluster(num_gpus=1)"
        )


@final
class RayWorkers:
    """Tasks on a Ray cluster."""

    def __init__(self, cluster: RayCluster) -> None:
        """Connect to the cluster.

        Args:
            cluster: The cluster, and the resources of a task.

        Raises:
            BindError: If Ray is not installed, or no node has the resources of a task.
        """
        ray = imported("ray", package="ray", extra="ray", use="runs on a Ray cluster")
        queues = imported("ray.util.queue", package="ray", extra="ray", use="records of runs")
        scheduling = imported(
            "ray.util.scheduling_strategies", package="ray", extra="ray", use="records of runs"
        )
        self._ray = ray
        self._has_connected = not ray.is_initialized()
        if self._has_connected:
            # `ray.init` sets a handler of its own, under which a run would not end at a step.
            with _sigterm_kept():
                ray.init(
                    address=cluster.address or os.environ.get("RAY_ADDRESS"),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="warning",
                )
        try:
            self.room = _room(cluster, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            """Number of jobs for which the nodes have room where nothing else runs."""
        except BindError:
            if self._has_connected:
                ray.shutdown()
            raise
        # On the node of this process: with another one the records would be lost, and the runs of
        # all nodes with them.
        here = scheduling.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._queue: Queue = queues.Queue(
            actor_options={"num_cpus": 0, "scheduling_strategy": here}
        )
        self._empty = queues.Empty
        self._task = ray.remote(
            num_cpus=cluster.num_cpus,
            num_gpus=cluster.num_gpus,
            max_retries=cluster.max_retries,
        )(_work)
        self._references: list[object] = []
        self.threads = max(1, int(cluster.num_cpus))
        """CPU threads of a job."""

    def submit(self, work: Work[Job, Message], job: Job) -> Future[None]:
        """Return the end of a job."""
        reference = self._task.remote(self._queue, str(Path.cwd()), work, job)
        self._references.append(reference)
        future: Future[None] = Future()
        reference.future().add_done_callback(lambda done: self._pass_on(done, future))
        return future

    def _pass_on(self, done: Future[None], future: Future[None]) -> None:
        """Set the end of a job: for an error of the job itself, that error."""
        error = done.exception()
        if isinstance(error, self._ray.exceptions.RayTaskError):
            error = error.cause
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def receive(self, seconds: float) -> tuple[str, object] | None:
        """Return the next message with its name; None if none comes in time."""
        try:
            message: tuple[str, object] = self._queue.get(timeout=seconds)
        except self._empty:
            return None
        return message

    def loss(self, error: Exception) -> str:
        """Return what a worker was lost by."""
        if not isinstance(error, self._ray.exceptions.RayError):
            return ""
        words = str(error).strip().partition("\n")[0]
        return f"every node must have memory for its runs; Ray has lost a worker too often: {words}"

    def close(self) -> None:
        """End all workers."""
        for reference in self._references:
            self._ray.cancel(reference, force=True)
        self._queue.shutdown(force=True)
        if self._has_connected:
            self._ray.shutdown()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block; only the main thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None stands for a handler that was not set by Python, which cannot be set again.
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _room(cluster: RayCluster, nodes: list[dict[str, float]]) -> int:
    """Return the number of tasks for which the nodes have room.

    Raises:
        BindError: If no node has the resources of a task, which would wait without end.
    """
    needed = {"CPU": cluster.num_cpus, "GPU": cluster.num_gpus}
    room = sum(
        min(int(node.get(kind, 0) / needed[kind]) for kind in needed if needed[kind])
        for node in nodes
    )
    if not room:
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in needed}
        raise BindError(
            f"a node of the Ray cluster must have the {cluster.num_cpus:g} CPUs and "
            f"{cluster.num_gpus:g} GPUs of a run; the largest have {most['CPU']:g} and "
            f"{most['GPU']:g}"
        )
    return room


def _work(queue: "Queue", folder: str, work: Work[Job, Message], job: Job) -> None:
    """Do a job in the driver's working folder, to which relative paths refer, and send messages."""
    os.chdir(folder)
    work(job, lambda name, message: queue.put((name, message)))
