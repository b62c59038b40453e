"""Weights on disk: what is written, what is checked before it is read, and what is refused."""

import hashlib
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import CheckpointError
from curricle.models.weights import (
    architecture,
    check_weights,
    load_weights,
    save_weights,
    shapes,
    weights_digest,
)
from tests.parts import drawn


class Tied(nn.Module):
    """An embedding that is also the head, next to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(1))
        self.scale: Tensor


def linear(inputs: int = 3, outputs: int = 2, *, seed: int = 0) -> nn.Linear:
    with seeding.scoped(seed, "test model"):
        return nn.Linear(inputs, outputs)


def tied(seed: int = 0) -> Tied:
    with seeding.scoped(seed, "test model"):
        return Tied()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    one, other = linear(seed=0), linear(seed=1)
    save_weights(one, tmp_path / "new" / "weights.safetensors")
    load_weights(other, tmp_path / "new" / "weights.safetensors")
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_buffers_travel_too(tmp_path: Path) -> None:
    one, other = tied(), tied()
    one.scale.fill_(7)
    save_weights(one, tmp_path / "weights")
    load_weights(other, tmp_path / "weights")
    assert other.scale.item() == 7


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    one, other = tied(0), tied(1)
    save_weights(one, tmp_path / "weights")
    load_weights(other, tmp_path / "weights")
    assert len(safetensors.torch.load_file(tmp_path / "weights")) == 2
    assert torch.equal(other.head.weight, one.embedding.weight)
    assert other.head.weight is other.embedding.weight


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    module = linear()
    save_weights(module, tmp_path / "weights")
    found = safetensors.torch.load_file(tmp_path / "weights")
    assert torch.equal(found["weight"], module.weight)
    assert sorted(found) == ["bias", "weight"]


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    save_weights(linear(seed=0), tmp_path / "weights")
    save_weights(linear(seed=1), tmp_path / "weights")
    loaded = linear(seed=2)
    load_weights(loaded, tmp_path / "weights")
    assert torch.equal(loaded.weight, linear(seed=1).weight)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_the_file_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: exists.append((tmp_path / "weights").exists()))
    save_weights(linear(), tmp_path / "weights")
    assert exists == [False, True]


def test_loading_does_not_change_the_precision_of_the_module(tmp_path: Path) -> None:
    save_weights(linear().to(torch.bfloat16), tmp_path / "weights")
    loaded = linear(seed=1)
    load_weights(loaded, tmp_path / "weights")
    assert loaded.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.weight, linear().weight, rtol=2**-8, atol=0)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^'.*nothing' must be a safetensors file; there is"):
        check_weights(linear(), tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"no tensors in here, only words"], ids=["empty", "text"])
def test_a_file_that_holds_something_else_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^'.*weights' must be a safetensors file: "):
        check_weights(linear(), tmp_path / "weights")


def test_a_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    save_weights(linear(), tmp_path / "weights")
    whole = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"must be a safetensors file: "):
        load_weights(linear(), tmp_path / "weights")


@pytest.mark.parametrize(
    ("found", "wanted", "rule"),
    [
        (nn.Linear(3, 2, bias=False, device="meta"), linear(), "'bias' is missing"),
        (linear(), nn.Linear(3, 2, bias=False, device="meta"), "'bias' is not in the model"),
        (linear(4, 2), linear(3, 2), r"'weight' has shape \(2, 4\) instead of \(2, 3\)"),
    ],
)
def test_weights_of_another_model_are_told(
    tmp_path: Path, found: nn.Module, wanted: nn.Module, rule: str
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in shapes(found).items()}
    safetensors.torch.save_file(tensors, tmp_path / "weights")
    with pytest.raises(CheckpointError, match=rf"must hold this model's weights; {rule}$"):
        load_weights(wanted, tmp_path / "weights")


def test_a_file_without_either_name_of_a_tied_weight_is_told(tmp_path: Path) -> None:
    safetensors.torch.save_file({"scale": torch.ones(1)}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"; 'embedding.weight' is missing$"):
        check_weights(tied(), tmp_path / "weights")


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_either_name_of_a_tied_weight_will_do(tmp_path: Path, name: str) -> None:
    tensors = {name: torch.full((5, 3), 2.0), "scale": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "weights")
    module = tied()
    load_weights(module, tmp_path / "weights")
    assert module.embedding.weight.unique().tolist() == [2.0]


def test_empty_tensors_are_not_taken_for_shared(tmp_path: Path) -> None:
    module = nn.ParameterDict({"a": torch.zeros(0), "b": torch.zeros(0)})
    safetensors.torch.save_file({"a": torch.zeros(0)}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"; 'b' is missing$"):
        check_weights(module, tmp_path / "weights")


def test_checking_changes_nothing(tmp_path: Path) -> None:
    save_weights(linear(seed=0), tmp_path / "weights")
    module = linear(seed=1)
    check_weights(module, tmp_path / "weights")
    assert torch.equal(module.weight, linear(seed=1).weight)


def test_shapes_are_those_of_parameters_and_buffers() -> None:
    assert shapes(tied()) == {"scale": (1,), "embedding.weight": (5, 3), "head.weight": (5, 3)}


def test_models_that_can_share_weights_have_one_architecture() -> None:
    assert architecture(linear(seed=0)) == architecture(linear(seed=1))
    assert architecture(linear(3, 2)) != architecture(linear(2, 3))
    assert architecture(nn.Sequential(linear())) != architecture(linear())


def quantized(seed: int = 0) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=seed + number)
    found: nn.Module = torch.ao.quantization.quantize_dynamic(
        module, {nn.Linear}, dtype=torch.qint8
    )
    return found


class Configured(nn.Linear):
    """Keeps settings in its state, which are no tensors."""

    def __init__(self, settings: object) -> None:
        super().__init__(2, 2, bias=False)
        self.weight.data.fill_(1.0)
        self._settings = settings

    def get_extra_state(self) -> object:
        return self._settings

    def set_extra_state(self, state: object) -> None:
        self._settings = state


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_digest_of_a_quantized_module_covers_its_packed_weights() -> None:
    with seeding.scoped(0, "model"):
        first, same, other = quantized(), quantized(), quantized(seed=9)
    assert weights_digest(first) == weights_digest(same) != weights_digest(other)


@pytest.mark.parametrize("settings", [{"scale": 2}, ("int8", [1, 2]), None])
def test_the_digest_covers_state_that_is_no_tensor(settings: object) -> None:
    with seeding.scoped(0, "model"):
        one, same, other = Configured(settings), Configured(settings), Configured({"scale": 3})
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)


def test_the_digest_of_state_does_not_depend_on_where_it_lies() -> None:
    with seeding.scoped(0, "model"):
        one, other = Configured([object()]), Configured([object()])
    assert weights_digest(one) == weights_digest(other)


def test_the_digest_of_plain_weights_is_that_of_names_types_shapes_and_bytes() -> None:
    with seeding.scoped(0, "model"):
        module = nn.Linear(2, 1, bias=False)
    content = b"weight:torch.float32:(1, 2);" + module.weight.detach().numpy().tobytes()
    assert weights_digest(module) == hashlib.sha256(content).hexdigest()


class Transposed(nn.Module):
    """Two names of the same numbers, one of them transposed, as PEFT ties adapters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.low = nn.Parameter(drawn(3, 5, seed=seed))
        self.register_buffer("high", self.low.detach().T)
        self.high: Tensor


def test_names_that_share_their_memory_in_another_order_are_kept(tmp_path: Path) -> None:
    one, other = Transposed(0), Transposed(1)
    save_weights(one, tmp_path / "weights")
    load_weights(other, tmp_path / "weights")
    assert torch.equal(other.low, one.low)
    assert torch.equal(other.high, one.low.T)
    assert other.high.data_ptr() == other.low.data_ptr()
