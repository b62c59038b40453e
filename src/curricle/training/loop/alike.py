"""Check that all processes of a run were given the same models, data and settings.

Each process builds its own. A teacher or a batch that differs in one of them would be trained on
without an error, since gradients are added up whatever they are gradients of.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from curricle.data.batch import Batch
from curricle.data.batch_tensors import named_tensors, tensors_digest
from curricle.errors import BindError
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.facts import changed_facts
from curricle.training.loop.evaluation import Evaluator, held_out_batches
from curricle.values import plain

OF_A_PROCESS = ("threads", "timeout")
"""Settings that may differ between processes."""
DIFFERENCE = "{path} is {now}, in process 0 {then}"


def check_alike(run: BoundRun, evaluate: Evaluator, facts: Mapping[str, object]) -> None:
    """Check that all processes were given the same run.

    Settings, the first batch and held-out batches are compared besides the facts.

    Args:
        run: The run.
        evaluate: Its evaluation.
        facts: Facts on which the result depends, and arguments of the call.

    Raises:
        BindError: If something differs; a process and its differences are named.
    """
    placement = run.settings.placement
    if placement.num_processes == 1:
        return
    settings = plain(run.settings).items()
    held_out = held_out_batches(evaluate)
    compared = {
        **{name: str(fact) if isinstance(fact, Path) else fact for name, fact in facts.items()},
        "engine": {name: setting for name, setting in settings if name not in OF_A_PROCESS},
        "batch": batch_digest(run.stream.batch(0)),
        "held_out": [len(held_out), *map(batch_digest, (*held_out[:1], *held_out[-1:]))],
    }
    compare(placement.gathered([compared]))


def compare(facts: Sequence[Mapping[str, object]]) -> None:
    """Check that facts are the same in all processes.

    Args:
        facts: Plain data of each process, by its rank.

    Raises:
        BindError: If they differ; a process and its differences are named.
    """
    first, *others = facts
    for rank, facts_of_process in enumerate(others, start=1):
        if differences := changed_facts(first, facts_of_process, DIFFERENCE):
            raise BindError(
                f"'parallel' must divide one run among its processes; in process {rank}, counted "
                f"from 0, {'; '.join(differences)}; pass the same arguments to every process, with "
                f"models and data from one seed or one file"
            )


def batch_digest(batch: Batch) -> str:
    """Return the SHA-256 of the tensors of a batch, in hexadecimal.

    Args:
        batch: The batch.
    """
    # Sorted: the order of a mapping may differ between processes.
    return tensors_digest(sorted(named_tensors(batch).items()))
