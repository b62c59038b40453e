"""The loss of a stage: counts, targets without gradient, differentiable sums."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tests.parts
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.data.batch import Batch
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.loop.stage_loss import StepLoss, open_stage_loss
from tests.parts import mlp

HIDDEN = MatchHidden(pair=LayerPair(student=1, teacher=1), normalize="none", weight=0.5)


def bound(*objectives: Any, **settings: Any) -> BoundRun:
    stage = Stage(name="only", duration=Duration(number=4), objectives=objectives)
    return tests.parts.bound(
        Curriculum(name="x", stages=(stage,)),
        student=mlp(5, 4),
        teacher=LiveTeacher(mlp(16, 12, seed=1)),
        settings=settings,
    )


def test_sums_are_those_of_the_formulas_and_counts_their_positions() -> None:
    run = bound(MatchLogits(), LabelLoss(weight=2.0))
    batch = run.stream.batch(0)
    assert run.teacher is not None
    with open_stage_loss(run, run.stages[0]) as loss:
        divergence, entropy = loss.sums(batch, loss.targets(batch))
        assert loss.counts(batch) == [8, 8]
        assert loss.scales([8, 4]) == [1 / 8, 0.5]
    assert batch.labels is not None
    logits, wanted = run.student.module(batch.inputs), run.teacher.model.module(batch.inputs)
    expected = nn.functional.kl_div(
        logits.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True
    )
    torch.testing.assert_close(divergence, expected)
    torch.testing.assert_close(
        entropy, nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
    )
    assert divergence.requires_grad


def test_targets_have_no_gradient_and_those_without_a_teacher_are_none() -> None:
    run = bound(HIDDEN, LabelLoss())
    with open_stage_loss(run, run.stages[0]) as loss:
        hidden, labels = loss.targets(run.stream.batch(0))
    assert not hidden.requires_grad
    assert labels is None


def test_sums_of_micro_batches_add_up_to_that_of_the_batch() -> None:
    run = bound(HIDDEN, MatchLogits())
    batch = run.stream.batch(0)
    with open_stage_loss(run, run.stages[0]) as loss:
        whole = loss.sums(batch, loss.targets(batch))
        parts = [loss.sums(part, loss.targets(part)) for part in batch.split(4)]
    added = [torch.stack(sums).sum() for sums in zip(*parts, strict=True)]
    torch.testing.assert_close(added, whole)


def test_a_traced_pass_gives_the_same_sums() -> None:
    run = bound(HIDDEN, MatchLogits())
    batch = run.stream.batch(0)
    with open_stage_loss(run, run.stages[0]) as loss:
        targets = loss.targets(batch)
        eager, traced = (loss.sums(batch, targets, is_traced=choice) for choice in (False, True))
    assert all(torch.equal(*pair) for pair in zip(eager, traced, strict=True))


def test_targets_alone_leave_the_student_without_hooks() -> None:
    run = bound(HIDDEN)
    with open_stage_loss(run, run.stages[0], only_targets=True) as loss:
        assert not any(part._forward_hooks for part in run.student.module.modules())
        (target,) = loss.targets(run.stream.batch(0))
        assert target.shape == (8, 5)


def test_hooks_are_gone_when_it_closes() -> None:
    run = bound(HIDDEN)
    assert run.teacher is not None
    with open_stage_loss(run, run.stages[0]):
        assert any(part._forward_hooks for part in run.student.module.modules())
    for module in (run.student.module, run.teacher.model.module):
        assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(("center", "is_needed"), [(True, True), (False, False)])
def test_statistics_are_taken_only_if_an_objective_needs_them(
    center: bool, is_needed: bool
) -> None:
    run = bound(MatchHidden(pair=LayerPair(student=1, teacher=1), center=center))
    read: list[int] = []

    def batches() -> Iterator[Batch]:
        for step in range(3):
            read.append(step)
            yield run.stream.batch(step)

    with open_stage_loss(run, run.stages[0]) as loss:
        (before,) = loss.targets(run.stream.batch(0)) if not center else (None,)
        assert loss.calibrate(batches) is is_needed
        (after,) = loss.targets(run.stream.batch(0))
    assert read == ([0, 1, 2] if is_needed else [])
    assert before is None or torch.equal(before, after)


def test_the_loss_of_a_step_is_the_weighted_sum_of_means() -> None:
    loss = StepLoss([torch.tensor(8.0), torch.tensor(3.0)], [4, 3], [0.5, 2.0])
    assert [term.item() for term in loss.terms] == [2.0, 1.0]
    assert loss.loss.item() == 3.0
    assert loss.is_finite
    assert not StepLoss([torch.tensor(torch.inf)], [1], [1.0]).is_finite
