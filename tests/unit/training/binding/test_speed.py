"""What cannot be made fast in the way that is asked for is refused before a run begins."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from curricle import seeding
from curricle.curriculum.durations import UntilPlateau
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import one_shot
from curricle.data.dataloaders import stream
from curricle.errors import BindError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.logits import MatchLogits
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.speed import check_speed
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from tests.parts import bound, drawn, mlp


def evaluate(_: TappedModel) -> dict[str, float]:
    return {"accuracy": 0.5}


def test_a_loader_with_workers_takes_no_prefetch() -> None:
    data = TensorDataset(drawn(16, 6), torch.arange(16) % 2)
    run = bound(
        one_shot(total="2 steps"),
        stream=stream(DataLoader(data, batch_size=8, num_workers=1)),
        settings={"prefetch": "batch"},
    )
    with pytest.raises(BindError, match=r"^'prefetch=batch' cannot .* a loader with 'num_work"):
        check_speed(run)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []

    def compiler(function: Callable[..., object]) -> Callable[..., object]:
        found.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    return found


def quick(teacher: TappedModel, compile_: str = "teacher") -> BoundRun:
    return bound(
        one_shot(total="2 steps"),
        teacher=LiveTeacher(teacher),
        settings={"compile": compile_},
    )


def test_the_blocks_of_a_teacher_are_compiled_if_the_settings_say_so(
    compiled: list[object],
) -> None:
    execute(quick(mlp(16, 12)), evaluate, metric="accuracy", outputs=Outputs())
    assert len(compiled) == 2


def test_without_a_compiler_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    run, outputs = quick(mlp(16)), Outputs(folder=tmp_path / "run")
    with pytest.raises(BindError, match=r"^'compile' must be 'none' on a machine without"):
        execute(run, evaluate, metric="accuracy", outputs=outputs)
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_blocks_has_nothing_to_compile(compiled: list[object]) -> None:
    with seeding.scoped(0, "model"):
        run = quick(tapped(nn.Linear(6, 2)))
    with pytest.raises(BindError, match=r"^'compile=teacher' cannot be used with a teacher"):
        execute(run, evaluate, metric="accuracy", outputs=Outputs())
    assert not compiled


@pytest.mark.parametrize(
    ("window", "settings", "rule"),
    [
        (
            3,
            {"compiled_steps": 4},
            r"^'compiled_steps' must not exceed the 3 steps of .*; got 4$",
        ),
        (1, {"prefetch": "batch"}, r"^'prefetch=batch' cannot be .* 'window' of 1 step: "),
    ],
)
def test_steps_are_compiled_and_prefetched_within_a_window_only(
    window: int, settings: dict[str, object], rule: str
) -> None:
    duration = UntilPlateau(at_most="20 steps", window=window, patience=1)
    stage = Stage(name="logits", duration=duration, objectives=(MatchLogits(),))
    run = bound(Curriculum(name="x", stages=(stage,)), settings=settings)
    with pytest.raises(BindError, match=rule):
        check_speed(run)
