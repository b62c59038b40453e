"""Encoders of torch in evaluation mode with padded data."""

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.models.nested_tensors import padded_inside
from curricle.models.wrapping import tapped
from tests.parts import drawn


class Net(nn.Module):
    """An encoder with torch's default, which packs padded data."""

    def __init__(self) -> None:
        super().__init__()
        with seeding.scoped(0, "test model"):
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(4, 3)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.out(self.encoder(inputs, src_key_padding_mask=mask == 0))
        return found


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("path", ["encoder.layers.0", "encoder.layers.1", "encoder.layers.0.norm1"])
def test_a_tap_inside_shows_padded_data(path: str) -> None:
    module = Net().eval()
    model, inputs = tapped(module), {"inputs": drawn(2, 4, 4), "mask": MASK}
    with torch.no_grad(), model.open_taps([model.place(path)], logits=True) as forward:
        shown = forward(inputs)
    assert shown.hidden[model.place(path)].shape == (2, 4, 4)
    assert module.encoder.use_nested_tensor
    with torch.no_grad():
        expected = module(**inputs)
    assert shown.logits is not None
    valid = MASK.bool()
    torch.testing.assert_close(shown.logits[valid], expected[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("paths", "packs"),
    [(["encoder.layers.0"], False), (["encoder"], True), (["out"], True), ([], True)],
)
def test_data_stay_packed_where_nothing_inside_is_read(paths: list[str], packs: bool) -> None:
    module = Net()
    with padded_inside(module, paths):
        assert module.encoder.use_nested_tensor is packs
    assert module.encoder.use_nested_tensor
