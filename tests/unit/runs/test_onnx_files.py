"""ONNX files give the logits of torch, or are refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.sentence_encoder import pooled_states
from curricle.runs import onnx_files
from curricle.runs.onnx_files import OnnxCheck, check_onnx_packages, write_onnx
from tests.parts import drawn, mlp

MISSING = r"'{0}' must be installed for ONNX files: pip install 'curricle\[onnx\]'"


@pytest.fixture
def runtime() -> Any:
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_refused_with_the_name_of_the_extra(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, sys if name != package else None)
    with pytest.raises(BindError, match=MISSING.format(package)):
        check_onnx_packages()


def test_a_check_is_a_sentence() -> None:
    check = OnnxCheck(inputs={}, difference=1.5e-6, tolerance=1e-4, shapes=((4, 2), (1, 2)))
    assert str(check) == (
        "logits of shape 4x2 and 1x2 differ from torch by at most 1.5e-06 (allowed: 1.0e-04)"
    )


@pytest.mark.integration
def test_a_plain_module_agrees_for_any_number_of_examples(tmp_path: Path, runtime: Any) -> None:
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 2)).train()
    check = write_onnx(module, drawn(4, 6), tmp_path / "model.onnx")
    assert check.difference <= 1e-6
    assert check.shapes == ((4, 2), (1, 2))
    assert check.inputs["inputs"][1] == "6"
    # Modes are those of the caller again; the file is that of evaluation.
    assert all(part.training for part in module.modules())
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = drawn(9, 6, seed=1)
    (logits,) = session.run(None, {"inputs": inputs.numpy()})
    assert torch.allclose(torch.from_numpy(logits), module.eval()(inputs), atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_language_model_agrees_for_any_length(tmp_path: Path, runtime: Any, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    auto = {"bert": transformers.AutoModelForMaskedLM, "gpt2": transformers.AutoModelForCausalLM}
    with seeding.scoped(0, "test model"):
        model = auto[kind].from_config(config)
    tokens = torch.arange(24).view(3, 8) % 11
    mask = torch.ones_like(tokens)
    mask[1, -3:] = 0
    check = write_onnx(model, {"input_ids": tokens, "attention_mask": mask}, tmp_path / "m.onnx")
    assert check.difference <= 1e-5
    assert check.shapes == ((3, 8, 11), (1, 4, 11))
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    assert {entry.name for entry in session.get_inputs()} == {"input_ids", "attention_mask"}


class LastTokens(nn.Module):
    """Embeddings of texts by their last token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return pooled_states(self.table(input_ids), attention_mask, "lasttoken")


