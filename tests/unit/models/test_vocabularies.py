"""Comparison of vocabularies by token id."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.tapped import Activations
from curricle.models.vocabularies import common_classes, common_vocabulary
from curricle.models.wrapping import tapped
from curricle.objectives.base import Sample
from curricle.objectives.logits import MatchLogits

WORDS = ("<pad>", "the", "cat", "sat")


class Tokenizer:
    """A tokenizer with the tokens of a list."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


class Net(nn.Module):
    """A model that was loaded from a folder."""

    def __init__(self, folder: Path | str, size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(_name_or_path=str(folder), vocab_size=size)
        self.head = nn.Linear(2, size)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs)
        return logits


def saved(folder: Path, *tokens: str, unigram: bool = False) -> Path:
    folder.mkdir()
    first, added = tokens[:3], tokens[3:]
    vocabulary: Any = dict(zip(first, range(3), strict=True))
    if unigram:
        vocabulary = [[token, -1.0] for token in first]
    content = {
        "model": {"vocab": vocabulary},
        "added_tokens": [{"content": token, "id": 3 + at} for at, token in enumerate(added)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_equal_and_extended_vocabularies_have_the_smaller_one_in_common() -> None:
    assert common_vocabulary(Tokenizer(*WORDS), Tokenizer(*WORDS)) == 4
    assert common_vocabulary(Tokenizer(*WORDS), Tokenizer(*WORDS, "mat")) == 4
    assert common_vocabulary(Tokenizer(*WORDS, "mat"), Tokenizer(*WORDS)) == 4


def test_the_first_ids_that_differ_are_shown_with_both_tokens() -> None:
    with pytest.raises(
        BindError,
        match=r"2 of the first 4 ids differ: id 1 is 'the' for the student and 'cat' for the "
        r"teacher; id 2 is 'cat' for the student and 'the' for the teacher; take the",
    ):
        common_vocabulary(Tokenizer(*WORDS), Tokenizer("<pad>", "cat", "the", "sat"))


def test_a_gap_among_the_common_ids_is_a_difference() -> None:
    class Sparse:
        def get_vocab(self) -> dict[str, int]:
            return {"<pad>": 0, "the": 1, "sat": 3}

    with pytest.raises(BindError, match=r"id 2 is no token for the student and 'cat' for the"):
        common_vocabulary(Sparse(), Tokenizer(*WORDS))


@pytest.mark.parametrize("unigram", [False, True])
def test_tokens_are_read_from_files_and_folders(tmp_path: Path, unigram: bool) -> None:
    folder = saved(tmp_path / "one", *WORDS, unigram=unigram)
    assert common_vocabulary(folder, Tokenizer(*WORDS)) == 4
    assert common_vocabulary(Tokenizer(*WORDS), str(folder / "tokenizer.json")) == 4


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BindError, match=r"^the student's tokenizer must have 'get_vocab'.*'int'$"):
        common_vocabulary(3, Tokenizer(*WORDS))
    with pytest.raises(BindError, match=r"^the teacher's tokenizer must be readable"):
        common_vocabulary(Tokenizer(*WORDS), tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(BindError, match=r"^the teacher's tokenizer must be readable"):
        common_vocabulary(Tokenizer(*WORDS), tmp_path)


def bound(student: Net, teacher: Net, objective: MatchLogits) -> float:
    """Return the loss of two heads, the logits behind the fourth of which are large."""
    pair, batch = (tapped(student), tapped(teacher)), Batch(inputs=torch.ones(2, 2))
    sides = [Activations({}, net(torch.ones(2, 2)).detach()) for net in (student, teacher)]
    for side in sides:
        assert side.logits is not None
        side.logits[:, 4:] = 50.0
    reads = objective.reads(*pair)
    sample = Sample(batch=batch, student=sides[0], teacher=sides[1], seed=0)
    term = objective.bind(reads, sample, is_residual=False)
    return float(term.total(sides[0], term.target(sides[1], batch), batch))


def test_logits_behind_the_common_vocabulary_are_left_out_on_both_sides(tmp_path: Path) -> None:
    folders = saved(tmp_path / "a", *WORDS), saved(tmp_path / "b", *WORDS, "mat")
    with seeding.scoped(0, "models"):
        student, teacher, unknown = Net(folders[0], 6), Net(folders[1], 8), Net("", 6)
        same, padded = Net(folders[0], 6), Net(folders[0], 8)
    automatic = bound(student, teacher, MatchLogits())
    assert automatic == bound(student, teacher, MatchLogits(num_classes=4))
    # Padding of equal tokenizers to different sizes, too.
    assert common_classes(tapped(student), tapped(padded)) == 4
    # Equal tokenizers with equal sizes: nothing to leave out.
    assert common_classes(tapped(student), tapped(same)) is None
    assert common_classes(tapped(student), tapped(unknown)) is None


def test_models_of_equal_size_with_other_tokens_are_refused(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", *WORDS)
    other = saved(tmp_path / "b", "<pad>", "cat", "the", "sat")
    with seeding.scoped(0, "models"):
        student, teacher = tapped(Net(first, 4)), tapped(Net(other, 4))
    with pytest.raises(BindError, match=r"id 1 is 'the' for the student and 'cat' for the teac"):
        MatchLogits().reads(student, teacher)


def test_the_number_is_public() -> None:
    assert curricle.common_vocabulary(Tokenizer(*WORDS), Tokenizer(*WORDS)) == len(WORDS)
