"""Faults that systems for distillation often have: the right values, by loops of plain torch.

Faults that take several processes to show, as in gradients and counts of tokens over ranks, are not
here.
"""

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional

import curricle
from curricle import seeding
from curricle.errors import BindError, CheckpointError, CurricleError
from curricle.objectives.projections import Identity
from tests.cases.steps import divergence, loader, losses, louder
from tests.parts import Listed, drawn

RATE = 0.1
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}


def decoder(family: str, seed: int = 0, **fields: Any) -> Any:
    config = getattr(hf, f"{family}Config")(**(SIZES | {"vocab_size": 20} | fields))
    with seeding.scoped(seed, "test model"):
        return louder(getattr(hf, f"{family}ForCausalLM")(config))


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 20, shape, generator=torch.Generator().manual_seed(seed))


def ragged(num_examples: int, length: int = 6) -> tuple[Tensor, Tensor]:
    """Return texts, and labels of the next tokens, of which some examples have few or none."""
    tokens = ids(num_examples, length)
    labels = torch.cat([tokens[:, 1:], torch.full((num_examples, 1), -100)], 1)
    for number in range(num_examples):
        labels[number, : 2 * number] = -100
    return tokens, labels


def batch_of(tokens: Tensor, labels: Tensor) -> curricle.Batch:
    selected = (labels != -100).flatten().nonzero().squeeze(1)
    return curricle.Batch(
        inputs={"input_ids": tokens}, labels=labels.flatten()[selected], selected=selected
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def trained_by_hand(
    student: nn.Module, loss_of: Callable[[int], Tensor], steps: int
) -> tuple[list[float], dict[str, Tensor]]:
    """Return losses and weights of plain gradient descent."""
    optimizer, found = torch.optim.SGD(student.parameters(), lr=RATE), list[float]()
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, weights(student)


def check_weights(found: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(weights(found), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_is_a_mean_over_the_labels_of_the_step_however_it_is_cut(parts: int) -> None:
    """A mean of means weighs parts with few labels as those with many; the last has none at all."""
    tokens, labels = ragged(4)
    assert not (labels[3] != -100).any()
    student, teacher = decoder("Llama"), decoder("Llama", 1)
    by_hand = copy.deepcopy(student)
    rows = labels != -100

    def loss(_: int) -> Tensor:
        logits = by_hand(input_ids=tokens).logits
        with torch.no_grad():
            target = teacher(input_ids=tokens).logits
        nll = functional.cross_entropy(logits[rows], labels[rows])
        return divergence(logits, target)[rows].mean() + 0.5 * nll

    expected, moved = trained_by_hand(by_hand, loss, 2)
    stage = curricle.Stage(
        name="both", duration="2 steps",
        objectives=(curricle.MatchLogits(), curricle.LabelLoss(weight=0.5)),
    )  # fmt: skip
    records: list[Any] = []
    curricle.distill(
        student, teacher, curricle.Curriculum(name="both", stages=(stage,)),
        Listed(batch_of(tokens, labels)), evaluation=lambda _: {"accuracy": 0.0},
        optimizer=curricle.SGD(learning_rate=RATE), observers=[records.append],
        settings=curricle.TrainingSettings(
            device="cpu", log_every=1, gradient_accumulation_steps=parts
        ),
    )  # fmt: skip
    found = [record.loss for record in records if record.kind == "step"]
    assert found == pytest.approx(expected, rel=1e-4)
    check_weights(student, moved)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", {}),
    "soft cap": ("Gemma2", {"head_dim": 4, "final_logit_softcapping": 2.0}),
    "scale": ("Cohere", {"logit_scale": 0.25}),
    "divisor": ("Granite", {"logits_scaling": 4.0}),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_in_chunks_are_those_of_the_formula(name: str, temperature: float) -> None:
    """Fast paths tend to forget the temperature, the weight of labels, or a cap of the logits."""
    family, fields = FAMILIES[name]
    student, teacher = decoder(family, **fields), decoder(family, 1, **fields)
    by_hand = copy.deepcopy(student)
    tokens, labels = ragged(3)
    rows = labels != -100

    def loss(_: int) -> Tensor:
        logits = by_hand(input_ids=tokens).logits
        with torch.no_grad():
            target = teacher(input_ids=tokens).logits / temperature
        soft = divergence(logits / temperature, target)[rows].mean() * temperature**2
        return soft + 0.5 * functional.cross_entropy(logits[rows], labels[rows])

    expected, moved = trained_by_hand(by_hand, loss, 2)
    match = curricle.MatchLogits(
        chunk=4, student_temperature=temperature, teacher_temperature=temperature,
        scale="temperature_squared",
    )  # fmt: skip
    stage = curricle.Stage(
        name="both", duration="2 steps",
        objectives=(match, curricle.LabelLoss(weight=0.5, chunk=4)),
    )  # fmt: skip
    records: list[Any] = []
    curricle.distill(
        student, teacher, curricle.Curriculum(name="both", stages=(stage,)),
        Listed(batch_of(tokens, labels)), evaluation=lambda _: {"accuracy": 0.0},
        optimizer=curricle.SGD(learning_rate=RATE), observers=[records.append],
        settings=curricle.TrainingSettings(device="cpu", log_every=1),
    )  # fmt: skip
    found = [record.loss for record in records if record.kind == "step"]
    assert found == pytest.approx(expected, rel=1e-4)
    check_weights(student, moved)
    # Chunks leave no gradient on the teacher.
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("chunk", [None, 4])
def test_padding_of_a_vocabulary_takes_no_probability_on_either_side(chunk: int | None) -> None:
    """Vocabularies padded to 20 and 24 have 18 tokens in common; what is padding may be large."""
    student, teacher = decoder("Llama"), decoder("Llama", 1, vocab_size=24)
    for model in (student, teacher):
        model.lm_head.weight.data[18:] *= 50
    tokens = ids(4, 6)
    data = Listed(curricle.Batch(inputs={"input_ids": tokens.clamp_max(17)}))
    with torch.no_grad():
        logits = [m(input_ids=tokens.clamp_max(17)).logits[..., :18] for m in (student, teacher)]
    expected = divergence(*logits).mean().item()
    objective = curricle.MatchLogits(num_classes=18, chunk=chunk)
    assert losses(student, teacher, data, objective) == pytest.approx([expected], rel=1e-4)
    with pytest.raises(BindError, match=r"20.*24"):
        losses(student, teacher, data, curricle.MatchLogits(chunk=chunk))


def test_an_end_token_that_also_pads_is_learned_where_it_ends_a_text(tmp_path: Path) -> None:
    """The mask, and not the id, decides what is padding, for live and for stored targets alike."""
    end, tokens = 2, ids(4, 6)
    mask = torch.ones(4, 6, dtype=torch.int64)
    tokens[:, 3], mask[:, 4:] = end, 0
    tokens[:, 4:] = end
    rows = [
        {"input_ids": a, "attention_mask": b, "labels": a}
        for a, b in zip(tokens, mask, strict=True)
    ]
    data = curricle.stream(loader(rows), next_token=True)
    batch = data.batch(0)
    assert batch.labels is not None
    assert batch.labels.tolist() == tokens[:, 1:4].flatten().tolist()
    student, teacher = (decoder("Llama", seed, pad_token_id=end) for seed in (0, 1))
    with torch.no_grad():
        logits = [
            m(input_ids=tokens, attention_mask=mask).logits[:, :3] for m in (student, teacher)
        ]
    expected = [
        divergence(*logits).mean().item(),
        functional.cross_entropy(logits[0].flatten(0, 1), tokens[:, 1:4].flatten()).item(),
    ]
    objectives = curricle.MatchLogits(), curricle.LabelLoss()
    assert losses(student, teacher, data, *objectives) == pytest.approx(expected, rel=1e-4)
    curricle.capture_targets(
        student, teacher, curricle.one_shot(total="1 steps"), data, folder=tmp_path,
        compression=curricle.TargetCompression(logits={"kind": "float32"}),  # type: ignore[arg-type]
    )  # fmt: skip
    stored = losses(student, curricle.open_targets(tmp_path), data, objectives[0])
    assert stored == pytest.approx(expected[:1], rel=1e-4)


def test_a_student_equal_to_its_teacher_reports_zero_for_every_objective() -> None:
    """A cross-entropy against the teacher would report its entropy instead."""
    teacher = decoder("Llama")
    data = Listed(batch_of(*ragged(4)))
    objectives = [
        curricle.MatchLogits(divergence={"kind": kind})  # type: ignore[arg-type]
        for kind in ("forward_kl", "reverse_kl", "jsd", "total_variation", "squared_error")
    ]
    found = losses(
        copy.deepcopy(teacher), teacher, data, *objectives, curricle.MatchLogits(chunk=2)
    )
    assert found == pytest.approx([0.0] * 6, abs=1e-6)


def test_a_student_can_be_copied_and_pickled_after_its_stages() -> None:
    """Hooks that stay behind, or modules replaced by local classes, break both."""
    with seeding.scoped(0, "test model"):
        student = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        teacher = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    names = list(student.state_dict())
    pair = curricle.LayerPair(student="1", teacher="1")
    losses(
        student, teacher, curricle.stream(loader(list(drawn(4, 6)))),
        curricle.MatchHidden(pair=pair), curricle.MatchLogits(),
    )  # fmt: skip
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    for copied in (copy.deepcopy(student), torch.load(file, weights_only=False)):  # noqa: TID251
        assert torch.equal(copied(drawn(4, 6)), student(drawn(4, 6)))
        assert list(copied.state_dict()) == names
    hooks = [
        hook
        for module in (*student.modules(), *teacher.modules())
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]
    assert hooks == []


class Recomputed(nn.Module):
    """A block that runs again in the backward pass, and is called twice; it returns a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.front, self.block = nn.Linear(6, width), nn.Linear(width, width)
        self.wrapped, self.head = Pair(self.block), nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.front(inputs)
        for _ in range(2):
            state, _ = torch.utils.checkpoint.checkpoint(self.wrapped, state, use_reentrant=False)
        logits: Tensor = self.head(state)
        return logits


class Pair(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(state).tanh(), state


@pytest.mark.parametrize("call", [0, 1])
def test_a_block_that_runs_again_in_the_backward_pass_counts_once(call: int) -> None:
    """Activation checkpoints fire hooks twice, by which a state would be of another call."""
    with seeding.scoped(0, "test model"):
        student, teacher = Recomputed(4), Recomputed(4)
    by_hand, inputs = copy.deepcopy(student), drawn(4, 6)

    def state(model: Recomputed) -> Tensor:
        found: Tensor = model.front(inputs)
        for _ in range(call + 1):
            found = model.block(found).tanh()
        return found

    def loss(_: int) -> Tensor:
        return (state(by_hand) - state(teacher).detach()).square().mean()

    expected, moved = trained_by_hand(by_hand, loss, 3)
    path = f"wrapped#{call}" if call else "wrapped"
    objective = curricle.MatchHidden(
        pair=curricle.LayerPair(student=path, teacher=path),
        projection=Identity(), normalize="none",
    )  # fmt: skip
    data = curricle.stream(loader(list(inputs)))
    found = losses(
        student, teacher, data, objective, steps=3, optimizer=curricle.SGD(learning_rate=RATE)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    check_weights(student, moved)


def test_labels_of_prompts_and_padding_are_not_fitted() -> None:
    """A term on labels that also counts ignored ones has another mean, and teaches the prompt."""
    tokens, labels = ragged(4)
    student = decoder("Llama")
    rows = [{"input_ids": a, "labels": b} for a, b in zip(tokens, labels, strict=True)]
    with torch.no_grad():
        logits = student(input_ids=tokens).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    data = curricle.stream(loader(rows))
    assert losses(student, None, data, curricle.LabelLoss()) == pytest.approx([expected], rel=1e-4)


def test_checkpoints_of_a_teacher_give_targets_of_their_own_and_none_is_skipped(
    tmp_path: Path,
) -> None:
    """A stale target of an earlier checkpoint, or the last one in its place, goes unnoticed."""
    teachers = [decoder("Llama", seed) for seed in (1, 2)]
    for step, teacher in zip((10, 20), teachers, strict=True):
        teacher.save_pretrained(tmp_path / f"checkpoint-{step}")
    folders = [tmp_path / f"checkpoint-{step}" for step in (10, 20)]
    trajectory = curricle.hugging_face_trajectory(folders)
    tokens, student = ids(4, 6), decoder("Llama")
    with torch.no_grad():
        expected = [
            divergence(student(input_ids=tokens).logits, teacher(input_ids=tokens).logits)
            .mean()
            .item()
            for teacher in teachers
        ]

    def run(path: Any) -> list[float]:
        records: list[Any] = []
        curricle.distill(
            student, teachers[1], curricle.progressive(total="2 steps", trajectory=path),
            Listed(curricle.Batch(inputs={"input_ids": tokens})), trajectory=path,
            evaluation=lambda _: {"accuracy": 0.0}, observers=[records.append],
            optimizer=curricle.SGD(learning_rate=1e-12),
            settings=curricle.TrainingSettings(device="cpu", log_every=1),
        )  # fmt: skip
        return [record.loss for record in records if record.kind == "step"]

    assert run(trajectory) == pytest.approx(expected, rel=1e-4)
    (tmp_path / "checkpoint-10" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-10"):
        run(trajectory)


@pytest.mark.parametrize("depths", [(1, 1), (1, 3), (3, 1)], ids=["one", "deeper", "shallower"])
def test_any_depth_of_student_and_teacher_is_taught_at_the_pairs_that_are_named(
    depths: Sequence[int],
) -> None:
    """Maps of layers made by division fail for one layer, or for a student that is deeper."""
    student, teacher = (
        decoder("Llama", seed, num_hidden_layers=depth) for seed, depth in enumerate(depths)
    )
    tokens = ids(4, 6)
    with torch.no_grad():
        states = [
            layer_states(m, tokens, depth)
            for m, depth in zip((student, teacher), depths, strict=True)
        ]
    expected = (states[0] - states[1]).square().mean().item()
    pair = curricle.LayerPair(student=depths[0], teacher=depths[1])
    objective = curricle.MatchHidden(pair=pair, projection=Identity(), normalize="none")
    data = Listed(curricle.Batch(inputs={"input_ids": tokens}))
    assert losses(student, teacher, data, objective) == pytest.approx([expected], rel=1e-4)


def layer_states(model: Any, tokens: Tensor, depth: int) -> Tensor:
    """Return the output of a block, before the norm that follows the last."""
    states: list[Tensor] = []
    block = model.model.layers[depth - 1]
    handle = block.register_forward_hook(
        lambda _, __, output: states.append(output if isinstance(output, Tensor) else output[0])
    )
    model(input_ids=tokens)
    handle.remove()
    return states[0]


def test_batches_of_other_lengths_have_their_own_means() -> None:
    """The second batch is longer, and the third has no label at all: its loss is 0 and not NaN."""
    batches = [batch_of(*ragged(3, length)) for length in (6, 9)]
    tokens = ids(3, 6)
    empty = batch_of(tokens, torch.full((3, 6), -100))
    student, teacher = decoder("Llama"), decoder("Llama", 1)
    expected = []
    for length in (6, 9):
        tokens, labels = ragged(3, length)
        with torch.no_grad():
            logits = [m(input_ids=tokens).logits for m in (student, teacher)]
        expected.append(divergence(*logits)[labels != -100].mean().item())
    found = losses(student, teacher, Listed(*batches, empty), curricle.MatchLogits(), steps=3)
    assert found == pytest.approx([*expected, 0.0], rel=1e-4)
    with pytest.raises(CurricleError):
        curricle.Stage(name="empty", duration="0 steps", objectives=(curricle.MatchLogits(),))
