"""Habits of people who come from other trainers: what they write on the first day works."""

import inspect
import pydoc
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import curricle
from curricle import seeding
from curricle.data.synthetic.parity import ParityStream
from curricle.errors import BindError, CheckpointError
from curricle.models.mlp import MLP
from curricle.objectives.losses import cross_entropy, forward_kl
from curricle.records import EndRecord, EvaluationRecord, Record, StepRecord
from tests.parts import mlp, parity

CPU = curricle.TrainingSettings(device="cpu", eval_every=4, log_every=4)
HELD_OUT = [parity(purpose="evaluation").batch(0)]


def distilled(curriculum: curricle.Curriculum | None = None, **parts: Any) -> curricle.Result:
    defaults: dict[str, Any] = {
        "student": mlp(5, 4).module,
        "teacher": mlp(16, 12, seed=1).module,
        "curriculum": curriculum or curricle.one_shot(total="12 steps"),
        "data": parity(),
        "evaluation": HELD_OUT,
        "settings": CPU,
    }
    result: curricle.Result = curricle.distill(**(defaults | parts))
    return result


# --- metrics of one's own, the best weights, early stopping ---------------------------------------


def test_a_metric_of_ones_own_calls_the_model_or_its_module() -> None:
    inputs, labels = HELD_OUT[0].leading, HELD_OUT[0].labels

    def evaluate(model: Any) -> dict[str, float]:
        first, second = model(inputs), model.module(inputs)
        assert torch.equal(first, second)
        return {"error_rate": float((first.argmax(-1) != labels).float().mean())}

    assert set(distilled(evaluation=evaluate, metric="error_rate").metrics) == {"error_rate"}
    guide = Path(__file__).parents[2] / "docs" / "guide.md"
    assert "`model.module` is the network itself" in guide.read_text(encoding="utf-8")


def test_the_metric_of_the_guide_is_that_of_scikit_learn() -> None:
    """Its code runs as it stands, with the names of this page's models and data."""
    guide = Path(__file__).parents[2] / "docs" / "guide.md"
    section = guide.read_text(encoding="utf-8").split("## Your own metrics")[1].split("\n## ")[0]
    code = section.split("```python\n")[2].split("```")[0]
    stream = ParityStream(num_inputs=6, degree=2, batch_size=64, seed=3)
    with seeding.scoped(0, "models"):
        student, teacher = MLP(6, (5,), 4), MLP(6, (16,), 4)
    held_out = stream.batch(0)
    names: dict[str, Any] = {
        "curricle": curricle,
        "student": student,
        "teacher": teacher,
        "curriculum": curricle.one_shot(total="4 steps"),
        "data": stream,
        "held_out": [held_out],
    }
    exec(compile(code, "guide", "exec"), names)
    assert held_out.labels is not None
    with torch.no_grad():
        scores = names["result"].student.eval()(held_out.leading).cpu()
    expected = top_k_accuracy_score(held_out.labels, scores, k=2, labels=range(4))
    assert names["result"].metrics["two_guesses"] == pytest.approx(expected)


def test_the_best_weights_are_kept() -> None:
    values = iter([0.1, 0.1, 0.7, 0.4, 0.4])
    settings = curricle.TrainingSettings(device="cpu", eval_every=4, keep_best=True)
    result = distilled(evaluation=lambda _: {"accuracy": next(values)}, settings=settings)
    assert (result.best_step, result.metrics) == (8, {"accuracy": 0.7})


def test_training_stops_early_at_a_metric_or_without_progress() -> None:
    reached = curricle.UntilMetric(
        metric="accuracy", reaches=0.5, direction="above", at_most="40 steps"
    )
    stage = curricle.Stage(name="logits", duration=reached, objectives=(curricle.MatchLogits(),))
    values = iter([0.1, 0.2, 0.6, 0.6])
    result = distilled(
        curricle.Curriculum(name="early", stages=(stage,)),
        evaluation=lambda _: {"accuracy": next(values)},
    )
    assert result.usage.steps == 8
    stale = curricle.UntilPlateau(at_most="40 steps", window=4, patience=2, min_improvement=0.99)
    stage = curricle.Stage(name="logits", duration=stale, objectives=(curricle.MatchLogits(),))
    result = distilled(curricle.Curriculum(name="early", stages=(stage,)))
    assert result.usage.steps == 12


# --- what is shown --------------------------------------------------------------------------------


def test_records_print_as_short_lines_and_metrics_come_while_it_trains() -> None:
    records: list[Record] = []
    distilled(observers=[records.append])
    assert all(len(str(record)) < 200 for record in records)
    steps = [record.usage.steps for record in records if isinstance(record, EvaluationRecord)]
    assert steps == [4, 8, 12]
    assert isinstance(records[-1], EndRecord)


@pytest.mark.parametrize("name", ["extraction", "one_shot", "progressive", "from_labels"])
def test_help_begins_with_the_strategy(name: str) -> None:
    strategy = getattr(curricle, name)
    first, *_ = (inspect.getdoc(strategy) or "").splitlines()
    assert first.startswith("Return ")
    text = pydoc.plain(pydoc.render_doc(strategy))
    assert "pydantic" not in text
    assert first in text


# --- Python has what YAML has ---------------------------------------------------------------------


def test_a_plan_is_made_in_python() -> None:
    curriculum = curricle.one_shot(total="40 steps")
    plan = curricle.plan(mlp(5, 4).module, mlp(16, 12, seed=1).module, curriculum, parity())
    assert "| logits | final | logits |" in str(plan)


