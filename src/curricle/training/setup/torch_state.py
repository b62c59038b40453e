"""State of torch and of the process that surrounds a call: a run does not depend on it.

Callers may be inside `torch.autocast`, `torch.no_grad` or `torch.inference_mode`, or may have set a
default device. `standard_state` runs a block as if none of that were so and puts all of it back.
State that cannot be undone from inside (function transforms, fake tensors, cached
parametrizations) is refused, and so are several processes where something is trained or written.

The caller's settings for speed, memory and debugging are kept: threads, deterministic kernels,
anomaly detection, hooks on saved tensors, precision of matrix products. The default dtype is kept
as well, since models and data may rely on it; tensors of curricle have explicit dtypes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch.nn.utils import parametrize

from curricle.errors import BindError
from curricle.training.setup import launchers

AUTOCAST_DEVICES = ("cpu", "cuda")
_ENTERED: ContextVar[tuple[str, ...] | None] = ContextVar("_ENTERED", default=None)
"""Notes of the outermost `standard_state` of this thread; None outside."""


@contextmanager
def standard_state(*, is_training: bool = True) -> Iterator[None]:
    """Run a block with gradients, the CPU as default device and no autocast.

    The block is also a decorator. Inside another one it changes nothing.

    Args:
        is_training: Whether the block trains or writes, which several processes must not do.

    Yields:
        Nothing.

    Raises:
        BindError: If the surrounding state cannot be undone from inside, or a launcher has started
            several processes of a block that trains.
    """
    # Before the look at an outer block, which may be one that only reads and has not checked this.
    if is_training:
        check_single_process()
    if _ENTERED.get() is not None:
        yield
        return
    # Read before anything is changed, since the notes are about the caller's state.
    token = _ENTERED.set(_notes())
    try:
        with ExitStack() as stack:
            # First of all: tensors that are made in inference mode never record a gradient,
            # whatever `enable_grad` declares.
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.enable_grad())
            # A device context costs every call of torch some time, so none is opened in vain.
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(_without_autocast())
            # After all that can be undone is undone: a tensor that is still unusual here comes from
            # a transform or a mode that cannot be left from inside.
            _check_tensors()
            yield
    finally:
        _ENTERED.reset(token)


def surrounding_notes() -> tuple[str, ...]:
    """Return the notes of the `standard_state` in which this is called; none outside of one."""
    return _ENTERED.get() or ()


def check_single_process() -> None:
    """Check that this is the only process of the run.

    Raises:
        BindError: If a launcher has started several.
    """
    # A script that never makes a process group would train the whole student in each process.
    processes = launchers.num_processes()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A group may also have been made by hand, without a launcher and its variable.
        processes = max(processes, torch.distributed.get_world_size())
    if processes > 1:
        raise BindError(
            f"'WORLD_SIZE' must be 1, since a run is one process and every process of torchrun "
            f"would train the whole student; got {processes}; "
            f"curricle.distill(..., settings=TrainingSettings(parallel='ddp')) divides batches "
            f"among them; else start it without torchrun, or unset WORLD_SIZE"
        )


def _notes() -> tuple[str, ...]:
    """Return notes on the surrounding state."""
    notes: list[str] = []
    if any(torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES):
        notes.append(
            "the surrounding torch.autocast is off while the run goes on; "
            "TrainingSettings(precision='bfloat16') is what switches it on"
        )
    if torch.get_default_device().type != "cpu":
        notes.append(
            f"torch's default device is the CPU while the run goes on, not the surrounding "
            f"{str(torch.get_default_device())!r}"
        )
    if torch.get_float32_matmul_precision() != "highest":
        notes.append(
            f"matrix products in float32 have the precision "
            f"{torch.get_float32_matmul_precision()!r} that torch.set_float32_matmul_precision set"
        )
    return tuple(notes)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Leave all autocasts of this thread inside the block, and enter them again after it.

    `torch.autocast(enabled=False)` would not do: as the outermost context it would keep the casts
    of weights from one step to the next, since torch forgets them only where the outermost ends.
    """
    enabled = [device for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    is_cached = torch.is_autocast_cache_enabled()
    # Torch has no function that only reads the depth, so it is raised and read at once.
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    for device in enabled:
        torch.set_autocast_enabled(device, False)  # noqa: FBT003 - torch's own
    # The caller may have switched the cache off; without it a bfloat16 step of the run would cast
    # every weight again at each use.
    torch.set_autocast_cache_enabled(True)
    # Low-precision copies that the caller has cached become stale when the run updates the weights.
    if depth:
        torch.clear_autocast_cache()
    try:
        yield
    finally:
        # Copies cached before the last update of the weights are stale.
        if depth:
            torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(is_cached)
        for device in enabled:
            torch.set_autocast_enabled(device, True)  # noqa: FBT003 - torch's own
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _check_tensors() -> None:
    """Check that new tensors are plain tensors that may require gradients.

    Raises:
        BindError: If a transform or mode around the call makes them something else.
    """
    tensor = torch.ones(1)
    if type(tensor) is not torch.Tensor:
        raise BindError(
            f"a run must not start inside a mode that replaces tensors, such as FakeTensorMode; "
            f"new tensors are {type(tensor).__name__!r} there"
        )
    # A trace makes plain tensors, so the type above does not show it.
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call] # as torch exports it
        raise BindError("a run must not start inside 'torch.jit.trace', which cannot record it")
    try:
        # Inside of `grad` or `vmap` this is the call that torch refuses; most others pass, and
        # training would fail only at its first backward pass.
        tensor.requires_grad_()
    except RuntimeError:
        raise BindError(
            "a run must not start inside a transform of torch.func, such as 'grad' or 'vmap'; call "
            "it outside of the function that is transformed"
        ) from None
    if parametrize._cache_enabled:  # noqa: SLF001 - torch has no other name for it
        raise BindError(
            "a run must not start inside 'torch.nn.utils.parametrize.cached', where weights keep "
            "the values that they had before the first step"
        )
