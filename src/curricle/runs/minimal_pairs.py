"""Minimal pairs of sentences, such as BLiMP: the acceptable one must be the more likely one.

A model that predicts the next token scores a sentence by the sum of log p(token | tokens before).
A masked model scores it by the pseudo-log-likelihood, the sum of log p(token | all other tokens),
with one token masked at a time. A pair is right if the good sentence scores higher; a tie is wrong.
Accuracy is that of each kind of pairs (`UID`) and the mean over kinds.

Design: every sequence of tokens is scored once, so sentences that become the same tokens tie
exactly, whatever their place in a batch. Special tokens of the tokenizer are context, not scored.

Axes: sequence, position, class.

Source:
    Warstadt et al. 2020 (arXiv 1912.00582) for the pairs; Salazar et al. 2020 (arXiv 1910.14659)
    for the pseudo-log-likelihood.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import cast, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.data.table_files import rows_of, tables_in
from curricle.errors import BindError, DataError
from curricle.models.dispatching import resident_weight
from curricle.models.huggingface import Head
from curricle.models.positions import usable_positions
from curricle.models.restoring import evaluation_mode
from curricle.protocols import Tokenizer
from curricle.reports.evaluation_tables import accuracy_grid
from curricle.reports.tables import Grid, to_markdown
from curricle.values import Plain

FIELDS = ("UID", "sentence_good", "sentence_bad")
"""Fields of a pair; others are ignored."""
BATCH = 64
"""Sequences of a forward pass."""
MEAN = "mean"
"""Row of the mean over kinds."""
Ids = tuple[int, ...]
Watch = Callable[[int, int], None]
"""Receives the number of scored sequences and of all."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An acceptable sentence and one that is not."""

    kind: str
    """Kind of the contrast, the `UID` of BLiMP."""
    good: str
    """The acceptable sentence."""
    bad: str
    """The other one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairAccuracy:
    """Accuracy on minimal pairs; its text is a table."""

    by_kind: Mapping[str, float]
    """Share of right pairs of each kind."""
    mean: float
    """Mean over kinds."""
    pairs: int
    """Number of pairs."""
    ties: int
    """Pairs with equal scores, which count as wrong."""

    def plain(self) -> Plain:
        """Return plain data, as JSON has it."""
        return {
            "mean": self.mean,
            "pairs": self.pairs,
            "ties": self.ties,
            "by_kind": dict(self.by_kind),
        }

    def grid(self, title: str = "minimal pairs") -> Grid:
        """Return one row a kind, and the mean.

        Args:
            title: Heading.
        """
        rows = {kind: [share] for kind, share in self.by_kind.items()} | {MEAN: [self.mean]}
        return accuracy_grid(("kind", "accuracy"), rows, title=title, total=True)

    def __str__(self) -> str:
        """Return the table."""
        return to_markdown(self.grid())


@final
@dataclass(frozen=True, slots=True)
class _Sequence:
    """Tokens of a sentence."""

    ids: Ids
    """Ids with special tokens."""
    scored: tuple[int, ...]
    """Positions of tokens that are not special."""


def read_pairs(path: str | Path, *, limit: int | None = None) -> list[Pair]:
    """Return the pairs of a table, such as JSON lines.

    Args:
        path: File with the fields `UID`, `sentence_good` and `sentence_bad`, or a folder of such
            files.
        limit: Number of pairs of each kind, the first ones; None reads all.

    Raises:
        DataError: If there is no pair, or a field is missing.
    """
    pairs: list[Pair] = []
    counts: dict[str, int] = {}
    files = tables_in(Path(path)) if Path(path).is_dir() else [Path(path)]
    rows = ((file, *numbered) for file in files for numbered in enumerate(rows_of(file), start=1))
    for file, number, row in rows:
        if any(not isinstance(row.get(field), str) for field in FIELDS):
            raise DataError(
                f"row {number} of {str(file)!r} must have the texts "
                f"{', '.join(map(repr, FIELDS))}; got {json.dumps(row)[:80]}"
            )
        kind, good, bad = (row[field] for field in FIELDS)
        counts[kind] = counts.get(kind, 0) + 1
        if limit is None or counts[kind] <= limit:
            pairs.append(Pair(kind=kind, good=good, bad=bad))
    if not pairs:
        raise DataError(f"{str(path)!r} must hold pairs of sentences; got none")
    return pairs


def pair_accuracy(
    model: nn.Module,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    *,
    head: Head,
    batch_size: int = BATCH,
    watch: Watch | None = None,
) -> PairAccuracy:
    """Return the accuracy of a language model on minimal pairs.

    Args:
        model: A Hugging Face model with a masked or a causal head; it stays as it is.
        tokenizer: Its tokenizer.
        pairs: Pairs of sentences.
        head: `causal_lm` scores tokens from the left, `masked_lm` each from all others.
        batch_size: Sequences of a forward pass; of a masked model each sentence is one for each
            of its tokens.
        watch: Receives the progress.

    Raises:
        BindError: If a masked model's tokenizer has no mask.
        DataError: If a sentence has no token, or more than the model has positions, or logits
            are not numbers.
    """
    if not pairs:
        raise DataError("'pairs' must hold pairs of sentences; got none")
    sentences = {text for pair in pairs for text in (pair.good, pair.bad)}
    sequences = {text: _tokenized(tokenizer, text, model) for text in sorted(sentences)}
    different = sorted(set(sequences.values()), key=lambda sequence: len(sequence.ids))
    scores = dict.fromkeys(different, 0.0)
    rows = list(_rows(different, tokenizer, head))
    with evaluation_mode(model):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            for row, score in zip(batch, _score(model, batch), strict=True):
                scores[row.sequence] += score
            if watch is not None:
                watch(start + len(batch), len(rows))
    unscored = next((text for text in sequences if math.isnan(scores[sequences[text]])), None)
    if unscored is not None:
        raise DataError(f"'model' must give numbers as logits; got NaN in {unscored!r}")
    results: dict[str, list[bool]] = {}
    ties = 0
    for pair in pairs:
        good, bad = scores[sequences[pair.good]], scores[sequences[pair.bad]]
        results.setdefault(pair.kind, []).append(good > bad)
        ties += good == bad
    by_kind = {kind: mean(map(float, right)) for kind, right in sorted(results.items())}
    return PairAccuracy(by_kind=by_kind, mean=mean(by_kind.values()), pairs=len(pairs), ties=ties)


@final
@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a forward pass."""

    ids: Ids
    """Ids that the model reads."""
    sequence: _Sequence
    """The sentence."""
    places: tuple[int, ...]
    """Positions whose logits are read."""
    targets: tuple[int, ...]
    """Token at each of them."""


