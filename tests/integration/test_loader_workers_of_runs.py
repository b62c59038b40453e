"""No worker process of a loader outlives the call that reads it."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.loader_workers import end_workers_of
from curricle.records import Record, StepRecord
from curricle.training.loop.staged import staged_loss
from curricle.training.setup.settings import TrainingSettings
from tests.parts import drawn, worker_processes

pytestmark = pytest.mark.integration

INPUTS = drawn(64, 6)
LABELS = (INPUTS[:, 0] > 0).long()
EXAMPLES = TensorDataset(INPUTS, LABELS)
HELD_OUT = [Batch(inputs=INPUTS, labels=LABELS)]
STEPS = 12


class InOrder(IterableDataset[Any]):
    """The examples, one after another."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(INPUTS, LABELS, strict=True))


def loader(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or EXAMPLES, batch_size=8, num_workers=1, **options)


def network(seed: int = 0) -> nn.Module:
    with seeding.scoped(seed, "network"):
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def one_shot() -> curricle.Curriculum:
    return curricle.one_shot(total=f"{STEPS} steps")


def distilled(data: Any, **options: Any) -> curricle.Result:
    arguments: dict[str, Any] = {"evaluation": HELD_OUT} | options
    return curricle.distill(network(), network(1), one_shot(), data, **arguments)


def compared(*, share_teacher: bool) -> None:
    curricle.compare(
        network,
        network(1),
        loader(),
        evaluation=loader(),
        budget=f"{STEPS} steps",
        strategies={"one": {"kind": "one_shot"}, "labels": {"kind": "from_labels"}},
        seeds=(0, 1),
        share_teacher=share_teacher,
        progress=False,
    )


def staged() -> None:
    with staged_loss(network(), network(1), one_shot(), loader()) as loss:
        for _ in range(3):
            loss(loss.next_batch()).backward()
            loss.advance()


CALLS: dict[str, Callable[[Path], object]] = {
    "distill": lambda folder: distilled(loader(), output_dir=folder),
    "distill with held-out data of a loader": lambda _: distilled(loader(), evaluation=loader()),
    "distill with an iterable data set": lambda _: distilled(loader(InOrder())),
    "distill with persistent workers": lambda _: distilled(loader(persistent_workers=True)),
    "compare": lambda _: compared(share_teacher=False),
    "compare with a shared teacher": lambda _: compared(share_teacher=True),
    "teach": lambda folder: curricle.teach(
        network(), loader(), total="12 steps", evaluation=HELD_OUT, output_dir=folder, checkpoints=2
    ),
    "capture_targets": lambda folder: curricle.capture_targets(
        network(), network(1), one_shot(), loader(), folder=folder
    ),
    "staged_loss": lambda _: staged(),
}


class Started(NamedTuple):
    """Iterator over a loader, which a reference keeps from ending its workers by itself."""

    iterator: Iterator[Any]
    workers: set[int | None]
    """Processes that ran when it had been made, beyond those before the test."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """Return the iterators over loaders that the test makes."""
    before, made = worker_processes(), list[Started]()
    make: Callable[[DataLoader[Any]], Iterator[Any]] = DataLoader.__iter__

    def kept(source: DataLoader[Any]) -> Iterator[Any]:
        iterator = make(source)
        made.append(Started(iterator, worker_processes() - before))
        return iterator

    monkeypatch.setattr(DataLoader, "__iter__", kept)
    return made


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_no_worker_even_if_iterators_are_kept(
    name: str, started: list[Started], tmp_path: Path
) -> None:
    before = worker_processes()
    CALLS[name](tmp_path / "run")
    assert any(workers for _, workers in started)
    assert not worker_processes() - before


def test_the_workers_of_an_evaluation_end_with_its_pass(started: list[Started]) -> None:
    before = worker_processes()
    curricle.evaluate(network(), loader())
    assert [len(workers) for _, workers in started] == [1]
    assert not worker_processes() - before


def test_a_plan_starts_no_worker(started: list[Started]) -> None:
    curricle.plan(network(), network(1), one_shot(), loader())
    assert not any(workers for _, workers in started)


def test_a_stream_that_outlives_its_run_leaves_no_worker() -> None:
    before, data = worker_processes(), curricle.stream(loader())
    distilled(data)
    assert not worker_processes() - before
    assert data.batch_size == 8


def test_workers_read_while_a_run_goes_on() -> None:
    before = worker_processes()
    numbers: list[int] = []
    distilled(
        loader(),
        observers=[lambda _: numbers.append(len(worker_processes() - before))],
        settings=TrainingSettings(log_every=2),
    )
    assert max(numbers) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("data", [None, InOrder()], ids=["indexes", "iterable"])
def test_an_error_in_a_run_leaves_no_worker_while_its_traceback_is_kept(
    error: type[BaseException], data: Any
) -> None:
    before = worker_processes()
    numbers: list[int] = []

    def fail(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps >= 4:
            numbers.append(len(worker_processes() - before))
            raise error("observer")

    with pytest.raises(error) as raised:
        distilled(loader(data), observers=[fail], settings=TrainingSettings(log_every=2))
    assert numbers == [1]
    assert not worker_processes() - before
    del raised


def test_an_error_of_held_out_data_leaves_no_worker() -> None:
    before = worker_processes()

    def collate(_: Sequence[object]) -> Tensor:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged") as raised:
        distilled(loader(), evaluation=loader(collate_fn=collate))
    assert not worker_processes() - before
    del raised


def test_an_iterable_loader_keeps_its_persistent_workers_for_the_next_run() -> None:
    before, data = worker_processes(), loader(InOrder(), persistent_workers=True)
    numbers = list[int]()
    for _ in range(2):
        distilled(data)
        numbers.append(len(worker_processes() - before))
    assert numbers == [1, 1]
    end_workers_of(data._iterator)


SCRIPT = """
import gc
from tests.integration.test_loader_workers_of_runs import compared, distilled, loader

results = [distilled(loader(), progress=False) for _ in range(2)]
compared(share_teacher=False)
gc.collect()
"""


def test_a_script_with_several_runs_ends_without_a_word_of_workers() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True
    )
    # The notes of the runs are lines of their own.
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("curricle: ")]
    assert lines == []
