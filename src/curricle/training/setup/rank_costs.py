"""Memory and communication of one process of a group, from the sizes of its models.

Every process holds both models whole (`ddp`), or its share of each of the student's weights
(`fsdp2`), which is gathered unit by unit: each block is a unit, and the rest of the model, the
root, is another.

| bytes that a collective passes to the group in a step | `ddp` | `fsdp2` |
|---|---|---|
| all-reduce, once | gradients of trained weights | with replicas: shares of these gradients |
| all-gather, each micro-batch | none | the root, and units of the forward and the backward pass |
| reduce-scatter, once | none | gradients of trained weights |

The root stays gathered from the forward to the backward pass. The backward pass gathers a unit
before it needs it, so also the frozen one right below the lowest trained one. In all micro-batches
but the last, gradients are added up whole. A ring of N processes sends (N - 1) / N of these bytes
from each process, twice as much for an all-reduce. Replicas are groups of processes that each hold
the student once: weights are gathered within a group, and gradients added up over groups.

A shared teacher has units as the student, each gathered once a pass. Its root is freed after the
pass, so a head that is read in chunks is copied.

Design: FSDP2 divides each weight along its first axis into equal shares, the last one padded.
Weights are gathered in the precision in which they are kept. A unit that the forward pass does not
reach is never gathered, so early stages move less.

Units: bytes.

References:
    Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 7 (volumes of communication).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

Parallel = Literal["none", "ddp", "fsdp2"]
"""Processes of a run: one, copies of both models, shares of the weights."""
PREFETCHED_UNITS = 2
"""Units of FSDP2 in memory beside the root: that which runs and the next."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter."""

    shape: tuple[int, ...]
    """Its shape."""
    item_bytes: int
    """Bytes of a number."""
    trained: bool = False
    """Whether the stage trains it."""
    has_state: bool = False
    """Whether the optimizer has state of it, also from an earlier stage."""

    def whole(self, num_processes: int = 1) -> int:
        """Return the bytes of the shares of all processes, padding included."""
        return self.share(num_processes) * num_processes

    def share(self, num_processes: int) -> int:
        """Return the bytes of one process's share."""
        first, *rest = self.shape or (1,)
        return math.ceil(first / num_processes) * math.prod(rest) * self.item_bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Weights that FSDP2 gathers together: those of a block, or of the root."""

    weights: tuple[Weight, ...]
    """The weights."""
    in_forward: bool = True
    """Whether the forward pass reaches it."""
    in_backward: bool = False
    """Whether the backward pass comes through it."""

    def whole(self, num_processes: int, *, trained: bool = False) -> int:
        """Return the bytes of the gathered weights, or of the trained ones alone."""
        weights = (weight for weight in self.weights if weight.trained or not trained)
        return sum(weight.whole(num_processes) for weight in weights)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageSizes:
    """Sizes of a stage's models and of its passes."""

    student: tuple[Unit, ...]
    """Units of the student, the root first, then blocks in the order of the forward pass."""
    teacher: tuple[Unit, ...]
    """Units of the teacher, the root first; none if no model teaches."""
    teacher_copies: int = 0
    """Bytes of weights that the teacher keeps in lower precision beside its own, if it is whole."""
    teacher_head: int = 0
    """Bytes of the teacher's head where it is read in chunks; a shared teacher copies it."""
    moments: int
    """Numbers of optimizer state a weight."""
    micro_batches: int = 1
    """Parts of a batch that are computed one after the other."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Memory of the passes of one micro-batch in one process."""

    activations: int
    """Bytes that are kept from the forward to the backward pass, logits excepted."""
    logits: int
    """Bytes of logits, and of the loss between them."""
    student_flops: int = 0
    """FLOPs of the student's forward and backward pass."""
    teacher_flops: int = 0
    """FLOPs of the teacher's pass."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankCosts:
    """Memory of one process, and its communication in a step."""

    parallel: Parallel
    """How processes divide the work."""
    replicas: int = 1
    """Groups of processes that each hold the student once, of `fsdp2`."""
    is_teacher_shared: bool
    """Whether each process holds a share of the teacher, not all of it."""
    parameters: int
    """Bytes of the student's weights, as they are kept."""
    gradients: int
    """Bytes of gradients; with `ddp` also of the buckets in which they travel."""
    optimizer: int
    """Bytes of optimizer state."""
    gathered: int
    """Bytes of gathered weights and of gradients before they are divided, of `fsdp2`: those of a
    unit, with several micro-batches those of all units."""
    teacher: int
    """Bytes of the teacher's weights, and of gathered ones."""
    activations: int
    """Bytes that are kept from the forward to the backward pass; an estimate."""
    logits: int
    """Bytes of logits and of their loss; an estimate."""
    all_reduced: int = 0
    """Bytes that all-reduces of a step pass to the group."""
    all_gathered: int = 0
    """Bytes of the gathered weights of a step."""
    reduce_scattered: int = 0
    """Bytes that reduce-scatters of a step take in."""
    num_all_gathers: int = 0
    """All-gathers of a step."""
    num_reduce_scatters: int = 0
    """Reduce-scatters of a step."""
    sent: int = 0
    """Bytes that one process sends in a step, by rings."""

    @property
    def memory(self) -> int:
        """Return the bytes of one process."""
        state = self.parameters + self.gradients + self.optimizer + self.gathered
        return state + self.teacher + self.activations + self.logits


