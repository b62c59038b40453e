"""Outputs by name: several heads, projections of two towers, boxes and one number an example."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.data.batch import Batch, named
from curricle.errors import BindError, DataError, SpecError
from curricle.objectives.divergences import SquaredError
from curricle.objectives.projections import Identity
from curricle.records import EvaluationRecord, StepRecord
from curricle.values import plain
from tests.parts import Listed, drawn

pytestmark = pytest.mark.integration
STILL = curricle.TrainingSettings(device="cpu", log_every=1, eval_every=1)


class Pair(NamedTuple):
    """Two outputs with names."""

    color: Tensor
    shape: Tensor


@dataclass
class Answer:
    """The same in a dataclass."""

    color: Tensor
    shape: Tensor


class TwoHeads(nn.Module):
    """A body with two heads, whose outputs come in one of the usual containers."""

    def __init__(self, container: Any, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(3, width)
        self.color, self.shape = nn.Linear(width, 5), nn.Linear(width, 2)
        self.container = container

    def forward(self, inputs: Tensor) -> Any:
        state = self.body(inputs)
        return self.container(self.color(state), self.shape(state))


CONTAINERS: dict[str, Any] = {
    "mapping": lambda color, shape: {"color": color, "shape": shape},
    "nested": lambda color, shape: {"heads": {"color": color}, "shape": shape},
    "named tuple": Pair,
    "dataclass": Answer,
    "tuple": lambda color, shape: (color, shape),
}
NAMES = {"nested": "heads.color", "tuple": "0"}


def build(container: str, seed: int, width: int = 4) -> TwoHeads:
    with seeding.scoped(seed, "test model"):
        return TwoHeads(CONTAINERS[container], width)


def losses(student: Any, teacher: Any, objective: Any, batch: Batch) -> list[float]:
    """Return the first loss of a run that is evaluated by no label."""
    records: list[Any] = []
    curricle.distill(
        student, teacher, curricle.one_shot(total="1 steps", objective=objective), Listed(batch),
        evaluation=lambda _: {"accuracy": 0.0}, settings=STILL, observers=[records.append],
    )  # fmt: skip
    return [record.loss for record in records if isinstance(record, StepRecord)]


def divergence(student: Tensor, teacher: Tensor) -> float:
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean().item()


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_logits_of_a_named_head_are_matched(container: str) -> None:
    student, teacher = build(container, 0), build(container, 1, width=6)
    inputs = drawn(7, 3)
    states = student.color(student.body(inputs)), teacher.color(teacher.body(inputs))
    objective = curricle.MatchLogits(output=NAMES.get(container, "color"))
    found = losses(student, teacher, objective, Batch(inputs=inputs))
    assert found == pytest.approx([divergence(*states)], rel=1e-5)


def test_one_of_several_heads_is_never_taken_silently() -> None:
    with pytest.raises(
        BindError, match=r"got color \(7, 5\), shape \(7, 2\); .*output=\.\.\.\), or"
    ):
        losses(
            build("mapping", 0),
            build("mapping", 1),
            curricle.MatchLogits(),
            Batch(inputs=drawn(7, 3)),
        )


def test_a_model_may_declare_which_head_has_its_logits() -> None:
    """Loss, labels and metrics then are those of that head, also beside another teacher."""
    student, inputs = build("mapping", 0), drawn(12, 3)
    labels = (torch.arange(12) % 5).long()
    with seeding.scoped(1, "test model"):
        teacher = nn.Linear(3, 5)
    color = student.color(student.body(inputs))
    records: list[Any] = []
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=12)
    curricle.distill(
        curricle.tapped(student, output="color"), teacher,
        curricle.one_shot(total="1 steps", label_weight=1.0), loader, evaluation=loader,
        settings=STILL, observers=[records.append], optimizer=curricle.AdamW(learning_rate=1e-30),
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    nll = nn.functional.cross_entropy(color, labels).item()
    assert loss == pytest.approx(divergence(color, teacher(inputs)) + nll, rel=1e-5)
    (metrics, *_) = [record.metrics for record in records if isinstance(record, EvaluationRecord)]
    assert metrics["nll"] == pytest.approx(nll, rel=1e-5)


class WithLogits(TwoHeads):
    """Logits, and a second head."""

    def __init__(self) -> None:
        super().__init__(lambda color, shape: {"logits": color, "shape": shape})


def of_head(objectives: tuple[Any, ...]) -> curricle.Curriculum:
    stage = curricle.Stage(name="heads", duration="1 steps", objectives=objectives)
    return curricle.Curriculum(name="heads", stages=(stage,))


@pytest.mark.parametrize("has_logits", [True, False])
def test_labels_belong_to_the_output_that_is_named(*, has_logits: bool) -> None:
    """The teacher is matched at one head, and loss and metrics of labels are those of another."""
    with seeding.scoped(0, "test model"):
        student: nn.Module = WithLogits() if has_logits else TwoHeads(CONTAINERS["mapping"])
    with seeding.scoped(1, "test model"):
        teacher: nn.Module = WithLogits() if has_logits else TwoHeads(CONTAINERS["mapping"])
    inputs, labels = drawn(12, 3), (torch.arange(12) % 2).long()
    matched = curricle.MatchLogits(output=None if has_logits else "color")
    name = "logits" if has_logits else "color"
    with torch.no_grad():
        outputs, taught = student(inputs), teacher(inputs)
    nll = nn.functional.cross_entropy(outputs["shape"], labels).item()
    kl = divergence(outputs[name], taught[name])
    records: list[Any] = []
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=12)
    result = curricle.distill(
        student, teacher,
        of_head((matched, curricle.LabelLoss(output="shape", weight=0.5))), loader,
        evaluation=loader, settings=STILL, observers=[records.append],
        optimizer=curricle.AdamW(learning_rate=1e-30),
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(kl + 0.5 * nll, rel=1e-5)
    assert result.metrics["nll"] == pytest.approx(nll, rel=1e-5)
    assert not [note for note in result.notes if note.startswith("labels are compared")]


def test_labels_of_a_second_head_are_checked_against_its_classes() -> None:
    inputs, labels = drawn(12, 3), (torch.arange(12) % 5).long()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=12)
    call = of_head((curricle.LabelLoss(output="shape"),))
    with pytest.raises(DataError, match="'labels' must lie between 0 and 1, the student's last"):
        curricle.distill(build("mapping", 0), None, call, loader, evaluation=loader)
    call = of_head((curricle.LabelLoss(output="size"),))
    with pytest.raises(BindError, match="'size'"):
        curricle.distill(build("mapping", 0), None, call, loader, evaluation=loader)
    with pytest.raises(SpecError, match="'chunk' has no effect with 'output'"):
        curricle.LabelLoss(output="shape", chunk=8)
    # Digests of runs without the field are those of earlier versions.
    assert "output" not in plain(curricle.LabelLoss())


def test_both_heads_are_matched_in_one_stage() -> None:
    student, teacher, inputs = build("mapping", 0), build("mapping", 1), drawn(7, 3)
    stage = curricle.Stage(
        name="heads",
        duration=Duration(number=1),
        objectives=(
            curricle.MatchLogits(output="color"),
            curricle.MatchLogits(output="shape", weight=2.0),
        ),
    )
    outputs = student(inputs), teacher(inputs)
    expected = divergence(*(output["color"] for output in outputs)) + 2 * divergence(
        *(output["shape"] for output in outputs)
    )
    records: list[Any] = []
    result = curricle.distill(
        student, teacher, curricle.Curriculum(name="heads", stages=(stage,)),
        Listed(Batch(inputs=inputs)), evaluation=lambda _: {"accuracy": 0.0}, settings=STILL,
        observers=[records.append],
    )  # fmt: skip
    assert result is not None
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert records[0].stages[0].taps == "output:color + output:shape"


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        BindError, match=r"tap 'output:size' must name .*; there are color \(7, 5\), shape \(7, 2\)"
    ):
        losses(
            build("mapping", 0),
            build("mapping", 1),
            curricle.MatchLogits(output="size"),
            Batch(inputs=drawn(7, 3)),
        )


def test_items_of_a_module_inside_are_taps() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.out(self.body(inputs)[0][:, -1])
            return logits

    with seeding.scoped(0, "test model"):
        student, teacher = Recurrent(), Recurrent()
    inputs = drawn(5, 6, 3)
    pair = curricle.LayerPair(student="body:0", teacher="body:0")
    objective = curricle.MatchHidden(pair=pair, projection=Identity(), normalize="none")
    error = (student.body(inputs)[0] - teacher.body(inputs)[0]).square().mean().item()
    assert losses(student, teacher, objective, Batch(inputs=inputs)) == pytest.approx([error])


def clip(seed: int) -> Any:
    tiny = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = hf.CLIPConfig(
        text_config=tiny | {"vocab_size": 20, "max_position_embeddings": 16, "eos_token_id": 19},
        vision_config=tiny | {"image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    with seeding.scoped(seed, "test model"):
        return hf.CLIPModel(config).eval()


def test_projections_of_both_towers_are_matched() -> None:
    ids = torch.randint(4, 19, (4, 6), generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs={"input_ids": ids, "pixel_values": drawn(4, 3, 8, 8)})
    outputs = [clip(seed)(**named(batch.inputs)) for seed in (0, 1)]
    for name in ("image_embeds", "text_embeds"):
        tap = f"output:{name}"
        objective = curricle.MatchHidden(
            pair=curricle.LayerPair(student=tap, teacher=tap),
            projection=Identity(),
            normalize="none",
        )
        error = (outputs[0][name] - outputs[1][name]).square().mean().item()
        assert losses(clip(0), clip(1), objective, batch) == pytest.approx([error], rel=1e-5)
    found = losses(clip(0), clip(1), curricle.MatchLogits(output="logits_per_image"), batch)
    scores = [output.logits_per_image for output in outputs]
    assert found == pytest.approx([divergence(scores[0], scores[1])], rel=1e-4)


def test_one_number_an_example_is_a_value() -> None:
    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            value: Tensor = self.out(inputs).squeeze(-1)
            return value

    with seeding.scoped(0, "test model"):
        student, teacher = Regressor(), Regressor()
    inputs, labels = drawn(8, 3), drawn(8)
    squared = curricle.MatchLogits(divergence=SquaredError())
    error = (student(inputs) - teacher(inputs)).square().mean().item()
    assert losses(student, teacher, squared, Batch(inputs=inputs)) == pytest.approx([error])
    records: list[Any] = []
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=8)
    fitted = (student(inputs) - labels).square().mean().item()
    curricle.distill(
        student, None, curricle.from_labels(total="1 steps", loss="squared_error"), loader,
        evaluation=loader, metric="mean_squared_error", settings=STILL,
        observers=[records.append], optimizer=curricle.AdamW(learning_rate=1e-30),
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    (metrics, *_) = [record.metrics for record in records if isinstance(record, EvaluationRecord)]
    assert loss == pytest.approx(fitted, rel=1e-4)
    assert metrics["mean_squared_error"] == pytest.approx(fitted, rel=1e-4)


def test_a_named_output_is_not_read_in_chunks() -> None:
    with pytest.raises(SpecError, match=r"'chunk' has no effect with 'output'"):
        curricle.MatchLogits(output="color", chunk=8)


def test_logits_without_a_name_leave_no_trace_in_digests() -> None:
    assert "output" not in plain(curricle.MatchLogits())


def test_a_named_output_excludes_a_head() -> None:
    with pytest.raises(BindError, match=r"^'output' must not be combined with 'head'"):
        curricle.tapped(build("mapping", 0), head="color", output="color")
