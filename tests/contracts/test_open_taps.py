"""What every reading promises: it leaves nothing behind, in the module or in memory."""

import copy
import weakref
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.models.huggingface import Head, HuggingFaceSpec
from curricle.models.mlp import MLPSpec
from curricle.models.tapped import Inputs, Place, Tap, TappedModel
from curricle.models.wrapping import tapped
from tests.parts import Shared

NUM_IDS, LENGTH = 20, 6


def transformer(family: str, head: Head, **fields: int) -> TappedModel:
    spec = HuggingFaceSpec(model_type=family, head=head, config=fields)
    return spec.build(num_inputs=NUM_IDS, num_classes=NUM_IDS, num_positions=LENGTH)


MAKERS: dict[str, Callable[[], TappedModel]] = {
    "mlp": lambda: MLPSpec(widths=(5, 6)).build(num_inputs=4, num_classes=3, num_positions=0),
    "sequential": lambda: tapped(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))),
    "shared block": lambda: tapped(Shared(), head="head"),
    "bert": lambda: transformer(
        "bert",
        "masked_lm",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    ),
    "gpt2": lambda: transformer("gpt2", "causal_lm", n_embd=8, n_layer=2, n_head=2),
}
# A shallow tap and a deep one.
TAPS: dict[str, tuple[Tap, Tap]] = {
    "mlp": (0, 2),
    "sequential": ("0", "1"),
    "shared block": ("block", "block#2"),
    "bert": (0, 2),
    "gpt2": (0, 2),
}

every_model = pytest.mark.parametrize("name", MAKERS)


@cache
def drawn_model(name: str) -> TappedModel:
    with seeding.scoped(0, "test model"):
        model = MAKERS[name]()
    model.module.eval()
    return model


def build(name: str) -> tuple[TappedModel, Place, Place]:
    """Return a fresh model, a shallow place and a deep one."""
    model = copy.deepcopy(drawn_model(name))
    shallow, deep = TAPS[name]
    return model, model.place(shallow), model.place(deep)


def drawn_inputs(name: str, num_examples: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(num_examples)
    if name in ("bert", "gpt2"):
        shape = num_examples, LENGTH
        return {"input_ids": torch.randint(4, NUM_IDS, shape, generator=generator)}
    return torch.randn(num_examples, 4, generator=generator)


def hooks(module: nn.Module) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
        for part in module.modules()
    )


def alone(model: TappedModel, place: Place, inputs: Inputs) -> Tensor:
    """Return the state at a place in a reading of its own."""
    with model.open_taps([place], logits=False) as forward:
        return forward(inputs).hidden[place]


@every_model
def test_hooks_live_as_long_as_the_reading(name: str) -> None:
    model, shallow, deep = build(name)
    before = hooks(model.module)
    with model.open_taps([shallow, deep], logits=True) as forward:
        forward(drawn_inputs(name))
        assert hooks(model.module) > before
    assert hooks(model.module) == before


@every_model
def test_hooks_are_gone_after_an_exception_in_the_block_of_the_reading(name: str) -> None:
    model, shallow, _ = build(name)
    before = hooks(model.module)

    def fail_while_reading() -> None:
        with model.open_taps([shallow], logits=True) as forward:
            forward(drawn_inputs(name))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_reading()
    assert hooks(model.module) == before


@every_model
def test_hooks_are_gone_after_an_exception_in_forward(name: str) -> None:
    model, _, deep = build(name)
    before = hooks(model.module)

    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    handle = model.module.get_submodule(deep.path).register_forward_pre_hook(break_down)
    with pytest.raises(ZeroDivisionError):
        alone(model, deep, drawn_inputs(name))
    handle.remove()
    assert hooks(model.module) == before


@every_model
def test_a_reading_goes_on_after_an_exception_in_forward(name: str) -> None:
    model, shallow, deep = build(name)
    inputs, faults = drawn_inputs(name), iter([True])

    def break_down_once(*_: object) -> None:
        if next(faults, False):
            raise ZeroDivisionError

    model.module.get_submodule(deep.path).register_forward_pre_hook(break_down_once)
    with model.open_taps([shallow, deep], logits=False) as forward:
        with pytest.raises(ZeroDivisionError):
            forward(inputs)
        activations = forward(inputs).hidden
    assert torch.equal(activations[shallow], alone(model, shallow, inputs))
    assert torch.equal(activations[deep], alone(model, deep, inputs))


@every_model
def test_passes_of_different_size_do_not_mix(name: str) -> None:
    model, shallow, deep = build(name)
    batches = [drawn_inputs(name, num_examples) for num_examples in (4, 1, 2)]
    with model.open_taps([shallow, deep], logits=True) as forward:
        activations = [forward(batch).hidden for batch in batches]
    for hidden, batch in zip(activations, batches, strict=True):
        assert torch.equal(hidden[shallow], alone(model, shallow, batch))
        assert torch.equal(hidden[deep], alone(model, deep, batch))


@every_model
def test_an_open_reading_keeps_no_tensor_alive(name: str) -> None:
    model, _, deep = build(name)
    with model.open_taps([deep], logits=True) as forward:
        activations = forward(drawn_inputs(name))
        assert activations.logits is not None
        watched = [weakref.ref(activations.hidden[deep]), weakref.ref(activations.logits)]
        del activations
        assert [reference() for reference in watched] == [None, None]


@every_model
def test_nested_readings_do_not_disturb_each_other(name: str) -> None:
    model, shallow, deep = build(name)
    inputs = drawn_inputs(name)
    with model.open_taps([deep], logits=False) as outer:
        with model.open_taps([shallow], logits=True) as inner:
            first, within = outer(inputs), inner(inputs)
        after = outer(inputs)
    assert [list(activations.hidden) for activations in (first, within, after)] == [
        [deep],
        [shallow],
        [deep],
    ]
    assert torch.equal(within.hidden[shallow], alone(model, shallow, inputs))
    assert torch.equal(first.hidden[deep], after.hidden[deep])
    assert torch.equal(after.hidden[deep], alone(model, deep, inputs))


@every_model
def test_another_forward_while_a_reading_is_open_is_the_plain_one(name: str) -> None:
    model, shallow, _ = build(name)
    inputs = drawn_inputs(name)

    def plain() -> Tensor:
        output = model.module(inputs) if isinstance(inputs, Tensor) else model.module(**inputs)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    expected = plain()
    with model.open_taps([shallow], logits=True) as forward:
        forward(inputs)
        assert torch.equal(plain(), expected)


@every_model
def test_no_gradient_is_kept_without_gradient(name: str) -> None:
    model, shallow, deep = build(name)
    with torch.no_grad(), model.open_taps([shallow, deep], logits=True) as forward:
        activations = forward(drawn_inputs(name))
    assert activations.logits is not None
    assert not any(
        state.requires_grad for state in [*activations.hidden.values(), activations.logits]
    )


@every_model
def test_a_pass_in_inference_mode_is_read(name: str) -> None:
    model, shallow, deep = build(name)
    with torch.inference_mode(), model.open_taps([shallow, deep], logits=True) as forward:
        activations = forward(drawn_inputs(name)).hidden
    assert torch.equal(activations[deep], alone(model, deep, drawn_inputs(name)))
