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
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from curricle.colocation import processor_kind
from curricle.models.tapped import TappedModel


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What is done to a model while it only answers."""

    linear: torch.dtype | None = None
    """Precision in which the weights of linear maps are held besides: that of the autocast in
    which the model is run. None holds none."""
    compiled: bool = False
    """Whether blocks are compiled, where no gradient is wanted."""

    @contextmanager
    def held(self, model: TappedModel) -> Iterator[None]:
        """Make a model fast whose weights do not change until the end of the block.

        Yields:
            Nothing.
        """
        self.apply(model)
        try:
            yield
        finally:
            undo(model.module)

    def apply(self, model: TappedModel) -> None:
        """Make a model fast whose weights do not change from now on.

        It may be the copy of one that is fast already. Left alone are linear maps of other classes,
        subclasses too, those that are not in float32 or whose weight is made anew at every pass,
        and whatever has a forward pass that somebody has replaced.
        """
        undo(model.module)
        if self.linear is not None:
            for part in model.module.modules():
                if type(part) is nn.Linear and _is_plain(part):
                    HeldLinear.take(part, self.linear)
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
    """Put a model back that `Inference` has made fast."""
    for part in module.modules():
        if isinstance(part, HeldLinear):
            part.let_go()
        if isinstance(vars(part).get("forward"), _Compiled):
            del vars(part)["forward"]


@final
class HeldLinear(nn.Linear):
    """A linear map that has its weights in two precisions.

    A class and not a function in the place of `forward`, because compiled blocks would need a graph
    for each such function.
    """

    _low: tuple[Tensor, Tensor | None]

    @staticmethod
    def take(part: nn.Linear, dtype: torch.dtype) -> None:
        """Let a plain linear map hold its weights in another precision."""
        bias = None if part.bias is None else part.bias.detach().to(dtype)
        vars(part)["_low"] = part.weight.detach().to(dtype), bias
        part.__class__ = HeldLinear

    def let_go(self) -> None:
        """Become a plain linear map again."""
        del vars(self)["_low"]
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """Return the product in the precision of the autocast, bit-equal to that with casts."""
        held = self.held(processor_kind(input))
        return super().forward(input) if held is None else functional.linear(input, *held)

    def held(self, kind: str) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias as an autocast would cast them here; None if it would not.

        Where gradients are wanted they flow to the weight itself, so there it is None, too.

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
        self._plain: Callable[..., Any] = block.forward
        self._inner = [part for part in block.modules() if part is not block]
        self._compiled: Callable[..., Any] = torch.compile(block.forward)

    def __call__(self, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as torch's
        # A hook inside may end the pass, which a graph cannot.
        is_compiled = torch.is_grad_enabled() == self._with_gradient and not self._is_read()
        return (self._compiled if is_compiled else self._plain)(*args, **keywords)

    def _is_read(self) -> bool:
        return any(
            part._forward_hooks or part._forward_pre_hooks  # noqa: SLF001 - no other name
            for part in self._inner
        )


def _is_plain(part: nn.Linear) -> bool:
    """Return whether a linear map is in float32 and nobody has changed it, as weight norms do."""
    named = dict(part.named_parameters(recurse=False))
    is_wide = all(one.dtype == torch.float32 for one in named.values())
    return (
        is_wide and {"weight"} <= set(named) <= {"weight", "bias"} and "forward" not in vars(part)
    )
