"""The axis of a tensor that counts features or classes.

Objectives read features and classes on the last axis. A tensor of examples, or of examples and
positions, has them there. In a map with four axes or more, and in the output of a one-dimensional
convolution, the last axis may also count image columns or samples in time; a loss over it would be
a plausible but wrong number.

Axes: example, position, row, column, feature, class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import final

from torch import Tensor, nn

from curricle.errors import BindError
from curricle.models.tapped import Inputs, Place, TappedModel
from curricle.models.width_axis import LayerTrace, has_features_last, width_axes

CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm)
"""Modules with channels on axis 1 of their output; those of maps have four axes in any case."""
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


def check_numbers(tap: str, state: Tensor) -> None:
    """Check that a hidden state is a tensor of real numbers.

    Args:
        tap: Name of the tap, for the error sentence.
        state: State at the tap.

    Raises:
        BindError: If it has no real numbers, or rows of unequal length.
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


def check_state(
    tap: str,
    state: Tensor,
    *,
    module: nn.Module,
    side: str,
    axis: int,
    observed: int | None = None,
) -> None:
    """Check that the features of a hidden state lie on a known axis.

    Args:
        tap: Name of the tap, for the error sentence.
        state: State at the tap.
        module: Module of the tap.
        side: `output` or `input` of the module.
        axis: Axis that counts features, as declared; -1 is the default.
        observed: Their axis as observed in forward passes; see `ObservedAxes`.

    Raises:
        BindError: If the state is a map and no axis was declared, or if it has no real numbers or
            rows of unequal length.
    """
    check_numbers(tap, state)
    # Most states of a step return here, before any module is inspected.
    if axis != -1 or state.ndim < SEQUENCE_AXES:
        return
    if _is_last(state, observed, guess=lambda: _state_is_clear(state, module, side)):
        return
    raise BindError(
        f"tap {tap!r} must have its features on a known axis; got a state of shape "
        f"{tuple(state.shape)}{_evidence(observed)}; curricle.tapped(model, width_axis=1) names "
        f"axis 1, where convolutions have their channels, width_axis={state.ndim - 1} the last one"
    )


def check_logits(
    logits: Tensor,
    *,
    model: nn.Module,
    inputs: object,
    axis: int,
    observed: int | None = None,
) -> None:
    """Check that the classes of logits lie on a known axis.

    Args:
        logits: Logits as the model returns them.
        model: Model that returned them.
        inputs: Its inputs.
        axis: Axis that counts classes, as declared; -1 is the default.
        observed: Their axis as observed in forward passes; see `ObservedAxes`.

    Raises:
        BindError: If the logits are a map and no axis was declared.
    """
    if axis != -1 or logits.ndim < SEQUENCE_AXES:
        return
    if _is_last(logits, observed, guess=lambda: _logits_are_clear(logits, model, inputs)):
        return
    raise BindError(
        f"'logits' of {type(model).__name__} must have their classes on a known axis; got "
        f"shape {tuple(logits.shape)}{_evidence(observed)}; curricle.tapped(model, width_axis=1) "
        f"names axis 1, as for a map of classes, width_axis={logits.ndim - 1} the last one"
    )


def _is_last(tensor: Tensor, observed: int | None, *, guess: Callable[[], bool]) -> bool:
    """Return whether features are on the last axis: as observed, otherwise by a guess."""
    return guess() if observed is None else observed == tensor.ndim - 1


def _evidence(observed: int | None) -> str:
    """Return the observed axis as words of an error message."""
    if observed is None:
        return ""
    if observed == 0:
        return ", whose last axis follows the length of the inputs, as do the others"
    return f", in which axis {observed} counts them"


def _state_is_clear(state: Tensor, module: nn.Module, side: str) -> bool:
    """Return whether the axes of a tap follow from its last layer."""
    last = _last_layer(module) if side == "output" else None
    if last is not None and has_features_last(last):
        return True
    return state.ndim == SEQUENCE_AXES and not isinstance(last, CHANNELS_FIRST)


