"""Memory that two models have in common.

A student that is built on parts of its teacher changes it while it learns, and a module of both has
one training mode for two purposes. Weights that are frozen in both do no harm. Modules are compared
by identity and tensors by the bytes that they
occupy, so tied weights, views and wrappers around a whole model are seen alike.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from curricle.errors import BindError

Extent = tuple[int, int, int]
"""Number of the GPU, -1 for the CPU; first byte and byte after the last."""


def check_apart(first: nn.Module, second: nn.Module, *, names: tuple[str, str]) -> None:
    """Check that two models have no memory in common, but for weights that are frozen in both.

    Args:
        first: One model.
        second: The other.
        names: What they are called, for people.

    Raises:
        BindError: If they have; both paths are named.
    """
    pair = _shared_tensor(first, second) or _shared_module(first, second)
    if pair is None:
        return
    one, other = names
    raise BindError(
        f"{one!r} and {other!r} must not share memory, or training one changes the other; "
        f"{pair[0]!r} of the {one} is {pair[1]!r} of the {other}; build one of them on "
        f"copy.deepcopy of the other, or freeze in both what they share (requires_grad_(False))"
    )


def _shared_tensor(first: nn.Module, second: nn.Module) -> tuple[str, str] | None:
    """Return the names of a parameter or buffer of each that overlap and may change, if any do."""
    by_memory: dict[int, list[tuple[int, int, str]]] = {}
    for memory, start, end, name in sorted((*extent, name) for name, extent in _extents(second)):
        by_memory.setdefault(memory, []).append((start, end, name))
    frozen = _frozen(first), _frozen(second)
    for name, (memory, start, end) in _extents(first):
        for other_start, other_end, other in by_memory.get(memory, []):
            if other_start >= end:
                break
            if start < other_end and not (name in frozen[0] and other in frozen[1]):
                return name, other
    return None


def _frozen(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that do not train; a buffer may always be written."""
    named = module.named_parameters()
    return frozenset(name for name, parameter in named if not parameter.requires_grad)


def _extents(module: nn.Module) -> Iterator[tuple[str, Extent]]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        extent = _extent(tensor)
        if extent is not None:
            yield name, extent


def _extent(tensor: Tensor) -> Extent | None:
    """Return what a tensor occupies; None if it has no memory of its own to compare."""
    try:
        start = tensor.data_ptr()
        last = sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
    except (RuntimeError, NotImplementedError):
        # Sparse tensors and weights that are not made yet have no single storage.
        return None
    if not tensor.numel() or not start:
        return None
    return tensor.get_device(), start, start + (last + 1) * tensor.element_size()


def _shared_module(first: nn.Module, second: nn.Module) -> tuple[str, str] | None:
    """Return the paths in each of a module of both whose mode matters, if there is one."""
    paths = {id(part): path for path, part in second.named_modules()}
    for path, part in first.named_modules():
        if id(part) in paths and _has_modes(part):
            return path, paths[id(part)]
    return None


def _has_modes(part: nn.Module) -> bool:
    """Return whether a module without weights computes something else in evaluation mode.

    An activation function that models have as a default argument is one module for all of them, and
    does no harm.
    """
    code = getattr(type(part).forward, "__code__", None)
    return code is None or "training" in code.co_names
