"""Several teachers as one module.

An `Ensemble` is a teacher like any other module: strategies, stored targets and metrics take it as
it is, and taps name modules of its members, as in `members.0.encoder.layer.3`.

Axes: example, member, class.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curricle.errors import CAUSAL_LOADER, BindError, DataError, loading_hint
from curricle.models.outputs import logits_in

ROW_WEIGHTS = "member_weights"
"""Name of the input that gives each example weights of its own."""


@final
class Ensemble(nn.Module):
    """Weighted mean of the outputs of several teachers.

    The weights are the same for all examples, or come with the batch: an input `member_weights` of
    shape (example, member), for example one-hot where each example has one teacher of its own. Put
    it into `teacher_inputs` of the batch, since the student would receive it, too. All members run
    on all examples, so a step costs the passes of all of them.
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        weights: Sequence[float] | None = None,
        mean: Literal["probabilities", "outputs"] = "probabilities",
    ) -> None:
        """Hold the teachers.

        Args:
            members: The teachers, with equal classes; they stay as they are.
            weights: Weight of each member, divided by their sum; None for equal ones.
            mean: `probabilities` averages softmax probabilities and returns their logarithm;
                `outputs` averages logits, or the values of regression.

        Raises:
            BindError: If there are no members, one is no module, or the weights are not one
                positive number or zero for each, with a positive sum.
        """
        super().__init__()
        if not members:
            raise BindError("'members' must hold at least one teacher; got none")
        for member in members:
            if not isinstance(member, nn.Module):
                raise BindError(
                    f"'members' must be torch.nn.Module; got {type(member).__name__!r}"
                    f"{loading_hint(member, CAUSAL_LOADER)}"
                )
        ratios = [1.0] * len(members) if weights is None else [float(ratio) for ratio in weights]
        are_weights = all(0.0 <= ratio < float("inf") for ratio in ratios) and sum(ratios) > 0.0
        if len(ratios) != len(members) or not are_weights:
            raise BindError(
                f"'weights' must be a number from 0 for each of the {len(members)} members, with a "
                f"positive sum; got {list(weights or ())}"
            )
        self.members = nn.ModuleList(members)
        self.mean = mean
        # A buffer, so that the digest of a run depends on it.
        self.register_buffer("weights", torch.tensor(ratios) / sum(ratios))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Float[Tensor, "... class"]:
        """Return the mean of the members' logits or values.

        Args:
            inputs: Inputs without names, passed on to every member.
            named: Inputs with names, passed on; `member_weights` has shape (example, member).

        Raises:
            BindError: If the outputs of the members differ in shape.
            DataError: If `member_weights` has not one weight from 0 for each example and member, or
                a sum of 0.
        """
        rows = named.pop(ROW_WEIGHTS, None)
        outputs = [
            logits_in(member(*inputs, **named), f"member {number}")
            for number, member in enumerate(self.members)
        ]
        shapes = [tuple(output.shape) for output in outputs]
        if len(set(shapes)) > 1:
            raise BindError(f"'members' must give outputs of equal shape; got {shapes}")
        weights = self.weights if rows is None else _row_weights(rows, shapes[0], len(outputs))
        # On the last axis, behind classes: shape (..., class, member).
        stacked = torch.stack(
            [
                output.log_softmax(-1) if self.mean == "probabilities" else output
                for output in outputs
            ],
            dim=-1,
        )
        weights = weights.to(stacked.dtype)
        if self.mean == "probabilities":
            # A weight of 0 is minus infinity here, which adds nothing to the sum.
            return (stacked + weights.log()).logsumexp(-1)
        return (stacked * weights).sum(-1)


def _row_weights(rows: Tensor, shape: tuple[int, ...], num_members: int) -> Tensor:
    """Return weights of examples, shaped to be multiplied with stacked outputs.

    Raises:
        DataError: If there is not one for each example and member.
    """
    expected = (shape[0], num_members)
    if tuple(rows.shape) != expected:
        raise DataError(
            f"{ROW_WEIGHTS!r} must have shape (example, member), {expected}; got "
            f"{tuple(rows.shape)}"
        )
    weights = rows.float()
    total = weights.sum(-1, keepdim=True)
    # A look at values on a GPU would wait for it at every step.
    if rows.is_cpu and not bool(((weights >= 0).all(-1, keepdim=True) & (total > 0)).all()):
        raise DataError(
            f"{ROW_WEIGHTS!r} must be numbers from 0 with a positive sum for each example; got "
            f"{weights.min().item():g} as the smallest number and {total.min().item():g} as the "
            f"smallest sum"
        )
    return (weights / total).view(shape[0], *(1 for _ in shape[1:]), num_members)
