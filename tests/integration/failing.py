"""A run of two processes whose metric fails in one of them.

`python -m tests.integration.failing RANK FAILING PORT TIMEOUT PARALLEL` trains in one process. That
with the rank `FAILING` raises in its second evaluation, and with the word `waits` at the end of the
line it does not end before its standard input does. Each prints its error, and at its very end the
threads of gloo, without which a process cannot be aborted by one.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

import curricle
from tests.integration.processes import OPTIMIZER, TOTAL, Vectors, accuracy, network


def gloo_threads() -> list[str]:
    """Return the names of the threads of gloo, where the system lists them."""
    names = (task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]


def main() -> None:
    """Train in one process of a group that curricle makes.

    Raises:
        SystemExit: With 1 after an error.
    """
    rank, failing, port, timeout, parallel = sys.argv[1:6]
    group = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(group)
    # Called after the handlers that are registered later.
    atexit.register(lambda: sys.stdout.write(f"threads: {gloo_threads()}\n"))
    number = 0

    def metric(model: Any) -> dict[str, float]:
        nonlocal number
        number += 1
        if rank == failing and number == 2:
            raise ZeroDivisionError("of a user")
        return accuracy(model)

    try:
        curricle.distill(
            network(8, 1),
            None,
            curricle.from_labels(total=TOTAL),
            Vectors(),
            evaluation=metric,
            optimizer=OPTIMIZER,
            settings=curricle.TrainingSettings(
                parallel=parallel,  # type: ignore[arg-type] # a literal
                threads=1,
                eval_every=4,
                timeout=float(timeout),
            ),
            progress=False,
        )
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.stdout.flush()
        if rank == failing and sys.argv[6:] == ["waits"]:
            sys.stdin.read()
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
