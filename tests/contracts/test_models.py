"""What every tapped model promises: a reading shows what the module's own full pass computes."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from curricle import seeding
from curricle.errors import BindError
from curricle.models.mlp import MLPSpec
from curricle.models.tapped import Place, Tap, TappedModel
from curricle.models.wrapping import tapped
from tests.parts import Shared, drawn

Wrap = Callable[[Tensor], object]
LENGTH = 6


@dataclass
class Shown:
    name: str
    state: Tensor


def tensor_in(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Shown):
        return output.state
    items = output.values() if isinstance(output, Mapping) else output
    return next(item for item in items if isinstance(item, Tensor))


class Block(nn.Module):
    """A linear map with tanh that returns its state in some wrapping."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, inputs: Tensor) -> object:
        return self.wrap(self.linear(inputs).tanh())


class Blocks(nn.Module):
    """Three blocks under a head."""

    def __init__(self, wrap: Wrap = lambda state: state, *, checkpoints: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(wrap) for _ in range(3))
        self.head, self.checkpoints = nn.Linear(4, 3), checkpoints

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs
        for block in self.blocks:
            shown = (
                checkpoint(block, state, use_reentrant=False) if self.checkpoints else block(state)
            )
            state = tensor_in(shown)
        found: Tensor = self.head(state)
        return found


def blocks(wrap: Wrap = lambda state: state, *, checkpoints: bool = False) -> TappedModel:
    module = Blocks(wrap, checkpoints=checkpoints)
    return tapped(module, blocks=["blocks.0", "blocks.1", "blocks.2"], head="head")


def convolutions() -> TappedModel:
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return tapped(module, blocks=["1", "2"], head="5", width_axis=1)


@dataclass(frozen=True)
class Case:
    """A model, inputs for it and some of its taps, shallow ones first."""

    make: Callable[[], TappedModel]
    taps: tuple[Tap, ...] = (0, 1, 2, 3)
    inputs: Callable[[int], Tensor] = lambda num_examples: drawn(num_examples, 4)
    has_positions: bool = False

    def build(self) -> TappedModel:
        """Return a fresh model with the same weights each time."""
        return copy.deepcopy(drawn_model(self))


@cache
def drawn_model(case: Case) -> TappedModel:
    with seeding.scoped(0, "test model"):
        model = case.make()
    model.module.eval()
    return model


CATALOG: dict[str, Case] = {
    "mlp": Case(
        lambda: MLPSpec(widths=(5, 6)).build(num_inputs=4, num_classes=3, num_positions=0),
        taps=(0, 1, 2),
    ),
    "sequential by paths": Case(
        lambda: tapped(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())),
        taps=("0", "1", "2", "3"),
    ),
    "tuples": Case(lambda: blocks(lambda state: ("no tensor", state, torch.zeros(1)))),
    "mappings": Case(lambda: blocks(lambda state: {"state": state, "other": torch.zeros(1)})),
    "dataclasses": Case(lambda: blocks(lambda state: Shown("block", state))),
    "with positions": Case(
        blocks,
        inputs=lambda num_examples: drawn(num_examples, LENGTH, 4),
        has_positions=True,
    ),
    "checkpointed": Case(lambda: blocks(checkpoints=True)),
    "convolutions": Case(
        convolutions,
        taps=(0, 1, 2),
        inputs=lambda num_examples: drawn(num_examples, 2, 5, 4),
    ),
    "shared block": Case(
        lambda: tapped(Shared(), head="head"), taps=("block", "block#1", "block#2")
    ),
    "shared block by number": Case(
        lambda: tapped(Shared(), blocks=["block", "block#1", "block#2"], head="head")
    ),
}

every_model = pytest.mark.parametrize("case", CATALOG.values(), ids=CATALOG.keys())
every_tap = pytest.mark.parametrize(
    ("case", "tap"),
    [
        pytest.param(case, tap, id=f"{name}-{tap}")
        for name, case in CATALOG.items()
        for tap in case.taps
    ],
)


