"""Reading any module: what its outputs may look like, where taps lie, and how mistakes are said."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.axes import observing
from curricle.models.heads import HeadEnd
from curricle.models.hooked import HookedModel
from curricle.models.stacks import Numbering, Stack
from curricle.models.tapped import Activations, Inputs, Place, Tap, check_head
from tests.parts import Tuned, drawn


def linear(inputs: int, outputs: int) -> nn.Linear:
    with seeding.scoped(0, "test model"):
        return nn.Linear(inputs, outputs)


def forward(
    model: HookedModel,
    inputs: Inputs,
    *taps: Tap,
    logits: bool = False,
    head: bool = False,
    selected: list[int] | None = None,
) -> Activations:
    places = [model.place(tap) for tap in taps]
    with observing(model), model.open_taps(places, logits=logits, head=head) as reader:
        return reader(inputs, None if selected is None else torch.tensor(selected))


class Returns(nn.Module):
    """A block and a head; forward returns the logits in some wrapping."""

    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.block, self.head, self.output = linear(4, 4), linear(4, 3), output

    def forward(self, inputs: Tensor) -> object:
        logits = self.head(self.block(inputs))
        if self.output is dict:
            return {"first": torch.zeros(1), "logits": logits}
        if self.output is tuple:
            return logits, torch.zeros(1)
        if self.output is Answer:
            return Answer(first=torch.zeros(1), logits=logits)
        return logits if self.output is None else self.output


@dataclass
class Answer:
    first: Tensor
    logits: Tensor


def test_tap_zero_is_the_input_of_the_first_block() -> None:
    module = nn.Sequential(linear(3, 4), linear(4, 4), linear(4, 4))
    model = HookedModel(module, blocks=["1", "2"])
    assert model.place(0) == Place("1", side="input")
    assert torch.equal(
        forward(model, drawn(2, 3), 0).hidden[model.place(0)], module[0](drawn(2, 3))
    )


@pytest.mark.parametrize(
    ("tap", "place", "label"),
    [
        (0, Place("0", side="input"), "0"),
        (1, Place("0"), "1"),
        (2, Place("1", call=1), "2"),
        (0.5, Place("0"), "1"),
        ("1", Place("1"), "1"),
        ("1#1", Place("1", call=1), "1#1"),
    ],
)
def test_a_tap_stands_for_a_place(tap: Tap, place: Place, label: str) -> None:
    model = HookedModel(nn.Sequential(nn.Identity(), nn.Identity()), blocks=["0", "1#1"])
    assert model.place(tap) == place
    assert model.place(tap).label == label


def test_what_is_declared_is_known() -> None:
    module = nn.Sequential(nn.Identity())
    model = HookedModel(module, blocks=["0"], is_residual=True)
    assert (model.module, model.depth, model.is_residual) == (module, 1, True)
    assert HookedModel(module).depth == 0


def test_the_same_tap_twice_is_read_once() -> None:
    model = HookedModel(nn.Sequential(linear(3, 4)), blocks=["0"])
    assert list(forward(model, drawn(2, 3), 1, "0").hidden) == [Place("0")]


def test_the_module_itself_may_be_a_tap() -> None:
    module = nn.Sequential(linear(3, 4), nn.Tanh())
    assert torch.equal(
        forward(HookedModel(module), drawn(2, 3), "").hidden[Place("")], module(drawn(2, 3))
    )


def test_a_block_may_take_its_state_by_keyword() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.block(input=inputs * 2)
            return found

    model = HookedModel(ByKeyword(), blocks=["block"])
    assert torch.equal(forward(model, drawn(2, 4), 0).hidden[model.place(0)], drawn(2, 4) * 2)


def test_fixed_keywords_reach_every_call() -> None:
    class Scaled(nn.Module):
        def forward(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
            return inputs * scale

    found = forward(HookedModel(Scaled(), keywords={"scale": 3.0}), torch.ones(2, 1), logits=True)
    assert found.logits is not None
    assert found.logits.tolist() == [[3.0], [3.0]]


def test_named_inputs_are_passed_as_keywords() -> None:
    class Sum(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    inputs = {"right": torch.ones(2, 1), "left": torch.full((2, 1), 5.0)}
    found = forward(HookedModel(Sum()), inputs, logits=True).logits
    assert found is not None
    assert found.tolist() == [[4.0], [4.0]]


@pytest.mark.parametrize("output", [None, dict, tuple, Answer], ids=str)
def test_logits_are_found_in_what_forward_returns(output: object) -> None:
    module = Returns(output)
    found = forward(HookedModel(module), drawn(2, 4), logits=True).logits
    assert found is not None
    assert torch.equal(found, module.head(module.block(drawn(2, 4))))


def test_without_a_head_selected_logits_are_rows_of_the_output() -> None:
    module = Returns()
    found = forward(HookedModel(module), drawn(2, 5, 4), logits=True, selected=[1, 9]).logits
    assert found is not None
    assert torch.equal(found, module(drawn(2, 5, 4)).flatten(0, 1)[[1, 9]])


def test_the_head_runs_at_the_selected_positions_only() -> None:
    module = Returns()
    seen: list[tuple[int, ...]] = []
    module.head.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    forward(HookedModel(module, head="head"), drawn(2, 5, 4), logits=True, selected=[1, 4, 9])
    assert seen == [(3, 4)]


def test_the_pass_ends_after_the_head() -> None:
    class Long(Returns):
        def forward(self, inputs: Tensor) -> object:
            super().forward(inputs)
            raise AssertionError

    assert forward(HookedModel(Long(), head="head"), drawn(2, 4), logits=True).logits is not None


class Halving(Returns):
    """A model that changes its logits after the head."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        assert isinstance(logits, Tensor)
        return logits / 2


