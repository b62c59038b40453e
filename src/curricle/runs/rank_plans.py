"""Plan of a run in several processes: memory and communication of each, without any of them.

`plan_ranks` is the counterpart of `curricle plan --world-size`. Models run without data, so they
may be of any size, no weights are read, and no GPU is needed (`training.binding.stage_sizes`).

Units: bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from torch.utils.data import DataLoader

from curricle.curriculum.checkpoint_selection import PlannedCheckpoints
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import build
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import BindError, SpecError
from curricle.memory import unallocated
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.reports.formatting import short
from curricle.reports.tables import Grid, to_markdown
from curricle.runs.assemble import build_model, data_seed, open_task
from curricle.runs.budget import PROVISIONAL
from curricle.runs.spec import RunSpec, require_field
from curricle.runs.train import StudentRun, student_model
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.stage_sizes import SizeProbe
from curricle.training.setup.arguments import AnyModel, as_stream, named_arguments
from curricle.training.setup.optimizers import AdamW, Optimizer
from curricle.training.setup.placement import indivisible
from curricle.training.setup.rank_costs import Passes, RankCosts, StageSizes, rank_costs
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import standard_state

COLUMNS = (
    "parameters",
    "gradients",
    "optimizer",
    "gathered",
    "teacher",
    "activations",
    "logits",
    "memory",
    "sent",
)
"""Numbers of a row: attributes of `RankCosts`."""

LEGEND = (
    (
        "parallel: 'none' is one process that computes on the whole batch, the others are one of "
        "several; 'shared teacher' has the teacher in shares as well (teacher_parallel='fsdp2')"
    ),
    (
        "memory: not counted are projections, adapters, the start (with 'fsdp2' each process holds "
        "the student whole before the first step and after the last), and temporary memory inside "
        "of blocks"
    ),
)
"""Meaning of the rows and the limits of the numbers, one sentence each."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageRanks:
    """One process in a stage, by the division of the work."""

    name: str
    """Name of the stage."""
    batch: Passes
    """Passes of one process that computes on the whole micro-batch."""
    share: Passes
    """Passes of one of the processes that divide it."""
    rows: tuple[RankCosts, ...]
    """One process alone, `ddp`, `fsdp2`, and `fsdp2` with a teacher that is shared as well
    (`teacher_parallel`)."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """Memory and communication of one process in each stage; its text is a table with notes."""

    name: str
    """Name of the curriculum."""
    world_size: int
    """Number of processes."""
    stages: tuple[StageRanks, ...]
    """The stages, in order."""
    notes: tuple[str, ...] = LEGEND
    """Facts about the data, where a spec names them, and the legend."""

    def grid(self) -> Grid:
        """Return one row a stage and division of the work."""
        rows = tuple(
            (
                stage.name,
                _division(costs),
                *(short(getattr(costs, column), "B") for column in COLUMNS),
            )
            for stage in self.stages
            for costs in stage.rows
        )
        return Grid(
            title=f"{self.name}: one of {self.world_size:,} processes",
            columns=("stage", "parallel", *COLUMNS[:-2], "in all", "sent a step"),
            rows=rows,
            numeric=(False, False, *(True for _ in COLUMNS)),
        )

    def __str__(self) -> str:
        """Return the table and the notes."""
        return "\n".join([to_markdown(self.grid()).replace("&lt;", "<"), *self.notes])


def _division(costs: RankCosts) -> str:
    replicas = f", {costs.replicas} replicas" if costs.replicas > 1 else ""
    return f"{costs.parallel}{replicas}{', shared teacher' if costs.is_teacher_shared else ''}"


# Nothing is trained, so each process of a launcher may plan.
@named_arguments
@standard_state(is_training=False)
def plan_ranks(  # noqa: PLR0913 - the arguments of `plan` on which sizes depend
    student: AnyModel,
    teacher: AnyModel | StoredTeacher | None,
    curriculum: Curriculum,
    data: Stream | DataLoader[object],
    *,
    world_size: int,
    optimizer: Optimizer = AdamW(learning_rate=1e-3),
    settings: TrainingSettings = TrainingSettings(),
    seed: int = 0,
) -> RankPlan:
    """Return memory and communication of one of several processes, without starting any.

    Not counted are projections, adapters, the start (with `fsdp2` each process holds the student
    whole before the first step and after the last), and temporary memory inside of blocks.

    Args:
        student: The model that would learn; may be on torch's meta device.
        teacher: The finished teacher, which may be there as well; its stored targets; or None.
        curriculum: Result of a strategy such as `extraction`.
        data: Training batches as in `distill`, of which the first is read.
        world_size: Number of processes.
        optimizer: How the weights would move.
        settings: Precision, micro-batches, replicas of `fsdp2`.
        seed: Seed of the data.

    Returns:
        For each stage, one process alone and three ways to divide the work.

    Raises:
        SpecError: If the number of processes is not positive, does not divide the examples, or is
            no multiple of the replicas.
        BindError: If a model cannot run or has no such tap.
    """
    micro_batch = as_stream(data, seed).batch(0).split(settings.gradient_accumulation_steps)[0]
    probe = SizeProbe(
        tapped(student),
        _tapped_teacher(teacher),
        optimizer=optimizer,
        settings=settings,
        is_stored=isinstance(teacher, StoredTeacher),
    )
    batches = micro_batch, _share(micro_batch, world_size, settings.replicas)
    return _planned(probe, curriculum, batches, world_size=world_size, replicas=settings.replicas)


def _tapped_teacher(teacher: AnyModel | StoredTeacher | None) -> TappedModel | None:
    if isinstance(teacher, StoredTeacher):
        return teacher.model
    return None if teacher is None else tapped(teacher)


def planned_ranks(spec: RunSpec, student: StudentRun, world_size: int) -> RankPlan:
    """Return the plan of a run of a spec in several processes.

    Args:
        spec: Spec of the run.
        student: Which student.
        world_size: Number of processes.
    """
    data = open_task(spec, data_seed(spec, student.seed), "student")
    with unallocated():
        learner = build_model(student_model(spec), data, student.seed, "student")
        teacher = build_model(spec.teacher.model, data.for_teacher, spec.seed, "teacher")
    micro_batch = data.stream.batch(0).split(spec.engine.gradient_accumulation_steps)[0]
    limit = require_field(spec.budget, "budget", "distill")
    curriculum = build(
        student.curriculum,
        # Costs of a step do not depend on a length that is not known yet.
        total=limit.duration() if limit.is_length else PROVISIONAL,
        trajectory=PlannedCheckpoints(spec.trajectory_steps()),
    )
    probe = SizeProbe(
        learner,
        teacher,
        optimizer=student.optimizer,
        settings=spec.engine,
        is_stored=spec.targets is not None,
    )
    batches = micro_batch, _share(micro_batch, world_size, spec.engine.replicas)
    plan = _planned(
        probe, curriculum, batches, world_size=world_size, replicas=spec.engine.replicas
    )
    further = "plan: without '--world-size' it has stages, costs and the notes of a bound run"
    return replace(plan, notes=(data.facts, *plan.notes, further))


def _planned(
    probe: SizeProbe,
    curriculum: Curriculum,
    batches: tuple[Batch, Batch],
    *,
    world_size: int,
    replicas: int,
) -> RankPlan:
    """Return the plan of a curriculum from a micro-batch and the share of one process.

    Raises:
        BindError: If a stage does not fit; it is named.
    """
    stages = []
    for stage in curriculum.stages:
        try:
            sizes, passes = probe.measure(stage, batches)
        except BindError as error:
            if not stage.required:
                continue
            raise BindError(f"stage {stage.name!r}: {error}") from None
        stages.append(_ranks(stage.name, sizes, passes, world_size=world_size, replicas=replicas))
    return RankPlan(name=curriculum.name, world_size=world_size, stages=tuple(stages))


def _share(micro_batch: Batch, world_size: int, replicas: int) -> Batch:
    """Return the examples of one process.

    Raises:
        SpecError: If the processes cannot divide the examples, or the replicas not the processes.
    """
    if world_size % replicas:
        raise SpecError(
            f"'world_size' must be a multiple of the {replicas} groups of 'replicas', which each "
            f"hold the student once; got {world_size}; set 'replicas' to 1"
        )
    if world_size < 1:
        raise SpecError(f"'world_size' must be a positive number of processes; got {world_size}")
    if micro_batch.num_examples // micro_batch.group % world_size:
        raise SpecError(indivisible(micro_batch, world_size))
    return micro_batch.split(world_size)[0]


def _ranks(
    name: str, sizes: StageSizes, passes: Sequence[Passes], *, world_size: int, replicas: int
) -> StageRanks:
    batch_passes, rank_passes = passes
    alone = rank_costs(sizes, batch_passes, parallel="none", num_processes=1)
    copies = rank_costs(sizes, rank_passes, parallel="ddp", num_processes=world_size)
    shares = (
        rank_costs(
            sizes,
            rank_passes,
            parallel="fsdp2",
            num_processes=world_size,
            replicas=replicas,
            is_teacher_shared=is_teacher_shared,
        )
        for is_teacher_shared in ((False, True) if sizes.teacher else (False,))
    )
    rows = alone, copies, *shares
    return StageRanks(name=name, batch=batch_passes, share=rank_passes, rows=rows)
