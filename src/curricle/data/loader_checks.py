"""Checks of loaders and of their items, with the mistakes that torch reports in its own words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.utils.data import DataLoader

from curricle.data.batch import Batch, named
from curricle.errors import DataError

UNEQUAL = re.compile(
    r"stack expects each tensor to be equal size, but got (\[.*?\]) at entry 0 and (\[.*?\]) at"
)
"""Words of torch's default collate function on examples that differ in shape."""
SHARES = ("num_replicas", "num_processes")
"""Attributes in which samplers of torch and accelerate have the number of processes."""


def check_undivided(loader: DataLoader[object], name: str) -> None:
    """Check that no sampler of a loader gives each process a share of its own.

    Args:
        loader: The loader.
        name: Name of the argument.

    Raises:
        DataError: If one does.
    """
    for sampler in _samplers(loader):
        numbers = [getattr(sampler, attribute, None) for attribute in SHARES]
        number = next((number for number in numbers if isinstance(number, int)), 1)
        if number > 1:
            raise DataError(
                f"{name!r} must give the same whole batches in every process, since curricle "
                f"divides each batch among them; got a {type(sampler).__name__} for {number} "
                f"processes; leave the sampler out: DataLoader(dataset, batch_size=..., "
                f"shuffle=True)"
            )


def _samplers(loader: DataLoader[object]) -> Iterator[object]:
    """Yield the samplers of a loader and those inside of them."""
    waiting: list[object] = [loader]
    # Samplers that refer to each other are looked at once.
    known = {id(loader)}
    while waiting:
        owner = waiting.pop()
        for attribute in ("sampler", "batch_sampler"):
            sampler = getattr(owner, attribute, None)
            if sampler is not None and id(sampler) not in known:
                known.add(id(sampler))
                waiting.append(sampler)
                yield sampler


@contextmanager
def collation_errors(name: str) -> Iterator[None]:
    """State in a sentence that examples of several shapes cannot be collated.

    Args:
        name: Name of the loader.

    Yields:
        Nothing.

    Raises:
        DataError: In place of torch's error.
        RuntimeError: Any other error, as it was.
    """
    try:
        yield
    except RuntimeError as error:
        shapes = UNEQUAL.search(str(error))
        if shapes is None:
            raise
        first, second = (f"({shape[1:-1]})" for shape in shapes.groups())
        raise DataError(
            f"{name!r} must collate the examples of a batch to one shape; got {first} and "
            f"{second}; a 'collate_fn' pads them, as transformers.DataCollatorWithPadding("
            f"tokenizer) does with an 'attention_mask', or torch.nn.utils.rnn.pad_sequence"
        ) from error


def check_numbers(item: object, name: str) -> None:
    """Check that the tensors of an item have numbers.

    Args:
        item: Collated item of a loader.
        name: Name of the loader.

    Raises:
        DataError: If one is on torch's meta device.
    """
    if any(tensor.is_meta for tensor in _tensors(item)):
        raise DataError(
            f"{name!r} must give tensors with numbers; got one on torch's meta device, which has "
            f"shapes only; build the data set outside of torch.device('meta')"
        )


def _tensors(item: object) -> Iterator[Tensor]:
    """Yield the tensors of a collated item."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Batch):
        yield from named(item.inputs).values()
        if item.labels is not None:
            yield item.labels
    elif isinstance(item, Mapping):
        for field in item.values():
            yield from _tensors(field)
    elif isinstance(item, Sequence) and not isinstance(item, str):
        for field in item:
            yield from _tensors(field)
