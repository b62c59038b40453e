"""Time of steps with a checkpoint, written within the step or in the background.

Student: a fully connected network of three layers of 4,096 (50 million parameters) on sparse parity
from labels, batch 16, AdamW, float32, one torch thread; a checkpoint (600 MB) after every 20th
step. Times are those of the wall clock between the records of two steps. Runs without checkpoints,
with saves within the step and with saves in the background take turns; the table is printed after
each turn.
Run: python benchmarks/async_saving.py [--quick] [--folder FOLDER] [--device cuda]
"""

import argparse
import platform
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import curricle
from curricle.data.synthetic.parity import ParityStream
from curricle.models.mlp import MLP
from curricle.records import Record, StepRecord

INPUTS, EVERY = 64, 20
WAYS: dict[str, dict[str, Any]] = {
    "no checkpoints": {},
    "within the step": {"save_every": EVERY},
    "in the background": {"save_every": EVERY, "async_save": True},
}


def main() -> None:
    """Print a table after each turn of the ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small student, few steps")
    parser.add_argument("--folder", help="folder of the runs; by default one for temporary files")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    width, saves, repetitions = (256, 2, 1) if arguments.quick else (4096, 2, 3)
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {name}, layers of {width}")
    gaps: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for repetition in range(1, repetitions + 1):
        for name, settings in WAYS.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                run_settings = {"device": arguments.device, **settings}
                gaps[name].append(step_times(width, saves, Path(folder) / "run", run_settings))
        print(f"medians of {repetition} of {repetitions} runs")
        print_table(gaps)


def print_table(gaps: dict[str, list[list[float]]]) -> None:
    """Print a row for each way.

    Args:
        gaps: Seconds between the records of each run by way.
    """
    print(f"{'':20}{'s, step':>10}{'s, with a save':>16}{'s, whole run':>14}")
    for name, runs in gaps.items():
        # The record of a step precedes its checkpoint, so the save is in the time of the next one.
        saved = [gap for run in runs for gap in run[EVERY - 1 :: EVERY]]
        plain = [gap for run in runs for index, gap in enumerate(run, 1) if index % EVERY]
        total = statistics.median(map(sum, runs))
        medians = statistics.median(plain), statistics.median(saved)
        print(f"{name:20}{medians[0]:10.3f}{medians[1]:16.3f}{total:14.1f}", flush=True)


def step_times(width: int, saves: int, folder: Path, settings: dict[str, Any]) -> list[float]:
    """Return the seconds between the records of steps, the end of the run included.

    Args:
        width: Width of the layers.
        saves: Number of checkpoints.
        folder: The run folder.
        settings: Settings of the engine.
    """
    times: list[float] = []

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord):
            times.append(time.perf_counter())

    stream = ParityStream(num_inputs=INPUTS, degree=2, batch_size=16, seed=0)
    steps = saves * EVERY + EVERY // 2
    curricle.distill(
        MLP(INPUTS, (width,) * 4, 2),
        None,
        curricle.from_labels(total=f"{steps} steps"),
        stream,
        evaluation=[stream.batch(steps)],
        optimizer=curricle.AdamW(learning_rate=1e-5),
        settings=curricle.TrainingSettings(log_every=1, eval_every=steps, threads=1, **settings),
        output_dir=folder,
        observers=[observe],
        progress=False,
    )
    # The last step, and the end of the run, which waits for the last checkpoint.
    times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]


if __name__ == "__main__":
    main()
