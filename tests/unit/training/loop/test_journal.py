"""A journal writes what it is told, and restores student, optimizer and timeline together."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

from curricle.curriculum.durations import UntilPlateau
from curricle.curriculum.strategies import extraction
from curricle.errors import CheckpointError
from curricle.records import EndRecord, Record, RunRecord, StageRecord, Usage, read_records
from curricle.training.binding.timeline import Timeline
from curricle.training.loop.journal import Journal
from curricle.training.loop.recording import run_record
from curricle.training.loop.recovery import Recovery
from curricle.training.loop.resuming import RunFolder
from curricle.training.setup.settings import TrainingSettings
from tests.parts import bound, mlp

RULE = UntilPlateau(at_most="20 steps", window=2, patience=1)
RUN = bound(extraction(total="30 steps", durations=(RULE,)))
FACTS = {"data": "of the test"}


def files(folder: Path) -> RunFolder:
    return RunFolder(
        records=folder / "records.jsonl",
        checkpoints=folder / "checkpoints",
        weights=folder / "model.safetensors",
    )


def opening(journal: Journal) -> RunRecord:
    return run_record(RUN, "accuracy", "parity", journal.digest)


class Desk:
    """Student, optimizer, timeline and journal of one run."""

    def __init__(self, folder: Path | None, data: str = "of the test") -> None:
        self.seen: list[Record] = []
        self.student: nn.Module = mlp(3).module
        self.optimizer = torch.optim.AdamW(self.student.parameters())
        self.timeline = Timeline([stage.span for stage in RUN.stages])
        self.journal = Journal(
            None if folder is None else files(folder),
            self.student,
            self.timeline,
            observers=[self.seen.append],
            facts=FACTS | {"data": data},
            recovery=Recovery(TrainingSettings()),
        )

    def open(self, stack: ExitStack, *, resume: bool = False) -> EndRecord | None:
        lock = stack.enter_context(ExitStack())
        stack.callback(self.journal.close)
        first = opening(self.journal)
        end = self.journal.open(first, resume=resume, lock=lock)
        if end is None:
            self.journal.restore(self.student, self.optimizer)
        return end

    def step(self) -> None:
        torch.stack(
            [weight.square().sum() for weight in self.student.parameters()]
        ).sum().backward()
        self.optimizer.step()

    def save(self, steps: int) -> None:
        self.journal.save(Usage(steps=steps), self.optimizer, adapters=nn.ModuleList())


def test_without_a_folder_observers_alone_are_told() -> None:
    desk = Desk(None)
    with ExitStack() as stack:
        assert desk.open(stack) is None
        desk.journal.write(StageRecord(stage="layer 1", usage=Usage()))
        desk.save(3)
    assert [record.kind for record in desk.seen] == ["run", "stage"]


def test_a_checkpoint_restores_student_optimizer_and_timeline(tmp_path: Path) -> None:
    first, second = Desk(tmp_path), Desk(tmp_path)
    with ExitStack() as stack:
        first.open(stack)
        first.step()
        first.timeline.close(6, "plateau")
        first.save(8)
        first.journal.write(StageRecord(stage="later", usage=Usage(steps=9)))
    with ExitStack() as stack:
        assert second.open(stack, resume=True) is None
        assert second.journal.usage.steps == 8
    assert second.timeline.ends == first.timeline.ends
    for weight, other in zip(second.student.parameters(), first.student.parameters(), strict=True):
        assert torch.equal(weight, other)
        restored, kept = second.optimizer.state[weight], first.optimizer.state[other]
        assert torch.equal(restored["exp_avg"], kept["exp_avg"])
    # What came after the checkpoint is written anew.
    assert [record.kind for record in read_records(tmp_path / "records.jsonl")] == ["run"]


def test_a_finished_run_gives_its_end(tmp_path: Path) -> None:
    first, second = Desk(tmp_path), Desk(tmp_path)
    with ExitStack() as stack:
        first.open(stack)
        first.step()
        weights = files(tmp_path).save_student(first.student)
        end = EndRecord(metrics={"accuracy": 0.5}, usage=Usage(steps=30), weights=weights)
        first.journal.finish(end)
    with ExitStack() as stack:
        assert second.open(stack, resume=True) == end
    assert [record.kind for record in second.seen] == ["run", "end"]
    assert all(
        torch.equal(weight, other)
        for weight, other in zip(
            second.student.parameters(), first.student.parameters(), strict=True
        )
    )


def test_a_run_of_other_facts_is_refused_with_what_has_changed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        Desk(tmp_path).open(stack)
    with ExitStack() as stack, pytest.raises(CheckpointError, match=r": the data differ$"):
        Desk(tmp_path, "of another").open(stack, resume=True)
