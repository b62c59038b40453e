"""Size and speed of models on the machine at hand.

`measure_costs` times forward passes of several models on the same inputs: passes of a batch, which
give the time of an example where many wait, and passes of a single example, which give the latency.

Design: repetitions of the models alternate, so that another program on the machine slows all of
them alike, and the median leaves out the passes that it interrupts.

Units: bytes as the weights lie in memory, buffers included; milliseconds of wall-clock time.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import final

from torch import Tensor, nn

from curricle.colocation import beside, synchronize
from curricle.errors import SpecError
from curricle.models.calls import run_module
from curricle.models.dispatching import resident_weight
from curricle.models.restoring import evaluation_mode
from curricle.models.tapped import Inputs

WARM_UP = 2
"""Passes of each kind before the timed ones, which fill caches and pools of memory."""
MICRO = 1e-6
"""Milliseconds of a nanosecond."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Size and speed of a model."""

    parameters: int
    """Number of parameters; shared ones count once."""
    num_bytes: int
    """Bytes of parameters and buffers."""
    milliseconds: float
    """Median time of an example in a batch."""
    milliseconds_alone: float
    """Median time of an example alone."""


def measure_costs(
    modules: Sequence[nn.Module], inputs: Sequence[Inputs], *, repetitions: int
) -> tuple[Cost, ...]:
    """Return size and speed of models.

    Args:
        modules: The models; they are run in evaluation mode without gradient.
        inputs: Inputs of each model, rows of the same examples.
        repetitions: Timed passes of each model, of the batch and of its first example.

    Raises:
        SpecError: If there are no repetitions.
    """
    if repetitions < 1:
        raise SpecError(f"'repetitions' must be at least 1; got {repetitions}")
    placed = [_beside(rows, module) for rows, module in zip(inputs, modules, strict=True)]
    first = [first_examples(rows, 1) for rows in placed]
    together = _medians(modules, placed, repetitions)
    alone = _medians(modules, first, repetitions)
    return tuple(
        Cost(
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            num_bytes=num_bytes(module),
            milliseconds=batch_time / num_examples(rows),
            milliseconds_alone=single_time,
        )
        for module, rows, batch_time, single_time in zip(
            modules, placed, together, alone, strict=True
        )
    )


def num_bytes(module: nn.Module) -> int:
    """Return the bytes of parameters and buffers; shared ones count once."""
    tensors = chain(module.parameters(), module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def num_examples(inputs: Inputs) -> int:
    """Return the number of rows of inputs."""
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def first_examples(inputs: Inputs, number: int) -> Inputs:
    """Return the first rows of inputs.

    Args:
        inputs: Inputs of a model.
        number: How many rows at most.
    """
    if isinstance(inputs, Mapping):
        return {name: tensor[:number] for name, tensor in inputs.items()}
    return inputs[:number]


def _medians(
    modules: Sequence[nn.Module], inputs: Sequence[Inputs], repetitions: int
) -> list[float]:
    """Return the median milliseconds of a pass of each model."""
    times: list[list[float]] = [[] for _ in modules]
    for _ in range(WARM_UP + repetitions):
        for series, module, rows in zip(times, modules, inputs, strict=True):
            series.append(_time_pass(module, rows))
    return [median(series[WARM_UP:]) for series in times]


def _time_pass(module: nn.Module, inputs: Inputs) -> float:
    """Return the milliseconds of a forward pass."""
    place = _first_tensor(inputs)
    with evaluation_mode(module):
        synchronize(place)
        start = time.perf_counter_ns()
        run_module(module, inputs)
        # Work of a GPU is queued; the clock stops when it is done.
        synchronize(place)
        return (time.perf_counter_ns() - start) * MICRO


def _beside(inputs: Inputs, module: nn.Module) -> Inputs:
    """Return inputs where the weights of a model lie."""
    weight = resident_weight(module)
    if isinstance(inputs, Mapping):
        return {name: beside(tensor, weight) for name, tensor in inputs.items()}
    return beside(inputs, weight)


def _first_tensor(inputs: Inputs) -> Tensor:
    return next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
