"""Weights that hooks fill for the length of a pass are found and read; those of accelerate's models
are in tests/integration/test_large_teachers.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.dispatching import (
    HOOK,
    is_dispatched,
    offloaded_weights,
    resident_weight,
)
from curricle.models.eligibility import check_present
from curricle.models.heads import LinearHead
from curricle.models.tapped import Activations, Place
from curricle.models.weights import weights_digest
from curricle.teachers.live import collected
from curricle.training.setup.placement import SingleDevice


def offloaded(model: nn.Sequential, number: int, **hook: Any) -> dict[str, Tensor]:
    """Move the weights of a module out of a model, and return them."""
    module = model[number]
    stored = {name: weight.detach().double() for name, weight in module.named_parameters()}
    module.to("meta")
    entry = SimpleNamespace(weights_map=stored, place_submodules=False, **hook)
    # A sequence of hooks, of which one has no weights.
    vars(module)[HOOK] = SimpleNamespace(hooks=(SimpleNamespace(), entry))
    return stored


def two_maps() -> nn.Sequential:
    with seeding.scoped(0, "model"):
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(number + 0.5)
    return model


def test_stored_weights_are_read_in_the_precision_of_the_model() -> None:
    plain, model = two_maps(), two_maps()
    assert (is_dispatched(model), dict(offloaded_weights(model))) == (False, {})
    offloaded(model, 0)
    readers = offloaded_weights(model)
    assert is_dispatched(model)
    assert set(readers) == {"0.weight", "0.bias"}
    for name, read in readers.items():
        assert read().dtype == torch.float32
        assert torch.equal(read(), plain.get_parameter(name))
    assert weights_digest(model) == weights_digest(plain)
    assert resident_weight(model) is model[1].weight
    assert resident_weight(nn.Linear(1, 1, device="meta")).device.type == "cpu"


def test_only_a_teacher_may_have_weights_elsewhere() -> None:
    model = two_maps()
    offloaded(model, 1)
    check_present(model, "teacher")
    with pytest.raises(BindError, match="'student' must have its weights in memory to be trained"):
        check_present(model, "student")
    # Without a hook nothing can fill them.
    del vars(model[1])[HOOK]
    with pytest.raises(
        BindError, match=r"'teacher' must have weights; '1\.weight' is a meta tensor"
    ):
        check_present(model, "teacher")


def test_a_model_with_hooks_is_not_moved() -> None:
    model = two_maps()
    offloaded(model, 1)
    assert SingleDevice("meta").place(model) is model
    assert not model[0].weight.is_meta


def test_states_are_brought_to_the_inputs() -> None:
    # The memory without data stands for a second device.
    inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long, device="meta")}
    head = LinearHead(states=torch.ones(2, 4), weight=torch.ones(5, 4), bias=torch.ones(5))
    place = Place("0")
    result = collected(
        Activations(hidden={place: torch.ones(2, 4)}, logits=torch.ones(2, 5), head=head), inputs
    )
    assert result.logits is not None
    assert result.head is not None
    assert result.head.bias is not None
    moved = (result.hidden[place], result.logits, result.head.states, result.head.weight)
    assert all(tensor.is_meta for tensor in (*moved, result.head.bias))
    bare = collected(Activations(hidden={place: torch.ones(2, 4)}), inputs["input_ids"])
    assert (bare.hidden[place].is_meta, bare.logits, bare.head) == (True, None, None)
