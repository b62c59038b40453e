"""Sentences are scored as computed by hand, and a tie is wrong."""

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError, DataError
from curricle.protocols import Tokenizer
from curricle.runs.minimal_pairs import Pair, PairAccuracy, pair_accuracy, read_pairs

START, MASK, A, B, C = range(5)
PROBABILITIES = {
    START: {A: 0.5, B: 0.25, C: 0.25},
    A: {A: 0.1, B: 0.7, C: 0.2},
    B: {A: 0.25, B: 0.25, C: 0.5},
    C: {A: 0.6, B: 0.2, C: 0.2},
    # Of the masked model: the token in place of the mask, whatever stands around it.
    MASK: {A: 0.5, B: 0.25, C: 0.25},
}


class Bigrams(nn.Module):
    """Logits of the next token by the token at the position."""

    def __init__(self, positions: int = 8) -> None:
        super().__init__()
        table = torch.full((5, 5), -30.0)
        for token, row in PROBABILITIES.items():
            for successor, probability in row.items():
                table[token, successor] = math.log(probability) + 3.0
        self.table = nn.Parameter(table)
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.rows: list[int] = []

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        assert not self.training
        self.rows.append(len(input_ids))
        # Padding would change the numbers if it were read.
        logits = self.table[input_ids] * attention_mask[..., None]
        return SimpleNamespace(logits=logits)


class Letters(Tokenizer):
    """One token a letter; some have a token for the start."""

    def __init__(self, *, start: int | None = START, mask: int | None = MASK) -> None:
        self.bos_token_id, self.mask_token_id = start, mask
        self.eos_token_id = self.pad_token_id = None
        self.model_input_names = ["input_ids"]

    def __call__(self, *texts: object, **options: object) -> Mapping[str, list[int]]:
        assert options == {"return_special_tokens_mask": True}
        ids = [self.convert_tokens_to_ids(letter) for letter in str(*texts).lower()]
        return {"input_ids": ids, "special_tokens_mask": [0] * len(ids)}

    def __len__(self) -> int:
        return A + len(self.get_vocab())

    def get_vocab(self) -> dict[str, int]:
        return {letter: A + place for place, letter in enumerate("abc")}

    def convert_tokens_to_ids(self, tokens: str) -> int:
        return self.get_vocab()[tokens]

    def apply_chat_template(self, *args: object, **options: object) -> Any:
        raise NotImplementedError

    def save_pretrained(self, save_directory: Path) -> object:
        raise NotImplementedError


class Framed(Letters):
    """Puts a special token around each text, as BERT's tokenizer does."""

    def __call__(self, *texts: object, **options: object) -> Mapping[str, list[int]]:
        ids = super().__call__(*texts, **options)
        tokens = ids["input_ids"]
        return {
            "input_ids": [START, *tokens, START],
            "special_tokens_mask": [1, *(0 for _ in tokens), 1],
        }


def pair(kind: str, good: str, bad: str) -> Pair:
    return Pair(kind=kind, good=good, bad=bad)


def test_next_tokens_are_summed_from_the_start() -> None:
    # abc: 0.5 * 0.7 * 0.5 = 0.175, acb: 0.5 * 0.2 * 0.2 = 0.02: right.
    # b: 0.25, ab: 0.5 * 0.7 = 0.35: right. c: 0.25, b: 0.25: a tie of different sentences.
    # ac: 0.5 * 0.2 = 0.1, ab: 0.35: wrong.
    pairs = [
        pair("order", "abc", "acb"),
        pair("length", "ab", "b"),
        pair("order", "ac", "ab"),
        pair("tie", "c", "b"),
        pair("tie", "abc", "acb"),
    ]
    result = pair_accuracy(Bigrams(), Letters(), pairs, head="causal_lm", batch_size=2)
    assert result.by_kind == {"length": 1.0, "order": 0.5, "tie": 0.5}
    assert result.mean == pytest.approx(2 / 3)
    assert (result.pairs, result.ties) == (5, 1)


