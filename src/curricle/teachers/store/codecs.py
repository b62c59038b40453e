"""In which form are targets kept, and how far is what is read from what was written?

A codec turns the targets of some rows (numbers of one width, or logits) into tensors with one entry
a row, and back. The error of every codec is stated: `bound` tells it in numbers where rows come
back as they were, `words` in words.

Axes: row (counted positions), width (of a hidden state), class (of logits), draw (known classes).

Design: codecs are frozen values that a manifest holds, so a reader needs no setting. `float32`,
`bfloat16` and `int8` keep any target, logits too; `sampled` and `top_k` keep logits as a
`SparseTarget`. Random numbers come from outside: they belong to an example, not to a batch.

References:
    [A25] Anshumann et al. 2025, arXiv 2503.16870: a dozen drawn classes teach as all of them do.
    [O13] Owen 2013, Monte Carlo theory, methods and examples, chapters 8 (strata) and 9 (weights).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from pydantic import Field
from torch import Tensor

from curricle.colocation import beside
from curricle.errors import DataError
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.store.packing import bits_of, packed, unpacked
from curricle.values import value

Entries = Mapping[str, Shaped[Tensor, "row ..."]]
"""What a codec keeps of some rows, by name."""
Uniforms = Callable[[int], Float64[np.ndarray, "row draw"]]
"""Gives so many numbers between 0 and 1 for each row that is encoded."""
AT_ONCE = 2**23
"""Logits that are looked at at one time."""


@final
@value
class Exact:
    """Every number in four bytes, as it was."""

    kind: Literal["float32"] = "float32"

    @property
    def words(self) -> str:
        """Return the stated error."""
        return "exact"

    def encode(self, target: Float[Tensor, "row width"], uniforms: Uniforms) -> Entries:
        """Return what is kept of some rows."""
        del uniforms
        return {"values": target.float()}

    def decode(self, entries: Entries, width: int) -> Float[Tensor, "row width"]:
        """Return the rows."""
        del width
        return entries["values"]

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the largest error of each number."""
        return torch.zeros_like(target)


@final
@value
class BFloat16:
    """Every number in two bytes, to the nearest bfloat16."""

    kind: Literal["bfloat16"] = "bfloat16"

    @property
    def words(self) -> str:
        """Return the stated error."""
        return "at most 1/256 of each number"

    def encode(self, target: Float[Tensor, "row width"], uniforms: Uniforms) -> Entries:
        """Return what is kept of some rows."""
        del uniforms
        return {"values": target.to(torch.bfloat16)}

    def decode(self, entries: Entries, width: int) -> Float[Tensor, "row width"]:
        """Return the rows."""
        del width
        return entries["values"].float()

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the largest error of each number."""
        return target.abs() / 256


@final
@value
class Int8:
    """Every number in one byte, and a scale of four bytes for each row."""

    kind: Literal["int8"] = "int8"

    @property
    def words(self) -> str:
        """Return the stated error."""
        return "at most 1/254 of the row's largest magnitude"

    def encode(self, target: Float[Tensor, "row width"], uniforms: Uniforms) -> Entries:
        """Return what is kept of some rows.

        Raises:
            DataError: If a number is not finite.
        """
        del uniforms
        target = target.float()
        if not bool(target.isfinite().all()):
            raise DataError("'int8' must be used for finite targets; got some that are not")
        scale = target.abs().amax(-1) / 127
        steps = target / scale.clamp_min(torch.finfo(scale.dtype).tiny).unsqueeze(-1)
        return {"values": steps.round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, entries: Entries, width: int) -> Float[Tensor, "row width"]:
        """Return the rows."""
        del width
        return entries["values"].float() * entries["scale"].unsqueeze(-1)

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the largest error of each number."""
        # The second term is what float32 rounds in dividing and multiplying again.
        largest = target.abs().amax(-1, keepdim=True) * (1 / 254 + 1e-6)
        return largest.expand_as(target)


