"""Matching of the relations between positions, as in MiniLMv2.

The relation of two positions of an example is the scaled dot product of their states within a
*relation head*, a slice of the width. Student and teacher have equally many heads, so that their
widths may differ and no projection is needed.

Axes: example, position (as a query), other (all positions again, as keys), head, width, row
(counted positions of all examples).

References:
    [W20] Wang et al. 2020, MiniLMv2, arXiv 2012.15828, section 3.1.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.colocation import count_beside
from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.base import MOST_WEIGHT, Reads, Sample, Target, require
from curricle.objectives.hidden import NORMALIZERS, NamedPair, Normalize, normalizer_name
from curricle.objectives.losses import forward_kl
from curricle.objectives.paired_states import PairedStates
from curricle.values import value

RELATED_READINGS = ("positions", "grid")
"""Readings of a layer pair with several rows an example."""
FEWEST_POSITIONS = 2
"""Positions of an example with a relation."""


@final
@value
class MatchRelations:
    """Bring the relations between the positions of an example close to the teacher's.

    A relation of position i is the softmax over the positions j of s_i . s_j / sqrt(w) within a
    head of width w; the loss is KL(teacher || student), mean over heads and over positions i.
    Positions without data are neither i nor j.

    Source:
        Wang et al. 2020, MiniLMv2 (arXiv 2012.15828), section 3.1. Deviation: by default states of
        a tap, normalized on residual streams, in place of queries, keys and values. For the paper's
        form three of these objectives have pairs with the module paths of these maps, such as
        `model.layers.3.self_attn.q_proj`, and `normalize="none"`.
    """

    kind: Literal["relations"] = "relations"
    pair: NamedPair
    """Taps of both models, with positions."""
    heads: int = Field(default=4, gt=0)
    """Number of relation heads, of which both widths are multiples. Independent of the numbers of
    attention heads; the paper has 48 for a width of 768."""
    causal: bool = False
    """Whether a position is related to itself and to earlier ones only, as in the attention of a
    decoder. The paper's models are encoders, where all positions are related."""
    normalize: Normalize = "auto"
    """Normalization of both states; see `MatchHidden`."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that the reading of the pair has several rows an example.

        Raises:
            SpecError: If it has a single one, or channels.
        """
        if self.pair.reading not in RELATED_READINGS:
            raise SpecError(
                f"'reading' of a pair must be 'positions' or 'grid' to have relations between "
                f"positions; got {self.pair.reading!r}"
            )

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's state."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the places of both taps."""
        return self.pair.reads(student, teacher)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundRelations":
        """Return the term after checking positions and heads.

        Raises:
            BindError: If an example has a single position, or a width is no multiple of `heads`.
        """
        states = PairedStates.of(self.pair.reading, reads, sample)
        side = states.side(sample.batch)
        length = states.rows.per_example or (side.positions[1] if side.has_positions else 1)
        if length < FEWEST_POSITIONS:
            raise BindError(
                f"taps {states.names!r} must have {FEWEST_POSITIONS} or more positions an example "
                f"to have relations; got 1; MatchCKA and MatchProcrustes compare examples"
            )
        if any(width % self.heads for width in states.widths):
            raise BindError(
                f"'heads' must divide the widths {states.widths[0]} and {states.widths[1]} of taps "
                f"{states.names!r}, such as {math.gcd(*states.widths)}; got {self.heads}"
            )
        return BoundRelations(
            declared=self,
            states=states,
            rule=normalizer_name(self.normalize, is_residual=is_residual),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRelations:
    """`MatchRelations` with resolved places and normalization."""

    declared: MatchRelations
    states: PairedStates
    rule: str

    def count(self, batch: Batch) -> int:
        """Return the number of positions with relations."""
        return self.states.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "example position width"]:
        """Return the teacher's states at all positions."""
        return self.states.teacher_sequences(teacher, batch)

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the divergence, mean over heads, summed over positions."""
        sequences = self.states.student_sequences(student, batch)
        divergence = forward_kl(
            self._scores(sequences, batch),
            self._scores(require(target, "target"), batch),
            student_temperature=1.0,
            teacher_temperature=1.0,
        )
        return divergence / self.declared.heads

    def _scores(
        self, sequences: Float[Tensor, "example position width"], batch: Batch
    ) -> Float[Tensor, "row head other"]:
        """Return the scaled dot products of each counted position with all that it is related to.

        Scores of others are minus infinity, which are absent classes of the divergence.

        Args:
            sequences: States of either model.
            batch: The batch of both passes.
        """
        heads, side = self.declared.heads, self.states.side(batch)
        wide = sequences if sequences.dtype == torch.float64 else sequences.float()
        normalized = NORMALIZERS[self.rule](wide)
        slices = normalized.unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = slices @ slices.mT / math.sqrt(slices.shape[-1])
        if side.valid is not None:
            scores = scores.masked_fill(~side.valid[:, None, None, :], -torch.inf)
        if self.declared.causal:
            places = count_beside(scores, scores.shape[-1])
            is_later = places.unsqueeze(0) > places.unsqueeze(1)
            scores = scores.masked_fill(is_later, -torch.inf)
        rows = self.states.rows.take(scores.transpose(1, 2).flatten(2), side)
        relations: Tensor = rows.unflatten(-1, (heads, -1))
        return relations

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        taps, widths = self.states.describe()
        declared = self.declared
        terms = [f"{declared.weight:g} x relations of {declared.heads} heads"]
        terms += ["causal" if declared.causal else "", self.rule if self.rule != "none" else ""]
        terms += [self.states.reading.label]
        return taps, " ".join(filter(None, terms)), "-", widths
