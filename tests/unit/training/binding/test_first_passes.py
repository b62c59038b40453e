"""First passes of models that fail for labels or types say so."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curricle import seeding
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import from_labels, one_shot
from curricle.data.batch import Batch
from curricle.data.dataloaders import stream
from curricle.errors import BindError, DataError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.temperature import LearnedTemperature
from curricle.probes.representations import linear_probe
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.loop.evaluation import label_metrics
from tests.parts import Listed, bound, drawn

CLASSES = torch.tensor([0, 1, 2, 0])
IDS = torch.arange(12).view(4, 3) % 11


class Classifier(nn.Module):
    """Classifies texts by the mean over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.block(self.embedding(input_ids)).tanh().mean(1))
        return found


class Features(nn.Module):
    """Classifies rows of numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Linear(6, width)
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.head(self.block(inputs).tanh())
        return found


class Tolerant(Classifier):
    """Takes inputs of any name, as many models of transformers do."""

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return super().forward(input_ids)


def model(kind: type[Any], width: int) -> TappedModel:
    with seeding.scoped(width, "model"):
        return tapped(kind(width), blocks=["block"], head="head")


def run_on(batch: Batch, curriculum: Any, kind: type[Any] = Classifier) -> BoundRun:
    teacher = LiveTeacher(model(kind, 6))
    return bound(curriculum, student=model(kind, 4), teacher=teacher, stream=Listed(batch))


ONE_HOT = torch.eye(3)[CLASSES].long()
SEVERAL = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
PADDED = torch.tensor([[2, -100, -100], [0, 1, -100], [1, -100, -100], [0, -100, 1]])
REMEDY = "; positions='example' of curricle.stream reads them as labels of examples$"
PLACES = [
    (ONE_HOT, r"\(4, 3\); they are one-hot, and labels.argmax\(-1\) gives the classes$"),
    (
        SEVERAL,
        r"\(4, 3\)" + REMEDY,
    ),
    (
        SEVERAL[:, :2],
        r"\(4, 2\)" + REMEDY,
    ),
    (PADDED, r"\(4, 3\)" + REMEDY),
]


def read_by(kind: type[nn.Module], labels: Tensor) -> Batch:
    """Return labels as a loader gives them beside the inputs of a model."""
    inputs = drawn(4, 6) if kind is Features else IDS
    loader: DataLoader[Any] = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    return stream(loader).batch(0)


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [(kind, labels, words) for labels, words in PLACES for kind in (Features, Classifier)],
)
@pytest.mark.parametrize("curriculum", [from_labels, one_shot], ids=lambda one: one.__name__)
def test_labels_where_no_logits_are_are_to_blame_and_not_the_inputs(
    curriculum: Any, kind: type[Any], labels: Tensor, words: str
) -> None:
    batch = read_by(kind, labels)
    sentence = (
        r"^stage '\w+': 'labels' must be one for each place with logits of the student, of shape "
        rf"\(4,\); got shape {words}"
    )
    with pytest.raises(BindError, match=sentence):
        run_on(batch, curriculum(total="2 steps"), kind)


@pytest.mark.parametrize(("labels", "words"), PLACES)
def test_labels_of_an_evaluation_where_no_logits_are_are_named(labels: Tensor, words: str) -> None:
    evaluate = label_metrics([read_by(Features, labels)])
    sentence = (
        r"^'labels' of 'evaluation' must be one for each place .*, of shape \(4,\); got shape "
    )
    with pytest.raises(DataError, match=sentence + words):
        evaluate(model(Features, 4))


@pytest.mark.parametrize("kind", [Features, Classifier])
def test_a_model_that_cannot_take_the_inputs_is_named_whatever_the_labels(kind: type[Any]) -> None:
    wrong = Batch(inputs=drawn(4, 5), labels=CLASSES, selected=torch.arange(4), length=1)
    with pytest.raises(
        BindError, match="'student' must take the inputs of the stream; its forward"
    ):
        run_on(wrong, from_labels(total="2 steps"), kind)


def test_a_column_of_labels_beside_features_is_one_an_example() -> None:
    run_on(read_by(Features, CLASSES[:, None]), from_labels(total="2 steps"), Features)


def misnamed(name: str) -> Batch:
    return Batch(inputs={"input_ids": IDS, name: CLASSES})


WORDS = r"; '{}' of shape \(4,\) is among the inputs, and labels go under 'labels' in what a loader"


@pytest.mark.parametrize("name", ["labels", "label", "target"])
@pytest.mark.parametrize("curriculum", [from_labels, one_shot], ids=lambda one: one.__name__)
def test_a_model_that_takes_no_labels_is_not_to_blame_for_those_among_its_inputs(
    name: str, curriculum: Any
) -> None:
    sentence = rf"its forward pass failed with: .* unexpected keyword argument '{name}'" + WORDS
    with pytest.raises(BindError, match=sentence.format(name)):
        run_on(misnamed(name), curriculum(total="2 steps"))


@pytest.mark.parametrize("name", ["labels", "label", "y"])
def test_whatever_reads_labels_names_those_among_the_inputs(name: str) -> None:
    batch, words = misnamed(name), WORDS.format(name)
    with pytest.raises(BindError, match="^stage 'labels': 'labels' must be in the data .*" + words):
        run_on(batch, from_labels(total="2 steps"), Tolerant)
    stage = Stage(name="only", duration="2 steps", objectives=(LearnedTemperature(),))
    learned = Curriculum(name="own", stages=(stage,))
    with pytest.raises(BindError, match="^stage 'only': 'labels' must be .*" + words):
        run_on(batch, learned, Tolerant)
    with pytest.raises(DataError, match="^'evaluation' must hold labels; got 1 batches .*" + words):
        label_metrics([batch])
    with pytest.raises(
        BindError, match="^'labels' must be in the batch for a linear probe; .*" + words
    ):
        linear_probe(model(Tolerant, 4), batch)


class Pictures(nn.Module):
    """Classifies images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(1, width, 2)
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(inputs).flatten(1))
        return logits


