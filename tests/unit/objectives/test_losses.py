"""Losses: hand-computed values, sums over rows, hard teachers, precision and error messages."""

import math
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from curricle.errors import SpecError
from curricle.objectives.losses import (
    MANY_LOGITS,
    cross_entropy,
    forward_kl,
    forward_kl_in_place,
    generalized_jsd,
    layer_normalize,
    reverse_kl,
    rms_normalize,
    squared_error,
    tempered_kl,
    total_variation,
)

Compare = Callable[..., Tensor]
DIVERGENCES: list[Compare] = [
    forward_kl,
    reverse_kl,
    partial(generalized_jsd, beta=0.3),
    total_variation,
]
HARD: list[Compare] = [forward_kl, partial(generalized_jsd, beta=0.3), total_variation]
ONE = {"student_temperature": 1.0, "teacher_temperature": 1.0}
ARG_MAX = {"student_temperature": 1.0, "teacher_temperature": 0.0}

# Two classes: teacher (3/4, 1/4) and student (1/2, 1/2), so every value has a closed form.
TEACHER = torch.tensor([[math.log(3.0), 0.0]])
STUDENT = torch.zeros(1, 2)


def logits(rows: int, classes: int, seed: int) -> Tensor:
    """Return random logits with a spread of about 2."""
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_squared_error_is_a_mean_over_the_width_and_a_sum_over_rows() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    # Means 5 / 2 and 10 / 2.
    assert squared_error(student, target).item() == 7.5


def test_squared_error_sums_over_all_axes_before_the_last() -> None:
    assert squared_error(torch.ones(3, 4, 5), torch.zeros(3, 4, 5)).item() == 12.0


def test_cross_entropy_is_a_sum_of_nats() -> None:
    actual = cross_entropy(TEACHER.repeat(2, 1), torch.tensor([0, 1]))
    assert actual.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))


def test_cross_entropy_skips_no_label() -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, -100]))


def test_forward_kl_weighs_by_the_teacher() -> None:
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert forward_kl(STUDENT, TEACHER, **ONE).item() == pytest.approx(expected)


