"""Labels under other names and in other forms are put into words."""

import pytest
import torch
from torch import Tensor

from curricle.data.labels import misplaced

IDS = torch.ones(2, 3).long()


@pytest.mark.parametrize("name", ["labels", "label", "label_ids", "target", "targets", "y"])
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1)])
def test_labels_among_the_inputs_are_named(name: str, shape: tuple[int, ...]) -> None:
    found = misplaced({"input_ids": IDS, name: torch.zeros(shape)})
    assert found.startswith(f"; {name!r} of shape {shape} is among the inputs, and labels go under")


@pytest.mark.parametrize("inputs", [IDS, {"input_ids": IDS}, {"x": IDS, "class_labels": IDS}])
def test_other_inputs_are_left_alone(inputs: Tensor | dict[str, Tensor]) -> None:
    assert not misplaced(inputs)
