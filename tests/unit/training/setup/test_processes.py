"""Placements of several processes that are refused.

Runs of several processes are in `tests/integration/test_processes.py`.
"""

import pytest

from curricle.errors import SpecError
from curricle.training.setup.settings import TrainingSettings


def test_replicas_without_shares_are_refused() -> None:
    message = r"'replicas' has no effect with parallel='ddp', .*; choose 'fsdp2', .*got 2"
    with pytest.raises(SpecError, match=message):
        TrainingSettings(parallel="ddp", replicas=2)
