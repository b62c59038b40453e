"""The axis of a state that keeps its size while the inputs become shorter.

A shape alone does not show which of its axes counts features. Two observations do: the layer of
torch that has made the tensor, and how the shape follows the length of the inputs. `LayerTrace`
makes the first during an ordinary pass; `width_axes` the second, with one small pass more.

Axes: example, position, feature.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor, nn

# The counter of FLOPs is such a mode, and torch has no public way out of one.
from torch.utils._python_dispatch import _disable_current_modes

from curricle import seeding
from curricle.errors import CurricleError
from curricle.models.calls import run_module
from curricle.models.outputs import first_tensor, logits_in
from curricle.models.restoring import buffers_kept, modes_kept
from curricle.models.tapped import REFUSALS, Inputs, Place

FEATURES_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
"""Modules whose output has its features on the last axis, whatever comes before."""
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Modules whose output has its channels on axis 1."""
FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention, torch.jit.ScriptModule)
"""Modules that take no hooks, or compute in another way, with other rounding, while they have one.
Modules that torch has compiled, with `_orig_mod` inside, are treated alike."""
ALIKE = ("activation", "batchnorm", "dropout", "instancenorm", "linear", "normalization", "pooling")
"""Files of torch.nn.modules with layers that leave the axes where they are."""
FEW = 2
"""Examples of the additional pass."""
INPUT_AXES = 2
"""Fewest axes of an input that has a length."""
Shapes = Mapping[Place | None, tuple[int, ...]]
"""Shape at each place; that of the whole output at None."""


