"""Aligned positions of two tokenizers: both have read the same text there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from curricle.data.batch import Batch, named
from curricle.data.text.paired import PairedTexts, paired_texts, window_starts
from curricle.data.text.tokenizing import train_tokenizer
from curricle.errors import DataError

SAMPLE = [
    "the cat sat on the mat; the hat of the cat was red. Übergrößen: größer, am größten 😀😀 "
]
SMALL, LARGE = train_tokenizer(SAMPLE * 8, 275), train_tokenizer([*SAMPLE, "hat mat 😀 " * 9], 300)
texts = st.lists(st.text("the catmorü😀\n ß", min_size=1, max_size=40), min_size=1, max_size=6)
tokenizers = st.sampled_from([(SMALL, LARGE), (LARGE, SMALL), (LARGE, LARGE)])


def bytes_of(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """Return the bytes of some tokens, whole characters or not."""
    tokens = [tokenizer.id_to_token(number) for number in ids]
    return bytes(BYTES[letter] for token in tokens for letter in token or "")


def letters() -> dict[str, int]:
    """Return the byte for which each letter of a byte-level vocabulary stands."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in plain]
    return {chr(number): number for number in plain} | {
        chr(256 + place): number for place, number in enumerate(others)
    }


BYTES = letters()


def stream(lines: list[str], pair: tuple[Tokenizer, Tokenizer]) -> PairedTexts | None:
    try:
        return paired_texts(lines, *pair, window=4, batch_size=2)
    except DataError:
        return None


@settings(max_examples=150, deadline=None)
@given(lines=texts, pair=tokenizers, step=st.integers(0, 5))
def test_matched_positions_have_read_the_same_bytes_of_text(
    lines: list[str], pair: tuple[Tokenizer, Tokenizer], step: int
) -> None:
    data = stream(lines, pair)
    if data is None:
        return
    batch = data.batch(step)
    assert batch.alignment is not None
    assert batch.matched is not None
    content = "".join(lines).encode()
    for row in range(batch.num_examples):
        own, taught = rows_of(batch, row)
        whole = bytes_of(pair[0], own)
        assert whole in content
        for position in np.flatnonzero(batch.matched[row]):
            place = int(batch.alignment[row, position])
            read = bytes_of(pair[0], own[: position + 1])
            other = bytes_of(pair[1], taught[: place + 1])
            # Without a pair in the window before, one begins later, at most inside of a token.
            assert read.endswith(other) or other.endswith(read)
            assert other


def rows_of(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """Return the tokens of student and teacher in an example, without padding."""
    taught = named(batch.teacher_inputs)
    length = int(taught["attention_mask"][row].sum())
    return named(batch.inputs)["input_ids"][row].tolist(), taught["input_ids"][
        row, :length
    ].tolist()


@settings(max_examples=50, deadline=None)
@given(lines=texts)
def test_one_tokenizer_twice_matches_every_token_that_ends_a_character(lines: list[str]) -> None:
    data = stream(lines, (LARGE, LARGE))
    if data is None:
        return
    batch = data.batch(0)
    own, taught = named(batch.inputs)["input_ids"], named(batch.teacher_inputs)["input_ids"]
    assert batch.alignment is not None
    assert batch.matched is not None
    assert (taught.gather(1, batch.alignment) == own)[batch.matched].all()


@settings(max_examples=200)
@given(are_matched=st.lists(st.booleans(), min_size=1, max_size=60), window=st.integers(2, 9))
def test_windows_leave_no_token_out_before_the_last_and_begin_at_pairs(
    are_matched: list[bool], window: int
) -> None:
    tokens = np.where(are_matched, np.arange(len(are_matched)), -1)
    starts = window_starts(tokens, window)
    gaps = np.diff(starts)
    assert starts[0] == 0
    assert ((gaps > 0) & (gaps <= window)).all()
    assert len(tokens) - (starts[-1] + window) < window
    for start in starts[1:]:
        # Elsewhere only where the second half of the window before has no pair.
        assert are_matched[start - 1] or not any(are_matched[start - window // 2 - 1 : start])
