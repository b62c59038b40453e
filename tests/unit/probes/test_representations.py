"""Similarity, readability and rank of states with a known relation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.probes.representations import (
    effective_rank,
    linear_accuracy,
    linear_cka,
    linear_probe,
    tap_similarity,
)

FORMS = pytest.mark.parametrize("debiased", [False, True])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeding.generator(seed, "states"))


def rotation(width: int, seed: int) -> Tensor:
    orthogonal, _ = torch.linalg.qr(drawn(width, width, seed=seed).double())
    return torch.as_tensor(orthogonal)


def network(widths: tuple[int, ...], seed: int = 0) -> TappedModel:
    with seeding.scoped(seed, "model"):
        return tapped(MLP(4, widths, 2))


@FORMS
def test_a_representation_is_like_itself(debiased: bool) -> None:
    states = drawn(50, 8)
    assert linear_cka(states, states, debiased=debiased) == pytest.approx(1, abs=1e-9)


@FORMS
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    rows=st.integers(12, 40),
    width=st.integers(2, 6),
)
def test_rotation_scale_and_shift_change_nothing(
    debiased: bool, seed: int, scale: float, rows: int, width: int
) -> None:
    states, other = drawn(rows, width, seed=seed).double(), drawn(rows, 3, seed=seed + 1).double()
    moved = scale * states @ rotation(width, seed) + scale * drawn(width, seed=seed + 2)
    assert linear_cka(states, moved, debiased=debiased) == pytest.approx(1, abs=1e-8)
    before = linear_cka(states, other, debiased=debiased)
    assert linear_cka(moved, other, debiased=debiased) == pytest.approx(before, abs=1e-8)


@FORMS
@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_two_does_not_matter(debiased: bool, seed: int) -> None:
    first, second = drawn(20, 5, seed=seed), drawn(20, 7, seed=seed + 1)
    both = [linear_cka(*pair, debiased=debiased) for pair in ((first, second), (second, first))]
    assert both[0] == pytest.approx(both[1], abs=1e-12)


def test_a_stretched_representation_is_not_the_same() -> None:
    # Two independent columns of variance 1; stretching one by 3 gives variances 1 and 9 against
    # 1 and 1: CKA = (1 + 9) / (sqrt(1 + 81) sqrt(1 + 1)).
    states = drawn(100_000, 2).double()
    actual = linear_cka(states, states * torch.tensor([1.0, 3.0]))
    assert actual == pytest.approx(10 / math.sqrt(82 * 2), abs=5e-3)


def test_unrelated_wide_states_are_near_zero_without_bias_only() -> None:
    first, second = drawn(200, 100), drawn(200, 100, seed=1)
    assert abs(linear_cka(first, second)) < 0.02
    # With n rows the biased form is near width / (width + n).
    assert linear_cka(first, second, debiased=False) == pytest.approx(1 / 3, abs=0.02)


def song(kernel: np.ndarray, other: np.ndarray) -> float:
    """Return the unbiased HSIC by the formula of Song et al., with matrices of rows x rows."""
    n = len(kernel)
    k, l = kernel - np.diag(np.diag(kernel)), other - np.diag(np.diag(other))  # noqa: E741
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3)))


def test_the_debiased_form_is_that_of_the_formula() -> None:
    first, second = drawn(15, 4).double().numpy(), drawn(15, 6, seed=1).double().numpy()
    second[:, :2] += first[:, :2]
    k, l = first @ first.T, second @ second.T  # noqa: E741
    expected = song(k, l) / math.sqrt(song(k, k) * song(l, l))
    actual = linear_cka(torch.from_numpy(first), torch.from_numpy(second))
    assert actual == pytest.approx(expected, abs=1e-10)


def test_the_biased_form_is_that_of_the_formula() -> None:
    first, second = drawn(15, 4).double().numpy(), drawn(15, 6, seed=1).double().numpy()
    centering = np.eye(15) - 1 / 15
    k, l = (centering @ x @ x.T @ centering for x in (first, second))  # noqa: E741
    expected = np.sum(k * l) / math.sqrt(np.sum(k * k) * np.sum(l * l))
    actual = linear_cka(torch.from_numpy(first), torch.from_numpy(second), debiased=False)
    assert actual == pytest.approx(float(expected), abs=1e-10)


@FORMS
def test_constant_states_cannot_be_compared(debiased: bool) -> None:
    with pytest.raises(
        DataError,
        match=r"^'second' must vary from row to row to be compared; got 9 equal rows$",
    ):
        linear_cka(drawn(9, 3), torch.full((9, 3), 0.1), debiased=debiased)


def test_one_row_against_all_others_is_not_enough_without_bias() -> None:
    lone = torch.zeros(9, 3)
    lone[4] = 1
    with pytest.raises(DataError, match=r"^'first' must vary in more than one row"):
        linear_cka(lone, drawn(9, 3))


def test_the_debiased_form_needs_four_rows() -> None:
    with pytest.raises(DataError, match=r"^'states' must have at least 4 rows; got 3$"):
        linear_cka(drawn(3, 2), drawn(3, 2))


def test_every_pair_of_taps_is_compared() -> None:
    batch = Batch(inputs=drawn(64, 4))
    actual = tap_similarity(network((5,)), batch, teacher=network((6, 7), seed=1))
    assert list(actual) == [f"cka_{one}_{two}" for one in (0, 1) for two in (0, 1, 2)]
    # Tap 0 is the input of both.
    assert actual["cka_0_0"] == pytest.approx(1)
    assert all(number < 1 for name, number in actual.items() if name != "cka_0_0")


def test_a_dead_layer_is_left_out_and_the_others_are_compared() -> None:
    student, teacher = network((5, 3)), network((6,), seed=1)
    with torch.no_grad():
        last = student.module.get_submodule("blocks.1.0")
        assert isinstance(last, nn.Linear)
        last.bias.fill_(-100.0)
    actual = tap_similarity(student, Batch(inputs=drawn(40, 4)), teacher=teacher)
    assert set(actual) == {"cka_0_0", "cka_0_1", "cka_1_0", "cka_1_1"}
    with pytest.raises(DataError, match="at least 4 rows"):
        tap_similarity(student, Batch(inputs=drawn(3, 4)), teacher=teacher)


def test_chosen_taps_alone_are_compared() -> None:
    model = network((5, 5))
    actual = tap_similarity(
        model, Batch(inputs=drawn(64, 4)), teacher=model, student_taps=[2], teacher_taps=[2]
    )
    assert actual == pytest.approx({"cka_2_2": 1})


def test_taps_with_other_positions_are_not_compared() -> None:
    class Pairs(nn.Module):
        """Reads each example twice."""

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.cat([inputs, inputs])

    pairs = tapped(nn.Sequential(Pairs()))
    with pytest.raises(
        BindError,
        match=r"^student tap '0' and teacher tap '1' must have the same positions; got 16 and "
        r"8 rows$",
    ):
        tap_similarity(
            pairs,
            Batch(inputs=drawn(8, 4)),
            teacher=network((5,)),
            student_taps=["0"],
            teacher_taps=[1],
        )


def test_separable_labels_are_read_off() -> None:
    states = drawn(400, 5)
    labels = (states[:, 1] + 2 * states[:, 3] > 0).long()
    assert linear_accuracy(states, labels) > 0.97


def test_a_parity_is_not_read_off_its_bits_but_off_their_product() -> None:
    bits = drawn(400, 2).sign()
    labels = (bits.prod(1) > 0).long()
    assert linear_accuracy(bits, labels) < 0.65
    assert linear_accuracy(torch.cat([bits, bits.prod(1, keepdim=True)], 1), labels) == 1


def test_several_classes_are_told_apart() -> None:
    labels = torch.arange(300) % 3
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    assert linear_accuracy(corners[labels] + 0.3 * drawn(300, 2), labels) == 1


def test_scale_shift_and_dead_units_do_not_matter() -> None:
    states = drawn(200, 3)
    labels = (states[:, 0] > 0.2).long()
    dead = torch.cat([1e4 * states + 5e4, torch.full((200, 1), 7.0)], 1)
    assert linear_accuracy(dead, labels) == linear_accuracy(states, labels)


def test_the_same_states_give_the_same_accuracy_without_touching_gradients() -> None:
    states, labels = drawn(60, 3).requires_grad_(), torch.arange(60) % 2
    with torch.no_grad():
        first = linear_accuracy(states, labels)
    assert first == linear_accuracy(states, labels)
    assert states.grad is None


def test_labels_are_read_off_each_tap() -> None:
    inputs = drawn(200, 4)
    batch = Batch(inputs=inputs, labels=(inputs[:, 0] > 0).long())
    actual = linear_probe(network((6,)), batch)
    assert list(actual) == ["linear_0_accuracy", "linear_1_accuracy"]
    assert actual["linear_0_accuracy"] > 0.95


def test_a_linear_probe_needs_labels() -> None:
    with pytest.raises(
        BindError, match=r"^'labels' must be in the batch for a linear probe; got none$"
    ):
        linear_probe(network((6,)), Batch(inputs=drawn(8, 4)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"held_out": 1.0}, r"'held_out' must lie strictly between 0 and 1; got 1\.0"),
        ({"penalty": 0.0}, r"'penalty' must be positive; got 0\.0"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(SpecError, match=f"^{sentence}$"):
        linear_accuracy(drawn(8, 2), torch.arange(8) % 2, **settings)


def test_both_sides_of_the_cut_need_rows() -> None:
    with pytest.raises(
        DataError, match=r"^'states' must have rows on both sides of a split at 0\.25; got 1$"
    ):
        linear_accuracy(drawn(1, 2), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_effective_rank_counts_directions_of_equal_spread(rank: int) -> None:
    columns = torch.linalg.qr(drawn(30, rank + 1).double() @ torch.eye(rank + 1).double())[0]
    centered = columns - columns.mean(0)
    equal = torch.linalg.svd(centered, full_matrices=False)[0][:, :rank]
    states = 5 * equal @ rotation(6, 0)[:rank] + 3
    assert effective_rank(states) == pytest.approx(rank, abs=1e-6)


def test_an_uneven_spread_counts_less() -> None:
    # Singular values in the ratio 3 : 1, so exp of the entropy of (3/4, 1/4).
    states = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(states) == pytest.approx(math.exp(entropy))


def test_states_that_do_not_vary_have_rank_zero() -> None:
    assert effective_rank(torch.full((10, 3), 0.1)) == 0


def test_leading_directions_alone_may_count() -> None:
    # Singular values in the ratio 3 : 1 : 1; of the first two the shares are 3/4 and 1/4.
    states = torch.zeros(6, 3)
    for row, (axis, size) in enumerate(((0, 3), (0, -3), (1, 1), (1, -1), (2, 1), (2, -1))):
        states[row, axis] = size
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(states, directions=2) == pytest.approx(math.exp(entropy))
