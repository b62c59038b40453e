"""Students that are taught together end exactly as each would alone, and cost one teacher."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.curriculum.durations import Duration, UntilPlateau
from curricle.curriculum.initialization import RandomStart
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, from_labels, one_shot, progressive
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError, DivergenceError
from curricle.models.tapped import TappedModel
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.projections import Learned
from curricle.records import RECORDS, Record, RunRecord, StageEndRecord, read_records
from curricle.teachers.live import LiveTeacher
from curricle.teachers.trajectory import Trajectory, TrajectoryWriter, open_trajectory
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD, AdamW
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from curricle.values import plain
from tests.parts import bound, mlp, parity

TOTAL = Duration(number=18)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """Return checkpoints 10 and 20 of a teacher, with weights of seeds 10 and 20."""
    folder = tmp_path_factory.mktemp("trajectory")
    writer = TrajectoryWriter(folder, [10, 20])
    for step in (10, 20):
        writer.save(mlp(16, 12, seed=step).module, step)
    return open_trajectory(folder)


def deep() -> Curriculum:
    """Return a stage that reads the teacher's second layer but not its logits."""
    pair = LayerPair(student=1, teacher=2)
    stage = Stage(
        name="deep", duration=TOTAL, objectives=(MatchHidden(pair=pair),), trainable="all"
    )
    return Curriculum(name="deep", stages=(stage,))


CLASS: dict[str, Callable[..., dict[str, Any]]] = {
    "one shot": lambda: {"curriculum": one_shot(total=TOTAL)},
    "another seed": lambda: {
        "curriculum": one_shot(total=TOTAL),
        "student": mlp(5, 4, seed=3),
        "seed": 3,
    },
    "wider": lambda: {"curriculum": extraction(total=TOTAL, pairs=2), "student": mlp(9, 7, seed=4)},
    "momentum": lambda: {
        "curriculum": extraction(total=TOTAL, trainable="new"),
        "optimizer": AdamW(learning_rate=0.01),
    },
    "progressive": lambda: {"curriculum": progressive(total=TOTAL, trajectory=(10, 20))},
    "shorter": lambda: {"curriculum": one_shot(total=Duration(number=7), teacher=20)},
    "deep": lambda: {"curriculum": deep()},
    "warm start": lambda: {"curriculum": one_shot(total=TOTAL, init=RandomStart())},
    "learned": lambda: {
        "curriculum": extraction(total=TOTAL, projection=Learned()),
        "seed": 5,
    },
    "labels": lambda: {"curriculum": from_labels(total=TOTAL)},
}


def runs(
    trajectory: Trajectory, names: Sequence[str] = tuple(CLASS), **settings: Any
) -> list[BoundRun]:
    """Return the students of a class, bound to one teacher and to a stream each."""
    teacher = LiveTeacher(mlp(16, 12, seed=1), trajectory)
    every = {"log_every": 1, "eval_every": 5} | settings
    parts = [CLASS[name]() for name in names]
    return [
        bound(
            one.pop("curriculum"),
            settings=every,
            **{"teacher": teacher, "stream": parity(), "student": mlp(5, 4)} | one,
        )
        for one in parts
    ]


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(3, 6)).square().mean())}


def seats(
    chosen: Sequence[BoundRun], folder: Path | None = None, *observers: Any
) -> list[SharedRun]:
    return [
        SharedRun(
            run=run,
            evaluate=evaluate,
            outputs=Outputs(
                folder=None if folder is None else folder / str(number), observers=observers
            ),
        )
        for number, run in enumerate(chosen)
    ]


def together(chosen: Sequence[BoundRun], folder: Path | None = None, **options: Any) -> Any:
    return execute_shared(seats(chosen, folder), metric="accuracy", **options)


def alone(chosen: Sequence[BoundRun], folder: Path) -> None:
    for seat in seats(chosen, folder):
        execute(seat.run, evaluate, metric="accuracy", outputs=seat.outputs)


def state(run: BoundRun) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in run.student.module.state_dict().items()}


