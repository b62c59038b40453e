"""Adapters of PEFT, known by the attributes of their layers."""

from typing import Any

import pytest
from torch import Tensor, nn

from curricle import seeding
from curricle.models.peft_adapters import base_of, is_tuned, tuner_settings
from curricle.models.weights import weights_digest
from tests.parts import Tuned


def network() -> nn.Sequential:
    with seeding.scoped(0, "model"):
        return nn.Sequential(Tuned(nn.Linear(3, 4), "a", "b"), nn.ReLU(), nn.Linear(4, 2))


class Named(nn.Module):
    """Has methods and values of the names that PEFT uses, as models of transformers do."""

    scaling = 0.5

    def active_adapters(self) -> list[str]:
        raise ValueError

    def disable_adapters(self) -> None:
        raise ValueError


def test_the_settings_of_an_adapter_are_those_that_are_active() -> None:
    settings = {"active": ["a"], "disabled": False, "merged": [], "scaling": {"a": 2.0}}
    assert tuner_settings(network()) == {"0": settings}


@pytest.mark.parametrize("module", [nn.Linear(3, 4), Named()], ids=["plain", "methods"])
def test_a_module_without_adapters_has_no_settings(module: nn.Module) -> None:
    assert tuner_settings(module) == {}
    assert not is_tuned(module)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("active_adapters", ["b"]),
        ("disable_adapters", True),
        ("merged_adapters", ["a"]),
        ("scaling", {"a": 3.0, "b": 2.0}),
    ],
)
def test_what_adapters_do_is_part_of_a_digest_of_weights(name: str, setting: object) -> None:
    module = network()
    before = weights_digest(module)
    setattr(module[0], name, setting)
    assert weights_digest(module) != before


def test_the_digest_of_a_model_without_adapters_is_that_of_its_tensors() -> None:
    assert weights_digest(Named()) == weights_digest(nn.ReLU())


class Wrapper(nn.Module):
    """A wrapper that names the model inside, as PEFT's does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def get_base_model(self) -> Any:
        return self.model

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.model(inputs)
        return found


def test_the_model_inside_of_a_wrapper_is_found() -> None:
    inner = nn.ReLU()
    assert base_of(Wrapper(inner)) is inner


def test_what_names_no_module_is_its_own_base() -> None:
    wrapper = Wrapper(None)
    assert base_of(wrapper) is wrapper
