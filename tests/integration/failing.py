"""A run of two processes whose metric fails in one of them.

`python -m tests.integration.failing RANK FAILING PORT TIMEOUT` trains in one process. That with the
rank `FAILING` raises in its second evaluation, and with the word `waits` after the timeout it does
not end before its standard input does. Each prints its error, and at its very end whether there
still is a group.
"""

import atexit
import os
import sys
from typing import Any

from torch import distributed

import curricle
from tests.integration.processes import OPTIMIZER, TOTAL, Vectors, accuracy, network


def main() -> None:
    """Train in one process of a group that curricle makes.

    Raises:
        SystemExit: With 1 after an error.
    """
    rank, failing, port, timeout = sys.argv[1:5]
    group = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(group)
    # Called after the handlers that are registered later.
    atexit.register(lambda: sys.stdout.write(f"group: {distributed.is_initialized()}\n"))
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
                parallel="ddp", threads=1, eval_every=4, timeout=float(timeout)
            ),
            progress=False,
        )
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.stdout.flush()
        if rank == failing and sys.argv[5:] == ["waits"]:
            sys.stdin.read()
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
