"""A run with a second thread is the run without, and nothing is made that nobody may see yet."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import tests.parts
from curricle import seeding
from curricle.curriculum.strategies import extraction, one_shot
from curricle.data.batch import Batch
from curricle.data.dataloaders import stream
from curricle.errors import BindError
from curricle.models.wrapping import tapped
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.batches import RunBatches
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.prefetching import Prefetcher
from curricle.training.loop.run_outputs import Outputs
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import drawn, mlp, parity


class Made:
    """Makes numbers, and remembers where."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.threads: list[int] = []

    def __call__(self, step: int) -> int:
        self.steps.append(step)
        self.threads.append(threading.get_ident())
        if step == 13:
            raise ValueError("unlucky")
        return 10 * step


def test_the_next_is_made_in_another_thread_and_once() -> None:
    make = Made()
    with Prefetcher(make) as ahead:
        found = [ahead.take(step, ahead=step < 4) for step in range(6)]
    assert found == [0, 10, 20, 30, 40, 50]
    assert make.steps == [0, 1, 2, 3, 4, 5]
    here = threading.get_ident()
    assert [one == here for one in make.threads] == [True, False, False, False, False, True]


def test_another_step_than_the_next_is_made_when_it_is_asked_for() -> None:
    make = Made()
    with Prefetcher(make) as ahead:
        assert [ahead.take(step, ahead=True) for step in (3, 0, 1)] == [30, 0, 10]
    assert make.steps[:4] == [3, 4, 0, 1]


def test_an_error_is_that_of_the_step_that_needs_it() -> None:
    with Prefetcher(Made()) as ahead:
        assert ahead.take(12, ahead=True) == 120
        with pytest.raises(ValueError, match="unlucky"):
            ahead.take(13, ahead=True)


def test_the_thread_ends_with_the_block() -> None:
    before = threading.active_count()
    with Prefetcher(Made()) as ahead:
        ahead.take(0, ahead=True)
    assert threading.active_count() == before


class Watched:
    """The stream of `parity`; tells which thread reads a step."""

    def __init__(self) -> None:
        self._stream = parity()
        self.fingerprint = self._stream.fingerprint
        self.batch_size = self._stream.batch_size
        self.tokens_per_batch = self._stream.tokens_per_batch
        self.elsewhere: dict[int, bool] = {}

    def batch(self, step: int) -> Batch:
        self.elsewhere[step] = threading.current_thread() is not threading.main_thread()
        return self._stream.batch(step)


def run_of(**settings: Any) -> BoundRun:
    return tests.parts.bound(
        extraction(total="12 steps"),
        stream=Watched(),
        settings={"log_every": 6, "eval_every": 6, "save_every": 6, **settings},
    )


def finished(
    run: BoundRun, folder: Path | None = None, evaluate: Callable[..., Any] | None = None
) -> list[Tensor]:
    execute(
        run,
        evaluate or (lambda _: {"accuracy": 0.5}),
        metric="accuracy",
        outputs=Outputs(folder=folder),
        resume=folder is not None,
    )
    return [one.detach().clone() for one in run.student.module.parameters()]


def watched(run: BoundRun) -> Watched:
    """Return the stream below the checks of a run."""
    assert isinstance(run.stream, RunBatches)
    assert isinstance(run.stream.stream, Watched)
    return run.stream.stream


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("prefetch", ["batch", "targets"])
def test_a_run_is_bit_equal_to_one_without(
    prefetch: str, precision: str, accumulation: int
) -> None:
    settings = {"precision": precision, "gradient_accumulation_steps": accumulation}
    plain, ahead = run_of(**settings), run_of(prefetch=prefetch, **settings)
    assert all(map(torch.equal, finished(ahead), finished(plain)))
    assert sum(watched(ahead).elsewhere.values()) > 6


def test_nothing_is_made_ahead_of_records_evaluations_and_stages() -> None:
    run = run_of(prefetch="targets")
    finished(run)
    begins = {stage.span.start for stage in run.stages} | {0, 6}
    made = {step for step, elsewhere in watched(run).elsewhere.items() if not elsewhere}
    # The first batch was read while binding, too.
    assert made == begins


@pytest.mark.parametrize("prefetch", ["none", "batch", "targets"])
def test_the_teacher_is_asked_in_the_second_thread_if_its_targets_are_wanted(prefetch: str) -> None:
    run = run_of(prefetch=prefetch)
    assert isinstance(run.teacher, LiveTeacher)
    asked: list[bool] = []
    run.teacher.model.module.register_forward_pre_hook(
        lambda *_: asked.append(threading.current_thread() is not threading.main_thread())
    )
    finished(run)
    assert len(asked) == 12
    assert any(asked) == (prefetch == "targets")


def test_an_interrupted_run_ends_bit_equal(tmp_path: Path) -> None:
    whole = finished(run_of(prefetch="targets"))
    seen: list[int] = []

    def stop(_: object) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {"accuracy": 0.5}

    with pytest.raises(KeyboardInterrupt):
        finished(run_of(prefetch="targets"), tmp_path, stop)
    assert all(map(torch.equal, finished(run_of(prefetch="targets"), tmp_path), whole))


def test_a_student_that_draws_noise_draws_the_same() -> None:
    def noisy(prefetch: str) -> list[Tensor]:
        student = mlp(5, 4)
        student.module.register_forward_pre_hook(
            lambda _, args: (functional.dropout(args[0], 0.5),)
        )
        return finished(
            tests.parts.bound(
                extraction(total="12 steps"), student=student, settings={"prefetch": prefetch}
            )
        )

    assert all(map(torch.equal, noisy("targets"), noisy("none")))


DATA = TensorDataset(drawn(160, 6), torch.arange(160) % 2)


@pytest.mark.parametrize("prefetch", ["batch", "targets"])
def test_a_loader_and_a_student_that_draws_noise_share_no_random_numbers(prefetch: str) -> None:
    def noisy(chosen: str) -> list[Tensor]:
        loader = DataLoader(DATA, batch_size=8, shuffle=True)
        with seeding.scoped(0, "student"):
            student = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 2))
        return finished(
            tests.parts.bound(
                one_shot(total="60 steps"),
                student=tapped(student),
                stream=stream(loader),
                settings={"prefetch": chosen, "log_every": 60, "eval_every": 60},
            )
        )

    assert all(map(torch.equal, noisy(prefetch), noisy("none")))


class Repeated(nn.Module):
    """Uses one weight many times in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 2)

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(24):
            state = self.inner(state).tanh()
        found: Tensor = self.outer(state)
        return found


def test_the_casts_of_a_pass_of_the_student_are_left_alone() -> None:
    def run(prefetch: str) -> list[Tensor]:
        with seeding.scoped(0, "student"):
            student = tapped(Repeated())
        intervals = {"log_every": 100, "eval_every": 100}
        return finished(
            tests.parts.bound(
                one_shot(total="100 steps"),
                student=student,
                settings={"prefetch": prefetch, "precision": "bfloat16", **intervals},
            )
        )

    assert all(map(torch.equal, run("targets"), run("none")))


def test_students_of_one_teacher_take_no_prefetch() -> None:
    seat = SharedRun(run=run_of(prefetch="batch"), evaluate=lambda _: {}, outputs=Outputs())
    with pytest.raises(
        BindError, match=r"^'prefetch=batch' cannot .* with 'share_teacher': .*turns"
    ):
        execute_shared([seat], metric="accuracy")
