"""Copies of models without weights, and passes through them that compute shapes alone.

A tensor without data has a shape, a type and a device, so a model of any size can be built, copied
and run on any machine within seconds. It is built on torch's meta device (`memory.unallocated`) and
runs as fake tensors of a CPU, with the same kernels of attention and the same autocast.

Design: models read values in a few places, mostly whether a mask covers everything. Such a question
is answered with yes (or one), which is the case of a batch without padding.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from curricle.models.tapped import TappedModel

READS_VALUE = frozenset({
    torch.ops.aten._local_scalar_dense.default,  # noqa: SLF001 - the operator of `item`
    torch.ops.aten.is_nonzero.default,
})  # fmt: skip
"""Operators that return the value of a tensor of one element."""
HOST = torch.device("cpu")


@final
class ShapePasses:
    """Models without weights that run together."""

    def __init__(self) -> None:
        """Begin without models."""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def copied(self, model: TappedModel) -> TappedModel:
        """Return a copy of a model without weights; it shares nothing with the model.

        Args:
            model: The model, with its weights or without.
        """
        module = model.module
        # A deep copy takes what stands in the memo for a tensor, and tied tensors stand there once.
        memo: dict[int, object] = {
            id(parameter): nn.Parameter(
                self.emptied(parameter), requires_grad=parameter.requires_grad
            )
            for parameter in module.parameters()
        }
        memo |= {id(buffer): self.emptied(buffer) for buffer in module.buffers()}
        return copy.deepcopy(model, memo)

    def emptied(self, tensor: Tensor) -> Tensor:
        """Return a tensor without data of the shape and type of another, as on a CPU."""
        empty = torch.empty_like(tensor.detach(), device="meta")
        return FakeTensor(self._mode, empty, HOST)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the copies run.

        Yields:
            Nothing.
        """
        with self._mode, _Affirming():
            yield


@final
class _Affirming(TorchDispatchMode):
    """Answers every question for a value with yes, or one."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Return the result of an operator."""
        del types
        if func in READS_VALUE and isinstance(args[0], FakeTensor):
            return True if args[0].dtype is torch.bool else 1
        return func(*args, **(kwargs or {}))


def block_paths(model: TappedModel) -> tuple[str, ...]:
    """Return the module paths of the numbered blocks, each once; none without numbers."""
    places = (model.place(number) for number in range(1, model.depth + 1))
    return tuple(dict.fromkeys(place.path for place in places))
