"""Placement on one processor, and the choice of it."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from curricle.data.batch import Batch, Rows
from curricle.errors import BindError, SpecError
from curricle.models.wrapping import tapped
from curricle.training.setup.placement import (
    HOST,
    SingleDevice,
    find_placement,
    indivisible,
    place_model,
)
from tests.parts import drawn


def test_the_clock_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    HOST.now()
    assert not calls
    SingleDevice("cuda").now()
    assert calls == ["wait"]


def test_a_batch_on_the_cpu_is_not_copied() -> None:
    batch = Batch(inputs=drawn(3, 2))
    assert HOST.part_of(batch) is batch


@pytest.mark.parametrize(
    ("examples", "group", "processes", "rule", "multiple"),
    [
        (64, 1, 3, "3 processes x 'gradient_accumulation_steps'", 66),
        (64, 1, 7, "7 processes x 'gradient_accumulation_steps'", 70),
        (
            20,
            4,
            2,
            "2 processes x 'gradient_accumulation_steps' x 4 examples of a group",
            24,
        ),
    ],
)
def test_a_batch_that_processes_cannot_divide_is_named_with_the_next_size(
    examples: int, group: int, processes: int, rule: str, multiple: int
) -> None:
    batch = Batch(inputs=drawn(examples, 2), group=group)
    assert indivisible(batch, processes) == (
        f"'batch_size' must be a multiple of {rule}, so that all compute on equally many examples; "
        f"got micro-batches of {examples}; the next multiple has micro-batches of {multiple}"
    )


def test_a_batch_that_lies_elsewhere_is_moved() -> None:
    batch = Batch(inputs=drawn(3, 2), labels=torch.zeros(3, dtype=torch.long))
    moved = SingleDevice("meta").part_of(batch)
    assert moved.labels is not None
    assert (moved.leading.is_meta, moved.labels.is_meta) == (True, True)


@pytest.mark.parametrize(
    ("device", "has_gpu", "kind"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_setting_names_a_placement(
    monkeypatch: pytest.MonkeyPatch,
    device: Literal["auto", "cpu", "cuda"],
    *,
    has_gpu: bool,
    kind: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert find_placement(device).kind == kind


def test_a_gpu_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BindError, match=r"^'device' must be available; got 'cuda' on a machine"):
        find_placement("cuda")


def test_a_cpu_has_no_queue_beside() -> None:
    assert HOST.side_stream() is None


def test_passes_of_a_placed_model_run_through_the_wrapper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = tapped(nn.Sequential(nn.LayerNorm(2), nn.Tanh())), list[str]()

    def place(self: SingleDevice, module: nn.Module) -> nn.Module:
        module.register_forward_hook(lambda *_: calls.append("wrapper"))
        return module

    monkeypatch.setattr(SingleDevice, "place", place)
    place_model(HOST, model)
    with model.open_taps([model.place("0")], logits=False) as forward:
        forward(drawn(3, 2))
    assert calls == ["wrapper"]


def test_values_of_a_batch_that_was_moved_are_read_on_the_cpu() -> None:
    """Tensors of the other place have no values here, as a GPU has none without waiting for it."""
    valid = torch.tensor([[True, True, True, False], [True, True, False, False]])
    matched = torch.tensor([[True, False, True, True], [True, True, True, True]])
    batch = Batch(
        inputs={"input_ids": torch.zeros(2, 4, dtype=torch.long)},
        labels=torch.zeros(3, dtype=torch.long),
        selected=torch.tensor([0, 1, 5]),
        valid=valid,
        alignment=torch.zeros(2, 4, dtype=torch.long),
        matched=matched,
    )
    moved = SingleDevice("meta").part_of(batch)
    assert moved.host is batch
    assert moved.readable is batch
    assert (moved.num_tokens, moved.for_matching.num_tokens) == (5, 4)
    assert moved.for_matching.selected is not None
    assert (moved.for_matching.selected.is_meta, moved.for_matching.num_selected) == (True, 2)
    assert moved.for_teacher.num_selected == 2
    states = torch.zeros(2, 4, 6, device="meta", requires_grad=True)
    for read, rows in ((moved, 5), (moved.for_matching, 4)):
        taken = Rows(None).take(states, read)
        assert tuple(taken.shape) == (rows, 6)
        taken.sum().backward()


def test_rows_of_a_batch_that_was_moved_are_those_of_its_mask() -> None:
    valid = torch.tensor([[True, False, True], [False, True, True]])
    batch = Batch(inputs=torch.zeros(2, 3, dtype=torch.long), valid=valid)
    moved = batch.moved(torch.Tensor.clone)
    plain, indexed = (drawn(2, 3, 4).requires_grad_() for _ in range(2))
    rows = Rows(None).take(plain, batch), Rows(None).take(indexed, moved)
    assert torch.equal(*rows)
    for each in rows:
        each.square().sum().backward()
    assert plain.grad is not None
    assert indexed.grad is not None
    assert torch.equal(plain.grad, indexed.grad)


def test_a_batch_that_is_changed_after_its_move_loses_the_values_on_the_cpu() -> None:
    """An objective that leaves out positions has them left out on a GPU as on a CPU."""
    valid = torch.tensor([[True, True, True, False], [True, True, False, False]])
    batch = Batch(inputs={"input_ids": torch.zeros(2, 4, dtype=torch.long)}, valid=valid)
    inner = valid.clone()
    inner[:, 0] = False
    changed = replace(batch.moved(torch.Tensor.clone), valid=inner)
    assert changed.host is None
    assert changed.num_tokens == 3
    states = torch.arange(8.0).reshape(2, 4, 1)
    assert Rows(None).take(states, changed).flatten().tolist() == [1.0, 2.0, 5.0]
    with pytest.raises(SpecError, match="'Batch': 'host' is not a field"):
        Batch(inputs=valid, host=batch)  # type: ignore[call-arg]