def in_full(model: TappedModel, inputs: Tensor, place: Place) -> Tensor:
    """Return the state at a place in a full pass, by a plain hook and without stopping."""
    found: list[Tensor] = []
    target = model.module.get_submodule(place.path)
    handle = (
        target.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        if place.side == "input"
        else target.register_forward_hook(lambda _, __, out: found.append(tensor_in(out)))
    )
    model.module(inputs)
    handle.remove()
    state = found[place.call]
    return state.movedim(1, -1) if state.ndim == 4 else state


def one(model: TappedModel, place: Place, inputs: Tensor) -> Tensor:
    with model.open_taps([place], logits=False) as forward:
        return forward(inputs).hidden[place]


def gradients(model: TappedModel, state: Tensor) -> list[Tensor | None]:
    if not state.requires_grad:
        return [None for _ in model.module.parameters()]
    loss = (state * torch.linspace(-1, 1, state.numel()).view_as(state)).sum()
    return list(torch.autograd.grad(loss, list(model.module.parameters()), allow_unused=True))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


@every_model
def test_it_is_a_tapped_model(case: Case) -> None:
    assert isinstance(case.build(), TappedModel)


@every_tap
def test_early_exit_shows_exactly_what_the_full_pass_computes(case: Case, tap: Tap) -> None:
    model, inputs = case.build(), case.inputs(3)
    place = model.place(tap)
    assert torch.equal(one(model, place, inputs), in_full(model, inputs, place))


@every_tap
def test_early_exit_has_exactly_the_gradients_of_the_full_pass(case: Case, tap: Tap) -> None:
    model, inputs = case.build(), case.inputs(3)
    place = model.place(tap)
    early = gradients(model, one(model, place, inputs))
    full = gradients(model, in_full(model, inputs, place))
    assert all(same(*pair) for pair in zip(early, full, strict=True))


@every_tap
def test_only_parameters_of_modules_that_ran_get_a_gradient(case: Case, tap: Tap) -> None:
    model = case.build()
    ran: list[str] = []
    for path, part in model.module.named_modules():
        part.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
    found = gradients(model, one(model, model.place(tap), case.inputs(3)))
    names = [name for name, _ in model.module.named_parameters()]
    reached = [name for name, gradient in zip(names, found, strict=True) if gradient is not None]
    assert {name.rpartition(".")[0] for name in reached} <= set(ran)


@every_tap
def test_nothing_runs_after_the_tap(case: Case, tap: Tap) -> None:
    model, inputs = case.build(), case.inputs(3)
    place = model.place(tap)
    events: list[tuple[str, str]] = []
    for path, part in model.module.named_modules():
        part.register_forward_pre_hook(lambda *_, path=path: events.append(("input", path)))
        part.register_forward_hook(lambda *_, path=path: events.append(("output", path)))
    model.module(inputs)
    full = list(events)
    events.clear()
    one(model, place, inputs)
    last = [n for n, event in enumerate(full) if event == (place.side, place.path)][place.call]
    assert events == full[: last + 1]


@every_model
def test_several_taps_and_the_logits_come_from_one_pass(case: Case) -> None:
    model, inputs = case.build(), case.inputs(3)
    places = [model.place(tap) for tap in case.taps]
    with model.open_taps(places, logits=True) as forward:
        shown = forward(inputs)
    assert list(shown.hidden) == places
    for place in places:
        assert torch.equal(shown.hidden[place], in_full(model, inputs, place))
    assert shown.logits is not None
    assert torch.equal(shown.logits, model.module(inputs))


@every_model
def test_logits_have_exactly_the_gradients_of_the_full_pass(case: Case) -> None:
    model, inputs = case.build(), case.inputs(3)
    with model.open_taps([], logits=True) as forward:
        shown = forward(inputs).logits
    assert shown is not None
    full = gradients(model, model.module(inputs))
    assert all(same(*pair) for pair in zip(gradients(model, shown), full, strict=True))