def _logits_are_clear(logits: Tensor, model: nn.Module, inputs: object) -> bool:
    """Return whether the axes of a model's logits follow from its layers."""
    return not (
        logits.ndim > SEQUENCE_AXES
        or isinstance(_last_leaf(model), (nn.Conv1d, nn.ConvTranspose1d))
        or _keeps_last_axis(logits, inputs)
    )


def _keeps_last_axis(logits: Tensor, inputs: object) -> bool:
    """Return whether the last axis of logits has the length of channels-first signals."""
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
    leaves = [
        module for module in model.modules() if any(True for _ in module.parameters(recurse=False))
    ]
    return leaves[-1] if leaves else model


@final
class ObservedAxes:
    """The axes of features and classes as observed in forward passes of a model.

    They are observed once for each place and number of axes, in the first pass inside `active` that
    reads them: from the layers that compute the tensors, or, if these are ambiguous, with a shorter
    pass. Without an observation the types of the modules decide.
    """

    def __init__(self, module: nn.Module, *, has_known_states: bool) -> None:
        """Start without observations.

        Args:
            module: The model.
            has_known_states: Whether the features of its states are last in any case.
        """
        self.module, self._has_known_states = module, has_known_states
        self._traced: set[Place | None] = set()
        self.is_active = False
        """Whether forward passes observe axes; others use earlier observations."""
        self._axes: dict[tuple[Place | None, int], int | None] = {}
        self._trace: LayerTrace | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Observe axes in forward passes inside the block; others use earlier observations.

        Yields:
            Nothing.
        """
        before, self.is_active = self.is_active, True
        try:
            yield
        finally:
            self.is_active = before

    def axis(self, place: Place | None, tensor: Tensor) -> int | None:
        """Return the observed axis, None if it is ambiguous.

        Args:
            place: Place of the tensor; None for logits.
            tensor: The tensor.
        """
        return self._axes.get((place, tensor.ndim))

    @contextmanager
    def tracing(self, places: Sequence[Place | None]) -> Iterator[None]:
        """Observe the layers of the first forward pass that reads places.

        Args:
            places: Places of the pass; None for logits.

        Yields:
            Nothing.
        """
        if self._traced.issuperset(places):
            yield
            return
        self._trace = LayerTrace()
        try:
            with self._trace.watching(self.module):
                yield
        finally:
            self._trace = None
        self._traced.update(places)

    def settle(
        self,
        tensors: Mapping[Place | None, Tensor],
        inputs: Inputs,
        keywords: Mapping[str, object],
    ) -> None:
        """Observe the axes of new tensors with three axes or more.

        Args:
            tensors: Tensors at the places of a pass; None for logits.
            inputs: Inputs of the pass.
            keywords: Its keyword arguments.
        """
        fresh = {
            place: tensor
            for place, tensor in tensors.items()
            if tensor.ndim >= SEQUENCE_AXES and (place, tensor.ndim) not in self._axes
        }
        if not fresh:
            return
        axes = {place: self._axis_of_layers(place, tensor) for place, tensor in fresh.items()}
        ambiguous = {
            place: tuple(tensor.shape)
            for place, tensor in fresh.items()
            if axes[place] is None and not self._is_exempt(place)
        }
        if ambiguous:
            axes |= width_axes(self.module, inputs, keywords, ambiguous)
        self._axes |= {(place, fresh[place].ndim): axis for place, axis in axes.items()}

    def _axis_of_layers(self, place: Place | None, tensor: Tensor) -> int | None:
        """Return the axis according to the type of the tap or the layers of the pass."""
        if place is not None and place.side == "output":
            last = _last_layer(self.module.get_submodule(place.path))
            if has_features_last(last):
                return tensor.ndim - 1
        return None if self._trace is None else self._trace.axis(tensor)

    def _is_exempt(self, place: Place | None) -> bool:
        return place is not None and self._has_known_states


def observing(model: TappedModel) -> AbstractContextManager[None]:
    """Return a context in which forward passes of a model observe the axes of its states.

    Args:
        model: A model; kinds other than `HookedModel` have known axes.
    """
    axes = getattr(model, "axes", None)
    return axes.active() if isinstance(axes, ObservedAxes) else nullcontext()
