"""The same run on a GPU; skipped where there is none, as in CI."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.colocation import copied_to_host
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import bind
from curricle.training.loop.stepping import stepping
from curricle.training.setup.placement import SingleDevice
from tests.parts import single_process

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


class PaddedTokens:
    """Stream of padded sequences with labels at some positions."""

    batch_size, tokens_per_batch, fingerprint = 8, 8 * 16, "padded tokens"

    def batch(self, step: int) -> curricle.Batch:
        generator = seeding.generator(0, "padded tokens", step)
        ids = torch.randint(1, 50, (8, 16), generator=generator)
        valid = torch.arange(16) < torch.randint(8, 17, (8, 1), generator=generator)
        selected = (valid & (ids % 3 == 0)).flatten().nonzero().squeeze(1)
        return curricle.Batch(
            inputs={"input_ids": ids, "attention_mask": valid.long()},
            labels=ids.flatten()[selected],
            selected=selected,
            valid=valid,
        )


class Tokens(nn.Module):
    """A model of tokens, which leaves the mask alone: that of transformers waits for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 50)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        states: Tensor = self.embedding(input_ids)
        for block in self.blocks:
            states = block(states).relu()
        logits: Tensor = self.head(states)
        return logits


@pytest.mark.parametrize("parallel", ["none", "ddp"])
@pytest.mark.parametrize("prefetch", ["none", "batch", "targets"])
def test_no_step_waits_for_the_gpu(prefetch: Any, parallel: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        fields: dict[str, Any] = {"prefetch": prefetch, "parallel": parallel}
        if parallel != "none":
            fields |= stack.enter_context(single_process("cuda", tmp_path / "store"))
        check_no_waits(curricle.TrainingSettings(device="cuda", max_grad_norm=1.0, **fields))


def check_no_waits(settings: curricle.TrainingSettings) -> None:
    """Check that steps of all stages of extraction do not wait for the GPU."""
    models = []
    for width in (8, 16):
        with seeding.scoped(0, f"width {width}"):
            models.append(HookedModel(Tokens(width), blocks=["blocks.0", "blocks.1"], head="head"))
    run = bind(
        curricle.extraction(total="40 steps", layer_fraction=0.5),
        student=models[0],
        teacher=LiveTeacher(models[1]),
        stream=PaddedTokens(),
        optimizer=curricle.AdamW(learning_rate=1e-3),
        settings=settings,
        seed=0,
    )
    optimizer = run.optimizer.build(run.student.module.parameters())
    for stage in run.stages:
        with stepping(run, stage, optimizer) as stepper:
            # The wrapper of several processes arranges gradients anew in its second pass.
            first = stepper.start + 3
            for step in range(stepper.start, first):
                stepper.take(step, stage.span.end)
            with warnings.catch_warnings():
                # Torch says that the mode is a prototype.
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("error")
            try:
                for step in range(first, first + 5):
                    stepper.take(step, stage.span.end)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "view",
    [
        lambda images: images,
        lambda images: images[:, :1].expand(2, 3, 4, 4),
        lambda images: images.transpose(2, 3),
        lambda images: images[:, 1],
    ],
    ids=["dense", "expanded", "transposed", "strided"],
)
def test_a_batch_arrives_as_it_was_when_it_was_sent(view: Callable[[Tensor], Tensor]) -> None:
    images = torch.arange(2.0 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    expected = view(images).clone()
    torch.cuda._sleep(10**8)
    moved = SingleDevice("cuda").part_of(curricle.Batch(inputs=view(images))).leading
    images.zero_()
    assert torch.equal(moved.cpu(), expected)
    assert moved.stride() == expected.stride()


def test_copies_to_the_host_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, wait = [], torch.cuda.synchronize

    def counted(device: torch.device) -> None:
        waits.append(device)
        wait(device)

    monkeypatch.setattr(torch.cuda, "synchronize", counted)
    monkeypatch.setattr("curricle.colocation.MOST_PINNED_BYTES", 2**20)
    expected = {
        "matrix": torch.arange(12.0).view(3, 4).T,
        "integers": torch.arange(1000),
        "scalar": torch.tensor(2.0, dtype=torch.bfloat16),
        "large": torch.ones(2**20),
    }
    tensors = {name: tensor.to("cuda") for name, tensor in expected.items()}
    torch.cuda._sleep(10**8)
    # Freed right after it was read, while its copy is still queued.
    copies = copied_to_host((name, tensor * 1) for name, tensor in tensors.items())
    assert len(waits) == 1
    assert [copy.is_pinned() for copy in copies.values()] == [True, True, True, False]
    assert all(copy.is_contiguous() for copy in copies.values())
    assert all(torch.equal(copies[name], tensor) for name, tensor in expected.items())
