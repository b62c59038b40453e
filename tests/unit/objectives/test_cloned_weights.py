"""Weights as products of the teacher's weights and trained projections, held to numpy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.errors import BindError
from curricle.objectives.cloned_weights import Axis, ClonedWeights, paired_path, weight_pairs
from tests.parts import drawn, mlp

SIZES, TEACHER_SIZES = (3, 4, 2), (3, 7, 5)


class Conv1D(nn.Module):
    """A linear map with its weight stored as (input, output), as that of GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(drawn(inputs, outputs))
        self.bias = nn.Parameter(drawn(outputs))

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight + self.bias


class Network(nn.Module):
    """A table, a norm, a map of either kind, and a head."""

    def __init__(self, rows: int, width: int, inner: int, *, is_tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.norm = nn.LayerNorm(width)
        self.block = nn.Sequential(nn.Linear(width, inner), Conv1D(inner, width))
        self.head = nn.Linear(width, rows)
        if is_tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        states = self.block(self.norm(self.table(ids)))
        logits: Tensor = self.head(states)
        return logits


def network(*sizes: int, is_tied: bool = False) -> Network:
    with seeding.scoped(sum(sizes), "cloned weights"):
        return Network(*sizes, is_tied=is_tied)


def models(*, is_tied: bool = False) -> tuple[Network, Network]:
    return network(*SIZES, is_tied=is_tied), network(*TEACHER_SIZES, is_tied=is_tied)


def cloned(student: Network, teacher: Network) -> tuple[ClonedWeights, dict[Axis, Tensor]]:
    """Return projections of random values, and these."""
    pairs = weight_pairs(curricle.tapped(student), curricle.tapped(teacher))
    axes = {axis: sizes for pair in pairs for axis, sizes in pair.projections.items()}
    matrices = {
        axis: drawn(*sizes, seed=number) for number, (axis, sizes) in enumerate(axes.items())
    }
    return ClonedWeights(student, teacher, pairs, matrices), matrices


def arrays(network: nn.Module) -> dict[str, Any]:
    return {name: weight.detach().numpy() for name, weight in network.named_parameters()}


def test_every_weight_is_the_product_in_numpy() -> None:
    student, teacher = models()
    adapter, matrices = cloned(student, teacher)
    adapter.begin()
    p = {axis: matrix.numpy() for axis, matrix in matrices.items()}
    t = arrays(teacher)
    expected = {
        "table.weight": t["table.weight"] @ p["table", 1].T,
        "norm.weight": p["norm", 0] @ t["norm.weight"],
        "norm.bias": p["norm", 0] @ t["norm.bias"],
        "block.0.weight": p["block.0", 0] @ t["block.0.weight"] @ p["block.0", 1].T,
        "block.0.bias": p["block.0", 0] @ t["block.0.bias"],
        # Stored as (input, output): the bias lies on axis 1.
        "block.1.weight": p["block.1", 0] @ t["block.1.weight"] @ p["block.1", 1].T,
        "block.1.bias": p["block.1", 1] @ t["block.1.bias"],
        "head.weight": t["head.weight"] @ p["head", 1].T,
        "head.bias": t["head.bias"],
    }
    actual = arrays(student)
    assert actual.keys() == expected.keys()
    for name, product in expected.items():
        np.testing.assert_allclose(actual[name], product, atol=1e-5, err_msg=name)


def test_gradients_of_weights_become_those_of_the_projections() -> None:
    student, teacher = models()
    adapter, matrices = cloned(student, teacher)
    adapter.begin()
    student(torch.arange(3)).square().sum().backward()
    weight, bias = (student.get_parameter(f"block.0.{name}") for name in ("weight", "bias"))
    assert weight.grad is not None
    assert bias.grad is not None
    gradient, bias_gradient = weight.grad.numpy().copy(), bias.grad.numpy().copy()
    adapter.prepare()
    source = arrays(teacher)
    # W = A T B^T and b = A t: dA = G B T^T + g t^T, dB = G^T A T.
    first, second = matrices["block.0", 0].numpy(), matrices["block.0", 1].numpy()
    expected = {
        ("block.0", 0): gradient @ second @ source["block.0.weight"].T
        + np.outer(bias_gradient, source["block.0.bias"]),
        ("block.0", 1): gradient.T @ first @ source["block.0.weight"],
    }
    for axis, array in expected.items():
        matrix = adapter.matrices[axis]
        assert matrix.grad is not None
        np.testing.assert_allclose(matrix.grad.numpy(), array, rtol=1e-4, atol=1e-4)
    # The optimizer skips what is a product; normalizations and weights of equal size stay.
    assert {name for name, entry in student.named_parameters() if entry.grad is not None} == {
        "norm.weight",
        "norm.bias",
        "head.bias",
    }


def test_an_update_moves_the_weights_with_the_projections() -> None:
    student, teacher = models()
    adapter, _ = cloned(student, teacher)
    adapter.begin()
    before = arrays(copy.deepcopy(student))
    with torch.no_grad():
        for matrix in adapter.projections:
            matrix.mul_(2)
    adapter.advance()
    after = arrays(student)
    # Twice for each projected axis; normalizations train themselves.
    np.testing.assert_allclose(after["block.0.weight"], 4 * before["block.0.weight"], rtol=1e-5)
    np.testing.assert_allclose(after["table.weight"], 2 * before["table.weight"], rtol=1e-5)
    np.testing.assert_array_equal(after["norm.weight"], before["norm.weight"])


def test_flops_of_an_update_are_those_of_the_products() -> None:
    adapter, _ = cloned(*models())
    _, s, r = SIZES
    v, t, q = TEACHER_SIZES
    # Two for a multiplication with its addition. A product runs twice, to write and for its
    # gradients; the gradient of its matrix is one more, and that of the teacher's weight is needed
    # only where another product has made it. The axis of the inner size comes first in both maps.
    maps = 2 * 2 * (r * q * t * 3 + r * t * s * 4)
    tables = 2 * (2 * v * t * s * 3)
    biases = 2 * r * q * 3 + 2 * s * t * 3
    assert adapter.update_flops == maps + tables + biases


def test_a_tied_weight_is_one_product() -> None:
    student, teacher = models(is_tied=True)
    adapter, matrices = cloned(student, teacher)
    adapter.begin()
    assert student.head.weight is student.table.weight
    expected = teacher.table.weight.detach().numpy() @ matrices["table", 1].numpy().T
    np.testing.assert_allclose(student.head.weight.detach().numpy(), expected, atol=1e-5)


def test_a_copy_refers_to_the_same_models_with_projections_of_its_own() -> None:
    student, teacher = models()
    adapter, _ = cloned(student, teacher)
    copied = copy.deepcopy(adapter)
    with torch.no_grad():
        for matrix in copied.projections:
            matrix.zero_()
    copied.begin()
    assert not student.table.weight.any()
    adapter.begin()
    assert student.table.weight.any()


def test_blocks_are_paired_evenly() -> None:
    student, teacher = mlp(4, 4), mlp(6, 6, 6, 6)
    paths = [
        paired_path(path, student, teacher)
        for path in ("blocks.0.0.weight", "blocks.1.0", "head.bias")
    ]
    assert paths == ["blocks.1.0.weight", "blocks.3.0", "head.bias"]


def test_every_matrix_of_a_recurrent_module_has_axes_of_its_own() -> None:
    with seeding.scoped(0, "cloned weights"):
        student, teacher = nn.LSTM(2, 3), nn.LSTM(5, 7)
    pairs = weight_pairs(curricle.tapped(student), curricle.tapped(teacher))
    sizes = {axis: size for pair in pairs for axis, size in pair.projections.items()}
    assert sizes["weight_ih_l0", 1] == (2, 5)
    assert sizes["weight_hh_l0", 1] == (3, 7)


def test_a_teacher_with_integers_as_weights_is_refused() -> None:
    student, teacher = models()
    teacher.head.weight = nn.Parameter(teacher.head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(BindError, match=r"'head\.weight' is quantized or offloaded"):
        weight_pairs(curricle.tapped(student), curricle.tapped(teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            network(3, 4, 2),
            mlp(4).module,
            "no parameter 'table.weight' with 2 axes for 'table.weight'",
        ),
        (
            network(3, 8, 2),
            network(*TEACHER_SIZES),
            r"no larger weights; got 'table.weight' with shape \(3, 8\) and the teacher's \(3, 7\)",
        ),
        (
            network(2, 4, 2),
            network(*TEACHER_SIZES),
            r"tables with as many rows as its teacher; got 'table.weight' with shape \(2, 4\)",
        ),
        (
            network(3, 4, 2).requires_grad_(requires_grad=False),
            network(*TEACHER_SIZES),
            "sets all weights of the student; got 'table.weight' frozen",
        ),
    ],
    ids=["architecture", "size", "rows", "frozen"],
)
def test_models_that_do_not_fit_are_refused(
    student: nn.Module, teacher: nn.Module, message: str
) -> None:
    with pytest.raises(BindError, match=message):
        weight_pairs(curricle.tapped(student), curricle.tapped(teacher))
