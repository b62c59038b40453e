"""How are whole numbers of any width put into bytes without waste?

The numbers of a row follow one another, each with its highest bit first, and the last byte is
filled with zeros. An id of a vocabulary of 128k takes 17 bits instead of 32.

Axes: row, number (of a row), byte.
"""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from curricle.colocation import count_beside

MOST_BITS = 48
"""Bits of the largest numbers; with the neighbors in their bytes they still fit into 64."""


def bits_of(num_classes: int) -> int:
    """Return the bits of one class number; at least 1."""
    return max(1, (num_classes - 1).bit_length())


def packed(numbers: Int[Tensor, "row number"], bits: int) -> UInt8[Tensor, "row byte"]:
    """Return numbers in bytes.

    Args:
        numbers: Not negative and less than two to the power of `bits`.
        bits: Of each number, 1 to `MOST_BITS`.
    """
    highest_first = bits - 1 - count_beside(numbers, bits)
    single = ((numbers.unsqueeze(-1) >> highest_first) & 1).flatten(1)
    filled = functional.pad(single, (0, -single.shape[1] % 8)).unflatten(1, (-1, 8))
    joined: Tensor = (filled << (7 - count_beside(numbers, 8))).sum(-1)
    return joined.to(torch.uint8)


def unpacked(
    content: UInt8[Tensor, "row byte"], bits: int, count: int
) -> Int[Tensor, "row number"]:
    """Return the numbers in bytes that `packed` has made.

    Args:
        content: The bytes.
        bits: Of each number.
        count: Numbers of a row.
    """
    starts = count_beside(content, count) * bits
    # As many bytes as a number may touch, from its first one on.
    touched = (bits + 14) // 8
    places = (starts // 8).unsqueeze(-1) + count_beside(content, touched)
    whole = functional.pad(content, (0, touched))[:, places].long()
    joined: Tensor = (whole << 8 * (touched - 1 - count_beside(content, touched))).sum(-1)
    shifted: Tensor = joined >> (8 * touched - bits - starts % 8)
    return shifted & ((1 << bits) - 1)
