"""A run leaves exact records, goes on exactly where it stopped, and never overwrites another."""

import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tests.parts
from curricle import seeding
from curricle.checksums import CHECK, SEAL, LineChain, seal_folder, sealed_names
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, from_labels, one_shot, progressive
from curricle.data.batch import Batch
from curricle.data.synthetic.parity import ParityStream
from curricle.errors import BindError, CheckpointError, DivergenceError
from curricle.models.tapped import TappedModel
from curricle.models.weights import load_weights
from curricle.models.wrapping import tapped
from curricle.objectives.divergences import ReverseKL
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Learned
from curricle.objectives.temperature import LearnedTemperature
from curricle.records import (
    RECORDS,
    EndRecord,
    EvaluationRecord,
    Record,
    RecordWriter,
    RunRecord,
    StageRecord,
    StepRecord,
    Usage,
    read_records,
)
from curricle.teachers.live import LiveTeacher
from curricle.teachers.trajectory import Trajectory, TrajectoryWriter, open_trajectory
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.facts import run_facts
from curricle.training.distill import execute
from curricle.training.loop.checkpoints import (
    ADAPTERS,
    CHECKPOINTS,
    OPTIMIZER,
    STUDENT,
    latest_checkpoint,
    read_state,
)
from curricle.training.loop.resuming import FINISHED
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stage_loss import CALIBRATION_BATCHES
from curricle.training.setup.optimizers import SGD, AdamW, Optimizer
from curricle.training.setup.placement import SingleDevice
from curricle.values import fingerprint, plain
from tests.parts import INPUTS, Listed, mlp, parity
from tests.runs import contents

STEPS = 20
TOTAL = Duration(number=STEPS)


