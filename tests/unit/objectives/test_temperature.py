"""A learned temperature: its range, its ramp, and gradient ascent on the student's loss.

Values and gradients are compared with formulas in float64, gradients by differences.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.tapped import Activations
from curricle.objectives.adapters import adapter_of
from curricle.objectives.base import BoundObjective, Reads, Sample
from curricle.objectives.temperature import FIRST_RAW, LearnedTemperature, Temperature
from tests.parts import drawn

ROWS, CLASSES = 4, 3
STUDENT, TEACHER = 2 * drawn(ROWS, CLASSES).double(), 2 * drawn(ROWS, CLASSES, seed=1).double()
LABELS = torch.tensor([0, 2, 1, 1])
BATCH = Batch(inputs=torch.zeros(ROWS, 2), labels=LABELS)
FIRST = 1 + 20 / (1 + math.exp(-FIRST_RAW))
VARIANTS = pytest.mark.parametrize("variant", ["global", "instance"])


def bind(batch: Batch = BATCH, *, num_steps: int = 100, **fields: Any) -> BoundObjective:
    sample = Sample(
        batch=batch,
        student=Activations({}, STUDENT),
        teacher=Activations({}, TEACHER),
        seed=3,
        num_steps=num_steps,
    )
    return LearnedTemperature(**fields).bind(Reads(), sample, is_residual=False)


def module(term: BoundObjective) -> Temperature:
    actual = adapter_of(term)
    assert isinstance(actual, Temperature)
    return actual


def exact(variant: Any, **fields: Any) -> BoundObjective:
    """Return a term in float64 after the end of its ramp."""
    term = bind(variant=variant, **fields)
    module(term).double().steps.fill_(1000)
    return term


def total(term: BoundObjective, student: Tensor = STUDENT, batch: Batch = BATCH) -> Tensor:
    target = term.target(Activations({}, TEACHER), batch)
    return term.total(Activations({}, student), target, batch)


def formula(temperature: Tensor, student: Tensor = STUDENT) -> Tensor:
    """Return the paper's loss with ratios of exponentials."""

    def softmax(logits: Tensor) -> Tensor:
        powers = logits.exp()
        return powers / powers.sum(-1, keepdim=True)

    expected, actual = softmax(TEACHER / temperature), softmax(student / temperature)
    divergence = (temperature**2 * expected * (expected / actual).log()).sum()
    right = softmax(student)[torch.arange(ROWS), LABELS]
    return 0.1 * -right.log().sum() + 0.9 * divergence


