"""Fit of a map to logits by the cross-entropy to the teacher's probabilities.

Least squares weighs all classes alike, at every row; the cross-entropy weighs them by the Fisher
matrix of the softmax. It is convex in the map, and a few steps of L-BFGS from the least-squares map
find most of the gain: in coordinates in which the inputs have unit second moments and
each class counts by its mean probability, its curvature is about 1. The teacher enters only through
the products of its probabilities with the inputs, so that its head runs once.

Axes: row, input, class.

Source:
    None; ours.
"""

from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.least_squares.solving import Affine

ITERATIONS = 5
"""Steps of L-BFGS; each costs two products of rows and weights or, tried again, four."""
SMALLEST_GRADIENT = 1e-4
"""Largest entry of the gradient, in the coordinates above, at which nothing is changed."""


def logit_map(
    affine: Affine,
    rows: Iterable[tuple[Float[Tensor, "row input"], Float[Tensor, "row class"]]],
    *,
    has_bias: bool,
) -> Affine:
    """Return a map to logits whose softmax is nearer to the teacher's.

    Args:
        affine: The map to start from.
        rows: Inputs of the map and the teacher's logits, in batches.
        has_bias: Whether the map has a bias.
    """
    objective = _CrossEntropy(rows, has_bias=has_bias)
    start = objective.coordinates(affine)
    change = torch.zeros_like(start).requires_grad_()
    solver = torch.optim.LBFGS(
        [change],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=SMALLEST_GRADIENT,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        value, change.grad = objective(start + change.detach())
        return value

    solver.step(evaluate)
    # Where nothing is to gain, the map stays as it is to the last bit.
    return objective.affine(start + change.detach()) if bool(change.any()) else affine


@final
class _CrossEntropy:
    """Mean cross-entropy to a teacher as a function of a map in scaled coordinates."""

    def __init__(self, rows: Iterable[tuple[Tensor, Tensor]], *, has_bias: bool) -> None:
        self._has_bias = has_bias
        inputs, products, mean = list[Tensor](), list[Tensor](), list[Tensor]()
        for batch, logits in rows:
            ones = torch.ones_like(batch[:, :1]) if has_bias else batch[:, :0]
            inputs.append(torch.cat([batch, ones], dim=1).float())
            probabilities = logits.float().softmax(-1)
            products.append(probabilities.mT @ inputs[-1])
            mean.append(probabilities.sum(0))
        self._count = sum(len(batch) for batch in inputs)
        moment = torch.stack([batch.double().mT @ batch.double() for batch in inputs]).sum(0)
        moment = moment.cpu() / self._count
        size = moment.diagonal().mean()
        floor = 1e-6 * size * torch.eye(len(moment), dtype=moment.dtype)
        self._root = torch.linalg.cholesky(moment + floor)
        inverse = torch.linalg.inv(self._root).mT.to(inputs[0])
        self._inputs = [batch @ inverse for batch in inputs]
        self._products = torch.stack(products).sum(0) @ inverse / self._count
        mean_probability = (torch.stack(mean).sum(0)[:, None] + 1) / self._count
        self._scale = mean_probability.rsqrt()
        """Weight of a class in these coordinates; of one row more, for classes that never occur."""

    def coordinates(self, affine: Affine) -> Tensor:
        """Return a map in the coordinates of the solver."""
        weight = affine.weight
        if self._has_bias:
            weight = torch.cat([weight, affine.bias[:, None]], dim=1)
        coordinates: Tensor = (weight @ self._root).to(self._scale) / self._scale
        return coordinates

    def affine(self, coordinates: Tensor) -> Affine:
        """Return the map with some coordinates."""
        weight = (self._scale * coordinates).to(self._root)
        solution = torch.linalg.solve_triangular(self._root, weight, upper=False, left=False)
        if self._has_bias:
            return Affine(solution[:, :-1], solution[:, -1])
        return Affine(solution, solution.new_zeros(len(solution)))

    def __call__(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy, up to a constant, and its gradient."""
        weight = self._scale * coordinates
        value, gradient = -(weight * self._products).sum(), -self._products
        for batch in self._inputs:
            logits = batch @ weight.mT
            value = value + logits.logsumexp(-1).sum() / self._count
            gradient = gradient + logits.softmax(-1).mT @ batch / self._count
        return value, self._scale * gradient
