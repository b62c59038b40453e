"""Labels under other names and in other forms are put into words."""

import pytest
import torch
from torch import Tensor

from curricle.data.label_checks import is_one_hot, misplaced, way_out

IDS = torch.ones(2, 3).long()


ONE_HOT = torch.eye(4).long()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (ONE_HOT, "; they are one-hot, and labels.argmax(-1) gives the classes"),
        (ONE_HOT.bool(), "; they are one-hot, and labels.argmax(-1) gives the classes"),
        (ONE_HOT.float()[:3], "; they are one-hot, and labels.argmax(-1) gives the classes"),
        (ONE_HOT[None], "; they are one-hot, and labels.argmax(-1) gives the classes"),
        (torch.tensor([[3], [1]]), "; labels.squeeze(1) gives one an example"),
        (torch.tensor([[1.0], [1.0]]), "; labels.squeeze(1) gives one an example"),
        (torch.tensor([[1, 1], [0, 1]]), ""),
        (torch.tensor([[1, 0], [0, 2]]), ""),
        (torch.tensor([[1, 0], [0, 0]]), ""),
        (torch.tensor([1, 0, 0]), ""),
        (torch.empty(0, 3).long(), ""),
    ],
)
def test_the_form_of_labels_tells_the_way_out(labels: Tensor, words: str) -> None:
    assert way_out(labels) == words
    assert is_one_hot(labels) == ("one-hot" in words)


@pytest.mark.parametrize("name", ["labels", "label", "label_ids", "target", "targets", "y"])
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1)])
def test_labels_among_the_inputs_are_named(name: str, shape: tuple[int, ...]) -> None:
    found = misplaced({"input_ids": IDS, name: torch.zeros(shape)})
    assert found.startswith(f"; {name!r} of shape {shape} is among the inputs, and labels go under")


@pytest.mark.parametrize("inputs", [IDS, {"input_ids": IDS}, {"x": IDS, "class_labels": IDS}])
def test_other_inputs_are_left_alone(inputs: Tensor | dict[str, Tensor]) -> None:
    assert not misplaced(inputs)
