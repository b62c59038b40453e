"""Resident memory of a long run, which must not grow with the number of steps.

    OMP_NUM_THREADS=1 python -m tests.soak.memory --steps 100000

A tiny run with a layer stage and a logit stage evaluates, records and saves checkpoints at
intervals, and keeps its best weights. Its resident memory is read at every tenth of its length; the
first tenth is left out, in which allocators and caches fill.
"""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from curricle import seeding
from curricle.curriculum.strategies import extraction
from curricle.data.synthetic.parity import ParityStream
from curricle.models.mlp import MLP
from curricle.records import Record, StepRecord
from curricle.training.distill import distill
from curricle.training.setup.settings import TrainingSettings
from tests.soak.trials import markdown

INPUTS = 8
MOST_GROWTH = 4 << 20
"""Bytes by which memory may move after the first tenth: less than one batch of each ten steps."""


def resident() -> int:
    """Return the bytes of memory that the process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("'/proc/self/status' must have the resident memory; it does not")


def measured(steps: int, folder: Path) -> list[tuple[int, int]]:
    """Return the memory after each tenth of a run, with its step."""
    shutil.rmtree(folder, ignore_errors=True)
    samples: list[tuple[int, int]] = []

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps % (steps // 10) == 0:
            samples.append((record.usage.steps, resident()))

    def network(*widths: int) -> torch.nn.Module:
        with seeding.scoped(0, "model"):
            return MLP(INPUTS, widths, 2)

    def stream(seed: int) -> ParityStream:
        return ParityStream(num_inputs=INPUTS, degree=2, batch_size=16, seed=seed, purpose="soak")

    distill(
        network(8, 8),
        network(16, 16),
        extraction(total=f"{steps} steps"),
        stream(0),
        evaluation=[stream(1).batch(0)],
        settings=TrainingSettings(
            device="cpu",
            log_every=steps // 1000,
            eval_every=steps // 100,
            save_every=steps // 50,
            keep_best=True,
        ),
        output_dir=folder,
        observers=[observe],
        progress=False,
    )
    return samples


def main(
    steps: Annotated[int, typer.Option(min=1000, help="Length of the run.")] = 100_000,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/soak/memory"),
) -> None:
    """Measure the memory of a long run."""
    samples = measured(steps, output)
    typer.echo(markdown(["step", "MiB"], [(step, f"{size / 2**20:.1f}") for step, size in samples]))
    sizes = [size for _, size in samples]
    growth = max(sizes) - sizes[0]
    typer.echo(f"\nlargest growth after the first tenth: {growth / 2**20:.2f} MiB")
    raise typer.Exit(growth > MOST_GROWTH)


if __name__ == "__main__":
    typer.run(main)
