"""In which form do others read a finished model?

Hugging Face models are written once more, as folders that `from_pretrained` reads.
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from curricle.protocols import conforms

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
    if folder is not None and conforms(module, _Exportable):
        module.save_pretrained(str(folder / EXPORT))
