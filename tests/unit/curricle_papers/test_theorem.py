"""First steps on a small parity: what finds the support, and what falls into the trap."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from curricle.errors import DataError, SpecError
from curricle.objectives.projections import Gaussian, Sign
from curricle.seeding import numpy_generator
from curricle_papers.theorem import (
    Method,
    TheoremRow,
    TheoremSpec,
    correlation_gap,
    theorem_check,
    trained_teacher,
)
from curricle_papers.theory.networks import accuracy, draw_inputs

METHODS: tuple[Method, ...] = (
    "vector",
    "vector_uncentered",
    "scalar",
    "scalar_uncentered",
    "one_shot",
)


SMALL = TheoremSpec(
    num_inputs=24,
    degree=4,
    num_examples=(1000,),
    methods=METHODS,
    teacher_width=128,
    student_width=128,
    readout_examples=3000,
    test_examples=1000,
)


def by_method(rows: Sequence[TheoremRow]) -> dict[str, TheoremRow]:
    return {row.method: row for row in rows}


@pytest.fixture(scope="module")
def rows() -> dict[str, TheoremRow]:
    """Return every method on one small parity."""
    return by_method(theorem_check(SMALL, seeds=(0,)))


def test_centered_projections_find_the_support(rows: dict[str, TheoremRow]) -> None:
    row = rows["vector"]
    assert row.finds_support
    assert row.gradient_ratio > 5
    assert row.accuracy > 0.9


def test_without_centering_the_gradient_is_the_same_noise_on_every_coordinate(
    rows: dict[str, TheoremRow],
) -> None:
    assert rows["vector_uncentered"].gradient_ratio < 2.5
    assert rows["vector_uncentered"].accuracy < rows["vector"].accuracy - 0.1


def test_labels_do_not_find_the_support(rows: dict[str, TheoremRow]) -> None:
    row = rows["one_shot"]
    assert not row.finds_support
    assert row.gradient_ratio == pytest.approx(1.0, abs=0.6)
    assert row.accuracy < 0.7


def test_a_single_row_shows_the_support_but_not_all_of_it_alike(
    rows: dict[str, TheoremRow],
) -> None:
    # Its ratio is that of one draw, and one weak coordinate costs accuracy.
    assert rows["scalar"].gradient_ratio > 2 * rows["one_shot"].gradient_ratio
    assert 0.5 < rows["scalar"].accuracy < rows["vector"].accuracy
    assert rows["scalar_uncentered"].gradient_ratio != rows["scalar"].gradient_ratio


def test_rows_come_by_seed_then_examples_then_method() -> None:
    spec = replace(
        SMALL, num_examples=(20, 40), methods=("vector", "one_shot"), readout_examples=300
    )
    found = [(row.seed, row.num_examples, row.method) for row in theorem_check(spec, seeds=(1, 2))]
    assert found == [
        (seed, count, method)
        for seed in (1, 2)
        for count in (20, 40)
        for method in ("vector", "one_shot")
    ]


def test_a_row_does_not_depend_on_what_else_is_asked_for(rows: dict[str, TheoremRow]) -> None:
    (alone,) = theorem_check(replace(SMALL, methods=("one_shot",)), seeds=(0,))
    assert alone == rows["one_shot"]


def test_signs_do_as_well_as_normal_rows() -> None:
    spec = replace(SMALL, projection=Sign(), methods=("vector",))
    (row,) = theorem_check(spec, seeds=(0,))
    assert row.finds_support
    assert row.accuracy > 0.9


def test_the_hinge_loss_may_fit_the_output_layers() -> None:
    (row,) = theorem_check(replace(SMALL, readout="hinge", methods=("vector",)), seeds=(0,))
    assert row.accuracy > 0.75
    assert row.teacher_accuracy > 0.95


def test_a_sampled_teacher_can_be_extracted_from() -> None:
    # 1 / xi_2^2 is 4.7e4 at (20,3); this teacher sees about six times as many.
    spec = replace(
        SMALL, num_inputs=20, degree=3, teacher_examples=300_000, methods=("vector", "one_shot")
    )
    rows = by_method(theorem_check(spec, seeds=(0,)))
    assert rows["vector"].teacher_accuracy > 0.98
    assert rows["vector"].finds_support
    assert rows["vector"].accuracy > rows["one_shot"].accuracy + 0.1


def test_a_teacher_that_saw_too_little_knows_nothing() -> None:
    spec = replace(SMALL, teacher_examples=500)
    inputs = draw_inputs(2000, 24, numpy_generator(0, "test"))
    assert accuracy(trained_teacher(spec, seed=0), inputs, 4) < 0.6


def test_the_gap_of_a_hand_made_layer_is_its_rows_times_its_correlations() -> None:
    inputs = draw_inputs(4000, 5, numpy_generator(0, "test"))
    gap = correlation_gap(
        hidden=inputs[:, :2] * [0.5, 2.0], inputs=inputs, support_size=2, num_projections=3, seed=4
    )
    rows = (
        Gaussian().matrix(seed=4, name="theorem", student_width=3, teacher_width=2).double().numpy()
    )
    assert gap.correlations.shape == (3, 5)
    assert np.allclose(gap.in_support, rows * [0.5, 2.0], atol=0.2)
    assert np.abs(gap.off_support).max() < 0.3
    assert gap.in_spread == pytest.approx(math.sqrt((gap.in_support**2).mean()))
    assert gap.off_spread == pytest.approx(math.sqrt((gap.off_support**2).mean()))


def test_the_gap_reads_single_precision_and_other_laws() -> None:
    inputs = draw_inputs(64, 5, numpy_generator(0, "test")).astype(np.float32)
    given = {"hidden": np.maximum(inputs, 0), "inputs": inputs}
    first, second = (
        correlation_gap(**given, support_size=2, num_projections=7, seed=0, projection=law)
        for law in (Gaussian(), Sign())
    )
    assert first.correlations.dtype == np.float64
    assert not np.array_equal(first.correlations, second.correlations)


@pytest.mark.parametrize("size", [0, 5])
def test_a_support_without_rest_has_no_gap(size: int) -> None:
    ones = np.ones((3, 5))
    with pytest.raises(SpecError, match=f"'support_size' must lie between 1 and 4; got {size}"):
        correlation_gap(hidden=ones, inputs=ones, support_size=size, num_projections=1, seed=0)


def test_a_gap_needs_projections() -> None:
    ones = np.ones((3, 5))
    with pytest.raises(SpecError, match="'num_projections' must be at least 1; got 0"):
        correlation_gap(hidden=ones, inputs=ones, support_size=2, num_projections=0, seed=0)


def test_a_gap_needs_activations_of_the_same_batch() -> None:
    with pytest.raises(DataError, match="must hold the same examples; got 4 and 3"):
        correlation_gap(
            hidden=np.ones((4, 2)),
            inputs=np.ones((3, 5)),
            support_size=2,
            num_projections=1,
            seed=0,
        )


def test_a_support_as_large_as_the_input_is_refused() -> None:
    with pytest.raises(SpecError, match="'degree' must be below 'num_inputs' 4; got 4"):
        theorem_check(TheoremSpec(num_inputs=4, degree=4))
