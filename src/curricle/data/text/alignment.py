"""Tokens of two tokenizers that end at the same character of one text.

There both models have read the same text, so their hidden states can be compared. `counterparts`
takes one long text, as `PairedTexts` cuts into windows; `aligned_positions` a batch of texts with
special tokens and padding, as `TextCollator` makes.

Axes: token (of a whole text), example, position, bound (first character, and that after the last).

Design: offsets of fast tokenizers are characters. A token that ends inside a character, as the
pieces of an emoji do in a byte-level vocabulary, ends nowhere: its next token begins before its
end. Of several tokens with one end the last has read all of the text before it. A batch is aligned
as one text in which each example begins behind the end of all before it.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

UNMATCHED = -1
"""Entry of a token without a counterpart."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class TokenBounds:
    """Characters of the tokens of a text."""

    starts: Int[np.ndarray, " token"]
    """First character of each token, counted over the whole text; ascending."""
    ends: Int[np.ndarray, " token"]
    """Character after the last one of each token; ascending."""

    @property
    def are_whole(self) -> Bool[np.ndarray, " token"]:
        """Return whether the next token begins at or after the end of each token."""
        following = np.append(self.starts[1:], np.iinfo(np.int64).max)
        return following >= self.ends


def counterparts(student: TokenBounds, teacher: TokenBounds) -> Int[np.ndarray, " token"]:
    """Return for each token of the student the teacher's token that ends at the same character.

    Args:
        student: The text in the student's tokens.
        teacher: The same text in the teacher's tokens.

    Returns:
        Numbers of the teacher's tokens, ascending where they are not -1, which stands for none.
    """
    complete = np.flatnonzero(teacher.are_whole)
    if not complete.size:
        return np.full(len(student.ends), UNMATCHED)
    # Of several tokens that end at one character, the last has read all of the text before it.
    places = np.searchsorted(teacher.ends[complete], student.ends, side="right") - 1
    tokens = complete[np.maximum(places, 0)]
    is_matched = student.are_whole & (teacher.ends[tokens] == student.ends)
    return np.where(is_matched, tokens, UNMATCHED)


def aligned_positions(
    student: Int[Tensor, "example position bound"], teacher: Int[Tensor, "example token bound"]
) -> Int[Tensor, "example position"]:
    """Return for each position of the student that of the teacher with the same end.

    Args:
        student: Bounds of the student's tokens; equal ones for tokens that hold no text, such as
            special tokens and padding.
        teacher: The same of the teacher.

    Returns:
        Positions, -1 where there is none.
    """
    length = 1 + max(int(student.max()), int(teacher.max()))
    (student_places, first), (teacher_places, second) = (
        _flat(bounds, length) for bounds in (student, teacher)
    )
    tokens = counterparts(first, second)
    positions = torch.full(student.shape[:2], UNMATCHED)
    is_matched = tokens != UNMATCHED
    # Numbers over the batch; the position is what remains of whole examples.
    numbers = teacher_places[tokens[is_matched]] % teacher.shape[1]
    positions.view(-1)[torch.from_numpy(student_places[is_matched])] = torch.from_numpy(numbers)
    return positions


def _flat(
    bounds: Int[Tensor, "example position bound"], length: int
) -> tuple[Int[np.ndarray, " token"], TokenBounds]:
    """Return numbers over the batch and bounds of the tokens with text, as those of one text."""
    offsets = torch.arange(len(bounds)).unsqueeze(1) * length
    starts, ends = (side + offsets for side in bounds.unbind(-1))
    places = torch.nonzero((ends > starts).flatten()).squeeze(1)
    # A normalizer that moves marks may give a character back.
    first, last = (np.maximum.accumulate(side.flatten()[places].numpy()) for side in (starts, ends))
    return places.numpy(), TokenBounds(first, last)
