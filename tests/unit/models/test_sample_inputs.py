"""Small inputs that a configuration describes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.models.sample_inputs import sample_inputs


class Net(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.config = SimpleNamespace(**config)


class Sides(Net):
    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, labels: Tensor) -> None:
        """Take two sides."""


class Pictures(Net):
    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor) -> None:
        """Take images."""


class Both(Net):
    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> None:
        """Take texts and images."""


class Spectrogram(Net):
    main_input_name = "input_features"

    def forward(self, input_features: Tensor) -> None:
        """Take spectrograms."""


class Wave(Net):
    main_input_name = "input_values"

    def forward(self, input_values: Tensor) -> None:
        """Take sound."""


def shapes(model: Net) -> list[dict[str, tuple[int, ...]]]:
    return [
        {name: tuple(tensor.shape) for name, tensor in sample.items()}
        for sample in sample_inputs(model)
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Sides(vocab_size=9), [{"input_ids": (2, 5)},
                               {"input_ids": (2, 5), "decoder_input_ids": (2, 4)}]),
        (Pictures(image_size=24), [{"pixel_values": (2, 3, 24, 24)}]),
        (Pictures(image_size=[8, 4], num_channels=1), [{"pixel_values": (2, 1, 8, 4)}]),
        (Pictures(), [{"pixel_values": (2, 3, 64, 64)}]),
        (Both(text_config=SimpleNamespace(vocab_size=9),
              vision_config=SimpleNamespace(image_size=8)),
         [{"input_ids": (2, 5)}, {"input_ids": (2, 5), "pixel_values": (2, 3, 8, 8)}]),
        (Spectrogram(num_mel_bins=4, max_source_positions=7), [{"input_features": (2, 4, 14)}]),
        (Wave(conv_stride=(5, 2), conv_kernel=(10, 3)), [{"input_values": (2, 210)}]),
        (Wave(max_length=6, num_mel_bins=4), [{"input_values": (2, 6, 4)}]),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_configuration(
    model: Net, expected: list[dict[str, tuple[int, ...]]]
) -> None:
    assert shapes(model) == expected


def test_tokens_are_ordinary_and_end() -> None:
    model = Sides(vocab_size=12, eos_token_id=2, pad_token_id=0, image_token_id=3)
    tokens = next(iter(sample_inputs(model)))["input_ids"]
    assert tokens[:, -1].tolist() == [2, 2]
    assert not set(tokens[:, :-1].flatten().tolist()) & {0, 2, 3}
    assert not torch.equal(tokens[0], tokens[1])


def test_numbers_have_the_type_of_the_weights() -> None:
    (sample,) = sample_inputs(Pictures(image_size=4))
    assert sample["pixel_values"].dtype == torch.float64


def test_a_model_without_weights_gets_none() -> None:
    assert shapes(Pictures().to("meta")) == []
