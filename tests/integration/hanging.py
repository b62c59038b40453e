"""A run of four processes in two replicas, one of which hangs in a step.

`python -m tests.integration.hanging RANK PORT` trains in one process and prints its error. The last
process waits for the end of its standard input.
"""

import os
import sys

import curricle
from tests.integration.processes import OPTIMIZER, TOTAL, Vectors, accuracy, network

RANK, PORT = sys.argv[1:3]
NUMBER = 4


def before(step: int) -> None:
    """Wait in the last process, before its sixth step."""
    if step == 5 and int(RANK) == NUMBER - 1:
        sys.stdin.read()
        os._exit(0)


def main() -> None:
    """Train in one process."""
    os.environ.update(RANK=RANK, WORLD_SIZE=str(NUMBER), MASTER_ADDR="127.0.0.1", MASTER_PORT=PORT)
    try:
        curricle.distill(
            network(8, 1),
            network(16, 0),
            curricle.one_shot(total=TOTAL),
            Vectors(before=before),
            evaluation=accuracy,
            optimizer=OPTIMIZER,
            settings=curricle.TrainingSettings(
                parallel="fsdp2", replicas=2, threads=1, timeout=5.0
            ),
            progress=False,
        )
    except curricle.errors.CurricleError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
