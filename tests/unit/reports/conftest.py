"""Synthetic runs, so plain that every expected number can be computed by hand.

One step reads 10 examples and takes 100 FLOPs of the student, 300 of the teacher and half a second.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest

from curricle.records import (
    EndReason,
    EndRecord,
    EvaluationRecord,
    RecordWriter,
    RunRecord,
    StageEndRecord,
    StagePlan,
    StageRecord,
    StepRecord,
    Usage,
)

WriteRun = Callable[..., Path]


def usage(step: int) -> Usage:
    """Return what has been consumed by a step."""
    return Usage(
        steps=step,
        examples=10 * step,
        tokens=10 * step,
        student_flops=100 * step,
        teacher_flops=300 * step,
        seconds=0.5 * step,
    )


def plan(name: str, steps: int, *, reads_logits: bool = True, until: str = "") -> StagePlan:
    """Return a stage that costs what the synthetic runs write."""
    return StagePlan(
        name=name,
        teacher="final",
        taps="1 <- 2",
        objective="1 hidden",
        projection="gaussian 8 x 32",
        widths="8 <- 32",
        steps=steps,
        student_flops=100,
        teacher_flops=300,
        trained_parameters=64,
        memory_bytes=2_500_000,
        reads_logits=reads_logits,
        until=until,
    )


def loss(stage: str, step: int) -> StepRecord:
    """Return a training loss that falls as one over the step."""
    return StepRecord(
        stage=stage,
        loss=1 / step,
        terms={"hidden": 1 / step},
        learning_rate=0.1,
        usage=usage(step),
    )


@pytest.fixture
def write_run() -> WriteRun:
    """Return a function that writes the records of a run of two stages, by default equal.

    With a `rule`, a number of steps and a reason, the first stage was planned so long and ended so.
    """

    def write(
        folder: Path,
        measured: Mapping[int, float],
        *,
        method: str = "extraction",
        seed: int = 0,
        metric: str = "accuracy",
        finished: bool = True,
        task: str = "parity",
        every: int = 1,
        planned: int | None = None,
        first: int | None = None,
        rule: tuple[int, EndReason] | None = None,
        notes: tuple[str, ...] = (),
        begins_with_layers: bool = False,
        better: Literal["higher", "lower"] | None = None,
        teacher_parameters: int = 1024,
        chance: float | None = None,
        skipped_steps: int = 0,
        roll_backs: int = 0,
    ) -> Path:
        last = max(measured)
        half = first or last // 2
        rest = (planned or last) - half
        writer = RecordWriter(folder / "records.jsonl")
        writer.write(
            RunRecord(
                method=method,
                seed=seed,
                task=task,
                metric=metric,
                better=better,
                batch_size=10,
                stages=(
                    plan(
                        "first",
                        half if rule is None else rule[0],
                        reads_logits=not begins_with_layers,
                        until="" if rule is None else "plateau of the loss",
                    ),
                    plan("second", rest),
                ),
                student_parameters=64,
                teacher_parameters=teacher_parameters,
                chance=chance,
                versions={"curricle": "0.1.0", "torch": "2.13.0"},
                device="cpu float32",
                notes=notes,
            )
        )
        writer.write(StageRecord(stage="first", usage=Usage()))
        for step in range(1, last + 1):
            stage = "first" if step <= half else "second"
            if step == half + 1:
                writer.write(StageRecord(stage="second", usage=usage(half)))
            if step % every == 0:
                writer.write(loss(stage, step))
            if step in measured:
                metrics = {metric: measured[step]}
                writer.write(EvaluationRecord(stage=stage, metrics=metrics, usage=usage(step)))
            if rule is not None and step == half:
                most, why = rule
                writer.write(
                    StageEndRecord(stage=stage, planned=most, done=half, why=why, usage=usage(half))
                )
        if finished:
            writer.write(
                EndRecord(
                    metrics={metric: measured[last]},
                    usage=usage(last),
                    skipped_steps=skipped_steps,
                    roll_backs=roll_backs,
                )
            )
        writer.close()
        return folder

    return write


@pytest.fixture
def comparison(tmp_path: Path, write_run: WriteRun) -> Path:
    """Return a comparison: extraction gets to 0.9 after 40, 60, 80 steps, one_shot never."""
    folder = tmp_path / "demo"
    for seed, reached in enumerate((40, 60, 80)):
        measured = {20: 0.5, reached: 0.92, 100: 0.95 + 0.01 * seed}
        write_run(folder / f"students/extraction/seed-{seed}", measured, seed=seed, every=20)
    for seed in range(2):
        measured = {20: 0.5, 300: 0.6 + 0.1 * seed}
        path = folder / f"students/one_shot/seed-{seed}"
        write_run(path, measured, method="one_shot", seed=seed, every=20)
    write_run(folder / "teacher", {10: 0.5, 200: 0.99}, method="from_labels", every=20)
    return folder