@pytest.mark.integration
def test_a_pooled_token_is_found_in_any_number_of_texts(tmp_path: Path, runtime: Any) -> None:
    with seeding.scoped(0, "test model"):
        module = LastTokens()
    tokens = torch.arange(24).view(3, 8) % 11
    mask = torch.ones_like(tokens)
    mask[1, -3:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    assert write_onnx(module, inputs, tmp_path / "m.onnx").shapes == ((3, 4), (1, 4))
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    more = {name: torch.cat([tensor, tensor[:2]])[:, :6] for name, tensor in inputs.items()}
    (rows,) = session.run(None, {name: tensor.numpy() for name, tensor in more.items()})
    assert torch.equal(torch.from_numpy(rows), module(**more))


class SeveralOutputs(nn.Module):
    """Heads of one body in a mapping, or as items of a tuple."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(6, 2 + place) for place in range(len(names))])
        self.names = names

    def forward(self, inputs: Tensor) -> Any:
        outputs = [head(inputs) for head in self.heads]
        return dict(zip(self.names, outputs, strict=True)) if all(self.names) else tuple(outputs)


def several(names: tuple[str, ...]) -> SeveralOutputs:
    with seeding.scoped(0, "test model"):
        return SeveralOutputs(names)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("names", "declared", "written"),
    [
        (("color", "shape"), "shape", {"shape": (1,)}),
        (("color", "shape"), "", {"color": (0,), "shape": (1,)}),
        (("", ""), "1", {"output_1": (1,)}),
        (("", ""), "", {"output_0": (0,), "output_1": (1,)}),
        (("sentence_embedding", "token_states"), "", {"sentence_embedding": (0,)}),
        (("logits", "values"), "", {"logits": (0,)}),
        (("start_logits", "end_logits"), "", {"start_logits": (0,), "end_logits": (1,)}),
    ],
)
def test_outputs_have_the_names_of_torch(
    tmp_path: Path, runtime: Any, names: tuple[str, ...], declared: str, written: dict[str, Any]
) -> None:
    module = several(names)
    sample = drawn(4, 6)
    check = write_onnx(
        module, sample, tmp_path / "m.onnx", names=onnx_files.OutputNames(entry=declared)
    )
    assert check.outputs == tuple(written)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    assert [entry.name for entry in session.get_outputs()] == list(written)
    inputs = drawn(7, 6, seed=1)
    arrays = session.run(None, {"inputs": inputs.numpy()})
    for array, (place,) in zip(arrays, written.values(), strict=True):
        assert torch.allclose(torch.from_numpy(array), module.heads[place](inputs), atol=1e-6)
    assert str(check).startswith(f"{next(iter(written))} of shape 4x")
    assert all(f" and {name}" in str(check) for name in list(written)[1:])


@pytest.mark.integration
def test_each_output_is_compared(
    tmp_path: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = onnx_files._run

    def disturbed(*arguments: Any) -> list[Tensor]:
        first, second = original(*arguments)
        return [first, second + 0.1]

    monkeypatch.setattr(onnx_files, "_run", disturbed)
    with pytest.raises(BindError, match=r"color, shape of ONNX Runtime and torch differ by"):
        write_onnx(several(("color", "shape")), drawn(4, 6), tmp_path / "m.onnx")


@pytest.mark.integration
def test_logits_that_differ_are_refused(
    tmp_path: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, sample = mlp(5).module, drawn(4, 6)
    original = onnx_files._run

    def disturbed(*arguments: Any) -> list[Tensor]:
        return [array + 0.01 for array in original(*arguments)]

    monkeypatch.setattr(onnx_files, "_run", disturbed)
    with pytest.raises(BindError, match=r"differ by 1\.0e-02, more than 1\.0e-04; nothing was"):
        write_onnx(module, sample, tmp_path / "model.onnx")
    assert write_onnx(module, sample, tmp_path / "model.onnx", tolerance=0.1).difference > 0.005

    def undefined(*arguments: Any) -> list[Tensor]:
        return [array * torch.nan for array in original(*arguments)]

    monkeypatch.setattr(onnx_files, "_run", undefined)
    with pytest.raises(BindError, match="differ by nan"):
        write_onnx(module, sample, tmp_path / "model.onnx", tolerance=1e9)


def test_a_file_that_the_runtime_cannot_run_is_refused() -> None:
    class Session:
        def run(self, names: list[str], arrays: dict[str, Any]) -> None:
            raise OverflowError("too large")

    with pytest.raises(BindError, match=r"shapes \[\[4, 6\]\] fail: too large"):
        onnx_files._run(Session(), drawn(4, 6), {"inputs": ()}, ["logits"])


def test_a_single_example_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "check_onnx_packages", lambda: None)
    with pytest.raises(BindError, match=r"at least 2 examples.*got \{'inputs': \(1, 6\)\}"):
        write_onnx(mlp(5).module, drawn(1, 6), tmp_path / "model.onnx")


def test_a_model_that_cannot_be_traced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Branching(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs if inputs.sum() > 0 else -inputs

    monkeypatch.setattr(onnx_files, "check_onnx_packages", lambda: None)
    with pytest.raises(BindError, match=r"that torch\.onnx can export; Branching is not: "):
        write_onnx(Branching(), drawn(4, 6), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_smaller_part_follows_the_free_axes_that_the_model_takes() -> None:
    sample = drawn(4, 3, 8, 8)
    free = {"inputs": ("n", "3", "h", "w")}
    part = onnx_files._narrowed(sample, free, None)
    assert isinstance(part, Tensor)
    assert part.shape == (1, 3, 4, 4)
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    parts = onnx_files._subsets(module, sample, free)
    assert [tuple(outputs["logits"].shape) for _, outputs in parts] == [(4, 2), (1, 2)]


class Echo(nn.Module):
    """A model whose outputs are named as its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, x_output: Tensor) -> dict[str, Tensor]:
        return {"x": self.first(x), "x_output": self.second(x_output)}


@pytest.mark.integration
def test_an_output_with_the_name_of_an_input_is_renamed(tmp_path: Path, runtime: Any) -> None:
    with seeding.scoped(0, "test model"):
        module = Echo()
    sample = {"x": drawn(4, 3), "x_output": drawn(4, 3, seed=1)}
    check = write_onnx(module, sample, tmp_path / "model.onnx")
    assert check.outputs == ("x_output_output", "x_output_output_output")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = {name: tensor.numpy() for name, tensor in sample.items()}
    with torch.no_grad():
        expected = module(**sample).values()
    for array, tensor in zip(session.run(list(check.outputs), inputs), expected, strict=True):
        assert torch.allclose(torch.from_numpy(array), tensor, atol=1e-6)


def test_a_file_that_onnx_runtime_does_not_open_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: Any
) -> None:
    del runtime

    def write(_module: nn.Module, _sample: Any, path: Path, _names: Any) -> None:
        path.write_bytes(b"no model")

    monkeypatch.setattr(onnx_files, "_write", write)
    with seeding.scoped(0, "test model"):
        module = nn.Linear(6, 2)
    with pytest.raises(BindError, match=r"ONNX Runtime can run; it does not open the file: .+"):
        write_onnx(module, drawn(4, 6), tmp_path / "model.onnx")
