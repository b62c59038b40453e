"""Maps and normalizations of all families are read and set in one form."""

import pytest
import torch
from torch import Tensor, nn

from curricle.least_squares.maps import Norm, linear_map, norm_of
from curricle.least_squares.solving import Affine
from tests.parts import drawn


def conv1d() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    layer: nn.Module = transformers.pytorch_utils.Conv1D(3, 5)
    return layer


class OffsetNorm(nn.Module):
    """Normalization whose gain is 1 plus its weight, as in Gemma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(width))

    def forward(self, rows: Tensor) -> Tensor:
        return (1 + self.weight) * rows / rows.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 3), conv1d])
def test_a_map_computes_what_its_values_say(make: object) -> None:
    module = make()  # type: ignore[operator]
    linear = linear_map("path", module)
    assert linear is not None
    assert linear.sizes == (3, 5)
    affine = Affine(drawn(3, 5).double(), drawn(3, seed=1).double())
    linear.set(affine)
    rows = drawn(4, 5, seed=2)
    expected = rows @ affine.weight.float().mT + affine.bias.float()
    torch.testing.assert_close(module(rows), expected)
    torch.testing.assert_close(linear.affine.weight, affine.weight.float().double())


@pytest.mark.parametrize(
    "module", [nn.Embedding(5, 3), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)), nn.Conv1d(2, 2, 1)]
)
def test_other_modules_are_no_maps(module: nn.Module) -> None:
    assert linear_map("path", module) is None


def test_a_map_of_integers_is_none() -> None:
    module = nn.Linear(5, 3)
    module.weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.int8), requires_grad=False)
    assert linear_map("path", module) is None


@pytest.mark.parametrize(
    ("module", "subtracts_mean"),
    [(nn.LayerNorm(6), True), (nn.RMSNorm(6), False), (OffsetNorm(6), False)],
)
def test_a_gain_is_what_the_output_is_multiplied_with(
    module: nn.Module, subtracts_mean: bool
) -> None:
    rows = drawn(2, 3, 6)
    norm = norm_of("path", module, rows, module(rows))
    assert norm is not None
    assert norm.subtracts_mean == subtracts_mean
    weight = module.weight
    assert isinstance(weight, Tensor)
    before = weight.detach().clone()
    plain = norm.plain(rows)
    assert torch.equal(weight, before)
    gain, shift = drawn(6, seed=1).double(), drawn(6, seed=2).double()
    norm.set_gain(gain, shift)
    expected = plain * gain.float() + (shift.float() if norm.has_shift else 0)
    torch.testing.assert_close(module(rows), expected)


def test_a_normalization_is_copied() -> None:
    first, second = nn.LayerNorm(4), nn.LayerNorm(4)
    nn.init.normal_(second.weight)
    nn.init.normal_(second.bias)
    Norm("a", first).copy(Norm("b", second))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