def told(folder: Path, number: int) -> list[dict[str, Any]]:
    """Return the records of a student without seconds."""
    content: list[dict[str, Any]] = [
        plain(one) for one in read_records(folder / f"{number}" / RECORDS)
    ]
    for one in content:
        one.get("usage", {}).pop("seconds", None)
    return content


def assert_equal(ones: Sequence[BoundRun], others: Sequence[BoundRun]) -> None:
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(state(one), state(other), rtol=0, atol=0)


# Those that read the teacher in different ways.
READERS = ("another seed", "momentum", "progressive", "deep", "learned")


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (tuple(CLASS), {}),
        (READERS, {"gradient_accumulation_steps": 2}),
        (READERS, {"precision": "bfloat16"}),
        (READERS, {"teacher_precision": "bfloat16"}),
    ],
)
def test_every_student_ends_bit_equal_to_one_that_was_taught_alone(
    tmp_path: Path, trajectory: Trajectory, names: tuple[str, ...], settings: dict[str, Any]
) -> None:
    apart, joined = runs(trajectory, names, **settings), runs(trajectory, names, **settings)
    alone(apart, tmp_path / "alone")
    together(joined, tmp_path / "together")
    assert_equal(joined, apart)
    for number in range(len(names)):
        assert told(tmp_path / "together", number) == told(tmp_path / "alone", number)


def test_the_ends_come_in_the_order_of_the_seats(trajectory: Trajectory) -> None:
    ends = together(runs(trajectory, ["one shot", "shorter", "labels"]))
    assert [end.usage.steps for end in ends] == [18, 7, 18]
    assert together([]) == []


def counted(run: BoundRun) -> list[int]:
    """Return a list that grows by one at each of the teacher's passes through its first layer."""
    assert run.teacher is not None
    passes: list[int] = []
    run.teacher.model.module.get_submodule("blocks.0").register_forward_hook(
        lambda *_: passes.append(1)
    )
    return passes


@pytest.mark.parametrize("parts", [1, 2])
def test_the_teacher_runs_once_a_batch_for_all(trajectory: Trajectory, parts: int) -> None:
    chosen = runs(
        trajectory, ["one shot", "another seed", "one shot"], gradient_accumulation_steps=parts
    )
    passes = counted(chosen[0])
    together(chosen)
    assert len(passes) == 18 * parts


def test_the_teacher_runs_once_more_at_most_where_a_stage_begins(trajectory: Trajectory) -> None:
    chosen = runs(trajectory, ["one shot", "wider", "momentum", "deep"])
    passes = counted(chosen[0])
    together(chosen)
    stages = sum(len(run.stages) for run in chosen)
    assert 18 <= len(passes) < 18 + stages


def test_the_teacher_runs_as_deep_as_the_deepest_student_reads(trajectory: Trajectory) -> None:
    # Both read the first layer for 4 steps; then one of them ends and one goes on to the logits.
    short = extraction(total=Duration(number=12), durations=("4 steps",))
    teacher = LiveTeacher(mlp(16, 12, seed=1))
    chosen = [bound(short, teacher=teacher, student=mlp(5, 4, seed=n)) for n in range(2)]
    deepest: list[int] = []
    teacher.model.module.get_submodule("blocks.1").register_forward_hook(
        lambda *_: deepest.append(1)
    )
    together(chosen)
    assert len(deepest) == 12 - 4


def test_the_finished_teacher_is_given_back_as_it_came(trajectory: Trajectory) -> None:
    chosen = runs(trajectory, ["progressive", "one shot"])
    assert chosen[0].teacher is not None
    module = chosen[0].teacher.model.module
    before = {name: one.clone() for name, one in module.state_dict().items()}
    module.train()
    together(chosen)
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert module.training
    assert not any(one._forward_hooks for one in module.modules())


# The first two differ in their seeds alone; the others keep what only they have in a checkpoint.
RESUMED = ("one shot", "another seed", "momentum", "progressive", "shorter", "learned")


@pytest.fixture(scope="module")
def undisturbed(trajectory: Trajectory) -> list[BoundRun]:
    """Return the students of a class after a run to the end."""
    chosen = runs(trajectory, RESUMED, save_every=4)
    together(chosen)
    return chosen


