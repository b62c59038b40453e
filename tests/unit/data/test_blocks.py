"""What a block of batches holds, and how it is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.batch import Batch
from curricle.data.blocks import concatenated, of_step, read_block
from curricle.data.synthetic.parity import ParityStream
from tests.parts import Listed, drawn


def here(batch: Batch) -> Batch:
    return batch


def sentences(step: int, *, scored: int = 2) -> Batch:
    """Return two sequences of five ids, some of whose places are scored."""
    return Batch(
        inputs={"input_ids": torch.arange(10).view(2, 5) + 100 * step},
        labels=torch.arange(scored) + step,
        selected=torch.arange(scored) * 3 + step,
    )


@given(
    step=st.integers(0, 20),
    number=st.integers(1, 5),
    encoding=st.sampled_from(["signs", "tokens"]),
)
def test_a_block_of_a_stream_is_cut_into_its_batches(step: int, number: int, encoding: str) -> None:
    stream = ParityStream(
        num_inputs=4,
        degree=2,
        batch_size=3,
        seed=0,
        encoding=encoding,  # type: ignore[arg-type]
    )
    block = read_block(stream, step, number, place=here)
    assert block is not None
    for offset, part in enumerate(block.whole.split(number)):
        batch = stream.batch(step + offset)
        cut = Batch(**of_step(block.parts, offset))
        for found in (part, cut):
            torch.testing.assert_close(found.inputs, batch.inputs)
            torch.testing.assert_close(found.labels, batch.labels)
            assert (found.selected is None) == (batch.selected is None)
            if batch.selected is not None:
                torch.testing.assert_close(found.selected, batch.selected)


def test_batches_that_were_drawn_apart_make_a_block_too() -> None:
    # 2 ** 14 examples are drawn at once, here those of 4 steps.
    stream = ParityStream(num_inputs=4, degree=2, batch_size=4096, seed=0)
    assert concatenated(stream, 2, 2) is not None
    assert concatenated(stream, 3, 2) is None
    for first in (2, 3):
        block = read_block(stream, first, 2, place=here)
        assert block is not None
        expected = torch.cat([stream.batch(step).leading for step in (first, first + 1)])
        torch.testing.assert_close(block.whole.inputs, expected)


def test_named_inputs_and_places_are_those_of_each_step() -> None:
    batches = [sentences(step) for step in range(3)]
    block = read_block(Listed(*batches), 0, 3, place=here)
    assert block is not None
    assert block.whole.selected is not None
    assert block.whole.selected.tolist() == [0, 3, 11, 14, 22, 25]
    for step, batch in enumerate(batches):
        tensors = of_step(block.parts, step)
        torch.testing.assert_close(tensors["inputs"], batch.inputs)
        torch.testing.assert_close(tensors["selected"], batch.selected)


def test_rows_are_cut_by_step() -> None:
    block = read_block(Listed(sentences(0)), 0, 2, place=here)
    assert block is not None
    rows = drawn(4, 7)
    found = block.cut(rows)
    torch.testing.assert_close(found, torch.stack([rows[:2], rows[2:]]))


@pytest.mark.parametrize(
    "batches",
    [
        (sentences(0), sentences(1, scored=1)),
        (
            Batch(inputs=torch.zeros(2, 5), valid=torch.ones(2, 5, dtype=torch.bool)),
            Batch(inputs=torch.zeros(2, 5), valid=torch.ones(2, 5, dtype=torch.bool)),
        ),
    ],
    ids=["other shapes", "padding"],
)
def test_batches_whose_shapes_are_not_one_make_no_block(batches: tuple[Batch, ...]) -> None:
    assert read_block(Listed(*batches), 0, 2, place=here) is None
