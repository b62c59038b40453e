"""Units are chosen by what they add to those that are chosen already."""

import numpy as np
import pytest
import torch
from torch import Tensor

from curricle.least_squares import unit_selection
from curricle.least_squares.unit_selection import UnitSelection


def selection(inputs: Tensor, weight: Tensor, entries: int = 1) -> UnitSelection:
    made = UnitSelection(torch.arange(inputs.shape[1]).view(-1, entries))
    for rows in inputs.split(50):
        made.add(rows, rows @ weight.mT)
    return made


def residual(inputs: Tensor, targets: Tensor, columns: list[int]) -> float:
    """Return the squared error of least squares with a constant, by numpy."""
    design = np.concatenate([inputs[:, columns].numpy(), np.ones((len(inputs), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, targets.numpy(), rcond=None)
    return float(np.square(targets.numpy() - design @ solution).sum())


def test_a_copy_of_a_unit_is_chosen_last() -> None:
    inputs = torch.randn(200, 3, dtype=torch.float64)
    inputs = torch.cat([inputs[:, :1], inputs[:, :1] + 1, 0.1 * inputs[:, 1:]], dim=1)
    weight = torch.eye(4, dtype=torch.float64)
    made = selection(inputs, weight)
    assert set(made.energies(weight).topk(2).indices.tolist()) == {0, 1}
    chosen = made.chosen(3, weight).tolist()
    assert set(chosen) >= {2, 3}
    assert len(set(chosen) & {0, 1}) == 1


def test_the_unit_chosen_next_leaves_the_least_residual() -> None:
    inputs = torch.randn(100, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight = torch.randn(2, 6, dtype=torch.float64)
    targets, made, chosen = inputs @ weight.mT, selection(inputs, weight), list[int]()
    for number in range(1, 5):
        errors = {
            unit: residual(inputs, targets, [*chosen, unit])
            for unit in range(6)
            if unit not in chosen
        }
        chosen.append(min(errors, key=errors.__getitem__))
        assert made.chosen(number, weight).tolist() == sorted(chosen)


def test_units_of_several_columns_are_chosen_together() -> None:
    inputs = torch.randn(100, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight = torch.randn(4, 6, dtype=torch.float64)
    targets = inputs @ weight.mT
    (unit,) = selection(inputs, weight, entries=2).chosen(1, weight).tolist()
    errors = [residual(inputs, targets, [2 * first, 2 * first + 1]) for first in range(3)]
    assert errors[unit] == min(errors)


def test_of_many_columns_units_are_chosen_by_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(100, 4, dtype=torch.float64) * torch.tensor([1.0, 3, 2, 1])
    weight = torch.tensor([[1.0, 0.1, 1, 2]], dtype=torch.float64)
    monkeypatch.setattr(unit_selection, "MOST_COLUMNS", 3)
    made = selection(inputs, weight)
    expected = inputs.var(0, correction=0) * weight[0].square()
    torch.testing.assert_close(made.energies(weight), expected)
    assert made.chosen(2, weight).tolist() == [2, 3]


def test_all_units_can_be_chosen() -> None:
    # The last two are constant and explain nothing.
    inputs = torch.cat([torch.randn(50, 2), torch.ones(50, 2)], dim=1)
    assert selection(inputs, torch.eye(4)).chosen(4, torch.eye(4)).tolist() == [0, 1, 2, 3]
