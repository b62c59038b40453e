"""Failed steps are skipped or rolled back within bounds, and their batches are kept."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from curricle import seeding
from curricle.checksums import check_sealed
from curricle.curriculum.durations import UntilPlateau
from curricle.curriculum.strategies import extraction, one_shot
from curricle.data.batch import Batch
from curricle.errors import CheckpointError, DataError, DivergenceError, OutOfMemoryError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.records import (
    RECORDS,
    EndRecord,
    Record,
    RecoveryRecord,
    StepRecord,
    Usage,
    read_records,
)
from curricle.teachers.live import LiveTeacher
from curricle.training.distill import execute
from curricle.training.loop.checkpoints import CHECKPOINTS, latest_checkpoint, read_state
from curricle.training.loop.recovery import (
    BATCH,
    FAILED,
    FAILURE,
    MEMORY,
    Recovery,
    recovery_notes,
)
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Prepared, Stepper
from curricle.training.setup.divergence import OnDivergence, RollBack, SkipSteps, StopRun
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import INPUTS, Listed, bound, mlp, parity

STEPS, FAILING = 12, 6
GOOD = tuple(parity().batch(step) for step in range(STEPS))
BAD = Batch(inputs=torch.full((8, INPUTS), math.nan), labels=torch.zeros(8, dtype=torch.long))


class Transient:
    """Gives a batch of NaN the first times that a step is read, as a faulty processor would."""

    fingerprint, batch_size, tokens_per_batch = "transient", 8, 8

    def __init__(self, times: int, *, at: int = FAILING) -> None:
        self._times, self._at = times, at
        self.failed = 0

    def batch(self, step: int) -> Batch:
        # The failed step is read once more, to be kept and inspected.
        if step == self._at and self.failed < self._times:
            return BAD
        return GOOD[step]

    def recover(self, record: Record) -> None:
        self.failed += isinstance(record, RecoveryRecord)


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(3, INPUTS)).square().mean())}


def trained(
    stream: Any,
    reaction: OnDivergence,
    folder: Path | None = None,
    *observers: Any,
    steps: int = STEPS,
    resume: bool = False,
    **parts: Any,
) -> dict[str, Tensor]:
    """Return the weights after a run that saves every fourth step."""
    settings = {"log_every": 1, "eval_every": 100, "save_every": 4, "on_divergence": reaction}
    run = bound(one_shot(total=f"{steps} steps"), stream=stream, settings=settings, **parts)
    outputs = Outputs(folder=folder, observers=observers)
    execute(run, evaluate, metric="accuracy", outputs=outputs, resume=resume)
    return {name: tensor.clone() for name, tensor in run.student.module.state_dict().items()}


def equal(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(weights[name], expected[name]) for name in expected)


def without_seconds(folder: Path) -> list[str]:
    """Return the records of a run, but for seconds."""
    lines = []
    for line in (folder / RECORDS).read_text().splitlines():
        record = json.loads(line)
        record.pop("check")
        record.get("usage", {}).pop("seconds", None)
        lines.append(json.dumps(record))
    return lines


def stopping(at: int, *, times: int = 1) -> Any:
    """Return an observer that ends the process, as it were, after a step."""
    left = [times]

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == at and left[0]:
            left[0] -= 1
            raise RuntimeError("killed")

    return observe


# --- skipped steps --------------------------------------------------------------------------------


def test_a_skipped_step_leaves_the_student_as_if_its_batch_had_not_been() -> None:
    # Plain descent at a constant rate has no state, so the run without the batch is the reference.
    with_bad = Listed(*GOOD[:FAILING], BAD, *GOOD[FAILING:])
    weights = trained(with_bad, SkipSteps(), steps=STEPS + 1)
    assert equal(weights, trained(Listed(*GOOD), StopRun()))


def test_a_skipped_step_is_recorded_with_its_fault(tmp_path: Path) -> None:
    trained(Listed(*GOOD[:FAILING], BAD, *GOOD), SkipSteps(), tmp_path)
    (record,) = [r for r in read_records(tmp_path / RECORDS) if isinstance(r, RecoveryRecord)]
    assert (record.action, record.stage, record.usage.steps) == ("skipped", "logits", FAILING + 1)
    assert record.fault == (
        "'loss' must be finite; got nan in stage 'logits' at step 6 with seed 0; inputs of step 6 "
        "are not finite: 'inputs' holds 48 nan of 48 numbers, first in example 0; its batch is in "
        "'failed-steps/step-000000006' of the run folder"
    )
    assert str(record) == f"step 7 (logits): skipped: {record.fault}"
    steps = [r.usage.steps for r in read_records(tmp_path / RECORDS) if isinstance(r, StepRecord)]
    assert steps == [step for step in range(1, STEPS + 1) if step != FAILING + 1]


def test_the_batch_of_a_failed_step_is_kept_with_its_hashes(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError):
        trained(Listed(*GOOD[:FAILING], BAD), StopRun(), tmp_path)
    folder = tmp_path / FAILED / "step-000000006"
    tensors = load_file(folder / BATCH)
    assert sorted(tensors) == ["inputs", "labels"]
    assert bool(tensors["inputs"].isnan().all())
    assert json.loads((folder / FAILURE).read_text())["step"] == FAILING
    check_sealed(folder, [BATCH, FAILURE])


def test_running_statistics_are_those_before_a_skipped_step() -> None:
    def student() -> TappedModel:
        with seeding.scoped(0, "student"):
            torch_module = nn.Sequential(
                nn.Linear(INPUTS, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
            )
        return tapped(torch_module, blocks=["0"], head="3")

    with_bad = Listed(*GOOD[:FAILING], BAD, *GOOD[FAILING:])
    weights = trained(with_bad, SkipSteps(), steps=STEPS + 1, student=student())
    # The count of batches is one of the buffers.
    assert equal(weights, trained(Listed(*GOOD), StopRun(), student=student()))


def test_more_failed_steps_than_allowed_end_the_run() -> None:
    with pytest.raises(
        DivergenceError,
        match=r"at step 8 .*; 2 steps were skipped before, the limit of 'on_divergence'$",
    ):
        trained(Listed(*GOOD[:FAILING], BAD, BAD, BAD), SkipSteps(at_most=2))


def test_an_infinite_gradient_of_a_finite_loss_is_skipped() -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * math.inf

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(5, 4).module

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.inner(inputs)
            is_steep = torch.equal(inputs, GOOD[3].leading)
            return Steep.apply(logits) if is_steep else logits

    records: list[Record] = []
    weights = trained(
        Listed(*GOOD),
        SkipSteps(),
        None,
        records.append,
        student=tapped(Student(), blocks=["inner.blocks.0"]),
    )
    faults = [record.fault for record in records if isinstance(record, RecoveryRecord)]
    assert [fault.partition(" in ")[0] for fault in faults] == [
        "'gradient' must be finite; got a norm of nan"
    ]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.parametrize("stop", [5, 6, 8, 10])
def test_a_run_with_a_skipped_step_resumes_bit_equal(stop: int, tmp_path: Path) -> None:
    def stream() -> Listed:
        return Listed(*GOOD[:FAILING], BAD, *GOOD[FAILING:])

    expected = trained(stream(), SkipSteps(explosion=50.0), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        trained(stream(), SkipSteps(explosion=50.0), tmp_path / "resumed", stopping(stop))
    weights = trained(stream(), SkipSteps(explosion=50.0), tmp_path / "resumed", resume=True)
    assert equal(weights, expected)
    assert without_seconds(tmp_path / "resumed") == without_seconds(tmp_path / "whole")


def test_a_plateau_takes_the_loss_before_for_a_skipped_step() -> None:
    rule = UntilPlateau(at_most="8 steps", window=2, patience=1, min_improvement=0.5)
    settings = {"log_every": 1, "eval_every": 100, "on_divergence": SkipSteps()}
    ends = []
    for stream in (Listed(GOOD[0], BAD, *GOOD[2:]), Listed(*GOOD)):
        records: list[Record] = []
        run = bound(
            extraction(total="12 steps", durations=(rule,)), stream=stream, settings=settings
        )
        outputs = Outputs(observers=(records.append,))
        execute(run, evaluate, metric="accuracy", outputs=outputs)
        ends.append([record.done for record in records if record.kind == "stage_end"])
    # NaN in a window would compare as no improvement for ever, and its sum as none at all.
    assert ends[0] == ends[1] != []


# --- exploding losses -----------------------------------------------------------------------------


def loss(number: float) -> StepLoss:
    return StepLoss([torch.tensor(number)], [1], [1.0])


def judge(explosion: float | None = 3.0) -> Recovery:
    return Recovery(TrainingSettings(on_divergence=StopRun(explosion=explosion)))


def step(recovery: Recovery, number: float) -> str:
    """Return the fault of a step, which is applied if it has none."""
    fault = recovery.fault(loss(number))
    if not fault:
        recovery.add(loss(number))
    return fault


def test_a_step_that_is_skipped_for_its_gradient_counts_nowhere() -> None:
    recovery = Recovery(TrainingSettings(on_divergence=SkipSteps(explosion=3.0)))
    assert not step(recovery, 2.0)
    before = recovery.snapshot()
    skipped = replace(loss(500.0), fault="'gradient' must be finite; got a norm of inf")
    assert not recovery.fault(skipped)
    assert recovery.snapshot() == before
    assert recovery.loss_for_rules(skipped) == 2.0


def test_a_skip_before_the_first_applied_step_of_a_stage_has_no_loss_for_rules() -> None:
    recovery = Recovery(TrainingSettings(on_divergence=SkipSteps()))
    step(recovery, 2.0)
    recovery.enter_stage()
    assert recovery.loss_for_rules(replace(loss(math.nan), fault="skipped")) is None


def test_a_loss_explodes_beyond_the_stated_multiple_of_the_mean() -> None:
    recovery = judge()
    assert [step(recovery, 2.0) for _ in range(MEMORY)] == [""] * MEMORY
    assert not step(recovery, 5.9)
    # The mean of 31 losses of 2 and that of 5.9.
    assert step(recovery, 7.0) == (
        "'loss' must stay below 3 times its running mean of 2.122; got 7"
    )


def test_an_exploded_loss_does_not_move_the_mean() -> None:
    recovery = judge()
    for _ in range(MEMORY):
        step(recovery, 2.0)
    assert all(step(recovery, 70.0) for _ in range(5))
    assert not step(recovery, 5.0)


@pytest.mark.parametrize("numbers", [[2.0] * (MEMORY - 1), [-2.0] * MEMORY])
def test_a_young_or_negative_mean_judges_nothing(numbers: list[float]) -> None:
    recovery = judge()
    for number in numbers:
        step(recovery, number)
    assert not step(recovery, 70.0)


def test_a_new_stage_has_a_mean_of_its_own() -> None:
    recovery = judge()
    for _ in range(MEMORY):
        step(recovery, 0.01)
    recovery.enter_stage()
    assert not step(recovery, 5.0)


def test_the_mean_goes_through_a_checkpoint_bit_by_bit() -> None:
    recovery, resumed = judge(), judge()
    for number in range(MEMORY + 5):
        step(recovery, 1 / (number + 3))
    resumed.restore(recovery.snapshot())
    assert resumed.fault(loss(9.0)) == recovery.fault(loss(9.0)) != ""


def test_an_exploding_loss_ends_a_run_that_stops(tmp_path: Path) -> None:
    steep = Batch(inputs=GOOD[0].leading * 1e4)
    stream = Listed(*(GOOD * 3)[:35], steep)
    with pytest.raises(
        DivergenceError,
        match=r"^'loss' must stay below 20 times its running mean of [\d.]+; got \S+ in stage "
        r"'logits' at step 35 with seed 0; its batch is in 'failed-steps/step-000000035'",
    ):
        trained(stream, StopRun(explosion=20.0), tmp_path, steps=40)


# --- returns to a checkpoint ----------------------------------------------------------------------


def test_a_return_takes_the_steps_since_the_checkpoint_again_at_a_lower_rate(
    tmp_path: Path,
) -> None:
    stream = Transient(1)
    weights = trained(stream, RollBack(), tmp_path, stream.recover)
    # Plain descent has no state: four steps at the full rate, the other eight at half of it.
    student = mlp(5, 4)
    trained(Listed(*GOOD), StopRun(), steps=4, student=student)
    halved = SGD(learning_rate=0.05)
    expected = trained(Listed(*GOOD[4:]), StopRun(), steps=8, student=student, optimizer=halved)
    assert equal(weights, expected)


def test_a_return_is_recorded_and_its_cost_is_counted(tmp_path: Path) -> None:
    stream = Transient(1)
    trained(stream, RollBack(learning_rate_scale=0.25), tmp_path, stream.recover)
    records = list(read_records(tmp_path / RECORDS))
    (record,) = [record for record in records if isinstance(record, RecoveryRecord)]
    assert record.action == "rolled back to step 4, learning rates times 0.25"
    assert record.fault.startswith("'loss' must be finite; got nan in stage 'logits' at step 6")
    rates = [step.learning_rate for step in records if isinstance(step, StepRecord)]
    assert rates == [0.1] * 4 + [0.025] * 8
    # Steps 4 and 5 were taken twice.
    assert (record.usage.steps, record.usage.examples) == (4, 6 * 8)
    end = records[-1]
    assert isinstance(end, EndRecord)
    assert (end.usage.steps, end.usage.examples) == (12, 14 * 8)


def test_each_return_lowers_the_rate_and_the_last_allowed_is_the_last(tmp_path: Path) -> None:
    stream = Transient(99)
    with pytest.raises(
        DivergenceError,
        match=r"at step 6 .*; the run was rolled back 3 times before, the limit of",
    ):
        trained(stream, RollBack(), tmp_path, stream.recover)
    records = read_records(tmp_path / RECORDS)
    actions = [record.action for record in records if isinstance(record, RecoveryRecord)]
    assert [action.rpartition(" ")[2] for action in actions] == ["0.5", "0.25", "0.125"]


def test_a_batch_that_fails_after_every_return_is_left_out_by_the_remedy(tmp_path: Path) -> None:
    stream = Listed(*GOOD[:FAILING], BAD, *GOOD[FAILING:])
    with pytest.raises(
        DivergenceError,
        match=r"inputs of step 6 are not finite.*; the run was rolled back 3 times before, the "
        r"limit of 'on_divergence'; a batch that fails at every learning rate is left out by "
        r"on_divergence={'kind': 'skip'}, with which the run goes on from its newest checkpoint$",
    ):
        trained(stream, RollBack(), tmp_path)
    trained(stream, SkipSteps(), tmp_path, resume=True)
    *_, end = read_records(tmp_path / RECORDS)
    assert isinstance(end, EndRecord)
    assert (end.usage.steps, end.skipped_steps, end.roll_backs) == (STEPS, 1, 3)


def test_without_a_checkpoint_there_is_no_return(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"; no checkpoint was written before it$"):
        trained(Transient(1, at=2), RollBack(), tmp_path)


@pytest.mark.parametrize("stop", [5, 7, 8, 9, 11])
def test_a_run_that_was_rolled_back_resumes_bit_equal(stop: int, tmp_path: Path) -> None:
    stream = Transient(1)
    expected = trained(stream, RollBack(), tmp_path / "whole", stream.recover)
    stream = Transient(1)
    folder = tmp_path / "resumed"
    # Step 5 is taken twice; the process ends after the return.
    late = stopping(stop)
    with pytest.raises(RuntimeError, match="killed"):
        trained(
            stream,
            RollBack(),
            folder,
            stream.recover,
            lambda record: late(record) if stream.failed else None,
        )
    saved = latest_checkpoint(folder / CHECKPOINTS)
    assert saved is not None
    assert read_state(saved).recovery.learning_rate_scale == 0.5
    weights = trained(stream, RollBack(), folder, stream.recover, resume=True)
    assert equal(weights, expected)
    assert without_seconds(folder) == without_seconds(tmp_path / "whole")


def test_a_run_that_has_stopped_goes_on_under_another_reaction(tmp_path: Path) -> None:
    stream = Listed(*GOOD[:FAILING], BAD, *GOOD[FAILING:])
    with pytest.raises(DivergenceError):
        trained(stream, StopRun(), tmp_path)
    weights = trained(stream, SkipSteps(), tmp_path, resume=True)
    assert equal(weights, trained(stream, SkipSteps()))


# --- notes ----------------------------------------------------------------------------------------


END = EndRecord(metrics={"accuracy": 0.5}, usage=Usage(steps=STEPS))


def test_a_run_without_failed_steps_has_no_note() -> None:
    assert recovery_notes(END, has_folder=True) == ()


@pytest.mark.parametrize(
    ("number", "words"), [(1, "1 step was skipped"), (1200, "1,200 steps were skipped")]
)
def test_skipped_steps_are_noted_with_their_number_and_the_place_of_the_batches(
    number: int, words: str
) -> None:
    assert recovery_notes(replace(END, skipped_steps=number), has_folder=True) == (
        (
            f"{words}, since their loss or gradient was not finite or exploded; the batches are in "
            f"'failed-steps' of the run folder, and the records of kind 'recovery' name each step"
        ),
    )


@pytest.mark.parametrize(("number", "words"), [(1, "once"), (3, "3 times")])
def test_returns_are_noted_with_their_number(number: int, words: str) -> None:
    (note,) = recovery_notes(replace(END, roll_backs=number), has_folder=True)
    assert note.startswith(f"the run was rolled back {words} to a checkpoint after steps that had ")
    assert "'failed-steps' of the run folder" in note


def test_without_a_folder_the_note_says_that_no_batch_was_kept() -> None:
    (note,) = recovery_notes(replace(END, skipped_steps=2), has_folder=False)
    assert "the batches are not kept without 'output_dir'" in note


# --- several students -----------------------------------------------------------------------------


def test_students_of_one_teacher_skip_each_for_itself(tmp_path: Path) -> None:
    teacher, stream = LiveTeacher(mlp(16, 12, seed=1)), Listed(*GOOD[:FAILING], BAD, *GOOD)
    settings = {"log_every": 1, "eval_every": 100, "on_divergence": SkipSteps()}

    def runs() -> list[SharedRun]:
        return [
            SharedRun(
                run=bound(
                    one_shot(total=f"{STEPS} steps"),
                    student=mlp(5, 4, seed=number),
                    teacher=teacher,
                    stream=stream,
                    settings=settings,
                ),
                evaluate=evaluate,
                outputs=Outputs(),
            )
            for number in (2, 3)
        ]

    together, alone = runs(), runs()
    execute_shared(together, metric="accuracy")
    for first, second in zip(together, alone, strict=True):
        execute(second.run, evaluate, metric="accuracy", outputs=Outputs())
        expected = second.run.student.module.state_dict()
        assert equal(first.run.student.module.state_dict(), expected)


# --- lack of memory -------------------------------------------------------------------------------


GPU_SHORTAGE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_SHORTAGE = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
)


class Hungry(nn.Module):
    """Student whose memory holds a pass over a few examples; it counts its passes."""

    def __init__(
        self, most: int, *, from_call: int = 0, error: RuntimeError = GPU_SHORTAGE
    ) -> None:
        super().__init__()
        self.error = error
        self.inner = mlp(5, 4).module
        self.register_buffer("passes", torch.zeros(()))
        self.most, self.num_calls, self.from_call = most, 0, from_call

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.num_calls += 1
            passes: Tensor = self.get_buffer("passes")
            passes += 1
            if self.num_calls > self.from_call and len(inputs) > self.most:
                raise self.error
        logits: Tensor = self.inner(inputs)
        return logits


def hungry(
    student: Hungry,
    folder: Path | None = None,
    *observers: Any,
    resume: bool = False,
    **fields: Any,
) -> dict[str, Tensor]:
    """Return the weights after six steps of a student that is short of memory."""
    settings = {"log_every": 1, "eval_every": 100, "save_every": 2, **fields}
    run = bound(
        one_shot(total="6 steps"),
        student=tapped(student, blocks=["inner.blocks.0"]),
        settings=settings,
    )
    outputs = Outputs(folder=folder, observers=observers)
    execute(run, evaluate, metric="accuracy", outputs=outputs, resume=resume)
    return {name: tensor.clone() for name, tensor in run.student.module.state_dict().items()}


def test_a_lack_of_memory_names_stage_batch_and_remedy() -> None:
    with pytest.raises(
        OutOfMemoryError,
        match=r"^'batch' must fit into memory; it does not in stage 'logits' at step 0, with 8 "
        r"examples in 2 micro-batches of 4; choose on_out_of_memory='halve', for a new run "
        r"'gradient_accumulation_steps' of 4, precision='bfloat16' or a smaller student: CUDA out "
        r"of memory. Tried to allocate 2.00 GiB.$",
    ) as raised:
        # The passes of binding come before.
        hungry(Hungry(2, from_call=1), gradient_accumulation_steps=2)
    assert isinstance(raised.value, MemoryError)


def test_micro_batches_are_halved_and_the_batch_stays() -> None:
    weights = hungry(Hungry(2, from_call=4), on_out_of_memory="halve")
    expected = hungry(Hungry(8), gradient_accumulation_steps=4)
    weights.pop("passes"), expected.pop("passes")
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_halving_is_recorded_and_lasts(tmp_path: Path) -> None:
    student = Hungry(4, from_call=3)
    records: list[Record] = []
    hungry(student, None, records.append, on_out_of_memory="halve")
    (record,) = [record for record in records if isinstance(record, RecoveryRecord)]
    assert record.action == "went on with 2 micro-batches"
    assert "with 8 examples in 1 micro-batches of 8" in record.fault


def test_buffers_are_those_before_the_failed_pass() -> None:
    records: list[Record] = []
    weights = hungry(Hungry(4, from_call=3), None, records.append, on_out_of_memory="halve")
    (record,) = [record for record in records if isinstance(record, RecoveryRecord)]
    # One pass a step until the halving, two from then on, and none of the failed one.
    assert weights["passes"] == 12 - (record.usage.steps - 1)


def test_a_resumed_run_keeps_its_smaller_micro_batches(tmp_path: Path) -> None:
    expected = hungry(Hungry(4, from_call=3), tmp_path / "whole", on_out_of_memory="halve")
    with pytest.raises(RuntimeError, match="killed"):
        hungry(Hungry(4, from_call=3), tmp_path / "run", stopping(5), on_out_of_memory="halve")
    again = Hungry(8)
    weights = hungry(again, tmp_path / "run", on_out_of_memory="halve", resume=True)
    weights.pop("passes"), expected.pop("passes")
    assert equal(weights, expected)


def test_micro_batches_of_one_example_cannot_be_halved() -> None:
    with pytest.raises(OutOfMemoryError, match="micro-batches of 1; choose a smaller batch, "):
        hungry(Hungry(0, from_call=3), on_out_of_memory="halve")


def test_a_run_that_lacked_memory_goes_on_with_the_first_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="choose on_out_of_memory='halve'"):
        hungry(Hungry(4, from_call=5), tmp_path)
    with pytest.raises(CheckpointError, match="gradient_accumulation_steps"):
        hungry(Hungry(4), tmp_path, resume=True, gradient_accumulation_steps=2)
    hungry(Hungry(4, from_call=1), tmp_path, resume=True, on_out_of_memory="halve")
    *_, end = read_records(tmp_path / RECORDS)
    assert isinstance(end, EndRecord)
    assert end.usage.steps == 6


def test_a_failed_allocation_on_a_cpu_halves_the_micro_batches() -> None:
    weights = hungry(Hungry(2, from_call=4, error=CPU_SHORTAGE), on_out_of_memory="halve")
    expected = hungry(Hungry(8), gradient_accumulation_steps=4)
    weights.pop("passes"), expected.pop("passes")
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_failed_allocation_on_a_cpu_names_stage_batch_and_remedy() -> None:
    with pytest.raises(
        OutOfMemoryError,
        match=r"^'batch' must fit into memory; it does not in stage 'logits' at step 0, with 8 "
        r"examples in 1 micro-batches of 8; choose on_out_of_memory='halve', .*DefaultCPUAllocator",
    ):
        hungry(Hungry(2, from_call=1, error=CPU_SHORTAGE))


@pytest.mark.parametrize("shortage", [GPU_SHORTAGE, CPU_SHORTAGE])
def test_a_lack_of_memory_in_an_update_ends_the_run_with_the_last_checkpoint(
    shortage: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hungry(Hungry(8), tmp_path / "whole")
    updates = [0]
    update = torch.optim.SGD.step

    def step(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        updates[0] += 1
        if updates[0] == 4:
            raise shortage
        return update(optimizer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        with pytest.raises(
            OutOfMemoryError,
            match=r"^'optimizer' must fit into memory; it does not in stage 'logits' at step 3, "
            r"with 8 examples in 1 micro-batches of 8; choose an optimizer with less state, as SGD "
            r"without momentum, parallel='fsdp2' or a smaller student; the update is incomplete, "
            r"so a run goes on from its newest checkpoint: .*allocate",
        ):
            # Halving is no remedy here, and nothing is repeated.
            hungry(Hungry(8), tmp_path / "run", on_out_of_memory="halve")
    assert updates == [4]
    weights = hungry(Hungry(8), tmp_path / "run", resume=True)
    weights.pop("passes"), expected.pop("passes")
    assert equal(weights, expected)


@pytest.mark.parametrize(
    ("prefetch", "remedy"), [("none", "a smaller batch"), ("batch", "prefetch='none'")]
)
def test_a_lack_of_memory_for_inputs_names_stage_batch_and_remedy(
    prefetch: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Stepper.prepared

    def short(stepper: Stepper, step: int) -> Prepared:
        if step == 2:
            raise CPU_SHORTAGE
        return prepared(stepper, step)

    monkeypatch.setattr(Stepper, "prepared", short)
    with pytest.raises(
        OutOfMemoryError,
        match=rf"^'inputs' must fit into memory; it does not in stage 'logits' at step 2, with 8 "
        rf"examples in 1 micro-batches of 8; choose {remedy}: .*DefaultCPUAllocator",
    ):
        hungry(Hungry(8), prefetch=prefetch, log_every=4, save_every=4)


def test_another_error_of_a_pass_is_no_lack_of_memory() -> None:
    with pytest.raises(DataError, match="its forward pass failed with: an error of the model"):
        hungry(
            Hungry(4, from_call=3, error=RuntimeError("an error of the model")),
            on_out_of_memory="halve",
        )
