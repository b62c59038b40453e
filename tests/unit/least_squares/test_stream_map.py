"""The map of the stream is orthonormal, keeps most of the energy, and the mean where it matters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.least_squares.stream_map import stream_map
from tests.parts import drawn


def moments(width: int, seed: int) -> list[torch.Tensor]:
    scales = torch.logspace(0, -2, width).double()
    rows = [drawn(60, width, seed=seed + depth).double() * scales for depth in range(3)]
    return [sublayer.mT @ sublayer for sublayer in rows]


@given(seed=st.integers(0, 20), width=st.integers(1, 8), keeps_mean=st.booleans())
def test_rows_are_orthonormal(seed: int, width: int, keeps_mean: bool) -> None:
    matrix = stream_map(moments(9, seed), width, keeps_mean=keeps_mean)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(width).double())


def test_of_equal_widths_it_is_the_identity() -> None:
    assert torch.equal(stream_map(moments(5, 0), 5, keeps_mean=True), torch.eye(5).double())


def test_no_map_keeps_more_energy() -> None:
    sublayers = moments(9, 3)
    total = torch.stack([sublayer / sublayer.trace() for sublayer in sublayers]).sum(0)
    matrix = stream_map(sublayers, 4, keeps_mean=False)
    kept = (matrix @ total @ matrix.mT).trace()
    torch.testing.assert_close(kept, torch.linalg.eigvalsh(total)[-4:].sum())


@pytest.mark.parametrize("width", [1, 3, 8])
def test_equal_channels_are_mapped_to_equal_channels(width: int) -> None:
    matrix = stream_map(moments(9, 1), width, keeps_mean=True)
    mapped = matrix @ torch.full((9,), 9**-0.5).double()
    torch.testing.assert_close(mapped, torch.full((width,), width**-0.5).double())
    # So the mean of the channels may be subtracted on either side.
    rows = drawn(5, 9).double()
    centered = rows - rows.mean(1, keepdim=True)
    expected = rows @ matrix.mT
    expected = expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(centered @ matrix.mT, expected)
