"""Bit packing of integers of any width.

The numbers of a row are concatenated, each with its highest bit first, and the last byte is padded
with zeros. An id of a vocabulary of 128k takes 17 bits instead of 32.

Axes: row, number (of a row), byte.
"""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

MOST_BITS = 48
"""Largest width in bits; a number and its neighbors in the same bytes still fit into 64 bits."""


def bits_of(num_classes: int) -> int:
    """Return the bits of one class number; at least 1."""
    return max(1, (num_classes - 1).bit_length())


def packed(numbers: Int[Tensor, "row number"], bits: int) -> UInt8[Tensor, "row byte"]:
    """Return numbers in bytes.

    Args:
        numbers: Not negative and less than two to the power of `bits`.
        bits: Of each number, 1 to `MOST_BITS`.
    """
    device = numbers.device
    # Expand to single bits and regroup by eight; a vectorized form without a loop over numbers.
    highest_first = torch.arange(bits - 1, -1, -1, device=device)
    single = ((numbers.unsqueeze(-1) >> highest_first) & 1).flatten(1)
    filled = functional.pad(single, (0, -single.shape[1] % 8)).unflatten(1, (-1, 8))
    joined: Tensor = (filled << torch.arange(7, -1, -1, device=device)).sum(-1)
    return joined.to(torch.uint8)


def unpacked(
    content: UInt8[Tensor, "row byte"], bits: int, count: int
) -> Int[Tensor, "row number"]:
    """Return the numbers in bytes of `packed`.

    Args:
        content: The bytes.
        bits: Of each number.
        count: Numbers of a row.
    """
    device = content.device
    starts = torch.arange(count, device=device) * bits
    # Number of bytes that a number can touch: it starts at any of the 8 bits of its first byte.
    touched = (bits + 14) // 8
    places = (starts // 8).unsqueeze(-1) + torch.arange(touched, device=device)
    # Padding keeps the windows of the last numbers inside the row; the padding bits are cut below.
    windows = functional.pad(content, (0, touched))[:, places].long()
    joined: Tensor = (windows << torch.arange(8 * (touched - 1), -1, -8, device=device)).sum(-1)
    # Drop the bits of the next number on the right, then those of the previous number by the mask.
    shifted: Tensor = joined >> (8 * touched - bits - starts % 8)
    return shifted & ((1 << bits) - 1)
