"""Speed-ups of forward passes: cached low-precision weights and compiled blocks, undone on exit.

Linear maps of a frozen model may keep a copy of their weights in lower precision, instead of a cast
at every pass. Reading a weight, a pass with gradient and a pass in another precision are as without
the copy. Blocks may be compiled: those of a frozen model for passes without gradient, those of a
student for passes with gradient, so that evaluations stay as they are.

Design: the compiled unit is one block, not the model. Hooks on blocks, which serve taps and early
exit, stay outside the graph, and blocks of the same kind share one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from curricle.colocation import processor_kind
from curricle.models.tapped import TappedModel


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """Speed-ups of a frozen model."""

    linear: torch.dtype | None = None
    """Precision of cached weights of linear maps: that of the model's autocast. None caches
    none."""
    compiled: bool = False
    """Whether blocks are compiled for passes without gradient."""

    @contextmanager
    def applying(self, model: TappedModel) -> Iterator[None]:
        """Speed a model up until the end of the block; its weights must not change meanwhile.

        Yields:
            Nothing.
        """
        self.apply(model)
        try:
            yield
        finally:
            undo(model.module)

    def apply(self, model: TappedModel) -> None:
        """Speed a model up; its weights must not change from now on.

        The model may be a copy that has speed-ups already. Not changed are subclasses of
        `nn.Linear` and other linear layers, layers that are not in float32 or have a parametrized
        weight, and modules with a replaced `forward`.
        """
        undo(model.module)
        if self.linear is not None:
            for module in model.module.modules():
                if type(module) is nn.Linear and _is_plain(module):
                    HeldLinear.replace(module, self.linear)
        if self.compiled:
            _compile_blocks(model, with_gradient=False)


@contextmanager
def compiled_blocks(model: TappedModel) -> Iterator[None]:
    """Compile the blocks of a model for passes with gradient, until the end of the context.

    Args:
        model: A model with numbered blocks; those with hooks inside stay as they are.

    Yields:
        Nothing.
    """
    _compile_blocks(model, with_gradient=True)
    try:
        yield
    finally:
        undo(model.module)


def _compile_blocks(model: TappedModel, *, with_gradient: bool) -> None:
    for number in range(1, model.depth + 1):
        block = model.module.get_submodule(model.place(number).path)
        if "forward" not in vars(block):
            vars(block)["forward"] = _Compiled(block, with_gradient=with_gradient)


def undo(module: nn.Module) -> None:
    """Remove the speed-ups of a model."""
    for submodule in module.modules():
        if isinstance(submodule, HeldLinear):
            submodule.restore()
        if isinstance(vars(submodule).get("forward"), _Compiled):
            del vars(submodule)["forward"]


@final
class HeldLinear(nn.Linear):
    """A linear map with weights in two precisions.

    It is a class and not a function in the place of `forward`, because compiled blocks would need a
    graph for each such function.
    """

    _low: tuple[Tensor, Tensor | None]

    @staticmethod
    def replace(linear: nn.Linear, dtype: torch.dtype) -> None:
        """Add weights in another precision to a plain linear map, in place."""
        bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        vars(linear)["_low"] = linear.weight.detach().to(dtype), bias
        linear.__class__ = HeldLinear

    def restore(self) -> None:
        """Become a plain linear map again, in place."""
        del vars(self)["_low"]
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """Return the product in the precision of the autocast, bit-equal to that with casts."""
        cached = self.held(processor_kind(input))
        return super().forward(input) if cached is None else functional.linear(input, *cached)

    def held(self, kind: str) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias as cast by the current autocast; None if it would not cast.

        With gradients it is also None, because these belong to the weight itself.

        Args:
            kind: Kind of processor.
        """
        is_cast = torch.is_autocast_enabled(kind) and not torch.is_grad_enabled()
        return (
            self._low if is_cast and torch.get_autocast_dtype(kind) == self._low[0].dtype else None
        )


@final
class _Compiled:
    """The forward pass of a block, compiled where no hook is inside of it."""

    def __init__(self, block: nn.Module, *, with_gradient: bool) -> None:
        self._with_gradient = with_gradient
        self._plain: Callable[..., object] = block.forward
        self._inner = [module for module in block.modules() if module is not block]
        self._compiled: Callable[..., object] = torch.compile(block.forward)

    def __call__(self, *args: object, **keywords: object) -> object:
        # A hook inside may end the pass, which a graph cannot.
        is_compiled = torch.is_grad_enabled() == self._with_gradient and not self._is_read()
        return (self._compiled if is_compiled else self._plain)(*args, **keywords)

    def _is_read(self) -> bool:
        return any(
            module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001 - no public name
            for module in self._inner
        )


def _is_plain(linear: nn.Linear) -> bool:
    """Return whether a linear map is in float32 and unmodified, as by a weight norm."""
    named = dict(linear.named_parameters(recurse=False))
    is_wide = all(weight.dtype == torch.float32 for weight in named.values())
    has_own_weights = {"weight"} <= set(named) <= {"weight", "bias"}
    return is_wide and has_own_weights and "forward" not in vars(linear)
