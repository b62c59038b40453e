"""The axis of features and classes: known, or refused."""

import pytest
import torch
from torch import Tensor, nn

from curricle.errors import BindError
from curricle.models.axes import check_logits, check_state, with_features_last

MAP, SIGNAL = torch.zeros(2, 16, 4, 6), torch.zeros(2, 16, 4)


def look(state: Tensor, module: nn.Module, *, side: str = "output", axis: int = -1) -> None:
    check_state("stages.1", state, module=module, side=side, axis=axis)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(-1, (2, 16, 4, 6)), (1, (2, 4, 6, 16)), (-3, (2, 4, 6, 16)), (3, (2, 16, 4, 6))],
)
def test_the_axis_is_moved_to_the_end(axis: int, shape: tuple[int, ...]) -> None:
    assert with_features_last(MAP, axis).shape == shape


@pytest.mark.parametrize("axis", [1, 3, -4])
def test_a_pooled_state_without_the_axis_stays(axis: int) -> None:
    state = torch.zeros(2, 16)
    assert with_features_last(state, axis) is state


@pytest.mark.parametrize("module", [nn.Identity(), nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU())])
def test_a_map_is_refused_where_no_axis_is_declared(module: nn.Module) -> None:
    with pytest.raises(
        BindError,
        match=r"^tap 'stages.1' must have its features on a known axis; got a state of shape "
        r"\(2, 16, 4, 6\); curricle.tapped\(model, width_axis=1\) names axis 1, where "
        r"convolutions have their channels, width_axis=3 the last one$",
    ):
        look(MAP, module)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(3, 16, 1),
        nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Sequential(nn.Identity(), nn.Sequential(nn.GroupNorm(2, 16))),
    ],
    ids=["convolution", "normalized", "nested"],
)
def test_a_signal_with_channels_first_is_refused_too(module: nn.Module) -> None:
    with pytest.raises(BindError, match=r"^tap 'stages.1' .* width_axis=2 the last one$"):
        look(SIGNAL, module)


@pytest.mark.parametrize(
    ("state", "module", "side", "axis"),
    [
        (MAP, nn.Identity(), "output", 1),
        (MAP, nn.Identity(), "output", 3),
        (MAP, nn.Sequential(nn.Identity(), nn.Linear(4, 6)), "output", -1),
        (SIGNAL, nn.Identity(), "output", -1),
        (SIGNAL, nn.Conv1d(16, 16, 1), "input", -1),
        (torch.zeros(2, 16), nn.BatchNorm1d(16), "output", -1),
    ],
)
def test_a_known_axis_is_accepted(state: Tensor, module: nn.Module, side: str, axis: int) -> None:
    look(state, module, side=side, axis=axis)


def test_a_nested_state_is_refused() -> None:
    state = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=torch.jagged)
    with pytest.raises(BindError, match=r"^tap 'stages.1' must give one tensor; .*=False"):
        look(state, nn.Identity())


def test_a_state_of_whole_numbers_is_refused() -> None:
    with pytest.raises(BindError, match=r"^tap 'stages.1' must give floating-point .*torch.int64$"):
        look(torch.zeros(2, 3, dtype=torch.int64), nn.Identity())


class Late(nn.Module):
    """A network whose last layer is a convolution, outside a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Conv1d(3, 5, 3, stride=2)


@pytest.mark.parametrize(
    ("logits", "model", "inputs"),
    [
        (torch.zeros(2, 5, 4, 6), nn.Identity(), None),
        (torch.zeros(2, 5, 2), Late(), torch.zeros(2, 3, 6)),
        (torch.zeros(2, 5, 6), nn.Identity(), torch.zeros(2, 3, 6)),
    ],
    ids=["map", "convolution", "length of the input"],
)
def test_logits_whose_classes_may_lie_on_axis_1_are_refused(
    logits: Tensor, model: nn.Module, inputs: Tensor | None
) -> None:
    with pytest.raises(
        BindError,
        match=r"^'logits' of \w+ must have their classes on a known axis; got shape \(2, 5, .*; "
        r"curricle.tapped\(model, width_axis=1\) names axis 1, as for a map of classes, ",
    ):
        check_logits(logits, model=model, inputs=inputs, axis=-1)
    check_logits(logits, model=model, inputs=inputs, axis=1)


@pytest.mark.parametrize(
    ("logits", "inputs"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 3, 8, 8)),
        (torch.zeros(2, 7, 7), torch.zeros(2, 7)),
        (torch.zeros(2, 7, 5), torch.zeros(2, 7, 5)),
        (torch.zeros(2, 7, 5), {"input_ids": torch.zeros(2, 7)}),
    ],
)
def test_logits_of_examples_and_positions_are_accepted(logits: Tensor, inputs: object) -> None:
    check_logits(logits, model=nn.Identity(), inputs=inputs, axis=-1)
