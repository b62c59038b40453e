"""Memory shared by two models.

Training a student built on modules of its teacher would change the teacher, and a module of both
has a single training mode for two purposes. Weights that are frozen in both are harmless. Modules
are compared by identity and tensors by their bytes in memory, so tied weights, views and wrappers
around a whole model are detected alike.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from curricle.errors import BindError

Extent = tuple[int, int, int]
"""Number of the GPU, -1 for the CPU; first byte and byte after the last."""


def check_apart(first: nn.Module, second: nn.Module, *, names: tuple[str, str]) -> None:
    """Check that two models share no memory, except for weights that are frozen in both.

    Args:
        first: A model.
        second: Another model.
        names: Names of both in error messages.

    Raises:
        BindError: If they share memory; the message has both paths.
    """
    pair = _shared_tensor(first, second) or _shared_module(first, second)
    if pair is None:
        return
    raise BindError(
        f"{names[0]!r} and {names[1]!r} must not share memory, or training one changes the other; "
        f"{pair[0]!r} of the {names[0]} is {pair[1]!r} of the {names[1]}; build one of them on "
        f"copy.deepcopy of the other, or freeze shared weights in both (requires_grad_(False))"
    )


def _shared_tensor(first: nn.Module, second: nn.Module) -> tuple[str, str] | None:
    """Return names of overlapping tensors of both models that may change; None without any."""
    by_memory: dict[int, list[tuple[int, int, str]]] = {}
    for memory, start, end, name in sorted((*extent, name) for name, extent in _extents(second)):
        by_memory.setdefault(memory, []).append((start, end, name))
    frozen = _frozen(first), _frozen(second)
    for name, (memory, start, end) in _extents(first):
        for second_start, second_end, second_name in by_memory.get(memory, []):
            if second_start >= end:
                break
            if start < second_end and not (name in frozen[0] and second_name in frozen[1]):
                return name, second_name
    return None


def _frozen(module: nn.Module) -> frozenset[str]:
    """Return the names of frozen parameters; a buffer may always be written."""
    named = module.named_parameters()
    return frozenset(name for name, parameter in named if not parameter.requires_grad)


def _extents(module: nn.Module) -> Iterator[tuple[str, Extent]]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        extent = _extent(tensor)
        if extent is not None:
            yield name, extent


def _extent(tensor: Tensor) -> Extent | None:
    """Return the memory of a tensor; None if it has no single storage."""
    try:
        start = tensor.data_ptr()
        last = sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
    except RuntimeError:
        # Sparse tensors and lazy weights have no single storage.
        return None
    if not tensor.numel() or not start:
        return None
    return tensor.get_device(), start, start + (last + 1) * tensor.element_size()


def _shared_module(first: nn.Module, second: nn.Module) -> tuple[str, str] | None:
    """Return the paths of a shared module that depends on the training mode; None without any."""
    paths = {id(module): path for path, module in second.named_modules()}
    for path, module in first.named_modules():
        if id(module) in paths and _has_modes(module):
            return path, paths[id(module)]
    return None


def _has_modes(module: nn.Module) -> bool:
    """Return whether the output of a module without weights depends on the training mode.

    Activation functions in default arguments are shared by all models and harmless.
    """
    code = getattr(type(module).forward, "__code__", None)
    return code is None or "training" in code.co_names
