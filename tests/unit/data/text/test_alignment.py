"""Tokens of two tokenizers are compared where they end at one character."""

import numpy as np
import pytest
import torch

from curricle.data.text.alignment import TokenBounds, aligned_positions, counterparts


def spans(*stops: int, starts: list[int] | None = None) -> TokenBounds:
    begins = [0, *stops[:-1]] if starts is None else starts
    return TokenBounds(np.array(begins), np.array(stops))


def test_tokens_with_equal_ends_are_counterparts() -> None:
    assert counterparts(spans(2, 4, 6), spans(3, 4, 6)).tolist() == [-1, 1, 2]
    assert counterparts(spans(2, 3), spans(1, 2, 3)).tolist() == [1, 2]
    assert counterparts(spans(2), spans(3, 4)).tolist() == [-1]


def test_a_token_that_ends_inside_a_character_has_no_counterpart() -> None:
    # The second and third token of the student are halves of the character from 1 to 2.
    halves = spans(1, 2, 2, 3, starts=[0, 1, 1, 2])
    assert counterparts(halves, spans(1, 2, 3)).tolist() == [0, -1, 1, 2]
    assert counterparts(spans(1, 2, 3), halves).tolist() == [0, 2, 3]
    # The second half and the next character are one token.
    assert counterparts(spans(1, 2, 3, starts=[0, 1, 1]), spans(1, 2, 3)).tolist() == [0, -1, 2]


def test_the_last_of_several_tokens_with_one_end_counts() -> None:
    # Special tokens and padding have no text.
    student = torch.tensor([[[0, 0], [0, 2], [2, 4], [2, 4], [4, 7], [0, 0]]])
    teacher = torch.tensor([[[0, 2], [2, 4], [2, 4], [4, 6], [0, 0]]])
    assert aligned_positions(student, teacher).tolist() == [[-1, 0, -1, 2, -1, -1]]


def test_texts_of_a_batch_are_aligned_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = []
    for width in (7, 5):
        ends = torch.randint(1, 12, (20, width), generator=generator).sort(1).values
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        sides.append(torch.stack([starts, ends], -1))
    student, teacher = sides
    positions = aligned_positions(student, teacher)
    for row in range(20):
        alone = aligned_positions(student[row : row + 1], teacher[row : row + 1])
        assert positions[row].tolist() == alone[0].tolist()
    # Against the definition, read off the tokens with text.
    for row, column in np.argwhere(positions.numpy() >= 0):
        place = int(positions[row, column])
        assert student[row, column, 1] == teacher[row, place, 1]
    assert 20 < int((positions >= 0).sum()) < positions.numel()


@pytest.mark.parametrize("side", [0, 1])
def test_texts_without_tokens_have_no_counterparts(side: int) -> None:
    bounds = [torch.tensor([[[0, 2], [2, 3]]]), torch.tensor([[[0, 2], [2, 3]]])]
    bounds[side] = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert aligned_positions(bounds[0], bounds[1]).tolist() == [[-1, -1]]
