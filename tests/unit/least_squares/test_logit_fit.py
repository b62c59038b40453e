"""A map to logits gets nearer to the teacher's probabilities, and stays where it has them."""

import pytest
import torch
from torch import Tensor

from curricle.least_squares.logit_fit import logit_map
from curricle.least_squares.solving import Affine
from tests.parts import drawn

ROWS, WIDTH, CLASSES = 60, 4, 7


def divergence(affine: Affine, inputs: Tensor, logits: Tensor) -> float:
    """Return the mean divergence of the map's probabilities from the teacher's, in nats."""
    teacher = logits.double().log_softmax(-1)
    student = (inputs.double() @ affine.weight.mT + affine.bias).log_softmax(-1)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def least_squares(inputs: Tensor, logits: Tensor, *, has_bias: bool) -> Affine:
    ones = torch.ones_like(inputs[:, :1]) if has_bias else inputs[:, :0]
    rows = torch.cat([inputs, ones], dim=1).double()
    weight = torch.linalg.lstsq(rows, logits.double()).solution.mT
    if has_bias:
        return Affine(weight[:, :-1], weight[:, -1])
    return Affine(weight, weight.new_zeros(CLASSES))


@pytest.mark.parametrize("has_bias", [True, False])
def test_most_of_what_the_best_map_gains_is_found(has_bias: bool) -> None:
    # Inputs of unequal sizes, far from zero; logits that are not linear in them.
    inputs = drawn(ROWS, WIDTH, seed=0) * torch.tensor([1.0, 5.0, 0.1, 1.0]) + 0.5
    logits = 3 * (inputs @ drawn(WIDTH, CLASSES, seed=1)).sin()
    start = least_squares(inputs, logits, has_bias=has_bias)
    rows = list(zip(inputs.split(25), logits.split(25), strict=True))
    fitted = logit_map(start, rows, has_bias=has_bias)
    assert has_bias or not fitted.bias.any()
    # The best map, by gradient descent of many steps in double precision.
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias] if has_bias else [weight], max_iter=500, line_search_fn="strong_wolfe"
    )
    probabilities = logits.double().softmax(-1)

    def evaluate() -> Tensor:
        solver.zero_grad()
        scores = inputs.double() @ weight.mT + bias
        loss = -(probabilities * scores.log_softmax(-1)).sum(-1).mean()
        loss.backward()
        return loss

    solver.step(evaluate)
    best = divergence(Affine(weight.detach(), bias.detach()), inputs, logits)
    before, after = (divergence(affine, inputs, logits) for affine in (start, fitted))
    assert best < before
    assert before - after > 0.6 * (before - best)


def test_a_map_with_the_teachers_probabilities_is_not_changed() -> None:
    inputs, weight = drawn(ROWS, WIDTH, seed=0), drawn(CLASSES, WIDTH, seed=1)
    # A constant in all logits of a row changes no probability.
    logits = inputs @ weight.mT + drawn(ROWS, 1, seed=2)
    start = Affine(weight.double(), torch.zeros(CLASSES).double())
    fitted = logit_map(start, [(inputs, logits)], has_bias=False)
    assert torch.equal(fitted.weight, start.weight)


def test_classes_and_inputs_that_never_occur_are_no_obstacle() -> None:
    inputs = drawn(ROWS, WIDTH, seed=0)
    inputs[:, 1], inputs[:, 2] = 0, inputs[:, 3]
    logits = 2 * drawn(ROWS, CLASSES, seed=1)
    logits[:, 0] = -torch.inf
    start = Affine(torch.zeros(CLASSES, WIDTH).double(), torch.zeros(CLASSES).double())
    fitted = logit_map(start, [(inputs, logits)], has_bias=True)
    assert bool(fitted.weight.isfinite().all())
    scores = inputs.double() @ fitted.weight.mT + fitted.bias
    teacher = logits.double().softmax(-1)
    uniform = -(teacher * torch.full_like(scores, CLASSES**-1).log()).sum(-1).mean()
    assert -(teacher * scores.log_softmax(-1)).sum(-1).mean() < uniform - 0.1


def test_logits_in_bfloat16_are_read() -> None:
    inputs, logits = drawn(ROWS, WIDTH, seed=0), 3 * drawn(ROWS, CLASSES, seed=1)
    start = least_squares(inputs, logits, has_bias=True)
    fitted = logit_map(start, [(inputs.bfloat16(), logits.bfloat16())], has_bias=True)
    assert divergence(fitted, inputs, logits) < divergence(start, inputs, logits)
