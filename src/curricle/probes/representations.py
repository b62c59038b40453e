"""How alike are two layers, what can be read off one, and how many directions does it use?

`linear_cka` compares the hidden states of two taps, of one network or of two, whatever their
widths: 1 for states that are equal up to rotation, one common scale and a shift, near 0 for
unrelated ones. `tap_similarity` gives it for all pairs of student and teacher taps.
`linear_probe` is the held-out accuracy of a logistic regression on a tap, and `effective_rank`
tells over how many directions a tap's variance is spread.

Axes: row (a place whose hidden state is read), width, other (width of the second state), class.

Design: everything is computed in float64 from products of width x width, never rows x rows, so that
ten thousand rows cost nothing. Models are read without gradients.

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

from curricle.data.labels import misplaced
from curricle.data.streams import Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.tapped import Tap, TappedModel
from curricle.probes.readings import hidden_rows, numbered_taps, selected_rows

LEAST_ROWS: Final = 4
"""Rows that the unbiased estimate of HSIC needs."""
SMALLEST: Final = 1e-12
"""Below this share of its scale a number is what rounding leaves."""
MOST_ITERATIONS: Final = 200
"""Iterations of L-BFGS; the loss is convex, so more change nothing that an accuracy shows."""


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

    The numbers are called `cka_<student tap>_<teacher tap>`. A tap that does not vary from row to
    row, such as that of a dead layer, is like no other: its pairs have no number.

    Args:
        model: The student.
        batch: What both read; positions without data are left out.
        teacher: The model that it is compared with, in the state in which it is.
        student_taps: Taps of the student; None takes all that are numbered.
        teacher_taps: Taps of the teacher; None takes all that are numbered.
        debiased: See `linear_cka`.

    Raises:
        BindError: If the two do not have the same positions.
    """
    student_taps = numbered_taps(model) if student_taps is None else student_taps
    teacher_taps = numbered_taps(teacher) if teacher_taps is None else teacher_taps
    ours = hidden_rows(model, batch, student_taps)
    theirs = hidden_rows(teacher, batch, teacher_taps)
    numbers: dict[str, float] = {}
    for student_tap, first in ours.items():
        for teacher_tap, second in theirs.items():
            if len(first) != len(second):
                raise BindError(
                    f"student tap {student_tap!r} and teacher tap {teacher_tap!r} must have the "
                    f"same positions; got {len(first)} and {len(second)} rows"
                )
            name = f"cka_{student_tap}_{teacher_tap}"
            _check_rows(len(first), debiased=debiased)
            # All that is left to go wrong is a tap that does not vary.
            with suppress(DataError):
                numbers[name] = linear_cka(first, second.to(first.device), debiased=debiased)
    return numbers


