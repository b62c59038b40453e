"""Models that a run cannot take are refused with what is wrong and what to do."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from curricle import seeding
from curricle.curriculum.strategies import extraction, one_shot
from curricle.errors import BindError
from curricle.models.eligibility import check_present, check_trainable, weight_notes
from curricle.models.wrapping import tapped
from curricle.training.setup.optimizers import SGD, AdamW
from tests.parts import bound


def linear(**options: Any) -> nn.Linear:
    with seeding.scoped(0, "model"):
        return nn.Linear(6, 2, **options)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return linear()


class Wide(nn.Module):
    """Has a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 2, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.complex64) @ self.weight).abs()


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            lambda: nn.Sequential(nn.LazyLinear(2)),
            "'0.weight' gets its shape from the first forward",
        ),
        (lambda: linear(device="meta"), "'weight' is a meta tensor"),
        (made_in_inference_mode, "'weight' was made inside; build it outside"),
        (
            lambda: linear().half(),
            "'weight' is float16; pass student.float\\(\\), and TrainingSettings",
        ),
        (lambda: linear().bfloat16(), "'weight' is bfloat16; pass student.float\\(\\)"),
    ],
    ids=["lazy", "meta", "inference", "float16", "bfloat16"],
)
def test_a_student_whose_weights_cannot_be_trained_is_refused(
    module: Callable[[], nn.Module], sentence: str
) -> None:
    with warnings.catch_warnings(action="ignore"):
        student = tapped(module())
    with pytest.raises(BindError, match=sentence):
        bound(one_shot(total="1 steps"), student=student)


@pytest.mark.parametrize(
    "module", [lambda: nn.LazyLinear(2), lambda: linear(device="meta")], ids=["lazy", "meta"]
)
def test_a_teacher_without_weights_is_refused(module: Callable[[], nn.Module]) -> None:
    with warnings.catch_warnings(action="ignore"):
        teacher = module()
    with pytest.raises(BindError, match="'teacher' must have weights"):
        check_present(teacher, "teacher")


def test_a_frozen_base_in_low_precision_may_have_trained_weights_in_float32() -> None:
    with seeding.scoped(0, "model"):
        student = nn.Sequential(linear().bfloat16().requires_grad_(False), nn.Linear(2, 2))
    check_trainable(student)
    notes = list(weight_notes(student))
    assert notes == [
        "14 of the student's 20 parameters are frozen (requires_grad is off) and stay as they are",
        "frozen parameters of the student are bfloat16",
    ]


def test_a_student_in_float64_is_noted() -> None:
    assert list(weight_notes(linear().double())) == [
        "the student is float64; student.float() makes it float32, which is faster"
    ]


def test_a_plain_student_needs_no_note() -> None:
    assert not list(weight_notes(linear()))


def test_complex_weights_are_trained_by_sgd_and_refused_by_adamw() -> None:
    curriculum = one_shot(total="1 steps")
    student = tapped(Wide())
    bound(curriculum, student=student, optimizer=SGD(learning_rate=0.1))
    with pytest.raises(BindError, match=r"'weight' is complex64; keep torch.view_as_real of it"):
        bound(curriculum, student=student, optimizer=AdamW(learning_rate=0.1))


def test_hidden_states_of_a_scripted_student_are_refused() -> None:
    with warnings.catch_warnings(action="ignore"), seeding.scoped(0, "model"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    student = tapped(scripted, blocks=["0"])
    with pytest.raises(
        BindError, match=r"must be a module in Python .*pass the module before scripting"
    ):
        bound(extraction(total="4 steps", pairs=1), student=student)
    bound(one_shot(total="1 steps"), student=student)


class DistributedDataParallel(nn.Module):
    """Looks like torch's, which cannot be built without a process group."""

    __module__ = "torch.nn.parallel.distributed"


def test_a_wrapper_for_several_processes_is_refused() -> None:
    rule = r"^'student' must not be wrapped for several processes, since a run divides its work "
    remedy = r"with TrainingSettings\(parallel='ddp'\)$"
    with pytest.raises(BindError, match=rf"{rule}.*; pass student\.inner\.module, {remedy}"):
        check_present(nn.ModuleDict({"inner": DistributedDataParallel()}), "student")
    with pytest.raises(BindError, match=rf"; pass student\.module, {remedy}"):
        check_present(DistributedDataParallel(), "student")


class Checkpointed(nn.Module):
    """Recomputes its middle in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self._reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        state = checkpoint(self.middle, self.first(inputs), use_reentrant=self._reentrant)
        logits: Tensor = self.last(state)
        return logits


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "frozen front"])
def test_reentrant_checkpoints_are_refused(frozen: bool) -> None:
    with seeding.scoped(0, "model"):
        student = Checkpointed(reentrant=True)
    student.first.requires_grad_(not frozen)
    with pytest.raises(BindError, match="'use_reentrant' True; set it to False"):
        bound(one_shot(total="1 steps"), student=tapped(student))


def test_other_checkpoints_work() -> None:
    with seeding.scoped(0, "model"):
        student = Checkpointed(reentrant=False)
    assert bound(one_shot(total="1 steps"), student=tapped(student)).stages[0].trained
