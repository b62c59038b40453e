"""Content-based keys of examples, independent of order, batch size, padding and seed.

A key is a digest of the inputs of an example where its row holds data, of the teacher's inputs and
their alignment if these are given apart, and optionally of the selected positions. Order, batch
size, seed and number of processes do not enter; neither does the padding that a row got because of
its neighbors.

Axes: example (rows of a batch).

Design: integers are digested as 64-bit ones, so ids mean the same in any type. An attention mask
equal to `valid` is left out, since it changes no activation. Labels do not enter, since no model
reads them.
"""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from curricle.data.batch import Batch, data_mask
from curricle.errors import BindError

KEY_BYTES = 16
"""Bytes of a key; two of 1e9 examples share one by chance of 1e-21."""
KEYS = np.dtype(f"S{KEY_BYTES}")
MASK = "attention_mask"


def example_keys(batch: Batch, *, selected: bool) -> Shaped[np.ndarray, " example"]:
    """Return the key of each example of a batch, as `KEYS`.

    Args:
        batch: The batch.
        selected: Whether it matters which positions are selected.

    Raises:
        BindError: If only some positions have a counterpart of the teacher.
    """
    if batch.matched is not None:
        raise BindError(
            "'targets' cannot be stored or read for data with 'matched' positions, since their "
            "rows are not those of the data; run the teacher beside the student"
        )
    rows = list(_rows(batch))
    places = selected_places(batch) if selected and batch.selected is not None else None
    for number, positions in enumerate(places or ()):
        rows[number].update(b"selected")
        rows[number].update(positions.tobytes())
    # `bytes` would lose zeros at the end.
    return np.frombuffer(b"".join(row.digest() for row in rows), dtype=KEYS)


def selected_places(batch: Batch) -> list[Int[np.ndarray, " _"]]:
    """Return the selected positions of each example, counted over those that hold data."""
    if batch.selected is None:
        return [np.arange(count) for count in data_counts(batch)]
    width = batch.positions[1]
    examples, positions = np.divmod(batch.selected.cpu().numpy(), width)
    if batch.valid is not None:
        ranks = np.cumsum(batch.valid.cpu().numpy(), axis=1) - 1
        positions = ranks[examples, positions]
    ends = np.searchsorted(examples, np.arange(1, batch.num_examples))
    return np.split(positions.astype(np.int64), ends)


def data_counts(batch: Batch) -> Int[np.ndarray, " example"]:
    """Return the number of positions with data of each example; 1 where there are no positions."""
    if batch.valid is not None:
        counts: Int[np.ndarray, " example"] = batch.valid.sum(1).cpu().numpy()
        return counts
    return np.full(batch.num_examples, int(np.prod(batch.positions[1:])), dtype=np.int64)


def _rows(batch: Batch) -> Iterator[hashlib.blake2b]:
    """Yield for each example a digest of its inputs, to which more may be added."""
    columns = _columns(batch)
    if batch.teacher_inputs is not None:
        mask = data_mask(batch.teacher_inputs)
        valid = None if mask is None else mask.bool()
        columns.append([b"teacher"] * batch.num_examples)
        columns += _columns(Batch(inputs=batch.teacher_inputs, valid=valid))
    if batch.alignment is not None:
        columns.append([b"alignment" + row.tobytes() for row in _aligned_places(batch)])
    for contents in zip(*columns, strict=True):
        yield hashlib.blake2b(b"".join(contents), digest_size=KEY_BYTES)


def _aligned_places(batch: Batch) -> Iterator[Int[np.ndarray, " _"]]:
    """Return the aligned positions of each example's data, counted over the teacher's data."""
    assert batch.alignment is not None  # noqa: S101 - checked by the caller
    places = batch.alignment.cpu().numpy().astype(np.int64)
    mask = None if batch.teacher_inputs is None else data_mask(batch.teacher_inputs)
    if mask is not None:
        ranks = np.cumsum(mask.bool().cpu().numpy(), axis=1) - 1
        places = np.take_along_axis(ranks, places, axis=1)
    valid = np.ones(places.shape, bool) if batch.valid is None else batch.valid.cpu().numpy()
    return (row[is_valid] for row, is_valid in zip(places, valid, strict=True))


def _columns(batch: Batch) -> list[list[bytes]]:
    """Return the content of each input for each example."""
    data_places = None
    columns: list[list[bytes]] = []
    if batch.valid is not None:
        valid = batch.valid.cpu().numpy()
        data_places = [np.flatnonzero(row) for row in valid]
        # Where the data are matters only if they are not all in front.
        in_front = [
            len(row_places) == 0 or row_places[-1] < len(row_places) for row_places in data_places
        ]
        columns.append(
            [
                b"" if is_so else row_places.tobytes()
                for row_places, is_so in zip(data_places, in_front, strict=True)
            ]
        )
    for name, tensor in sorted(_distinguishing_inputs(batch).items()):
        array = _plain(tensor)
        # What an encoder reads has other positions than the decoder's, be they equally many.
        is_side = not batch.is_decoded or name.startswith("decoder_")
        is_masked = data_places is not None and is_side and array.shape[:2] == batch.positions
        columns.append(_contents(name, array, data_places if is_masked else None))
    return columns


def _contents(
    name: str,
    array: Shaped[np.ndarray, "example ..."],
    data_places: "list[Int[np.ndarray, ' _']] | None",
) -> list[bytes]:
    """Return for each example its part of an array, or only the places that hold data."""
    if data_places is not None:
        data = [row[places] for row, places in zip(array, data_places, strict=True)]
        return [_head(name, row) + np.ascontiguousarray(row).tobytes() for row in data]
    if not len(array):
        return []
    # At once, for small models are faster than a call for each example.
    head, content = _head(name, array[0, ...]), np.ascontiguousarray(array).tobytes()
    size = len(content) // len(array)
    return [head + content[start : start + size] for start in range(0, size * len(array), size)]


def _head(name: str, row: Shaped[np.ndarray, "..."]) -> bytes:
    return f"{name}:{row.dtype.kind}:{row.shape};".encode()


def _distinguishing_inputs(batch: Batch) -> Mapping[str, Tensor]:
    """Return the inputs by name, without a mask equal to `valid`."""
    if isinstance(batch.inputs, Tensor):
        return {"": batch.inputs}
    name = f"decoder_{MASK}" if batch.is_decoded else MASK
    mask = batch.inputs.get(name)
    if mask is None:
        return batch.inputs
    implied = torch.ones_like(mask, dtype=torch.bool) if batch.valid is None else batch.valid
    if mask.shape != implied.shape or not torch.equal(mask.bool(), implied):
        return batch.inputs
    return {input_name: tensor for input_name, tensor in batch.inputs.items() if input_name != name}


def _plain(tensor: Tensor) -> Shaped[np.ndarray, "example ..."]:
    host = tensor.detach().cpu()
    array: Shaped[np.ndarray, "example ..."]
    array = (host.float() if host.is_floating_point() else host.long()).numpy()
    return array
