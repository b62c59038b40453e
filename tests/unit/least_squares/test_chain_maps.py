"""Columns, gains and statistics are those of the modules."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.least_squares.chain_maps import UnitNorm, unit_norm, weighted_map
from curricle.least_squares.solving import Affine


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(5, 3), (4, 5)),
        (nn.Conv1d(2, 3, 3, stride=2), (4, 2, 9)),
        (nn.Conv2d(2, 3, 1, bias=False), (4, 2, 5, 5)),
        (nn.Conv2d(2, 3, (3, 2), padding=(1, 0), dilation=(2, 1)), (4, 2, 7, 5)),
        (nn.Conv2d(2, 3, 4, padding="same"), (4, 2, 6, 6)),
        (nn.Conv2d(2, 3, 3, padding="valid"), (4, 2, 6, 6)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (4, 2, 6, 6)),
        (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 3, 4)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
def test_a_map_is_linear_in_its_columns(module: nn.Module, shape: tuple[int, ...]) -> None:
    linear = weighted_map("map", module)
    assert linear is not None
    inputs = torch.randn(shape)
    columns, affine = linear.columns(inputs).double(), linear.affine
    expected = module(inputs).movedim(linear.unit_axis, -1).double()
    torch.testing.assert_close(
        columns @ affine.weight.mT + affine.bias, expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("module", [nn.Linear(5, 3), nn.Conv1d(5, 3, 2)], ids=str)
def test_a_map_is_set_as_it_is_read(module: nn.Module) -> None:
    linear = weighted_map("map", module)
    assert linear is not None
    affine = Affine(torch.randn(linear.affine.weight.shape).double(), torch.randn(3).double())
    linear.set(affine)
    torch.testing.assert_close(linear.affine.weight, affine.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(linear.affine.bias, affine.bias, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm1d(3)],
    ids=str,
)
def test_other_modules_are_no_maps(module: nn.Module) -> None:
    assert weighted_map("map", module) is None


def norm(module: nn.Module, inputs: Tensor) -> UnitNorm | None:
    module.eval()
    return unit_norm("norm", module, inputs, module(inputs), is_direct=True)


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.BatchNorm1d(4), (5, 4), 1),
        (nn.BatchNorm2d(4), (5, 4, 4, 4), 1),
        (nn.GroupNorm(2, 4), (5, 4, 3), 1),
        (nn.LayerNorm(4), (5, 4, 4), -1),
        (nn.BatchNorm1d(4, affine=False), (5, 4), 1),
    ],
    ids=str,
)
def test_the_axis_of_the_gains_is_found_by_values(
    module: nn.Module, shape: tuple[int, ...], axis: int
) -> None:
    found = norm(module, torch.randn(shape))
    assert found is not None
    assert found.unit_axis == axis


@pytest.mark.parametrize("module", [nn.PReLU(4), nn.PReLU(), nn.Linear(4, 4)], ids=str)
def test_modules_with_other_weights_are_no_normalizations(module: nn.Module) -> None:
    assert norm(module, torch.randn(5, 4)) is None


def test_a_plain_output_has_gain_one_and_shift_zero() -> None:
    module, inputs = nn.BatchNorm1d(4), torch.randn(5, 4)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    found: Any = norm(module, inputs)
    torch.testing.assert_close(found.plain(inputs), nn.BatchNorm1d(4).eval()(inputs))


def test_statistics_stand_for_a_gain_and_a_shift() -> None:
    module, inputs = nn.BatchNorm1d(4, affine=False), torch.randn(5, 4)
    found: Any = norm(module, inputs)
    gain, shift = torch.tensor([0.5, 1, 2, 3]), torch.tensor([1.0, 0, -1, 2])
    found.set_gain_by_statistics(gain, shift)
    torch.testing.assert_close(module(inputs), gain * inputs + shift, atol=1e-4, rtol=0)
