"""Correlations of a network's outputs with input bits and their products.

The probe of the sparse-parity experiments: a monomial of degree r is the product
chi_T(x) = prod_{i in T} x_i of r input bits, each -1 or +1. A network that computes the parity of
the support S correlates with chi_S only. During training its output also correlates with monomials
of lower degree inside S, and these reveal the relevant bits to a student. So the output is compared
with all C(k,r) monomials inside the support and with random monomials that are not inside it.

Axes: example, input (bits of an example), subset (monomials), member (bits of a monomial).

Design: bits may come as floats (-1 and +1) or as tokens (0 stands for +1, 1 for -1, as in the
transformer experiments). Sums are computed in float64, in chunks of the examples.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464), sparse parity: |mean(chi_T(x) p_1(x))| over 100,000
    fresh samples, 100 random subsets a degree. Deviation: random subsets are distinct; if
    there are no more than requested, all are used.
"""

import math
from collections.abc import Collection
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.tapped import TappedModel
from curricle.probes.forward_passes import selected_logits

NUM_OUTSIDE: Final = 100
"""Number of random monomials per degree that are not inside the support."""
EXAMPLES_AT_ONCE: Final = 8192


def output_correlations(
    model: TappedModel,
    batch: Batch,
    *,
    support: Collection[int],
    max_degree: int | None = None,
    num_outside: int = NUM_OUTSIDE,
    class_number: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Return correlations of the output with monomials inside and outside the support.

    The numbers are `in_<r>_mean`, `in_<r>_max`, `out_<r>_mean` and `out_<r>_max` for every degree
    r: mean and maximum over monomials T of |mean(chi_T(x) p(x))|, where p is the softmax
    probability of one class; 1/2 at most, 0 for independence. With n examples chance gives
    about sqrt(2 mean(p^2) / (pi n)) on average, also where p does not depend on x.

    Args:
        model: A classifier of bits.
        batch: Fresh examples, the more the better; one logit vector per example.
        support: The bits of the label's parity.
        max_degree: Largest degree; None goes up to the size of the support.
        num_outside: Number of random monomials per degree; 0 omits the `out` numbers.
        class_number: Class of the probability p.
        seed: Seed of the random monomials.
    """
    bits = signs(batch)
    degrees = _degrees(support, max_degree)
    probabilities = _probabilities(model, batch, class_number)
    numbers: dict[str, float] = {}
    for degree in degrees:
        sides = {
            "in": inside_monomials(support, degree),
            "out": outside_monomials(
                bits.shape[1], support, degree=degree, limit=num_outside, seed=seed
            ),
        }
        for side, subsets in sides.items():
            if len(subsets):
                sizes = monomial_correlations(bits, probabilities, subsets).abs()
                numbers[f"{side}_{degree}_mean"] = float(sizes.mean())
                numbers[f"{side}_{degree}_max"] = float(sizes.max())
    return numbers


def signs(batch: Batch) -> Float[Tensor, "example input"]:
    """Return the input bits of a batch as -1 and +1; tokens 0 and 1 stand for +1 and -1.

    Raises:
        BindError: If the inputs are not rows of bits.
    """
    inputs = batch.leading
    bits = (1 - 2 * inputs).to(torch.float32) if batch.has_positions else inputs
    if bits.ndim != 2 or not bool((bits.abs() == 1).all()):  # noqa: PLR2004 - example and input
        raise BindError(
            f"'batch' must hold rows of bits, -1 and +1 or tokens 0 and 1; got shape "
            f"{tuple(inputs.shape)} with values from {inputs.min():g} to {inputs.max():g}"
        )
    return bits


def monomial_correlations(
    bits: Float[Tensor, "example input"],
    outputs: Float[Tensor, " example"],
    subsets: Int[Tensor, "subset member"],
) -> Float[Tensor, " subset"]:
    """Return mean(chi_T(x) output(x)) for each subset T, with its sign, in float64."""
    sums = torch.zeros(len(subsets), dtype=torch.float64)
    for rows, values in zip(
        bits.split(EXAMPLES_AT_ONCE), outputs.split(EXAMPLES_AT_ONCE), strict=True
    ):
        monomials = torch.ones(len(rows), len(subsets), dtype=rows.dtype)
        for members in subsets.unbind(1):
            monomials *= rows[:, members]
        sums += values.double() @ monomials.double()
    return sums / len(bits)


def inside_monomials(support: Collection[int], degree: int) -> Int[Tensor, "subset member"]:
    """Return all subsets of the support of one size, in order."""
    subsets = list(combinations(sorted(set(support)), degree))
    return torch.tensor(subsets, dtype=torch.long).reshape(-1, degree)


def outside_monomials(
    num_inputs: int, support: Collection[int], *, degree: int, limit: int, seed: int
) -> Int[Tensor, "subset member"]:
    """Return distinct random subsets of the inputs that are not inside the support.

    Args:
        num_inputs: Number of bits.
        support: The support; every subset has at least one bit outside of it.
        degree: Size of the subsets.
        limit: Number of subsets; if fewer exist, all are returned, in order.
        seed: Seed; each degree has its own stream.

    Raises:
        SpecError: If `limit` is negative.
    """
    if limit < 0:
        raise SpecError(f"'num_outside' must not be negative; got {limit}")
    inside = set(_members(support, num_inputs))
    if math.comb(num_inputs, degree) - math.comb(len(inside), degree) <= limit:
        every = combinations(range(num_inputs), degree)
        subsets = [subset for subset in every if not inside.issuperset(subset)]
        return torch.tensor(subsets, dtype=torch.long).reshape(-1, degree)
    generator = seeding.generator(seed, "probe/monomials", degree)
    distinct: dict[tuple[int, ...], None] = {}
    while len(distinct) < limit:
        # The indices of the largest random numbers are a uniform sample without replacement.
        indices = torch.rand(limit, num_inputs, generator=generator).topk(degree).indices
        rows = map(tuple, indices.sort(dim=-1).values.tolist())
        distinct |= dict.fromkeys(subset for subset in rows if not inside.issuperset(subset))
    return torch.tensor(list(distinct)[:limit])


def _degrees(support: Collection[int], max_degree: int | None) -> range:
    """Return the degrees from 1 on.

    Raises:
        SpecError: If the largest degree is not between 1 and the size of the support.
    """
    size = len(set(support))
    last = size if max_degree is None else max_degree
    if not 1 <= last <= size:
        raise SpecError(
            f"'max_degree' must lie between 1 and the support's {size} bits; got {last}"
        )
    return range(1, last + 1)


def _members(support: Collection[int], num_inputs: int) -> list[int]:
    """Return the bits of the support in order.

    Raises:
        SpecError: If the support is empty or contains a number that is not an input.
    """
    members = sorted(set(support))
    if not members or members[0] < 0 or members[-1] >= num_inputs:
        raise SpecError(
            f"'support' must name some of the {num_inputs} input bits, counted from 0; "
            f"got {members}"
        )
    return members


def _probabilities(
    model: TappedModel, batch: Batch, class_number: int
) -> Float[Tensor, " example"]:
    logits = selected_logits(model, batch)
    if len(logits) != batch.num_examples:
        raise BindError(
            f"'batch' must select one position per example; got {len(logits)} logit vectors for "
            f"{batch.num_examples} examples"
        )
    if not 0 <= class_number < logits.shape[1]:
        raise SpecError(
            f"'class_number' must be one of the model's {logits.shape[1]} classes, counted from "
            f"0; got {class_number}"
        )
    return logits.double().softmax(-1)[:, class_number].cpu()
