"""Selection of channels of the teacher as a projection to the student's width.

Unlike the laws of `projections`, which depend on widths and a seed only, a selection depends on the
teacher: the channels with the largest energy (mean square) on the first batches of a stage, or with
the largest gradients of its predictions, stay, all others are dropped. A random projection mixes
all channels, and on states whose energy lies in few of them it loses effective rank.

Axes: student_width, teacher_width (channels of the teacher).

References:
    [RED] arXiv 2605.29327: selection by activations in place of random maps.
    [FKD] Flex-KD, arXiv 2507.10155: selection by gradients.
"""

from typing import Annotated, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.errors import BindError, SpecError
from curricle.values import value


def _is_default(importance: object) -> bool:
    """Return whether an importance is left out of specs and digests, which are older than it."""
    return importance == "energy"


@final
@value
class ChannelSelection:
    """The most important channels of the teacher, as many as the student has.

    All kept channels have one factor, by which the mean square of the projected states is that of
    the teacher's states on the calibration batches.

    Source:
        [RED], where a selection initializes trained projections of weights. Deviation: a fixed
        projection of states. With `by="gradients"` it is the selection of [FKD]. Deviations: the
        loss there is a correlation, here the objective's squared error; squares of gradients of the
        most likely class in place of absolute values of those of the label; on one batch, where
        `curricle.probes.output_channels` ranks by any number of batches.
    """

    kind: Literal["selection"] = "selection"
    by: Literal["energy", "gradients"] = Field(default="energy", exclude_if=_is_default)
    """Importance of a channel: its `energy`, the mean square of the normalized states on the first
    batches of the stage, or the mean square of the `gradients` of the finished teacher's
    predictions by the state on a batch, as in [FKD]."""
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the kept channels, one for each of the student's; None takes the most important
    ones."""

    def __post_init__(self) -> None:
        """Check that no channel is kept twice, and that named channels are not ranked, too.

        Raises:
            SpecError: If one is, or they are.
        """
        if self.channels is not None and self.by != "energy":
            raise SpecError(
                f"'by' has no effect with 'channels', which names the kept ones; remove one of "
                f"them (got {self.by!r})"
            )
        channels = self.channels or ()
        doubled = [channel for channel in channels if channels.count(channel) > 1]
        if doubled:
            raise SpecError(f"'channels' must differ; got {doubled[0]} twice")

    def check(self, name: str, *, student_width: int, teacher_width: int) -> None:
        """Check that there are as many channels as the student's width.

        Args:
            name: Name of the layer pair.
            student_width: Number of channels to keep.
            teacher_width: Number of channels.

        Raises:
            BindError: If there are not.
        """
        if student_width > teacher_width:
            raise BindError(
                f"{name!r} with projection 'selection' must have a student no wider than its "
                f"teacher; got widths {student_width} and {teacher_width}; use 'orthogonal'"
            )
        if self.channels is None:
            return
        if len(self.channels) != student_width or max(self.channels) >= teacher_width:
            raise BindError(
                f"'channels' of {name!r} must be {student_width} numbers below {teacher_width}, "
                f"the widths of student and teacher; got {len(self.channels)} up to "
                f"{max(self.channels, default=0)}"
            )

    def matrix(
        self, energies: Float[Tensor, " teacher_width"], student_width: int
    ) -> Float[Tensor, "student_width teacher_width"]:
        """Return the map of states to the selected channels, in ascending order.

        Args:
            energies: Mean square of each channel.
            student_width: Number of selected channels.
        """
        channels = sorted(
            largest_channels(energies, student_width) if self.channels is None else self.channels
        )
        rows = torch.ones_like(energies).diag()[channels]
        kept = energies[channels].mean()
        # Without any energy the scale does not matter.
        scale = torch.where(kept > 0, energies.mean() / kept, torch.ones_like(kept)).sqrt()
        return rows * scale


def largest_channels(energies: Float[Tensor, " channel"], count: int) -> tuple[int, ...]:
    """Return the channels with the largest energies, in ascending order; ties go to the first.

    Args:
        energies: Energy of each channel.
        count: Number of channels to return.
    """
    order = energies.argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))
