"""The same run on a GPU; skipped where there is none, as in CI."""

from typing import Any

import pytest
import torch
from torch import nn

import curricle
from curricle import seeding
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def network(width: int, purpose: str) -> MLP:
    with seeding.scoped(0, purpose):
        return MLP(20, (width,), 2)


def with_head(model: MLP) -> HookedModel:
    """Return a network that can make its logits in chunks, for which its head is named."""
    return HookedModel(model, blocks=["blocks.0"], head="head")


DATA = curricle.ParityStream(num_inputs=20, degree=2, batch_size=64, seed=0)


def distilled(
    curriculum: curricle.Curriculum,
    width: int,
    *,
    teacher: nn.Module | HookedModel | None = None,
    **settings: Any,
) -> curricle.Result:
    """Return a student that was trained on the GPU, and how it did."""
    return curricle.distill(
        with_head(network(width, f"width {width}")),
        teacher,
        curriculum,
        DATA,
        evaluation=[DATA.batch(10**6)],
        optimizer=curricle.SGD(learning_rate=0.3),
        settings=curricle.TrainingSettings(device="cuda", **settings),
    )


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return distilled(curricle.from_labels(total="2k steps"), 64).student


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_learns_on_a_gpu(teacher: nn.Module, precision: str) -> None:
    curriculum = curricle.extraction(total="600 steps")
    result = distilled(curriculum, 32, teacher=teacher, precision=precision)
    assert next(result.student.parameters()).is_cuda
    assert result.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("prefetch", ["batch", "targets"])
def test_a_second_thread_and_stream_change_nothing(prefetch: str, chunk: int | None) -> None:
    wide = with_head(network(20_000, "a teacher that takes longer than a step of the student"))
    curriculum = curricle.extraction(
        total="200 steps", final_objective=curricle.MatchLogits(chunk=chunk)
    )
    plain, ahead = (
        distilled(curriculum, 32, teacher=wide, prefetch=chosen) for chosen in ("none", prefetch)
    )
    pairs = zip(plain.student.parameters(), ahead.student.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
