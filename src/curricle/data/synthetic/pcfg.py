"""Masked and causal training batches of the strings of a grammar.

Every step has fresh strings, drawn for step s from the named stream (seed, `pcfg/<purpose>`, s), so
there is no finite training set and nothing to store. A sequence is the begin token and a string;
rows are padded at their end, and `valid` is false there.

Axes: example (rows of a batch), position (places in a padded row; 0 holds the begin token),
selected (scored positions), token (all tokens of all strings), level (see `Derivations`).

Design: rows are as long as the grammar's longest string, so that all batches have the same shape,
as compiled models need; cutting them at the longest string of the batch saves time otherwise. Both
have the same strings and masks.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464), section on PCFGs, and its code for token ids, rates
    and scored positions. Deviations: masks are drawn anew at every step and rows follow from the
    seed; there, a fixed set of sequences is masked once.
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.synthetic.derivations import IGNORED, Derivations, Sampler
from curricle.data.synthetic.grammar_statistics import string_statistics
from curricle.data.synthetic.grammars import Grammar
from curricle.data.text.windows import Masking
from curricle.errors import SpecError
from curricle.seeding import numpy_generator
from curricle.values import Plain, fingerprint, plain

PadTo = Literal["grammar", "batch"]
"""Length of rows: that of the grammar's longest string, or of the longest of the batch."""
PCFG_MASKING = Masking(rate=0.3)
"""Masking with the rates of the paper's code."""


@final
@dataclass(frozen=True, slots=True)
class TokenIds:
    """The token ids of a grammar: its terminals in ascending order from 0 on, then these."""

    num_terminals: int
    """Number of terminals; 3 for the shipped grammars."""

    @property
    def begin(self) -> int:
        """Return the id before every string."""
        return self.num_terminals

    @property
    def end(self) -> int:
        """Return the id reserved for the end of a string, which is never used."""
        return self.num_terminals + 1

    @property
    def padding(self) -> int:
        """Return the id after the end of a string."""
        return self.num_terminals + 2

    @property
    def mask(self) -> int:
        """Return the mask token."""
        return self.num_terminals + 3

    @property
    def vocabulary_size(self) -> int:
        """Return the number of ids; the last is free and makes them a multiple of 8 for 3."""
        return self.num_terminals + 5


def sequence_positions(grammar: Grammar) -> int:
    """Return the length of the longest sequence of a grammar, the begin token included."""
    return string_statistics(grammar).max_length + 1


def sequence_tokens(grammar: Grammar, *, batch_size: int, pad_to: PadTo = "grammar") -> int:
    """Return the number of positions of a batch, padding included.

    Args:
        grammar: The grammar.
        batch_size: Sequences of a batch.
        pad_to: Length of rows; with `batch` the number is an expectation, rounded.
    """
    law = string_statistics(grammar)
    longest = law.max_length if pad_to == "grammar" else law.expected_longest(batch_size)
    return round(batch_size * (longest + 1))


