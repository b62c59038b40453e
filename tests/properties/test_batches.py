"""Batches cut into micro-batches and put together again, for any shape."""

from dataclasses import fields

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.streams import Batch, concatenate, named


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, int]:
    """Return a batch and a number of parts that divides its examples."""
    parts, size, length = (draw(st.integers(1, 4)) for _ in range(3))
    examples = parts * size
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = (examples, length, *draw(st.sampled_from([(), (2,), (2, 3)])))
    inputs = torch.rand(shape, generator=generator)
    selected = None
    if draw(st.booleans()):
        is_selected = torch.rand(examples * length, generator=generator) < draw(st.floats(0, 1))
        selected = is_selected.nonzero().squeeze(1)
    count = examples if selected is None else len(selected)
    values = draw(st.sampled_from([None, (), (3,), (3, 2)]))
    labels = None if values is None else torch.rand((count, *values), generator=generator)
    longest = draw(st.integers(1, 5))
    alignment = torch.randint(longest, (examples, length), generator=generator)
    is_valid = torch.rand((examples, length), generator=generator) < 0.5
    is_apart = draw(st.booleans())
    return (
        Batch(
            inputs={"x": inputs, "y": inputs[:, 0]} if draw(st.booleans()) else inputs,
            labels=labels if draw(st.booleans()) or labels is None else (labels * 9).long(),
            selected=selected,
            valid=is_valid if draw(st.booleans()) else None,
            length=length,
            teacher_inputs=torch.rand((examples, longest), generator=generator)
            if is_apart
            else None,
            alignment=alignment if is_apart else None,
            step=draw(st.none() | st.integers(0, 9)),
        ),
        parts,
    )


def tensors(batch: Batch) -> dict[str, Tensor]:
    return {
        f"{field.name} {name}": tensor
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), (Tensor, dict))
        for name, tensor in named(value).items()
    }


@given(drawn=batches())
def test_parts_put_together_are_the_batch(drawn: tuple[Batch, int]) -> None:
    batch, number = drawn
    parts = batch.split(number)
    whole = concatenate(parts)
    torch.testing.assert_close(tensors(whole), tensors(batch), rtol=0, atol=0)
    assert (whole.step, whole.length, whole.positions) == (
        batch.step,
        batch.length,
        batch.positions,
    )


@given(drawn=batches())
def test_counts_of_parts_add_up(drawn: tuple[Batch, int]) -> None:
    batch, number = drawn
    parts = batch.split(number)
    for count in ("num_examples", "num_selected", "num_tokens", "num_read_tokens"):
        assert sum(getattr(part, count) for part in parts) == getattr(batch, count)
    assert [part.offset for part in parts] == [
        place * batch.num_examples // number for place in range(number)
    ]


@given(drawn=batches())
def test_the_teacher_selects_in_parts_what_it_selects_in_the_whole(
    drawn: tuple[Batch, int],
) -> None:
    batch, number = drawn
    sides = [part.for_teacher for part in batch.split(number)]
    whole = batch.for_teacher
    assert whole.num_examples == sum(side.num_examples for side in sides)
    if whole.selected is not None:
        torch.testing.assert_close(concatenate(sides).selected, whole.selected)