@pytest.mark.parametrize("selected", [None, [1, 4, 9]], ids=str)
def test_a_pass_may_go_on_after_the_head(selected: list[int] | None) -> None:
    module = Halving()
    model = HookedModel(module, head="head", head_end=HeadEnd(path="head"))
    found = forward(model, drawn(2, 5, 4), logits=True, selected=selected).logits
    expected = module(drawn(2, 5, 4))
    if selected is not None:
        expected = expected.flatten(0, 1)[selected]
    torch.testing.assert_close(found, expected)


def test_the_first_of_several_heads_receives_the_selected_positions() -> None:
    module = Returns()
    seen: list[tuple[int, ...]] = []
    for part in (module.block, module.head):
        part.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    model = HookedModel(module, head=["block", "head"])
    found = forward(model, drawn(2, 5, 4), logits=True, selected=[1, 4, 9]).logits
    assert seen == [(3, 4), (3, 4)]
    torch.testing.assert_close(found, module(drawn(2, 5, 4)).flatten(0, 1)[[1, 4, 9]])


def test_a_model_that_reshapes_its_logits_after_the_head_is_refused() -> None:
    class Reshaping(Returns):
        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(self.block(inputs))
            return logits[None]

    model = HookedModel(Reshaping(), head="head", head_end=HeadEnd(path="head"))
    with pytest.raises(
        BindError,
        match=r"^'head' must give logits of its 2 positions, one below the other; "
        r"got shape \(1, 2, 3\)$",
    ):
        forward(model, drawn(2, 5, 4), logits=True, selected=[1, 9])


@pytest.mark.parametrize("head", [(), ("1",)], ids=["no head", "head"])
def test_positions_are_not_selected_where_the_width_is_not_last(head: tuple[str, ...]) -> None:
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(nn.Conv1d(2, 5, 3), nn.Conv1d(5, 3, 1))
    model = HookedModel(module, head=head, width_axis=1)
    assert forward(model, drawn(4, 2, 9), logits=True).logits is not None
    with pytest.raises(
        BindError, match=r"^'width_axis' must be -1 for logits at selected positions; got 1$"
    ):
        forward(model, drawn(4, 2, 9), logits=True, selected=[1, 2])


def test_a_tap_around_the_head_shows_all_positions() -> None:
    module = nn.Sequential(linear(4, 4), nn.Sequential(linear(4, 4), linear(4, 3)))
    model = HookedModel(module, head="1.1")
    found = forward(model, drawn(2, 5, 4), "1", "", logits=True, selected=[1, 9])
    assert [state.shape for state in found.hidden.values()] == [(2, 5, 3), (2, 5, 3)]
    assert found.logits is not None
    assert torch.equal(found.logits, module(drawn(2, 5, 4)).flatten(0, 1)[[1, 9]])


