"""Placement of a student by its size: whole in each process, or in shares.

Units: bytes.

Design: the estimate counts what grows with the weights. Activations grow with the batch and the
stage, so only a part of the memory is taken for weights; a run that is close to the limit states
its placement.
"""

import logging
from dataclasses import replace

from torch import nn

from curricle.errors import SpecError
from curricle.training.setup.optimizers import Optimizer
from curricle.training.setup.placement import Placement
from curricle.training.setup.settings import TrainingSettings

LOGGER = logging.getLogger(__name__)
LARGEST_SHARE = 0.5
"""Share of a process's memory that weights, gradients and moments may take where each process holds
the student whole."""


def settings_by_size(
    settings: TrainingSettings, student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer
) -> TrainingSettings:
    """Return settings in which `parallel` is no longer `auto`; others as they are.

    Settings that `fsdp2` excludes, as `compile: student`, take `ddp` at any size, with a warning.

    Args:
        settings: The settings.
        student: The model that learns.
        teacher: The model that teaches, which each process holds whole; None without weights.
        optimizer: How the weights are updated.
    """
    if settings.parallel != "auto":
        return settings
    needed = training_bytes(student, optimizer)
    needed += 0 if teacher is None else sum(weight.nbytes for weight in teacher.parameters())
    chosen = _chosen(needed, settings.placement)
    if chosen:
        try:
            return replace(settings, parallel="fsdp2")
        except SpecError as error:
            LOGGER.warning("'parallel: auto' takes 'ddp' for a student of this size: %s", error)
    return replace(settings, parallel="ddp")


def training_bytes(student: nn.Module, optimizer: Optimizer) -> int:
    """Return the bytes of weights, and of gradients and moments of those that are trained."""
    return sum(
        weight.nbytes * (2 + optimizer.moments if weight.requires_grad else 1)
        for weight in student.parameters()
    )


def _chosen(needed: int, placement: Placement) -> bool:
    """Return whether the student is divided, the same in all processes."""
    memory = placement.memory_bytes
    is_large = memory is not None and needed > LARGEST_SHARE * memory
    # Devices may differ: if it is too large for one of them it is divided.
    return placement.num_processes > 1 and placement.agreed(int(is_large)) == 1
