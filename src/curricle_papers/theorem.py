"""One gradient step on random projections, labels or logits, and the support of a parity.

The check behind the theorem: a teacher that has gone through its two phases, and students whose
hidden layer takes one large step and whose output layer is then fitted to the teacher's hard
labels. The target of the first step is the *method*:

- `vector`: neuron r follows its own row, the r-th entry of A h(x);
- `scalar`: the output follows the one number A h(x), so all neurons share one row;
- `one_shot`: the output follows the finished teacher's hard labels.

Only the target's part of the gradient is taken and the initial weights are dropped, as the
analysis does. The first two methods come with the target centered or as it is. Uncentered they
fall into a trap: E[(A h)_r] is not 0, and times the gate's degree-1 coefficient it is a gradient on
every coordinate that no amount of data removes.

Axes: example, fresh (an example of the test), activation (an example of a layer, until it is known
that there is one for each input), input, neuron, target, projection, coordinate, support and rest
(its two parts).

Design: everything but the laws of the projections is numpy, and the numbers for a seed are the
same for every method and number of examples wherever they can be: rows differ
only by their method and number of examples.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Theorem 4.3, Lemma 4.4, Figure 2. Which of
        the two readings (`vector`, `scalar`) is meant is not public.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float64
from pydantic import Field

from curricle.errors import DataError, SpecError
from curricle.objectives.projections import Gaussian, Sign
from curricle.seeding import numpy_generator
from curricle.values import value
from curricle_papers.theory.gradient_correlations import projected_correlations
from curricle_papers.theory.networks import (
    TwoLayer,
    accuracy,
    draw_inputs,
    parity,
    symmetric_initialization,
)
from curricle_papers.theory.phases import (
    gated_gradient,
    population_phase,
    rescale_gradient,
    sampled_phase,
)
from curricle_papers.theory.readouts import fit_hinge, fit_ridge

Method = Literal["vector", "vector_uncentered", "scalar", "scalar_uncentered", "one_shot"]
"""Target of the student's first step."""

Law = Annotated[Gaussian | Sign, Field(discriminator="kind")]
"""Law of the rows: independent entries of mean 0 and variance 1 / teacher_width."""


@final
@value
class TheoremSpec:
    """A comparison of first steps on one parity; the defaults take about ten seconds a seed."""

    num_inputs: int = Field(default=50, gt=1)
    """d, the number of coordinates."""
    degree: int = Field(default=4, gt=0)
    """k, the size of the support."""
    num_examples: tuple[Annotated[int, Field(gt=0)], ...] = (500, 2000, 8000)
    """n, examples of the student's first step; every method runs with each."""
    methods: tuple[Method, ...] = ("vector", "vector_uncentered", "one_shot")
    """Target of the first step."""
    teacher_width: int = Field(default=512, gt=0, multiple_of=2)
    """Neurons of the teacher."""
    student_width: int = Field(default=256, gt=0, multiple_of=2)
    """Neurons of the student, and rows of A for `vector`."""
    teacher_examples: int | None = Field(default=None, gt=0)
    """Examples of the teacher's own first step; None takes the closed form for infinitely many."""
    projection: Law = Field(default_factory=Gaussian)
    """Law of the rows."""
    readout: Literal["ridge", "hinge"] = "ridge"
    """How output layers are fitted: by least squares, or by gradient descent on the hinge loss."""
    readout_examples: int = Field(default=20_000, gt=0)
    """Examples that an output layer is fitted on."""
    test_examples: int = Field(default=5_000, gt=0)
    """Examples of the accuracy."""


