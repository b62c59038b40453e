"""Kinds of errors and the help for misspelt names."""

from pathlib import Path

import pytest

from curricle.errors import (
    BindError,
    CheckpointError,
    CurricleError,
    DataError,
    DivergenceError,
    SpecError,
    near_names,
    reason,
    visible,
)

KINDS = [
    (SpecError, ValueError),
    (BindError, ValueError),
    (DataError, ValueError),
    (CheckpointError, OSError),
    (DivergenceError, ArithmeticError),
]


@pytest.mark.parametrize(("kind", "builtin"), KINDS)
def test_each_kind_is_caught_as_ours_and_as_a_builtin(
    kind: type[CurricleError], builtin: type[Exception]
) -> None:
    assert issubclass(kind, CurricleError)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize(("kind", "_"), KINDS)
def test_an_error_prints_its_sentence(kind: type[CurricleError], _: type) -> None:
    assert str(kind("'tap' must exist; got 9")) == "'tap' must exist; got 9"


def test_the_disks_reason_leaves_the_path_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere") as refused:
        (tmp_path / "nowhere").read_text()
    assert reason(refused.value) == "No such file or directory"


def test_what_has_no_reason_of_the_disk_speaks_for_itself() -> None:
    assert reason(ValueError("not a digit")) == reason(OSError("not a digit")) == "not a digit"


def test_a_misspelt_name_is_answered_with_the_nearest_one() -> None:
    assert near_names("hiden", ["logits", "hidden"]) == (
        "did you mean 'hidden'? available: 'logits', 'hidden'"
    )


def test_several_near_names_are_offered_nearest_first() -> None:
    assert near_names("layer.1", ["layer.12", "layer.0"]).startswith(
        "did you mean 'layer.12' or 'layer.0'? "
    )


def test_a_name_unlike_any_gets_no_guess() -> None:
    assert near_names("xyz", ["hidden"]) == "available: 'hidden'"


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    assert near_names("xyz", ["a", "b", "c"], limit=2) == "available: 'a', 'b' and 1 more"


def test_an_empty_list_of_names_says_so() -> None:
    assert near_names("xyz", []) == "available: none"


def test_names_may_come_from_an_iterator() -> None:
    assert near_names("hidden", iter(["hidden"])).endswith("available: 'hidden'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31m", r"\x1b[31m"), ("a\nb", "a\nb"), ("\u202e", r"\u202e"), ("\ud800", r"\ud800")],
)
def test_no_text_moves_the_cursor(text: str, shown: str) -> None:
    assert visible(text, keep="\n") == shown


def test_a_sentence_about_a_very_long_name_is_cut_in_the_middle() -> None:
    text = str(SpecError(f"'{'x' * 5000}' must be a name; got 7"))
    assert len(text) < 1300
    assert text.startswith("'xxx")
    assert text.endswith("x' must be a name; got 7")


def test_other_sentences_are_whole() -> None:
    assert str(CheckpointError("a" * 1200)) == "a" * 1200


@pytest.mark.parametrize("character", ["\0", "\x1b", "\u202e", "\ufeff", "\ud800"])
@pytest.mark.parametrize("kind", [SpecError, CheckpointError])
def test_a_sentence_shows_hidden_characters_as_escapes(
    kind: type[SpecError | CheckpointError], character: str
) -> None:
    escape = character.encode("unicode_escape").decode()
    assert str(kind(f"'a{character}b' must be a name")) == f"'a{escape}b' must be a name"


def test_lines_of_a_sentence_stay_lines() -> None:
    assert str(SpecError("first\nsecond")) == "first\nsecond"
