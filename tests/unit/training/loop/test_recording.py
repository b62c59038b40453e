"""What records say of a run, worked out by hand."""

import pytest
import torch

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import extraction, from_labels, one_shot
from curricle.data.batch import Batch
from curricle.records import Usage
from curricle.training.loop.recording import run_record, step_record, usage_after
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stepping import stepping
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import Listed, bound, texts

STEPS = Duration(number=8)


def test_what_is_spent_grows_with_the_steps_of_a_stage() -> None:
    run = bound(one_shot(total=STEPS))
    (stage,) = run.stages
    before = Usage(steps=2, examples=16, tokens=16, student_flops=7, teacher_flops=5, seconds=1.0)
    assert usage_after(run, before, stage, done=5, seconds=3.0) == Usage(
        steps=5,
        examples=16 + 3 * 8,
        tokens=16 + 3 * 8,
        student_flops=7 + 3 * stage.plan.student_flops,
        teacher_flops=5 + 3 * stage.plan.teacher_flops,
        seconds=3.0,
    )


def test_a_step_tells_its_stage_and_its_terms() -> None:
    run = bound(extraction(total=STEPS))
    stage = run.stages[0]
    optimizer = run.optimizer.build(run.student.module.parameters())
    with stepping(run, stage, optimizer) as stepper:
        outcome = stepper.step(0)
    found = step_record(stage, outcome, learning_rate=0.5, usage=Usage(steps=1))
    assert (found.stage, found.learning_rate, found.usage.steps) == ("layer 1", 0.5, 1)
    assert list(found.terms) == [stage.plan.taps]
    assert found.loss == outcome.loss.item()


def test_a_run_is_opened_with_what_it_is() -> None:
    run = bound(one_shot(total=STEPS, name="mine"))
    found = run_record(run, "accuracy", "parity", "digest")
    assert (found.method, found.metric, found.task, found.run) == (
        "mine",
        "accuracy",
        "parity",
        "digest",
    )
    # 6 inputs, layers of 16 and 12, 2 classes, each with its bias.
    assert found.teacher_parameters == 7 * 16 + 17 * 12 + 13 * 2
    assert found.device == "cpu float32"


def test_a_run_without_teacher_counts_none() -> None:
    run = bound(from_labels(total=STEPS))
    assert run_record(run, "accuracy", "parity", "").teacher_parameters == 0


@pytest.mark.parametrize("per_record", [1, 2])
def test_batches_of_unequal_length_are_spent_as_they_are(per_record: int) -> None:
    ids = [torch.zeros(4, length).long() for length in (2, 6, 4)]
    run = texts(
        one_shot(total="3 steps"),
        stream=Listed(*[Batch(inputs=one, length=one.shape[1]) for one in ids]),
    )
    (stage,), before = run.stages, Usage()
    for step in range(3):
        run.stream.batch(step)
        if step % per_record == 0:
            usage = usage_after(run, before, stage, done=step + 1, seconds=0.0)
    assert (usage.tokens, usage.examples) == (8 + 24 + 16, 12)
    # The layers of these models cost the same at every position: 6 times the first batch's.
    assert usage.student_flops == 6 * stage.plan.student_flops
    assert usage.teacher_flops == 6 * stage.plan.teacher_flops


def test_a_student_in_a_classroom_spends_what_it_would_alone() -> None:
    ids = [torch.zeros(4, length).long() for length in (2, 6)]
    run = texts(
        one_shot(total="2 steps"),
        stream=Listed(*[Batch(inputs=one, length=one.shape[1]) for one in ids]),
    )
    seats = [SharedRun(run=run, evaluate=lambda _: {"accuracy": 0.0}, outputs=Outputs())]
    (end,) = execute_shared(seats, metric="accuracy")
    assert end.usage.tokens == 8 + 24
