"""Labels in the place of the teacher: the price, the start, the labels, and what the plan says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curricle import seeding
from curricle.curriculum.automatic import auto
from curricle.curriculum.durations import Duration
from curricle.curriculum.initialization import AutoStart
from curricle.curriculum.stages import Curriculum, PricedLabels
from curricle.curriculum.strategies import from_labels
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.data.synthetic.parity import ParityStream
from curricle.models.mlp import MLP
from curricle.runs.budget import bind_within, budget_of
from curricle.runs.label_choice import with_choice
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings

INPUTS, BATCH = 8, 16


def flops(width: int, *, learns: bool) -> int:
    """Return FLOPs of a step of one hidden layer: a product of (m, k) and (k, n) takes 2mkn."""
    forward = 2 * BATCH * (INPUTS * width + width * 2)
    # Gradients of all weights, and of the inputs of the second map.
    backward = 2 * BATCH * (INPUTS * width + 2 * width * 2)
    return forward + backward * learns


STUDENT = flops(6, learns=True)
WIDE = (STUDENT + flops(60, learns=False)) / STUDENT
"""Price of a step with the teacher of width 60."""


def binder(width: int = 60, stream: Stream | None = None) -> Callable[[Curriculum], BoundRun]:
    """Return a function that binds curricula to a student of width 6."""

    def bound(curriculum: Curriculum) -> BoundRun:
        with seeding.scoped(0, "models"):
            student, teacher = MLP(INPUTS, (6,), 2), MLP(INPUTS, (width,), 2)
        return bind(
            curriculum,
            student=student.tapped(),
            teacher=LiveTeacher(teacher.tapped()),
            stream=stream or ParityStream(num_inputs=INPUTS, degree=2, batch_size=BATCH, seed=0),
            optimizer=SGD(learning_rate=0.1),
            settings=TrainingSettings(threads=1, eval_every=5),
            seed=0,
        )

    return bound


def chosen(
    bound: Callable[[Curriculum], BoundRun], *, flops: float | None = 1e6, **fields: Any
) -> Curriculum:
    """Return the curriculum of `auto` after the choice."""
    total = Duration(number=100)
    build = with_choice(lambda length: auto(total=length, **fields), bound, total, flops=flops)
    return build(total)


class Repeated:
    """Parity of as many examples as ten batches."""

    batch_size, tokens_per_batch, fingerprint = BATCH, BATCH, "repeated"
    examples_per_epoch = 10 * BATCH

    def batch(self, step: int) -> Batch:
        stream = ParityStream(num_inputs=INPUTS, degree=2, batch_size=BATCH, seed=0)
        return stream.batch(step % 10)


class Unlabeled:
    """The inputs of parity."""

    batch_size, tokens_per_batch, fingerprint = BATCH, BATCH, "unlabeled"

    def batch(self, step: int) -> Batch:
        stream = ParityStream(num_inputs=INPUTS, degree=2, batch_size=BATCH, seed=0)
        return replace(stream.batch(step), labels=None)


def test_from_twice_the_price_on_labels_follow_the_start() -> None:
    curriculum = chosen(binder())
    expected = from_labels(total="100 steps", init=AutoStart(), name="auto")
    assert replace(curriculum, note="") == expected
    assert curriculum.note == (
        f"labels: after the start they take the place of the teacher, since a step with it costs "
        f"{WIDE:.2g} steps from labels"
    )


@pytest.mark.parametrize(("surplus", "stages"), [(-0.01, ["labels"]), (0.01, ["layer 1"])])
def test_the_price_is_that_of_a_step_of_the_last_stage(surplus: float, stages: list[str]) -> None:
    curriculum = chosen(binder(), labels=PricedLabels(price=WIDE + surplus))
    assert [stage.name for stage in curriculum.stages][:1] == stages


def test_a_cheap_teacher_is_kept_with_its_price_as_the_reason() -> None:
    price = (STUDENT + flops(6, learns=False)) / STUDENT
    assert price < 2
    curriculum = chosen(binder(width=6))
    assert replace(curriculum, note="") == auto(total="100 steps", labels=None)
    assert curriculum.note == (
        f"labels: the teacher is kept, since a step with it costs {price:.2g} steps from labels, "
        f"fewer than 2"
    )


@pytest.mark.parametrize("init", [None, "principal"])
def test_a_teacher_whose_weights_do_not_fit_the_whole_student_is_kept(init: str | None) -> None:
    curriculum = chosen(binder(), init=init)
    assert curriculum.note == (
        "labels: the teacher is kept, since no start by least squares fits the whole student"
    )
    assert [stage.name for stage in curriculum.stages][-1] == "logits"


def test_data_without_labels_keep_the_teacher() -> None:
    curriculum = chosen(binder(stream=Unlabeled()))
    assert [stage.name for stage in curriculum.stages][-1] == "logits"
    assert curriculum.note.startswith("labels: the teacher is kept, since ")
    assert "labels" in curriculum.note.partition("since ")[2]


def test_labels_of_another_loss_keep_the_teacher() -> None:
    curriculum = chosen(binder(), labels=PricedLabels(loss="cosine"))
    assert [stage.name for stage in curriculum.stages][-1] == "logits"
    assert curriculum.note.startswith("labels: the teacher is kept, since ")


def test_none_keeps_the_teacher_without_a_note() -> None:
    assert chosen(binder(), labels=None) == auto(total="100 steps", labels=None)


def test_data_that_labels_would_repeat_too_often_keep_the_teacher() -> None:
    bound = binder(stream=Repeated())
    # Ten steps are an epoch.
    assert chosen(bound, flops=160 * STUDENT).stages[-1].name == "labels"
    curriculum = chosen(bound, flops=200 * STUDENT)
    assert curriculum.stages[-1].name == "logits"
    assert curriculum.note == (
        "labels: the teacher is kept, since the budget pays for 20 epochs of labels, more than 16"
    )
    often = PricedLabels(epochs=20)
    assert chosen(bound, flops=200 * STUDENT, labels=often).stages[-1].name == "labels"


def test_seconds_give_no_number_of_epochs() -> None:
    assert chosen(binder(), flops=None).stages[-1].name == "labels"
    assert chosen(binder(stream=Repeated()), flops=None).note == (
        "labels: the teacher is kept, since a budget of seconds does not give the number of epochs "
        "of the data"
    )


def within(limit: str, **fields: Any) -> BoundRun:
    return bind_within(
        budget_of(limit), lambda total: auto(total=total, **fields), binder(), name="auto"
    )


def test_flops_pay_for_steps_from_labels_after_the_start() -> None:
    budget = 2000 * STUDENT
    run = within(f"{budget} flops")
    start, stage = run.plans
    spent = stage.steps * (stage.student_flops + stage.teacher_flops)
    assert (stage.student_flops, stage.teacher_flops) == (STUDENT, 0)
    assert start.student_flops + start.teacher_flops + spent <= budget
    assert stage.steps > 1.5 * within(f"{budget} flops", labels=None).num_steps
    assert any(note.startswith("labels: after the start") for note in run.notes)


def test_at_equal_steps_the_teacher_is_kept() -> None:
    run = within("100 steps")
    assert run.stages[-1].declared.name == "logits"
    assert not any(note.startswith("labels:") for note in run.notes)


class CutError(Exception):
    """Ends a run from outside."""


def test_a_run_from_labels_that_is_killed_goes_on_bit_equal(tmp_path: Path) -> None:
    def run(folder: Path, *, resume: bool = False, stops: bool = False) -> BoundRun:
        def observe(record: object) -> None:
            if stops and getattr(record, "kind", "") == "evaluation":
                raise CutError

        bound_run = within(f"{640 * STUDENT} flops")
        bound_run = replace(bound_run, settings=replace(bound_run.settings, save_every=3))
        outputs = Outputs(folder=folder, observers=(observe,))
        execute(bound_run, lambda _: {"x": 0.0}, metric="x", outputs=outputs, resume=resume)
        return bound_run

    whole = run(tmp_path / "whole")
    with pytest.raises(CutError):
        run(tmp_path / "cut", stops=True)
    resumed = run(tmp_path / "cut", resume=True)
    for weight, expected in zip(
        resumed.student.module.parameters(), whole.student.module.parameters(), strict=True
    ):
        assert torch.equal(weight, expected)
