"""Captured targets of models and data of the caller, and shares that workers make."""

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from curricle import distill
from curricle.curriculum.strategies import extraction, one_shot
from curricle.errors import BindError, CheckpointError
from curricle.runs import target_capture
from curricle.runs.target_capture import Progress, capture_shares, capture_targets
from curricle.runs.workers import Work
from curricle.teachers.store.codecs import Exact
from curricle.teachers.stored import open_targets
from curricle.training.loop.evaluation import label_metrics
from curricle.training.setup.settings import TrainingSettings
from curricle.training.targets.capture import TargetCompression
from curricle.training.targets.capture_shares import Share
from tests.parts import mlp, parity

CPU = TrainingSettings(device="cpu", eval_every=4)
CURRICULUM = extraction(total="12 steps")


def distilled(teacher: Any) -> torch.nn.Module:
    result = distill(
        mlp(5, seed=3),
        teacher,
        CURRICULUM,
        parity(),
        evaluation=label_metrics([parity(purpose="evaluation").batch(0)]),
        settings=CPU,
    )
    return result.student


def test_a_model_stores_no_targets_for_itself(tmp_path: Path) -> None:
    model = mlp(5)
    with pytest.raises(BindError, match=r"^'student' and 'teacher' must be different modules"):
        capture_targets(model, model, one_shot(total="4 steps"), parity(), folder=tmp_path)


def test_captured_targets_replace_the_teacher(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    capture_targets(
        mlp(5),
        mlp(16, seed=1),
        CURRICULUM,
        parity(),
        folder=tmp_path / "store",
        compression=TargetCompression(hidden=Exact(), logits=Exact()),
        settings=CPU,
        watch=lambda done, total: progress.append((done, total)),
    )
    student, expected = distilled(open_targets(tmp_path / "store")), distilled(mlp(16, seed=1))
    assert progress[-1] == (12, 12)
    for parameter, of_expected in zip(student.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, of_expected)


def test_the_compression_is_a_value_of_curricle(tmp_path: Path) -> None:
    arguments: Any = {"folder": tmp_path, "compression": {"logits": {"kind": "bfloat16"}}}
    with pytest.raises(
        BindError, match=r"^'compression' must be curricle.TargetCompression.*got 'dict'$"
    ):
        # The shape checks of the tests would refuse it first.
        inspect.unwrap(capture_targets)(mlp(5), mlp(8), CURRICULUM, parity(), **arguments)


def test_a_cluster_must_be_a_value_of_curricle(tmp_path: Path) -> None:
    arguments: Any = {"folder": tmp_path, "on": "slurm"}
    with pytest.raises(BindError, match=r"^'on' must be 'ray', curricle.RayCluster\(...\) or None"):
        inspect.unwrap(capture_targets)(mlp(5), mlp(8), CURRICULUM, parity(), **arguments)


class Queue:
    """Workers that do each job when it is submitted, and keep its messages."""

    threads = 1

    def __init__(self, room: int) -> None:
        self.room = room
        self.messages: list[tuple[str, object]] = []

    def submit(self, work: Work[Any, Any], job: Any) -> Future[None]:
        work(job, lambda name, message: self.messages.append((name, message)))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def receive(self, seconds: float) -> tuple[str, object] | None:
        return self.messages.pop(0) if self.messages else None

    def loss(self, error: Exception) -> str:
        return ""

    def close(self) -> None:
        pass


def test_progress_is_the_mean_of_the_shares() -> None:
    def work(share: Share, watch: Callable[[str, Progress], None]) -> None:
        for done in (5, 10):
            watch(str(share), (done, 10))

    progress: list[tuple[int, int]] = []
    capture_shares(
        lambda _: work,
        100,
        new_workers=lambda: Queue(room=2),
        watch=lambda done, total: progress.append((done, total)),
        again="x",
    )
    assert progress == [(2, 10), (5, 10), (7, 10), (10, 10)]


def test_each_worker_makes_one_share() -> None:
    shares: list[str] = []

    def work(share: Share, watch: Callable[[str, Progress], None]) -> None:
        shares.append(str(share))

    for num_steps in (12, 2):
        capture_shares(
            lambda _: work, num_steps, new_workers=lambda: Queue(room=3), watch=None, again="x"
        )
    # Of two steps a third share would be empty.
    assert shares == ["0-of-3", "1-of-3", "2-of-3", "0-of-2", "1-of-2"]


def test_what_is_refused_leaves_no_workers_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Queue] = []
    monkeypatch.setattr(target_capture, "RayWorkers", lambda _: made.append(Queue(room=2)))
    call = partial(
        capture_targets, mlp(5), curriculum=CURRICULUM, data=parity(), folder=tmp_path, settings=CPU
    )
    call(teacher=mlp(16, seed=1))
    with pytest.raises(CheckpointError, match="must hold targets of this teacher"):
        call(teacher=mlp(16, seed=2), on="ray")
    assert made == []
