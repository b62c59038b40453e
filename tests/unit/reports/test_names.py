import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.errors import visible
from curricle.reports.names import LONGEST, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extraction", "extraction"),
        ("Größe 模型 \U0001f642", "Größe 模型 \U0001f642"),
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("a\nb\tc", r"a\nb\tc"),
        ("abc\u202edef", r"abc\u202edef"),
        ("half \ud800", r"half \ud800"),
        ("nul \x00 and \ufffe", r"nul \x00 and \ufffe"),
        # Joiners make one sign of two in emoji and Indic scripts.
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_characters_of_blocks_may_stay() -> None:
    assert visible("a\nb\x1b", keep="\n\t") == "a\nb\\x1b"


@given(st.text(alphabet=st.characters(codec=None), max_size=50))
def test_what_was_made_visible_can_be_written_and_stays(text: str) -> None:
    once = visible(text)
    once.encode("utf-8")
    assert visible(once) == once


def test_long_names_lose_their_middle() -> None:
    name = "begin" + "x" * 300 + "end"
    assert len(shortened(name)) == LONGEST - 1
    assert (shortened(name)[:5], shortened(name)[-3:]) == ("begin", "end")
    assert shortened("short") == "short"