def _rows(sequences: Iterable[_Sequence], tokenizer: Tokenizer, head: Head) -> Iterator[_Row]:
    """Yield the rows that score sequences: one for each, or one for each masked token.

    Raises:
        BindError: If a masked model's tokenizer has no mask.
    """
    mask = tokenizer.mask_token_id
    if head == "masked_lm" and mask is None:
        raise BindError("'tokenizer' of a masked model must have a mask token; got none")
    for sequence in sequences:
        ids = sequence.ids
        if head == "causal_lm":
            # Position 0 has nothing before it: without a token for the start it is not scored.
            targets = [position for position in sequence.scored if position > 0]
            places = tuple(position - 1 for position in targets)
            yield _Row(ids, sequence, places, tuple(ids[position] for position in targets))
            continue
        for position in sequence.scored:
            masked = (*ids[:position], cast("int", mask), *ids[position + 1 :])
            yield _Row(masked, sequence, (position,), (ids[position],))


def _score(model: nn.Module, rows: Sequence[_Row]) -> list[float]:
    """Return the sum of log-probabilities of the targets of each row."""
    weight = resident_weight(model)
    ids, mask = _padded([row.ids for row in rows])
    logits = model(input_ids=beside(ids, weight), attention_mask=beside(mask, weight)).logits
    counts = [len(row.places) for row in rows]
    numbers = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
    places = torch.tensor([place for row in rows for place in row.places], dtype=torch.long)
    targets = torch.tensor([target for row in rows for target in row.targets], dtype=torch.long)
    # Only the logits that are read: a softmax over all positions of masked rows would cost more.
    read = logits[beside(numbers, weight), beside(places, weight)].float().log_softmax(-1)
    values = read.gather(1, beside(targets, weight)[:, None])[:, 0].double().cpu()
    return [float(row_values.sum()) for row_values in values.split(counts)]


def _tokenized(tokenizer: Tokenizer, text: str, model: nn.Module) -> _Sequence:
    """Return the tokens of a sentence, after a token for the start if the tokenizer has one.

    Raises:
        DataError: If there is none, or more than the model has positions.
    """
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    start = tokenizer.bos_token_id
    if start is not None and not any(special):
        ids, special = [start, *ids], [1, *special]
    scored = tuple(position for position, mark in enumerate(special) if not mark)
    if not scored:
        raise DataError(f"'pairs' must hold sentences with tokens; got {text!r}")
    room = usable_positions(model)
    if room is not None and len(ids) > room:
        raise DataError(
            f"'pairs' must hold sentences of at most {room} tokens, the positions of the model; "
            f"got {len(ids)} in {text!r}"
        )
    return _Sequence(ids=tuple(ids), scored=scored)


def _padded(
    rows: Sequence[Ids],
) -> tuple[Int[Tensor, "sequence position"], Int[Tensor, "sequence position"]]:
    """Return ids padded at the end, and the mask of positions with data."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask
