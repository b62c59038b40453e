"""Finished models in the form that other programs read.

Hugging Face models are written once more, as folders that `from_pretrained` reads, with the
tokenizer of the text that they have learned from.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from curricle.files import new_folder
from curricle.models.weights import serializing

EXPORT = "model"


def export(
    module: nn.Module,
    folder: Path | None,
    write_tokenizer: Callable[[Path], None] | None = None,
) -> None:
    """Write a Hugging Face model as such.

    Args:
        module: The model; any other is left alone.
        folder: Its run folder; None writes nothing.
        write_tokenizer: Writes the tokenizer beside the model; None if its data are no text.
    """
    save_pretrained: Callable[[str], None] | None = getattr(module, "save_pretrained", None)
    if folder is not None and save_pretrained is not None:
        path = folder / EXPORT
        # A folder that is there whole or not at all, also on a full disk.
        with new_folder(path) as temporary, serializing(path):
            save_pretrained(str(temporary))
            if write_tokenizer is not None:
                write_tokenizer(temporary)
