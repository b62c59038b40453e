"""Batches cut into micro-batches and put together again, for any shape."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.batch import Batch, named
from curricle.data.blocks import concatenate


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Return the sizes and choices of a batch."""
    return {
        "parts": draw(st.integers(1, 4)),
        "size": draw(st.integers(1, 4)),
        "length": draw(st.integers(1, 4)),
        "longest": draw(st.integers(1, 5)),
        "features": draw(st.sampled_from([(), (2,), (2, 3)])),
        "values": draw(st.sampled_from([None, (), (3,), (3, 2)])),
        "share": draw(st.none() | st.floats(0, 1)),
        "step": draw(st.none() | st.integers(0, 9)),
        "seed": draw(st.integers(0, 99)),
    } | {name: draw(st.booleans()) for name in ("named", "whole", "padded", "apart")}


def built(sizes: Mapping[str, Any]) -> tuple[Batch, int]:
    """Return a batch and a number of parts that divides its examples."""
    examples, length = sizes["parts"] * sizes["size"], sizes["length"]
    generator = torch.Generator().manual_seed(sizes["seed"])

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    inputs = rand(examples, length, *sizes["features"])
    selected = None
    if sizes["share"] is not None:
        selected = (rand(examples * length) < sizes["share"]).nonzero().squeeze(1)
    labels = None
    if sizes["values"] is not None:
        labels = rand(examples if selected is None else len(selected), *sizes["values"])
        labels = (labels * 9).long() if sizes["whole"] else labels
    alignment = (rand(examples, length) * sizes["longest"]).long()
    batch = Batch(
        inputs={"x": inputs, "y": inputs[:, 0]} if sizes["named"] else inputs,
        labels=labels,
        selected=selected,
        valid=rand(examples, length) < 0.5 if sizes["padded"] else None,
        length=length,
        teacher_inputs=rand(examples, sizes["longest"]) if sizes["apart"] else None,
        alignment=alignment if sizes["apart"] else None,
        step=sizes["step"],
    )
    return batch, sizes["parts"]


def tensors(batch: Batch) -> dict[str, Tensor]:
    return {
        f"{field.name} {name}": tensor
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), (Tensor, dict))
        for name, tensor in named(value).items()
    }


@given(sizes=sizes())
def test_parts_put_together_are_the_batch(sizes: dict[str, Any]) -> None:
    batch, number = built(sizes)
    parts = batch.split(number)
    whole = concatenate(parts)
    torch.testing.assert_close(tensors(whole), tensors(batch), rtol=0, atol=0)
    assert (whole.step, whole.length, whole.positions) == (
        batch.step,
        batch.length,
        batch.positions,
    )


@given(sizes=sizes())
def test_counts_of_parts_add_up(sizes: dict[str, Any]) -> None:
    batch, number = built(sizes)
    parts = batch.split(number)
    for count in ("num_examples", "num_selected", "num_tokens", "num_read_tokens"):
        assert sum(getattr(part, count) for part in parts) == getattr(batch, count)
    assert [part.offset for part in parts] == [
        place * batch.num_examples // number for place in range(number)
    ]


@given(sizes=sizes())
def test_the_teacher_selects_in_parts_what_it_selects_in_the_whole(
    sizes: dict[str, Any],
) -> None:
    batch, number = built(sizes)
    sides = [part.for_teacher for part in batch.split(number)]
    whole = batch.for_teacher
    assert whole.num_examples == sum(side.num_examples for side in sides)
    if whole.selected is not None:
        torch.testing.assert_close(concatenate(sides).selected, whole.selected)