class Noisy(nn.Module):
    """Has all that makes resuming hard: dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(before, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2))
            for before in (INPUTS, 5)
        )
        self.head = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs
        for block in self.blocks:
            state = block(state)
        logits: Tensor = self.head(state)
        return logits


def noisy(seed: int = 0) -> TappedModel:
    with seeding.scoped(seed, "student"):
        return tapped(Noisy(), blocks=["blocks.0", "blocks.1"], head="head")


def bound(
    curriculum: Curriculum, *, settings: Mapping[str, Any] | None = None, **parts: Any
) -> BoundRun:
    """Return a run with momentum that records every step."""
    every = {"log_every": 1, "eval_every": 7}
    optimizer = {"optimizer": SGD(learning_rate=0.1, momentum=0.9)}
    return tests.parts.bound(curriculum, settings=every | dict(settings or {}), **optimizer | parts)


def evaluate(model: TappedModel) -> dict[str, float]:
    """Return the mean squared output, which tells any two students apart."""
    assert not model.module.training
    return {"accuracy": float(model.module(torch.ones(3, INPUTS)).square().mean())}


def executed(
    run: BoundRun,
    folder: Path | None = None,
    *observers: Callable[[Record], None],
    resume: bool = False,
    trajectory: TrajectoryWriter | None = None,
) -> EndRecord:
    outputs = Outputs(folder=folder, observers=observers, trajectory=trajectory, task="parity")
    return execute(run, evaluate, metric="accuracy", outputs=outputs, resume=resume)


def state(run: BoundRun) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in run.student.module.state_dict().items()}


def timeless(record: Record) -> dict[str, Any]:
    """Return a record without the seconds, the only thing that differs between equal runs."""
    content: dict[str, Any] = plain(record)
    content.get("usage", {}).pop("seconds", None)
    return content


def written(folder: Path) -> list[dict[str, Any]]:
    return [timeless(record) for record in read_records(folder / RECORDS)]


class CutError(Exception):
    """Ends a run from outside."""


def without_check(line: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in line.items() if name != CHECK}


def interrupt_at(step: int) -> Callable[[Record], None]:
    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == step:
            raise CutError

    return observe


# --- resuming -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """Return three checkpoints of different weights."""
    folder = tmp_path_factory.mktemp("trajectory")
    writer = TrajectoryWriter(folder, [100, 200, 300])
    for step in (100, 200, 300):
        writer.save(mlp(16, 12, seed=step).module, step)
    return open_trajectory(folder)


CURRICULA = {
    # Borders at 3 and 5 of 20 steps.
    "extraction": extraction(total=TOTAL, pairs=2, layer_fraction=0.25),
    # Borders at 4 and 8.
    "frozen extraction": extraction(
        total=TOTAL, pairs=2, layer_fraction=0.4, trainable="new", center=True
    ),
    # Borders at 7 and 13.
    "progressive": progressive(total=TOTAL, trajectory=(100, 200, 300)),
    # Borders at 4 and 8; each stage trains something beside the student.
    "learned": extraction(
        total=TOTAL,
        pairs=2,
        layer_fraction=0.4,
        projection=Learned(),
        center=True,
        final_objective=LearnedTemperature(variant="instance", ramp=0.5),
    ),
}
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": AdamW(learning_rate=0.05, weight_decay=0.1),
}


def resetting(curriculum: Curriculum) -> Curriculum:
    stages = [dataclasses.replace(stage, optimizer_state="reset") for stage in curriculum.stages]
    return Curriculum(name=curriculum.name, stages=tuple(stages))


def hard_run(
    curriculum: Curriculum, optimizer: Optimizer, trajectory: Trajectory, every: int | None
) -> BoundRun:
    return bound(
        curriculum,
        student=noisy(),
        teacher=LiveTeacher(mlp(16, 12, seed=1), trajectory),
        optimizer=optimizer,
        settings={"save_every": every, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0},
    )


# Every pair of a curriculum, an optimizer and a way to treat its state occurs. A pair of
# `stops` holds the interval between checkpoints and the step of the interruption, right after a
# checkpoint or later. Of each curriculum one run has them at its borders, one inside its stages.
@pytest.mark.parametrize(
    ("name", "optimizer", "reset", "stops"),
    [
        ("extraction", "sgd", False, [(3, 4), (5, 7)]),
        ("extraction", "adamw", True, [(4, 7), (13, 18)]),
        ("frozen extraction", "sgd", True, [(4, 5), (8, 10)]),
        ("frozen extraction", "adamw", False, [(3, 4), (5, 7)]),
        ("progressive", "sgd", True, [(7, 9), (13, 14)]),
        ("progressive", "adamw", False, [(5, 6), (10, 12)]),
        ("learned", "sgd", True, [(4, 7), (8, 9)]),
        ("learned", "adamw", False, [(3, 4), (5, 7), (13, 18)]),
    ],
)
def test_a_run_interrupted_anywhere_ends_bit_equal(
    tmp_path: Path,
    trajectory: Trajectory,
    name: str,
    optimizer: str,
    reset: bool,
    stops: list[tuple[int, int]],
) -> None:
    curriculum = CURRICULA[name]
    chosen = resetting(curriculum) if reset else curriculum

    def run(every: int | None) -> BoundRun:
        return hard_run(chosen, OPTIMIZERS[optimizer], trajectory, every)

    whole = run(None)
    executed(whole, tmp_path / "whole")
    for every, step in stops:
        folder = tmp_path / f"{every}-{step}"
        with pytest.raises(CutError):
            executed(run(every), folder, interrupt_at(step))
        again = run(every)
        executed(again, folder, resume=True)
        torch.testing.assert_close(state(again), state(whole), rtol=0, atol=0)
        assert written(folder) == written(tmp_path / "whole")


@pytest.mark.parametrize("reset", [False, True])
def test_what_objectives_train_never_becomes_part_of_the_student(
    tmp_path: Path, trajectory: Trajectory, reset: bool
) -> None:
    curriculum = resetting(CURRICULA["learned"]) if reset else CURRICULA["learned"]
    run = hard_run(curriculum, OPTIMIZERS["adamw"], trajectory, 6)
    names = set(run.student.module.state_dict())
    executed(run, tmp_path)
    assert set(load_file(tmp_path / FINISHED)) == set(run.student.module.state_dict()) == names
    last = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert last is not None
    assert set(load_file(last / STUDENT)) == names
    assert load_file(last / ADAPTERS)["0.steps"].item() == 18 - 8


def test_a_checkpoint_at_a_border_does_not_disturb_the_next_stage(
    tmp_path: Path, trajectory: Trajectory
) -> None:
    curriculum, optimizer = CURRICULA["learned"], OPTIMIZERS["adamw"]
    whole = hard_run(curriculum, optimizer, trajectory, None)
    executed(whole)
    with pytest.raises(CutError):
        executed(hard_run(curriculum, optimizer, trajectory, 4), tmp_path, interrupt_at(5))
    again = hard_run(curriculum, optimizer, trajectory, 4)
    executed(again, tmp_path, resume=True)
    torch.testing.assert_close(state(again), state(whole), rtol=0, atol=0)


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path, trajectory: Trajectory) -> None:
    curriculum, optimizer = CURRICULA["extraction"], OPTIMIZERS["adamw"]
    whole = hard_run(curriculum, optimizer, trajectory, None)
    executed(whole, tmp_path / "whole")
    for step in (1, 3, 9, 9, 20):
        run = hard_run(curriculum, optimizer, trajectory, 2)
        with pytest.raises(CutError):
            executed(run, tmp_path / "cut", interrupt_at(step), resume=True)
    again = hard_run(curriculum, optimizer, trajectory, 2)
    executed(again, tmp_path / "cut", resume=True)
    torch.testing.assert_close(state(again), state(whole), rtol=0, atol=0)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_the_weights_one_starts_with_do_not_matter_when_resuming(tmp_path: Path) -> None:
    def run(seed: int) -> BoundRun:
        return bound(CURRICULA["extraction"], student=noisy(seed), settings={"save_every": 5})

    whole = run(0)
    executed(whole)
    with pytest.raises(CutError):
        executed(run(0), tmp_path, interrupt_at(12))
    other = run(99)
    executed(other, tmp_path, resume=True)
    torch.testing.assert_close(state(other), state(whole), rtol=0, atol=0)


def test_time_and_consumption_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    def run() -> BoundRun:
        return bound(CURRICULA["extraction"], settings={"save_every": 5})

    with pytest.raises(CutError):
        executed(run(), tmp_path, interrupt_at(12))
    path = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert path is not None
    file = path / "state.json"
    content = json.loads(file.read_text())
    content["usage"]["seconds"] = 1000.0
    file.write_text(json.dumps(content))
    seal_folder(path, sealed_names(path))
    assert 1000 < executed(run(), tmp_path, resume=True).usage.seconds < 1100


def test_observers_of_a_resumed_run_are_told_what_runs(tmp_path: Path) -> None:
    def run() -> BoundRun:
        return bound(CURRICULA["extraction"], settings={"save_every": 5})

    with pytest.raises(CutError):
        executed(run(), tmp_path, interrupt_at(12))
    seen: list[Record] = []
    executed(run(), tmp_path, seen.append, resume=True)
    assert isinstance(seen[0], RunRecord)
    assert isinstance(seen[1], StepRecord)
    assert seen[1].usage.steps == 11


def test_resuming_a_folder_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    first, second = bound(one_shot(total=TOTAL)), bound(one_shot(total=TOTAL))
    with pytest.raises(CutError):
        executed(first, tmp_path, interrupt_at(5))
    executed(second, tmp_path, resume=True)
    assert [record["kind"] for record in written(tmp_path)].count("run") == 1


OTHERS: dict[str, Callable[[], BoundRun]] = {
    "seed": lambda: bound(one_shot(total=TOTAL), seed=1),
    "data": lambda: bound(one_shot(total=TOTAL), stream=parity(seed=1)),
    "length": lambda: bound(one_shot(total=Duration(number=STEPS + 1))),
    "curriculum": lambda: bound(extraction(total=TOTAL)),
    "optimizer": lambda: bound(one_shot(total=TOTAL), optimizer=SGD(learning_rate=0.2)),
    "student": lambda: bound(one_shot(total=TOTAL), student=mlp(5, 5)),
    "teacher": lambda: bound(one_shot(total=TOTAL), teacher=LiveTeacher(mlp(16, 12, seed=2))),
    "precision": lambda: bound(one_shot(total=TOTAL), settings={"precision": "bfloat16"}),
    "teacher's precision": lambda: bound(
        one_shot(total=TOTAL), settings={"teacher_precision": "bfloat16"}
    ),
    "gradient_accumulation_steps": lambda: bound(
        one_shot(total=TOTAL), settings={"gradient_accumulation_steps": 2}
    ),
    "clipping": lambda: bound(one_shot(total=TOTAL), settings={"max_grad_norm": 1.0}),
}


@pytest.mark.parametrize("cut", [5, None], ids=["begun", "complete"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_another_run_without_a_checkpoint_is_refused_and_nothing_is_lost(
    tmp_path: Path, other: Callable[[], BoundRun], cut: int | None
) -> None:
    with contextlib.suppress(CutError):
        executed(bound(one_shot(total=TOTAL)), tmp_path, interrupt_at(cut or STEPS + 1))
    before = contents(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"records.jsonl' must belong to this run; its digest"
    ):
        executed(other(), tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_records_that_do_not_tell_their_run_are_not_overwritten(tmp_path: Path) -> None:
    executed(bound(one_shot(total=TOTAL)), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines()[:-1]]
    del lines[0]["run"]
    chain = LineChain()
    forged = b"".join(chain.line(without_check(line)) for line in lines)
    (tmp_path / RECORDS).write_bytes(forged)
    (tmp_path / SEAL).unlink()
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"must belong to this run; its digest is '', not"):
        executed(bound(one_shot(total=TOTAL)), tmp_path, resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("every", [None, 8])
def test_resuming_a_complete_run_gives_its_student_and_runs_nothing(
    tmp_path: Path, every: int | None
) -> None:
    settings = {"save_every": every}
    whole = bound(one_shot(total=TOTAL), settings=settings)
    end = executed(whole, tmp_path)
    before = contents(tmp_path)
    again = bound(one_shot(total=TOTAL), settings=settings, student=mlp(5, 4, seed=9))
    seen: list[Record] = []
    assert executed(again, tmp_path, seen.append, resume=True) == end
    assert [record.kind for record in seen] == ["run", "end"]
    assert contents(tmp_path) == before
    torch.testing.assert_close(state(again), state(whole), rtol=0, atol=0)


def test_records_that_are_shorter_than_the_checkpoint_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CutError):
        executed(
            bound(one_shot(total=TOTAL), settings={"save_every": 8}),
            tmp_path,
            interrupt_at(12),
        )
    records = tmp_path / RECORDS
    records.write_bytes(records.read_bytes().splitlines(keepends=True)[0])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold the \d+ bytes from which the checkpoint"):
        executed(bound(one_shot(total=TOTAL)), tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_records_are_on_the_disk_before_the_checkpoint_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def saving(*_: object, **__: object) -> None:
        told.append("checkpoint")

    def syncing(_: RecordWriter) -> None:
        told.append("sync")

    monkeypatch.setattr("curricle.training.loop.journal.save_checkpoint", saving)
    monkeypatch.setattr(RecordWriter, "sync", syncing)
    executed(bound(one_shot(total=TOTAL), settings={"save_every": 8}), tmp_path)
    # The last record too, before the manifest that counts it.
    assert told == ["sync", "checkpoint"] * 2 + ["sync"]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_lost(
    tmp_path: Path, other: Callable[[], BoundRun]
) -> None:
    executed(bound(one_shot(total=TOTAL), settings={"save_every": 8}), tmp_path)
    before = contents(tmp_path)
    run = other()
    start = state(run)
    with pytest.raises(CheckpointError, match=r"step-000000016' must belong to this run; its d"):
        executed(run, tmp_path, resume=True)
    assert contents(tmp_path) == before
    torch.testing.assert_close(state(run), start, rtol=0, atol=0)


def test_what_does_not_change_the_result_does_not_change_the_digest() -> None:
    plain_run = bound(one_shot(total=TOTAL))
    other = bound(
        one_shot(total=TOTAL),
        settings={"eval_every": 3, "log_every": 5, "save_every": 2, "threads": 1},
    )
    assert fingerprint(run_facts(plain_run)) == fingerprint(run_facts(other))


@pytest.mark.parametrize("name", [STUDENT, OPTIMIZER])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, name: str) -> None:
    run = bound(one_shot(total=TOTAL), settings={"save_every": 8})
    with pytest.raises(CutError):
        executed(run, tmp_path, interrupt_at(12))
    path = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert path is not None
    (path / name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=name):
        executed(run, tmp_path, resume=True)


# --- run folders ----------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    executed(bound(one_shot(total=TOTAL), settings={"save_every": 5}), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"must not hold a run already; resume it \(resume=True\) or"
    ):
        executed(bound(one_shot(total=TOTAL)), tmp_path)
    assert contents(tmp_path) == before


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    executed(bound(one_shot(total=TOTAL), settings={"save_every": 5}))
    assert not list(tmp_path.iterdir())


def test_a_process_that_does_not_write_takes_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_every": 5}
    writing, silent = (bound(one_shot(total=TOTAL), settings=settings) for _ in range(2))
    executed(writing, tmp_path / "run")
    monkeypatch.setattr(SingleDevice, "is_writer", False)
    executed(silent, tmp_path / "nothing")
    torch.testing.assert_close(state(silent), state(writing), rtol=0, atol=0)
    assert not (tmp_path / "nothing").exists()


def test_the_exported_student_holds_nothing_but_itself(tmp_path: Path) -> None:
    run = bound(extraction(total=TOTAL, center=True))
    executed(run, tmp_path)
    exported = load_file(tmp_path / FINISHED)
    torch.testing.assert_close(exported, state(run), rtol=0, atol=0)


def test_the_exported_student_loads_into_a_new_one(tmp_path: Path) -> None:
    run = bound(one_shot(total=TOTAL))
    executed(run, tmp_path)
    fresh = mlp(5, 4, seed=9).module
    load_weights(fresh, tmp_path / FINISHED)
    torch.testing.assert_close(dict(fresh.state_dict()), state(run), rtol=0, atol=0)


def test_a_teachers_own_run_leaves_its_trajectory(tmp_path: Path) -> None:
    weights = []

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps in (4, 20):
            weights.append(state(run)["head.weight"])

    run = bound(from_labels(total=TOTAL), teacher=None)
    executed(run, None, observe, trajectory=TrajectoryWriter(tmp_path, [4, 20, 99]))
    found = open_trajectory(tmp_path)
    assert found.steps == (4, 20)
    assert not torch.equal(*weights)
    for step, wanted in zip(found.steps, weights, strict=True):
        assert torch.equal(load_file(found.path(step))["head.weight"], wanted)


def test_checkpoints_in_a_trajectory_are_kept_between_the_intervals(tmp_path: Path) -> None:
    settings = {"log_every": 100, "eval_every": 100}
    run = bound(from_labels(total=TOTAL), teacher=None, settings=settings)
    executed(run, trajectory=TrajectoryWriter(tmp_path, [3]))
    assert open_trajectory(tmp_path).steps == (3,)


# --- teachers -------------------------------------------------------------------------------------


def test_the_loss_that_is_kept_is_that_of_the_evaluation_at_that_step(tmp_path: Path) -> None:
    # The first is that of the check before training, which is not recorded.
    losses = iter([1.0, 0.9, 0.8, 0.7, 0.6])
    run = bound(from_labels(total=Duration(number=9)), teacher=None, settings={"eval_every": 4})
    told: list[Record] = []
    outputs = Outputs(observers=(told.append,), trajectory=TrajectoryWriter(tmp_path, [4, 6]))
    execute(run, lambda _: {"nll": next(losses)}, metric="nll", outputs=outputs)
    # Evaluated at steps 4, 6, 8 and the end, of which step 6 is for the trajectory alone.
    assert open_trajectory(tmp_path).losses == ((4, 0.9), (6, 0.8))
    assert [one.metrics["nll"] for one in told if isinstance(one, EvaluationRecord)] == [0.9, 0.7]


def test_a_missing_checkpoint_ends_the_run_before_it_begins(
    tmp_path: Path, trajectory: Trajectory
) -> None:
    run = bound(
        progressive(total=TOTAL, trajectory=(100, 250)),
        teacher=LiveTeacher(mlp(16, 12, seed=1), trajectory),
    )
    before = state(run)
    with pytest.raises(BindError, match=r"must be one of \[100, 200, 300\]; got 250$"):
        executed(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    torch.testing.assert_close(state(run), before, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_checkpoint_ends_the_run_before_it_begins(tmp_path: Path, damage: str) -> None:
    writer = TrajectoryWriter(tmp_path / "trajectory", [1, 2])
    writer.save(mlp(16, 12).module, 1)
    writer.save(mlp(16, 12 if damage == "cut" else 13).module, 2)
    found = open_trajectory(tmp_path / "trajectory")
    if damage == "cut":
        found.path(2).write_bytes(found.path(2).read_bytes()[:-9])
    run = bound(
        progressive(total=TOTAL, trajectory=(1, 2)), teacher=LiveTeacher(mlp(16, 12), found)
    )
    with pytest.raises(CheckpointError, match=r"step-000000002.safetensors' must "):
        executed(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_stage_is_taught_by_its_own_checkpoint(trajectory: Trajectory) -> None:
    losses: dict[str, float] = {}

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord):
            losses.setdefault(record.stage, record.loss)

    # One step each, at a rate that moves nothing: the losses differ by the teachers alone.
    still = SGD(learning_rate=1e-30)
    batch = parity().batch(0)
    run = bound(
        progressive(total=Duration(number=3), trajectory=trajectory),
        teacher=LiveTeacher(mlp(16, 12, seed=1), trajectory),
        optimizer=still,
        stream=Listed(batch),
    )
    executed(run, None, observe)
    student = torch.log_softmax(run.student.module(batch.inputs), -1).detach()
    for step in trajectory.steps:
        target = torch.log_softmax(mlp(16, 12, seed=step).module(batch.inputs), -1).detach()
        wanted = (target.exp() * (target - student)).sum(-1).mean().item()
        assert losses[f"checkpoint {step}"] == pytest.approx(wanted, rel=1e-4)
    assert len(set(losses.values())) == 3


def test_the_finished_teacher_is_given_back(trajectory: Trajectory) -> None:
    teacher = LiveTeacher(mlp(16, 12, seed=1), trajectory)
    run = bound(progressive(total=TOTAL, trajectory=trajectory), teacher=teacher)
    executed(run)
    wanted = mlp(16, 12, seed=1).module.state_dict()
    torch.testing.assert_close(
        dict(teacher.model.module.state_dict()), dict(wanted), rtol=0, atol=0
    )
    assert teacher.model.module.training


# --- divergence -----------------------------------------------------------------------------------


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    good = [parity().batch(step) for step in range(9)]
    bad = dataclasses.replace(good[0], inputs=torch.full((8, INPUTS), math.nan))
    run = bound(
        extraction(total=TOTAL), stream=Listed(*good, bad), settings={"save_every": 4}, seed=3
    )
    with pytest.raises(
        DivergenceError,
        match=r"^'loss' must be finite; got nan in stage 'logits' at step 9 with seed 3; inputs of "
        r"step 9 are not finite: 'inputs' holds 48 nan of 48 numbers, first in example 0; its "
        r"batch is in 'failed-steps/step-000000009' of the run folder$",
    ):
        executed(run, tmp_path)
    path = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert path is not None
    assert path.name == "step-000000008"
    fresh = mlp(5, 4).module
    load_weights(fresh, path / STUDENT)
    assert all(bool(one.isfinite().all()) for one in fresh.parameters())


def test_a_checkpoint_of_broken_weights_is_not_written(tmp_path: Path) -> None:
    def breaking(record: Record) -> None:
        # As an update with an infinite gradient after a finite loss would.
        if isinstance(record, StepRecord) and record.usage.steps == 8:
            run.student.module.get_parameter("head.bias").data.fill_(math.inf)

    run = bound(one_shot(total=TOTAL), settings={"save_every": 4})
    with pytest.raises(DivergenceError, match=r"^'weights' must be finite; .* after step 7 "):
        executed(run, tmp_path, breaking)
    path = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert path is not None
    assert path.name == "step-000000004"


def test_a_checkpoint_of_broken_weights_does_not_enter_a_trajectory(tmp_path: Path) -> None:
    def breaking(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == 8:
            run.student.module.get_parameter("head.bias").data.fill_(math.nan)

    run = bound(from_labels(total=TOTAL), teacher=None)
    with pytest.raises(DivergenceError, match=r"^'weights' must be finite; .* after step 7 "):
        executed(run, None, breaking, trajectory=TrajectoryWriter(tmp_path, [4, 8]))
    assert open_trajectory(tmp_path).steps == (4,)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_ends_the_run(number: float) -> None:
    run = bound(one_shot(total=TOTAL), seed=3)
    with pytest.raises(
        DivergenceError,
        match=rf"^'nll' must be finite; got {number} in stage 'logits' after step 6 with seed 3$",
    ):
        execute(run, lambda _: {"nll": number}, metric="nll", outputs=Outputs())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_another_metric_is_recorded_only_where_it_is_finite(tmp_path: Path, number: float) -> None:
    precisions = iter([0.5, number, 0.25, number])  # The first is the trial before training.

    def evaluate(_: object) -> dict[str, float]:
        return {"f1": 1.0, "precision": next(precisions)}

    run = bound(one_shot(total="9 steps"), settings={"eval_every": 4})
    end = execute(run, evaluate, metric="f1", outputs=Outputs(folder=tmp_path))
    measured = [record["metrics"] for record in written(tmp_path) if record["kind"] == "evaluation"]
    assert measured == [{"f1": 1.0}, {"f1": 1.0, "precision": 0.25}]
    assert end.metrics == {"f1": 1.0}


def test_every_metric_of_this_package_must_be_finite() -> None:
    def evaluate(_: object) -> dict[str, float]:
        return {"accuracy": 1.0, "nll": math.nan}

    evaluate.__module__ = "curricle.training.loop.evaluation"
    run = bound(one_shot(total="2 steps"))
    with pytest.raises(DivergenceError, match=r"^'nll' must be finite; got nan"):
        execute(run, evaluate, metric="accuracy", outputs=Outputs())


def test_records_up_to_the_divergence_can_be_read(tmp_path: Path) -> None:
    good = parity().batch(0)
    bad = dataclasses.replace(good, inputs=torch.full((8, INPUTS), math.nan))
    with pytest.raises(DivergenceError):
        executed(bound(one_shot(total=TOTAL), stream=Listed(good, good, bad)), tmp_path)
    assert [record["kind"] for record in written(tmp_path)] == ["run", "stage", "step", "step"]


# --- records --------------------------------------------------------------------------------------


def seen_in(run: BoundRun) -> list[Record]:
    seen: list[Record] = []
    executed(run, None, seen.append)
    return seen


def test_records_come_in_the_order_of_what_happens() -> None:
    run = bound(extraction(total=TOTAL), settings={"log_every": 4, "eval_every": 10})
    told = [
        (record.kind, 0 if isinstance(record, RunRecord) else record.usage.steps)
        for record in seen_in(run)
    ]
    # The layer stage takes 5 steps.
    assert told == [
        ("run", 0),
        ("stage", 0),
        ("step", 4),
        ("stage", 5),
        ("step", 8),
        ("evaluation", 10),
        ("step", 12),
        ("step", 16),
        ("step", 20),
        ("evaluation", 20),
        ("end", 20),
    ]


def test_observers_are_told_what_is_written(tmp_path: Path) -> None:
    seen: list[Record] = []
    executed(bound(extraction(total=TOTAL)), tmp_path, seen.append)
    assert list(read_records(tmp_path / RECORDS)) == seen


def test_observers_cannot_change_records() -> None:
    def meddle(record: Record) -> None:
        record.kind = "end"  # type: ignore[misc]

    with pytest.raises(dataclasses.FrozenInstanceError):
        executed(bound(one_shot(total=TOTAL)), None, meddle)


def test_the_first_record_says_what_is_run() -> None:
    run = bound(extraction(total=TOTAL))
    opening = seen_in(run)[0]
    assert isinstance(opening, RunRecord)
    assert (opening.method, opening.task, opening.metric) == ("extraction", "parity", "accuracy")
    assert [stage.steps for stage in opening.stages] == [5, 15]
    # 6-5-4-2 and 6-16-12-2 with biases.
    assert opening.student_parameters == 35 + 24 + 10
    assert opening.teacher_parameters == 112 + 204 + 26
    assert opening.versions.keys() == {"curricle", "torch", "python"}
    assert opening.device == "cpu float32"


def test_a_teacher_that_nothing_reads_is_not_counted() -> None:
    opening = seen_in(bound(from_labels(total=TOTAL)))[0]
    assert isinstance(opening, RunRecord)
    assert opening.teacher_parameters == 0


def test_consumption_adds_up_over_stages() -> None:
    run = bound(extraction(total=TOTAL))
    (end,) = (record for record in seen_in(run) if isinstance(record, EndRecord))
    first, second = (stage.plan for stage in run.stages)
    assert (end.usage.steps, end.usage.examples, end.usage.tokens) == (20, 160, 160)
    assert end.usage.student_flops == 5 * first.student_flops + 15 * second.student_flops
    assert end.usage.teacher_flops == 5 * first.teacher_flops + 15 * second.teacher_flops
    assert end.usage.seconds > 0


def test_what_is_read_for_the_teachers_statistics_is_spent_where_a_stage_begins() -> None:
    def usage(*, center: bool) -> Usage:
        return executed(bound(extraction(total=TOTAL, pairs=2, center=center))).usage

    plain, centered = usage(center=False), usage(center=True)
    # Two layer stages, and batches of 8.
    assert centered.examples - plain.examples == 2 * CALIBRATION_BATCHES * 8
    assert centered.teacher_flops > plain.teacher_flops
    assert (centered.steps, centered.student_flops) == (plain.steps, plain.student_flops)


def test_a_stage_record_says_what_was_spent_before() -> None:
    seen = seen_in(bound(extraction(total=TOTAL)))
    starts = [record.usage.steps for record in seen if isinstance(record, StageRecord)]
    assert starts == [0, 5]


def test_step_records_hold_each_term_and_the_rate() -> None:
    both = Stage(
        name="both",
        duration=Duration(number=1),
        objectives=(MatchLogits(), MatchLogits(divergence=ReverseKL(), weight=0.5)),
        learning_rate_scale=0.5,
    )
    run = bound(Curriculum(name="x", stages=(both,)))
    (record,) = (one for one in seen_in(run) if isinstance(one, StepRecord))
    forward, reverse = record.terms["logits"], record.terms["logits #2"]
    assert record.loss == pytest.approx(forward + 0.5 * reverse, rel=1e-6)
    assert record.learning_rate == pytest.approx(0.05)


def test_time_stands_still_during_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("curricle.training.setup.placement.time.perf_counter", lambda: clock[0])

    def slow(model: TappedModel) -> dict[str, float]:
        clock[0] += 100.0
        return {"accuracy": 0.0}

    run = bound(one_shot(total=TOTAL), settings={"eval_every": 3})
    run = dataclasses.replace(run, stream=Ticking(parity(), clock))
    end = execute(run, slow, metric="accuracy", outputs=Outputs())
    # One second a step, and seven evaluations that do not count.
    assert end.usage.seconds == pytest.approx(20.0)


class Ticking:
    """Lets a clock go on by one second with every batch."""

    def __init__(self, stream: ParityStream, clock: list[float]) -> None:
        self.stream, self.clock = stream, clock
        self.batch_size, self.tokens_per_batch = stream.batch_size, stream.tokens_per_batch
        self.fingerprint = stream.fingerprint

    def batch(self, step: int) -> Batch:
        self.clock[0] += 1.0
        return self.stream.batch(step)


def test_evaluation_sees_the_student_as_it_is_then() -> None:
    metrics = [
        record.metrics["accuracy"]
        for record in seen_in(bound(one_shot(total=TOTAL), settings={"eval_every": 10}))
        if isinstance(record, (EvaluationRecord, EndRecord))
    ]
    assert metrics[0] != metrics[1] == metrics[2]


def modes(run: BoundRun) -> dict[str, bool]:
    return {name: part.training for name, part in run.student.module.named_modules()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_modes_of_the_student_come_back_after_the_run(fails: bool) -> None:
    def failing(model: TappedModel) -> dict[str, float]:
        if fails:
            raise CutError
        return evaluate(model)

    run = bound(one_shot(total=TOTAL), student=noisy())
    # One part is held in evaluation mode by its owner.
    run.student.module.get_submodule("blocks.0.1").eval()
    before = modes(run)
    with contextlib.suppress(CutError):
        execute(run, failing, metric="accuracy", outputs=Outputs())
    assert modes(run) == before


def modes_seen(student: TappedModel) -> list[bool]:
    """Return the modes in which the first normalization runs, when bound, in steps, evaluated."""
    seen: list[bool] = []
    norm = student.module.get_submodule("blocks.0.1")
    norm.register_forward_hook(lambda part, *_: seen.append(part.training))
    executed(bound(one_shot(total=Duration(number=8)), student=student))
    return seen


def test_a_part_that_was_frozen_in_evaluation_mode_stays_there() -> None:
    student = noisy()
    norm = student.module.get_submodule("blocks.0.1").eval().requires_grad_(False)
    before = {name: one.clone() for name, one in norm.state_dict().items()}
    # An evaluation after step 7 switches modes in between.
    assert not any(modes_seen(student))
    assert all(torch.equal(one, before[name]) for name, one in norm.state_dict().items())
    assert student.module.training
    assert not norm.training


def test_a_student_that_comes_in_evaluation_mode_trains_as_a_whole() -> None:
    student = noisy()
    student.module.eval()
    seen = modes_seen(student)
    # At the check before training, after step 7 and at the end.
    assert seen.count(False) == 3
    assert not any(part.training for part in student.module.modules())


def test_the_model_inside_of_a_new_wrapper_says_whether_its_parts_are_frozen() -> None:
    class Adapted(nn.Module):
        """Like the wrapper of PEFT, which is in training mode around what was just loaded."""

        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def get_base_model(self) -> nn.Module:
            return self.base

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.base(inputs)
            return logits

    base = noisy().module.eval()
    seen: list[bool] = []
    base.get_submodule("blocks.0.1").register_forward_hook(
        lambda part, *_: seen.append(part.training)
    )
    executed(bound(one_shot(total=Duration(number=3)), student=tapped(Adapted(base))))
    assert seen.count(False) == 2


def test_a_metric_that_the_evaluator_does_not_give_is_an_error() -> None:
    with pytest.raises(
        BindError,
        match=r"^'metric' must be one of the entries .* \['accuracy'\]; got 'f1'; metric=",
    ):
        execute(bound(one_shot(total=TOTAL)), evaluate, metric="f1", outputs=Outputs())


def test_evaluation_does_not_change_what_is_learned() -> None:
    often, never = (
        bound(extraction(total=TOTAL), student=noisy(), settings={"eval_every": every})
        for every in (1, 1000)
    )
    for run in (often, never):
        executed(run)
    torch.testing.assert_close(state(often), state(never), rtol=0, atol=0)


def test_the_same_run_twice_is_bit_equal_and_another_seed_is_not() -> None:
    runs = [bound(extraction(total=TOTAL), student=noisy(), seed=seed) for seed in (0, 0, 1)]
    for run in runs:
        executed(run)
    weights = [state(run)["head.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "equal"), [("keep", True), ("reset", False)])
def test_a_border_without_a_change_matters_only_if_the_optimizer_is_reset(
    kept: Any, equal: bool
) -> None:
    def run(*lengths: int) -> BoundRun:
        stages = tuple(
            Stage(
                name=str(place),
                duration=Duration(number=length),
                objectives=(MatchLogits(),),
                optimizer_state=kept,
            )
            for place, length in enumerate(lengths)
        )
        return bound(Curriculum(name="x", stages=stages))

    whole, parts = run(STEPS), run(STEPS // 2, STEPS // 2)
    for one in (whole, parts):
        executed(one)
    left, right = state(whole)["head.weight"], state(parts)["head.weight"]
    assert torch.equal(left, right) is equal


def test_the_stated_number_of_threads_is_used_while_it_runs() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    run = bound(one_shot(total=Duration(number=1)), settings={"threads": before + 1})
    executed(run, None, lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_half_precision_runs_to_the_end_and_resumes(tmp_path: Path) -> None:
    def run() -> BoundRun:
        settings = {"precision": "bfloat16", "save_every": 5}
        return bound(extraction(total=TOTAL), settings=settings)

    whole, again = run(), run()
    executed(whole)
    with pytest.raises(CutError):
        executed(run(), tmp_path, interrupt_at(8))
    executed(again, tmp_path, resume=True)
    torch.testing.assert_close(state(again), state(whole), rtol=0, atol=0)


def test_an_observer_that_fails_at_once_leaves_no_open_file(tmp_path: Path) -> None:
    def failing(record: Record) -> None:
        raise CutError

    with pytest.raises(CutError):
        executed(bound(one_shot(total=TOTAL)), tmp_path, failing)
    assert [record["kind"] for record in written(tmp_path)] == ["run"]


def test_binding_again_after_a_run_gives_the_same_plan() -> None:
    student = mlp(5, 4)
    first = bound(extraction(total=TOTAL), student=student)
    plans = copy.deepcopy([stage.plan for stage in first.stages])
    executed(first)
    second = bound(extraction(total=TOTAL), student=student)
    assert [stage.plan for stage in second.stages] == plans


def test_a_run_ends_at_its_target_only_where_the_output_is_taught(tmp_path: Path) -> None:
    run = bound(extraction(total=TOTAL), settings={"eval_every": 1})
    end = execute(
        run, evaluate, metric="accuracy", outputs=Outputs(folder=tmp_path), until=lambda _: True
    )
    layer, last = run.stages
    assert (layer.plan.reads_logits, last.plan.reads_logits) == (False, True)
    assert end.usage.steps == layer.span.end + 1


# --- evaluations and final weights ----------------------------------------------------------------


@pytest.mark.parametrize("returned", [{"f1": 0.5}, None, 0.5])
def test_a_wrong_evaluation_is_noticed_before_training(returned: Any, tmp_path: Path) -> None:
    run = bound(one_shot(total=TOTAL))
    before = state(run)
    outputs = Outputs(folder=tmp_path / "run")
    with pytest.raises(BindError, match=r"'evaluation' must return|'metric' must be one of"):
        execute(run, lambda _: returned, metric="accuracy", outputs=outputs)
    assert all(torch.equal(one, before[name]) for name, one in state(run).items())
    assert not outputs.folder or not outputs.folder.exists()
    assert run.student.module.training


def test_the_evaluation_before_training_leaves_no_trace(tmp_path: Path) -> None:
    def unchecked(model: TappedModel) -> dict[str, float]:
        return evaluate(model)

    # Evaluators of ours are not tried.
    unchecked.__module__ = "curricle.training.loop.evaluation"
    checked, plain_run = (bound(one_shot(total=TOTAL), student=noisy()) for _ in range(2))
    executed(checked, tmp_path / "checked")
    outputs = Outputs(folder=tmp_path / "plain", task="parity")
    execute(plain_run, unchecked, metric="accuracy", outputs=outputs)
    assert written(tmp_path / "checked") == written(tmp_path / "plain")


def test_weights_are_kept_if_the_last_evaluation_fails(tmp_path: Path) -> None:
    calls: list[int] = []

    def failing(model: TappedModel) -> dict[str, float]:
        calls.append(1)
        if len(calls) > 1:
            raise LookupError("no more data")
        return evaluate(model)

    run = bound(one_shot(total=TOTAL), settings={"eval_every": STEPS + 1})
    with pytest.raises(LookupError, match="no more data") as raised:
        execute(run, failing, metric="accuracy", outputs=Outputs(folder=tmp_path))
    assert [str(tmp_path / FINISHED) in note for note in raised.value.__notes__] == [True]
    twin = bound(one_shot(total=TOTAL))
    load_weights(twin.student.module, tmp_path / FINISHED)
    assert all(torch.equal(one, state(run)[name]) for name, one in state(twin).items())


def test_a_checkpoint_is_left_if_an_evaluation_in_between_fails(tmp_path: Path) -> None:
    calls: list[int] = []

    def failing(model: TappedModel) -> dict[str, float]:
        calls.append(1)
        return evaluate(model) if len(calls) == 1 else {}

    with pytest.raises(BindError, match="'metric' must be one of"):
        execute(
            bound(one_shot(total=TOTAL)),
            failing,
            metric="accuracy",
            outputs=Outputs(folder=tmp_path),
        )
    saved = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert saved is not None
    assert read_state(saved).usage.steps == 7


@pytest.mark.parametrize("after", [STEPS, 3])
def test_weights_that_the_last_step_makes_infinite_are_never_saved(
    after: int, tmp_path: Path
) -> None:
    run = bound(one_shot(total=Duration(number=after)), settings={"eval_every": 50})

    def spoil(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == after:
            with torch.no_grad():
                run.student.module.get_parameter("head.weight")[0, 0] = torch.nan

    outputs = Outputs(folder=tmp_path, observers=(spoil,))
    with pytest.raises(DivergenceError, match=r"'head.weight' is not in stage 'logits' after step"):
        execute(run, lambda _: {"accuracy": 0.5}, metric="accuracy", outputs=outputs)
    assert not (tmp_path / FINISHED).exists()


def test_a_student_with_state_that_no_file_holds_is_refused_before_it_trains(
    tmp_path: Path,
) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"scale": 2}

        def set_extra_state(self, state: dict[str, int]) -> None:
            del state

    with seeding.scoped(0, "model"):
        student = tapped(Extra(INPUTS, 2))
    run = bound(one_shot(total=TOTAL), student=student)
    with pytest.raises(BindError, match="'_extra_state' is a dict"):
        executed(run, tmp_path)
    executed(run)
