"""Correlations of networks that compute known monomials."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.probes.correlations import (
    inside_monomials,
    monomial_correlations,
    output_correlations,
    outside_monomials,
    signs,
)

# All 64 points of the cube, so that means are expectations and correlations exact.
CUBE = torch.tensor(list(product([1.0, -1.0], repeat=6)))
SUPPORT = (0, 1, 2)


class Monomial(nn.Module):
    """Log odds of class 1: `strength` times the product of some bits."""

    def __init__(self, members: tuple[int, ...], strength: float = 50.0) -> None:
        super().__init__()
        self.members, self.strength = list(members), strength
        self.block = nn.Identity()

    def forward(self, bits: Tensor) -> Tensor:
        odds = self.strength * self.block(bits)[:, self.members].prod(1)
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


def monomial(*members: int, strength: float = 50.0) -> TappedModel:
    return tapped(Monomial(members, strength), blocks=["block"])


def test_a_network_that_computes_the_parity_follows_it_alone() -> None:
    actual = output_correlations(monomial(0, 1, 2), Batch(inputs=CUBE), support=SUPPORT)
    # p is 1 where the product is 1 and 0 elsewhere, so its correlation is exactly 1/2.
    assert actual["in_3_mean"] == pytest.approx(0.5, abs=1e-12)
    others = {name: number for name, number in actual.items() if not name.startswith("in_3")}
    assert others == pytest.approx(dict.fromkeys(others, 0.0), abs=1e-12)
    assert list(actual)[:4] == ["in_1_mean", "in_1_max", "out_1_mean", "out_1_max"]


def test_a_bit_inside_the_support_counts_among_its_monomials() -> None:
    actual = output_correlations(monomial(1), Batch(inputs=CUBE), support=SUPPORT, max_degree=1)
    assert actual == pytest.approx(
        {"in_1_mean": 0.5 / 3, "in_1_max": 0.5, "out_1_mean": 0, "out_1_max": 0}, abs=1e-12
    )


def test_a_monomial_across_the_border_counts_as_outside() -> None:
    actual = output_correlations(monomial(0, 4), Batch(inputs=CUBE), support=SUPPORT)
    # 15 pairs of six bits, three of them inside the support.
    assert actual["out_2_mean"] == pytest.approx(0.5 / 12, abs=1e-12)
    assert actual["out_2_max"] == pytest.approx(0.5, abs=1e-12)
    assert actual["in_2_max"] == pytest.approx(0, abs=1e-12)


def test_a_soft_output_correlates_by_its_probability() -> None:
    actual = output_correlations(monomial(0, strength=2.0), Batch(inputs=CUBE), support=[0])
    # (sigmoid(2) - sigmoid(-2)) / 2 = tanh(1) / 2.
    assert actual["in_1_max"] == pytest.approx(math.tanh(1) / 2, rel=1e-6)


def test_the_other_class_correlates_as_strongly() -> None:
    model, batch = monomial(0, 1, 2, strength=1.0), Batch(inputs=CUBE)
    one, other = (
        output_correlations(model, batch, support=SUPPORT, class_number=number) for number in (0, 1)
    )
    assert one == pytest.approx(other, abs=1e-9)


def test_chance_alone_gives_what_the_docs_say_also_for_a_constant_output() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = 2.0 * torch.randint(0, 2, (2000, 30), generator=generator) - 1
    actual = output_correlations(monomial(0, strength=0.0), Batch(inputs=bits), support=range(2))
    # The mean of |N(0, s^2)| is s sqrt(2 / pi); p is 1/2 everywhere. 28 bits, 100 of the pairs.
    chance = math.sqrt(2 * 0.25 / (math.pi * 2000))
    assert actual["out_1_mean"] == pytest.approx(chance, rel=0.4)
    assert actual["out_2_mean"] == pytest.approx(chance, rel=0.2)


def test_tokens_stand_for_bits() -> None:
    tokens = ((1 - CUBE) / 2).long()
    assert torch.equal(signs(Batch(inputs={"input_ids": tokens})), CUBE)


def test_a_support_of_all_bits_has_nothing_outside() -> None:
    actual = output_correlations(monomial(0), Batch(inputs=CUBE), support=range(6), max_degree=2)
    assert list(actual) == ["in_1_mean", "in_1_max", "in_2_mean", "in_2_max"]


def test_many_examples_give_the_same_in_chunks() -> None:
    with seeding.scoped(0, "test"):
        bits = torch.randint(0, 2, (20_000, 8)) * 2.0 - 1
        outputs = torch.rand(20_000, dtype=torch.float64)
    subsets = inside_monomials(range(8), 3)
    direct = np.prod(bits.numpy()[:, subsets.numpy()], axis=2).T @ outputs.numpy() / 20_000
    assert monomial_correlations(bits, outputs, subsets).numpy() == pytest.approx(direct, abs=1e-12)


def test_inside_are_all_subsets() -> None:
    assert inside_monomials([4, 0, 2], 2).tolist() == [[0, 2], [0, 4], [2, 4]]
    assert len(inside_monomials(range(6), 3)) == math.comb(6, 3)


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_outside_are_different_subsets_with_a_bit_outside(degree: int) -> None:
    actual = outside_monomials(40, range(6), degree=degree, limit=30, seed=3).tolist()
    assert len(actual) == len({tuple(row) for row in actual}) == 30
    assert all(row == sorted(set(row)) and len(row) == degree for row in actual)
    assert all(set(row) - set(range(6)) for row in actual)


def test_all_subsets_outside_are_taken_where_there_are_few() -> None:
    actual = outside_monomials(100, range(6), degree=1, limit=100, seed=0)
    assert actual[:, 0].tolist() == list(range(6, 100))


def test_random_monomials_are_those_of_the_seed() -> None:
    first, again, other = (
        outside_monomials(50, [0], degree=3, limit=20, seed=seed).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_random_subsets_reach_every_bit_alike() -> None:
    actual = outside_monomials(20, [0], degree=2, limit=150, seed=0)
    counts = torch.bincount(actual.flatten(), minlength=20)
    # 150 of 190 pairs: 15 of each bit's 19 on average.
    assert counts.min() >= 10
    assert counts.max() <= 19


def test_a_fresh_network_of_any_width_gives_numbers() -> None:
    with seeding.scoped(0, "model"):
        model = tapped(MLP(6, (16,), 2))
    actual = output_correlations(model, Batch(inputs=CUBE), support=SUPPORT)
    assert all(0 <= number <= 0.5 for number in actual.values())


@pytest.mark.parametrize("inputs", [torch.zeros(3, 4), torch.ones(3, 4, 2)])
def test_inputs_must_be_bits(inputs: Tensor) -> None:
    with pytest.raises(BindError, match=r"^'batch' must hold rows of bits, -1 and \+1 or tokens"):
        output_correlations(monomial(0), Batch(inputs=inputs), support=[0])


def test_one_answer_an_example_is_read() -> None:
    model = tapped(nn.Embedding.from_pretrained(torch.eye(2)))
    with pytest.raises(
        BindError,
        match=r"^'batch' must select one position per example; got 6 logit vectors for 2 "
        r"examples$",
    ):
        output_correlations(
            model,
            Batch(inputs=torch.tensor([[0, 1, 0], [1, 1, 0]]), selected=torch.arange(6)),
            support=[0],
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"support": []}, r"'max_degree' must lie between 1 and the support's 0 bits; got 0"),
        ({"support": [0], "max_degree": 2}, r"'max_degree' must lie .* 1 bits; got 2"),
        ({"support": [0, 6]}, r"'support' must name some of the 6 input bits, .*; got \[0, 6\]"),
        ({"support": [0], "num_outside": -1}, r"'num_outside' must not be negative; got -1"),
        ({"support": [0], "class_number": 2}, r"'class_number' must be .* 2 classes, .*; got 2"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=f"^{sentence}$"):
        output_correlations(monomial(0), Batch(inputs=CUBE), **settings)  # type: ignore[arg-type]
