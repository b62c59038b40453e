"""Compression of stored targets, with a stated error for each codec.

A codec turns rows of targets (numbers of one width, or logits) into tensors with one entry a row,
and back. `words` states the error of every codec in words; `bound` states it in numbers for the
dense codecs.

Axes: row (counted positions), width (of a hidden state), class (of logits), draw (stored classes).

Design: codecs are frozen values in the manifest, so reading needs no settings. `float32`,
`bfloat16` and `int8` store any target, logits included; `sampled` and `top_k` store logits as a
`SparseTarget`. Random numbers are an argument, because they belong to an example, not to a batch.

References:
    [A25] Anshumann et al. 2025, arXiv 2503.16870: training on a dozen sampled classes matches
        training on all.
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
"""Encoded rows: stored tensors by name."""
Uniforms = Callable[[int], Float64[np.ndarray, "row draw"]]
"""Function from a number of samples to that many uniform numbers in [0, 1) for each encoded row."""
LOGITS_PER_CHUNK = 2**23
"""Logits encoded at a time, which limits temporary memory."""


@final
@value
class Exact:
    """Every number in four bytes, without loss."""

    kind: Literal["float32"] = "float32"

    @property
    def words(self) -> str:
        """Return the stated error."""
        return "exact"

    def encode(self, target: Float[Tensor, "row width"], _uniforms: Uniforms) -> Entries:
        """Return rows in encoded form."""
        return {"values": target.float()}

    def decode(self, entries: Entries, _width: int) -> Float[Tensor, "row width"]:
        """Return rows decoded from their entries."""
        return entries["values"]

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the maximum error of each number."""
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

    def encode(self, target: Float[Tensor, "row width"], _uniforms: Uniforms) -> Entries:
        """Return rows in encoded form."""
        return {"values": target.to(torch.bfloat16)}

    def decode(self, entries: Entries, _width: int) -> Float[Tensor, "row width"]:
        """Return rows decoded from their entries."""
        return entries["values"].float()

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the maximum error of each number."""
        # bfloat16 has 8 significant bits, so rounding to the nearest errs by at most 2**-8.
        return target.abs() / 256


@final
@value
class Int8:
    """Every number in one byte, with a scale of four bytes for each row."""

    kind: Literal["int8"] = "int8"

    @property
    def words(self) -> str:
        """Return the stated error."""
        return "at most 1/254 of the row's largest magnitude"

    def encode(self, target: Float[Tensor, "row width"], _uniforms: Uniforms) -> Entries:
        """Return rows in encoded form.

        Raises:
            DataError: If a number is not finite.
        """
        target = target.float()
        # An infinity would make the scale infinite and erase the finite numbers of its row.
        if not bool(target.isfinite().all()):
            raise DataError("'int8' must be used for finite targets; got infinities or 'nan'")
        # -128 is not used, so that both signs have the same steps and zero is exact.
        scale = target.abs().amax(-1) / 127
        # The lower limit avoids 0 / 0 in rows of zeros; their scale is stored as 0.
        steps = target / scale.clamp_min(torch.finfo(scale.dtype).tiny).unsqueeze(-1)
        return {"values": steps.round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, entries: Entries, _width: int) -> Float[Tensor, "row width"]:
        """Return rows decoded from their entries."""
        return entries["values"].float() * entries["scale"].unsqueeze(-1)

    def bound(self, target: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Return the maximum error of each number."""
        # The second term bounds the float32 rounding of the division and the multiplication.
        largest = target.abs().amax(-1, keepdim=True) * (1 / 254 + 1e-6)
        return largest.expand_as(target)


@final
@value
class Sampled:
    """Classes sampled from the teacher's distribution, an unbiased estimate of its cross-entropy.

    With the default proposal each sample has the weight 1 / num_samples, and a row of 12 samples
    of 128k classes takes 30 bytes. Sampling is stratified [O13]: one sample from each of equal
    strata of the distribution, without bias and with less variance than independent samples.

    Source:
        [A25]. Deviation: strata.
    """

    kind: Literal["sampled"] = "sampled"
    num_samples: int = Field(default=12, gt=0)
    """Number of samples per position."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the teacher's softmax; the objective that reads the targets must have the
    same."""
    proposal: float = Field(default=1.0, ge=0, le=1)
    """Exponent of the sampling probabilities, which are proportional to p to this power; below 1
    rare classes are sampled more often, and each sample stores its weight in two more bytes."""
    seed: int = 0
    """Seed of the samples; besides it they depend on the example only."""

    @property
    def words(self) -> str:
        """Return the stated error."""
        weights = "" if self.proposal == 1 else ", weights rounded to 11 bits"
        return (
            f"no bias{weights}; variance at most that of {self.num_samples} independent samples a "
            f"position"
        )

    def encode(self, target: Float[Tensor, "row class"], uniforms: Uniforms) -> Entries:
        """Return rows in encoded form."""
        # One uniform number in each of `num_samples` equal intervals: stratified sampling.
        strata = (
            torch.from_numpy(uniforms(self.num_samples)) + torch.arange(self.num_samples)
        ) / self.num_samples
        samples = [
            self._sample(logits, beside(points, logits))
            for logits, points in zip(*_row_chunks(target, strata), strict=True)
        ]
        ids, weights, entropy = (torch.cat(column) for column in zip(*samples, strict=True))
        entries = {"ids": packed(ids, bits_of(target.shape[-1])), "entropy": entropy}
        # With the default proposal all weights are 1 / num_samples and need no bytes.
        return entries if self.proposal == 1 else entries | {"weights": weights.half()}

    def _sample(
        self, logits: Float[Tensor, "row class"], strata: Float[Tensor, "row draw"]
    ) -> tuple[Int[Tensor, "row draw"], Float[Tensor, "row draw"], Float[Tensor, " row"]]:
        probabilities = (logits.float() / self.temperature).softmax(-1)
        # 0**0 is 1, but a class without probability must not be sampled for any proposal.
        proposal = torch.where(probabilities > 0, probabilities**self.proposal, 0.0).double()
        # In float32 the sum over a large vocabulary would lose rare classes at its end.
        cumulative = proposal.cumsum(-1)
        ids = torch.searchsorted(cumulative, strata * cumulative[:, -1:], right=True)
        # Rounding may place the last point at the total itself, one past the last class.
        ids = ids.clamp(max=logits.shape[-1] - 1)
        # Importance weights p / q make the estimate unbiased for every proposal [O13].
        proposed = proposal.gather(-1, ids) / cumulative[:, -1:]
        weights = probabilities.gather(-1, ids) / proposed.clamp_min(
            torch.finfo(torch.float32).tiny
        )
        return ids, weights / self.num_samples, torch.special.entr(probabilities).sum(-1)

    def decode(self, entries: Entries, width: int) -> SparseTarget:
        """Return rows decoded from their entries."""
        ids = unpacked(entries["ids"], bits_of(width), self.num_samples)
        weights = entries.get("weights")
        return SparseTarget(
            ids=ids,
            weights=torch.full_like(ids, 1 / self.num_samples, dtype=torch.get_default_dtype())
            if weights is None
            else weights.float(),
            constant=-entries["entropy"],
            temperature=self.temperature,
        )