@final
@value
class TheoremRow:
    """Result of a method on one sample."""

    method: Method
    """Target of the first step."""
    num_inputs: int
    """d."""
    degree: int
    """k."""
    num_examples: int
    """n, examples of the first step."""
    seed: int
    """Seed of everything random."""
    gradient_ratio: float
    """Root mean square entry of the first gradient on the support, over that off it."""
    finds_support: bool
    """Whether the k coordinates with the largest gradient norm are exactly the support."""
    accuracy: float
    """Share of fresh examples with the right parity; 0.5 is chance."""
    teacher_accuracy: float
    """The same for the teacher."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelationGap:
    """Correlations of random projections of a hidden layer with the coordinates of its input."""

    correlations: Float64[np.ndarray, "projection coordinate"]
    """E[(A h)(x) x_j]; the first `support_size` coordinates are the support."""
    support_size: int
    """k."""

    @property
    def in_support(self) -> Float64[np.ndarray, "projection support"]:
        """Return the columns of the support."""
        return self.correlations[:, : self.support_size]

    @property
    def off_support(self) -> Float64[np.ndarray, "projection rest"]:
        """Return the other columns."""
        return self.correlations[:, self.support_size :]

    @property
    def in_spread(self) -> float:
        """Return the root mean square on the support; the mean over rows is 0 in expectation."""
        return float(np.sqrt(np.mean(self.in_support**2)))

    @property
    def off_spread(self) -> float:
        """Return the root mean square off the support; noise of n examples adds E|A h|^2 / n."""
        return float(np.sqrt(np.mean(self.off_support**2)))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """Quantities shared by all rows of a seed."""

    spec: TheoremSpec
    seed: int
    teacher: TwoLayer
    start: TwoLayer
    rows: Float64[np.ndarray, "projection neuron"]
    fitting: Float64[np.ndarray, "example input"]
    testing: Float64[np.ndarray, "fresh input"]


def theorem_check(spec: TheoremSpec, *, seeds: Sequence[int] = (0, 1, 2)) -> tuple[TheoremRow, ...]:
    """Return one row for each seed, number of examples and method, in this order.

    Args:
        spec: Sizes and methods.
        seeds: Each gives another teacher, student, projection and data.

    Raises:
        SpecError: If the support does not fit the input, or the teacher's first phase reads
            nothing (odd degree and odd number of inputs).

    Source:
        [GK25], Algorithms 1 and 2, as far as they are public. Deviation: the target's part of the
        gradient only; least squares unless `readout` is another.
    """
    if spec.degree >= spec.num_inputs:
        raise SpecError(f"'degree' must be below 'num_inputs' {spec.num_inputs}; got {spec.degree}")
    return tuple(row for seed in seeds for row in _rows(_prepared(spec, seed)))


def trained_teacher(spec: TheoremSpec, *, seed: int) -> TwoLayer:
    """Return the teacher after both phases.

    Its hidden layer is still that of the first phase, which is why a curriculum can be taken out of
    the finished network.

    Args:
        spec: Sizes; `teacher_examples` decides whether the first phase is sampled.
        seed: Seed of the initialization and the samples.

    Source:
        [GK25], Algorithm 1, as far as it is public.
    """
    start = symmetric_initialization(
        num_inputs=spec.num_inputs,
        degree=spec.degree,
        width=spec.teacher_width,
        generator=numpy_generator(seed, "theorem/teacher/initialization"),
    )
    if spec.teacher_examples is None:
        trained = population_phase(start, spec.degree)
    else:
        trained = sampled_phase(
            start,
            spec.degree,
            num_examples=spec.teacher_examples,
            generator=numpy_generator(seed, "theorem/teacher/first"),
        )
    generator = numpy_generator(seed, "theorem/teacher/second")
    inputs = draw_inputs(spec.readout_examples, spec.num_inputs, generator)
    return _fitted(spec, trained, inputs, parity(inputs, spec.degree))


def correlation_gap(
    *,
    hidden: Float[np.ndarray, "activation neuron"],
    inputs: Float[np.ndarray, "example coordinate"],
    support_size: int,
    num_projections: int,
    seed: int,
    projection: Gaussian | Sign | None = None,
) -> CorrelationGap:
    """Return how a hidden layer's random projections correlate with each coordinate.

    Works for any network: give its first hidden layer's activations on a batch. The same seed and
    sizes give the same projections, so checkpoints of one training can be compared.

    Args:
        hidden: Activations on the batch; `TwoLayer.hidden` gives them for plain weights.
        inputs: The batch, uniform in {-1, +1}^d, support first.
        support_size: k, from 1 to d - 1.
        num_projections: Number of rows.
        seed: Seed of the rows.
        projection: Law of the rows; Gaussian if None.

    Raises:
        SpecError: If the support or the number of projections is out of range.
        DataError: If activations and inputs are not of the same examples.

    Source:
        [GK25], Figure 2: distributions over rows, on and off the support.
    """
    if not 0 < support_size < inputs.shape[1]:
        raise SpecError(
            f"'support_size' must lie between 1 and {inputs.shape[1] - 1}; got {support_size}"
        )
    if num_projections < 1:
        raise SpecError(f"'num_projections' must be at least 1; got {num_projections}")
    if len(hidden) != len(inputs):
        raise DataError(
            f"'hidden' and 'inputs' must hold the same examples; got {len(hidden)} and "
            f"{len(inputs)}"
        )
    rows = _projection(projection or Gaussian(), seed, (num_projections, hidden.shape[1]))
    return CorrelationGap(
        correlations=projected_correlations(hidden, inputs, rows), support_size=support_size
    )


def _prepared(spec: TheoremSpec, seed: int) -> _Check:
    def inputs(purpose: str, count: int) -> Float64[np.ndarray, "example input"]:
        return draw_inputs(count, spec.num_inputs, numpy_generator(seed, f"theorem/{purpose}"))

    return _Check(
        spec=spec,
        seed=seed,
        teacher=trained_teacher(spec, seed=seed),
        start=symmetric_initialization(
            num_inputs=spec.num_inputs,
            degree=spec.degree,
            width=spec.student_width,
            generator=numpy_generator(seed, "theorem/student/initialization"),
        ),
        rows=_projection(spec.projection, seed, (spec.student_width, spec.teacher_width)),
        fitting=inputs("student/second", spec.readout_examples),
        testing=inputs("test", spec.test_examples),
    )


def _rows(check: _Check) -> Iterator[TheoremRow]:
    spec = check.spec
    labels = np.sign(check.teacher.output(check.fitting))
    teacher_accuracy = accuracy(check.teacher, check.testing, spec.degree)
    for count in spec.num_examples:
        generator = numpy_generator(check.seed, "theorem/student/first", count)
        inputs = draw_inputs(count, spec.num_inputs, generator)
        for method in spec.methods:
            gradient = _first_step(check, inputs, method)
            norms = np.linalg.norm(gradient, axis=0)
            largest = np.argsort(-norms)[: spec.degree]
            stepped = replace(check.start, weights=rescale_gradient(gradient, spec.degree))
            student = _fitted(spec, stepped, check.fitting, labels)
            yield TheoremRow(
                method=method,
                num_inputs=spec.num_inputs,
                degree=spec.degree,
                num_examples=count,
                seed=check.seed,
                gradient_ratio=_gradient_ratio(norms, spec.degree),
                finds_support=set(largest.tolist()) == set(range(spec.degree)),
                accuracy=accuracy(student, check.testing, spec.degree),
                teacher_accuracy=teacher_accuracy,
            )


def _first_step(
    check: _Check, inputs: Float64[np.ndarray, "example input"], method: Method
) -> Float64[np.ndarray, "neuron input"]:
    """Return the direction in which the first step moves the student's hidden weights."""
    if method == "one_shot":
        targets = np.sign(check.teacher.output(inputs))[:, None]
    else:
        rows = check.rows if method.startswith("vector") else check.rows[:1]
        targets = check.teacher.hidden(inputs) @ rows.T
        if not method.endswith("uncentered"):
            targets = targets - targets.mean(axis=0)
    gradient = gated_gradient(check.start, inputs, targets)
    # A target of the output reaches a neuron through its own output weight.
    return gradient if method.startswith("vector") else gradient * np.sign(check.start.top)[:, None]


def _gradient_ratio(norms: Float64[np.ndarray, " input"], degree: int) -> float:
    squares = norms**2
    return float(np.sqrt(squares[:degree].mean() / squares[degree:].mean()))


def _fitted(
    spec: TheoremSpec,
    network: TwoLayer,
    inputs: Float64[np.ndarray, "example input"],
    labels: Float64[np.ndarray, " example"],
) -> TwoLayer:
    """Return the network with its output layer fitted; the second phase of both algorithms."""
    fit = fit_ridge if spec.readout == "ridge" else fit_hinge
    return replace(network, top=fit(network.hidden(inputs), labels))


def _projection(
    law: Gaussian | Sign, seed: int, shape: tuple[int, int]
) -> Float64[np.ndarray, "projection neuron"]:
    student_width, teacher_width = shape
    matrix = law.matrix(
        seed=seed,
        name="theorem",
        student_width=student_width,
        teacher_width=teacher_width,
        dtype=torch.float64,
    )
    rows: Float64[np.ndarray, "projection neuron"] = matrix.numpy()
    return rows
