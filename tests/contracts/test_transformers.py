"""What tapped transformers promise: a reading shows what transformers itself computes."""

import copy
import inspect
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.inference import Inference
from curricle.models.tapped import Place, TappedModel, check_head
from curricle.teachers.live import LiveTeacher

NUM_IDS, LENGTH = 20, 6
TINY: dict[str, object] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
FAMILIES: dict[str, dict[str, object]] = {
    "bert": TINY,
    "roberta-prelayernorm": TINY,
    "megatron-bert": TINY,
    "modernbert": TINY,
    "llama": TINY,
    # These change the logits after the head.
    "gemma2": TINY | {"num_key_value_heads": 2, "head_dim": 4, "final_logit_softcapping": 0.05},
    "granite": TINY | {"logits_scaling": 8.0},
    "cohere": TINY | {"logit_scale": 0.125},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
}
CAUSAL = ("llama", "gemma2", "granite", "cohere", "gpt2")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_tap = pytest.mark.parametrize("tap", [0, 1, 2])


def drawn(family: str, **fields: object) -> TappedModel:
    spec = HuggingFaceSpec(
        model_type=family,
        head="causal_lm" if family in CAUSAL else "masked_lm",
        config=FAMILIES[family] | fields,
    )
    with seeding.scoped(0, "test model"):
        model = spec.build(num_inputs=NUM_IDS, num_classes=NUM_IDS, num_positions=LENGTH)
    model.module.eval()
    return model


@cache
def drawn_once(family: str) -> TappedModel:
    return drawn(family)


def build(family: str) -> TappedModel:
    """Return a fresh model with the same weights each time."""
    return copy.deepcopy(drawn_once(family))


def ids(num_examples: int = 3) -> dict[str, Tensor]:
    """Return token ids whose last example ends in padding."""
    generator = torch.Generator().manual_seed(num_examples)
    valid = torch.ones(num_examples, LENGTH, dtype=torch.int64)
    valid[-1, 4:] = 0
    tokens = torch.randint(4, NUM_IDS, (num_examples, LENGTH), generator=generator)
    return {"input_ids": tokens, "attention_mask": valid}


def transformer(model: TappedModel) -> Any:
    """Return the module; the methods of transformers carry no types."""
    assert isinstance(model.module, transformers.PreTrainedModel)
    return model.module


def full(module: nn.Module) -> Any:
    """Return what the module gives with the keywords that a reading uses."""
    has_cache = "use_cache" in inspect.signature(type(module).forward).parameters
    return module(**ids(), **({"use_cache": False} if has_cache else {}))


def in_full(model: TappedModel, place: Place) -> Tensor:
    """Return the state at a place in a full pass, by a plain hook and without stopping."""
    found: list[Tensor] = []
    target = model.module.get_submodule(place.path)
    handle = (
        target.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        if place.side == "input"
        else target.register_forward_hook(
            lambda _, __, output: found.append(output if isinstance(output, Tensor) else output[0])
        )
    )
    full(model.module)
    handle.remove()
    return found[0]


def early(model: TappedModel, place: Place) -> Tensor:
    with model.open_taps([place], logits=False) as forward:
        return forward(ids()).hidden[place]


def gradients(model: TappedModel, state: Tensor) -> list[Tensor | None]:
    loss = (state * torch.linspace(-1, 1, state.numel()).view_as(state)).sum()
    return list(torch.autograd.grad(loss, list(model.module.parameters()), allow_unused=True))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


@every_family
@every_tap
def test_early_exit_is_exactly_a_part_of_the_full_pass(family: str, tap: int) -> None:
    model = build(family)
    place = model.place(tap)
    assert torch.equal(early(model, place), in_full(model, place))


@every_family
@every_tap
def test_early_exit_has_exactly_the_gradients_of_the_full_pass(family: str, tap: int) -> None:
    model = build(family)
    place = model.place(tap)
    found = gradients(model, early(model, place))
    expected = gradients(model, in_full(model, place))
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert any(gradient is None for gradient in found)


@every_family
def test_blocks_after_the_tap_do_not_run(family: str) -> None:
    model = build(family)
    ran: list[str] = []
    for path, part in model.module.named_modules():
        part.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
    early(model, model.place(1))
    assert model.place(1).path in ran
    assert not any(path.startswith(model.place(2).path) for path in ran)


@every_family
@pytest.mark.parametrize("tap", [0, 1])
def test_taps_are_the_hidden_states_of_transformers(family: str, tap: int) -> None:
    # Its last hidden state is no tap: with most families it is normalized once more.
    model = build(family)
    states = model.module(**ids(), output_hidden_states=True).hidden_states
    assert torch.equal(early(model, model.place(tap)), states[tap])


@every_family
@pytest.mark.parametrize("positions", [[0, 1, 7, 15], [5], []], ids=str)
def test_logits_at_selected_positions_are_rows_of_the_full_logits(
    family: str, positions: list[int]
) -> None:
    model = build(family)
    with model.open_taps([model.place(1)], logits=True) as forward:
        shown = forward(ids(), torch.tensor(positions, dtype=torch.int64))
    expected = full(model.module).logits.flatten(0, 1)[positions]
    assert shown.hidden[model.place(1)].shape == (3, LENGTH, 8)
    # Fewer rows may go through another matrix routine, which rounds differently.
    torch.testing.assert_close(shown.logits, expected, rtol=1e-5, atol=1e-6)