class CutError(Exception):
    """Ends a classroom from outside."""


def cut_at(step: int) -> Callable[[Record], None]:
    def observe(record: Record) -> None:
        if not isinstance(record, RunRecord) and record.usage.steps == step:
            raise CutError

    return observe


@pytest.mark.parametrize("step", [3, 9, 14])
def test_an_interrupted_class_ends_as_an_uninterrupted_one(
    tmp_path: Path, trajectory: Trajectory, undisturbed: list[BoundRun], step: int
) -> None:
    cut, again = (runs(trajectory, RESUMED, save_every=4) for _ in range(2))
    with pytest.raises(CutError):
        execute_shared(seats(cut, tmp_path / "cut", cut_at(step)), metric="accuracy")
    together(again, tmp_path / "cut", resume=True)
    assert_equal(again, undisturbed)


def test_students_at_different_steps_are_brought_together(
    tmp_path: Path, trajectory: Trajectory, undisturbed: list[BoundRun]
) -> None:
    ahead, again = (runs(trajectory, RESUMED[:2], save_every=4) for _ in range(2))
    with contextlib.suppress(CutError):
        outputs = Outputs(folder=tmp_path / "cut" / "0", observers=(cut_at(13),))
        execute(ahead[0], evaluate, metric="accuracy", outputs=outputs)
    passes = counted(again[0])
    together(again, tmp_path / "cut", resume=True)
    assert_equal(again, undisturbed[:2])
    # The first went on from step 12, and read its first batch before it was known to be ahead.
    assert len(passes) == 18 + 1


def test_a_class_can_be_gone_on_with_one_by_one(
    tmp_path: Path, trajectory: Trajectory, undisturbed: list[BoundRun]
) -> None:
    cut, again = (runs(trajectory, RESUMED, save_every=4) for _ in range(2))
    with pytest.raises(CutError):
        execute_shared(seats(cut, tmp_path / "cut", cut_at(9)), metric="accuracy")
    for seat in seats(again, tmp_path / "cut"):
        execute(seat.run, evaluate, metric="accuracy", outputs=seat.outputs, resume=True)
    assert_equal(again, undisturbed)


def test_a_student_may_end_at_its_target_and_the_others_go_on(trajectory: Trajectory) -> None:
    chosen = runs(trajectory, ["one shot", "wider"])
    limit = iter([True])
    ends = together(chosen, until=lambda _: next(limit, False))
    assert sorted(end.usage.steps for end in ends) == [5, 18]


def test_seconds_of_others_do_not_count(trajectory: Trajectory) -> None:
    started = time.perf_counter()
    ends = together(runs(trajectory, ["one shot", "another seed", "wider"]))
    passed = time.perf_counter() - started
    assert all(end.usage.seconds > 0 for end in ends)
    assert sum(end.usage.seconds for end in ends) < passed


def test_a_student_that_diverges_ends_the_class_and_nothing_stays_open(
    trajectory: Trajectory,
) -> None:
    chosen = runs(trajectory, ["one shot", "another seed"])
    broken = replace(chosen[1], optimizer=SGD(learning_rate=1e30))
    with pytest.raises(DivergenceError, match="with seed 3"):
        together([chosen[0], broken])
    assert chosen[0].teacher is not None
    modules = [*chosen[0].student.module.modules(), *chosen[0].teacher.model.module.modules()]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in modules)
    assert all(one.requires_grad for one in chosen[0].student.module.parameters())


# --- what does not fit ----------------------------------------------------------------------------


def test_a_class_has_one_teacher(trajectory: Trajectory) -> None:
    with pytest.raises(BindError, match="must have one 'teacher'; got several"):
        together([*runs(trajectory, ["one shot"]), *runs(trajectory, ["one shot"])])


def test_a_class_reads_one_stream() -> None:
    with pytest.raises(BindError, match="must read the same 'stream'; 'from_labels' with seed 0"):
        together(
            [bound(from_labels(total=TOTAL), teacher=None, stream=parity(n)) for n in range(2)]
        )


