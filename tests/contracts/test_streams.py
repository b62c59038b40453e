"""What every stream promises: the batch of a step is a pure function of (seed, step)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from curricle.data.batch import Batch, named
from curricle.data.dataloaders import stream
from curricle.data.streams import Stream
from curricle.data.synthetic.grammars import shipped
from curricle.data.synthetic.parity import ParityStream
from curricle.data.synthetic.pcfg import CausalStrings, MaskedStrings
from curricle.data.text.paired import PairedTexts, Spans
from curricle.data.text.token_store import TokenStore, Vocabulary
from curricle.data.text.windows import CausalWindows, MaskedWindows
from tests.parts import token_store

Make = Callable[[int], Stream]
STRINGS = shipped("cfg3b", start=13)


def text() -> TokenStore:
    tokens = np.random.default_rng(0).integers(0, 40, size=3_000)
    return token_store(tokens, Vocabulary(size=40, special=(0, 1, 2, 3), mask=2))


def paired(seed: int) -> Stream:
    """Return a text in tokens of two and of three characters, of 40 kinds each."""
    ends = [np.arange(1, 6_000 // width + 1) * width for width in (2, 3)]
    student, teacher = (
        Spans(
            ids=np.random.default_rng(0).integers(0, 40, size=len(stops)),
            starts=np.append(0, stops[:-1]),
            ends=stops,
            special=np.arange(3),
        )
        for stops in ends
    )
    return PairedTexts(student, teacher, window=8, batch_size=6, seed=seed)


def collated_with_noise(rows: list[Any]) -> dict[str, Tensor]:
    """Return a masked batch drawn from torch's global generator, as collators do."""
    tokens = torch.stack([row[0] for row in rows])
    ignored = torch.where(torch.rand(tokens.shape) < 0.5, tokens, -100)
    hidden = tokens.masked_fill(ignored != -100, 1)
    return {"input_ids": hidden, "labels": ignored, "attention_mask": torch.ones_like(tokens)}


def loader(*, collate: bool) -> DataLoader[Any]:
    rows = torch.arange(7 * 50).reshape(50, 7)
    data = TensorDataset(rows) if collate else TensorDataset(rows.float(), rows[:, 0])
    function = collated_with_noise if collate else None
    return DataLoader(data, batch_size=6, shuffle=True, collate_fn=function)


CATALOG: dict[str, Make] = {
    "masked windows": lambda seed: MaskedWindows(text(), window=8, batch_size=6, seed=seed),
    "causal windows": lambda seed: CausalWindows(text(), window=8, batch_size=6, seed=seed),
    "parity": lambda seed: ParityStream(num_inputs=9, degree=3, batch_size=6, seed=seed),
    "masked strings": lambda seed: MaskedStrings(STRINGS, batch_size=6, seed=seed),
    "causal strings": lambda seed: CausalStrings(STRINGS, batch_size=6, seed=seed, span_level=2),
    "paired texts": paired,
    "loader of pairs": lambda seed: stream(loader(collate=False), seed=seed),
    "loader of sequences": lambda seed: stream(loader(collate=True), seed=seed),
    "loader of causal sequences": lambda seed: stream(
        loader(collate=True), seed=seed, next_token=True
    ),
}

every_stream = pytest.mark.parametrize("make", CATALOG.values(), ids=CATALOG.keys())


def parts(batch: Batch) -> dict[str, Tensor | None]:
    """Return everything in a batch by name."""
    inputs = {"": batch.inputs} if isinstance(batch.inputs, Tensor) else dict(batch.inputs)
    fields = {"labels": batch.labels, "selected": batch.selected, "valid": batch.valid}
    aligned = {"alignment": batch.alignment, "matched": batch.matched}
    taught = {f"teacher {name}": tensor for name, tensor in named(batch.teacher_inputs).items()}
    return {**inputs, **fields, **aligned, **taught}


def same(one: Batch, other: Batch) -> bool:
    left, right = parts(one), parts(other)
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right_tensor)
        if tensor is not None and (right_tensor := right[name]) is not None
        else tensor is right[name]
        for name, tensor in left.items()
    )


@every_stream
def test_it_is_a_stream(make: Make) -> None:
    assert isinstance(make(0), Stream)


@every_stream
@settings(max_examples=10)
@given(steps=st.lists(st.integers(0, 300), min_size=1, max_size=3))
def test_a_step_gives_the_same_batch_in_any_order_and_in_any_stream(
    make: Make, steps: list[int]
) -> None:
    used = make(0)
    first = [used.batch(step) for step in steps]
    for step, batch in reversed(list(zip(steps, first, strict=True))):
        assert same(batch, used.batch(step))
        assert same(batch, make(0).batch(step))


@every_stream
def test_what_was_read_before_is_not_changed_by_later_reading(make: Make) -> None:
    used = make(0)
    batch = used.batch(0)
    copies = {name: None if part is None else part.clone() for name, part in parts(batch).items()}
    for step in range(1, 10):
        used.batch(step)
    for name, part in parts(batch).items():
        copy = copies[name]
        assert part is copy or (part is not None and copy is not None and torch.equal(part, copy))


@every_stream
def test_steps_differ(make: Make) -> None:
    used = make(0)
    assert not same(used.batch(0), used.batch(1))


@every_stream
def test_seeds_differ(make: Make) -> None:
    assert not same(make(0).batch(0), make(1).batch(0))


@every_stream
@given(step=st.integers(0, 1_000))
def test_batches_have_the_size_that_is_said(make: Make, step: int) -> None:
    used = make(0)
    batch = used.batch(step)
    assert batch.num_examples == used.batch_size == 6
    # Padding is counted, for a batch costs what its shape costs.
    assert math.prod(batch.positions) == used.tokens_per_batch


@every_stream
@given(step=st.integers(0, 1_000))
def test_labels_are_aligned_with_what_is_selected(make: Make, step: int) -> None:
    batch = make(0).batch(step)
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    assert batch.labels.shape == (batch.num_selected,)


@every_stream
@given(step=st.integers(0, 1_000))
def test_selected_positions_ascend_inside_the_batch(make: Make, step: int) -> None:
    batch = make(0).batch(step)
    if batch.selected is not None and batch.selected.numel():
        assert (batch.selected.diff() > 0).all()
        assert 0 <= int(batch.selected[0]) <= int(batch.selected[-1]) < batch.leading.numel()


@every_stream
@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_splitting_keeps_every_label(make: Make, pieces: int) -> None:
    batch = make(0).batch(3)
    labels = [part.labels for part in batch.split(pieces) if part.labels is not None]
    assert batch.labels is not None
    assert torch.equal(torch.cat(labels), batch.labels)


@every_stream
def test_the_fingerprint_is_reproducible_and_changes_with_the_seed(make: Make) -> None:
    assert make(0).fingerprint == make(0).fingerprint
    assert make(0).fingerprint != make(1).fingerprint
