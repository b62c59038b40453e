"""The axis of a tensor that counts features or classes.

Objectives read features and classes on the last axis. A tensor of examples, or of examples and
positions, has them there. Of a map with four axes or more, and of what a one-dimensional
convolution returns, the last axis may as well count image columns or samples in time; a loss over
it would be a plausible number for something else.

Axes: example, position, row, column, feature, class.
"""

from torch import Tensor, nn

from curricle.errors import BindError

CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm)
"""Modules whose output has its channels on axis 1; those of maps have four axes in any case."""
FEATURES_LAST = (nn.Linear, nn.Embedding)
"""Modules whose output has its features on the last axis, whatever comes before."""
SEQUENCE_AXES = 3
"""Axes of a state with examples, positions and features."""


def with_features_last(tensor: Tensor, axis: int) -> Tensor:
    """Return a tensor with an axis moved to the end; a tensor without that axis as it is.

    Args:
        tensor: Any tensor.
        axis: Axis that counts features; states after pooling may have fewer axes.
    """
    position = axis if axis >= 0 else tensor.ndim + axis
    if not 0 <= position < tensor.ndim - 1:
        return tensor
    return tensor.movedim(position, -1)


def check_state(tap: str, state: Tensor, *, module: nn.Module, side: str, axis: int) -> None:
    """Check that the features of a hidden state lie on a known axis.

    Args:
        tap: Name of the tap, for the error sentence.
        state: State at the tap.
        module: Module of the tap.
        side: `output` or `input` of the module.
        axis: Axis that counts features, as declared; -1 is the default.

    Raises:
        BindError: If the state is a map and no axis was declared, or if it holds no real numbers
            or rows of unequal length.
    """
    if state.is_nested:
        raise BindError(
            f"tap {tap!r} must give one tensor; got a nested one, as nn.TransformerEncoder makes "
            f"of padded data in evaluation mode; build the encoder with enable_nested_tensor=False "
            f"(or set encoder.use_nested_tensor = False)"
        )
    if not state.is_floating_point():
        raise BindError(
            f"tap {tap!r} must give floating-point numbers; got a tensor of {state.dtype}"
        )
    # Most states of a step end here, before any module is looked at.
    if axis != -1 or state.ndim < SEQUENCE_AXES:
        return
    last = _last_layer(module) if side == "output" else None
    if isinstance(last, FEATURES_LAST):
        return
    if state.ndim > SEQUENCE_AXES or (
        state.ndim == SEQUENCE_AXES and isinstance(last, CHANNELS_FIRST)
    ):
        raise BindError(
            f"tap {tap!r} must have its features on a known axis; got a state of shape "
            f"{tuple(state.shape)}; curricle.tapped(model, width_axis=1) names axis 1, where "
            f"convolutions have their channels, width_axis={state.ndim - 1} the last one"
        )


def check_logits(logits: Tensor, *, model: nn.Module, inputs: object, axis: int) -> None:
    """Check that the classes of logits lie on a known axis.

    Args:
        logits: Logits as the model returns them.
        model: Model that returned them.
        inputs: Its inputs.
        axis: Axis that counts classes, as declared; -1 is the default.

    Raises:
        BindError: If the logits are a map and no axis was declared.
    """
    if axis != -1 or logits.ndim < SEQUENCE_AXES:
        return
    if (
        logits.ndim > SEQUENCE_AXES
        or isinstance(_last_leaf(model), (nn.Conv1d, nn.ConvTranspose1d))
        or _keeps_last_axis(logits, inputs)
    ):
        raise BindError(
            f"'logits' of {type(model).__name__} must have their classes on a known axis; got "
            f"shape {tuple(logits.shape)}; curricle.tapped(model, width_axis=1) names axis 1, as "
            f"for a map of classes, width_axis={logits.ndim - 1} the last one"
        )


def _keeps_last_axis(logits: Tensor, inputs: object) -> bool:
    """Return whether channels-first signals have become something with an axis of their length."""
    if not isinstance(inputs, Tensor) or inputs.ndim != SEQUENCE_AXES:
        return False
    return logits.shape[-1] == inputs.shape[-1] and logits.shape[1] != inputs.shape[1]


def _last_layer(module: nn.Module) -> nn.Module:
    """Return the last module with weights at the end of nested sequences."""
    while isinstance(module, nn.Sequential):
        weighted = [child for child in module if any(True for _ in child.parameters())]
        if not weighted:
            break
        module = weighted[-1]
    return module


def _last_leaf(model: nn.Module) -> nn.Module:
    """Return the last module with weights in the order of registration."""
    leaves = [module for module in model.modules() if any(True for _ in module.parameters(False))]  # noqa: FBT003
    return leaves[-1] if leaves else model
