"""Capture of the targets of a teacher, in this process or in shares of several.

`capture_targets` has the arguments of `distill` and stores all targets that it would compute, so
that students can train without the teacher. `capture_shares` hands the shares to workers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, final

from torch.utils.data import DataLoader

from curricle.curriculum.stages import Curriculum
from curricle.data.streams import Stream
from curricle.models.wrapping import tapped
from curricle.runs.pool import work_off
from curricle.runs.ray_cluster import RayCluster, RayWorkers, check_device, require_cluster
from curricle.runs.workers import Work, Workers
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.manifest import Manifest
from curricle.teachers.trajectory import Trajectory
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.distill import check_opening
from curricle.training.setup.arguments import AnyModel, as_stream, require_kind, require_model
from curricle.training.setup.interrupts import noted_interrupts
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import standard_state
from curricle.training.targets.capture import TargetCompression, Watch, capture
from curricle.training.targets.capture_shares import Share, capture_in_shares, capture_share

Progress = tuple[int, int]
"""Numbers of captured steps and of all steps."""
# No weight moves.
OPTIMIZER = SGD(learning_rate=1.0)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Capture:
    """Arguments of a capture; they can be sent to another process."""

    student: AnyModel
    teacher: AnyModel
    curriculum: Curriculum
    data: Stream | DataLoader[object]
    folder: Path
    compression: TargetCompression
    trajectory: Trajectory | None
    settings: TrainingSettings
    seed: int

    def run(self) -> BoundRun:
        """Return the run whose targets are captured, bound."""
        return bind(
            self.curriculum,
            # The student is bound as in a run, since its widths and taps determine the targets.
            student=tapped(self.student),
            teacher=LiveTeacher(tapped(self.teacher), self.trajectory),
            stream=as_stream(self.data, self.seed),
            optimizer=OPTIMIZER,
            settings=self.settings,
            seed=self.seed,
        )


@noted_interrupts(
    lambda arguments: (
        f"curricle.capture_targets(..., folder={str(arguments['folder'])!r}) captures the "
        f"targets that are still missing"
    )
)
@standard_state()
def capture_targets(  # noqa: PLR0913 - the arguments of `distill` that targets depend on
    student: AnyModel,
    teacher: AnyModel,
    curriculum: Curriculum,
    data: Stream | DataLoader[object],
    *,
    folder: str | Path,
    compression: TargetCompression = TargetCompression(),
    trajectory: Trajectory | None = None,
    settings: TrainingSettings = TrainingSettings(),
    seed: int = 0,
    watch: Watch | None = None,
    on: RayCluster | Literal["ray"] | None = None,
) -> Manifest:
    """Store the targets that a run would read, as far as the folder lacks them.

    Args:
        student: A model like those that will train; it gives the widths and is not trained.
        teacher: The finished teacher.
        curriculum: As in `distill`.
        data: As in `distill`; students may read it in other batches and another order.
        folder: Where targets are kept; `open_targets` opens it in place of the teacher.
        compression: In which form targets are kept.
        trajectory: The teacher's checkpoints, for curricula that follow them.
        settings: Device, precision and accumulation of the teacher's passes.
        seed: Seed of the projections, and of the order of a `DataLoader`.
        watch: Receives the numbers of captured steps and of all steps.
        on: Ray cluster whose tasks run the teacher, each on a share of the batches, as many at once
            as it has room for; `'ray'` takes a CPU core for each, None captures here. Models and
            data are sent to its nodes, and `folder` lies on storage that all of them share.

    Returns:
        The manifest of the folder.

    Raises:
        BindError: If models, curriculum and data do not fit, an argument is of another kind, or the
            cluster has no room for a task.
        CheckpointError: If the folder holds targets of another teacher, or in another form, or a
            task is lost too often.
        DataError: If a target is not finite.
    """
    require_model("teacher", teacher)
    check_opening(student, teacher, curriculum, OPTIMIZER, settings)
    require_kind("compression", compression, TargetCompression, "logits={'kind': 'bfloat16'}")
    arguments = _Capture(
        student=student,
        teacher=teacher,
        curriculum=curriculum,
        data=data,
        folder=Path(folder),
        compression=compression,
        trajectory=trajectory,
        settings=settings,
        seed=seed,
    )
    # The folder is opened in there, under its lock: it may hold targets, which are then completed.
    if on is None:
        return capture([arguments.run()], Path(folder), compression=compression, watch=watch)
    cluster = require_cluster(on)
    check_device(settings, cluster)

    def sent(threads: int) -> Work[Share, Progress]:
        changed = replace(settings, threads=threads)
        return partial(
            _capture_share, replace(arguments, folder=Path(folder).absolute(), settings=changed)
        )

    capture_all = partial(
        capture_shares,
        sent,
        new_workers=partial(RayWorkers, cluster),
        watch=watch,
        again="curricle.capture_targets",
    )
    return capture_in_shares([arguments.run()], Path(folder), capture_all, compression=compression)


def capture_shares(
    work_of: Callable[[int], Work[Share, Progress]],
    num_steps: int,
    *,
    new_workers: Callable[[], Workers],
    watch: Watch | None,
    again: str,
) -> None:
    """Have every share of a capture made by workers.

    Args:
        work_of: Returns the capture of a share, from the CPU threads of a worker.
        num_steps: Largest number of shares.
        new_workers: Returns the workers; each makes a share.
        watch: Receives the progress: the mean of the shares, which all pass through all steps.
        again: Command that goes on after a failure, for error sentences.

    Raises:
        CheckpointError: If a worker is lost, for example because memory has run out.
    """
    # Only now: what is refused before leaves no workers behind.
    workers = new_workers()
    work, count = work_of(workers.threads), min(workers.room, num_steps)
    shares = [Share(number=number, count=count) for number in range(count)]
    steps_by_share = dict.fromkeys(map(str, shares), 0)

    def collect(share: str, progress: Progress) -> None:
        steps_by_share[share], total = progress
        if watch is not None:
            watch(sum(steps_by_share.values()) // len(shares), total)

    work_off(shares, work, workers=workers, watch=collect, again=again)


def _capture_share(
    arguments: _Capture, share: Share, watch: Callable[[str, Progress], None]
) -> None:
    capture_share(
        [arguments.run()],
        arguments.folder,
        share,
        compression=arguments.compression,
        watch=lambda *progress: watch(str(share), progress),
    )
