"""The same run on a GPU; skipped where there is none, as in CI."""

from typing import Literal

import pytest
import torch

import curricle
from curricle import seeding
from curricle.models.mlp import MLP

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def network(width: int, purpose: str) -> MLP:
    with seeding.scoped(0, purpose):
        return MLP(20, (width,), 2)


@pytest.mark.parametrize("prefetch", ["none", "batch", "targets"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_learns_on_a_gpu(
    precision: Literal["float32", "bfloat16"], prefetch: Literal["none", "batch", "targets"]
) -> None:
    data = curricle.ParityStream(num_inputs=20, degree=2, batch_size=64, seed=0)
    result = curricle.distill(
        network(16, "student"),
        network(32, "teacher"),
        curricle.extraction(total=curricle.Duration(number=40)),
        data,
        evaluation=[data.batch(1000)],
        optimizer=curricle.SGD(learning_rate=0.1),
        settings=curricle.EngineSettings(device="cuda", precision=precision, prefetch=prefetch),
    )
    assert next(result.student.parameters()).is_cuda
    assert result.metrics["nll"] < 1