@final
@value
class Sampled:
    """Classes drawn from the teacher's distribution, which teach like all of them on average.

    With the default proposal each class stands for 1 / draws, and a row of 12 draws of 128k classes
    takes 30 bytes. Draws are stratified [O13]: one of each of `draws` equal parts of the
    distribution, which is as free of bias as independent draws and varies less.

    Source:
        [A25]. Deviation: strata.
    """

    kind: Literal["sampled"] = "sampled"
    draws: int = Field(default=12, gt=0)
    """Classes drawn a position."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of the teacher; the objective that reads must have the same."""
    proposal: float = Field(default=1.0, ge=0, le=1)
    """Classes are drawn with chances in proportion to p to this power; below 1 rare classes are
    drawn more often, and each draw then carries its weight in two more bytes."""
    seed: int = 0
    """Seed of the draws, which also depend on the example and on nothing else."""

    @property
    def words(self) -> str:
        """Return the stated error."""
        weights = "" if self.proposal == 1 else ", weights rounded to 11 bits"
        return f"no bias{weights}; varies no more than {self.draws} independent draws a position"

    def encode(self, target: Float[Tensor, "row class"], uniforms: Uniforms) -> Entries:
        """Return what is kept of some rows."""
        strata = (torch.from_numpy(uniforms(self.draws)) + torch.arange(self.draws)) / self.draws
        parts = [
            self._drawn(logits, beside(part, logits))
            for logits, part in zip(*_in_parts(target, strata), strict=True)
        ]
        ids, weights, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        entries = {"ids": packed(ids, bits_of(target.shape[-1])), "entropy": entropy}
        return entries if self.proposal == 1 else entries | {"weights": weights.half()}

    def _drawn(
        self, logits: Float[Tensor, "row class"], strata: Float[Tensor, "row draw"]
    ) -> tuple[Int[Tensor, "row draw"], Float[Tensor, "row draw"], Float[Tensor, " row"]]:
        likely = (logits.float() / self.temperature).softmax(-1)
        # Zero to the power of zero is no chance either.
        chances = torch.where(likely > 0, likely**self.proposal, 0.0).double()
        below = chances.cumsum(-1)
        ids = torch.searchsorted(below, strata * below[:, -1:], right=True)
        ids = ids.clamp(max=logits.shape[-1] - 1)
        share = chances.gather(-1, ids) / below[:, -1:]
        weights = likely.gather(-1, ids) / share.clamp_min(torch.finfo(torch.float32).tiny)
        return ids, weights / self.draws, torch.special.entr(likely).sum(-1)

    def decode(self, entries: Entries, width: int) -> SparseTarget:
        """Return the rows."""
        ids = unpacked(entries["ids"], bits_of(width), self.draws)
        weights = entries.get("weights")
        return SparseTarget(
            ids=ids,
            weights=torch.full_like(ids, 1 / self.draws, dtype=torch.get_default_dtype())
            if weights is None
            else weights.float(),
            constant=-entries["entropy"],
            temperature=self.temperature,
        )


@final
@value
class TopK:
    """The most likely classes with their log-probabilities.

    What the others have is the missing mass. With `rest` it is kept, as one bucket that the
    student's mass outside of the known classes is compared with. With `renormalize` it is given to
    the known classes in proportion, which teaches a student to be surer than its teacher [A25].
    """

    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=32, gt=0)
    """Classes kept a position; fewer if there are not so many."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of the teacher; the objective that reads must have the same."""
    missing: Literal["rest", "renormalize"] = "rest"
    """What becomes of the mass of all other classes."""

    @property
    def words(self) -> str:
        """Return the stated error."""
        policy = "one bucket" if self.missing == "rest" else "given to the known, a bias"
        return f"log-probabilities rounded to 11 bits; missing mass: {policy}"

    def encode(self, target: Float[Tensor, "row class"], uniforms: Uniforms) -> Entries:
        """Return what is kept of some rows."""
        del uniforms
        count = min(self.k, target.shape[-1])
        parts = [
            (logits.float() / self.temperature).log_softmax(-1).topk(count)
            for (logits,) in zip(*_in_parts(target), strict=True)
        ]
        log_known, ids = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.entries(ids, log_known, target.shape[-1])

    def entries(
        self, ids: Int[Tensor, "row draw"], log_known: Float[Tensor, "row draw"], num_classes: int
    ) -> Entries:
        """Return what is kept of known classes.

        Args:
            ids: The classes, the most likely first.
            log_known: Their log-probabilities; minus infinity for one that is not known.
            num_classes: Of all classes.
        """
        return {"ids": packed(ids, bits_of(num_classes)), "log_probabilities": log_known.half()}

    def decode(self, entries: Entries, width: int) -> SparseTarget:
        """Return the rows."""
        log_known = entries["log_probabilities"].float()
        ids = unpacked(entries["ids"], bits_of(width), log_known.shape[-1])
        # What is not known must not hide a class from the bucket.
        ids = torch.where(log_known == float("-inf"), ids[:, :1], ids)
        weights = log_known.exp()
        mass = weights.sum(-1)
        if self.missing == "renormalize" or ids.shape[-1] >= width:
            weights, rest = weights / mass.unsqueeze(-1), None
        else:
            rest = (1 - mass).clamp_min(0)
        entropy = torch.special.entr(weights).sum(-1)
        if rest is not None:
            entropy = entropy + torch.special.entr(rest)
        return SparseTarget(
            ids=ids,
            weights=weights,
            remaining_mass=rest,
            constant=-entropy,
            temperature=self.temperature,
        )


DenseCodec = Exact | BFloat16 | Int8
SparseCodec = Sampled | TopK
HiddenCodec = Annotated[DenseCodec, Field(discriminator="kind")]
"""Field type of a codec of hidden states."""
Codec = Annotated[DenseCodec | SparseCodec, Field(discriminator="kind")]
"""Field type of a codec of logits; `kind` tells them apart."""


def _in_parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return tensors cut along their rows, so that logits do not fill the memory several times."""
    rows = max(1, AT_ONCE // tensors[0].shape[-1])
    return [one.split(rows) for one in tensors]