def test_a_head_may_take_its_state_by_keyword() -> None:
    class ByKeyword(Returns):
        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.head(input=self.block(inputs))
            return found

    module = ByKeyword()
    model = HookedModel(module, head="head")
    found = forward(model, drawn(2, 5, 4), logits=True, selected=[1, 9]).logits
    torch.testing.assert_close(found, module(drawn(2, 5, 4)).flatten(0, 1)[[1, 9]])


def test_a_tap_inside_the_head_shows_all_positions() -> None:
    module = nn.Sequential(linear(4, 4), nn.Sequential(linear(4, 4), linear(4, 3)))
    model = HookedModel(module, head="1")
    found = forward(model, drawn(2, 5, 4), "1.0", logits=True, selected=[1, 9])
    assert found.hidden[Place("1.0")].shape == (2, 5, 4)
    assert found.logits is not None
    assert torch.equal(found.logits, module(drawn(2, 5, 4)).flatten(0, 1)[[1, 9]])


def test_a_tap_beside_a_head_of_a_similar_name_does_not_keep_it_from_selecting() -> None:
    module = Returns()
    module.add_module("head_2", nn.Identity())
    model = HookedModel(module, blocks=["block"], head="head")
    found = forward(model, drawn(2, 5, 4), 1, logits=True, selected=[3])
    assert found.logits is not None
    assert found.logits.shape == (1, 3)


def test_the_width_axis_is_moved_to_the_end() -> None:
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(nn.Conv1d(2, 5, 3), nn.Flatten())
    model = HookedModel(module, width_axis=1)
    found = forward(model, drawn(3, 2, 9), "0", "1").hidden
    assert torch.equal(found[Place("0")], module[0](drawn(3, 2, 9)).transpose(1, 2))
    assert found[Place("1")].shape == (3, 35)


def test_a_state_that_a_later_module_changes_in_place_is_refused() -> None:
    model = HookedModel(nn.Sequential(linear(4, 4), nn.ReLU(inplace=True), linear(4, 3)))
    with pytest.raises(BindError, match=r"^tap '0' must keep its value .* changes it in place"):
        forward(model, drawn(2, 4), "0", logits=True)


def test_a_state_that_would_be_changed_after_the_exit_is_fine() -> None:
    module = nn.Sequential(linear(4, 4), nn.ReLU(inplace=True))
    found = forward(HookedModel(module), drawn(2, 4), "0").hidden[Place("0")]
    assert torch.equal(found, module[0](drawn(2, 4)))
    assert (found < 0).any()


def test_model_code_cannot_swallow_the_exit() -> None:
    class Swallowing(Returns):
        def forward(self, inputs: Tensor) -> object:
            try:
                return self.head(self.block(inputs))
            except Exception:  # noqa: BLE001 - what careless model code does
                return None

    model = HookedModel(Swallowing())
    assert list(forward(model, drawn(2, 4), "block").hidden) == [Place("block")]


def test_a_tap_number_needs_blocks() -> None:
    model = HookedModel(nn.Sequential(nn.Identity()))
    with pytest.raises(
        BindError,
        match=r"^tap 1 needs a model with numbered blocks; got Sequential without 'blocks', so "
        r"name a module path: available: '0'$",
    ):
        model.place(1)


