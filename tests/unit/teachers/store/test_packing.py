"""Numbers of any width in bytes: the bits are those of Python's own integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.teachers.store.packing import MOST_BITS, bits_of, packed, unpacked


@given(st.data(), st.integers(1, MOST_BITS), st.integers(1, 9))
def test_numbers_come_back(data: st.DataObject, bits: int, count: int) -> None:
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    numbers = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    assert torch.equal(unpacked(packed(numbers, bits), bits, count), numbers)


def test_the_highest_bit_comes_first_and_zeros_fill_the_last_byte() -> None:
    numbers = [0b101, 0b001, 0b110]
    text = "".join(f"{number:03b}" for number in numbers).ljust(16, "0")
    assert packed(torch.tensor([numbers]), 3).tolist() == [[int(text[:8], 2), int(text[8:], 2)]]


def test_twelve_ids_of_128k_classes_take_26_bytes() -> None:
    assert packed(torch.zeros(2, 12, dtype=torch.int64), bits_of(2**17)).shape == (2, 26)


@pytest.mark.parametrize(("classes", "bits"), [(1, 1), (2, 1), (3, 2), (2**17, 17), (128_256, 17)])
def test_the_bits_are_enough_for_the_last_class(classes: int, bits: int) -> None:
    assert bits_of(classes) == bits