def rank_costs(
    sizes: StageSizes,
    passes: Passes,
    *,
    parallel: Parallel,
    num_processes: int,
    replicas: int = 1,
    is_teacher_shared: bool = False,
) -> RankCosts:
    """Return memory and communication of one process.

    Args:
        sizes: Sizes of the models.
        passes: Memory of the passes of this process.
        parallel: How processes divide the work.
        num_processes: Their number; without effect for `none`.
        replicas: Number of groups that each hold the student once, of `fsdp2`; must divide the
            number of processes.
        is_teacher_shared: Whether `fsdp2` divides the teacher as well, within each group.
    """
    if parallel == "fsdp2":
        return _fully_sharded(
            sizes, passes, num_processes // replicas, replicas, is_teacher_shared=is_teacher_shared
        )
    trained = sum(weight.whole() for weight in _weights(sizes.student) if weight.trained)
    is_divided = parallel == "ddp"
    return RankCosts(
        parallel=parallel,
        is_teacher_shared=False,
        parameters=sum(weight.whole() for weight in _weights(sizes.student)),
        gradients=(1 + is_divided) * trained,
        optimizer=sizes.moments
        * sum(weight.whole() for weight in _weights(sizes.student) if weight.has_state),
        gathered=0,
        teacher=_whole_teacher(sizes),
        activations=passes.activations,
        logits=passes.logits,
        all_reduced=trained * is_divided,
        sent=2 * _ring(trained, num_processes) if is_divided else 0,
    )


def _fully_sharded(
    sizes: StageSizes, passes: Passes, num_shares: int, replicas: int, *, is_teacher_shared: bool
) -> RankCosts:
    weights, micro_batches = list(_weights(sizes.student)), sizes.micro_batches
    forward = [unit for unit in sizes.student if unit.in_forward and unit.weights]
    teacher_units = [unit for unit in sizes.teacher if unit.in_forward] if is_teacher_shared else []
    gathers = micro_batches * [
        unit.whole(num_shares)
        for unit in (*forward, *_gathered_backward(sizes.student), *teacher_units)
    ]
    reduced = [
        unit.whole(num_shares, trained=True)
        for unit in sizes.student
        if unit.in_backward and unit.whole(1, trained=True)
    ]
    gradients = sum(weight.share(num_shares) for weight in weights if weight.trained)
    all_reduced = gradients if replicas > 1 else 0
    # Gradients are whole until the reduce-scatter of their unit, in the last micro-batch.
    whole_gradients = max(reduced, default=0) if micro_batches == 1 else sum(reduced)
    return RankCosts(
        parallel="fsdp2",
        replicas=replicas,
        is_teacher_shared=is_teacher_shared,
        parameters=sum(weight.share(num_shares) for weight in weights),
        gradients=gradients,
        optimizer=sizes.moments
        * sum(weight.share(num_shares) for weight in weights if weight.has_state),
        gathered=_held(sizes.student, num_shares) + whole_gradients,
        teacher=sum(weight.share(num_shares) for weight in _weights(sizes.teacher))
        + _held(sizes.teacher, num_shares)
        + sizes.teacher_head
        if is_teacher_shared
        else _whole_teacher(sizes),
        activations=passes.activations,
        logits=passes.logits,
        all_reduced=all_reduced,
        all_gathered=sum(gathers),
        reduce_scattered=sum(reduced),
        num_all_gathers=len(gathers),
        num_reduce_scatters=len(reduced),
        sent=_ring(sum(gathers) + sum(reduced), num_shares) + 2 * _ring(all_reduced, replicas),
    )


def _gathered_backward(student: tuple[Unit, ...]) -> list[Unit]:
    """Return the units that a backward pass gathers, without the root, which is still gathered."""
    blocks = [unit for unit in student[1:] if unit.in_forward and unit.weights]
    if not any(unit.in_backward for unit in student):
        return []
    lowest = next((number for number, unit in enumerate(blocks) if unit.in_backward), len(blocks))
    # FSDP2 gathers the unit before that which runs, whether the pass will come to it or not.
    return blocks[max(lowest - 1, 0) :]


def _weights(units: Iterable[Unit]) -> Iterator[Weight]:
    return (weight for unit in units for weight in unit.weights)


def _whole_teacher(sizes: StageSizes) -> int:
    return sum(weight.whole() for weight in _weights(sizes.teacher)) + sizes.teacher_copies


def _held(units: tuple[Unit, ...], num_processes: int) -> int:
    """Return the bytes of gathered weights that are in memory together; the root comes first."""
    sizes = [unit.whole(num_processes) for unit in units if unit.in_forward]
    return sum(sizes[:1]) + sum(sorted(sizes[1:], reverse=True)[:PREFETCHED_UNITS])


def _ring(num_bytes: int, num_processes: int) -> int:
    """Return the bytes that each process of a ring sends to pass bytes once to all."""
    return num_bytes * (num_processes - 1) // num_processes
