"""Runs of two processes, one of which was given something else.

`python -m tests.integration.unlike RANK PORT` trains in one process of a group that curricle makes,
and prints a line of JSON for each run: its name and its error or, of a run that is trained, the
step of its best weights and the sum of them. The metric of the last one fails in process 1.
"""

import json
import os
import sys
import tempfile
from typing import Any

import curricle
from tests.integration.processes import Vectors, accuracy, network

RANK, PORT = sys.argv[1:3]
IS_SECOND = RANK == "1"


class Shifted(Vectors):
    """Vectors of later steps."""

    def batch(self, step: int) -> curricle.Batch:
        return super().batch(step + 1000)


def run(parallel: str = "ddp", **changes: Any) -> str:
    """Return the end of a run."""
    student = changes.pop("student", network(8, 1))
    eval_every = changes.pop("eval_every", 4)
    arguments: dict[str, Any] = {
        "teacher": network(16, 0),
        "data": Vectors(),
        "curriculum": curricle.one_shot(total="8 steps"),
        "evaluation": accuracy,
        "optimizer": curricle.SGD(learning_rate=0.1),
        "settings": curricle.TrainingSettings(
            parallel=parallel,  # type: ignore[arg-type] # a literal
            threads=1,
            eval_every=eval_every,
            timeout=20.0,
            keep_best=True,
        ),
        "progress": False,
    }
    try:
        result = curricle.distill(student, **(arguments | changes))
    except (curricle.errors.CurricleError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"
    total = sum(float(weight.detach().sum()) for weight in student.parameters())
    return f"step {result.best_step}: {total!r}"


def noisy(_model: Any) -> dict[str, float]:
    """Return another metric in each process, whose best evaluations are at different steps."""
    noisy_calls.append(1)
    return {"accuracy": 0.5 + (0.1 if IS_SECOND else -0.1) * len(noisy_calls)}


def failing(model: Any) -> dict[str, float]:
    """Return the accuracy, but fail in the second process.

    Raises:
        ZeroDivisionError: In that process.
    """
    if IS_SECOND:
        raise ZeroDivisionError("of a user")
    return accuracy(model)


noisy_calls: list[int] = []


def main() -> None:
    """Train in one process."""
    group = {"RANK": RANK, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    os.environ.update(group)
    changes: dict[str, dict[str, Any]] = {
        "alike": {},
        "teacher": {"teacher": network(16, int(RANK))},
        "student": {"student": network(8 + int(RANK), 1)},
        "weights of the student": {"student": network(8, 1 + int(RANK))},
        "batch": {"data": Shifted() if IS_SECOND else Vectors()},
        "data": {"data": Vectors(fingerprint=f"vectors {RANK}")},
        "optimizer": {"optimizer": curricle.SGD(learning_rate=0.1 + 0.1 * int(RANK))},
        "interval": {"eval_every": 4 - int(RANK)},
        "folder": {"output_dir": None if IS_SECOND else tempfile.mkdtemp()},
        "held-out data": {"evaluation": [Vectors().batch(50 + int(RANK))]},
        "length": {"curriculum": curricle.one_shot(total=f"{8 + int(RANK)} steps")},
        "metric": {"evaluation": noisy},
        "failure": {"evaluation": failing, "parallel": "fsdp2"},
    }
    for name, change in changes.items():
        sys.stdout.write(f"{json.dumps([name, run(**change)])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