@pytest.mark.parametrize("rows", [5, MANY_LOGITS // 7 + 1], ids=["few", "many"])
@pytest.mark.parametrize("teacher_temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("student_temperature", [1.0, 2.0])
def test_the_gradient_of_forward_kl_is_that_of_its_formula(
    student_temperature: float, teacher_temperature: float, rows: int
) -> None:
    student, teacher = logits(rows, 7, 0).double(), logits(rows, 7, 1).double()
    student[:, 6] = teacher[:, 6] = float("-inf")
    student.requires_grad_()
    total = forward_kl(
        student,
        teacher,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    (actual,) = torch.autograd.grad(3 * total, student)
    known = teacher[:, :6]
    hard = torch.nn.functional.one_hot(known.argmax(-1), 6).double()
    target = (known / teacher_temperature).softmax(-1) if teacher_temperature else hard
    log_student = (student[:, :6] / student_temperature).log_softmax(-1)
    gap = torch.special.xlogy(target, target) - target * log_student
    (expected,) = torch.autograd.grad(3 * gap.sum(), student)
    torch.testing.assert_close(total, gap.sum())
    torch.testing.assert_close(actual, expected)


def test_forward_kl_keeps_one_number_a_logit_for_its_gradient() -> None:
    remaining: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        remaining[saved.data_ptr()] = saved.numel()
        return saved

    student, teacher = logits(2, MANY_LOGITS, 0).requires_grad_(), logits(2, MANY_LOGITS, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        forward_kl(student, teacher, **ONE)
    assert sum(remaining.values()) == 2 * MANY_LOGITS


@pytest.mark.parametrize("rows", [5, MANY_LOGITS // 7 + 1], ids=["few", "many"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_in_place_is_forward_kl(temperature: float, rows: int) -> None:
    actual = []
    for divergence in (forward_kl, forward_kl_in_place):
        student, teacher = logits(rows, 7, 0).requires_grad_(), logits(rows, 7, 1)
        # Overwritten logits are not leaves, as the output of a head is not.
        total = divergence(
            student * 1, teacher, student_temperature=temperature, teacher_temperature=temperature
        )
        actual.append((total.detach(), *torch.autograd.grad(3 * total, student)))
    assert all(map(torch.equal, *actual))


def test_forward_kl_in_place_needs_no_logits_of_its_own() -> None:
    student, teacher = logits(2, MANY_LOGITS, 0).requires_grad_(), logits(2, MANY_LOGITS, 1)
    inputs = student * 1
    remaining: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: remaining.append(saved.data_ptr()), lambda _: student
    ):
        forward_kl_in_place(inputs, teacher, **ONE)
    assert remaining == [inputs.data_ptr()]
    assert not torch.equal(teacher, logits(2, MANY_LOGITS, 1))


def test_forward_kl_of_many_logits_can_be_stacked() -> None:
    students = torch.stack([logits(2, MANY_LOGITS, seed) for seed in (0, 1)]).requires_grad_()
    teacher = logits(2, MANY_LOGITS, 2)
    each = torch.func.vmap(lambda one: forward_kl(one, teacher, **ONE))(students)
    alone = torch.stack([forward_kl(one, teacher, **ONE) for one in students])
    torch.testing.assert_close(each, alone)
    (actual,) = torch.autograd.grad(each.sum(), students)
    (expected,) = torch.autograd.grad(alone.sum(), students)
    torch.testing.assert_close(actual, expected)


def test_reverse_kl_weighs_by_the_student() -> None:
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert reverse_kl(STUDENT, TEACHER, **ONE).item() == pytest.approx(expected)


def test_jsd_mixes_beta_parts_of_the_teacher() -> None:
    # M = 0.2 * (3/4, 1/4) + 0.8 * (1/2, 1/2) = (0.55, 0.45)
    left = 0.75 * math.log(0.75 / 0.55) + 0.25 * math.log(0.25 / 0.45)
    right = 0.5 * math.log(0.5 / 0.55) + 0.5 * math.log(0.5 / 0.45)
    actual = generalized_jsd(STUDENT, TEACHER, **ONE, beta=0.2)
    assert actual.item() == pytest.approx(0.2 * left + 0.8 * right, rel=1e-5)


def test_jsd_of_disjoint_certain_distributions_is_log_two() -> None:
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    actual = generalized_jsd(student, teacher, **ONE, beta=0.5)
    assert actual.item() == pytest.approx(math.log(2))


def test_total_variation_is_half_the_l1_distance() -> None:
    assert total_variation(STUDENT, TEACHER, **ONE).item() == pytest.approx(0.25)


def test_the_teacher_temperature_softens_the_teacher_only() -> None:
    # log 9 / 2 = log 3 restores the teacher of the closed forms.
    sharp = torch.tensor([[math.log(9.0), 0.0]])
    student = torch.tensor([[0.4, 0.0]])
    actual = forward_kl(student, sharp, student_temperature=1.0, teacher_temperature=2.0)
    assert actual.item() == pytest.approx(forward_kl(student, TEACHER, **ONE).item())


def test_the_student_temperature_softens_the_student_only() -> None:
    student = torch.tensor([[0.4, 0.0]])
    actual = forward_kl(2 * student, TEACHER, student_temperature=2.0, teacher_temperature=1.0)
    assert actual.item() == pytest.approx(forward_kl(student, TEACHER, **ONE).item())


def test_no_result_is_multiplied_by_a_temperature() -> None:
    # Both uniform but for 1/T: the KL falls as 1/T^2, which a factor T^2 would undo.
    student, teacher = logits(4, 5, 0), logits(4, 5, 1)
    at_10, at_20 = (
        forward_kl(student, teacher, student_temperature=t, teacher_temperature=t).item()
        for t in (10.0, 20.0)
    )
    assert at_10 / at_20 == pytest.approx(4, rel=0.1)


def test_forward_kl_of_a_hard_teacher_is_the_cross_entropy_at_its_arg_max() -> None:
    student, teacher = logits(6, 5, 0), logits(6, 5, 1)
    expected = cross_entropy(student, teacher.argmax(-1))
    assert torch.equal(forward_kl(student, teacher, **ARG_MAX), expected)


def test_a_tie_of_a_hard_teacher_goes_to_the_first_class() -> None:
    teacher = torch.tensor([[0.0, 2.0, 2.0, 2.0]])
    student = logits(1, 4, 0)
    expected = cross_entropy(student, torch.tensor([1]))
    assert torch.equal(forward_kl(student, teacher, **ARG_MAX), expected)


@pytest.mark.parametrize("divergence", HARD)
def test_a_tiny_teacher_temperature_is_the_hard_teacher(divergence: Compare) -> None:
    student, teacher = logits(6, 5, 0), logits(6, 5, 1)
    tiny = divergence(student, teacher, student_temperature=1.0, teacher_temperature=1e-20)
    torch.testing.assert_close(tiny, divergence(student, teacher, **ARG_MAX))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("level", [0.0, 1e4])
def test_temperature_one_is_no_jump(divergence: Compare, level: float) -> None:
    teacher = logits(6, 5, 1).double() + level
    actual = []
    for temperature in (1.0, 1.0 + 1e-9):
        student = (logits(6, 5, 0).double() - level).requires_grad_()
        total = divergence(
            student, teacher, student_temperature=temperature, teacher_temperature=temperature
        )
        total.backward()
        assert student.grad is not None
        actual.append((total.detach(), student.grad))
    torch.testing.assert_close(*actual, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_largest_logits_do_not_overflow_at_temperature_one(divergence: Compare) -> None:
    student = torch.tensor([[0.0, 3e38, 3e38]]).requires_grad_()
    total = divergence(student, torch.tensor([[0.0, 3e38, 3e38]]), **ONE)
    total.backward()
    assert total.item() == 0.0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_total_variation_to_a_hard_teacher_is_the_missing_probability() -> None:
    actual = total_variation(TEACHER, torch.tensor([[0.0, 1.0]]), **ARG_MAX)
    assert actual.item() == pytest.approx(0.75)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_only_the_student_gets_a_gradient(divergence: Compare) -> None:
    student = logits(3, 4, 0).requires_grad_()
    teacher = logits(3, 4, 1).requires_grad_()
    divergence(student, teacher, **ONE).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_the_target_of_a_squared_error_gets_no_gradient() -> None:
    student, target = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    squared_error(student, target).backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[1.0, 1.0]]
    assert target.grad is None


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_compared_in_float32(
    divergence: Compare, dtype: torch.dtype
) -> None:
    student, teacher = logits(3, 4, 0).to(dtype), logits(3, 4, 1).to(dtype)
    actual = divergence(student, teacher, **ONE)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, divergence(student.float(), teacher.float(), **ONE))


def test_low_precision_states_are_compared_in_float32() -> None:
    student = torch.full((1, 3), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 3), 1.0 + 2**-10)
    # In bfloat16 the two would be equal.
    assert squared_error(student, target).item() == 2.0**-20


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_float64_comparison_stays_in_float64(divergence: Compare) -> None:
    assert divergence(STUDENT.double(), TEACHER.double(), **ONE).dtype == torch.float64


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_give_a_finite_value_and_gradient(divergence: Compare, size: float) -> None:
    student = (size * logits(4, 6, 0)).requires_grad_()
    actual = divergence(student, size * logits(4, 6, 1), **ONE)
    actual.backward()
    assert student.grad is not None
    assert actual.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperatures", [ONE, ARG_MAX])
def test_classes_that_are_absent_on_both_sides_add_nothing(
    divergence: Compare, temperatures: dict[str, float]
) -> None:
    if divergence is reverse_kl:
        temperatures = ONE
    student, teacher = logits(3, 4, 0).requires_grad_(), logits(3, 4, 1)
    padding = torch.full((3, 2), float("-inf"))
    padded = torch.cat([student, padding], dim=-1).detach().requires_grad_()
    expected = divergence(student, teacher, **temperatures)
    actual = divergence(padded, torch.cat([teacher, padding], dim=-1), **temperatures)
    (reference,) = torch.autograd.grad(expected, student)
    (gradient,) = torch.autograd.grad(actual, padded)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, torch.cat([reference, torch.zeros(3, 2)], dim=-1))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_argument_is_changed(divergence: Compare) -> None:
    student, teacher = logits(3, 4, 0), logits(3, 4, 1)
    before = student.clone(), teacher.clone()
    divergence(student, teacher, student_temperature=2.0, teacher_temperature=3.0)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_rows_give_a_zero_that_can_be_differentiated(divergence: Compare) -> None:
    student = torch.zeros(0, 4, requires_grad=True)
    actual = divergence(student, torch.zeros(0, 4), **ONE)
    actual.backward()
    assert actual.item() == 0.0


def test_no_rows_have_no_squared_error() -> None:
    assert squared_error(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0.0


def test_no_rows_have_no_cross_entropy() -> None:
    assert cross_entropy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).item() == 0.0


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5])
def test_the_ends_of_beta_are_refused(beta: float) -> None:
    sentence = (
        f"'beta' must lie strictly between 0 and 1; got {beta}; use forward_kl or reverse_kl for "
        f"the ends"
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        generalized_jsd(STUDENT, TEACHER, **ONE, beta=beta)


def test_reverse_kl_to_a_hard_teacher_is_refused() -> None:
    sentence = (
        "'teacher_temperature' must be positive for 'reverse_kl', which is infinite for a one-hot "
        "teacher; got 0.0"
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        reverse_kl(STUDENT, TEACHER, **ARG_MAX)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40, float("inf"), float("nan")])
def test_a_student_temperature_out_of_range_is_refused(
    divergence: Compare, temperature: float
) -> None:
    sentence = f"'student_temperature' must be finite and at least 1e-30; got {temperature}"
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        divergence(STUDENT, TEACHER, student_temperature=temperature, teacher_temperature=1.0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [-1.0, 1e-40, float("inf"), float("nan")])
def test_a_teacher_temperature_out_of_range_is_refused(
    divergence: Compare, temperature: float
) -> None:
    sentence = (
        f"'teacher_temperature' must be 0 (arg-max) or finite and at least 1e-30; got {temperature}"
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        divergence(STUDENT, TEACHER, student_temperature=1.0, teacher_temperature=temperature)


def test_tempered_kl_is_forward_kl_of_both_softened_times_the_square() -> None:
    student, teacher = logits(3, 4, 0).double(), logits(3, 4, 1).double()
    actual = tempered_kl(student, teacher, torch.tensor([[2.5]]).double())
    both = {"student_temperature": 2.5, "teacher_temperature": 2.5}
    assert actual.item() == pytest.approx(2.5**2 * forward_kl(student, teacher, **both).item())


def test_tempered_kl_takes_a_temperature_for_each_row() -> None:
    student, teacher = logits(2, 4, 0), logits(2, 4, 1)
    each = [
        tempered_kl(student[row : row + 1], teacher[row : row + 1], torch.tensor([[size]])).item()
        for row, size in enumerate((1.0, 3.0))
    ]
    actual = tempered_kl(student, teacher, torch.tensor([[1.0], [3.0]]))
    assert actual.item() == pytest.approx(sum(each))


def test_tempered_kl_has_a_gradient_to_student_and_temperature_only() -> None:
    student, teacher = (logits(2, 4, seed).double().requires_grad_() for seed in (0, 1))
    temperature = torch.full((2, 1), 2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, tau: tempered_kl(s, teacher.detach(), tau), (student, temperature)
    )
    tempered_kl(student, teacher, temperature).backward()
    assert teacher.grad is None


def test_tempered_kl_of_absent_classes_is_finite_with_its_gradients() -> None:
    absent = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    temperature = torch.tensor([[2.0]], requires_grad=True)
    actual = tempered_kl(absent, torch.tensor([[1.0, 0.0, -math.inf]]), temperature)
    actual.backward()
    assert actual.isfinite()
    assert absent.grad is not None
    assert absent.grad.isfinite().all()
    assert temperature.grad is not None
    assert temperature.grad.isfinite().all()


def test_layer_normalize_centers_and_scales_each_row() -> None:
    # Mean 3 and variance 4.
    actual = layer_normalize(torch.tensor([[1.0, 5.0]]), eps=0.0)
    torch.testing.assert_close(actual, torch.tensor([[-1.0, 1.0]]))


def test_layer_normalize_adds_eps_to_the_variance() -> None:
    actual = layer_normalize(torch.tensor([[1.0, 5.0]]), eps=12.0)
    torch.testing.assert_close(actual, torch.tensor([[-0.5, 0.5]]))


def test_rms_normalize_scales_each_row_without_centering() -> None:
    # Mean square 25.
    actual = rms_normalize(torch.tensor([[1.0, 7.0]]), eps=0.0)
    torch.testing.assert_close(actual, torch.tensor([[0.2, 1.4]]))


def test_rms_normalize_adds_eps_to_the_mean_square() -> None:
    actual = rms_normalize(torch.tensor([[1.0, 7.0]]), eps=75.0)
    torch.testing.assert_close(actual, torch.tensor([[0.1, 0.7]]))


@pytest.mark.parametrize("normalize", [layer_normalize, rms_normalize])
def test_a_row_of_zeros_stays_zero(normalize: Compare) -> None:
    assert torch.equal(normalize(torch.zeros(1, 3)), torch.zeros(1, 3))


@pytest.mark.parametrize("normalize", [layer_normalize, rms_normalize])
def test_low_precision_states_are_normalized_in_float32(normalize: Compare) -> None:
    states = logits(3, 4, 0).bfloat16()
    assert torch.equal(normalize(states), normalize(states.float()))
