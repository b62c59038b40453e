"""Texts cut into pieces that a tokenizer can take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from curricle.data.text.pieces import LONGEST, pieces

WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SEPARATORS = [" ", ", ", "; ", "\uff0c", "1 ", "'s ", " (", "-"]
LINES = st.lists(
    st.tuples(st.text("abcäß一二", min_size=1, max_size=4), st.sampled_from(SEPARATORS)),
    max_size=30,
).map(lambda parts: "".join(word + separator for word, separator in parts))


def words(text: str) -> list[str]:
    return [word for word, _ in WORDS.pre_tokenize_str(text)]


def test_lines_keep_their_ends_and_a_short_text_is_one_piece_a_line() -> None:
    assert list(pieces(["one\ntwo\n\nthr", "ee"])) == ["one\n", "two\n", "\n", "three"]


@pytest.mark.parametrize("letter", ["a", "\0", "7", "=", "的", "é"])
def test_a_text_without_borders_is_cut_into_pieces_of_bounded_length(letter: str) -> None:
    cut = list(pieces([letter * 5_500]))
    assert "".join(cut) == letter * 5_500
    assert len(cut) == 6
    assert max(map(len, cut)) <= LONGEST + 2


@given(text=LINES)
def test_cutting_a_long_line_leaves_its_words_as_they_are(text: str) -> None:
    cut = list(pieces([text], longest=8))
    assert "".join(cut) == text
    assert [word for piece in cut for word in words(piece)] == words(text)


@given(text=st.text("ab ,\n1", max_size=60), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_where_chunks_end_does_not_matter(text: str, sizes: list[int]) -> None:
    chunks: list[str] = []
    start = 0
    while start < len(text):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(text[start : start + size])
        start += size
    assert list(pieces(chunks, longest=8)) == list(pieces([text], longest=8))


def test_a_special_token_is_not_cut() -> None:
    cut = list(pieces(["abc <unk> def <unk> ghi <unk> jkl"], longest=8))
    assert sum(piece.count("<unk>") for piece in cut) == 3
