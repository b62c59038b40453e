"""First passes of models that fail for the labels say so."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import from_labels, one_shot
from curricle.data.streams import Batch
from curricle.errors import BindError, DataError
from curricle.models.adapters import tapped
from curricle.models.tapped import TappedModel
from curricle.objectives.temperature import LearnedTemperature
from curricle.probes.representations import linear_probe
from curricle.teachers.live import LiveTeacher
from curricle.training.binding import BoundRun
from curricle.training.evaluation import label_metrics
from tests.parts import Listed, bound

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


class Tolerant(Classifier):
    """Takes inputs of any name, as many models of transformers do."""

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return super().forward(input_ids)


def model(kind: type[Classifier], width: int) -> TappedModel:
    with seeding.scoped(width, "model"):
        return tapped(kind(width), blocks=["block"], head="head")


def run_on(batch: Batch, curriculum: Any, kind: type[Classifier] = Classifier) -> BoundRun:
    teacher = LiveTeacher(model(kind, 6))
    return bound(curriculum, student=model(kind, 4), teacher=teacher, stream=Listed(batch))


def misnamed(name: str) -> Batch:
    return Batch(inputs={"input_ids": IDS, name: CLASSES})


WORDS = r"; '{}' of shape \(4,\) is among the inputs, and labels go under 'labels' in what a loader"


@pytest.mark.parametrize("name", ["labels", "label", "target"])
@pytest.mark.parametrize("curriculum", [from_labels, one_shot], ids=lambda one: one.__name__)
def test_a_model_that_takes_no_labels_is_not_to_blame_for_those_among_its_inputs(
    name: str, curriculum: Any
) -> None:
    sentence = rf"its forward pass says: .* unexpected keyword argument '{name}'" + WORDS
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
        label_metrics([batch], torch.device("cpu"))
    with pytest.raises(BindError, match="^'labels' must be given for a linear probe; .*" + words):
        linear_probe(model(Tolerant, 4), batch)
