"""Similarity, linear readability and effective rank of hidden states.

`linear_cka` compares the hidden states of two taps of any widths, of one network or of two: 1 for
states equal up to rotation, isotropic scale and shift, near 0 for unrelated states.
`tap_similarity` computes it for all pairs of student and teacher taps. `linear_probe` is the
held-out accuracy of a logistic regression on a tap, and `effective_rank` the effective number of
directions of a tap's variance.

Axes: row (an example or position), width, other (width of the second state), class.

Design: all results are computed in float64 from width x width products, never rows x rows, so that
ten thousand rows are cheap. Models run without gradients.

Source:
    Kornblith et al. 2019 (arXiv 1905.00414): linear CKA. Deviation: none.
    Song et al. 2012 (JMLR 13): the unbiased estimate of HSIC behind the debiased form.
    Roy and Vetterli 2007 (EUSIPCO): effective rank.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.data.batch import Batch
from curricle.data.label_checks import misplaced, require_classes
from curricle.errors import BindError, DataError, SpecError
from curricle.models.tapped import Tap, TappedModel
from curricle.probes.forward_passes import hidden_rows, numbered_taps, selected_rows

LEAST_ROWS: Final = 4
"""Minimum number of rows for the unbiased estimate of HSIC."""
SMALLEST: Final = 1e-12
"""Relative size below which a number is rounding error."""
MOST_ITERATIONS: Final = 200
"""Iterations of L-BFGS; the loss is convex, and further iterations do not change the accuracy."""


def tap_similarity(
    model: TappedModel,
    batch: Batch,
    *,
    teacher: TappedModel,
    student_taps: Sequence[Tap] | None = None,
    teacher_taps: Sequence[Tap] | None = None,
    debiased: bool = True,
) -> dict[str, float]:
    """Return the linear CKA of every student tap with every teacher tap.

    The names are `cka_<student tap>_<teacher tap>`. Pairs with a constant tap, as of a dead layer,
    are omitted.

    Args:
        model: The student.
        batch: Inputs of both; positions without data are ignored.
        teacher: The model for comparison, with its current weights.
        student_taps: Taps of the student; None for all numbered taps.
        teacher_taps: Taps of the teacher; None for all numbered taps.
        debiased: See `linear_cka`.

    Raises:
        BindError: If the two do not have the same positions.
    """
    student_taps = numbered_taps(model) if student_taps is None else student_taps
    teacher_taps = numbered_taps(teacher) if teacher_taps is None else teacher_taps
    student_states = hidden_rows(model, batch, student_taps)
    teacher_states = hidden_rows(teacher, batch, teacher_taps)
    numbers: dict[str, float] = {}
    for student_tap, first in student_states.items():
        for teacher_tap, second in teacher_states.items():
            if len(first) != len(second):
                raise BindError(
                    f"student tap {student_tap!r} and teacher tap {teacher_tap!r} must have the "
                    f"same positions; got {len(first)} and {len(second)} rows"
                )
            name = f"cka_{student_tap}_{teacher_tap}"
            _check_rows(len(first), debiased=debiased)
            # After the checks above, the only remaining error is a constant tap.
            with suppress(DataError):
                numbers[name] = linear_cka(first, beside(second, first), debiased=debiased)
    return numbers


def linear_cka(
    first: Float[Tensor, "row width"], second: Float[Tensor, "row other"], *, debiased: bool = True
) -> float:
    """Return the linear centered kernel alignment of two representations of the same rows.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T and L = Y Y^T. The biased form
    takes HSIC(K, L) = ||Yc^T Xc||_F^2 with centered columns, lies between 0 and 1, and is too large
    unless the widths are small against the number of rows. The debiased form takes the unbiased
    HSIC(K, L) = [tr(K' L') + (1'K'1)(1'L'1) / ((n-1)(n-2)) - 2 (1'K'L'1) / (n-2)] / (n (n-3)),
    where K' and L' have a zero diagonal; it is near 0 for unrelated states and may fall below.

    Args:
        first: A representation.
        second: A second representation, of any width.
        debiased: Whether the debiased form is used, which needs four rows.

    Raises:
        DataError: If there are too few rows or a representation is constant.
    """
    _check_rows(len(first), debiased=debiased)
    centered = [_centered(states, name) for name, states in (("first", first), ("second", second))]
    dependence = _unbiased_dependence if debiased else _biased_dependence
    cross, *self_dependence = (
        dependence(centered[i], centered[j]) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    for name, number in zip(("first", "second"), self_dependence, strict=True):
        # The unbiased estimate is also zero if a single row differs from equal remaining rows.
        if number <= SMALLEST:
            raise DataError(
                f"{name!r} must vary in more than one row to be compared; got {len(first)} rows, "
                f"at most one of them different"
            )
    return cross / math.sqrt(self_dependence[0] * self_dependence[1])


def linear_probe(
    model: TappedModel,
    batch: Batch,
    *,
    taps: Sequence[Tap] | None = None,
    held_out: float = 0.25,
    penalty: float = 1e-3,
) -> dict[str, float]:
    """Return the held-out accuracy of a linear classifier of the batch's labels on each tap.

    The names are `linear_<tap>_accuracy`: shares of the held-out rows. These are the last rows, so
    that the positions of an example are on one side of the split.

    Args:
        model: The model.
        batch: Rows with labels.
        taps: Taps of the model; None for all numbered taps.
        held_out: Share of held-out rows.
        penalty: See `linear_accuracy`.

    Raises:
        BindError: If the batch has no labels.
    """
    if batch.labels is None:
        words = misplaced(batch.inputs)
        raise BindError(f"'labels' must be in the batch for a linear probe; got none{words}")
    require_classes(batch.labels)
    taps = numbered_taps(model) if taps is None else taps
    return {
        f"linear_{label}_accuracy": linear_accuracy(
            rows, beside(batch.labels, rows), held_out=held_out, penalty=penalty
        )
        for label, rows in selected_rows(model, batch, taps).items()
    }


def linear_accuracy(
    states: Float[Tensor, "row width"],
    labels: Int[Tensor, " row"],
    *,
    held_out: float = 0.25,
    penalty: float = 1e-3,
) -> float:
    """Return the held-out accuracy of a logistic regression from states to labels.

    It minimizes the mean cross-entropy in nats plus `penalty` / 2 times the squared norm of the
    weights on standardized states, from zero weights by L-BFGS, so it is deterministic.

    Args:
        states: One representation per row.
        labels: Class of each row.
        held_out: Share of the rows, the last ones, for the accuracy.
        penalty: Weight of the squared norm; positive, so that the minimum is unique.

    Raises:
        SpecError: If the share is not between 0 and 1 or the penalty not positive.
        DataError: If a side of the split has no rows.
    """
    if not 0 < held_out < 1:
        raise SpecError(f"'held_out' must lie strictly between 0 and 1; got {held_out}")
    if penalty <= 0:
        raise SpecError(f"'penalty' must be positive; got {penalty}")
    cut = len(states) - round(held_out * len(states))
    if not 0 < cut < len(states):
        raise DataError(
            f"'states' must have rows on both sides of a split at {held_out:g}; got {len(states)}"
        )
    exact = states.detach().double()
    center, spread = exact[:cut].mean(0), exact[:cut].std(0, correction=0)
    rows = (exact - center) / spread.where(spread > 0, 1.0)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    weights = _logistic_weights(rows[:cut], labels[:cut], int(labels.max()) + 1, penalty)
    right = (rows[cut:] @ weights).argmax(1) == labels[cut:]
    return float(right.double().mean())


def effective_rank(states: Float[Tensor, "row width"], *, directions: int | None = None) -> float:
    """Return the effective number of directions of centered states, from 1 to their width.

    It is exp(H(p)) with the singular values p divided by their sum and the entropy H in nats;
    constant states have rank 0.

    Args:
        states: One representation per row.
        directions: Number of leading principal directions that count; None means all.
    """
    exact = states.double()
    # In descending order.
    values = torch.linalg.svdvals(exact - exact.mean(0))[:directions]
    total = values.sum()
    if total <= torch.finfo(torch.float64).eps * exact.abs().sum():
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def _check_rows(count: int, *, debiased: bool) -> None:
    """Check the number of rows.

    Raises:
        DataError: If there are too few for the debiased form.
    """
    if debiased and count < LEAST_ROWS:
        raise DataError(f"'states' must have at least {LEAST_ROWS} rows; got {count}")


def _centered(states: Float[Tensor, "row width"], name: str) -> Float[Tensor, "row width"]:
    """Return states with mean zero and norm one; CKA is invariant to both.

    Raises:
        DataError: If the states are constant.
    """
    exact = states.double()
    centered = exact - exact.mean(0)
    norm = centered.norm()
    if norm <= SMALLEST * exact.norm():
        raise DataError(
            f"{name!r} must vary from row to row to be compared; got {len(states)} equal rows"
        )
    scaled: Tensor = centered / norm
    return scaled


def _logistic_weights(
    rows: Float[Tensor, "row width"], labels: Int[Tensor, " row"], num_classes: int, penalty: float
) -> Float[Tensor, "width class"]:
    with torch.enable_grad():
        weights = rows.new_zeros(rows.shape[1], num_classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            # The last row of weights is the bias, which has no penalty.
            norm = weights[:-1].square().sum()
            objective = nn.functional.cross_entropy(rows @ weights, labels) + penalty / 2 * norm
            objective.backward()
            return objective

        optimizer.step(loss)
    return weights.detach()


def _biased_dependence(
    first: Float[Tensor, "row width"], second: Float[Tensor, "row other"]
) -> float:
    return float((second.T @ first).square().sum())


def _unbiased_dependence(
    first: Float[Tensor, "row width"], second: Float[Tensor, "row other"]
) -> float:
    """Return Song's estimate times n (n - 3), without matrices of rows x rows."""
    count = len(first)
    norms = [states.square().sum(1) for states in (first, second)]
    sums = [
        states @ states.sum(0) - norm for states, norm in zip((first, second), norms, strict=True)
    ]
    trace = (second.T @ first).square().sum() - norms[0] @ norms[1]
    both = sums[0].sum() * sums[1].sum() / ((count - 1) * (count - 2))
    return float(trace + both - 2 * (sums[0] @ sums[1]) / (count - 2))