@pytest.mark.parametrize("wrong", [{"blocks": ["a"]}, {"head": "a"}], ids=str)
def test_declared_paths_must_exist(wrong: dict[str, object]) -> None:
    with pytest.raises(
        BindError, match=r"^tap 'a' must be a module path of Sequential; available: '0', '1'$"
    ):
        HookedModel(nn.Sequential(nn.Identity(), nn.Identity()), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("tap", ["0#", "0#x", "0#-1", "0#1.5"])
def test_the_number_of_a_call_is_a_whole_number(tap: str) -> None:
    with pytest.raises(BindError, match=f"^tap '{tap}' must be a module path"):
        HookedModel(nn.Sequential(nn.Identity())).place(tap)


def test_a_module_that_forward_does_not_use_is_refused() -> None:
    module = Returns()
    module.add_module("unused", nn.Identity())
    with pytest.raises(
        BindError,
        match=r"^tap 'unused' must be reached by forward; it was not; name a module "
        r"that runs in every pass, or switch off what skips it, such as layerdrop$",
    ):
        forward(HookedModel(module), drawn(2, 4), "unused")


def test_a_head_that_forward_does_not_use_is_refused() -> None:
    module = Returns()
    module.add_module("unused", nn.Identity())
    with pytest.raises(BindError, match=r"^'head' must be reached by forward; it was not$"):
        forward(HookedModel(module, head="unused"), drawn(2, 4), logits=True)


def test_a_tap_must_give_a_tensor() -> None:
    model = HookedModel(nn.Sequential(Returns(output="text")))
    with pytest.raises(BindError, match=r"^tap '0' must give a tensor; got str$"):
        forward(model, drawn(2, 4), "0")


def test_logits_must_be_a_tensor_where_they_are_used() -> None:
    shown = forward(HookedModel(Returns(output="text")), drawn(2, 4), logits=True)
    assert shown.logits is None
    assert shown.obscurity == "tap 'logits' must give a tensor; got str"


def test_a_pass_to_the_end_shows_a_tap_whatever_the_model_returns() -> None:
    pair = torch.zeros(2, 4), torch.ones(2, 3)
    shown = forward(HookedModel(Returns(output=pair)), drawn(2, 4), "block", logits=True)
    assert list(shown.hidden) == [Place("block")]
    assert shown.logits is None
    assert "got item 0 (2, 4), item 1 (2, 3); wrap the model in a module" in shown.obscurity


def test_logits_of_a_map_have_their_classes_on_the_declared_axis() -> None:
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(nn.Conv2d(2, 5, 1))
    inputs = drawn(3, 2, 4, 6)
    shown = forward(HookedModel(module, width_axis=1), inputs, logits=True)
    assert shown.logits is not None
    assert torch.equal(shown.logits, module(inputs).permute(0, 2, 3, 1))


def test_logits_of_a_linear_head_have_their_classes_last_whatever_the_states_have() -> None:
    class PerPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with seeding.scoped(0, "test model"):
                self.conv, self.head = nn.Conv1d(2, 4, 1), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.head(self.conv(inputs).mT)
            return found

    model = HookedModel(PerPosition(), head="head", width_axis=1)
    shown = forward(model, drawn(5, 2, 7), "conv", logits=True)
    assert shown.hidden[Place("conv")].shape == (5, 7, 4)
    assert shown.logits is not None
    assert shown.logits.shape == (5, 7, 3)


def test_a_tapped_model_is_called_as_its_module_is() -> None:
    with seeding.scoped(0, "test model"):
        module = nn.Bilinear(2, 3, 4)
    model = HookedModel(module)
    assert torch.equal(model(drawn(5, 2), input2=drawn(5, 3)), module(drawn(5, 2), drawn(5, 3)))


def test_a_head_must_receive_a_tensor() -> None:
    class Head(nn.Module):
        def forward(self, states: list[Tensor]) -> Tensor:
            return states[0]

    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.head([inputs])
            return found

    model = HookedModel(Wrapping(), head="head")
    with pytest.raises(BindError, match=r"^'head' must receive hidden states first; got list$"):
        forward(model, drawn(2, 4), logits=True, selected=[0])


# --- what the logits come from --------------------------------------------------------------------


@pytest.mark.parametrize("selected", [None, [1, 4, 9]], ids=str)
@pytest.mark.parametrize("logits", [True, False])
def test_a_head_is_shown_at_the_positions_of_the_logits(
    selected: list[int] | None, *, logits: bool
) -> None:
    model = HookedModel(Returns(), head="head")
    shown = forward(model, drawn(2, 5, 4), logits=logits, head=True, selected=selected)
    expected = forward(model, drawn(2, 5, 4), logits=True, selected=selected).logits
    assert shown.head is not None
    assert (shown.logits is not None) == logits
    torch.testing.assert_close(shown.head.logits(), expected)
    assert shown.head.weight is model.module.get_submodule("head").weight


def test_a_head_is_shown_at_selected_positions_beside_a_tap_of_all() -> None:
    module = Returns()
    model = HookedModel(module, head=["block", "head"])
    shown = forward(model, drawn(2, 5, 4), "block", head=True, selected=[1, 9])
    assert shown.hidden[model.place("block")].shape == (2, 5, 4)
    assert shown.head is not None
    expected = module.block(drawn(2, 5, 4)).flatten(0, 1)[[1, 9]]
    torch.testing.assert_close(shown.head.states, expected)


def test_a_head_is_not_run_to_show_what_it_receives() -> None:
    module = Returns()
    called: list[object] = []
    module.head.register_forward_hook(lambda *call: called.append(call))
    forward(HookedModel(module, head="head"), drawn(2, 4), head=True)
    assert not called


def test_what_forward_makes_of_the_head_is_in_it() -> None:
    model = HookedModel(Halving(), head="head", head_end=HeadEnd(path="head", scale=0.5))
    shown = forward(model, drawn(2, 4), logits=True, head=True)
    assert shown.head is not None
    torch.testing.assert_close(shown.head.logits(), shown.logits)
    check_head(model, drawn(2, 4))


def test_a_forgotten_factor_is_noticed() -> None:
    model = HookedModel(Halving(), head="head", head_end=HeadEnd(path="head"))
    with pytest.raises(BindError, match=r"^'chunk' must be None for Halving, which makes"):
        check_head(model, drawn(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_head_has_the_precision_in_which_it_would_multiply(dtype: torch.dtype) -> None:
    module = Returns().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shown = forward(
            HookedModel(module, head="head"), drawn(2, 4).to(dtype), logits=True, head=True
        )
    assert shown.head is not None
    assert shown.logits is not None
    assert shown.head.states.dtype == shown.logits.dtype
    assert torch.equal(shown.head.logits(), shown.logits)


@pytest.mark.parametrize(
    ("module", "fields", "found"),
    [
        (nn.Sequential(linear(4, 4), linear(4, 3)), {}, "none"),
        (nn.Sequential(linear(4, 4), nn.Tanh()), {"head": "1"}, "Tanh"),
    ],
    ids=["no head", "not linear"],
)
def test_a_head_that_does_not_end_in_a_linear_map_is_not_shown(
    module: nn.Module, fields: dict[str, Any], found: str
) -> None:
    with pytest.raises(
        BindError,
        match=rf"^'chunk' must be None for Sequential: its head must .* nn.Linear .*; got {found}",
    ):
        forward(HookedModel(module, **fields), drawn(2, 4), head=True)


def test_a_head_is_not_read_in_chunks_where_features_are_not_last() -> None:
    model = HookedModel(nn.Sequential(linear(4, 3)), head="0", width_axis=1)
    with pytest.raises(
        BindError,
        match=r"^'chunk' must be None for Sequential, whose states have their features on axis 1: "
        r"computing in chunks needs them on the last axis$",
    ):
        forward(model, drawn(2, 4), head=True)


def test_a_head_that_forward_does_not_reach_is_named() -> None:
    class Idle(Returns):
        def forward(self, inputs: Tensor) -> Tensor:
            state: Tensor = self.block(inputs)
            return state

    with pytest.raises(BindError, match=r"^'head' must be reached by forward; it was not$"):
        forward(HookedModel(Idle(), head="head"), drawn(2, 4), head=True)


class Applied(nn.Module):
    """Some layers, and logits that a function makes with them."""

    def __init__(self, function: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.function(self, inputs)
        return logits


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv1d:
    with seeding.scoped(0, "test model"):
        return nn.Conv1d(inputs, outputs, 3, stride=stride, padding=1)


def embedding() -> nn.Embedding:
    with seeding.scoped(0, "test model"):
        return nn.Embedding(11, 4)


IDS = torch.arange(28).remainder(11).view(4, 7)
CLASSES_LAST = [
    (
        Applied(lambda m, x: m.conv(m.e(x).mT).mT, e=embedding(), conv=convolution(4, 5)),
        IDS,
        "tagger that transposes back",
    ),
    (
        Applied(lambda m, x: m.conv(m.e(x).mT).mT @ m.e.weight.T, e=embedding(),
                conv=convolution(4, 4)),
        IDS,
        "tied weights",
    ),
    (Applied(lambda m, x: m.out(x), out=linear(4, 3)), drawn(2, 5, 6, 4), "four axes"),
    (
        Applied(lambda m, x: m.out(m.conv(x).mT), out=linear(4, 6), conv=convolution(2, 4)),
        drawn(3, 2, 20),
        "linear layer registered first",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "inputs"),
    [case[:2] for case in CLASSES_LAST],
    ids=[case[2] for case in CLASSES_LAST],
)
def test_logits_with_classes_last_are_read_whatever_layers_there_are(
    module: nn.Module, inputs: Tensor
) -> None:
    shown = forward(HookedModel(module), inputs, logits=True)
    assert shown.logits is not None, shown.obscurity
    assert torch.equal(shown.logits, module(inputs))


CLASSES_FIRST = [
    (
        Applied(lambda m, x: m.b(m.a(x)), a=convolution(2, 4), b=convolution(4, 3, stride=2)),
        drawn(3, 2, 20),
        "stride",
    ),
    (
        Applied(lambda m, x: m.b(x).clamp(-1), b=convolution(2, 3, stride=2), z=linear(2, 2)),
        drawn(3, 2, 20),
        "stride before a function",
    ),
    (Applied(lambda m, x: m.out(m.e(x)).mT, e=embedding(), out=linear(4, 5)), IDS, "ids"),
    (Applied(lambda m, x: m.out(m.e(x)).mT, e=embedding(), out=linear(4, 7)), IDS, "square"),
]  # fmt: skip


@pytest.mark.parametrize("selected", [None, [0, 3]], ids=["all", "selected"])
@pytest.mark.parametrize(
    ("module", "inputs"),
    [case[:2] for case in CLASSES_FIRST],
    ids=[case[2] for case in CLASSES_FIRST],
)
def test_logits_with_classes_on_axis_1_are_refused_whatever_layers_there_are(
    module: nn.Module, inputs: Tensor, selected: list[int] | None
) -> None:
    shown = forward(HookedModel(module), inputs, logits=True, selected=selected)
    assert shown.logits is None
    assert "must have their classes on a known axis" in shown.obscurity
    assert "in which axis 1 counts them; curricle.tapped(model, width_axis=1)" in shown.obscurity
    named = forward(HookedModel(module, width_axis=1), inputs, logits=True).logits
    assert named is not None
    assert torch.equal(named, module(inputs).mT)


def test_positions_are_selected_where_the_named_axis_is_the_last() -> None:
    module = CLASSES_LAST[0][0]
    shown = forward(HookedModel(module, width_axis=2), IDS, logits=True, selected=[1, 4, 9])
    assert shown.logits is not None
    assert torch.equal(shown.logits, module(IDS).flatten(0, 1)[[1, 4, 9]])


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(convolution(4, 4), nn.ReLU()),
        nn.Sequential(convolution(4, 4), nn.BatchNorm1d(4), nn.MaxPool1d(2)),
        nn.Sequential(Applied(lambda m, x: m.conv(x).relu() + x, conv=convolution(4, 4))),
        nn.Sequential(Applied(lambda _, x: x.mT, conv=nn.Identity()), linear(8, 8), nn.Identity()),
    ],
    ids=["activation", "pooling", "block of one's own", "mixer"],
)
def test_a_tap_that_does_not_name_a_convolution_is_settled_too(block: nn.Sequential) -> None:
    path = str(len(block) - 1)
    inputs = drawn(3, 4, 8)
    if isinstance(block[-1], nn.Identity):
        inputs = drawn(3, 8, 4)
        assert forward(HookedModel(block), inputs, path).hidden[Place(path)].shape == (3, 4, 8)
        return
    with pytest.raises(
        BindError,
        match=rf"^tap '{path}' must have its features on a known axis; got a state of shape "
        r"\(3, 4, [48]\), in which axis 1 counts them; curricle.tapped\(model, width_axis=1\)",
    ):
        forward(HookedModel(block), inputs, path)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.LayerNorm(4)), (2, 3, 5, 4)),
        (lambda: nn.Sequential(nn.RMSNorm(4)), (2, 3, 5, 4)),
        (lambda: nn.Sequential(linear(4, 4), nn.BatchNorm1d(6)), (2, 6, 4)),
        (lambda: nn.Sequential(linear(4, 4), nn.GELU(), nn.Identity()), (2, 3, 5, 4)),
    ],
    ids=["layer norm", "root mean square", "norm over time", "after a linear layer"],
)
def test_a_state_with_features_last_is_read(
    make: Callable[[], nn.Sequential], shape: tuple[int, ...]
) -> None:
    module = make()
    path = str(len(module) - 1)
    assert forward(HookedModel(module), drawn(*shape), path).hidden[Place(path)].shape == shape


