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
        return kind(8)  # type: ignore[call-arg]


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
    plan = curricle.plan(*models, curriculum, loader())
    sentence = f"labels are compared with {note}; the teacher is matched at {output!r}"
    assert [text for text in plan.notes if "compared with" in text] == [sentence][: bool(note)]