def test_strategies_are_compared_within_flops_and_to_a_goal() -> None:
    comparison = curricle.compare(
        lambda _: mlp(5, 4).module,
        mlp(16, 12, seed=1).module,
        parity(),
        evaluation=HELD_OUT,
        budget="60k flops",
        strategies=["from_labels", "one_shot"],
        seeds=(0, 1),
        goal="from_labels",
        settings=CPU,
    )
    totals = [
        seed.usage["total_flops"]
        for method in comparison.summary.methods.values()
        for seed in method.seeds
    ]
    assert max(totals) <= 60_000
    assert comparison.summary.goal is not None


class Counted(IterableDataset[tuple[Tensor, int]]):
    """Rows without indexes, with a stated length."""

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Any:
        for place in range(40):
            yield torch.full((6,), float(place % 2)), place % 2


def test_epochs_are_a_length_also_of_an_iterable_data_set() -> None:
    loader: DataLoader[Any] = DataLoader(Counted(), batch_size=8)
    result = distilled(curricle.extraction(total="2 epochs", layer_fraction=0.2), data=loader)
    assert (result.usage.steps, result.usage.examples) == (10, 80)
    assert "length: 2 epochs of 40 examples in batches of 8 are 10 steps" in result.notes


def test_a_teacher_taught_in_python_has_checkpoints_for_progressive(tmp_path: Path) -> None:
    teacher = curricle.teach(
        mlp(16, 12, seed=1).module,
        parity(),
        total="12 steps",
        evaluation=HELD_OUT,
        output_dir=tmp_path,
        checkpoints=3,
        settings=CPU,
    )
    curriculum = curricle.progressive(total="9 steps", trajectory=teacher.trajectory)
    result = distilled(curriculum, teacher=teacher.model, trajectory=teacher.trajectory)
    assert result.usage.steps == 9


# --- resuming -------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Ends a run from an observer."""


def stop(record: Record) -> None:
    if isinstance(record, StepRecord) and record.usage.steps == 8:
        raise StoppedError


def test_checkpoints_are_written_on_request_and_a_changed_rate_is_named(tmp_path: Path) -> None:
    assert curricle.TrainingSettings().save_every is None
    settings = curricle.TrainingSettings(device="cpu", log_every=4, save_every=4)
    parts: dict[str, Any] = {"output_dir": tmp_path, "settings": settings}
    with pytest.raises(StoppedError):
        distilled(observers=[stop], **parts)
    with pytest.raises(
        CheckpointError, match=r"'optimizer.learning_rate' was 0\.001 and is 0\.002$"
    ):
        distilled(optimizer=curricle.AdamW(learning_rate=2e-3), resume=True, **parts)
    assert distilled(resume=True, **parts).usage.steps == 12
    with pytest.raises(CheckpointError, match="a finished run cannot be prolonged or changed"):
        distilled(curricle.one_shot(total="16 steps"), resume=True, **parts)


# --- images, and Hinton's loss --------------------------------------------------------------------


class Convolutions(nn.Module):
    """Two maps and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.first(images).relu()).relu()
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_the_channels_of_maps_are_named_once_and_the_refusal_says_how() -> None:
    with seeding.scoped(0, "models"):
        student: Any = Convolutions(3)
        teacher: Any = Convolutions(5)
        images = torch.randn(8, 1, 6, 6)
    batch = curricle.Batch(inputs=images, labels=torch.arange(8) % 2)
    pair = curricle.LayerPair(student="first", teacher="first")
    parts: dict[str, Any] = {"data": Repeated(batch), "evaluation": [batch]}
    curriculum = curricle.extraction(total="8 steps", pairs=(pair,), layer_fraction=0.5)
    with pytest.raises(BindError, match=r"curricle\.tapped\(model, width_axis=1\) names axis 1"):
        distilled(curriculum, student=student, teacher=teacher, **parts)
    student, teacher = (curricle.tapped(model, width_axis=1) for model in (student, teacher))
    assert distilled(curriculum, student=student, teacher=teacher, **parts).usage.steps == 8


class Repeated:
    """One batch at every step."""

    fingerprint = "repeated"

    def __init__(self, batch: curricle.Batch) -> None:
        self._batch = batch
        self.batch_size = batch.num_examples
        self.tokens_per_batch = batch.num_read_tokens

    def batch(self, _: int) -> curricle.Batch:
        return self._batch


def test_hintons_loss_is_one_argument() -> None:
    student, teacher = mlp(5, 4).module, mlp(16, 12, seed=1).module
    batch = parity().batch(0)
    assert batch.labels is not None
    with torch.no_grad():
        logits, targets = student(batch.leading), teacher(batch.leading)
        divergence = forward_kl(logits, targets, student_temperature=1.0, teacher_temperature=1.0)
        labels = cross_entropy(logits, batch.labels)
    expected = float(divergence + 0.5 * labels) / batch.num_examples
    records: list[Record] = []
    distilled(
        curricle.one_shot(total="1 step", label_weight=0.5),
        student=student,
        teacher=teacher,
        settings=curricle.TrainingSettings(device="cpu", log_every=1),
        observers=[records.append],
    )
    (step,) = [record for record in records if isinstance(record, StepRecord)]
    assert step.loss == pytest.approx(expected, rel=1e-5)
