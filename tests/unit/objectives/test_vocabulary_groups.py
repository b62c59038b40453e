"""Groups of the tokens of two vocabularies."""

import pytest

import curricle
from curricle.data.text.tokenizing import train_tokenizer
from curricle.errors import BindError, SpecError
from curricle.objectives.vocabulary_groups import GroupedProbabilities

LINES = ["the cat sat on the mat and the rat sat on the hat\n", "a hat for the cat\n"] * 20
FINE, COARSE = train_tokenizer(LINES, 268), train_tokenizer(LINES, 300)


def test_tokens_of_one_side_belong_to_the_common_token_they_begin_with() -> None:
    groups = curricle.token_groups(COARSE, FINE)
    own, other = COARSE.get_vocab(), FINE.get_vocab()
    for token, number in own.items():
        expected = token if token in other else FINE.model.tokenize(token)[0].value
        assert groups.student[number] == groups.teacher[other[expected]]
    assert len(set(groups.teacher)) == len(other)


def test_special_tokens_of_one_side_belong_to_no_common_token() -> None:
    from tokenizers import Tokenizer

    sides = [Tokenizer.from_str(side.to_str()) for side in (COARSE, FINE)]
    for side, token in zip(sides, ("<the end>", "the other end"), strict=True):
        side.add_special_tokens([token])
    groups = curricle.token_groups(*sides)
    assert groups.student[sides[0].get_vocab()["<the end>"]] == 0
    assert groups.teacher[sides[1].get_vocab()["the other end"]] == 0


def test_tokenizers_without_common_tokens_have_no_groups() -> None:
    from tokenizers import Tokenizer, models

    strange = Tokenizer(models.WordLevel({"katze": 0, "hund": 1}, unk_token="katze"))
    with pytest.raises(BindError, match=r"^tokenizers must have common tokens .* got 0% of the"):
        curricle.token_groups(strange, FINE)
    with pytest.raises(BindError, match=r"^'student_tokenizer' must be a fast tokenizer"):
        curricle.token_groups(3, FINE)


def test_groups_must_be_numbers_of_classes() -> None:
    with pytest.raises(SpecError, match=r"must be groups from 0 on; got -1$"):
        GroupedProbabilities(student=(0, -1), teacher=(0,))
    with pytest.raises(BindError, match=r"^'teacher' of GroupedProbabilities must have a group"):
        GroupedProbabilities(student=(0, 1), teacher=(0, 1, 1)).check(2, 2)
