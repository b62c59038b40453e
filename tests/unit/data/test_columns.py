"""Columns are found by their usual names or by those that are stated."""

import pytest

from curricle.data.columns import find_column, read_column, read_texts, text_columns
from curricle.errors import DataError

ROWS = [{"anchor": "a", "positive": "b", "score": 1, "inner": {"text": "c"}}]


def test_usual_names_come_in_their_order() -> None:
    assert find_column(ROWS, "query", {}) == "anchor"
    assert find_column(ROWS, "values", {}) == "score"
    assert read_column(ROWS, "query", {"query": "inner.text"}) == ["c"]


def test_two_texts_are_a_usual_pair_or_stated() -> None:
    assert text_columns([{"question1": "a", "question2": "b"}], {}) == ("question1", "question2")
    assert text_columns(ROWS, {"text": ("anchor", "positive")}) == ("anchor", "positive")


def test_a_missing_column_is_told_with_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"a column for 'negative', such as negative, neg, hard_n"):
        find_column(ROWS, "negative", {})
    with pytest.raises(
        DataError, match=r"'columns.query' must name a column; got 'ancor'; did you"
    ):
        find_column(ROWS, "query", {"query": "ancor"})
    with pytest.raises(DataError, match=r"column 'score' must hold texts; got 1 in row 1"):
        read_texts(ROWS, "score")