def has_features_last(module: nn.Module) -> bool:
    """Return whether a layer puts features on the last axis of any input."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        # Of several axes any may count features, as of a whole map. Subclasses with a forward pass
        # of their own may normalize channels on axis 1.
        is_plain = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
        return is_plain and len(module.normalized_shape) == 1
    return isinstance(module, FEATURES_LAST)


@final
class LayerTrace:
    """The layers that have made the tensors of one pass."""

    def __init__(self) -> None:
        """Begin without any tensor."""
        # Weak, so that a pass without gradients does not hold all that its layers return.
        self._axes: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Observe the layers of a module inside the block.

        Args:
            module: The model.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            fused = {
                id(sublayer)
                for layer in module.modules()
                if isinstance(layer, FUSED) or hasattr(layer, "_orig_mod")
                for sublayer in layer.modules()
            }
            for layer in module.modules():
                if id(layer) not in fused:
                    stack.callback(layer.register_forward_hook(self._record, prepend=True).remove)
            yield

    def axis(self, tensor: Tensor) -> int | None:
        """Return the axis of features by the layers, counted from the front; None if unknown.

        Args:
            tensor: A tensor of the pass.
        """
        reference, axis = self._axes.get(id(tensor), (None, 0))
        if reference is None or reference() is not tensor:
            return None
        return axis % tensor.ndim

    def _record(self, layer: nn.Module, args: tuple[object, ...], output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(tensor, Tensor):
            return
        axis = self._axis_after(layer, args)
        if axis is not None:
            self._axes[id(tensor)] = weakref.ref(tensor), axis

    def _axis_after(self, layer: nn.Module, args: tuple[object, ...]) -> int | None:
        if has_features_last(layer):
            return -1
        if isinstance(layer, CONVOLUTIONS):
            return 1
        package, _, name = type(layer).__module__.rpartition(".")
        is_alike = package == "torch.nn.modules" and name in ALIKE
        if not is_alike or not args or not isinstance(args[0], Tensor):
            return None
        reference, axis = self._axes.get(id(args[0]), (None, 0))
        return axis if reference is not None and reference() is args[0] else None


def width_axes(
    module: nn.Module, inputs: Inputs, keywords: Mapping[str, object], shapes: Shapes
) -> dict[Place | None, int]:
    """Return the axis of features at each place where shorter inputs show it.

    The model runs once on a few examples of half the length, in evaluation mode; it stays as it
    was. An axis whose size follows the length counts positions. Features are on the last axis if
    its size stays, otherwise on the first axis after the examples whose size stays; 0 means that
    none stays.

    Args:
        module: The model.
        inputs: Inputs of a pass.
        keywords: Its other arguments.
        shapes: Shapes of that pass at the places that are open.
    """
    for shorter in _shortened(inputs):
        try:
            halved = _shapes(module, shorter, keywords, tuple(shapes))
        except (CurricleError, *REFUSALS):
            continue
        axes = {place: _width_axis(shape, halved.get(place, ())) for place, shape in shapes.items()}
        return {place: axis for place, axis in axes.items() if axis is not None}
    return {}


def _width_axis(shape: tuple[int, ...], shorter: tuple[int, ...]) -> int | None:
    """Return the axis that keeps its size, 0 if none does; None if shapes leave it open."""
    if len(shape) != len(shorter) or shape[1:] == shorter[1:]:
        return None
    if shape[-1] == shorter[-1]:
        return len(shape) - 1
    axes = range(1, len(shape) - 1)
    return next((axis for axis in axes if shape[axis] == shorter[axis]), 0)


def _shortened(inputs: Inputs) -> Iterator[Inputs]:
    """Yield a few examples with half the length, which may be that of either of two axes."""
    named = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    leading = next((value for value in named.values() if value.ndim >= INPUT_AXES), None)
    if leading is None:
        return
    # Of examples, positions and features, the model refuses other numbers of features.
    for axis in dict.fromkeys((leading.ndim - 1, 1)):
        length, count = leading.shape[axis], leading.shape[0]
        if length <= 1:
            continue
        shorter = {
            name: _cut(value, [axis] if value is leading else _axes_of(value, length), length)
            for name, value in named.items()
        }
        rows = {
            name: value[:FEW] if value.ndim and value.shape[0] == count else value
            for name, value in shorter.items()
        }
        yield rows[""] if isinstance(inputs, Tensor) else rows


def _axes_of(value: Tensor, length: int) -> list[int]:
    """Return the axes of an input beside another that have the length of that, as masks do."""
    return [axis for axis in range(1, value.ndim) if value.shape[axis] == length]


def _cut(value: Tensor, axes: Sequence[int], length: int) -> Tensor:
    for axis in axes:
        value = value.narrow(axis, 0, length // 2)
    return value


def _shapes(
    module: nn.Module,
    inputs: Inputs,
    keywords: Mapping[str, object],
    places: Sequence[Place | None],
) -> dict[Place | None, tuple[int, ...]]:
    """Return the shapes at some places of a pass that leaves a model as it is."""
    shapes: dict[Place | None, tuple[int, ...]] = {}
    calls = Counter[tuple[str, str]]()

    def record(path: str, side: str, output: object) -> None:
        place = Place(path, calls[path, side], side)
        calls[path, side] += 1
        if place in places:
            shapes[place] = tuple(first_tensor(output, path).shape)

    with (
        torch.no_grad(),
        _disable_current_modes(),
        modes_kept(module),
        buffers_kept(module),
        seeding.scoped(0, "shortened", beyond_torch=True),
        _hooked(module, places, record),
    ):
        module.eval()
        output = run_module(module, inputs, keywords)
    if None in places:
        shapes[None] = tuple(logits_in(output).shape)
    return shapes


@contextmanager
def _hooked(
    module: nn.Module, places: Sequence[Place | None], record: Callable[[str, str, object], None]
) -> Iterator[None]:
    """Call a function with inputs and outputs of modules at some places inside the block."""
    sides = dict.fromkeys((place.path, place.side) for place in places if place is not None)
    with ExitStack() as stack:
        for path, side in sides:
            target = module.get_submodule(path)
            if side == "input":
                handle = target.register_forward_pre_hook(
                    lambda _, args, keywords, path=path: record(
                        path, "input", args or tuple(keywords.values())
                    ),
                    with_kwargs=True,
                )
            else:
                handle = target.register_forward_hook(
                    lambda _, _args, output, path=path: record(path, "output", output)
                )
            stack.callback(handle.remove)
        yield