PICTURES = drawn(4, 1, 2, 2)
DATA = "in the data set or the collate function, by"
SCALED = f"convert them {DATA} .float(), and scale them as the model was trained"


@pytest.mark.parametrize(
    ("kind", "inputs", "owner", "words"),
    [
        (
            Pictures,
            PICTURES.byte(),
            "student",
            f"'inputs' of type uint8 meet weights of type float32: {SCALED}",
        ),
        (
            Features,
            torch.ones(4, 6).long(),
            "student",
            f"'inputs' of type int64 meet weights of type float32: {SCALED}",
        ),
        (
            Pictures,
            PICTURES.double(),
            "student",
            f"'inputs' of type float64 meet weights of type float32: convert them {DATA} .float()",
        ),
        (
            Features,
            drawn(4, 6).double(),
            "student",
            f"'inputs' of type float64 meet weights of type float32: convert them {DATA} .float()",
        ),
        (
            Classifier,
            {"input_ids": IDS.double()},
            "student",
            f"'input_ids' of type float64 are read as ids: convert them to int64 {DATA} .long()",
        ),
    ],
    ids=["bytes", "numbers", "doubles", "rows of doubles", "ids"],
)
def test_inputs_of_another_type_than_the_weights_are_named(
    kind: type[Any], inputs: Any, owner: str, words: str
) -> None:
    batch = Batch(inputs=inputs, labels=CLASSES)
    with pytest.raises(BindError) as error:
        run_on(batch, one_shot(total="1 steps"), kind)
    rule = f"'{owner}' must take the inputs of the stream; its forward pass failed with: "
    assert rule in str(error.value)
    assert str(error.value).endswith(f"; {words}")


@pytest.mark.parametrize(("kind", "inputs"), [(Pictures, PICTURES), (Features, drawn(4, 6))])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_teacher_in_low_precision_is_answered_by_how_to_pass_it(
    kind: type[Any], inputs: Tensor, dtype: torch.dtype
) -> None:
    teacher = model(kind, 6)
    teacher.module.to(dtype)
    name = str(dtype).removeprefix("torch.")
    parts: dict[str, Any] = {
        "student": model(kind, 4),
        "teacher": LiveTeacher(teacher),
        "stream": Listed(Batch(inputs=inputs, labels=CLASSES)),
    }
    with pytest.raises(BindError) as error:
        bound(one_shot(total="1 steps"), **parts)
    assert "'teacher' must take the inputs of the stream; its forward pass" in str(error.value)
    assert str(error.value).endswith(
        f"; 'inputs' of type float32 meet weights of type {name}: pass teacher.float(), with "
        f"TrainingSettings(teacher_precision='bfloat16') for fast passes"
    )
    teacher.module.float()
    bound(one_shot(total="1 steps"), settings={"teacher_precision": "bfloat16"}, **parts)


def test_an_error_of_another_kind_stays_as_it_is() -> None:
    wide = Batch(inputs=drawn(4, 7), labels=CLASSES)
    with pytest.raises(BindError, match=r"its forward pass failed with: mat1 and mat2 shapes.*\)$"):
        run_on(wide, one_shot(total="1 steps"), Features)


@pytest.mark.parametrize("others", [torch.float8_e4m3fn, torch.bfloat16])
def test_weights_to_whose_type_no_input_is_converted_leave_the_error_of_torch(
    others: torch.dtype,
) -> None:
    teacher = model(Features, 6)
    teacher.module.to(others)
    block = teacher.module.block
    assert isinstance(block, nn.Linear)
    block.to(torch.float8_e4m3fn)
    batch = Batch(inputs=drawn(4, 6), labels=CLASSES)
    parts: dict[str, Any] = {"teacher": LiveTeacher(teacher), "stream": Listed(batch)}
    with pytest.raises(BindError) as error:
        bound(one_shot(total="1 steps"), student=model(Features, 4), **parts)
    assert str(error.value).endswith(
        "its forward pass failed with: mat1 and mat2 must have the same dtype, but got Float and "
        "Float8_e4m3fn"
    )
