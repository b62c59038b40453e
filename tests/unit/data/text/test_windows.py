"""Masked and causal windows over a token store."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.streams import Stream, epoch_batches
from curricle.data.text.token_store import TokenStore, Vocabulary
from curricle.data.text.windows import (
    CausalWindows,
    MaskedWindows,
    Masking,
    WindowOrder,
    evaluation_batches,
    scorable,
)
from curricle.errors import BindError, DataError, SpecError
from tests.parts import token_store

VOCABULARY = Vocabulary(size=50, special=(0, 1, 2, 3), mask=2)
PLAIN = Vocabulary(size=1000)


def random_store(count: int = 6_400, *, first: int = 0) -> TokenStore:
    return token_store(np.random.default_rng(0).integers(first, 50, size=count), VOCABULARY)


def counting_store(count: int) -> TokenStore:
    return token_store(np.arange(count), PLAIN)


def shown(batch: Batch) -> Tensor:
    return batch.leading


def masked(store: TokenStore, *, seed: int = 0, **masking: float) -> MaskedWindows:
    return MaskedWindows(store, window=16, batch_size=8, seed=seed, masking=Masking(**masking))


def scored(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.selected is not None
    assert batch.labels is not None
    return batch.selected, batch.labels


@given(
    num_windows=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    start=st.integers(0, 5),
    seed=st.integers(0, 2**62),
)
def test_every_window_is_read_exactly_once_an_epoch(
    num_windows: int, batch_size: int, start: int, seed: int
) -> None:
    order = WindowOrder(
        counting_store(num_windows * 3),
        window=3,
        batch_size=batch_size,
        seed=seed,
        purpose="train",
    )
    # As many steps as windows are as many epochs as a batch has windows.
    steps = range(start * num_windows, (start + 1) * num_windows)
    counts = Counter(int(number) for step in steps for number in order.numbers(step))
    assert counts == dict.fromkeys(range(num_windows), batch_size)


def test_an_epoch_reads_all_whole_windows_of_the_text() -> None:
    stream = CausalWindows(counting_store(43), window=4, batch_size=2, seed=1)
    rows = torch.cat([shown(stream.batch(step)) for step in range(5)])
    assert sorted(rows.tolist()) == [list(range(start, start + 4)) for start in range(0, 40, 4)]


def test_epochs_have_different_orders() -> None:
    stream = CausalWindows(counting_store(400), window=4, batch_size=100, seed=1)
    assert not torch.equal(shown(stream.batch(0)), shown(stream.batch(1)))


def test_a_step_far_away_needs_none_before_it() -> None:
    store = random_store()
    walked = masked(store)
    there = [walked.batch(step) for step in range(200)][-1]
    assert torch.equal(shown(masked(store).batch(199)), shown(there))


def test_purposes_have_different_orders_and_fingerprints() -> None:
    train, other = (
        CausalWindows(counting_store(400), window=4, batch_size=9, seed=1, purpose=purpose)
        for purpose in ("train", "evaluation")
    )
    assert not torch.equal(shown(train.batch(0)), shown(other.batch(0)))
    assert train.fingerprint != other.fingerprint


def test_the_same_window_is_masked_differently_in_each_epoch() -> None:
    store = token_store(np.full(16, 7), VOCABULARY)
    stream = MaskedWindows(store, window=16, batch_size=1, seed=0)
    choices = {tuple(scored(stream.batch(step))[0].tolist()) for step in range(20)}
    assert len(choices) > 10


def test_masking_has_the_rates_of_bert() -> None:
    store = token_store(np.random.default_rng(0).integers(4, 50, size=64_000), VOCABULARY)
    batch = MaskedWindows(store, window=64, batch_size=1000, seed=0).batch(0)
    selected, labels = scored(batch)
    given_tokens = shown(batch).flatten()[selected]
    # Standard errors: 0.0014 for the rate; 0.0041 and 0.0031 for the shares of about 9,600. A
    # random token equals the label once in 46 draws, and is never the mask token.
    assert selected.numel() / 64_000 == pytest.approx(0.15, abs=0.006)
    assert (given_tokens == 2).float().mean().item() == pytest.approx(0.8, abs=0.017)
    kept = (given_tokens == labels).float().mean().item()
    assert kept == pytest.approx(0.1 + 0.1 / 46, abs=0.013)


def test_random_tokens_are_uniform_over_the_ordinary_ones() -> None:
    store = token_store(np.full(46_000, 7), VOCABULARY)
    masking = Masking(rate=1.0, mask_share=0.0, random_share=1.0)
    batch = MaskedWindows(store, window=46, batch_size=1000, seed=0, masking=masking).batch(0)
    counts = torch.bincount(shown(batch).flatten(), minlength=50)
    assert counts[:4].tolist() == [0, 0, 0, 0]
    # 1,000 expected each, with a standard deviation of about 31.
    assert counts[4:].min() > 850
    assert counts[4:].max() < 1150


def test_labels_are_the_tokens_that_were_hidden() -> None:
    store = random_store()
    masked_batch = masked(store).batch(3)
    original = shown(CausalWindows(store, window=16, batch_size=8, seed=0).batch(3)).flatten()
    selected, labels = scored(masked_batch)
    assert torch.equal(labels, original[selected])
    untouched = torch.ones(128, dtype=torch.bool)
    untouched[selected] = False
    assert torch.equal(shown(masked_batch).flatten()[untouched], original[untouched])


@given(step=st.integers(0, 10_000), seed=st.integers(0, 100))
def test_special_tokens_are_never_scored_or_changed(step: int, seed: int) -> None:
    store = random_store()
    stream = masked(store, seed=seed, rate=1.0)
    selected, labels = scored(stream.batch(step))
    original = shown(CausalWindows(store, window=16, batch_size=8, seed=seed).batch(step))
    assert torch.equal(selected, (original.flatten() > 3).nonzero().squeeze(1))
    assert labels.min() > 3


def test_the_mask_token_is_never_scored_even_if_it_is_not_called_special() -> None:
    assert scorable(Vocabulary(size=4, special=(0,), mask=3)).tolist() == [False, True, True, False]


@given(seed=st.integers(0, 200))
def test_selected_positions_ascend(seed: int) -> None:
    selected, _ = scored(masked(random_store(), seed=seed).batch(0))
    assert (selected.diff() > 0).all()


def test_a_batch_whose_draw_is_empty_scores_its_first_scorable_position() -> None:
    store = token_store(np.array([3, 1, 9, 8]), VOCABULARY)
    masking = Masking(rate=1e-9)
    batch = MaskedWindows(store, window=4, batch_size=1, seed=0, masking=masking).batch(0)
    selected, labels = scored(batch)
    assert (selected.tolist(), labels.tolist()) == ([2], [9])


@pytest.mark.parametrize("kind", [MaskedWindows, CausalWindows])
def test_a_batch_with_nothing_scorable_has_an_empty_selection(
    kind: type[MaskedWindows] | type[CausalWindows],
) -> None:
    store = token_store(np.ones(8, dtype=int), VOCABULARY)
    batch = kind(store, window=4, batch_size=2, seed=0).batch(0)
    selected, labels = scored(batch)
    assert (selected.shape, labels.shape, batch.num_selected) == ((0,), (0,), 0)


def test_causal_labels_are_the_next_tokens_inside_the_window() -> None:
    batch = CausalWindows(counting_store(8), window=4, batch_size=2, seed=0).batch(0)
    selected, labels = scored(batch)
    assert selected.tolist() == [0, 1, 2, 4, 5, 6]
    assert torch.equal(labels, shown(batch).flatten()[selected] + 1)


def test_causal_labels_are_never_special_tokens() -> None:
    store = token_store(np.array([3, 9, 1, 8, 0, 7]), VOCABULARY)
    selected, labels = scored(CausalWindows(store, window=6, batch_size=1, seed=0).batch(0))
    assert (selected.tolist(), labels.tolist()) == ([0, 2, 4], [9, 8, 7])


@given(step=st.integers(0, 5_000), window=st.integers(2, 20))
def test_causal_windows_score_all_but_the_last_position(step: int, window: int) -> None:
    stream = CausalWindows(counting_store(500), window=window, batch_size=3, seed=2)
    selected, labels = scored(stream.batch(step))
    rows = shown(stream.batch(step))
    assert torch.equal(labels.reshape(3, -1), rows[:, 1:])
    assert selected.numel() == 3 * (window - 1)


def test_sizes_say_what_a_batch_holds() -> None:
    stream = masked(random_store())
    assert (stream.batch_size, stream.tokens_per_batch, stream.num_windows) == (8, 128, 400)
    assert shown(stream.batch(0)).shape == (8, 16)
    assert CausalWindows(random_store(), window=16, batch_size=8, seed=0).num_windows == 400


def test_the_fingerprint_covers_text_shape_and_masking() -> None:
    store = random_store()
    streams: list[Stream] = [
        masked(store),
        masked(random_store(6_400, first=4)),
        masked(store, rate=0.2),
        MaskedWindows(store, window=8, batch_size=16, seed=0),
        CausalWindows(store, window=16, batch_size=8, seed=0),
    ]
    assert len({stream.fingerprint for stream in streams}) == len(streams)


def test_evaluation_batches_are_the_first_ones() -> None:
    stream = masked(random_store())
    batches = evaluation_batches(stream, 3)
    assert [shown(batch).tolist() for batch in batches] == [
        shown(stream.batch(step)).tolist() for step in (0, 1, 2)
    ]


def test_no_evaluation_batch_at_all_is_refused() -> None:
    with pytest.raises(SpecError, match="'num_batches' must be positive; got 0"):
        evaluation_batches(masked(random_store()), 0)


def test_held_out_data_of_a_stream_hold_no_example_twice() -> None:
    # 20 windows of masked tokens, in whole batches.
    batches = epoch_batches(masked(random_store(320)))
    assert [batch.num_examples for batch in batches] == [8, 8]
    with pytest.raises(BindError, match="at least one batch of 8 examples an epoch; got 7 of"):
        epoch_batches(masked(random_store(16 * 7)))
    assert len(epoch_batches(masked(random_store(16 * 8)))) == 1


def test_a_text_shorter_than_a_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(DataError, match="at least one window of 16 tokens; got 15 tokens"):
        masked(random_store(15))


@pytest.mark.parametrize(("window", "batch_size", "name"), [(0, 1, "window"), (2, 0, "batch_size")])
def test_sizes_must_be_positive(window: int, batch_size: int, name: str) -> None:
    with pytest.raises(SpecError, match=f"'{name}' must be positive; got 0"):
        MaskedWindows(random_store(), window=window, batch_size=batch_size, seed=0)


def test_a_causal_window_of_one_token_is_refused() -> None:
    with pytest.raises(SpecError, match="'window' must be at least 2 to hold a next token; got 1"):
        CausalWindows(random_store(), window=1, batch_size=1, seed=0)


def test_masking_needs_a_mask_token() -> None:
    with pytest.raises(DataError, match="'store' must have a mask token in its vocabulary"):
        MaskedWindows(counting_store(40), window=4, batch_size=1, seed=0)


def test_shares_above_one_together_are_refused() -> None:
    with pytest.raises(SpecError, match=r"must not exceed 1 together; got 0.8 and 0.3"):
        Masking(random_share=0.3)