def test_without_a_token_for_the_start_the_first_token_is_not_scored() -> None:
    # From the second token on: cab is 0.6 * 0.7 = 0.42, bcb 0.5 * 0.2 = 0.1, aab 0.1 * 0.7 = 0.07.
    pairs = [pair("kind", "cab", "bcb"), pair("kind", "bcb", "aab"), pair("kind", "a", "c")]
    result = pair_accuracy(Bigrams(), Letters(start=None), pairs, head="causal_lm")
    # Single tokens have no score at all, which is a tie.
    assert result.by_kind["kind"] == pytest.approx(2 / 3)
    assert result.ties == 1


@pytest.mark.parametrize("tokenizer", [Letters(), Framed()])
def test_each_token_of_a_masked_model_is_hidden_once(tokenizer: Letters) -> None:
    # ab is 0.5 * 0.25 and ba the same numbers in another order; a is 0.5.
    pairs = [pair("order", "ab", "ba"), pair("length", "a", "ab"), pair("length", "bc", "a")]
    model = Bigrams()
    result = pair_accuracy(model, tokenizer, pairs, head="masked_lm", batch_size=3)
    assert result.by_kind == {"length": 0.5, "order": 0.0}
    assert result.ties == 1
    # Tokens of a, ab, ba and bc; special ones are never hidden.
    assert sum(model.rows) == 1 + 2 + 2 + 2


def test_sentences_of_the_same_tokens_tie_exactly_and_a_tie_is_wrong() -> None:
    pairs = [pair("case", "aBc", "abc"), pair("case", "abc", "Acb")]
    for head in ("causal_lm", "masked_lm"):
        result = pair_accuracy(Bigrams(), Letters(), pairs[:1], head=head)
        assert (result.mean, result.ties) == (0.0, 1)
    assert pair_accuracy(Bigrams(), Letters(), pairs, head="causal_lm").mean == 0.5


def test_the_mean_is_that_of_kinds_whatever_their_sizes() -> None:
    pairs = [pair("many", "ab", "ac")] * 3 + [pair("few", "ac", "ab")]
    watched: list[tuple[int, int]] = []
    result = pair_accuracy(
        Bigrams(),
        Letters(),
        pairs,
        head="causal_lm",
        watch=lambda done, total: watched.append((done, total)),
    )
    assert result.mean == 0.5
    # Each sentence is scored once.
    assert watched == [(2, 2)]


def test_the_table_ends_with_the_mean() -> None:
    result = PairAccuracy(by_kind={"a": 0.5, "b": 1.0}, mean=0.75, pairs=4, ties=0)
    assert str(result).splitlines()[2:] == [
        "| a | 50.00 % |",
        "| b | 100.00 % |",
        "| mean | 75.00 % |",
    ]
    facts = {"mean": 0.75, "pairs": 4, "ties": 0, "by_kind": {"a": 0.5, "b": 1.0}}
    assert result.plain() == facts


def test_what_cannot_be_scored_is_refused() -> None:
    pairs = [pair("kind", "abcabcabc", "a")]
    with pytest.raises(DataError, match="at most 8 tokens, the positions of the model; got 10 in"):
        pair_accuracy(Bigrams(), Letters(), pairs, head="causal_lm")
    with pytest.raises(DataError, match="must hold sentences with tokens; got ''"):
        pair_accuracy(Bigrams(), Letters(), [pair("kind", "a", "")], head="causal_lm")
    with pytest.raises(BindError, match="must have a mask token; got none"):
        pair_accuracy(Bigrams(), Letters(mask=None), [pair("kind", "a", "b")], head="masked_lm")
    with pytest.raises(DataError, match="must hold pairs of sentences; got none"):
        pair_accuracy(Bigrams(), Letters(), [], head="causal_lm")


class Counted(Letters):
    """Ids beside the special ones of RoBERTa: start 0, padding 1, end 2, mask 9."""

    def __init__(self) -> None:
        super().__init__(start=0, mask=9)
        self.pad_token_id, self.eos_token_id = 1, 2

    def __call__(self, *texts: object, **options: object) -> Mapping[str, list[int]]:
        ids = [self.convert_tokens_to_ids(letter) for letter in str(*texts)]
        return {"input_ids": [0, *ids, 2], "special_tokens_mask": [1, *(0 for _ in ids), 1]}

    def convert_tokens_to_ids(self, tokens: str) -> int:
        return 3 + "abcdef".index(tokens)


