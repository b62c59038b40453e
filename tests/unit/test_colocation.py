"""Tensors and modules beside others."""

import pytest
import torch
from torch import nn

from curricle.colocation import (
    MOST_PINNED_BYTES,
    beside,
    copied_to_host,
    count_beside,
    needs_pinning,
    processor_kind,
    synchronize,
)

ELSEWHERE = torch.empty(1, device="meta", dtype=torch.bfloat16)


def test_tensors_and_modules_move_and_keep_their_precision() -> None:
    tensor = beside(torch.zeros(2), ELSEWHERE)
    assert (tensor.device.type, tensor.dtype) == ("meta", torch.float32)
    weight = beside(nn.LayerNorm(2), ELSEWHERE).weight
    assert (weight.device.type, weight.dtype) == ("meta", torch.float32)


def test_what_lies_there_already_is_not_copied() -> None:
    tensor = torch.zeros(2)
    assert beside(tensor, torch.ones(1)) is tensor


def test_integers_are_counted_where_a_tensor_lies() -> None:
    assert count_beside(torch.zeros(1), 3).tolist() == [0, 1, 2]
    assert count_beside(ELSEWHERE, 3).is_meta


def test_a_processor_has_the_name_that_autocast_takes() -> None:
    assert processor_kind(torch.zeros(1)) == "cpu"


def test_only_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    synchronize(torch.zeros(1))
    assert not calls


@pytest.mark.parametrize(
    ("tensor", "device", "is_pinned"),
    [
        (torch.ones(3), "cuda", True),
        (torch.ones(3), "cpu", False),
        (torch.ones(3, device="meta"), "cuda", False),
        (torch.ones(3, requires_grad=True), "cuda", False),
        (nn.Parameter(torch.ones(3), requires_grad=False), "cuda", False),
        (torch.eye(3).to_sparse(), "cuda", False),
        (torch.ones(1, dtype=torch.uint8).expand(MOST_PINNED_BYTES), "cuda", True),
        (torch.ones(1, dtype=torch.uint8).expand(MOST_PINNED_BYTES + 1), "cuda", False),
    ],
)
def test_only_plain_tensors_that_go_to_a_gpu_are_pinned(
    tensor: torch.Tensor, device: str, is_pinned: bool
) -> None:
    assert needs_pinning(tensor, torch.device(device)) is is_pinned


def test_copies_are_contiguous_and_share_nothing() -> None:
    whole = torch.arange(6.0).view(2, 3)
    copies = copied_to_host(iter([("b", whole.T), ("a", nn.Parameter(whole[0])), ("c", whole)]))
    assert [*copies] == ["b", "a", "c"]
    assert all(type(copy) is torch.Tensor and copy.is_contiguous() for copy in copies.values())
    whole.zero_()
    assert copies["b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert copies["a"].tolist() == [0, 1, 2]
    assert copies["c"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_subclasses_of_tensors_stay_what_they_are() -> None:
    class Marked(torch.Tensor):
        pass

    (copy,) = copied_to_host([("a", torch.ones(2).as_subclass(Marked))]).values()
    assert type(copy) is Marked
