"""Runs whose results depend on no device, group or way of saving; on a GPU as well if there is one.

The group is one of a single process, with the backends that curricle chooses for the device.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import curricle
from curricle import seeding
from curricle.models.hooked import HookedModel
from curricle.records import Record, RecoveryRecord, StepRecord
from tests.parts import single_process
from tests.runs import contents

pytestmark = pytest.mark.integration
INPUTS, STEPS = 20, 24
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def group(device: str, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Open a group of this process, and return the settings of its runs."""
    with single_process(device, tmp_path / "store") as settings:
        yield settings


def network(*widths: int) -> HookedModel:
    """Return a network whose head is named, so that its logits can be made in chunks."""
    with seeding.scoped(0, f"widths {widths}"):
        model = curricle.MLP(INPUTS, widths, 2)
    blocks = [f"blocks.{index}" for index in range(len(widths))]
    return HookedModel(model, blocks=blocks, head="head")


def trained(
    device: str,
    *,
    student: HookedModel | None = None,
    curriculum: curricle.Curriculum | None = None,
    batch_size: int = 16,
    **arguments: Any,
) -> dict[str, Tensor]:
    """Return the weights of a student of two layers after 24 steps, but for what is given."""
    student = student or network(12, 10)
    data = curricle.ParityStream(num_inputs=INPUTS, degree=2, batch_size=batch_size, seed=0)
    held_out = curricle.ParityStream(num_inputs=INPUTS, degree=2, batch_size=16, seed=1)
    names = {"folder": "output_dir", "observers": "observers", "resume": "resume"}
    call = {name: arguments.pop(key) for key, name in names.items() if key in arguments}
    settings: dict[str, Any] = {"log_every": 1, "eval_every": STEPS, "max_grad_norm": 1.0}
    settings |= {"device": device, **arguments}
    curricle.distill(
        student,
        network(32, 24),
        curriculum or curricle.extraction(total=f"{STEPS} steps", pairs=2, layer_fraction=0.5),
        data,
        evaluation=[held_out.batch(0)],
        optimizer=curricle.AdamW(learning_rate=1e-3),
        settings=curricle.TrainingSettings(**settings),
        progress=False,
        **call,
    )
    assert next(student.module.parameters()).device.type == device
    return {name: tensor.clone() for name, tensor in student.module.state_dict().items()}


def killing_at(step: int) -> Callable[[Record], None]:
    """Return an observer that ends the run after a step."""

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == step:
            raise RuntimeError("killed")

    return observe


# The bits may differ by the formula of the norm by which gradients are clipped.
@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_group_of_one_process_has_the_weights_of_no_group(
    device: str, group: dict[str, Any], parallel: str, chunk: int | None
) -> None:
    curriculum = curricle.extraction(
        total=f"{STEPS} steps", pairs=2, final_objective=curricle.MatchLogits(chunk=chunk)
    )
    expected = trained(device, curriculum=curriculum)
    weights = trained(device, curriculum=curriculum, parallel=parallel, **group)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parallel", ["none", "ddp", "fsdp2"])
def test_a_run_saved_in_the_background_resumes_to_the_same_bits(
    device: str, group: dict[str, Any], parallel: str, tmp_path: Path
) -> None:
    every: dict[str, Any] = {"save_every": 5, "keep_checkpoints": 9}
    if parallel != "none":
        every |= {"parallel": parallel, **group}
    within, ahead = tmp_path / "within", tmp_path / "ahead"
    expected = trained(device, folder=within, **every)
    with pytest.raises(RuntimeError, match="killed"):
        trained(device, folder=ahead, observers=[killing_at(13)], async_save=True, **every)
    assert len(list((ahead / "checkpoints").glob("step-*"))) == 2
    weights = trained(device, folder=ahead, resume=True, async_save=True, **every)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert contents(ahead, "*.safetensors") == contents(within, "*.safetensors")


def peak_memory() -> int:
    """Return the most memory that tensors have taken since the last call."""
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


@needs_gpu
def test_a_gpu_without_memory_for_a_batch_takes_it_in_halves() -> None:
    records: list[Record] = []

    def wide(**settings: Any) -> dict[str, Tensor]:
        return trained(
            "cuda",
            student=network(*[1024] * 8),
            curriculum=curricle.from_labels(total="4 steps"),
            batch_size=2**16,
            eval_every=4,
            observers=[records.append],
            **settings,
        )

    peak_memory()
    expected = wide(gradient_accumulation_steps=2)
    half = peak_memory()
    wide()
    whole = peak_memory()
    # Activations of eight layers, 256 MiB each, and half of them.
    assert whole > 1.4 * half
    records.clear()
    fraction = (whole + half) / 2 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        weights = wide(on_out_of_memory="halve")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (record,) = [record for record in records if isinstance(record, RecoveryRecord)]
    assert record.action == "went on with 2 micro-batches"
    assert "CUDA out of memory" in record.fault
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