def linear_cka(
    first: Float[Tensor, "row width"], second: Float[Tensor, "row other"], *, debiased: bool = True
) -> float:
    """Return the linear centered kernel alignment of two representations of the same rows.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T and L = Y Y^T. The biased form
    takes HSIC(K, L) = ||Yc^T Xc||_F^2 with centered columns, lies between 0 and 1, and is too large
    when widths are not small against the number of rows. The debiased form takes the unbiased
    HSIC(K, L) = [tr(K' L') + (1'K'1)(1'L'1) / ((n-1)(n-2)) - 2 (1'K'L'1) / (n-2)] / (n (n-3)),
    where K' and L' have a zero diagonal; it is near 0 for unrelated states and may fall below.

    Args:
        first: One representation.
        second: Another one, of any width.
        debiased: Which form; the debiased one needs four rows.

    Raises:
        DataError: If there are too few rows or a representation is constant.
    """
    _check_rows(len(first), debiased=debiased)
    centered = [_centered(states, name) for name, states in (("first", first), ("second", second))]
    dependence = _unbiased_dependence if debiased else _biased_dependence
    cross, *own = (dependence(centered[i], centered[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    for name, number in zip(("first", "second"), own, strict=True):
        # The unbiased estimate is zero also where one row stands against all others.
        if number <= SMALLEST:
            raise DataError(
                f"{name!r} must vary in more than one row to be compared; got {len(first)} rows "
                f"of which at most one is unlike the others"
            )
    return cross / math.sqrt(own[0] * own[1])


def linear_probe(
    model: TappedModel,
    batch: Batch,
    *,
    taps: Sequence[Tap] | None = None,
    held_out: float = 0.25,
    penalty: float = 1e-3,
) -> dict[str, float]:
    """Return how well the batch's labels can be read off each tap by a linear classifier.

    The numbers are called `linear_<tap>_accuracy`: shares of the held-out rows, which are the last
    ones, so that the positions of an example do not stand on both sides.

    Args:
        model: The model whose taps are read.
        batch: Rows with labels.
        taps: Taps of the model; None takes all that are numbered.
        held_out: Share of the rows that are held out.
        penalty: See `linear_accuracy`.

    Raises:
        BindError: If the batch has no labels.
    """
    if batch.labels is None:
        words = misplaced(batch.inputs)
        raise BindError(f"'labels' must be given for a linear probe; got none{words}")
    taps = numbered_taps(model) if taps is None else taps
    return {
        f"linear_{label}_accuracy": linear_accuracy(
            rows, batch.labels.to(rows.device), held_out=held_out, penalty=penalty
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
    weights on standardized states, from zero weights by L-BFGS, so nothing is random.

    Args:
        states: One representation a row.
        labels: Class of each row.
        held_out: Share of the rows, the last ones, on which the accuracy is measured.
        penalty: Weight of the squared norm; positive, so that there is one minimum.

    Raises:
        SpecError: If the share is not between 0 and 1 or the penalty not positive.
        DataError: If a side has no rows.
    """
    if not 0 < held_out < 1:
        raise SpecError(f"'held_out' must lie strictly between 0 and 1; got {held_out}")
    if penalty <= 0:
        raise SpecError(f"'penalty' must be positive; got {penalty}")
    cut = len(states) - round(held_out * len(states))
    if not 0 < cut < len(states):
        raise DataError(
            f"'states' must have rows on both sides of a cut at {held_out:g}; got {len(states)}"
        )
    exact = states.detach().double()
    center, spread = exact[:cut].mean(0), exact[:cut].std(0, correction=0)
    rows = (exact - center) / spread.where(spread > 0, 1.0)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    weights = _logistic_weights(rows[:cut], labels[:cut], int(labels.max()) + 1, penalty)
    right = (rows[cut:] @ weights).argmax(1) == labels[cut:]
    return float(right.double().mean())


def effective_rank(states: Float[Tensor, "row width"]) -> float:
    """Return over how many directions centered states are spread, from 1 to their width.

    It is exp(H(p)) in which p are the singular values divided by their sum and H is the entropy in
    nats; states that do not vary have rank 0.
    """
    exact = states.double()
    values = torch.linalg.svdvals(exact - exact.mean(0))
    total = values.sum()
    if total <= torch.finfo(torch.float64).eps * exact.abs().sum():
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def _check_rows(count: int, *, debiased: bool) -> None:
    """Check that there are enough rows.

    Raises:
        DataError: If not.
    """
    if debiased and count < LEAST_ROWS:
        raise DataError(f"'states' must have at least {LEAST_ROWS} rows; got {count}")


def _centered(states: Float[Tensor, "row width"], name: str) -> Float[Tensor, "row width"]:
    """Return states with mean zero and norm one, which CKA does not see.

    Raises:
        DataError: If they do not vary.
    """
    exact = states.double()
    centered = exact - exact.mean(0)
    norm = centered.norm()
    if norm <= SMALLEST * exact.norm():
        raise DataError(
            f"{name!r} must vary from row to row to be compared; got {len(states)} rows alike"
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
            # The last row belongs to the constant input and is free.
            norm = weights[:-1].square().sum()
            found = nn.functional.cross_entropy(rows @ weights, labels) + penalty / 2 * norm
            found.backward()
            return found

        optimizer.step(loss)
    return weights.detach()


def _biased_dependence(
    first: Float[Tensor, "row width"], second: Float[Tensor, "row other"]
) -> float:
    return float((second.T @ first).square().sum())


def _unbiased_dependence(
    first: Float[Tensor, "row width"], second: Float[Tensor, "row other"]
) -> float:
    """Return Song's estimate times n (n - 3), without forming matrices of rows x rows."""
    count = len(first)
    norms = [states.square().sum(1) for states in (first, second)]
    sums = [
        states @ states.sum(0) - norm for states, norm in zip((first, second), norms, strict=True)
    ]
    trace = (second.T @ first).square().sum() - norms[0] @ norms[1]
    both = sums[0].sum() * sums[1].sum() / ((count - 1) * (count - 2))
    return float(trace + both - 2 * (sums[0] @ sums[1]) / (count - 2))