def differences(function: Callable[[], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Return the gradient at a tensor, modified and restored, by central differences."""
    actual, entries = torch.zeros_like(at), at.detach().view(-1)
    with torch.no_grad():
        for index in range(entries.numel()):
            before = entries[index].item()
            entries[index] = before + step
            above = function()
            entries[index] = before - step
            actual.view(-1)[index] = (above - function()) / (2 * step)
            entries[index] = before
    return actual


# --- the value ------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_paper() -> None:
    declared = LearnedTemperature()
    assert (declared.label_weight, declared.divergence_weight) == (0.1, 0.9)
    assert (declared.least_temperature, declared.temperature_span) == (1, 20)
    assert (declared.reversal_from, declared.reversal_to) == (0, 1)
    assert declared.ramp * 240 == pytest.approx(10)
    assert (declared.variant, declared.weight, declared.needs_teacher) == ("global", 1, True)


def test_the_global_variant_has_the_papers_loss_at_its_first_temperature() -> None:
    expected = formula(torch.tensor(FIRST, dtype=torch.float64))
    assert total(exact("global")).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_instance_variant_has_the_papers_loss_at_the_temperature_of_each_position() -> None:
    term = exact("instance", hidden=5)
    first, second = (
        one.detach() for name, one in module(term).named_parameters() if "weight" in name
    )
    assert (first.shape, second.shape) == ((5, 2 * CLASSES), (1, 5))
    inputs = torch.cat([STUDENT.softmax(-1), TEACHER.softmax(-1)], -1)
    raw = FIRST_RAW + (inputs @ first.mT).clamp_min(0) @ second.mT
    temperature = 1 + 20 / (1 + (-raw).exp())
    assert total(term).item() == pytest.approx(formula(temperature).item(), rel=1e-12)
    assert temperature.unique().numel() == ROWS


@given(
    st.floats(-30, 30),
    st.floats(0.1, 10),
    st.floats(0.1, 50),
    st.sampled_from(["global", "instance"]),
)
def test_the_temperature_stays_in_its_range(
    raw: float, least: float, span: float, variant: Any
) -> None:
    term = exact(variant, least_temperature=least, temperature_span=span)
    with torch.no_grad():
        module(term).raw.fill_(raw)
        actual = module(term)(STUDENT, TEACHER)
    assert ((actual >= least) & (actual <= least + span * (1 + 1e-12))).all()


def test_without_label_weight_labels_are_neither_needed_nor_read() -> None:
    batch = Batch(inputs=BATCH.inputs)
    actual = total(bind(batch, label_weight=0), batch=batch)
    assert actual.item() == pytest.approx(total(bind(label_weight=0)).item())
    assert bind(batch, label_weight=0).count(batch) == ROWS


def test_absent_classes_change_neither_the_value_nor_that_gradients_are_finite() -> None:
    absent = torch.full((ROWS, 1), -math.inf, dtype=torch.float64)
    term = exact("global", label_weight=0)
    wide = torch.cat([STUDENT, absent], -1).requires_grad_()
    target = torch.cat([TEACHER, absent], -1)
    actual = term.total(Activations({}, wide), target, BATCH)
    assert actual.item() == pytest.approx(total(term).item())
    for gradient in torch.autograd.grad(actual, [wide, module(term).raw]):
        assert gradient.isfinite().all()


# --- directions of the gradients ------------------------------------------------------------------


@VARIANTS
def test_the_student_gets_the_gradient_of_the_loss_at_its_temperatures(variant: str) -> None:
    term, student = exact(variant), STUDENT.clone().requires_grad_()
    (actual,) = torch.autograd.grad(total(term, student), student)
    given_now = module(term)(STUDENT, TEACHER).detach()
    expected = differences(lambda: formula(given_now, student), student)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@VARIANTS
@pytest.mark.parametrize("reversal", [0.0, 0.4, 1.0])
def test_the_temperature_gets_minus_lambda_times_the_gradient_of_the_loss(
    variant: str, reversal: float
) -> None:
    network = {"hidden": 8} if variant == "instance" else {}
    term = exact(variant, **network, reversal_to=reversal)
    parameters = list(module(term).parameters())
    actual = torch.autograd.grad(total(term), parameters)
    for gradient, parameter in zip(actual, parameters, strict=True):
        expected = -reversal * differences(lambda: total(term), parameter)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@VARIANTS
def test_a_small_step_of_the_temperature_raises_the_loss_and_one_of_the_student_lowers_it(
    variant: str,
) -> None:
    term, student = exact(variant), STUDENT.clone().requires_grad_()
    before = total(term, student)
    before.backward()
    assert student.grad is not None
    with torch.no_grad():
        lower = total(term, student - 1e-3 * student.grad)
        for parameter in module(term).parameters():
            assert parameter.grad is not None
            parameter.sub_(1e-3 * parameter.grad)
        higher = total(term, student)
    assert lower < before < higher


# --- the ramp -------------------------------------------------------------------------------------


def reversals(term: BoundObjective, steps: int) -> list[float]:
    actual = []
    for _ in range(steps):
        actual.append(module(term).reversal.item())
        module(term).advance()
    return actual


def test_lambda_is_that_of_the_papers_formula() -> None:
    term = bind(ramp=0.1, reversal_from=0.2, reversal_to=0.9)
    expected = [
        0.2 + (0.9 - 0.2) / 2 * (1 + math.cos((1 + min(n, 10) / 10) * math.pi)) for n in range(15)
    ]
    assert reversals(term, 15) == pytest.approx(expected, abs=1e-6)


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0.01, 1), st.integers(1, 40))
def test_lambda_rises_from_the_one_end_to_the_other(
    low: float, rise: float, ramp: float, num_steps: int
) -> None:
    term = bind(num_steps=num_steps, ramp=ramp, reversal_from=low, reversal_to=low + rise)
    actual = reversals(term, num_steps + 1)
    assert actual[0] == pytest.approx(low, abs=1e-6)
    assert actual[-1] == pytest.approx(low + rise, abs=1e-6)
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(actual))


def test_the_updates_are_counted_where_checkpoints_find_them() -> None:
    actual = module(bind())
    actual.advance()
    assert actual.state_dict()["steps"].item() == 1


def test_looking_at_the_temperature_counts_no_step() -> None:
    term = bind()
    total(term)
    assert module(term).steps.item() == 0


# --- descriptions and errors ----------------------------------------------------------------------


def test_it_is_said_with_range_and_weights() -> None:
    assert bind(weight=2.0).describe() == (
        "logits",
        "1.8 x tempered KL global T=1 to 21 + 0.2 x cross-entropy",
        "-",
        "-",
    )
    assert bind(label_weight=0).describe()[1] == "0.9 x tempered KL global T=1 to 21"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"reversal_from": 0.5, "reversal_to": 0.4},
            r"'reversal_to' must not be below 'reversal_from'; got 0\.4 and 0\.5$",
        ),
        (
            {"hidden": 8},
            r"'hidden' has no effect with variant 'global', .*\(got 8\)$",
        ),
        ({"ramp": 0.0}, r"'LearnedTemperature.ramp' must be greater than 0; got 0\.0$"),
        ({"least_temperature": 0}, r"'LearnedTemperature.least_temperature' must be"),
        ({"variant": "local"}, r"'LearnedTemperature.variant' must be 'global' or 'ins"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_wrong_fields_are_told(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        LearnedTemperature(**fields)


def test_missing_labels_are_told_with_what_does_without_them() -> None:
    batch = Batch(inputs=BATCH.inputs)
    with pytest.raises(
        BindError,
        match=r"^'labels' must be in the data for 'label_weight' 0\.1; got batches without labels; "
        r"set it to 0 to train without labels$",
    ):
        bind(batch).count(batch)


def test_labels_of_other_positions_than_the_logits_are_told() -> None:
    # A label per example, and logits at both of its positions.
    sample = Sample(
        batch=Batch(inputs=torch.zeros(2, 2, dtype=torch.long), labels=LABELS[:2]),
        student=Activations({}, STUDENT.unflatten(0, (2, 2))),
        teacher=Activations({}, TEACHER.unflatten(0, (2, 2))),
        seed=3,
        num_steps=100,
    )
    with pytest.raises(
        BindError,
        match=r"^'labels' must have one label for each of the 4 positions with logits; got 2; set "
        r"'label_weight' to 0 to train without labels$",
    ):
        LearnedTemperature().bind(Reads(), sample, is_residual=False)
