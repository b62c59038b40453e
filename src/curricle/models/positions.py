"""Number of positions that a Hugging Face model can read.

Families after RoBERTa number positions from their padding id on: of a table of 514 entries with
padding id 1, two have no position, and 512 tokens are the most.
"""

from torch import nn

FIELD = "max_position_embeddings"
"""Field of configurations with the size of the table, or the longest input of rotary positions."""


def usable_positions(module: nn.Module) -> int | None:
    """Return the most tokens of an input, special ones included; None if that is not stated.

    Args:
        module: A model with a configuration, also inside a wrapper of PEFT.
    """
    length = getattr(getattr(module, "config", None), FIELD, None)
    if not isinstance(length, int):
        return None
    return length - unused_positions(module)


def unused_positions(module: nn.Module) -> int:
    """Return the number of entries of the position table that no token has.

    Args:
        module: A model.
    """
    length = getattr(getattr(module, "config", None), FIELD, None)
    for path, table in module.named_modules():
        is_table = isinstance(table, nn.Embedding) and table.num_embeddings == length
        if is_table and "pos" in path and table.padding_idx is not None:
            # The entry of padding itself, and those before it.
            unused: int = table.padding_idx + 1
            return unused
    return 0
