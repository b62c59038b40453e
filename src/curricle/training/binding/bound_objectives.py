"""Objectives of a stage, bound to their models, and the adapters that train beside the student.

A `Term` is a bound objective with its weight. If the objective owns an adapter, the term holds its
first values. `copy_trainable_terms` gives each stage copies to train, so that a stage always begins
with the same adapter weights, also after an interruption.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import nn

from curricle.curriculum.stages import TeacherReference
from curricle.objectives.adapters import adapter_of, methods_of
from curricle.objectives.base import BoundObjective, Objective, Reads, Sample
from curricle.teachers.stored import StoredTargets, StoredTeacher
from curricle.training.setup.optimizers import decay_groups


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One objective of a stage, bound."""

    weight: float
    """Factor in the stage's loss."""
    needs_teacher: bool
    """Whether it has a target from a teacher."""
    objective: BoundObjective
    """The bound objective."""
    stored: StoredTargets | None = None
    """Its stored targets; None runs the teacher, if it needs one."""

    @property
    def runs_teacher(self) -> bool:
        """Return whether a teacher has to run for its target."""
        return self.needs_teacher and self.stored is None


def bound_term(
    objective: Objective,
    reads: Reads,
    sample: Sample,
    *,
    residual: bool,
    source: tuple[StoredTeacher | None, TeacherReference, str],
) -> Term:
    """Return an objective bound to the activations of both models, and to stored targets if any.

    Args:
        objective: The objective.
        reads: Places that it reads.
        sample: Activations of both models.
        residual: Whether both are residual streams.
        source: The stored teacher, or None for one that runs, which of its checkpoints, and the
            digest of the stream.
    """
    # Bound first: the key of stored targets holds what binding has resolved, such as places and
    # projections.
    bound = objective.bind(reads, sample, is_residual=residual)
    teacher, reference, stream = source
    needs = objective.needs_teacher
    stored = teacher.serving(bound, reference, stream) if needs and teacher is not None else None
    return Term(weight=objective.weight, needs_teacher=needs, objective=bound, stored=stored)


def copy_trainable_terms(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return terms to train with: those that own an adapter are copies."""
    # The whole term is copied, so that inside of the copy the objective reads its own adapter.
    # Terms without one hold nothing that training changes, and may hold large projections.
    return tuple(
        term if adapter_of(term.objective) is None else copy.deepcopy(term) for term in terms
    )


def adapters_of(terms: Iterable[Term]) -> nn.ModuleList:
    """Return the adapters of some terms in order; empty if there are none."""
    adapters = [adapter_of(term.objective) for term in terms]
    return nn.ModuleList(adapter for adapter in adapters if adapter is not None)


def plan_columns(terms: Iterable[Term]) -> dict[str, str]:
    """Return the columns of `plan` for the objectives: taps, objective, projection, widths."""
    columns = [term.objective.describe() for term in terms]
    joined = [" + ".join(dict.fromkeys(words)) for words in zip(*columns, strict=True)]
    return dict(zip(("taps", "objective", "projection", "widths"), joined, strict=True))


@contextmanager
def adapters_in_optimizer(
    optimizer: torch.optim.Optimizer, adapters: nn.ModuleList, *, weight_decay: float
) -> Iterator[None]:
    """Add adapters to the student's optimizer, and notify them of its updates.

    At the end of the block they are removed from the optimizer, with their state.

    Args:
        optimizer: The student's.
        adapters: Modules that train beside the student; may be empty.
        weight_decay: Decay of their matrices.

    Yields:
        Nothing.
    """
    parameters = list(adapters.parameters())
    # Groups of the student stay first, so that cutting the list at this length takes the adapters
    # out again.
    before = len(optimizer.param_groups)
    # In the student's optimizer, so that learning rate and schedule hold for both; without adapters
    # not even an empty group, which would cost every step.
    for group in decay_groups(parameters, weight_decay) if parameters else []:
        optimizer.add_param_group(group)
    # Adapters count the updates themselves, in a buffer: a resumed stage goes on at the count that
    # its checkpoint holds.
    hooks = [
        optimizer.register_step_post_hook(partial(_call, advance))
        for advance in methods_of(adapters, "advance")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del optimizer.param_groups[before:]
        for parameter in parameters:
            # Left behind, moments of every stage would stay in memory until the end of the run.
            optimizer.state.pop(parameter, None)


def _call(follow: Callable[[], None], *_: object) -> None:
    follow()


def begin_adapters(adapters: nn.ModuleList) -> None:
    """Call the adapters that set something before the first step of their stage."""
    for adapter in adapters:
        begin: Callable[[], None] | None = getattr(adapter, "begin", None)
        if begin is not None:
            begin()


def update_flops(adapters: nn.ModuleList) -> int:
    """Return the FLOPs of adapters before and after an update of the weights."""
    return sum(getattr(adapter, "update_flops", 0) for adapter in adapters)
