"""Check that all processes of a run were given the same models, data and settings.

Each process builds its own. A teacher or a batch that differs in one of them would be trained on
without an error, since gradients are added up whatever they are gradients of.
"""

import hashlib
from collections.abc import Mapping

import torch

from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.training.binding.facts import changed_facts
from curricle.training.loop.recovery import batch_tensors
from curricle.training.setup.placement import Placement


def check_alike(placement: Placement, facts: Mapping[str, object], batch: Batch) -> None:
    """Check that the facts of a run, and its first batch, are the same in all processes.

    Args:
        placement: Processes of the run.
        facts: Facts on which the result of the run depends.
        batch: The whole first batch.

    Raises:
        BindError: If they differ; a process and its differences are named.
    """
    if placement.num_processes == 1:
        return
    first, *others = placement.gathered([(dict(facts), batch_digest(batch))])
    for rank, (facts_of_process, digest) in enumerate(others, start=1):
        words = changed_facts(first[0], facts_of_process)
        if digest != first[1]:
            words.append("the batch of step 0 has other numbers")
        if words:
            raise BindError(
                f"'parallel' must divide one run among its processes; in process {rank}, counted "
                f"from 0, {'; '.join(words)}; build models and data alike in every process, from "
                f"one seed or one file"
            )


def batch_digest(batch: Batch) -> str:
    """Return the SHA-256 of the tensors of a batch, in hexadecimal.

    Args:
        batch: The batch.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(batch_tensors(batch).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
