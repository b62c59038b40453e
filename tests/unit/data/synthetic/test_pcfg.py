"""Batches of strings: what is shown, what is hidden, what is asked for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.synthetic.derivations import IGNORED
from curricle.data.synthetic.grammars import Grammar, shipped, written
from curricle.data.synthetic.pcfg import (
    CausalStrings,
    MaskedStrings,
    TokenIds,
    labeled_strings,
    sequence_positions,
    sequence_tokens,
)
from curricle.data.text.windows import Masking
from curricle.errors import SpecError

SHORT = shipped("cfg3b", start=13)
# The only string is 5 5 9, so ids are 0 0 1; begin 2, padding 4, mask 5.
CERTAIN = Grammar(name="certain", start=11, rules=written("11 = 10 10 12\n10 = 5\n12 = 9"))
BEGIN, PAD, MASK = 3, 5, 6


def masked(grammar: Grammar = SHORT, **fields: Any) -> MaskedStrings:
    return MaskedStrings(grammar, **({"batch_size": 32, "seed": 0} | fields))


def causal(grammar: Grammar = SHORT, **fields: Any) -> CausalStrings:
    return CausalStrings(grammar, **({"batch_size": 32, "seed": 0} | fields))


def given(batch: Batch, name: str = "input_ids") -> Tensor:
    assert not isinstance(batch.inputs, Tensor)
    return batch.inputs[name]


def found(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def flat(batch: Batch, name: str = "input_ids") -> Tensor:
    return given(batch, name).flatten()


def test_the_ids_of_three_terminals_are_those_of_the_papers_code() -> None:
    ids = TokenIds(3)
    assert (ids.begin, ids.end, ids.padding, ids.mask, ids.vocabulary_size) == (3, 4, 5, 6, 8)


def test_a_row_is_the_begin_token_and_a_string_and_padding() -> None:
    stream = causal()
    rows = given(stream.batch(3)).tolist()
    for row, string in zip(rows, stream.derivations(3).strings(), strict=True):
        end = len(string) + 1
        assert row[:end] == [BEGIN, *(token - 1 for token in string)]
        assert set(row[end:]) <= {PAD}


def test_terminals_are_numbered_from_zero_whatever_their_symbols() -> None:
    batch = causal(CERTAIN, batch_size=1).batch(0)
    assert given(batch).tolist() == [[2, 0, 0, 1]]
    assert found(batch.labels).tolist() == [0, 0, 1]
    assert found(batch.selected).tolist() == [0, 1, 2]


@pytest.mark.parametrize("make", [masked, causal])
def test_padding_is_neither_valid_nor_seen_nor_scored(make: Any) -> None:
    batch = make(batch_size=512).batch(0)
    padding = given(batch) == PAD
    assert padding.any()
    assert torch.equal(found(batch.valid), ~padding)
    assert torch.equal(given(batch, "attention_mask"), (~padding).long())
    assert found(batch.valid).flatten()[batch.selected].all()


@pytest.mark.parametrize("make", [masked, causal])
def test_rows_are_as_long_as_the_longest_string_of_the_grammar(make: Any) -> None:
    # 13 = 11 12: two symbols of three, each of two or three tokens.
    assert given(make().batch(0)).shape == (32, 19)
    assert sequence_positions(SHORT) == 19


@pytest.mark.parametrize("make", [masked, causal])
def test_rows_may_be_as_long_as_the_longest_of_the_batch_with_the_same_content(make: Any) -> None:
    long = shipped("cfg3b")
    full, cut = (make(long, batch_size=4, pad_to=one).batch(0) for one in ("grammar", "batch"))
    size = given(cut).shape[1]
    assert found(cut.valid)[:, -1].any()
    assert size < given(full).shape[1] == 433
    assert torch.equal(given(full)[:, :size], given(cut))
    assert torch.equal(found(full.labels), found(cut.labels))


def test_positions_of_rows_cut_to_the_batch_are_counted_by_expectation() -> None:
    stream = masked(pad_to="batch", batch_size=4)
    sizes = [given(stream.batch(step)).numel() for step in range(500)]
    # A length between 12 and 18 deviates by at most 3 of its mean; 5 standard errors of 4 rows.
    assert np.mean(sizes) == pytest.approx(stream.tokens_per_batch, abs=0.5 + 4 * 15 / 500**0.5)
    assert stream.tokens_per_batch == sequence_tokens(SHORT, batch_size=4, pad_to="batch")
    assert stream.tokens_per_batch < masked(batch_size=4).tokens_per_batch == 4 * 19


def test_the_begin_token_and_all_others_are_hidden_at_the_given_rate() -> None:
    batch = masked(batch_size=4096).batch(0)
    valid, chosen = found(batch.valid), torch.zeros(4096 * 19, dtype=torch.bool)
    chosen[found(batch.selected)] = True
    rows = chosen.reshape(4096, 19)
    for share, number in ((rows[:, 0], 4096), (rows[valid], int(valid.sum()))):
        # Five standard deviations of a share of n draws.
        assert abs(share.double().mean() - 0.3) < 5 * math.sqrt(0.21 / number)


def test_hidden_tokens_become_the_mask_or_stay_or_become_a_terminal() -> None:
    batch = masked(shipped("cfg3b"), batch_size=64).batch(0)
    shown, labels = flat(batch)[batch.selected], found(batch.labels)
    number = len(labels)
    shares = {
        "mask": (shown == MASK).double().mean().item(),
        # A random terminal of three is the old one every third time, and never the begin token.
        "kept": (shown == labels).double().mean().item(),
    }
    for name, share in (("mask", 0.8), ("kept", 0.1 + 0.1 / 3)):
        assert abs(shares[name] - share) < 5 * math.sqrt(share * (1 - share) / number)
    assert set(shown[shown != labels].tolist()) == {0, 1, 2, MASK}


def test_what_is_not_selected_is_shown_as_it_was() -> None:
    batch, plain = masked().batch(5), causal().batch(5)
    rest = torch.ones(flat(batch).shape, dtype=torch.bool)
    rest[found(batch.selected)] = False
    assert torch.equal(flat(batch)[rest], flat(plain)[rest])
    assert torch.equal(flat(plain)[batch.selected], found(batch.labels))


def test_a_batch_whose_draw_hides_nothing_hides_its_first_terminal() -> None:
    batch = masked(CERTAIN, batch_size=1, masking=Masking(rate=1e-9)).batch(0)
    assert found(batch.selected).tolist() == [1]
    assert found(batch.labels).tolist() == [0]


def test_with_the_quirk_no_position_sees_a_selected_one() -> None:
    plain, quirk = masked().batch(0), masked(masking_quirk=True).batch(0)
    seen = found(plain.valid).flatten().clone()
    seen[found(plain.selected)] = False
    assert torch.equal(flat(quirk, "attention_mask"), seen.long())
    for name in ("valid", "selected", "labels"):
        assert torch.equal(getattr(plain, name), getattr(quirk, name))
    assert torch.equal(given(plain), given(quirk))


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_token_asked_for_ends_a_span_of_the_level(level: int) -> None:
    stream = causal(span_level=level)
    batch, drawn = stream.batch(2), stream.derivations(2)
    assert found(batch.labels).tolist() == (drawn.tokens[drawn.ends[level]] - 1).tolist()
    assert torch.equal(flat(batch)[found(batch.selected) + 1], found(batch.labels))
    # 13 has two symbols of three symbols of two or three tokens.
    expected = {1: 6, 2: 2, 3: 1}.get(level, drawn.lengths.mean())
    assert batch.num_selected == 32 * expected


@pytest.mark.parametrize("level", [-1, 4])
def test_a_level_must_be_in_the_grammar(level: int) -> None:
    with pytest.raises(
        SpecError,
        match=f"'span_level' must lie between 0 and 3, .* start symbol 13; got {level}",
    ):
        causal(span_level=level)


@pytest.mark.parametrize("make", [masked, causal])
def test_a_batch_has_at_least_one_sequence(make: Any) -> None:
    with pytest.raises(SpecError, match="'batch_size' must be positive; got 0"):
        make(batch_size=0)


def test_readers_of_one_seed_draw_different_strings_and_masks() -> None:
    train, other = masked().batch(0), masked(purpose="evaluation").batch(0)
    assert found(train.valid).sum() != found(other.valid).sum()
    assert masked().fingerprint != masked(purpose="evaluation").fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"grammar": shipped("cfg3b", start=14)},
        {"grammar": shipped("cfg3b-p2", start=13)},
        {"masking": Masking(rate=0.2)},
        {"masking_quirk": True},
        {"pad_to": "batch"},
        {"batch_size": 31},
    ],
)
def test_the_fingerprint_tells_everything_that_batches_depend_on(change: dict[str, Any]) -> None:
    assert masked(**change).fingerprint != masked().fingerprint


def test_the_fingerprint_tells_the_level() -> None:
    assert causal(span_level=1).fingerprint != causal().fingerprint != masked().fingerprint


def test_labeled_strings_are_shown_whole_with_the_symbols_above_them() -> None:
    """Symbols against the only tree: a 10 is above each 5, a 12 above 9, and 11 above all."""
    strings = labeled_strings(CERTAIN, number=2, seed=0, purpose="probe")
    assert given(strings.batch).tolist() == [[2, 0, 0, 1]] * 2
    assert strings.batch.labels is None
    assert strings.symbols.tolist() == [[[IGNORED] * 2, [5, 10], [5, 10], [9, 12]]] * 2


def test_symbols_belong_to_their_tokens_and_leave_out_the_start() -> None:
    strings = labeled_strings(SHORT, number=16, seed=0, purpose="probe")
    tokens, symbols = given(strings.batch), strings.symbols
    assert symbols.shape == (*tokens.shape, 3)
    is_token = tokens < BEGIN
    assert torch.equal(found(strings.batch.valid), is_token | (tokens == BEGIN))
    # Terminals 1, 2, 3 have the ids 0, 1, 2.
    assert torch.equal(symbols[..., 0][is_token], tokens[is_token] + 1)
    assert set(symbols[..., 2][is_token].tolist()) == {11, 12}
    assert (symbols[~is_token] == IGNORED).all()


def test_labeled_strings_depend_on_seed_and_purpose_alone() -> None:
    first, again, other, purpose = (
        given(labeled_strings(SHORT, number=8, seed=seed, purpose=name).batch)
        for seed, name in ((0, "probe"), (0, "probe"), (1, "probe"), (0, "else"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, purpose)