@final
@value
class TopK:
    """The most likely classes with their log-probabilities.

    The probability of all other classes is the missing mass. `rest` stores it as one bucket, the
    target of the student's mass outside of the stored classes. `renormalize` spreads it over the
    stored classes in proportion, a bias that makes students more confident than the teacher [A25].
    """

    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=32, gt=0)
    """Number of classes stored per position, at most all classes."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the teacher's softmax; the objective that reads the targets must have the
    same."""
    missing: Literal["rest", "renormalize"] = "rest"
    """Use of the missing mass: one bucket, or spread over the stored classes."""

    @property
    def words(self) -> str:
        """Return the stated error."""
        policy = (
            "one bucket" if self.missing == "rest" else "spread over the stored classes, a bias"
        )
        return f"log-probabilities rounded to 11 bits; missing mass: {policy}"

    def encode(self, target: Float[Tensor, "row class"], _uniforms: Uniforms) -> Entries:
        """Return rows in encoded form."""
        count = min(self.k, target.shape[-1])
        chunks = [
            (logits.float() / self.temperature).log_softmax(-1).topk(count)
            for (logits,) in zip(*_row_chunks(target), strict=True)
        ]
        log_probabilities, ids = (torch.cat(column) for column in zip(*chunks, strict=True))
        return self.entries(ids, log_probabilities, target.shape[-1])

    def entries(
        self,
        ids: Int[Tensor, "row draw"],
        log_probabilities: Float[Tensor, "row draw"],
        num_classes: int,
    ) -> Entries:
        """Return the encoded form of the most likely classes.

        Args:
            ids: The classes, the most likely first.
            log_probabilities: Their log-probabilities; minus infinity marks an unused entry.
            num_classes: Number of all classes.
        """
        packed_ids = packed(ids, bits_of(num_classes))
        return {"ids": packed_ids, "log_probabilities": log_probabilities.half()}

    def decode(self, entries: Entries, width: int) -> SparseTarget:
        """Return rows decoded from their entries."""
        log_probabilities = entries["log_probabilities"].float()
        ids = unpacked(entries["ids"], bits_of(width), log_probabilities.shape[-1])
        # Unused entries hold id 0, which would take class 0 out of the bucket of all other classes;
        # with the id of the first class they change nothing, as their weight is zero.
        ids = torch.where(log_probabilities == float("-inf"), ids[:, :1], ids)
        weights = log_probabilities.exp()
        mass = weights.sum(-1)
        # If all classes are stored, the missing mass is rounding, and a bucket would be empty.
        if self.missing == "renormalize" or ids.shape[-1] >= width:
            weights, missing_mass = weights / mass.unsqueeze(-1), None
        else:
            # Rounding to half precision can push the sum above 1.
            missing_mass = (1 - mass).clamp_min(0)
        entropy = torch.special.entr(weights).sum(-1)
        if missing_mass is not None:
            entropy = entropy + torch.special.entr(missing_mass)
        return SparseTarget(
            ids=ids,
            weights=weights,
            remaining_mass=missing_mass,
            constant=-entropy,
            temperature=self.temperature,
        )


DenseCodec = Exact | BFloat16 | Int8
SparseCodec = Sampled | TopK
HiddenCodec = Annotated[DenseCodec, Field(discriminator="kind")]
"""Field type of a codec of hidden states."""
Codec = Annotated[DenseCodec | SparseCodec, Field(discriminator="kind")]
"""Field type of a codec of logits, discriminated by `kind`."""


def _row_chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return tensors split along their rows, which limits the memory of copies of logits."""
    rows = max(1, LOGITS_PER_CHUNK // tensors[0].shape[-1])
    return [tensor.split(rows) for tensor in tensors]
