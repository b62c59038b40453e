"""Codecs: what comes back is within the stated error, and drawn classes teach without bias."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.errors import DataError, SpecError
from curricle.objectives.sparse import SparseTarget, sparse_forward_kl
from curricle.teachers.store.codecs import BFloat16, Codec, Exact, Int8, Sampled, TopK
from tests.parts import drawn

CLASSES = 9


def random(rows: int, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return lambda count: generator.random((rows, count))


def back(codec: Codec, target: Tensor, seed: int = 0) -> Any:
    entries = codec.encode(target, random(len(target), seed))
    return codec.decode(entries, target.shape[-1])


def size(codec: Codec, target: Tensor) -> float:
    entries = codec.encode(target, random(len(target)))
    return sum(one.nbytes for one in entries.values()) / len(target)


def dense(target: SparseTarget, classes: int = CLASSES) -> Tensor:
    return torch.zeros(len(target.ids), classes).scatter_add(1, target.ids, target.weights)


@given(
    st.sampled_from([Exact(), BFloat16(), Int8()]),
    st.integers(0, 1000),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e5]),
)
def test_numbers_come_back_within_the_stated_error(codec: Any, seed: int, scale: float) -> None:
    target = drawn(4, 7, seed=seed) * scale
    assert ((back(codec, target) - target).abs() <= codec.bound(target)).all()


def test_the_stated_error_of_rounding_is_reached_nearly() -> None:
    target = drawn(64, 64)
    for codec in (BFloat16(), Int8()):
        share = (back(codec, target) - target).abs() / codec.bound(target)
        assert share.max() > 0.95


def test_a_row_of_zeros_comes_back() -> None:
    assert not back(Int8(), torch.zeros(2, 5)).any()


def test_a_row_that_is_not_finite_is_refused_by_int8() -> None:
    with pytest.raises(DataError, match="'int8' must be used for finite targets"):
        back(Int8(), torch.full((1, 2), float("inf")))


def test_a_state_of_width_768_takes_1536_bytes_in_bfloat16() -> None:
    assert size(BFloat16(), drawn(2, 768)) == 1536
    assert size(Int8(), drawn(2, 768)) == 772


def test_twelve_draws_of_128k_classes_take_30_bytes() -> None:
    assert size(Sampled(), torch.zeros(2, 131_072)) == 30
    assert size(Sampled(proposal=0.5), torch.zeros(2, 131_072)) == 54


@pytest.mark.parametrize("proposal", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mean_of_draws_is_the_distribution(proposal: float, temperature: float) -> None:
    logits = drawn(2, CLASSES) * 1.5
    codec = Sampled(num_samples=3, proposal=proposal, temperature=temperature)
    repeated = logits.repeat_interleave(20_000, 0)
    found = dense(back(codec, repeated)).unflatten(0, (2, -1))
    likely = (logits / temperature).softmax(-1)
    # Five standard errors of the mean.
    error = 5 * found.std(1) / 20_000**0.5 + 1e-4
    assert ((found.mean(1) - likely).abs() <= error).all()


@pytest.mark.parametrize("proposal", [1.0, 0.5])
def test_the_mean_gradient_of_draws_is_that_of_the_full_divergence(proposal: float) -> None:
    logits, student = drawn(1, CLASSES), drawn(1, CLASSES, seed=3).requires_grad_()
    repeats = 40_000
    target = back(Sampled(num_samples=2, proposal=proposal), logits.expand(repeats, -1))
    loss = sparse_forward_kl(student.expand(repeats, -1), target, student_temperature=1.0)
    (found,) = torch.autograd.grad(loss / repeats, student)
    # The gradient of KL(p || softmax(s)) to s.
    wanted = student.softmax(-1) - logits.softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)
    likely = logits.softmax(-1)
    value = (likely * (likely / student.softmax(-1)).log()).sum()
    assert abs(loss.item() / repeats - value.item()) < 0.01


def test_strata_vary_less_than_independent_draws() -> None:
    logits = drawn(1, CLASSES).expand(5000, -1)
    likely = logits[0].softmax(-1)
    found = dense(back(Sampled(num_samples=4), logits)).var(0)
    assert (found <= likely * (1 - likely) / 4 * 1.1).all()


def test_a_class_without_mass_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]])
    for proposal in (1.0, 0.0):
        target = back(Sampled(num_samples=50, proposal=proposal), logits.expand(20, -1))
        assert set(target.ids.flatten().tolist()) == {1, 3}
        assert torch.isfinite(target.constant).all()


def test_draws_of_many_rows_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = drawn(7, CLASSES)
    wanted = back(Sampled(), logits)
    monkeypatch.setattr("curricle.teachers.store.codecs.LOGITS_PER_CHUNK", 2 * CLASSES)
    assert torch.equal(back(Sampled(), logits).ids, wanted.ids)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_likeliest_classes_come_back_with_the_rest_as_one(temperature: float) -> None:
    logits = drawn(3, CLASSES)
    likely = (logits / temperature).softmax(-1)
    mass, ids = likely.topk(4)
    target = back(TopK(k=4, temperature=temperature), logits)
    assert torch.equal(target.ids, ids)
    torch.testing.assert_close(target.weights, mass, rtol=1e-2, atol=0)
    assert target.remaining_mass is not None
    torch.testing.assert_close(target.remaining_mass, 1 - mass.sum(-1), rtol=0, atol=1e-2)
    assert target.temperature == temperature


def test_renormalized_classes_have_all_mass() -> None:
    target = back(TopK(k=4, missing="renormalize"), drawn(3, CLASSES))
    assert target.remaining_mass is None
    torch.testing.assert_close(target.weights.sum(-1), torch.ones(3))


@pytest.mark.parametrize("missing", ["rest", "renormalize"])
def test_a_student_that_agrees_has_no_loss(missing: Any) -> None:
    logits = drawn(3, CLASSES)
    target = back(TopK(k=CLASSES + 3, missing=missing), logits)
    loss = sparse_forward_kl(logits, target, student_temperature=1.0)
    assert abs(loss.item()) < 1e-4


def test_a_class_that_is_not_known_hides_nothing_from_the_rest() -> None:
    codec = TopK(k=2)
    unknown = torch.tensor([[-0.1, float("-inf")]])
    entries = codec.entries(torch.tensor([[3, 0]]), unknown, CLASSES)
    target = codec.decode(entries, CLASSES)
    assert target.ids.tolist() == [[3, 3]]
    assert target.weights[0, 1] == 0


@pytest.mark.parametrize("codec", [Exact(), BFloat16(), Int8(), Sampled(), TopK()])
def test_every_codec_states_its_error(codec: Codec) -> None:
    assert codec.words


def test_the_policy_of_the_missing_mass_is_stated() -> None:
    assert "one bucket" in TopK().words
    assert "bias" in TopK(missing="renormalize").words


def test_draws_are_at_least_one() -> None:
    with pytest.raises(SpecError, match="num_samples"):
        Sampled(num_samples=0)
