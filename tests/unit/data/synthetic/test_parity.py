"""Sparse parity against its definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.synthetic.parity import BLOCK_EXAMPLES, ParityStream
from curricle.errors import BindError, SpecError


def stream(
    *, num_inputs: int = 10, degree: int = 3, batch_size: int = 16, seed: int = 0, **more: Any
) -> ParityStream:
    return ParityStream(
        num_inputs=num_inputs, degree=degree, batch_size=batch_size, seed=seed, **more
    )


def inputs(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs


def labels(batch: Batch) -> list[int]:
    assert batch.labels is not None
    return [int(label) for label in batch.labels]


@pytest.mark.parametrize("degree", [1, 2, 5, 10])
def test_the_label_is_the_sign_of_the_product_of_the_support(degree: int) -> None:
    batch = stream(degree=degree).batch(7)
    products = [math.prod(row[:degree]) for row in inputs(batch).tolist()]
    assert labels(batch) == [0 if product == 1 else 1 for product in products]


def test_inputs_are_signs_in_float32() -> None:
    drawn = inputs(stream().batch(0))
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}


def test_signs_and_labels_are_balanced_and_coordinates_independent() -> None:
    large = stream(batch_size=BLOCK_EXAMPLES)
    drawn = inputs(large.batch(0)).numpy().astype(np.float64)
    # Every mean of n independent signs lies within 5 / sqrt(n) of 0, but for one in a million.
    bound = 5 / math.sqrt(BLOCK_EXAMPLES)
    assert abs(np.mean(labels(large.batch(0))) - 0.5) < bound
    correlations = drawn.T @ drawn / BLOCK_EXAMPLES - np.eye(10)
    assert np.abs(drawn.mean(0)).max() < bound
    assert np.abs(correlations).max() < bound


def test_batches_do_not_depend_on_the_order_of_reading() -> None:
    ahead, back = stream(batch_size=4096), stream(batch_size=4096)
    read = {step: inputs(ahead.batch(step)).clone() for step in range(10)}
    assert all(torch.equal(inputs(back.batch(step)), read[step]) for step in reversed(range(10)))


def test_every_step_is_fresh_also_across_the_borders_of_blocks() -> None:
    # Blocks of 4 steps: 3 | 4 and 7 | 8 are borders.
    used = stream(num_inputs=40, batch_size=BLOCK_EXAMPLES // 4)
    firsts = {tuple(inputs(used.batch(step))[0].tolist()) for step in range(9)}
    assert len(firsts) == 9


def test_a_batch_may_be_larger_than_a_block() -> None:
    used = stream(batch_size=BLOCK_EXAMPLES + 1)
    assert inputs(used.batch(1)).shape == (BLOCK_EXAMPLES + 1, 10)
    assert not torch.equal(inputs(used.batch(0)), inputs(used.batch(1)))


def test_a_block_need_not_hold_a_whole_number_of_batches() -> None:
    used = stream(batch_size=10_000)
    assert inputs(used.batch(1)).shape == (10_000, 10)


def test_training_and_evaluation_draw_from_different_streams() -> None:
    training, evaluation = stream(), stream(purpose="evaluation")
    assert not torch.equal(inputs(training.batch(0)), inputs(evaluation.batch(0)))
    assert training.fingerprint != evaluation.fingerprint


def test_the_degree_changes_the_labels_and_not_the_inputs() -> None:
    low, high = stream(degree=2), stream(degree=9)
    assert torch.equal(inputs(low.batch(0)), inputs(high.batch(0)))
    assert labels(low.batch(0)) != labels(high.batch(0))
    assert low.fingerprint != high.fingerprint


def test_the_first_numbers_never_change() -> None:
    batch = stream(num_inputs=6, degree=3, batch_size=4, seed=0).batch(0)
    assert ["".join("+-"[sign < 0] for sign in row) for row in inputs(batch).tolist()] == [
        "+++-+-",
        "++--++",
        "--+---",
        "++---+",
    ]
    assert labels(batch) == [0, 1, 0, 1]


@pytest.mark.parametrize("degree", [0, -1, 11])
def test_the_support_is_neither_empty_nor_larger_than_the_input(degree: int) -> None:
    with pytest.raises(
        SpecError, match=rf"^'degree' must lie between 1 and 'num_inputs' 10; got {degree}$"
    ):
        stream(degree=degree)


@pytest.mark.parametrize(("batch_size", "num_inputs"), [(64 * 10**12, 50), (16, 10**14)])
def test_a_batch_that_no_memory_holds_is_refused(batch_size: int, num_inputs: int) -> None:
    with pytest.raises(BindError, match=r"^a batch of [\d,]+ examples of \d+ bits must fit into"):
        ParityStream(num_inputs=num_inputs, degree=3, batch_size=batch_size, seed=0)
