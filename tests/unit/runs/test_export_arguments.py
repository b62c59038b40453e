"""Arguments of an export are checked before anything is written."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.errors import BindError
from curricle.runs.export_arguments import (
    check_outputs,
    checked_names,
    onnx_inputs,
    tokenizer_writer,
)
from curricle.runs.onnx_files import OnnxCheck
from tests.parts import mlp


class Headed(nn.Module):
    def __init__(self, name: str, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.add_module(name, head)
        self.relu = nn.ReLU()


KNOWN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 2),
    "sequence": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2), nn.Softmax(-1)),
    "head": lambda: Headed("fc", nn.Sequential(nn.Dropout(), nn.Linear(4, 2))),
    "MLP": lambda: mlp(5).module,
}
UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "two heads": lambda: Headed("color", nn.Linear(4, 2)),
    "convolution": lambda: nn.Sequential(nn.Linear(3, 2), nn.Conv2d(1, 2, 3)),
    "other layer": lambda: nn.Sequential(nn.Linear(3, 2), nn.Flatten()),
}


@pytest.mark.parametrize("build", KNOWN.values(), ids=KNOWN)
def test_names_are_as_many_as_the_outputs_of_a_plain_module(build: Callable[[], nn.Module]) -> None:
    with seeding.scoped(0, "test model"):
        model = build()
    assert checked_names(model, ["a", "b"]) == {0: "a", 1: "b"}
    with pytest.raises(BindError, match=r"'class_names' must hold .* the 2 classes .*; got 3"):
        checked_names(model, ["a", "b", "c"])
    # The names are those of a declared output.
    assert len(checked_names(model, ["a", "b", "c"], has_default_output=False)) == 3


@pytest.mark.parametrize("build", UNKNOWN.values(), ids=UNKNOWN)
def test_names_of_unknown_outputs_are_not_counted(build: Callable[[], nn.Module]) -> None:
    with seeding.scoped(0, "test model"):
        model = build()
    assert len(checked_names(model, ["a", "b", "c"])) == 3


def test_a_single_logit_has_two_classes() -> None:
    with seeding.scoped(0, "test model"):
        model = nn.Linear(3, 1)
    assert checked_names(model, ["no", "yes"]) == {0: "no", 1: "yes"}


def compared(outputs: tuple[str, ...], *shape: int) -> OnnxCheck:
    return OnnxCheck(inputs={}, difference=0.0, tolerance=1e-4, shapes=(shape,), outputs=outputs)


def test_the_outputs_of_an_onnx_file_are_counted() -> None:
    names = {0: "a", 1: "b"}
    check_outputs(names, compared(("logits",), 4, 2))
    check_outputs({}, compared(("logits",), 4, 3))
    check_outputs(names, compared(("color", "shape"), 4, 3))
    check_outputs(names, compared(("logits",), 4, 3, 2))
    with pytest.raises(BindError, match=r"'class_names' must .* the 3 outputs 'logits'.*; got 2"):
        check_outputs(names, compared(("logits",), 4, 3))


@pytest.mark.integration
def test_a_file_with_other_outputs_than_names_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 5))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ self.weight

    with pytest.raises(BindError, match=r"'class_names' must hold one name for each of the 5"):
        curricle.export(Hidden(), tmp_path / "out", class_names=["a"], onnx=torch.ones(4, 3))
    assert not list(tmp_path.iterdir())


def test_labels_are_no_inputs_of_the_file() -> None:
    item = {"input_ids": torch.ones(4, 3), "labels": torch.ones(4), "label_ids": torch.ones(4)}
    inputs, notes = onnx_inputs(item)
    assert isinstance(inputs, dict)
    assert set(inputs) == {"input_ids"}
    assert [note.partition(" ")[0] for note in notes] == ["'labels'", "'label_ids'"]
    # A batch has its labels beside the inputs.
    batch = curricle.Batch(inputs=torch.ones(4, 3), labels=torch.ones(4))
    assert onnx_inputs(batch) == (batch.inputs, ())


@pytest.mark.integration
def test_a_file_from_an_item_of_a_loader_takes_the_inputs_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    class Trained(nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return x * 2 if labels is None else x + labels

    item = {"x": torch.ones(4, 3), "labels": torch.ones(4, 3)}
    exported = curricle.export(Trained(), tmp_path / "out", onnx=item)
    assert exported.onnx is not None
    assert list(exported.onnx.inputs) == ["x"]
    assert exported.notes == ("'labels' of 'onnx' is left out: the file has no labels as inputs",)


@pytest.mark.parametrize(
    ("onnx", "kind"),
    [
        (DataLoader([1, 2]), "'DataLoader'"),  # type: ignore[arg-type]
        ([torch.ones(2), torch.ones(2)], "'list' with 'Tensor'"),
        ({"texts": ["a", "b"]}, "'dict' with 'list'"),
        (3, "'int'"),
    ],
)
def test_anything_else_is_no_sample(tmp_path: Path, onnx: Any, kind: str) -> None:
    sentence = rf"'onnx' must be a batch .*; got {kind}; curricle.stream\(loader\).batch\(0\) is"
    with seeding.scoped(0, "test model"):
        model = nn.Linear(2, 2)
    with pytest.raises(BindError, match=sentence):
        inspect.unwrap(curricle.export)(model, tmp_path / "out", onnx=onnx)


def test_a_tokenizer_without_special_tokens_names_its_wrapper() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(BindError, match=r"got 'Tokenizer'; .*PreTrainedTokenizerFast\(tokenizer_o"):
        tokenizer_writer(raw)


def test_an_unknown_argument_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        BindError, match=r"'tokeniser' is not an argument of 'export'; did you mean"
    ):
        curricle.export(nn.Identity(), tmp_path, tokeniser=None)  # type: ignore[call-arg]
