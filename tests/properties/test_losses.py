"""Invariants of losses on all inputs, against formulas in numpy's float64."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from curricle.objectives.losses import (
    cross_entropy,
    forward_kl,
    generalized_jsd,
    layer_normalize,
    reverse_kl,
    rms_normalize,
    squared_error,
    total_variation,
)

Compare = Callable[..., Tensor]
Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]
BETA = 0.3
NAMED: dict[str, Compare] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": partial(generalized_jsd, beta=BETA),
    "total_variation": total_variation,
}
# Of (teacher, student), one value for each row, written without logarithms of softmaxes.
FORMULAS: dict[str, Formula] = {
    "forward_kl": lambda t, s: (t * np.log(t / s)).sum(-1),
    "reverse_kl": lambda t, s: (s * np.log(s / t)).sum(-1),
    "jsd": lambda t, s: (
        (BETA * t * np.log(t / (BETA * t + (1 - BETA) * s))).sum(-1)
        + ((1 - BETA) * s * np.log(s / (BETA * t + (1 - BETA) * s))).sum(-1)
    ),
    # The largest probability that the two can differ by on any set of classes.
    "total_variation": lambda t, s: np.maximum(t - s, 0).sum(-1),
}
SMOOTH = ["forward_kl", "reverse_kl", "jsd"]
ONE = {"student_temperature": 1.0, "teacher_temperature": 1.0}

pairs = st.tuples(st.integers(1, 5), st.integers(2, 6)).flatmap(
    lambda shape: arrays(np.float64, (2, *shape), elements=st.floats(-12, 12, width=16))
)
temperatures = st.floats(0.5, 4.0)
names = pytest.mark.parametrize("name", list(NAMED))


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the softmax as a ratio of exponentials."""
    powers = np.exp(logits / temperature)
    ratio: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return ratio


