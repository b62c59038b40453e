"""Rounding in which a student of several processes differs from that of one, in float32.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/process_rounding.py --steps 1000 10000 --nproc 2

The same spec, extraction on (30,3)-parity, is run three times: in one process, in several with the
teacher of the first run, and in several with a teacher that several processes have trained, too.
Printed are the largest difference of a weight from that of the first run, the largest weight, and
the metrics.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

SPEC = """
seed: 0
task: {{kind: parity, num_inputs: 30, degree: 3, batch_size: 64}}
teacher:
  model: {{kind: mlp, widths: [256]}}
  total: 100k examples
student: {{kind: mlp, widths: [64]}}
curriculum:
  kind: extraction
  pairs: [{{student: 1, teacher: 1}}]
  durations: ["{layer} steps"]
budget: {steps} steps
optimizer: {{kind: sgd, learning_rate: 0.3}}
engine: {{eval_every: {steps}, log_every: {steps}, threads: 1}}
"""
LAYER_SHARE = 4
"""Part of the steps in the layer stage, as its reciprocal."""


def run(spec: Path, folder: Path, nproc: int, teacher: Path | None = None) -> Path:
    """Distill in a number of processes, with the finished teacher of another run if one is given.

    Args:
        spec: File of the spec.
        folder: Run folder.
        nproc: Number of processes.
        teacher: Folder of the other run.

    Returns:
        The run folder.
    """
    if teacher is not None:
        # The file of its lock belongs to the other run.
        ignored = shutil.ignore_patterns(".lock")
        shutil.copytree(teacher / "teacher", folder / "teacher", ignore=ignored)
    command = [sys.executable, "-m", "curricle", "distill", str(spec)]
    command += ["--set", f"output_dir={folder}"]
    command += ["--nproc", str(nproc)] if nproc > 1 else []
    subprocess.run(command, check=True, capture_output=True)
    return folder


def metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the last record of a run."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    last: dict[str, float] = next(
        record["metrics"] for record in reversed(records) if record.get("metrics")
    )
    return last


def main() -> None:
    """Print the differences for each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps")
    arguments = parser.parse_args()
    for steps in [20] if arguments.quick else arguments.steps:
        with TemporaryDirectory() as place:
            root = Path(place)
            spec = root / "spec.yaml"
            spec.write_text(SPEC.format(steps=steps, layer=steps // LAYER_SHARE), encoding="utf-8")
            single_run = run(spec, root / "one", 1)
            divided_runs = {
                "same teacher": run(spec, root / "same", arguments.nproc, single_run),
                "teacher in several": run(spec, root / "several", arguments.nproc),
            }
            first = load_file(single_run / "model.safetensors")
            largest = max(float(weight.abs().max()) for weight in first.values())
            print(f"{steps} steps: largest weight {largest:.3g}, {metrics(single_run)}")
            for name, folder in divided_runs.items():
                weights = load_file(folder / "model.safetensors")
                difference = max(
                    float((weight - weights[path]).abs().max()) for path, weight in first.items()
                )
                print(f"  {name}: largest difference {difference:.2g}, {metrics(folder)}")


if __name__ == "__main__":
    main()
