"""Roles of the columns of a sublayer's maps, found by intervention.

The outputs of the maps that read a state are replaced by random numbers, a column at one position
is changed, and the change of the input of the map that writes is looked at:

- a change at other positions, linear in the column: a value of attention;
- a change at other positions, not linear: a key;
- at this position only, in several columns: a query; the columns are those of its head;
- at this position only, in a single column: a neuron of a feed-forward sublayer; linear in the
  column if it is multiplied by the activation of another one (a gated unit).

So fused maps, shared keys and values, and any order of heads need no names or configurations.

Axes: example, position, column.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from curricle.least_squares.sublayers import BlockCall, Sublayer, read

PLACE, PAIR = 2, 2
"""Position of the changed column, which has keys before it in a decoder, too; columns of a pair."""
CHUNK = 256
"""Columns in one pass."""
STEP = 3.0
"""Change of a column, in both directions, which is beyond the bend of any activation."""
LARGEST = 2.0
"""Bound of the random numbers."""
THRESHOLD = 1e-4
"""Least change that counts, relative to the largest; dimensionless."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One head of attention; columns are counted over all maps that read."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    """Columns of the input of the map that writes."""
    group: int
    """Number of the keys, which several heads may share."""
    num_rotary: int = 0
    """Leading columns of queries and keys that rotate with the position; 0 for none."""
    are_interleaved: bool = False
    """Whether neighboring columns rotate together, instead of those half the number apart."""
    scale: float = 1.0
    """Factor of the product of queries and keys."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """Neurons of a feed-forward sublayer."""

    activated: Tensor
    """Column with the activation, of each neuron."""
    multiplied: Tensor | None
    """Column that the activation is multiplied with; None without gates."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """Roles in a sublayer: heads or neurons; neither, with a reason, if it is not understood."""

    heads: tuple[Head, ...] = ()
    neurons: Neurons | None = None
    reason: str = ""


def roles(block: nn.Module, call: BlockCall, state: Tensor, sublayer: Sublayer) -> Roles:
    """Return the roles of all columns of a sublayer.

    Args:
        block: The block.
        call: Its other arguments, for one example.
        state: Its input: one example of at least 3 positions.
        sublayer: One of its sublayers.
    """
    probe = _Probe(block, call, state, sublayer)
    effects = probe.effects()
    if not any(effect.mixes for effect in effects.values()):
        return _neurons(effects, sublayer)
    heads = _heads(effects)
    if isinstance(heads, str):
        return Roles(reason=heads)
    covered = sorted(column for head in heads for column in head.outputs.tolist())
    if covered != list(range(sublayer.output.sizes[1])):
        return Roles(reason="its heads do not make up the input of the map that writes")
    return Roles(heads=probe.completed(heads))


def _heads(effects: Mapping[int, "_Effect"]) -> list[Head] | str:
    """Return the heads of attention, or the reason why they are not understood."""
    keys = [column for column, effect in effects.items() if effect.mixes and not effect.is_linear]
    values = [column for column, effect in effects.items() if effect.mixes and effect.is_linear]
    queries: dict[frozenset[int], list[int]] = defaultdict(list)
    for column, effect in effects.items():
        if not effect.mixes:
            queries[effect.columns].append(column)
    heads = list[Head]()
    groups: dict[tuple[int, ...], int] = {}
    for outputs, columns in sorted(queries.items(), key=lambda item: min(item[0], default=-1)):
        shared = tuple(key for key in keys if outputs <= effects[key].columns)
        sources = {output: value for value in values for output in effects[value].columns & outputs}
        if set(sources) != set(outputs) or len(shared) != len(columns):
            return "its queries, keys and values do not fit together"
        ordered = sorted(outputs)
        heads.append(
            Head(
                queries=torch.tensor(columns),
                keys=torch.tensor(shared),
                values=torch.tensor([sources[output] for output in ordered]),
                outputs=torch.tensor(ordered),
                group=groups.setdefault(shared, len(groups)),
            )
        )
    return heads


def _neurons(effects: Mapping[int, "_Effect"], sublayer: Sublayer) -> Roles:
    activated: dict[int, int] = {}
    multiplied: dict[int, int] = {}
    for column, effect in effects.items():
        if len(effect.columns) != 1:
            return Roles(reason="a column of it reaches no neuron, or several")
        (neuron,) = effect.columns
        target = multiplied if effect.is_linear else activated
        if neuron in target:
            return Roles(reason="several of its columns activate one neuron")
        target[neuron] = column
    size = range(sublayer.output.sizes[1])
    if sorted(activated) != list(size) or (multiplied and sorted(multiplied) != list(size)):
        return Roles(reason="its columns do not make up the input of the map that writes")
    return Roles(
        neurons=Neurons(
            torch.tensor([activated[neuron] for neuron in size]),
            torch.tensor([multiplied[neuron] for neuron in size]) if multiplied else None,
        )
    )


@final
@dataclass(frozen=True, slots=True)
class _Effect:
    mixes: bool
    columns: frozenset[int]
    is_linear: bool


@final
class _Probe:
    """Passes of a block with the outputs of a sublayer's maps replaced."""

    def __init__(
        self, block: nn.Module, call: BlockCall, state: Tensor, sublayer: Sublayer
    ) -> None:
        self._block, self._call, self._sublayer, self._state = block, call, sublayer, state
        generator = torch.Generator().manual_seed(0)
        self._width = sum(sublayer.widths)
        shape = (1, state.shape[1], self._width)
        # Small: attention far from saturation, activations in their curved range.
        uniform = torch.rand(shape, generator=generator)
        self.base = (LARGEST * (2 * uniform - 1)).to(state)

    def outcome(self, columns: Tensor) -> Tensor:
        """Return the input of the map that writes, for given outputs of the maps that read."""
        sublayer = self._sublayer
        replaced = dict(
            zip(
                (linear.path for linear in sublayer.inputs),
                columns.split(sublayer.widths, dim=-1),
                strict=True,
            )
        )
        state = self._state.expand(len(columns), -1, -1)
        path = sublayer.output.path
        reading = read(self._block, self._call, state, [], stop_at=path, replacements=replaced)
        received = reading.inputs[path]
        return received.reshape(*columns.shape[:2], -1).cpu()

    def effects(self) -> dict[int, _Effect]:
        """Return the effect of every column."""
        reference = self.outcome(self.base)[0]
        effects: dict[int, _Effect] = {}
        for start in range(0, self._width, CHUNK):
            columns = torch.arange(start, min(start + CHUNK, self._width))
            changes = []
            for step in (STEP, -STEP):
                changed = self.base.repeat(len(columns), 1, 1)
                changed[torch.arange(len(columns)), PLACE, columns] += step
                changes.append(self.outcome(changed) - reference)
            for row, column in enumerate(columns.tolist()):
                effects[column] = _effect(changes[0][row], changes[1][row])
        return effects

    def completed(self, heads: Sequence[Head]) -> tuple[Head, ...]:
        """Return heads with queries and keys in pairs, their scale, and their rotation."""
        base = self.base.clone()
        for head in heads:
            base[..., head.queries] = 0
            base[..., head.keys] = 0
        paired = [self._paired(head, base) for head in heads]
        first, size = paired[0], len(paired[0].queries)
        partner = self._partner(first, base, 0)
        num_rotary, are_interleaved = 0, False
        if partner is not None:
            # With two rotating columns in all, the next column has no partner of its own.
            are_interleaved = partner == 1 and size > PAIR and self._partner(first, base, PAIR) == 3  # noqa: PLR2004
            num_rotary = size if are_interleaved else 2 * partner
        return tuple(
            replace(head, num_rotary=num_rotary, are_interleaved=are_interleaved) for head in paired
        )

    def _paired(self, head: Head, base: Tensor) -> Head:
        """Return a head whose queries are in the order of their keys, with the factor of products.

        Each query in turn meets keys of rising size at its own position, where nothing rotates, so
        that the attention to them shows its key by its rank. Normalized queries and keys have no
        such ranks; their order is that of the columns, and their scale is not needed.
        """
        if self._sublayer.inner_norms:
            return head
        size = len(head.queries)
        base = base.clone()
        # Values are 1 where the keys are, and 0 elsewhere, so the output is the attention.
        base[..., head.values] = 0
        base[:, PLACE, head.values] = 1
        sizes = torch.arange(1, size + 1) / size
        uniform = self.outcome(base)[0, PLACE, head.outputs[0]].double()
        changed = base.repeat(size, 1, 1)
        changed[:, PLACE, head.keys] = sizes.to(changed)
        changed[torch.arange(size), PLACE, head.queries] = math.sqrt(size)
        weights = self.outcome(changed)[:, PLACE, head.outputs[0]].double()
        odds = torch.logit(weights) - torch.logit(uniform)
        scale = float(odds.mean() / (math.sqrt(size) * sizes.double().mean()))
        return replace(head, queries=head.queries[odds.argsort()], scale=scale)

    def _partner(self, head: Head, base: Tensor, column: int) -> int | None:
        """Return the key column that rotates with a query column; None if none does."""
        size = len(head.queries)
        plain = self.outcome(base)[0][..., head.outputs]
        changed = base.repeat(size, 1, 1)
        # A query of the column, and at the position before it a key of each column in turn.
        changed[:, PLACE, head.queries[column]] = math.sqrt(size)
        changed[torch.arange(size), PLACE - 1, head.keys] = 1.0
        changes = (self.outcome(changed)[..., head.outputs] - plain)[:, PLACE].abs().amax(-1)
        reached = (changes > THRESHOLD * changes.max()).nonzero()[:, 0].tolist()
        partners = [key for key in reached if key > column]
        return partners[0] if partners else None


def _effect(forward: Tensor, backward: Tensor) -> _Effect:
    """Return the effect of a column from the changes in both directions."""
    changes = torch.stack([forward, backward]).abs()
    size = changes.max().clamp_min(1e-12)
    reached = (changes > THRESHOLD * size).any(0)
    positions = reached.any(-1)
    mixes = bool(positions[torch.arange(len(positions)) != PLACE].any())
    columns = frozenset(reached.any(0).nonzero()[:, 0].tolist())
    is_linear = bool(torch.allclose(backward, -forward, atol=1e-3 * size.item(), rtol=1e-3))
    return _Effect(mixes, columns, is_linear)
