"""Placement by size: bytes of training, the limit, agreement of processes."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from curricle import seeding
from curricle.training.setup.optimizers import SGD, AdamW
from curricle.training.setup.placement import HOST, SingleDevice
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.sizing import settings_by_size, training_bytes

AUTO = TrainingSettings(parallel="auto", device="cpu")
ADAMW = AdamW(learning_rate=0.1)


@pytest.fixture
def student() -> nn.Module:
    """Return a map with 110 weights in float32, of which 10 are frozen."""
    with seeding.scoped(0, "test"):
        module = nn.Linear(10, 10)
    module.bias.requires_grad = False
    return module


def test_trained_weights_count_with_gradients_and_moments(student: nn.Module) -> None:
    assert training_bytes(student, SGD(learning_rate=0.1)) == 4 * (100 * 2 + 10)
    assert training_bytes(student, ADAMW) == 4 * (100 * 4 + 10)


@pytest.mark.parametrize(
    # 1,640 bytes of the student, and 440 of the teacher.
    ("memory", "parallel"),
    [(4159, "fsdp2"), (4160, "ddp"), (None, "ddp")],
)
def test_a_student_is_divided_if_training_takes_more_than_half_of_the_memory(
    student: nn.Module, memory: int | None, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SingleDevice, "memory_bytes", memory)
    monkeypatch.setattr(SingleDevice, "num_processes", 2)
    with seeding.scoped(0, "test"):
        teacher = nn.Linear(10, 10)
    assert settings_by_size(AUTO, student, teacher, ADAMW).parallel == parallel


def test_it_is_divided_if_one_process_has_too_little(
    student: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SingleDevice, "num_processes", 2)
    monkeypatch.setattr(SingleDevice, "agreed", lambda _self, _number: 1)
    assert settings_by_size(AUTO, student, None, ADAMW).parallel == "fsdp2"


def test_one_process_divides_nothing(student: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SingleDevice, "memory_bytes", 1)
    assert settings_by_size(AUTO, student, None, ADAMW).parallel == "ddp"


def test_a_compiled_student_is_not_divided_at_any_size(
    student: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SingleDevice, "memory_bytes", 1)
    monkeypatch.setattr(SingleDevice, "num_processes", 2)
    settings = TrainingSettings(parallel="auto", device="cpu", compile="student")
    with caplog.at_level("WARNING", logger="curricle"):
        assert settings_by_size(settings, student, None, ADAMW).parallel == "ddp"
    assert "'parallel: auto' takes 'ddp'" in caplog.text
    assert "'parallel=fsdp2' cannot be used with 'compile=student'" in caplog.text


def test_stated_placements_stay(student: nn.Module) -> None:
    settings = TrainingSettings(parallel="ddp")
    assert settings_by_size(settings, student, None, ADAMW) is settings


def test_processes_of_a_machine_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curricle.training.setup.placement.memory_limit", lambda: 1000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert HOST.memory_bytes == 250
    monkeypatch.setattr("curricle.training.setup.placement.memory_limit", lambda: None)
    assert HOST.memory_bytes is None


@pytest.mark.parametrize(
    # 440 bytes of the teacher; the student is divided in all cases.
    ("memory", "changes", "has_start", "teacher_parallel"),
    [
        (879, {}, False, "fsdp2"),
        (880, {}, False, "whole"),
        (879, {}, True, "whole"),
        (879, {"compile": "teacher"}, False, "whole"),
    ],
)
def test_a_teacher_is_divided_if_it_takes_more_than_half_of_the_memory(
    student: nn.Module,
    memory: int,
    changes: dict[str, Any],
    *,
    has_start: bool,
    teacher_parallel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SingleDevice, "memory_bytes", memory)
    monkeypatch.setattr(SingleDevice, "num_processes", 2)
    with seeding.scoped(0, "test"):
        teacher = nn.Linear(10, 10)
    chosen = settings_by_size(
        replace(AUTO, **changes), student, teacher, ADAMW, has_start=has_start
    )
    assert (chosen.parallel, chosen.teacher_parallel) == ("fsdp2", teacher_parallel)
