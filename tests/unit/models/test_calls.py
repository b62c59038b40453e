"""Modules get the inputs of a batch as they take them."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle.models.calls import run_module, takes_mapping


class OfFeatures(nn.Module):
    """Takes all inputs in one mapping, which it extends."""

    def forward(self, features: dict[str, Tensor], **_options: object) -> dict[str, Tensor]:
        features["sentence_embedding"] = features["x"] * 2
        return features


class OfText(nn.Module):
    """As with annotations that are not evaluated."""

    def forward(self, input: "dict[str, Tensor]") -> Tensor:
        return input["x"]


class OfMapping(nn.Module):
    """Takes another kind of mapping, with a default beside it."""

    def forward(self, batch: Mapping[str, Tensor], scale: float = 3.0) -> Tensor:
        return batch["x"] * scale


class OfNames(nn.Module):
    """Takes inputs by name, one of them a mapping."""

    def forward(self, x: Tensor, extras: dict[str, Tensor] | None = None) -> Tensor:
        return x * 4


class OfTwo(nn.Module):
    """Takes a mapping and something else."""

    def forward(self, features: dict[str, Tensor], x: Tensor) -> Tensor:
        return features["x"] + x


@pytest.mark.parametrize(
    ("kind", "takes"),
    [(OfFeatures, True), (OfText, True), (OfMapping, True), (OfNames, False), (OfTwo, False)],
)
def test_a_single_annotated_argument_takes_all_inputs(kind: type[nn.Module], takes: bool) -> None:
    assert takes_mapping(cast("Any", kind)) is takes


def test_the_mapping_of_the_batch_stays_as_it_is() -> None:
    inputs = {"x": torch.ones(2)}
    output: Any = run_module(OfFeatures(), inputs)
    assert output["sentence_embedding"].tolist() == [2, 2]
    assert list(inputs) == ["x"]


@pytest.mark.parametrize(("module", "factor"), [(OfText(), 1), (OfMapping(), 3), (OfNames(), 4)])
def test_named_inputs_arrive(module: nn.Module, factor: int) -> None:
    output = run_module(module, {"x": torch.ones(2)})
    assert isinstance(output, Tensor)
    assert output.tolist() == [factor, factor]


def test_a_tensor_is_passed_by_position_with_keywords() -> None:
    output = run_module(OfNames(), torch.ones(2), {"extras": None})
    assert isinstance(output, Tensor)
    assert output.tolist() == [4, 4]


def test_taps_of_a_module_of_features_open() -> None:
    model = curricle.tapped(OfFeatures())
    with model.open_taps((), logits=True) as forward:
        activations = forward({"x": torch.ones(2, 3)})
    assert activations.are_embeddings
    assert activations.logits is not None
    assert torch.equal(activations.logits, torch.full((2, 3), 2.0))