def test_a_class_runs_under_the_same_settings() -> None:
    parts = [
        bound(
            from_labels(total=TOTAL), teacher=None, settings={"gradient_accumulation_steps": number}
        )
        for number in (1, 2)
    ]
    with pytest.raises(
        BindError, match="must have the same 'gradient_accumulation_steps'; got 1 and 2"
    ):
        together(parts)


def test_each_student_is_a_module_of_its_own() -> None:
    run = bound(from_labels(total=TOTAL))
    with pytest.raises(BindError, match="each 'student' of a shared teacher must be a module"):
        together([run, run])


def test_a_missing_checkpoint_shows_before_any_student_moves(trajectory: Trajectory) -> None:
    chosen = runs(trajectory, ["one shot"])
    late = bound(
        progressive(total=TOTAL, trajectory=(10, 15)),
        teacher=chosen[0].teacher,
        student=mlp(5, 4, seed=8),
    )
    before = state(chosen[0])
    with pytest.raises((BindError, CheckpointError), match=r"must be one of \[10, 20\]; got 15"):
        together([chosen[0], late])
    torch.testing.assert_close(state(chosen[0]), before, rtol=0, atol=0)


def test_the_batch_of_a_step_is_read_once() -> None:
    read: list[int] = []

    class Watched:
        fingerprint = "watched"
        batch_size = tokens_per_batch = 8

        def batch(self, step: int) -> Batch:
            read.append(step)
            return parity().batch(step)

    chosen = [
        bound(
            from_labels(total=TOTAL), teacher=None, stream=Watched(), student=mlp(5, 4, seed=seed)
        )
        for seed in range(3)
    ]
    read.clear()
    together(chosen)
    assert read == list(range(18))


def test_students_of_a_classroom_that_share_a_layer_are_refused() -> None:
    first, second = mlp(5, 4), mlp(5, 4, seed=1)
    shared = first.module.get_parameter("head.weight")
    second.module.get_submodule("head").register_parameter("weight", nn.Parameter(shared))
    seats = [
        SharedRun(
            run=bound(one_shot(total="1 steps"), student=one, seed=number),
            evaluate=lambda _: {"accuracy": 1.0},
            outputs=Outputs(),
        )
        for number, one in enumerate((first, second))
    ]
    seats[1] = replace(seats[1], run=replace(seats[1].run, teacher=seats[0].run.teacher))
    sentence = "'student with seed 0' and 'student with seed 1' must not share memory"
    with pytest.raises(BindError, match=sentence):
        execute_shared(seats, metric="accuracy")


def until_plateau() -> Curriculum:
    """Return a layer stage that ends early, and the logits."""
    rule = UntilPlateau(at_most="12 steps", window=2, patience=1, min_improvement=0.05)
    return extraction(total=TOTAL, durations=(rule,))


def ends(folder: Path, number: int) -> list[tuple[str, int]]:
    records = read_records(folder / f"{number}" / RECORDS)
    return [(one.why, one.done) for one in records if isinstance(one, StageEndRecord)]


def ruled_runs(seeds: Sequence[int]) -> list[BoundRun]:
    teacher = LiveTeacher(mlp(16, 12, seed=1))
    return [
        bound(
            until_plateau(),
            settings={"log_every": 1, "eval_every": 5},
            teacher=teacher,
            student=mlp(5, 4, seed=seed),
            seed=seed,
        )
        for seed in seeds
    ]


def test_students_of_a_class_end_their_stages_at_their_own_times(tmp_path: Path) -> None:
    shared, single = ruled_runs(range(4)), ruled_runs(range(4))
    together(shared, tmp_path / "together")
    alone(single, tmp_path / "alone")
    assert_equal(shared, single)
    done = [ends(tmp_path / "together", number) for number in range(4)]
    assert done == [ends(tmp_path / "alone", number) for number in range(4)]
    # They do not move in step.
    assert len({str(end) for end in done}) > 1


def test_batched_students_end_their_stages_at_their_own_times(tmp_path: Path) -> None:
    together(ruled_runs(range(4)), tmp_path / "together", batch_students=True)
    alone(ruled_runs(range(4)), tmp_path / "alone")
    for number in range(4):
        assert ends(tmp_path / "together", number) == ends(tmp_path / "alone", number)
