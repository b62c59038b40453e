"""A student of the teacher's size becomes the teacher; a smaller one comes nearer to it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.least_squares.fitting import CalibrationBatch, fit, inspect
from curricle.models.stacks import block_ends
from curricle.models.wrapping import tapped
from tests.unit.least_squares import families
from tests.unit.least_squares.families import FAMILIES, model

pytest.importorskip("transformers")


def calibration(family: str, number: int = 6) -> list[CalibrationBatch]:
    batches = [families.inputs(family, seed) for seed in range(number)]
    return [CalibrationBatch(student=batch, teacher=batch) for batch in batches]


def error(family: str, student: nn.Module, teacher: nn.Module) -> float:
    """Return the error of logits, up to a constant at each position, relative to the teacher's."""
    batch = families.inputs(family, 99)
    pair = [families.logits(network, batch) for network in (student, teacher)]
    first, second = (one - one.mean(-1, keepdim=True) for one in pair)
    return float((first - second).square().sum() / second.square().sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_as_large_as_its_teacher_becomes_its_teacher(family: str) -> None:
    teacher, student = model(family), model(family, seed=1)
    batches = calibration(family)
    # One batch has fewer positions than the maps have inputs.
    assert inspect(tapped(student), tapped(teacher), batches[0]) == ((16, 16), (), ())
    assert fit(tapped(student), tapped(teacher), batches[:1]) == ()
    batch = families.inputs(family, 99)
    torch.testing.assert_close(
        families.logits(student, batch), families.logits(teacher, batch), rtol=0, atol=1e-4
    )


NARROW: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 8, "intermediate_size": 16, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 8},
    "bert": {"hidden_size": 8, "intermediate_size": 16},
    "bert_classifier": {"hidden_size": 8, "intermediate_size": 16},
    "modernbert": {"hidden_size": 8, "intermediate_size": 16},
    "distilbert": {"dim": 8, "hidden_dim": 16},
    "vit": {"hidden_size": 8, "intermediate_size": 16},
    "gpt_neox": {"hidden_size": 8, "intermediate_size": 16},
}
SHALLOW = {
    "llama": {"num_hidden_layers": 1},
    "gpt2": {"n_layer": 1},
    "bert": {"num_hidden_layers": 1},
    "modernbert": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize(
    ("family", "fields"),
    [*NARROW.items(), *SHALLOW.items()],
    ids=[*(f"{name}-narrow" for name in NARROW), *(f"{name}-shallow" for name in SHALLOW)],
)
def test_a_smaller_student_comes_nearer_to_its_teacher(family: str, fields: dict[str, Any]) -> None:
    teacher = model(family)
    student, drawn = (model(family, seed=1, **fields) for _ in range(2))
    assert fit(tapped(student), tapped(teacher), calibration(family)) == ()
    assert error(family, student, teacher) < 0.9 * error(family, drawn, teacher)
    assert error(family, student, teacher) < 1


def test_fewer_heads_than_the_teacher_are_fitted() -> None:
    teacher = model("bert")
    student = model("bert", seed=1, hidden_size=8, num_attention_heads=1)
    assert fit(tapped(student), tapped(teacher), calibration("bert")) == ()
    assert error("bert", student, teacher) < 1


def test_padding_changes_nothing() -> None:
    teacher = model("bert")
    batch = families.inputs("bert", 0)
    assert isinstance(batch, dict)
    students = []
    for padding in (5, 6):
        counted = torch.ones(8, families.LENGTH, dtype=torch.bool)
        counted[:, -3:] = False
        ids = batch["input_ids"].clone()
        # What stands at padded positions is masked, and its states do not count.
        ids[:, -3:] = padding
        padded: dict[str, Tensor] = {"input_ids": ids, "attention_mask": counted.long()}
        student = model("bert", seed=1, hidden_size=8)
        entry = CalibrationBatch(student=padded, teacher=padded, counted=counted)
        fit(tapped(student), tapped(teacher), [entry])
        students.append(student)
    for first, second in zip(*(network.parameters() for network in students), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_padding_may_come_before_the_tokens() -> None:
    teacher, student = model("llama"), model("llama", seed=1)
    batches = []
    for entry in calibration("llama"):
        inputs = entry.student
        assert isinstance(inputs, dict)
        counted = torch.ones(8, families.LENGTH, dtype=torch.bool)
        counted[:, :6] = False
        counted[1, 2:] = True
        padded = {**inputs, "attention_mask": counted.long()}
        batches.append(CalibrationBatch(student=padded, teacher=padded, counted=counted))
    assert fit(tapped(student), tapped(teacher), batches) == ()
    assert error("llama", student, teacher) < 1e-6


def test_sequences_too_short_to_show_attention_are_a_reason() -> None:
    ids = {"input_ids": torch.full((4, 2), 5)}
    batch = CalibrationBatch(student=ids, teacher=ids)
    left = fit(tapped(model("bert", seed=1)), tapped(model("bert")), [batch])
    assert left == ("all blocks: its sequences have fewer than 3 positions",)


def test_a_teacher_in_bfloat16_is_read_in_its_precision() -> None:
    teacher, student = model("llama"), model("llama", seed=1)
    rounded = model("llama").bfloat16()
    assert fit(tapped(student), tapped(rounded), calibration("llama")) == ()
    assert error("llama", student, teacher) < 0.01


def test_modes_are_those_from_before() -> None:
    teacher, student = model("bert"), model("bert", seed=1).train()
    fit(tapped(student), tapped(teacher), calibration("bert", 1))
    assert student.training
    assert not teacher.training


def test_blocks_run_a_fixed_number_of_times_for_each_batch() -> None:
    counts: dict[int, dict[str, int]] = {}
    for number in (30, 40):
        count = counts[number] = {"student": 0, "teacher": 0}
        models = {
            "teacher": model("llama"),
            "student": model("llama", seed=1, hidden_size=8, intermediate_size=16),
        }

        def counting(role: str, count: dict[str, int]) -> Any:
            def add(*_: object) -> None:
                count[role] += 1

            return add

        for role, network in models.items():
            attention = network.get_submodule("model.layers.0.self_attn.q_proj")
            attention.register_forward_hook(counting(role, count))
        fit(tapped(models["student"]), tapped(models["teacher"]), calibration("llama", number))
    growth = {role: (counts[40][role] - counts[30][role]) / 10 for role in ("student", "teacher")}
    # A student's maps that read run until the map that writes: after attention, after neurons.
    assert growth == {"student": 2, "teacher": 1}


def test_inputs_that_depend_on_each_other_are_no_obstacle() -> None:
    teacher, student = model("llama"), model("llama", seed=1, hidden_size=8, intermediate_size=16)
    # Two equal channels everywhere, and one that is always zero.
    with torch.no_grad():
        table = teacher.get_parameter("model.embed_tokens.weight")
        table[:, 1], table[:, 2] = table[:, 0], 0
    one_token = {"input_ids": torch.full((8, families.LENGTH), 7)}
    batches = [CalibrationBatch(student=one_token, teacher=one_token)]
    assert fit(tapped(student), tapped(teacher), batches) == ()
    assert all(bool(weight.isfinite().all()) for weight in student.parameters())


class Opaque(nn.Module):
    """Block that writes twice what its map returns."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, states: Tensor) -> Tensor:
        changed: Tensor = states + 2 * self.down(self.up(self.norm(states)).relu())
        return changed


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(20, 8), nn.ModuleList(blocks)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.embedding(ids)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(states)
        return logits


def test_a_block_that_is_not_understood_is_left_and_named() -> None:
    student, teacher = (
        tapped(Stack(Opaque(), Opaque()).eval(), blocks=["blocks.0", "blocks.1"]) for _ in range(2)
    )
    ids = torch.arange(20).view(2, 10)
    batch = CalibrationBatch(student=ids, teacher=ids)
    before = [weight.clone() for weight in student.module.get_submodule("blocks").parameters()]
    left = fit(student, teacher, [batch])
    assert left == tuple(
        f"'blocks.{number}': its states are not sums of what its maps write" for number in (0, 1)
    )
    assert inspect(student, teacher, batch)[1] == left
    after = student.module.get_submodule("blocks").parameters()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_sublayers_of_another_kind_are_named_before_and_after_the_fit() -> None:
    # Both normalize before each sublayer; one has gates.
    student, teacher = tapped(model("gpt2", seed=1)), tapped(model("llama"))
    batch = calibration("llama", 1)[0]
    expected = tuple(
        f"'transformer.h.{number}.mlp.c_fc': one of both has gates" for number in (0, 1)
    )
    assert inspect(student, teacher, batch) == ((16, 16), (), expected)
    assert set(expected) <= set(fit(student, teacher, [batch]))


def test_other_positions_than_the_teachers_are_a_reason() -> None:
    student, teacher = tapped(model("bert", seed=1)), tapped(model("bert"))
    batch = families.inputs("bert", 0)
    assert isinstance(batch, dict)
    shorter = {"input_ids": batch["input_ids"][:, :-1]}
    entry = CalibrationBatch(student=shorter, teacher=batch)
    reason = "the teacher's states have other positions"
    assert fit(student, teacher, [entry]) == (f"all blocks: {reason}",)
    assert len(inspect(student, teacher, entry)[1]) == 2


@pytest.mark.parametrize(
    ("depths", "ends"), [((1, 1), (1,)), ((2, 4), (2, 4)), ((3, 4), (2, 3, 4)), ((2, 3), (2, 3))]
)
def test_blocks_end_evenly(depths: tuple[int, int], ends: tuple[int, ...]) -> None:
    assert block_ends(*depths) == ends
