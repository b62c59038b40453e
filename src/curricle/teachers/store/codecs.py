"""Codecs of stored targets, with their error bounds.

A codec encodes the targets of some rows (hidden states, or logits) as tensors with one entry per
row, and decodes them. The error of every codec is stated: `bound` returns it as numbers for codecs
that restore whole rows, `words` describes it.

Axes: row (counted positions), width (of a hidden state), class (of logits), draw (known classes).

Design: codecs are frozen values in the manifest, so a reader needs no setting. `float32`,
`bfloat16` and `int8` store any target, logits too; `sampled` and `top_k` store logits as a
`SparseTarget`. Random numbers are an argument, because they depend on the example, not the batch.

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

from curricle.errors import DataError
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.store.packing import bits_of, packed, unpacked
from curricle.values import value

Entries = Mapping[str, Shaped[Tensor, "row ..."]]
"""Encoded tensors of some rows, by name."""
Uniforms = Callable[[int], Float64[np.ndarray, "row draw"]]
"""Function from a number of draws to as many numbers in [0, 1) for each encoded row."""
AT_ONCE = 2**23
"""Number of logits processed in one step, which limits the temporary memory."""


@final
@value
class Exact:
    """Every number in four bytes, unchanged."""

    kind: Literal["float32"] = "float32"

    @property
    def words(self) -> str:
        """Return the stated error."""
        return "exact"

    def encode(self, target: Float[Tensor, "row width"], uniforms: Uniforms) -> Entries:
        """Return the encoded rows."""
        del uniforms
        return {"values": target.float()}

    def decode(self, entries: Entries, width: int) -> Float[Tensor, "row width"]:
        """Return the decoded rows."""
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
        """Return the encoded rows."""
        del uniforms
        return {"values": target.to(torch.bfloat16)}

    def decode(self, entries: Entries, width: int) -> Float[Tensor, "row width"]:
        """Return the decoded rows."""
        del width
        return entries["values"].float()

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the largest error of each number."""
        # bfloat16 has 8 significant bits, so rounding to nearest changes a number by 2^-8 at most.
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
        """Return the encoded rows.

        Raises:
            DataError: If a number is not finite.
        """
        del uniforms
        target = target.float()
        if not bool(target.isfinite().all()):
            raise DataError("'int8' must be used for finite targets; got some that are not")
        # Symmetric range of 255 steps; -128 is left out, so that the sign costs no accuracy.
        scale = target.abs().amax(-1) / 127
        # A row of zeros has scale 0; the smallest normal number avoids a division by zero.
        steps = target / scale.clamp_min(torch.finfo(scale.dtype).tiny).unsqueeze(-1)
        return {"values": steps.round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, entries: Entries, width: int) -> Float[Tensor, "row width"]:
        """Return the decoded rows."""
        del width
        return entries["values"].float() * entries["scale"].unsqueeze(-1)

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the largest error of each number."""
        # Half a step of the scale; the second term covers float32 rounding in the division and in
        # the multiplication.
        largest = target.abs().amax(-1, keepdim=True) * (1 / 254 + 1e-6)
        return largest.expand_as(target)


@final
@value
class Sampled:
    """Classes drawn from the teacher's distribution, an unbiased estimate of the full loss.

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
    """Softening of the teacher; the reading objective must have the same."""
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
        """Return the encoded rows."""
        # One point per stratum: draw i falls into [i, i + 1) / draws of the cumulative chances.
        strata = (torch.from_numpy(uniforms(self.draws)) + torch.arange(self.draws)) / self.draws
        samples = [
            self._drawn(logits, points.to(logits.device))
            for logits, points in zip(*_in_parts(target, strata), strict=True)
        ]
        # The entropy of the full distribution cannot be recovered from the draws. It is stored so
        # that the loss is a divergence and not only a cross-entropy.
        ids, weights, entropy = (torch.cat(column) for column in zip(*samples, strict=True))
        entries = {"ids": packed(ids, bits_of(target.shape[-1])), "entropy": entropy}
        return entries if self.proposal == 1 else entries | {"weights": weights.half()}

    def _drawn(
        self, logits: Float[Tensor, "row class"], strata: Float[Tensor, "row draw"]
    ) -> tuple[Int[Tensor, "row draw"], Float[Tensor, "row draw"], Float[Tensor, " row"]]:
        likely = (logits.float() / self.temperature).softmax(-1)
        # 0**0 is 1 in torch, but an impossible class must keep chance zero for proposal=0. Sums run
        # in double precision: float32 loses rare classes of a large vocabulary.
        chances = torch.where(likely > 0, likely**self.proposal, 0.0).double()
        below = chances.cumsum(-1)
        ids = torch.searchsorted(below, strata * below[:, -1:], right=True)
        # Rounding can place the last point on the upper end, one past the last class.
        ids = ids.clamp(max=logits.shape[-1] - 1)
        # Importance weights p / q correct for the proposal [O13]; they are all 1 for proposal=1.
        share = chances.gather(-1, ids) / below[:, -1:]
        weights = likely.gather(-1, ids) / share.clamp_min(torch.finfo(torch.float32).tiny)
        return ids, weights / self.draws, torch.special.entr(likely).sum(-1)

    def decode(self, entries: Entries, width: int) -> SparseTarget:
        """Return the decoded rows."""
        ids = unpacked(entries["ids"], bits_of(width), self.draws)
        weights = entries.get("weights")
        return SparseTarget(
            ids=ids,
            weights=torch.full(ids.shape, 1 / self.draws, device=ids.device)
            if weights is None
            else weights.float(),
            constant=-entries["entropy"],
            temperature=self.temperature,
        )


