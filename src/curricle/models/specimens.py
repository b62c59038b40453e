"""Small inputs of Hugging Face models, made from their configurations.

Names of the inputs are the parameters of `forward`; sizes are those that a configuration
fixes, such as the size of an image. Contents are arbitrary: a trace compares states only with each
other.

Axes: example, position, channel, row, column.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.colocation import beside
from curricle.models.dispatching import offloaded_weights
from curricle.models.peft_adapters import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Specimen = dict[str, Tensor]
"""Inputs by name."""
EXAMPLES, TOKENS, DECODER_TOKENS = 2, 5, 4
"""Examples, and positions of either side; all differ, which shows axes in another order."""
IMAGE_SIZE, FRAMES = 64, 8
"""Rows and columns of images, and frames of sound, where a configuration leaves them open."""
ORDINARY_TOKENS = 8
"""Number of token ids in use."""
PARTS = ("text_config", "vision_config", "audio_config")
"""Names of configurations inside that of a composite model."""


def specimens(model: nn.Module) -> Iterator[Specimen]:
    """Yield small inputs that a model may take, its main input alone first.

    Args:
        model: A Hugging Face model, also inside a wrapper of PEFT.
    """
    inner = cast("PreTrainedModel", base_of(model))
    weights = [weight for weight in inner.parameters() if weight.is_floating_point()]
    resident = [weight for weight in weights if not weight.is_meta]
    if not resident and not offloaded_weights(inner):
        return
    # Hooks of accelerate carry inputs from anywhere to the weights.
    like = resident[0] if resident else torch.empty(0, dtype=weights[0].dtype)
    generator = seeding.generator(0, "specimen")
    makers = {
        "input_ids": lambda: _tokens(inner.config, TOKENS),
        "decoder_input_ids": lambda: _tokens(inner.config, DECODER_TOKENS),
        "pixel_values": lambda: torch.randn(_image_shape(inner.config), generator=generator),
        "input_features": lambda: torch.randn(_feature_shape(inner.config), generator=generator),
        "input_values": lambda: torch.randn(_sound_shape(inner.config), generator=generator),
    }
    accepted = [
        name for name in makers if name in inspect.signature(type(inner).forward).parameters
    ]
    main = tuple(name for name in accepted if name == inner.main_input_name)
    sides = tuple(name for name in accepted if name in (*main, "decoder_input_ids"))
    for names in dict.fromkeys((main, sides, tuple(accepted))):
        yield {name: _as_read(makers[name](), like) for name in names}


def _as_read(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return an input beside a weight; features get its precision, token ids stay as they are."""
    return beside(tensor.to(weight.dtype) if tensor.is_floating_point() else tensor, weight)


def _tokens(config: object, length: int) -> Tensor:
    """Return ordinary token ids; the last of each row is the end of the sequence, if it is known.

    Some classifiers read the state at that token.
    """
    special = {number for name, number in _numbers(config) if "token" in name}
    size = int(_setting(config, "vocab_size", ORDINARY_TOKENS))
    ordinary = [number for number in range(size) if number not in special][:ORDINARY_TOKENS] or [0]
    tokens = torch.tensor([ordinary[place % len(ordinary)] for place in range(EXAMPLES * length)])
    tokens = tokens.view(EXAMPLES, length)
    end = _setting(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < size:
        tokens[:, -1] = end
    return tokens


def _image_shape(config: object) -> tuple[int, ...]:
    size = _setting(config, "image_size", IMAGE_SIZE)
    rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
    return EXAMPLES, int(_setting(config, "num_channels", 3)), int(rows), int(columns)


def _feature_shape(config: object) -> tuple[int, ...]:
    # The encoder halves the length of a spectrogram once.
    frames = 2 * int(_setting(config, "max_source_positions", FRAMES))
    return EXAMPLES, int(_setting(config, "num_mel_bins", 80)), frames


def _sound_shape(config: object) -> tuple[int, ...]:
    strides = _setting(config, "conv_stride", None)
    if strides is None:
        frames = int(_setting(config, "max_length", FRAMES))
        return EXAMPLES, frames, int(_setting(config, "num_mel_bins", 128))
    kernels = sum(_setting(config, "conv_kernel", ()))
    return EXAMPLES, math.prod(strides) * (FRAMES + kernels)


def _setting(config: object, name: str, default: object) -> Any:  # noqa: ANN401 - as configured
    """Return a field of a configuration or of the configurations inside it."""
    for holder in (config, *(getattr(config, part, None) for part in PARTS)):
        value = getattr(holder, name, None)
        if value is not None:
            return value
    return default


def _numbers(config: object) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a configuration and of those inside it, by name."""
    for holder in (config, *(getattr(config, part, None) for part in PARTS)):
        fields: Mapping[str, object] = vars(holder) if hasattr(holder, "__dict__") else {}
        for name, value in fields.items():
            if isinstance(value, int):
                yield name, value
