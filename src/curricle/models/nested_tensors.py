"""Padded data inside of `torch.nn.TransformerEncoder`, in place of nested tensors.

In evaluation mode the encoder packs padded data into a nested tensor. A hook on a layer disables
the layer's fast path, and the slow path fails on a nested tensor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def padded_inside(module: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Keep data padded in the encoders around paths; restores the setting at the end of the block.

    Args:
        module: A model.
        paths: Module paths of taps.

    Yields:
        Nothing.
    """
    packing = [
        encoder
        for name, encoder in module.named_modules()
        if isinstance(encoder, nn.TransformerEncoder)
        and encoder.use_nested_tensor
        and any(path.startswith(f"{name}." if name else "") for path in paths)
    ]
    for encoder in packing:
        encoder.use_nested_tensor = False
    try:
        yield
    finally:
        for encoder in packing:
            encoder.use_nested_tensor = True
