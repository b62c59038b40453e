"""Placement of student and teacher by their sizes: whole in each process, or in shares.

Units: bytes.

Design: the estimate counts the memory that grows with the weights. Activations grow with the batch
and the stage, so only a part of the memory is taken for weights; a run that is close to the limit
states its placement.
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
the student whole, and that the weights of a whole teacher may take."""


def settings_by_size(
    settings: TrainingSettings,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: Optimizer,
    *,
    has_start: bool = False,
) -> TrainingSettings:
    """Return settings in which `parallel` is no longer `auto`; others as they are.

    Settings that `fsdp2` excludes, as `compile: student`, take `ddp` at any size, with a warning;
    those that it excludes for the teacher keep that whole, likewise.

    Args:
        settings: The settings.
        student: The model that learns.
        teacher: The model that teaches; None without weights.
        optimizer: How the weights are updated.
        has_start: Whether a start reads the teacher's weights, which keeps it whole.
    """
    if settings.parallel != "auto":
        return settings
    taught = 0 if teacher is None else sum(weight.nbytes for weight in teacher.parameters())
    # Both are agreed on, in the same order in each process.
    is_large = _chosen(training_bytes(student, optimizer) + taught, settings.placement)
    is_teacher_large = _chosen(taught, settings.placement)
    if not is_large:
        return replace(settings, parallel="ddp")
    try:
        divided = replace(settings, parallel="fsdp2")
    except SpecError as error:
        LOGGER.warning("'parallel: auto' takes 'ddp' for a student of this size: %s", error)
        return replace(settings, parallel="ddp")
    if not is_teacher_large or has_start:
        return divided
    try:
        return replace(divided, teacher_parallel="fsdp2")
    except SpecError as error:
        LOGGER.warning("'parallel: auto' keeps a teacher of this size whole: %s", error)
        return divided


def training_bytes(student: nn.Module, optimizer: Optimizer) -> int:
    """Return the bytes of weights, and of gradients and moments of those that are trained."""
    return sum(
        weight.nbytes * (2 + optimizer.moments if weight.requires_grad else 1)
        for weight in student.parameters()
    )


def _chosen(needed: int, placement: Placement) -> bool:
    """Return whether a model is divided, the same in all processes."""
    memory = placement.memory_bytes
    is_large = memory is not None and needed > LARGEST_SHARE * memory
    # Devices may differ: if it is too large for one of them it is divided.
    return placement.num_processes > 1 and placement.agreed(int(is_large)) == 1