def test_axes_are_observed_once() -> None:
    module = Applied(lambda m, x: m.conv(m.e(x).mT).mT, e=embedding(), conv=convolution(4, 5))
    lengths: list[int] = []
    module.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    model = HookedModel(module)
    for _ in range(2):
        with observing(model), model.open_taps((), logits=True) as reader:
            reader(IDS)
            reader(IDS)
    assert lengths == [7, 3, 7, 7, 7]


def test_nothing_is_observed_outside_of_the_block() -> None:
    module = CLASSES_FIRST[2][0]
    lengths: list[int] = []
    handle = module.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    with HookedModel(module).open_taps((), logits=True) as reader:
        assert reader(IDS).logits is not None
    handle.remove()
    assert lengths == [7]


def test_no_pass_is_added_where_layers_tell() -> None:
    module = Returns()
    lengths: list[int] = []
    module.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    forward(HookedModel(module), drawn(2, 5, 4), "block", logits=True)
    assert lengths == [5]


def test_a_head_with_an_adapter_is_not_read_in_chunks() -> None:
    module = nn.Sequential(linear(3, 4), Tuned(linear(4, 5), "a"))
    model = HookedModel(module, head="1")
    sentence = r"^'chunk' must be None for Sequential, whose head '1' has an adapter of PEFT"
    with pytest.raises(BindError, match=sentence):
        model.open_taps([], logits=False, head=True)


