"""Loss functions between student and teacher outputs, as sums over rows.

Each loss is a pure function of tensors. The last axis is compared, the axes before it are rows
(positions or examples), and the result is the *sum* over the rows. The caller divides by the number
of rows of the full batch, so that micro-batches and ranks of different size add up to exactly the
loss of one large batch.

Axes: row (any number of axes), width (of a hidden state), class (of logits).

Design: low-precision inputs are computed in float32, float64 inputs in float64. Arguments are not
modified, except by functions with `in_place` in their name. Only the student's side gets a
gradient, even if the caller has not detached the teacher's; the only exception is the temperature
of `tempered_kl`, which may be learned.
Temperatures divide the logits of one side. Except in `tempered_kl`, no result is multiplied by a
squared temperature, so the gradient for large equal temperatures falls with their square.
Teacher temperature 0 means the teacher's arg-max as a one-hot distribution (ties: the first class).
A class is absent if its logit is minus infinity on both sides, as in a padded vocabulary; it
contributes neither to value nor to gradient.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Figure 1: mean squared error on projected
        hidden states, then KL divergence on logits.
    [P24] Panigrahi et al. 2024, arXiv 2410.05464: the temperature softens the teacher only; their
        cross-entropy form has the gradient of `forward_kl`, and a tiny temperature stands for 0.
    [A23] Agarwal et al. 2023, arXiv 2306.13649: reverse KL and generalized JSD for distillation.
    [B24] Boizard et al. 2024, arXiv 2402.12030: sorted probabilities of two vocabularies.
    [L22] Li et al. 2022, arXiv 2211.16231: a temperature that is itself learned.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn import functional

from curricle.errors import DataError, SpecError

NO_LABEL = -(2**31)
"""Ignored label for torch that no data set uses, so that -100 raises an error as well."""
MANY_LOGITS = 2**14
"""Number of logits from which the custom autograd function is faster."""
LEAST_LOGIT = -1e30
"""Replacement of minus infinity for logits divided by a temperature that has a gradient."""
LEAST_TEMPERATURE = 1e-30
"""Least positive temperature; division in float32 remains accurate enough."""


def squared_error(
    student: Float[Tensor, "*row width"], target: Float[Tensor, "*row width"]
) -> Float[Tensor, ""]:
    """Return the squared error of hidden states: sum over rows of |s - t|^2 / width.

    Args:
        student: The student's states.
        target: The states to match, usually projected states of the teacher.

    Returns:
        Sum over rows of the mean over the width, in squared units of the states; no factor 1/2.

    Source:
        [GK25]. Deviation: mean instead of sum over the width, which keeps one learning rate useful
        at all widths.
    """
    total = functional.mse_loss(_widen(student), _widen(target.detach()), reduction="sum")
    return total / student.shape[-1]


def cross_entropy(
    student_logits: Float[Tensor, "*row class"], labels: Int[Tensor, "*row"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy of labels: sum over rows of -log softmax(s)[label].

    No label is ignored: a label outside the classes, such as -100, is an error, because the
    caller's count of rows would be wrong.

    Args:
        student_logits: The student's logits.
        labels: The correct class of each row.

    Returns:
        Sum over rows, in nats.
    """
    return functional.cross_entropy(
        _widen(student_logits).flatten(0, -2),
        labels.long().flatten(),
        reduction="sum",
        ignore_index=NO_LABEL,
    )