@every_family
def test_weights_held_in_lower_precision_give_exactly_what_autocast_gives(family: str) -> None:
    teacher = LiveTeacher(build(family))

    def shown(inference: Inference) -> tuple[Tensor, Tensor]:
        place = teacher.model.place(1)
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16),
            teacher.teaching(inference),
            teacher.open_taps("final", [place], logits=True) as forward,
        ):
            found = forward(ids(), None, None)
        assert found.logits is not None
        return found.hidden[place], found.logits

    plain, held = shown(Inference()), shown(Inference(linear=torch.bfloat16))
    assert all(torch.equal(*pair) for pair in zip(held, plain, strict=True))


@every_family
def test_each_block_is_traced_in_one_piece(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    traced = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", traced)
    teacher = LiveTeacher(build(family))
    place = teacher.model.place(teacher.model.depth)
    wanted = early(teacher.model, place)
    with (
        torch.no_grad(),
        teacher.teaching(Inference(compiled=True)),
        teacher.open_taps("final", [place], logits=False) as forward,
    ):
        found = forward(ids(), None, None).hidden[place]
    assert torch.equal(found, wanted)


@every_family
def test_nothing_after_the_base_model_runs_where_no_logits_are_wanted(family: str) -> None:
    model = build(family)
    base = transformer(model).base_model
    seen: list[int] = []
    for part in model.module.children():
        if part is not base:
            part.register_forward_hook(
                lambda _, args, output: seen.append(output.shape[:-1].numel())
            )
    with model.open_taps([], logits=True) as forward:
        forward(ids(), torch.tensor([0, 1, 7, 15]))
    assert set(seen) == {4}


@every_family
def test_all_logits_are_exactly_those_of_the_full_pass(family: str) -> None:
    model = build(family)
    with model.open_taps([], logits=True) as forward:
        found = forward(ids()).logits
    assert found is not None
    expected = full(model.module).logits
    assert torch.equal(found, expected)
    pairs = zip(gradients(model, found), gradients(model, expected), strict=True)
    assert all(same(*pair) for pair in pairs)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("tap", [1, 2])
def test_checkpointed_blocks_have_the_gradients_of_plain_ones(family: str, tap: int) -> None:
    plain = build(family)
    place = plain.place(tap)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    saving = drawn(family, **(still if family == "bert" else {}))
    transformer(saving).train()
    transformer(saving).activation_checkpointing_enable()
    # The reading is still open during the backward pass, as in training.
    with saving.open_taps([place], logits=False) as forward:
        found = gradients(saving, forward(ids()).hidden[place])
    expected = gradients(plain, early(plain, place))
    assert all(same(*pair) for pair in zip(found, expected, strict=True))


@every_family
def test_a_model_of_one_layer_is_read(family: str) -> None:
    depth = {"gpt2": "n_layer", "distilbert": "n_layers"}.get(family, "num_hidden_layers")
    model = drawn(family, **{depth: 1})
    assert model.depth == 1
    assert model.place(0.5) == model.place(1)
    assert torch.equal(early(model, model.place(1)), in_full(model, model.place(1)))


@every_family
def test_a_student_that_was_read_is_saved_as_a_plain_model(family: str, tmp_path: Path) -> None:
    model = build(family)
    names = list(model.module.state_dict())
    with model.open_taps([model.place(1)], logits=True) as forward:
        forward(ids())
        transformer(model).save_pretrained(tmp_path)
    loaded = type(transformer(model)).from_pretrained(tmp_path).eval()
    assert list(loaded.state_dict()) == names
    assert torch.equal(full(loaded).logits, full(model.module).logits)


@every_family
@pytest.mark.parametrize("positions", [None, [0, 1, 7, 15]], ids=str)
def test_what_the_last_linear_map_receives_gives_the_logits(
    family: str, positions: list[int] | None
) -> None:
    model = build(family)
    selected = None if positions is None else torch.tensor(positions)
    with model.open_taps([], logits=True) as forward:
        logits = forward(ids(), selected).logits
    with model.open_taps([], logits=False, head=True) as forward:
        head = forward(ids(), selected).head
    assert head is not None
    assert logits is not None
    torch.testing.assert_close(head.logits(), logits)
    pairs = zip(gradients(model, head.logits()), gradients(model, logits), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
    check_head(model, ids())


@every_family
def test_a_pass_ends_before_the_last_linear_map(family: str) -> None:
    model = build(family)
    called: list[object] = []
    output = transformer(model).get_output_embeddings()
    output.register_forward_hook(lambda *call: called.append(call))
    with model.open_taps([], logits=False, head=True) as forward:
        forward(ids(), torch.tensor([0, 1]))
    assert not called


def test_logits_that_are_changed_in_an_unknown_way_are_noticed() -> None:
    model = build("granite")
    transformer(model).config.logits_scaling = 4.0
    with pytest.raises(
        BindError, match=r"^'chunk' must be None for GraniteForCausalLM, which makes its logits"
    ):
        check_head(model, ids())
