"""Placement of models and batches: which processors and processes a run computes on.

A `Placement` puts a module where it runs, takes this process's part of a batch, and adds up numbers
over all processes. The rest of the library names no processor: it reads batches on the CPU, hands
them to `part_of`, and makes new tensors beside those that it was given (`colocation`).

Units: seconds.

Design: every process reads the whole batch, as a stream is a pure function of the step. Each can
therefore count the positions of the whole batch, by which a loss is divided, without communication.
`total` is for numbers that only parts have, such as correct answers of an evaluation.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal, TypeVar, final

import torch
from torch import Tensor, nn

from curricle.colocation import moved_to
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.memory import memory_limit
from curricle.models.dispatching import is_dispatched
from curricle.models.hooked import HookedModel
from curricle.models.tapped import TappedModel

Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Item = TypeVar("Item")

LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
"""Environment variable with the number of processes on a machine."""
UNCHANGED = nullcontext()
"""Context of passes in float32; one serves all, since it has no state."""


class Placement(ABC):
    """Processors and processes of a run."""

    def __init__(self, kind: str) -> None:
        """Compute on one kind of processor.

        Args:
            kind: `cpu` or `cuda`.
        """
        self.kind = kind
        """Kind of processor, `cpu` or `cuda`."""

    @property
    def is_writer(self) -> bool:
        """Return whether this process writes records, checkpoints and finished weights."""
        return self.rank == 0

    @abstractmethod
    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to its processor, and return the module to call: itself or a wrapper.

        Placing the result again changes nothing. The module keeps its parameters and their names. A
        module that hooks of accelerate run stays where they have put it.

        Args:
            module: A model.
        """

    @abstractmethod
    def part_of(self, batch: Batch) -> Batch:
        """Return the examples of a batch that this process computes on, where its models lie.

        Args:
            batch: A whole batch; over all processes each of its examples is in one part.
        """

    @abstractmethod
    def moved(self, batch: Batch) -> Batch:
        """Return a whole batch where the models of this process lie.

        Args:
            batch: A whole batch, on which every process computes alike.
        """

    @property
    def rank(self) -> int:
        """Return the number of this process, from 0 on; the first one writes."""
        return 0

    @property
    def num_processes(self) -> int:
        """Return the number of processes of the run."""
        return 1

    def shared(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items that this process handles; over all processes each is handled once."""
        return items

    def total(self, number: float) -> float:
        """Return the sum of a number over all processes."""
        return number

    def gathered(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the results of all processes, in the order of the items that were `shared`."""
        return items

    def summed(self, totals: list[Tensor]) -> list[Tensor]:
        """Return the sums of tensors without axes over all processes."""
        return totals

    def agreed(self, number: int | None) -> int | None:
        """Return a number of which some process has been told, such as a signal; else None."""
        return number

    def of_first(self, item: Item) -> Item:
        """Return the item of the first process."""
        return item

    @abstractmethod
    def wait(self) -> None:
        """Wait until all processes have come here."""

    @abstractmethod
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the process that writes."""

    @abstractmethod
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the mean of gradients over all processes, for parameters outside of the student."""

    @property
    def memory_bytes(self) -> int | None:
        """Return the memory of this process where it computes; None where it is unknown."""
        if self.kind == "cuda":
            return torch.cuda.mem_get_info()[1]
        limit = memory_limit()
        return None if limit is None else limit // int(os.environ.get(LOCAL_WORLD_SIZE, "1"))

    def padding(self, items: Sequence[Item]) -> Sequence[Item]:  # noqa: ARG002 - for several
        """Return items that this process runs besides those that it handles, without result.

        There are some where each pass of a model needs all processes, which handle different
        numbers of the items that were `shared`.
        """
        return ()

    def lost_process_errors(self) -> AbstractContextManager[object]:
        """Return a context in which the processes that are lost are named in the error."""
        return UNCHANGED

    @contextmanager
    def sharded(self, model: TappedModel) -> Iterator[TappedModel]:
        """Divide the weights of a model among the processes while it is trained.

        Yields:
            The model to train: the model itself where each process holds it whole.
        """
        yield model

    def divided(self, model: TappedModel) -> TappedModel:
        """Return a model that is only read, placed, with its weights divided among the processes.

        Args:
            model: The model; where each process holds it whole, it is placed and returned.
        """
        place_model(self, model)
        return model

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the norm of all gradients over all processes, without axes."""
        return nn.utils.get_total_norm(
            [weight.grad for weight in parameters if weight.grad is not None]
        )

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        """Scale gradients down to a largest norm, that of all of them over all processes."""
        nn.utils.clip_grad_norm_(parameters, max_norm)

    @contextmanager
    def synchronized(
        self,
        model: TappedModel,  # noqa: ARG002 - for placements that wrap it
    ) -> Iterator[Callable[[], AbstractContextManager[object]]]:
        """Take the mean of a model's gradients over all processes while a stage is open.

        Yields:
            Opens the context of a micro-batch that is not the last of its step, whose gradients
            are not combined yet.
        """
        yield nullcontext

    @property
    def is_queued(self) -> bool:
        """Return whether computations are queued, so that a look at a number waits for them."""
        return self.kind == "cuda"

    def now(self) -> float:
        """Return the time in seconds at which everything that was started is computed."""
        if self.is_queued:
            # Without this, waiting for queued steps would count elsewhere.
            torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self, precision: Precision) -> AbstractContextManager[object]:
        """Return the context of forward passes in a precision; weights stay float32.

        Args:
            precision: Precision of matrix products.
        """
        if precision == "float32":
            # A disabled autocast is no substitute: as the outermost context it would keep the casts
            # of an autocast inside of the model beyond the update of the weights.
            return UNCHANGED
        return torch.autocast(self.kind, torch.bfloat16)

    def side_stream(self) -> torch.cuda.Stream | None:
        """Return the queue in which a second thread computes; None on a CPU, which has none."""
        return _side_stream() if self.is_queued else None


@final
class SingleDevice(Placement):
    """One process that computes on one processor."""

    def place(self, module: nn.Module) -> nn.Module:
        """Return the module itself, moved unless accelerate has placed it."""
        if is_dispatched(module):
            return module
        # Parameters are moved in place, so hooks, ties and optimizers that were made before stay
        # valid.
        return module.to(self.kind)

    def part_of(self, batch: Batch) -> Batch:
        """Return the whole batch, moved."""
        return self.moved(batch)

    def moved(self, batch: Batch) -> Batch:
        """Return the batch, moved; the batch itself if it lies there already."""
        # One tensor stands for all, since a stream makes those of a batch in one place.
        if self.kind == "cpu" and batch.leading.is_cpu:
            return batch
        device = torch.device(self.kind)
        # Values that the run looks up are those of the batch on the CPU, if it was made there.
        change = batch.moved if batch.leading.is_cpu else batch.map
        return change(lambda tensor: moved_to(tensor, device))

    def wait(self) -> None:
        """Return: there is no other process."""

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Leave the tensors as they are: this process writes."""

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leave the gradients as they are."""


HOST = SingleDevice("cpu")
"""The CPU of this process."""


def find_placement(device: Device) -> Placement:
    """Return the placement of a run in one process.

    Args:
        device: Value of the setting; `auto` takes a GPU if there is one.

    Raises:
        BindError: If a GPU is named and there is none.
    """
    # One object serves all CPU runs: a placement has no state, and settings look it up at every
    # pass.
    return HOST if kind_of(device) == "cpu" else SingleDevice("cuda")


def indivisible(micro_batch: Batch, number: int) -> str:
    """Return the sentence on a micro-batch that a number of processes cannot divide equally.

    Args:
        micro_batch: The micro-batch.
        number: Number of processes.
    """
    group, examples = micro_batch.group, micro_batch.num_examples
    unit = number * group
    groups = f" x {group} examples of a group" if group > 1 else ""
    return (
        f"'batch_size' must be a multiple of {number} processes x 'gradient_accumulation_steps'"
        f"{groups}, so that all compute on equally many examples; got micro-batches of {examples}; "
        f"the next multiple has micro-batches of {(examples // unit + 1) * unit}"
    )


def kind_of(device: Device) -> Literal["cpu", "cuda"]:
    """Return the kind of processor that a setting names; `auto` takes a GPU if there is one.

    Raises:
        BindError: If a GPU is named and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise BindError("'device' must be available; got 'cuda' on a machine without a GPU")
    return "cuda" if has_gpu and device != "cpu" else "cpu"


def place_model(placement: Placement, model: TappedModel) -> None:
    """Place a model whose hidden states can be read, so that its forward passes run there.

    Args:
        placement: Where it runs.
        model: The model; a `HookedModel` runs through the wrapper that `place` returns.
    """
    if isinstance(model, HookedModel):
        # Hooks stay on the module inside, whose paths taps name, while calls go through the
        # wrapper.
        model.wrap(placement.place)
    else:
        # A tapped model of the user calls its module itself, so a wrapper around it would never
        # run.
        placement.place(model.module)


@cache
def _side_stream() -> torch.cuda.Stream:
    # One for all runs: torch keeps memory for each stream that it has seen.
    return torch.cuda.Stream()
