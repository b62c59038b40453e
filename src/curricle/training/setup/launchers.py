"""Place of this process in the group of a launcher, as environment variables describe it.

A launcher such as torchrun sets the variables before any process group exists. A variable of one of
these names in another form belongs to another program and counts as absent.

Design: without torch, so that the command line can read the rank before it loads anything.
"""

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables from which torch makes the group of processes."""


def num_processes() -> int:
    """Return the number of processes that a launcher has started; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process among those of its launcher; 0 without a launcher."""
    return _number("RANK", 0) if num_processes() > 1 else 0


def local_rank() -> int:
    """Return the number of this process on its machine, hence of its GPU."""
    return _number("LOCAL_RANK", 0)


def restarts() -> int:
    """Return how often torchrun has started the processes again, after some had ended or hung."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def holds_store() -> bool:
    """Return whether the first process holds the store of the group, not torchrun itself."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") != "True"


def absent_variables() -> list[str]:
    """Return the names of the variables that are not set."""
    return [name for name in VARIABLES if name not in os.environ]


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