def binary_cross_entropy(
    student_logits: Float[Tensor, "*row label"], labels: Float[Tensor, "*row label"]
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of several independent labels.

    A label that is not a number is missing: it adds 0, and the mean still divides by all labels,
    so that the loss of a row does not depend on other rows.

    Args:
        student_logits: The student's logits, one per label.
        labels: Probability of each label, between 0 and 1; NaN if missing.

    Returns:
        Sum over rows of the mean over labels, in nats.
    """
    wide = _widen(student_logits)
    missing = labels.isnan()
    # The probability 0 in place of a missing label keeps NaN out of the gradient.
    targets = labels.to(wide.dtype).masked_fill(missing, 0.0)
    losses = functional.binary_cross_entropy_with_logits(wide, targets, reduction="none")
    return losses.masked_fill(missing, 0.0).sum() / student_logits.shape[-1]


def cosine_distance(
    student: Float[Tensor, "*row width"], target: Float[Tensor, "*row width"]
) -> Float[Tensor, ""]:
    """Return the cosine distance of embeddings: sum over rows of 1 - cos(s, t).

    Args:
        student: The student's embeddings.
        target: The embeddings to match; of any length, a zero vector has distance 1.

    Returns:
        Sum over rows, dimensionless, between 0 and 2 per row.
    """
    wide, other = _widen(student), _widen(target.detach())
    return (1.0 - functional.cosine_similarity(wide, other.to(wide.dtype), dim=-1)).sum()


def value_rows(
    student: Float[Tensor, "..."], labels: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "row width"], Float[Tensor, "row width"]]:
    """Return the values of a model and of the data with the same two axes.

    Args:
        student: Values of the model; a single value per row may have an axis of its own or none.
        labels: Values of the data, likewise.

    Raises:
        DataError: If their shapes differ by more than a last axis of size 1.
    """
    shapes = {tuple(values.shape) for values in (student, labels)}
    rows = {shape[:-1] if shape[-1:] == (1,) and len(shape) > 1 else shape for shape in shapes}
    if len(rows) > 1:
        raise DataError(
            f"'labels' must have one value for each value of the student, of shape "
            f"{tuple(student.shape)}; got shape {tuple(labels.shape)}"
        )
    width = labels.shape[-1] if labels.ndim > 1 and labels.shape == student.shape else 1
    return student.reshape(-1, width), labels.reshape(-1, width)


def forward_kl(
    student_logits: Float[Tensor, "*row class"],
    teacher_logits: Float[Tensor, "*row class"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Return KL(T || S): sum over rows and classes of T (log T - log S).

    T = softmax(t / teacher_temperature) and S = softmax(s / student_temperature). With teacher
    temperature 0 this is the cross-entropy at the teacher's arg-max.

    Args:
        student_logits: The student's logits s.
        teacher_logits: The teacher's logits t.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.

    Returns:
        Sum over rows, in nats, not multiplied by a temperature.

    Source:
        [GK25], [P24].
    """
    check_temperatures(student_temperature, teacher_temperature)
    temperatures = student_temperature, teacher_temperature
    return _forward_kl(student_logits, teacher_logits, temperatures, overwrites=False)


def forward_kl_in_place(
    student_logits: Float[Tensor, "*row class"],
    teacher_logits: Float[Tensor, "*row class"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Return `forward_kl`; the contents of both logits are undefined afterwards."""
    check_temperatures(student_temperature, teacher_temperature)
    temperatures = student_temperature, teacher_temperature
    return _forward_kl(student_logits, teacher_logits, temperatures, overwrites=True)


def reverse_kl(
    student_logits: Float[Tensor, "*row class"],
    teacher_logits: Float[Tensor, "*row class"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Return KL(S || T): sum over rows and classes of S (log S - log T), as in `forward_kl`.

    Args:
        student_logits: The student's logits s.
        teacher_logits: The teacher's logits t.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, positive.

    Returns:
        Sum over rows, in nats, not multiplied by a temperature.

    Source:
        [A23].
    """
    check_temperatures(student_temperature, teacher_temperature, soft_teacher_for="reverse_kl")
    log_student = _log_probabilities(student_logits, student_temperature)
    log_teacher = _log_probabilities(teacher_logits.detach(), teacher_temperature)
    return _kl(log_student, log_teacher)


def generalized_jsd(
    student_logits: Float[Tensor, "*row class"],
    teacher_logits: Float[Tensor, "*row class"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    beta: float,
) -> Float[Tensor, ""]:
    """Return the generalized Jensen-Shannon divergence with the mixture M = beta T + (1 - beta) S.

    JSD = beta KL(T || M) + (1 - beta) KL(S || M), with T and S as in `forward_kl`. Limits: it
    vanishes at both ends, JSD / beta -> KL(T || S) as beta -> 0 and JSD / (1 - beta) -> KL(S || T)
    as beta -> 1. Hence small beta behaves like forward and large beta like reverse KL. Libraries
    that *define* beta = 0 and 1 as the two KL are discontinuous there; here the ends are errors.

    Args:
        student_logits: The student's logits s.
        teacher_logits: The teacher's logits t.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.
        beta: Weight of the teacher in the mixture, strictly between 0 and 1.

    Returns:
        Sum over rows, in nats, not multiplied by a temperature; at most log 2 per row.

    Raises:
        SpecError: If `beta` is not strictly between 0 and 1.

    Source:
        [A23]. Deviation: the ends of beta are errors.
    """
    check_temperatures(student_temperature, teacher_temperature)
    if not 0 < beta < 1:
        raise SpecError(
            f"'beta' must lie strictly between 0 and 1; got {beta}; use forward_kl or reverse_kl "
            f"for the ends"
        )
    log_student = _log_probabilities(student_logits, student_temperature)
    log_teacher = _log_probabilities(teacher_logits.detach(), teacher_temperature)
    mixture = beta * log_teacher.exp() + (1 - beta) * log_student.exp()
    # The floor turns the 0 / 0 in the gradient at absent classes into 0.
    log_mixture = mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()
    return beta * _kl(log_teacher, log_mixture) + (1 - beta) * _kl(log_student, log_mixture)


def tempered_kl(
    student_logits: Float[Tensor, "*row class"],
    teacher_logits: Float[Tensor, "*row class"],
    temperature: Float[Tensor, "*#row 1"],
) -> Float[Tensor, ""]:
    """Return the sum over rows of tau^2 KL(T || S), both softened by tau, which gets a gradient.

    T = softmax(t / tau) and S = softmax(s / tau), as in `forward_kl`. The factor tau^2 keeps the
    gradient's size to the student.

    Args:
        student_logits: The student's logits s.
        teacher_logits: The teacher's logits t.
        temperature: tau, shared by all rows or per row; dimensionless, positive.

    Returns:
        Sum over rows, in nats times tau^2.

    Source:
        [L22], equation of the loss; the factor as in Hinton et al. 2015, arXiv 1503.02531.
    """
    # Minus infinity times the zero gradient of an absent class would be NaN.
    student = _widen(student_logits).clamp_min(LEAST_LOGIT)
    teacher = _widen(teacher_logits.detach()).clamp_min(LEAST_LOGIT)
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    probabilities = log_teacher.exp()
    return (temperature.square() * probabilities * (log_teacher - log_student)).sum()


def total_variation(
    student_logits: Float[Tensor, "*row class"],
    teacher_logits: Float[Tensor, "*row class"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Return the total variation distance: sum over rows and classes of |T - S| / 2.

    Args:
        student_logits: The student's logits s.
        teacher_logits: The teacher's logits t.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.

    Returns:
        Sum over rows of a probability: dimensionless, between 0 and 1 per row.
    """
    check_temperatures(student_temperature, teacher_temperature)
    student = _log_probabilities(student_logits, student_temperature).exp()
    teacher = _log_probabilities(teacher_logits.detach(), teacher_temperature).exp()
    return 0.5 * (teacher - student).abs().sum()


def sorted_distance(
    student_logits: Float[Tensor, "*row student_class"],
    teacher_logits: Float[Tensor, "*row teacher_class"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    num_largest: int | None = None,
) -> Float[Tensor, ""]:
    """Return the distance of sorted probabilities: sum over rows and ranks of |S_(k) - T_(k)|.

    S_(k) and T_(k) are the k-th largest probabilities of the two models, which may have different
    classes; the smaller number of them is continued by zeros.

    Args:
        student_logits: The student's logits s.
        teacher_logits: The teacher's logits t, of any number of classes.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, positive.
        num_largest: Number of ranks to compare; None for all.

    Returns:
        Sum over rows, dimensionless, between 0 and 2 per row.

    Source:
        [B24]: the Wasserstein distance of two distributions over unrelated classes under a uniform
        cost.
    """
    check_temperatures(student_temperature, teacher_temperature, soft_teacher_for="paired_logits")
    sides = (
        _largest(_log_probabilities(logits, temperature).exp(), num_largest)
        for logits, temperature in (
            (student_logits, student_temperature),
            (teacher_logits.detach(), teacher_temperature),
        )
    )
    student, teacher = sides
    missing = student.shape[-1] - teacher.shape[-1]
    student = functional.pad(student, (0, max(-missing, 0)))
    teacher = functional.pad(teacher, (0, max(missing, 0)))
    return (student - teacher).abs().sum()


def _largest(
    probabilities: Float[Tensor, "*row class"], number: int | None
) -> Float[Tensor, "*row rank"]:
    """Return the largest probabilities in descending order; all without a number."""
    if number is None or number >= probabilities.shape[-1]:
        return probabilities.sort(-1, descending=True).values
    return probabilities.topk(number, dim=-1).values


def layer_normalize(
    states: Float[Tensor, "*row width"], eps: float = 1e-5
) -> Float[Tensor, "*row width"]:
    """Return states with mean 0 and mean square 1 in each row (LayerNorm without weights).

    Args:
        states: Hidden states of any precision; the result is float32, or float64 for float64.
        eps: Added to the variance, in squared units of the states.
    """
    return functional.layer_norm(_widen(states), (states.shape[-1],), eps=eps)


def rms_normalize(
    states: Float[Tensor, "*row width"], eps: float = 1e-5
) -> Float[Tensor, "*row width"]:
    """Return states with mean square 1 in each row, not centered (RMSNorm without weights).

    Args:
        states: Hidden states of any precision; the result is float32, or float64 for float64.
        eps: Added to the mean square, in squared units of the states.
    """
    wide = _widen(states)
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


def check_temperatures(
    student_temperature: float, teacher_temperature: float, *, soft_teacher_for: str = ""
) -> None:
    """Check two temperatures before any logits exist.

    Args:
        student_temperature: Softening of the student.
        teacher_temperature: Softening of the teacher.
        soft_teacher_for: Name of a divergence that is infinite for a one-hot teacher; empty if
            teacher temperature 0 is allowed.

    Raises:
        SpecError: If a temperature is out of its range.
    """
    if soft_teacher_for and teacher_temperature == 0:
        raise SpecError(
            f"'teacher_temperature' must be positive for {soft_teacher_for!r}, which is infinite "
            f"for a one-hot teacher; got {teacher_temperature}"
        )
    if teacher_temperature != 0 and not LEAST_TEMPERATURE <= teacher_temperature < float("inf"):
        raise SpecError(
            f"'teacher_temperature' must be 0 (arg-max) or finite and at least "
            f"{LEAST_TEMPERATURE}; got {teacher_temperature}"
        )
    if not LEAST_TEMPERATURE <= student_temperature < float("inf"):
        raise SpecError(
            f"'student_temperature' must be finite and at least {LEAST_TEMPERATURE}; "
            f"got {student_temperature}"
        )


def _widen(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    # The comparison is cheaper than a `to` without effect.
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.float()


def _forward_kl(
    student: Tensor, teacher: Tensor, temperatures: tuple[float, float], *, overwrites: bool
) -> Float[Tensor, ""]:
    wide, target = _widen(student), teacher.detach()
    if target.dtype != wide.dtype:
        dtype = torch.promote_types(target.dtype, wide.dtype)
        wide, target = wide.to(dtype), target.to(dtype)
    # For few logits, autograd's built-in operations cost less than a custom function.
    has_gradient = wide.requires_grad and torch.is_grad_enabled()
    if wide.numel() >= MANY_LOGITS and has_gradient and not _is_transformed(wide, target):
        total: Tensor = _ForwardKL.apply(wide, target, temperatures, overwrites)  # type: ignore[no-untyped-call]
        return total
    log_student, log_teacher = map(_log_probabilities, (wide, target), temperatures)
    return _kl(log_teacher, log_student)


def _is_transformed(*tensors: Tensor) -> bool:
    """Return whether `torch.func` wraps a tensor, which `_ForwardKL` does not support."""
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))  # noqa: SLF001


@final
class _ForwardKL(torch.autograd.Function):
    """`forward_kl` with its gradient (S - T) / temperature, in half of autograd's memory."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes by position
        ctx: BackwardCFunction,
        student: Tensor,
        teacher: Tensor,
        temperatures: tuple[float, float],
        overwrites: bool,  # noqa: FBT001 - as above
    ) -> Tensor:
        log_student, log_teacher = (
            _log_probabilities(logits, temperature, overwrites=overwrites)
            for logits, temperature in zip((student, teacher), temperatures, strict=True)
        )
        probabilities = log_teacher.exp()
        # In place from here on: all these tensors were allocated in this function.
        gap = log_teacher.sub_(log_student).masked_fill_(probabilities == 0, 0.0)
        total = gap.mul_(probabilities).sum()
        gradient = log_student.exp_().sub_(probabilities)
        ctx.save_for_backward(gradient if temperatures[0] == 1 else gradient.div_(temperatures[0]))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None


def _log_probabilities(
    logits: Float[Tensor, "*row class"], temperature: float, *, overwrites: bool = False
) -> Float[Tensor, "*row class"]:
    """Return log softmax(logits / temperature); at temperature 0 the logarithm of a one-hot."""
    wide = _widen(logits)
    if overwrites and temperature == 1:
        buffer = wide.detach()
        return torch.log_softmax(buffer, dim=-1, out=buffer)
    if temperature == 0:
        first = wide.argmax(-1, keepdim=True)
        return torch.full_like(wide, float("-inf")).scatter(-1, first, 0.0)
    if temperature == 1:
        return functional.log_softmax(wide, dim=-1)
    # With the largest logit moved to 0 before the division, tiny temperatures cannot overflow.
    shifted = wide - wide.detach().amax(-1, keepdim=True)
    return functional.log_softmax(shifted / temperature, dim=-1)


def _kl(
    log_left: Float[Tensor, "*row class"], log_right: Float[Tensor, "*row class"]
) -> Float[Tensor, ""]:
    """Return KL(left || right), summed over rows, where 0 log 0 = 0 also in the gradient."""
    probabilities = log_left.exp()
    gap = (log_left - log_right).masked_fill(probabilities == 0, 0.0)
    return (probabilities * gap).sum()