@names
@given(pair=pairs, student_temperature=temperatures, teacher_temperature=temperatures)
def test_the_value_is_that_of_the_formula(
    name: str, pair: np.ndarray, student_temperature: float, teacher_temperature: float
) -> None:
    student, teacher = torch.from_numpy(pair)
    actual = NAMED[name](
        student,
        teacher,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    expected = FORMULAS[name](
        softmax(pair[1], teacher_temperature), softmax(pair[0], student_temperature)
    ).sum()
    assert actual.item() == pytest.approx(expected, rel=1e-8, abs=1e-10)


@names
@given(pair=pairs)
def test_float32_is_close_to_float64(name: str, pair: np.ndarray) -> None:
    student, teacher = torch.from_numpy(pair)
    exact = NAMED[name](student, teacher, **ONE).item()
    assert NAMED[name](student.float(), teacher.float(), **ONE).item() == pytest.approx(
        exact, rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("name", SMOOTH)
@given(pair=pairs, student_temperature=temperatures, teacher_temperature=temperatures)
def test_the_gradient_is_that_of_finite_differences(
    name: str, pair: np.ndarray, student_temperature: float, teacher_temperature: float
) -> None:
    student, teacher = torch.from_numpy(pair)
    compare = partial(
        NAMED[name],
        teacher_logits=teacher,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    assert torch.autograd.gradcheck(compare, student.clone().requires_grad_(), atol=1e-5)


@given(pair=pairs, temperature=temperatures)
def test_the_gradient_of_forward_kl_is_the_gap_of_the_probabilities(
    pair: np.ndarray, temperature: float
) -> None:
    student, teacher = torch.from_numpy(pair)
    student.requires_grad_()
    value = forward_kl(student, teacher, student_temperature=temperature, teacher_temperature=1.0)
    (actual,) = torch.autograd.grad(value, student)
    expected = (softmax(pair[0], temperature) - softmax(pair[1], 1.0)) / temperature
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_total_variation_is_that_of_finite_differences() -> None:
    # Away from ties of the two probabilities, where it has none.
    student = torch.tensor([[0.3, -1.2, 0.8]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.1, -0.4]], dtype=torch.float64)

    def distance(logits: Tensor) -> Tensor:
        return total_variation(logits, teacher, **ONE)

    assert torch.autograd.gradcheck(distance, student)


@names
@given(pair=pairs, temperature=temperatures)
def test_the_value_is_zero_at_a_match(name: str, pair: np.ndarray, temperature: float) -> None:
    logits = torch.from_numpy(pair[0])
    actual = NAMED[name](
        logits, logits, student_temperature=temperature, teacher_temperature=temperature
    )
    assert actual.item() == pytest.approx(0, abs=1e-12)


@names
@given(pair=pairs)
def test_the_value_is_not_negative(name: str, pair: np.ndarray) -> None:
    student, teacher = torch.from_numpy(pair)
    assert NAMED[name](student, teacher, **ONE).item() >= -1e-12


@names
@given(pair=pairs, shift=st.floats(-100, 100), temperature=temperatures)
def test_adding_a_constant_to_the_logits_changes_nothing(
    name: str, pair: np.ndarray, shift: float, temperature: float
) -> None:
    student, teacher = torch.from_numpy(pair)
    both = {"student_temperature": temperature, "teacher_temperature": 1.0}
    expected = NAMED[name](student, teacher, **both)
    torch.testing.assert_close(
        NAMED[name](student + shift, teacher - shift, **both), expected, rtol=1e-9, atol=1e-10
    )


@names
@given(pair=pairs, cut=st.integers(0, 5), teacher_temperature=st.sampled_from([0.0, 1.0, 2.0]))
def test_the_parts_of_a_batch_add_up(
    name: str, pair: np.ndarray, cut: int, teacher_temperature: float
) -> None:
    student, teacher = torch.from_numpy(pair)
    at = {"student_temperature": 1.0, "teacher_temperature": teacher_temperature}
    if name == "reverse_kl":
        at = ONE
    parts = NAMED[name](student[:cut], teacher[:cut], **at) + NAMED[name](
        student[cut:], teacher[cut:], **at
    )
    torch.testing.assert_close(parts, NAMED[name](student, teacher, **at))


@given(pair=pairs, cut=st.integers(0, 5))
def test_the_parts_of_a_squared_error_add_up(pair: np.ndarray, cut: int) -> None:
    student, target = torch.from_numpy(pair)
    parts = squared_error(student[:cut], target[:cut]) + squared_error(student[cut:], target[cut:])
    torch.testing.assert_close(parts, squared_error(student, target))


@given(pair=pairs)
def test_squared_error_is_that_of_the_formula(pair: np.ndarray) -> None:
    student, target = torch.from_numpy(pair)
    expected = ((pair[0] - pair[1]) ** 2).sum() / pair.shape[-1]
    assert squared_error(student, target).item() == pytest.approx(expected)


@given(pair=pairs)
def test_the_gradient_of_squared_error_is_that_of_finite_differences(pair: np.ndarray) -> None:
    student, target = torch.from_numpy(pair)
    compare = partial(squared_error, target=target)
    assert torch.autograd.gradcheck(compare, student.clone().requires_grad_())


@given(pair=pairs)
def test_cross_entropy_is_that_of_the_formula(pair: np.ndarray) -> None:
    labels = pair[1].argmax(-1)
    chosen = softmax(pair[0], 1.0)[np.arange(len(labels)), labels]
    actual = cross_entropy(torch.from_numpy(pair[0]), torch.from_numpy(labels))
    assert actual.item() == pytest.approx(-np.log(chosen).sum(), rel=1e-8, abs=1e-10)


@given(pair=pairs, temperature=temperatures)
def test_a_hard_teacher_is_the_cross_entropy_at_its_arg_max(
    pair: np.ndarray, temperature: float
) -> None:
    student, teacher = torch.from_numpy(pair)
    actual = forward_kl(student, teacher, student_temperature=temperature, teacher_temperature=0.0)
    # numpy's arg-max takes the first of several.
    labels = torch.from_numpy(pair[1].argmax(-1))
    torch.testing.assert_close(actual, cross_entropy(student / temperature, labels))


@given(pair=pairs)
def test_jsd_over_beta_approaches_forward_kl(pair: np.ndarray) -> None:
    student, teacher = torch.from_numpy(pair / 4)
    actual = generalized_jsd(student, teacher, **ONE, beta=1e-6) / 1e-6
    torch.testing.assert_close(actual, forward_kl(student, teacher, **ONE), rtol=2e-3, atol=1e-6)


@given(pair=pairs)
def test_jsd_over_one_minus_beta_approaches_reverse_kl(pair: np.ndarray) -> None:
    student, teacher = torch.from_numpy(pair / 4)
    actual = generalized_jsd(student, teacher, **ONE, beta=1 - 1e-6) / 1e-6
    torch.testing.assert_close(actual, reverse_kl(student, teacher, **ONE), rtol=2e-3, atol=1e-6)


@given(pair=pairs, beta=st.floats(0.01, 0.99))
def test_jsd_is_symmetric_when_beta_is_mirrored(pair: np.ndarray, beta: float) -> None:
    student, teacher = torch.from_numpy(pair)
    torch.testing.assert_close(
        generalized_jsd(student, teacher, **ONE, beta=beta),
        generalized_jsd(teacher, student, **ONE, beta=1 - beta),
    )


@given(pair=pairs, beta=st.floats(0.01, 0.99))
def test_jsd_of_a_row_is_at_most_the_entropy_of_beta(pair: np.ndarray, beta: float) -> None:
    student, teacher = torch.from_numpy(pair)
    most = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
    assert generalized_jsd(student, teacher, **ONE, beta=beta).item() <= len(student) * most + 1e-9


@given(pair=pairs)
def test_total_variation_is_bounded_by_pinsker(pair: np.ndarray) -> None:
    student, teacher = torch.from_numpy(pair[:, :1])
    distance = total_variation(student, teacher, **ONE).item()
    assert distance <= 1 + 1e-12
    assert distance**2 <= forward_kl(student, teacher, **ONE).item() / 2 + 1e-12


@given(pair=pairs)
def test_normalized_rows_are_those_of_the_formula(pair: np.ndarray) -> None:
    states, centered = pair[0], pair[0] - pair[0].mean(-1, keepdims=True)
    layer = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    rms = states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-5)
    tensor = torch.from_numpy(states)
    np.testing.assert_allclose(layer_normalize(tensor).numpy(), layer, atol=1e-10)
    np.testing.assert_allclose(rms_normalize(tensor).numpy(), rms, atol=1e-10)
