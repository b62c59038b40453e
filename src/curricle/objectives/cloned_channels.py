"""Selection of the teacher's channels that the projections of a low-rank clone begin with.

- States between blocks: the channels with most activation energy, the same in all modules whose
  axis has the sizes of the states.
- Inner axis of attention: evenly spaced heads, and evenly spaced channels in each, so that queries
  meet their keys and rotary pairs stay pairs of the student's frequencies.
- Neurons of a block: those with most activation energy, the same in all maps of the block.
- Axes without activations, such as positions: evenly spaced entries.

Axes: student_size, teacher_size (of one axis of a weight).

Source:
    He et al. 2026, RED (arXiv 2605.29327): projections as channel selections by activations
    instead of random numbers keep the effective rank of the states. Deviations: channels are
    measured by their energy on one batch, each state weighed alike; heads and neurons, all of which
    Low-Rank Clone keeps, are selected, too.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from curricle.objectives.cloned_weights import Axis, Sizes, output_axis

HEAD_SIZES = ("head_dim", "attention_head_size")
"""Attributes of attention modules that hold the width of a head."""
NUM_READERS = 3
"""Maps in attention modules whose map that writes lies behind them: queries, keys, values."""
Energies = Mapping[tuple[str, Sizes], Tensor]
"""Energy of each channel by the path of the block, empty for states, and the sizes of the axis."""


def selection_matrix(
    sizes: Sizes, energies: Energies, block: str, heads: Sizes | None
) -> Float[Tensor, "student_size teacher_size"]:
    """Return the matrix of ones and zeros that selects channels of the teacher.

    Args:
        sizes: Sizes of the axis in student and teacher.
        energies: Energies of states and of neurons.
        block: Path of the block of the axis; empty outside.
        heads: Widths of a head in student and teacher on the inner axis of attention, else None.
    """
    if heads is not None and not any(size % head for size, head in zip(sizes, heads, strict=True)):
        first = _evenly((sizes[0] // heads[0], sizes[1] // heads[1])) * heads[1]
        channels = (first[:, None] + _evenly(heads)).flatten()
    else:
        energy = energies.get(("", sizes), energies.get((block, sizes)))
        # In the teacher's order, so that equal channels of two models stay in one order.
        channels = _evenly(sizes) if energy is None else energy.topk(sizes[0]).indices.sort().values
    return torch.eye(sizes[1])[channels]


def _evenly(sizes: Sizes) -> Int[Tensor, " student_size"]:
    return torch.arange(sizes[0]) * sizes[1] // sizes[0]


def head_sizes(model: nn.Module) -> dict[Axis, int]:
    """Return the width of a head for the inner axes of attention.

    Args:
        model: A model whose attention modules hold the width of a head, as in transformers.
    """
    maps = [(path, module) for path, module in model.named_modules() if is_map(module)]
    sizes: dict[Axis, int] = {}
    for path, module in model.named_modules():
        size = next((vars(module)[name] for name in HEAD_SIZES if name in vars(module)), None)
        inside = [
            number for number, (map_path, _) in enumerate(maps) if map_path.startswith(f"{path}.")
        ]
        if not isinstance(size, int) or not inside:
            continue
        # Queries, keys and values alone: BERT's map that writes lies in the next module.
        writer = inside[-1] + (len(inside) == NUM_READERS)
        for number in range(inside[0], min(writer, len(maps))):
            sizes[maps[number][0], output_axis(maps[number][1])] = size
        if writer < len(maps):
            sizes[maps[writer][0], 1 - output_axis(maps[writer][1])] = size
    return sizes


def is_map(module: nn.Module) -> bool:
    """Return whether a module is a linear map with a weight of two axes."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