def two_sides(**options: Any) -> HookedModel:
    """Return a model of two stacks of equal blocks, the second of which has its channels first."""
    module = nn.Sequential(*(linear(4, 4) for _ in range(4)))
    first = [Place("0", 0, "input"), Place("0"), Place("1")]
    second = [Place("2", 0, "input"), Place("2"), Place("3")]
    stacks = tuple(
        Stack(
            name=name,
            places=tuple(
                replace(place, tap=f"{name}:{number}", stack=name, order=order)
                for number, place in enumerate(places)
            ),
        )
        for name, places, order in (("encoder", first, ()), ("decoder", second, (0, 2, 1)))
    )
    numbering = Numbering(paths=stacks[1].paths, main=stacks[1], stacks=stacks)
    return HookedModel(module, blocks=numbering, **options)


@pytest.mark.parametrize(
    ("tap", "place", "label"),
    [
        (1, Place("2"), "decoder:1"),
        (0, Place("2", 0, "input"), "decoder:0"),
        ("encoder:2", Place("1"), "encoder:2"),
        ("encoder:0.5", Place("0"), "encoder:1"),
        ("3", Place("3"), "3"),
    ],
)
def test_taps_of_several_stacks_have_the_name_of_theirs(tap: Tap, place: Place, label: str) -> None:
    found = two_sides().place(tap)
    assert (found, found.label) == (place, label)


@pytest.mark.parametrize(
    ("tap", "sentence"),
    [
        ("encoder:3", r"^tap 3 must lie between 0 and the model's depth 2"),
        ("encoder:last", r"^tap 'encoder:last' must end in a number or a fraction .*; got 'last'$"),
        ("vision:1", r"^tap 'vision:1' must be a module path"),
    ],
)
def test_taps_of_stacks_that_do_not_exist_are_refused(tap: str, sentence: str) -> None:
    with pytest.raises(BindError, match=sentence):
        two_sides().place(tap)


@pytest.mark.parametrize("tap", [2, "decoder:2", "3"])
def test_states_are_put_in_the_order_of_their_place(tap: Tap) -> None:
    model = two_sides()
    inputs, place = torch.arange(24.0).view(2, 3, 4), model.place(tap)
    with model.open_taps([place], logits=False) as forward:
        state = forward(inputs).hidden[place]
    assert torch.equal(state, model.module(inputs).transpose(1, 2))


def test_a_declared_axis_takes_precedence_over_a_traced_order() -> None:
    assert two_sides(width_axis=1).place(2).order == ()
