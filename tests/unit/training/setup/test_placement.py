"""Placement on one processor, and the choice of it."""

from typing import Literal

import pytest
import torch
from torch import nn

from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.wrapping import tapped
from curricle.training.setup.placement import (
    HOST,
    SingleDevice,
    find_placement,
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