def roberta(positions: int) -> Any:
    hf = pytest.importorskip("transformers")
    config = hf.RobertaConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=positions,
        pad_token_id=1,
    )
    with seeding.scoped(0, "model"):
        model = hf.RobertaForMaskedLM(config)
    with torch.no_grad():
        # Of positions that differ, so that a wrong number changes the order of sentences.
        model.roberta.embeddings.position_embeddings.weight.normal_(
            std=3.0, generator=torch.Generator().manual_seed(1)
        )
    return model.eval()


def pseudo_log_likelihood(model: Any, ids: list[int]) -> float:
    """Return the sum over tokens without batches or padding; positions are stated: 2, 3, 4, ..."""
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = torch.tensor([[*ids[:place], 9, *ids[place + 1 :]]])
        numbers = torch.arange(2, 2 + len(ids))[None]
        with torch.no_grad():
            logits = model(input_ids=masked, position_ids=numbers).logits[0, place]
        total += float(logits.double().log_softmax(-1)[ids[place]])
    return total


def test_a_model_that_numbers_positions_from_its_padding_id_is_scored_as_by_hand() -> None:
    model, tokenizer = roberta(8), Counted()
    texts = ["abcd", "dcba", "fade", "bad", "fab", "cab", "deaf", "a", "bc"]
    pairs = [pair(f"{good} {bad}", good, bad) for good in texts for bad in texts if good != bad]
    result = pair_accuracy(model, tokenizer, pairs, head="masked_lm", batch_size=7)
    scores = {text: pseudo_log_likelihood(model, tokenizer(text)["input_ids"]) for text in texts}
    expected = {
        contrast.kind: float(scores[contrast.good] > scores[contrast.bad]) for contrast in pairs
    }
    assert result.by_kind == expected
    assert (result.mean, result.ties) == (0.5, 0)


def test_positions_before_the_first_are_not_counted() -> None:
    # Of 8 entries, 0 and 1 have no position: 6 tokens, two of them special ones.
    pairs = [pair("kind", "abcda", "a")]
    with pytest.raises(DataError, match="at most 6 tokens, the positions of the model; got 7 in"):
        pair_accuracy(roberta(8), Counted(), pairs, head="masked_lm")
    assert pair_accuracy(roberta(9), Counted(), pairs, head="masked_lm").pairs == 1


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = Bigrams()
    with torch.no_grad():
        model.table[B] = math.nan
    pairs = [pair("kind", "ac", "ca"), pair("kind", "abc", "ac")]
    with pytest.raises(DataError, match="must give numbers as logits; got NaN in 'abc'"):
        pair_accuracy(model, Letters(), pairs, head="causal_lm")


def test_pairs_are_read_from_plain_and_compressed_files(tmp_path: Path) -> None:
    rows = [
        {"UID": kind, "sentence_good": f"{kind}{number}", "sentence_bad": "x", "field": "syntax"}
        for kind in "ab"
        for number in range(3)
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "pairs.jsonl").write_text(text)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    plain = read_pairs(tmp_path / "pairs.jsonl")
    assert plain == read_pairs(str(tmp_path / "pairs.jsonl.gz"))
    assert plain[4] == pair("b", "b1", "x")
    assert [one.good for one in read_pairs(tmp_path / "pairs.jsonl", limit=1)] == ["a0", "b0"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for kind in "ba":
        lines = [json.dumps(row) for row in rows if row["UID"] == kind]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    (folder / "README.md").write_text("no pairs")
    assert read_pairs(folder) == plain


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"UID": "a", "sentence_good": "b"}\n')
    with pytest.raises(DataError, match=r"row 1 of .* must have the texts 'UID', 'sentence_good'"):
        read_pairs(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="must hold pairs of sentences; got none"):
        read_pairs(path)
