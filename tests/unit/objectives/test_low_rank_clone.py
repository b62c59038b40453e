"""Low-rank clones in runs: loss and weights in numpy, an ordinary student, exact resuming."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle.errors import BindError
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.adapters import adapter_of
from curricle.objectives.base import Sample
from curricle.objectives.cloned_weights import ClonedWeights
from curricle.records import EvaluationRecord, Record
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.loop.stepping import stepping
from tests.parts import mlp, parity
from tests.unit.least_squares.families import TOKENS, model
from tests.unit.training.binding.test_least_squares_start import texts

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 8, "intermediate_size": 16},
    "bert": {"hidden_size": 8, "intermediate_size": 16, "vocab_size": TOKENS},
    "gpt2": {"n_embd": 8},
}


def bound(student: TappedModel, teacher: TappedModel, **fields: Any) -> BoundRun:
    settings = fields.pop("settings", curricle.TrainingSettings())
    return bind(
        curricle.low_rank_clone(total="5 steps", **fields),
        student=student,
        teacher=LiveTeacher(teacher),
        stream=parity(),
        optimizer=curricle.SGD(learning_rate=0.1),
        settings=settings,
        seed=0,
    )


def taken(run: BoundRun, steps: int = 3) -> tuple[dict[Any, Any], list[float]]:
    """Return the projections after some steps as arrays, and the losses of the clone."""
    stage = run.stages[0]
    optimizer = run.optimizer.build(run.student.module.parameters())
    with stepping(run, stage, optimizer) as stepper:
        losses = [stepper.step(step).terms[0].item() for step in range(steps)]
        adapter = adapter_of(stepper.loss.terms[0].objective)
        assert isinstance(adapter, ClonedWeights)
        arrays = {axis: matrix.detach().numpy().copy() for axis, matrix in adapter.matrices.items()}
    return arrays, losses


def test_after_steps_weights_are_products_in_numpy() -> None:
    student, teacher = mlp(6, 5), mlp(9, 8, seed=1)
    before = {name: weight.clone() for name, weight in student.module.named_parameters()}
    p, _ = taken(bound(student, teacher))
    for number in (0, 1):
        weight, bias = (
            teacher.module.get_parameter(f"blocks.{number}.0.{name}").detach().numpy()
            for name in ("weight", "bias")
        )
        path = f"blocks.{number}.0"
        product = p[path, 0] @ weight @ (p[path, 1].T if number else np.eye(weight.shape[1]))
        actual = student.module.get_parameter(f"{path}.weight")
        np.testing.assert_allclose(actual.detach().numpy(), product, atol=1e-5)
        actual = student.module.get_parameter(f"{path}.bias")
        np.testing.assert_allclose(actual.detach().numpy(), p[path, 0] @ bias, atol=1e-5)
    assert all(
        not torch.equal(weight, before[name]) for name, weight in student.module.named_parameters()
    )


def test_the_selection_keeps_the_channels_of_most_energy() -> None:
    student, teacher = mlp(4), mlp(9, seed=1)
    p, losses = taken(bound(student, teacher), steps=0)
    assert not losses
    with torch.no_grad():
        states = teacher.module.get_submodule("blocks.0")(parity().batch(0).inputs).numpy()
    expected = np.sort(np.argsort(-(states.astype(np.float64) ** 2).sum(0))[:4])
    assert p["blocks.0.0", 0].argmax(1).tolist() == expected.tolist()
    assert p["blocks.0.0", 0].sum() == 4


def test_the_loss_is_the_mean_squared_error_of_the_maps_in_numpy() -> None:
    student, teacher = mlp(4, 3), mlp(9, 8, seed=1)
    run = bound(student, teacher, start="random")
    first, _ = taken(run, steps=0)
    _, losses = taken(run, steps=1)
    inputs = np.asarray(parity().batch(0).inputs, dtype=np.float64)
    t = {name: w.detach().double().numpy() for name, w in teacher.module.named_parameters()}
    p = {axis: matrix.astype(np.float64) for axis, matrix in first.items()}
    state, teacher_state, total = inputs, inputs, 0.0
    for path in ("blocks.0.0", "blocks.1.0"):
        projection = p.get((path, 1), np.eye(inputs.shape[1]))
        weight = p[path, 0] @ t[f"{path}.weight"] @ projection.T
        output = state @ weight.T + p[path, 0] @ t[f"{path}.bias"]
        teacher_output = teacher_state @ t[f"{path}.weight"].T + t[f"{path}.bias"]
        total += float(((output - teacher_output @ p[path, 0].T) ** 2).mean())
        state, teacher_state = np.maximum(output, 0), np.maximum(teacher_output, 0)
    assert losses == [pytest.approx(total, rel=1e-4)]


def test_micro_batches_give_the_same_weights() -> None:
    weights = []
    for parts in (1, 2):
        student = mlp(4)
        settings = curricle.TrainingSettings(gradient_accumulation_steps=parts, max_grad_norm=0.1)
        # Random: channels are selected by the first micro-batch.
        taken(bound(student, mlp(9, seed=1), start="random", settings=settings))
        weights.append(torch.cat([weight.flatten() for weight in student.module.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_the_plan_counts_the_products() -> None:
    flops = [
        bound(mlp(4), mlp(9, seed=1), **fields).plans[0].student_flops
        for fields in ({}, {"start": "random"})
    ]
    one_shot = curricle.plan(
        mlp(4).module, mlp(9, seed=1).module, curricle.one_shot(total="5 steps"), parity()
    )
    assert flops[0] == flops[1] > one_shot.stages[0].student_flops


def run(
    network: nn.Module,
    family: str,
    *,
    folder: Path | None = None,
    fails_at: int | None = None,
    resume: bool = False,
    **fields: Any,
) -> tuple[curricle.Result, Sequence[Record]]:
    """Return a run of six steps and its records; it may fail after a step."""
    records: list[Record] = []

    def observe(record: Record) -> None:
        records.append(record)
        if isinstance(record, EvaluationRecord) and record.usage.steps == fails_at:
            raise RuntimeError("interrupted")

    result = curricle.distill(
        network,
        model(family),
        curricle.low_rank_clone(total="6 steps", **fields),
        texts(),
        evaluation=list(texts(2).batches),
        metric="kl",
        optimizer=curricle.AdamW(learning_rate=3e-3),
        settings=curricle.TrainingSettings(eval_every=2, save_every=2),
        output_dir=folder,
        resume=resume,
        observers=[observe],
    )
    return result, records


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = network.eval()(**texts().batch(0).inputs).logits  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize("family", SMALL)
def test_a_finished_student_is_an_ordinary_module(family: str) -> None:
    network = model(family, seed=1, **SMALL[family])
    names = list(network.state_dict())
    result, records = run(network, family)
    divergences = [entry.metrics["kl"] for entry in records if isinstance(entry, EvaluationRecord)]
    assert result.metrics["kl"] < divergences[0]
    assert list(network.state_dict()) == names
    fresh = model(family, seed=2, **SMALL[family])
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(logits(fresh), logits(network))


def test_a_student_of_the_teachers_size_begins_as_its_teacher() -> None:
    network, teacher = model("llama", seed=1), model("llama")
    run_of_two = bind(
        curricle.low_rank_clone(total="5 steps"),
        student=curricle.tapped(network),
        teacher=LiveTeacher(curricle.tapped(teacher)),
        stream=texts(),
        optimizer=curricle.SGD(learning_rate=0.1),
        settings=curricle.TrainingSettings(),
        seed=0,
    )
    taken(run_of_two, steps=0)
    assert torch.equal(logits(network), logits(teacher))


def test_a_student_whose_weights_are_divided_among_processes_is_refused() -> None:
    message = r"'parallel' must be 'ddp' for LowRankClone, which computes on whole weights of the"
    with pytest.raises(BindError, match=message):
        bind(
            curricle.low_rank_clone(total="5 steps"),
            student=curricle.tapped(model("llama", seed=1)),
            teacher=LiveTeacher(curricle.tapped(model("llama"))),
            stream=texts(),
            optimizer=curricle.SGD(learning_rate=0.1),
            settings=curricle.TrainingSettings(parallel="fsdp2"),
            seed=0,
        )


def test_a_resumed_run_is_bit_equal(tmp_path: Path) -> None:
    networks = [model("llama", seed=1, **SMALL["llama"]) for _ in range(3)]
    whole, _ = run(networks[0], "llama")
    with pytest.raises(RuntimeError, match="interrupted"):
        run(networks[1], "llama", folder=tmp_path / "run", fails_at=4)
    resumed, _ = run(networks[2], "llama", folder=tmp_path / "run", resume=True)
    for name, weight in whole.student.state_dict().items():
        assert torch.equal(weight, resumed.student.state_dict()[name]), name
    assert resumed.metrics == whole.metrics


def test_tied_tables_with_fewer_blocks_stay_tied() -> None:
    fields = {**SMALL["llama"], "num_hidden_layers": 1, "tie_word_embeddings": True}
    network = model("llama", seed=1, **fields)
    run(network, "llama", start="random")
    assert network.get_parameter("lm_head.weight") is network.get_parameter(
        "model.embed_tokens.weight"
    )


def test_models_of_another_architecture_are_refused() -> None:
    with pytest.raises(BindError, match="needs a student of the teacher's architecture"):
        run(model("gpt2", seed=1, n_embd=8), "llama")


def test_models_without_blocks_are_refused() -> None:
    student, teacher = (
        curricle.tapped(mlp(width).module.get_submodule("head")) for width in (3, 5)
    )
    objective = curricle.LowRankClone()
    with pytest.raises(BindError, match="linear maps in numbered blocks; got Linear"):
        objective.reads(student, teacher)


def test_stored_targets_are_refused(tmp_path: Path) -> None:
    teacher, one_shot = mlp(9, seed=1), curricle.one_shot(total="5 steps")
    curricle.capture_targets(
        mlp(4).module, teacher.module, one_shot, parity(), folder=tmp_path / "targets"
    )
    targets = curricle.open_targets(tmp_path / "targets")
    clone = curricle.low_rank_clone(total="5 steps")
    with pytest.raises(BindError, match="needs a teacher with weights; got stored targets"):
        curricle.plan(mlp(4).module, targets, clone, parity())


def test_data_of_two_tokenizers_are_refused() -> None:
    student, teacher = mlp(4), mlp(9, seed=1)
    objective, ids = curricle.LowRankClone(), torch.zeros(2, 3, dtype=torch.int64)
    batch = curricle.Batch(inputs=ids, teacher_inputs=ids, alignment=ids)
    sample = Sample(batch=batch, student=Activations({}), teacher=Activations({}), seed=0)
    with pytest.raises(BindError, match="the data pair two tokenizers"):
        objective.bind(objective.reads(student, teacher), sample, is_residual=False)
