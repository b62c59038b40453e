"""Finished models in the form that other programs read.

Hugging Face models are written once more, as folders that `from_pretrained` reads.
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from curricle.files import new_folder
from curricle.models.weights import serializing

EXPORT = "model"


@runtime_checkable
class _Exportable(Protocol):
    """A Hugging Face model."""

    def save_pretrained(self, save_directory: str) -> None:
        """Write a folder that `from_pretrained` reads."""
        ...


def export(module: nn.Module, folder: Path | None) -> None:
    """Write a Hugging Face model as such.

    Args:
        module: The model; any other is left alone.
        folder: Its run folder; None writes nothing.
    """
    if folder is not None and isinstance(module, _Exportable):
        path = folder / EXPORT
        # A folder that is there whole or not at all, also on a full disk.
        with new_folder(path) as temporary, serializing(path):
            module.save_pretrained(str(temporary))