@final
class GrammarSequences:
    """Strings of steps in padded rows."""

    def __init__(
        self, grammar: Grammar, *, batch_size: int, seed: int, purpose: str, pad_to: PadTo
    ) -> None:
        """Prepare the sampler.

        Args:
            grammar: The grammar.
            batch_size: Strings of a batch.
            seed: Seed of the strings.
            purpose: Name of their stream.
            pad_to: Length of rows.

        Raises:
            SpecError: If the batch size is not positive.
        """
        if batch_size < 1:
            raise SpecError(f"'batch_size' must be positive; got {batch_size}")
        self.ids = TokenIds(len(grammar.terminals))
        self.batch_size = batch_size
        self.tokens_per_batch = sequence_tokens(grammar, batch_size=batch_size, pad_to=pad_to)
        self._sampler = Sampler(grammar)
        self._id_of = np.zeros(max(grammar.terminals) + 1, dtype=np.int64)
        self._id_of[list(grammar.terminals)] = np.arange(self.ids.num_terminals)
        self._num_positions = sequence_positions(grammar) if pad_to == "grammar" else None
        self._seed, self._purpose = seed, f"pcfg/{purpose}"

    def derivations(self, step: int) -> Derivations:
        """Return the strings of a step with their trees."""
        generator = numpy_generator(self._seed, self._purpose, step)
        return self._sampler.draw(self.batch_size, generator)

    def rows(
        self, derivations: Derivations
    ) -> tuple[Int[np.ndarray, "example position"], Bool[np.ndarray, "example position"]]:
        """Return the token ids of strings in rows, and a mask of their data."""
        num_positions = self._num_positions or int(derivations.lengths.max()) + 1
        rows = np.full((self.batch_size, num_positions), self.ids.begin)
        rows[:, 1:] = derivations.padded(
            self._id_of[derivations.tokens], num_positions=num_positions - 1, fill=self.ids.padding
        )
        return rows, rows != self.ids.padding

    def digest(self, stream: str, more: Plain) -> str:
        """Return a digest of a stream of these sequences."""
        return fingerprint(
            {
                "stream": stream,
                "grammar": plain(self._sampler.grammar),
                "shape": [self.batch_size, self._num_positions or "longest of the batch"],
                "seed": self._seed,
                "purpose": self._purpose,
                **more,
            }
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabeledStrings:
    """Unmasked strings and the symbols above their tokens."""

    batch: Batch
    """The strings in rows as long as the grammar's longest, without labels."""
    symbols: Int[Tensor, "example position level"]
    """Symbol above each position, from level 0, the token itself, to the level below the start;
    -100 at the begin token and after the end of a string."""


def labeled_strings(grammar: Grammar, *, number: int, seed: int, purpose: str) -> LabeledStrings:
    """Return fresh strings of a grammar for a probe of hidden states.

    Args:
        grammar: The grammar.
        number: Number of strings.
        seed: Seed of the strings.
        purpose: Name of their stream, so that training and evaluation of a probe differ.
    """
    sequences = GrammarSequences(
        grammar, batch_size=number, seed=seed, purpose=purpose, pad_to="grammar"
    )
    derivations = sequences.derivations(0)
    rows, valid = sequences.rows(derivations)
    symbols = np.full((*rows.shape, grammar.num_levels), IGNORED)
    symbols[:, 1:] = derivations.ancestor_labels(num_positions=rows.shape[1] - 1)[..., :-1]
    return LabeledStrings(
        batch=Batch(inputs=_inputs(rows, valid), valid=torch.from_numpy(valid)),
        symbols=torch.from_numpy(symbols),
    )


@final
class MaskedStrings:
    """Sequences with masked tokens, predicted from both sides."""

    def __init__(
        self,
        grammar: Grammar,
        *,
        batch_size: int,
        seed: int,
        masking: Masking = PCFG_MASKING,
        masking_quirk: bool = False,
        pad_to: PadTo = "grammar",
        purpose: str = "train",
    ) -> None:
        """Declare the stream without drawing strings.

        Every token may be masked, also the begin token, as in the paper's code; a random token is a
        terminal.

        Args:
            grammar: The grammar.
            batch_size: Sequences a step.
            seed: Seed of the strings and masks.
            masking: Rates of the masking.
            masking_quirk: Whether the attention mask is 0 also at all selected positions, as in the
                paper's code, so that no other position attends to them.
            pad_to: Length of rows.
            purpose: Name of the streams, so that training and evaluation differ.
        """
        self._sequences = GrammarSequences(
            grammar, batch_size=batch_size, seed=seed, purpose=purpose, pad_to=pad_to
        )
        self._terminals = np.arange(len(grammar.terminals))
        self._masking, self._masking_quirk = masking, masking_quirk
        self._seed, self._purpose = seed, f"pcfg masking/{purpose}"
        self._fingerprint = self._sequences.digest(
            "masked strings", {"masking": plain(masking), "quirk": masking_quirk}
        )

    @property
    def batch_size(self) -> int:
        """Return the number of sequences of every batch."""
        return self._sequences.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of a batch, padding included; see `sequence_tokens`."""
        return self._sequences.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of the grammar, the shape, the masking and the seed."""
        return self._fingerprint

    def derivations(self, step: int) -> Derivations:
        """Return the trees of a step; position p of a row is their token p - 1."""
        return self._sequences.derivations(step)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; labels are the original tokens."""
        rows, valid = self._sequences.rows(self.derivations(step))
        generator = numpy_generator(self._seed, self._purpose, step)
        # Drawn for data alone, so that the masks do not depend on the length of the rows.
        places = np.flatnonzero(valid)
        selected = places[generator.random(len(places)) < self._masking.rate]
        if not selected.size:
            # A mean over selected positions must exist; position 1 has a terminal in every row.
            selected = np.array([1])
        labels = rows.reshape(-1)[selected]
        inputs, attention_mask = rows.copy(), valid.copy()
        inputs.reshape(-1)[selected] = self._masking.replace_tokens(
            labels, generator, mask=self._sequences.ids.mask, ordinary=self._terminals
        )
        if self._masking_quirk:
            attention_mask.reshape(-1)[selected] = False
        return _batch(inputs, selected, labels, attention_mask=attention_mask, valid=valid)


@final
class CausalStrings:
    """Sequences with tokens predicted from their predecessors."""

    def __init__(
        self,
        grammar: Grammar,
        *,
        batch_size: int,
        seed: int,
        span_level: int = 0,
        pad_to: PadTo = "grammar",
        purpose: str = "train",
    ) -> None:
        """Declare the stream without drawing strings.

        Args:
            grammar: The grammar.
            batch_size: Sequences a step.
            seed: Seed of the strings.
            span_level: Only the last token below each symbol of this level is scored; 0 for every
                token, 1 for the last below the lowest symbols with rules, and so on.
            pad_to: Length of rows.
            purpose: Name of the stream, so that training and evaluation differ.

        Raises:
            SpecError: If the grammar has no such level.
        """
        if not 0 <= span_level <= grammar.num_levels:
            raise SpecError(
                f"'span_level' must lie between 0 and {grammar.num_levels}, the level of start "
                f"symbol {grammar.start}; got {span_level}"
            )
        self._sequences = GrammarSequences(
            grammar, batch_size=batch_size, seed=seed, purpose=purpose, pad_to=pad_to
        )
        self._span_level = span_level
        self._fingerprint = self._sequences.digest("causal strings", {"span_level": span_level})

    @property
    def batch_size(self) -> int:
        """Return the number of sequences of every batch."""
        return self._sequences.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of a batch, padding included; see `sequence_tokens`."""
        return self._sequences.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of the grammar, the shape, the level and the seed."""
        return self._fingerprint

    def derivations(self, step: int) -> Derivations:
        """Return the trees of a step; position p of a row is their token p - 1."""
        return self._sequences.derivations(step)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; labels are the next tokens that end a span."""
        derivations = self.derivations(step)
        rows, valid = self._sequences.rows(derivations)
        ends = derivations.ends[self._span_level]
        # Position p of a row predicts the token at p + 1, which is token p of the string.
        is_selected = np.zeros(rows.shape, dtype=np.bool_)
        is_selected[:, :-1] = derivations.padded(ends, num_positions=rows.shape[1] - 1, fill=False)
        selected = np.flatnonzero(is_selected)
        labels = rows.reshape(-1)[selected + 1]
        return _batch(rows, selected, labels, attention_mask=valid, valid=valid)


def _batch(
    rows: Int[np.ndarray, "example position"],
    selected: Int[np.ndarray, " selected"],
    labels: Int[np.ndarray, " selected"],
    *,
    attention_mask: Bool[np.ndarray, "example position"],
    valid: Bool[np.ndarray, "example position"],
) -> Batch:
    return Batch(
        inputs=_inputs(rows, attention_mask),
        labels=torch.from_numpy(labels),
        selected=torch.from_numpy(selected),
        valid=torch.from_numpy(valid),
    )


def _inputs(
    rows: Int[np.ndarray, "example position"], attention_mask: Bool[np.ndarray, "example position"]
) -> dict[str, Tensor]:
    return {
        "input_ids": torch.from_numpy(rows),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
    }