@final
@value
class TopK:
    """The most likely classes with their log-probabilities.

    The probability of all other classes is the missing mass. With `rest` it is stored as a bucket,
    which is compared with the student's mass outside of the stored classes. With `renormalize` it
    is distributed over the stored classes in proportion, which makes a student overconfident [A25].
    """

    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=32, gt=0)
    """Classes stored per position, limited by the number of classes."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of the teacher; the reading objective must have the same."""
    missing: Literal["rest", "renormalize"] = "rest"
    """Treatment of the mass of all other classes."""

    @property
    def words(self) -> str:
        """Return the stated error."""
        policy = "one bucket" if self.missing == "rest" else "given to the known, a bias"
        return f"log-probabilities rounded to 11 bits; missing mass: {policy}"

    def encode(self, target: Float[Tensor, "row class"], uniforms: Uniforms) -> Entries:
        """Return the encoded rows."""
        del uniforms
        count = min(self.k, target.shape[-1])
        chunks = [
            (logits.float() / self.temperature).log_softmax(-1).topk(count)
            for (logits,) in zip(*_in_parts(target), strict=True)
        ]
        log_known, ids = (torch.cat(column) for column in zip(*chunks, strict=True))
        return self.entries(ids, log_known, target.shape[-1])

    def entries(
        self, ids: Int[Tensor, "row draw"], log_known: Float[Tensor, "row draw"], num_classes: int
    ) -> Entries:
        """Return the encoded rows of known classes.

        Args:
            ids: The classes, the most likely first.
            log_known: Their log-probabilities; minus infinity for padding.
            num_classes: Number of all classes.
        """
        return {"ids": packed(ids, bits_of(num_classes)), "log_probabilities": log_known.half()}

    def decode(self, entries: Entries, width: int) -> SparseTarget:
        """Return the decoded rows."""
        log_known = entries["log_probabilities"].float()
        ids = unpacked(entries["ids"], bits_of(width), log_known.shape[-1])
        # Padding repeats the first id, because its own id 0 would be excluded from the bucket of
        # missing mass although the class is not stored.
        ids = torch.where(log_known == float("-inf"), ids[:, :1], ids)
        weights = log_known.exp()
        mass = weights.sum(-1)
        # With all classes stored there is no bucket; half precision would leave a spurious one.
        if self.missing == "renormalize" or ids.shape[-1] >= width:
            weights, remaining_mass = weights / mass.unsqueeze(-1), None
        else:
            # Log-probabilities rounded to half precision can add up to slightly more than 1.
            remaining_mass = (1 - mass).clamp_min(0)
        # The negative entropy makes the loss zero where the student equals the stored target.
        entropy = torch.special.entr(weights).sum(-1)
        if remaining_mass is not None:
            entropy = entropy + torch.special.entr(remaining_mass)
        return SparseTarget(
            ids=ids,
            weights=weights,
            remaining_mass=remaining_mass,
            constant=-entropy,
            temperature=self.temperature,
        )


DenseCodec = Exact | BFloat16 | Int8
SparseCodec = Sampled | TopK
HiddenCodec = Annotated[DenseCodec, Field(discriminator="kind")]
"""Field type of a codec of hidden states."""
Codec = Annotated[DenseCodec | SparseCodec, Field(discriminator="kind")]
"""Field type of a codec of logits, discriminated by `kind`."""


def _in_parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return tensors split along their rows, to bound the memory of intermediate logits."""
    rows = max(1, AT_ONCE // tensors[0].shape[-1])
    return [tensor.split(rows) for tensor in tensors]
