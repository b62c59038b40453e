"""Metrics are exact means over scored positions."""

import math

import pytest
import torch
from torch import Tensor, nn

from curricle.data.batch import Batch
from curricle.errors import BindError, DataError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.training.loop.evaluation import chance_of, label_metrics


class Shown(nn.Module):
    """Shows its inputs as logits."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class Lost(nn.Module):
    """Shows no numbers whatever it is given."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * math.nan


class Table(nn.Module):
    """Looks logits up by token."""

    def __init__(self) -> None:
        super().__init__()
        logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
        self.head = nn.Embedding.from_pretrained(logits, freeze=True)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(tokens)
        return logits


def shown() -> TappedModel:
    return tapped(Shown())


def batch(probabilities: list[list[float]], labels: list[int]) -> Batch:
    return Batch(inputs=torch.tensor(probabilities).log(), labels=torch.tensor(labels))


def test_batches_of_different_size_count_by_their_positions() -> None:
    large = batch([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [0, 0, 0])
    small = batch([[0.4, 0.6]], [1])
    found = label_metrics([large, small])(shown())
    # Means of batch means would give accuracy 5/6.
    nats = -sum(map(math.log, (0.9, 0.8, 0.3, 0.6)))
    assert found == pytest.approx({"accuracy": 3 / 4, "nll": nats / 4}, rel=1e-6)


def test_one_batch_or_many_give_the_same_metrics() -> None:
    rows, labels = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], [0, 0, 1]
    whole = label_metrics([batch(rows, labels)])(shown())
    parts = [batch([row], [label]) for row, label in zip(rows, labels, strict=True)]
    assert label_metrics(parts)(shown()) == pytest.approx(whole, rel=1e-6)


def test_only_selected_positions_are_scored() -> None:
    masked = Batch(
        inputs=torch.tensor([[0, 1, 2], [1, 0, 2]]),
        labels=torch.tensor([0, 0]),
        selected=torch.tensor([1, 5]),
    )
    found = label_metrics([masked])(tapped(Table()))
    # Positions 1 (token 1) and 5 (token 2): probability 0.9 and 0.2 of class 0.
    nll = -(math.log(0.9) + math.log(0.2)) / 2
    assert found == pytest.approx({"accuracy": 0.5, "nll": nll}, rel=1e-6)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_inputs_that_are_not_finite_are_named_where_a_metric_is_not(
    wrong: float, place: int
) -> None:
    batches = [
        Batch(inputs=torch.tensor([[0.1, 0.2], [0.5, value]]), labels=torch.tensor([0, 1]))
        for value in (wrong if place == number else 0.5 for number in range(2))
    ]
    sentence = (
        rf"^'evaluation' must have finite inputs .* 'nll'; got .*; inputs of its batch {place} are "
        r"not finite: 'inputs' holds 1 (nan|infinite) of 4 numbers, first in example 1$"
    )
    with pytest.raises(DataError, match=sentence):
        label_metrics(batches)(shown())


def test_a_metric_that_is_not_finite_for_finite_inputs_is_left_to_the_run() -> None:
    assert math.isnan(label_metrics([batch([[0.9, 0.1]], [0])])(tapped(Lost()))["nll"])


def test_a_batch_in_which_nothing_is_selected_adds_nothing() -> None:
    nothing = torch.empty(0, dtype=torch.long)
    ignored = Batch(inputs=torch.tensor([[0, 1]]), labels=nothing, selected=nothing)
    scored = Batch(
        inputs=torch.tensor([[1, 1]]), labels=torch.tensor([0]), selected=torch.tensor([0])
    )
    model = tapped(Table())
    assert label_metrics([ignored, scored])(model) == label_metrics([scored])(model)


@pytest.mark.parametrize("number", [0, 2])
def test_held_out_data_have_labels(number: int) -> None:
    unlabeled = [Batch(inputs=torch.zeros(2, 2))] * number
    sentence = (
        rf"^'evaluation' must hold labels; got {number} batches without any; the metrics 'kl', "
        r"'teacher_cosine', 'teacher_spearman' compare with the teacher and need none$"
    )
    with pytest.raises(DataError, match=sentence):
        label_metrics(unlabeled)


def test_held_out_tokens_without_labels_name_the_next_tokens() -> None:
    unlabeled = [Batch(inputs={"input_ids": torch.zeros(2, 2, dtype=torch.long)})]
    sentence = r"need none, and labels of a decoder .* curricle.stream\(loader, next_token=True\)"
    with pytest.raises(DataError, match=sentence):
        label_metrics(unlabeled)


def test_every_batch_has_labels() -> None:
    evaluate = label_metrics([batch([[0.5, 0.5]], [0]), Batch(inputs=torch.zeros(2, 2))])
    with pytest.raises(BindError, match="'labels' must be given"):
        evaluate(shown())


@pytest.mark.parametrize(("labels", "told"), [([0, 2], "0 to 2"), ([-100, 1], "-100 to 1")])
def test_held_out_labels_are_classes_of_the_model(labels: list[int], told: str) -> None:
    evaluate = label_metrics([batch([[0.5, 0.5], [0.5, 0.5]], labels)])
    with pytest.raises(DataError, match=rf"^'labels' of 'eva.* 0 and 1, the .*; got {told}$"):
        evaluate(shown())


def test_logits_at_every_position_are_not_compared_with_one_label_an_example() -> None:
    unselected = Batch(inputs=torch.tensor([[0, 1, 2], [1, 0, 2]]), labels=torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"of shape \(2, 3\); got \(2,\)$"):
        label_metrics([unselected])(tapped(Table()))


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    rows = torch.full((4096, 2), 0.5).log().bfloat16()
    many = Batch(inputs=rows, labels=torch.zeros(4096, dtype=torch.long))
    assert label_metrics([many])(shown())["nll"] == pytest.approx(math.log(2), rel=1e-6)


class Longer(Table):
    """Gives logits before the first position, as a model with a learned prompt does."""

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = super().forward(torch.cat([tokens[:, :1], tokens], dim=1))
        return found


def test_logits_of_more_positions_than_the_data_are_refused() -> None:
    scored = Batch(
        inputs=torch.tensor([[0, 1, 2], [1, 0, 2]]),
        labels=torch.tensor([0, 0]),
        selected=torch.tensor([1, 5]),
    )
    sentence = r"^'logits' in 'evaluation' must have the positions \(2, 3\) of .*; got \(2, 4\): "
    with pytest.raises(DataError, match=sentence):
        label_metrics([scored])(tapped(Longer()))


def test_chance_is_the_share_of_the_most_frequent_label_and_two_standard_errors() -> None:
    labels = torch.tensor([0] * 75 + [1] * 25)
    batch = Batch(inputs=torch.zeros(100, 3), labels=labels)
    chance = chance_of(label_metrics([batch]))
    # sqrt(0.75 * 0.25 / 100) is 0.0433.
    assert chance == pytest.approx(0.75 + 2 * 0.0433, abs=1e-4)
    assert chance_of(lambda model: {"accuracy": 1.0}) is None


def test_labels_that_are_the_input_ids_are_no_evaluation() -> None:
    ids = torch.arange(12).view(2, 6)
    batch = Batch(inputs=ids, labels=ids.flatten(), selected=torch.arange(12))
    with pytest.raises(DataError, match="must not have the input ids as labels"):
        label_metrics([batch])
