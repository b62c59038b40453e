"""Judging by a named output that objectives match, and notes on the output beside labels."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding
from curricle.errors import BindError
from tests.parts import drawn


class TwoHeads(nn.Module):
    """A model of two heads, neither of which is named `logits`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(6, width)
        self.first, self.second = nn.Linear(width, 3), nn.Linear(width, 5)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.body(features))
        return {"first": self.first(hidden), "second": self.second(hidden)}


class Named(TwoHeads):
    """A model whose first head is its logits."""

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        output = super().forward(features)
        return {"logits": output["first"], "second": output["second"]}


def built(kind: type[nn.Module], seed: int) -> Any:
    with seeding.scoped(seed, "test model"):
        return kind(8)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(drawn(32, 6), torch.arange(32) % 3), batch_size=8)


def matched(output: str, **fields: Any) -> Any:
    objective = curricle.MatchLogits(output=output)
    return curricle.one_shot(total="3 steps", objective=objective, **fields)


def distilled(student: Any, teacher: Any, curriculum: Any, **fields: Any) -> Any:
    data = loader()
    return curricle.distill(
        student, teacher, curriculum, data, evaluation=data, progress=False,
        settings=curricle.TrainingSettings(device="cpu"), **fields,
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_the_matched_output_is_judged_where_a_model_has_no_logits(metric: str) -> None:
    plain = distilled(built(TwoHeads, 0), built(TwoHeads, 1), matched("first"), metric=metric)
    tapped = distilled(
        curricle.tapped(built(TwoHeads, 0), output="first"),
        curricle.tapped(built(TwoHeads, 1), output="first"),
        matched("first"), metric=metric,
    )  # fmt: skip
    assert plain.metrics == tapped.metrics


def test_logits_of_the_model_are_judged_beside_a_matched_output() -> None:
    student = built(Named, 0)
    result = distilled(student, built(Named, 1), matched("second"))
    rows, labels = loader().dataset[:]
    with torch.no_grad():
        hits = student.eval()(rows)["logits"].argmax(-1) == labels
    assert result.metrics["accuracy"] == pytest.approx(hits.float().mean().item())


def test_objectives_on_several_outputs_leave_the_judged_one_open() -> None:
    objectives = tuple(curricle.MatchLogits(output=name) for name in ("first", "second"))
    stage = curricle.Stage(name="both", duration="3 steps", objectives=objectives)
    curriculum = curricle.Curriculum(name="both", stages=(stage,))
    with pytest.raises(BindError, match="'logits' must be the only output of TwoHeads"):
        distilled(built(TwoHeads, 0), built(TwoHeads, 1), curriculum)


@pytest.mark.parametrize(
    ("declared", "output", "note"),
    [
        (
            "first",
            "second",
            "output 'first' of the student, as curricle.tapped declares",
        ),
        (
            "",
            "second",
            "the logits of the student, in 'evaluation' with 'second' if it has none",
        ),
        ("first", "first", ""),
    ],
)
def test_the_plan_notes_the_output_beside_labels(declared: str, output: str, note: str) -> None:
    models = [curricle.tapped(built(TwoHeads, seed), output=declared) for seed in (0, 1)]
    label_weight = 0.5 if declared else 0.0
    curriculum = matched(output, **({"label_weight": label_weight} if label_weight else {}))
    plan = curricle.plan(models[0], models[1], curriculum, loader())
    sentence = f"labels are compared with {note}; the teacher is matched at {output!r}"
    assert [text for text in plan.notes if "compared with" in text] == [sentence][: bool(note)]


def labels_at_second() -> Any:
    """Return a curriculum of logits matched beside labels of the second head."""
    objectives = (curricle.MatchLogits(), curricle.LabelLoss(output="second"))
    stage = curricle.Stage(name="both", duration="2 steps", objectives=objectives)
    return curricle.Curriculum(name="both", stages=(stage,))


def test_metrics_of_the_teacher_compare_the_matched_output_beside_labels_at_another() -> None:
    student, teacher = built(Named, 0), built(Named, 1)
    rows, labels = loader().dataset[:]

    def divergence(name: str) -> float:
        with torch.no_grad():
            told, said = teacher(rows)[name].log_softmax(-1), student(rows)[name].log_softmax(-1)
        return float((told.exp() * (told - said)).sum(-1).mean())

    result = distilled(student, teacher, labels_at_second(), metric="kl")
    assert result.metrics["kl"] == pytest.approx(divergence("logits"), rel=1e-4)
    assert divergence("second") != pytest.approx(divergence("logits"), rel=1e-2)
    result = distilled(student, teacher, labels_at_second())
    with torch.no_grad():
        hits = student(rows)["second"].argmax(-1) == labels
    assert result.metrics["accuracy"] == pytest.approx(hits.float().mean().item())
    # A teacher without the output of the labels is compared at its logits alone.
    single = built(OneHead, 1)
    assert distilled(built(Named, 0), single, labels_at_second(), metric="kl").metrics["kl"] > 0


class OneHead(TwoHeads):
    """A model whose only head is its logits."""

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(features)["first"]}


def test_metrics_of_the_teacher_compare_the_matched_output_beside_logits() -> None:
    student, teacher = built(Named, 0), built(Named, 1)
    result = distilled(student, teacher, matched("second"), metric="kl")
    rows, _ = loader().dataset[:]
    with torch.no_grad():
        told, said = (model(rows)["second"].log_softmax(-1) for model in (teacher, student))
    expected = (told.exp() * (told - said)).sum(-1).mean().item()
    assert result.metrics["kl"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("good", "is_noted"), [("second", False), ("logits", True)])
def test_the_teacher_is_judged_at_the_output_of_the_labels(good: str, is_noted: bool) -> None:
    rows = drawn(200, 6)
    labels = (rows[:, 0] > 0).long()
    teacher = built(Named, 1)
    with torch.no_grad():
        for layer in (teacher.body, teacher.first, teacher.second):
            layer.weight.zero_()
            layer.bias.zero_()
        teacher.body.weight[0, 0], teacher.body.weight[1, 0] = 5, -5
        right, chance = teacher.first, teacher.second
        if good == "second":
            right, chance = chance, right
        right.weight[1, 0] = right.weight[0, 1] = 3
        chance.bias[2] = 9
    data = DataLoader(TensorDataset(rows, labels), batch_size=50)
    notes = curricle.plan(built(Named, 0), teacher, labels_at_second(), data, evaluation=data).notes
    assert any("at chance" in note for note in notes) == is_noted
    # The head of the labels is taught; of the teacher it is not read.
    assert [note for note in notes if "left out" in note] == [
        "teacher: only 'logits' are taught, 'second' is left out"
    ]
