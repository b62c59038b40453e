"""Nested tensors of `torch.nn.TransformerEncoder`, which no tap can read.

In evaluation mode the encoder packs padded data into a nested tensor. A hook on one of its layers
switches the layer's fast path off, and the slow path fails on the packed tensor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def padded_inside(module: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Hold data padded in encoders that contain one of some paths; the setting comes back after.

    Args:
        module: A model.
        paths: Module paths that are read.

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
