"""Bit packing of whole numbers.

The numbers of a row follow one another, each with its highest bit first; zeros fill the last byte.
An id of a vocabulary of 128k takes 17 bits instead of 32.

Axes: row, number (of a row), byte.
"""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from curricle.colocation import count_beside

MOST_BITS = 48
"""Maximum bits of a number: with the bits of its neighbors in the same bytes it fits into 64."""


def bits_of(num_classes: int) -> int:
    """Return the number of bits of a class id, at least 1."""
    return max(1, (num_classes - 1).bit_length())


def packed(numbers: Int[Tensor, "row number"], bits: int) -> UInt8[Tensor, "row byte"]:
    """Return numbers packed into bytes.

    Args:
        numbers: Numbers from 0 to 2**bits - 1.
        bits: Bits per number, 1 to `MOST_BITS`.
    """
    # Expand to single bits and regroup by eight; vectorized, so without a loop over numbers.
    highest_first = bits - 1 - count_beside(numbers, bits)
    single_bits = ((numbers.unsqueeze(-1) >> highest_first) & 1).flatten(1)
    # Each row begins at a byte of its own, so that rows can be read without their neighbors.
    octets = functional.pad(single_bits, (0, -single_bits.shape[1] % 8)).unflatten(1, (-1, 8))
    content: Tensor = (octets << (7 - count_beside(numbers, 8))).sum(-1)
    return content.to(torch.uint8)


def unpacked(
    content: UInt8[Tensor, "row byte"], bits: int, count: int
) -> Int[Tensor, "row number"]:
    """Return the numbers in bytes written by `packed`.

    Args:
        content: The bytes.
        bits: Bits per number.
        count: Numbers per row.
    """
    starts = count_beside(content, count) * bits
    # A number that begins at the last bit of a byte touches the most bytes.
    num_bytes = (bits + 14) // 8
    places = (starts // 8).unsqueeze(-1) + count_beside(content, num_bytes)
    # Padding keeps the window of the last number inside of the row.
    windows = functional.pad(content, (0, num_bytes))[:, places].long()
    joined: Tensor = (windows << 8 * (num_bytes - 1 - count_beside(content, num_bytes))).sum(-1)
    # The shift drops the bits of the next number, the mask those of the previous one.
    shifted: Tensor = joined >> (8 * num_bytes - bits - starts % 8)
    return shifted & ((1 << bits) - 1)