@every_model
def test_hidden_states_have_their_width_on_the_last_axis(case: Case) -> None:
    model, inputs = case.build(), case.inputs(3)
    deepest = one(model, model.place(case.taps[-1]), inputs)
    assert deepest.shape[0] == 3
    assert deepest.shape[-1] in (4, 6)


with_positions = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CATALOG.items() if case.has_positions],
)


@with_positions
@pytest.mark.parametrize("positions", [[0, 1, 7, 17], [5], []], ids=str)
def test_logits_at_selected_positions_are_rows_of_the_full_logits(
    case: Case, positions: list[int]
) -> None:
    model, inputs = case.build(), case.inputs(3)
    with model.open_taps([], logits=True) as forward:
        shown = forward(inputs, torch.tensor(positions, dtype=torch.int64)).logits
    expected = model.module(inputs).flatten(0, 1)[positions]
    # Fewer rows may go through another matrix routine, which rounds differently.
    torch.testing.assert_close(shown, expected, rtol=1e-5, atol=1e-6)


@with_positions
def test_selecting_logits_leaves_the_hidden_states_whole(case: Case) -> None:
    model, inputs = case.build(), case.inputs(3)
    places = [model.place(tap) for tap in case.taps]
    with model.open_taps(places, logits=True) as forward:
        shown = forward(inputs, torch.tensor([2, 9]))
    assert {tuple(state.shape[:2]) for state in shown.hidden.values()} == {(3, LENGTH)}


@every_model
def test_the_module_stays_as_it_is(case: Case) -> None:
    model, inputs = case.build(), case.inputs(3)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with model.open_taps([model.place(tap) for tap in case.taps], logits=True) as forward:
        shown = forward(inputs).logits
        assert shown is not None
        shown.sum().backward()
        inside = model.module.state_dict()
    after = model.module.state_dict()
    assert list(before) == list(inside) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_model
@pytest.mark.parametrize("tap", ["no.such.module", "0#x", 99, -1, 1.5])
def test_a_tap_that_does_not_exist_is_refused(case: Case, tap: Tap) -> None:
    with pytest.raises(BindError, match=rf"^tap {tap!r} "):
        case.build().place(tap)


@every_model
def test_an_unknown_path_is_answered_with_the_known_ones(case: Case) -> None:
    model = case.build()
    first = next(path for path, _ in model.module.named_modules() if path)
    with pytest.raises(BindError, match=rf"'{first}x' must be a module path of .*; did you mean"):
        model.place(f"{first}x")


@every_model
def test_a_call_that_forward_never_reaches_is_refused(case: Case) -> None:
    model = case.build()
    tap = f"{model.place(case.taps[-1]).path}#7"
    with (
        pytest.raises(
            BindError,
            match=f"^tap '{tap}' must be reached by forward; it was not; name a module that runs "
            f"in every pass, or switch off what skips it, such as layerdrop$",
        ),
        model.open_taps([model.place(tap)], logits=False) as forward,
    ):
        forward(case.inputs(3))


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("tap", [1, 2, 3])
def test_checkpointed_blocks_have_the_gradients_of_plain_ones(tap: int, logits: bool) -> None:
    plain, saving = CATALOG["with positions"].build(), CATALOG["checkpointed"].build()
    saving.module.load_state_dict(plain.module.state_dict())
    found: list[list[Tensor]] = []
    for model in (plain, saving):
        place = model.place(tap)
        with model.open_taps([place], logits=logits) as forward:
            # The second pass would see what the recomputation of the first has left behind.
            for _ in range(2):
                shown = forward(drawn(3, 4))
                loss = shown.hidden[place].square().sum()
                if shown.logits is not None:
                    loss = loss + shown.logits.sum()
                model.module.zero_grad()
                loss.backward()
        used = model.module.parameters()
        found.append([one.grad for one in used if one.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
