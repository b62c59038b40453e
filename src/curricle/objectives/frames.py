"""Masks of the frames of a model that reads padded samples, as models of sound do.

Convolutions before the blocks make a frame of many samples, so that the mask in the data has other
positions than the states. Models of transformers know how many frames a number of samples gives:
`_get_feat_extract_output_lengths`, which any model may define.

Axes: example, sample, frame.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from curricle.colocation import beside, count_beside
from curricle.data.batch import Batch, with_host
from curricle.models.tapped import TappedModel

LENGTHS = "_get_feat_extract_output_lengths"
"""Method from numbers of samples to numbers of frames."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class FrameCounter:
    """Number of frames of a model, by number of samples."""

    module: nn.Module
    """The module with the method."""

    def __deepcopy__(self, memo: dict[int, object]) -> "FrameCounter":
        """Return the counter itself: copies of an objective must not copy the model."""
        return self

    def counts(self, lengths: Int[Tensor, " example"]) -> Int[Tensor, " example"]:
        """Return the numbers of frames for numbers of samples.

        Args:
            lengths: Numbers of samples.
        """
        method = cast("Callable[..., Tensor]", getattr(self.module, LENGTHS))
        # Adapters behind the blocks make fewer frames of those that the blocks have.
        has_adapter = "add_adapter" in inspect.signature(method).parameters
        counts = method(lengths, add_adapter=False) if has_adapter else method(lengths)
        return beside(torch.as_tensor(counts), lengths).long()

    def batch(self, batch: Batch) -> Batch:
        """Return a batch with the positions of the frames, and without labels.

        Args:
            batch: A batch with a mask of samples.
        """
        if batch.valid is None:
            return batch
        if batch.host is not None:
            host = self.batch(batch.host)
            valid = None if host.valid is None else beside(host.valid, batch.valid)
            frames = Batch(inputs=batch.inputs, valid=valid, step=batch.step, offset=batch.offset)
            return with_host(frames, host)
        longest = batch.valid.new_tensor([batch.valid.shape[1]], dtype=torch.int64)
        numbers = count_beside(batch.valid, int(self.counts(longest)))
        valid = numbers < self.counts(batch.valid.sum(1)).unsqueeze(1)
        return Batch(inputs=batch.inputs, valid=valid, step=batch.step, offset=batch.offset)


def frame_counter(model: TappedModel) -> FrameCounter | None:
    """Return the counter of frames of a model; None if it has none.

    Args:
        model: A model; the outermost module with the method counts.
    """
    module = getattr(model, "module", None)
    for part in module.modules() if isinstance(module, nn.Module) else ():
        if callable(getattr(part, LENGTHS, None)):
            return FrameCounter(part)
    return None


def counter_of_states(
    counter: FrameCounter | None, leading: Sequence[int], batch: Batch
) -> FrameCounter | None:
    """Return the counter if states have frames, and the mask of their data samples; else None.

    Args:
        counter: Counter of the model; None if it has none.
        leading: Shape of a state without the width.
        batch: Batch of its pass.
    """
    shape = tuple(leading)
    if counter is None or batch.valid is None or len(shape) == 1 or shape == batch.positions:
        return None
    return counter if counter.batch(batch).positions == shape else None
