"""A model that only answers gives the same answers faster, and is put back as it was."""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from curricle import seeding
from curricle.extras import COMPILERS
from curricle.models.inference import HeldLinear, Inference, compiled_blocks, undo
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from tests.parts import drawn

LOW = Inference(linear=torch.bfloat16)
COMPILED = Inference(compiled=True)


class Router(nn.Module):
    """Has parts that autocast does not reach, and one that is read as a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.first = nn.Linear(4, 4)
        self.gate = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        state = self.first(self.embedding(ids))
        with torch.autocast("cpu", enabled=False):
            state = state.float() + self.gate(state.float()) @ self.gate.weight
        found: Tensor = self.tied(state)
        return found


def model(module: nn.Module) -> TappedModel:
    return tapped(module, blocks=["first"])


@pytest.fixture
def router() -> Router:
    with seeding.scoped(0, "test model"):
        return Router()


def test_weights_that_are_held_low_change_no_result(router: Router) -> None:
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])

    def shown() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = router(ids)
        with torch.no_grad():
            return low, router(ids)

    plain = shown()
    with LOW.applying(model(router)):
        held = shown()
        assert all(one.dtype == torch.float32 for one in router.parameters())
    assert all(torch.equal(*pair) for pair in zip(held, plain, strict=True))
    assert plain[0].dtype == torch.bfloat16


def test_held_weights_are_used_and_let_go(router: Router) -> None:
    states = torch.ones(1, 4)

    def shown() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found: Tensor = router.tied(states)
        return found

    before, named = shown(), list(vars(router.tied))
    with LOW.applying(model(router)):
        with torch.no_grad():
            router.tied.weight.add_(1)
        assert torch.equal(shown(), before)
    assert not torch.equal(shown(), before)
    assert not any(isinstance(part, HeldLinear) for part in router.modules())
    assert list(vars(router.tied)) == named


def test_a_copy_holds_its_own_weights(router: Router) -> None:
    ids = torch.tensor([[0, 1, 2]])
    with LOW.applying(model(router)), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        copied = copy.deepcopy(router)
        for one in copied.parameters():
            one.mul_(2)
        LOW.apply(model(copied))
        held = copied(ids)
        undo(copied)
        assert torch.equal(held, copied(ids))
        assert not torch.equal(held, router(ids))


class Scaled(nn.Linear):
    """Does more with its weight than a linear map does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.weight.sum()


def test_parts_with_a_forward_pass_of_their_own_are_left_alone(router: Router) -> None:
    with seeding.scoped(0, "test model"):
        scaled = Scaled(4, 4)
    router.add_module("scaled", scaled)
    before = router.gate.forward
    vars(router.gate)["forward"] = before
    with LOW.applying(model(router)):
        assert vars(router.gate)["forward"] is before
        assert type(router.gate) is nn.Linear
        assert type(scaled) is Scaled
    assert vars(router.gate)["forward"] is before


def test_weights_that_are_made_at_every_pass_are_left_alone(router: Router) -> None:
    prune.l1_unstructured(router.first, "weight", amount=0.5)
    ids = torch.tensor([[0, 1, 2]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = router(ids)
        with LOW.applying(model(router)):
            assert type(router.first) is nn.Linear
            assert torch.equal(router(ids), plain)


def test_held_weights_are_no_part_of_what_is_saved(router: Router) -> None:
    names = list(router.state_dict())
    with LOW.applying(model(router)):
        assert list(router.state_dict()) == names
        assert isinstance(router.gate, HeldLinear)


def test_gradients_flow_to_the_weight_that_trains(router: Router) -> None:
    ids = torch.tensor([[0, 1, 2]])
    with LOW.applying(model(router)), torch.autocast("cpu", torch.bfloat16):
        router(ids).sum().backward()
    assert all(one.grad is not None for one in router.first.parameters())


def test_maps_that_autocast_leaves_alone_are_left_alone(router: Router) -> None:
    router.double()
    ids = torch.tensor([[0, 1, 2]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = router.first(router.embedding(ids))
        with LOW.applying(model(router)):
            assert torch.equal(router.first(router.embedding(ids)), plain)


def test_a_head_that_is_read_before_its_map_shows_the_weights_that_are_held() -> None:
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    found = tapped(module, blocks=["0"], head="1")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with found.open_taps([], logits=True) as reader:
            wanted = reader(drawn(5, 4)).logits
        with LOW.applying(found), found.open_taps([], logits=False, head=True) as reader:
            head = reader(drawn(5, 4)).head
    assert head is not None
    assert wanted is not None
    assert head.weight.dtype == torch.bfloat16
    assert torch.equal(head.logits(), wanted)


class Block(nn.Module):
    """Two maps and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.outer = nn.Linear(8, 4)

    def forward(self, state: Tensor) -> Tensor:
        found: Tensor = state + self.outer(self.inner(state).tanh())
        return found


@pytest.fixture
def blocks() -> TappedModel:
    with seeding.scoped(0, "test model"):
        module = nn.Sequential(*(Block() for _ in range(3)), nn.Linear(4, 2))
    return tapped(module, blocks=["0", "1", "2"], head="3")


def forward(found: TappedModel, *taps: int | str, logits: bool = True) -> list[Tensor]:
    places = [found.place(tap) for tap in taps]
    with torch.no_grad(), found.open_taps(places, logits=logits) as reader:
        shown = reader(drawn(5, 4))
    return [*shown.hidden.values(), *([] if shown.logits is None else [shown.logits])]


class Counting:
    """Stands for the compiler; counts what it is given and how often that runs."""

    def __init__(self) -> None:
        self.compiled = self.runs = 0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any, **keywords: Any) -> Any:
            self.runs += 1
            return function(*args, **keywords)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Counting:
    found = Counting()
    monkeypatch.setattr(torch, "compile", found)
    return found


def test_a_pass_that_ends_early_runs_its_compiled_blocks_only(
    blocks: TappedModel, compiler: Counting
) -> None:
    wanted = forward(blocks, 1, 2, logits=False)
    with COMPILED.applying(blocks):
        assert all(map(torch.equal, forward(blocks, 1, 2, logits=False), wanted))
    assert (compiler.compiled, compiler.runs) == (3, 2)
    assert not any("forward" in vars(part) for part in blocks.module.modules())


def test_a_block_that_is_read_inside_is_not_compiled_meanwhile(
    blocks: TappedModel, compiler: Counting
) -> None:
    wanted = forward(blocks, "1.inner")
    with COMPILED.applying(blocks):
        assert all(map(torch.equal, forward(blocks, "1.inner"), wanted))
        assert compiler.runs == 2
        forward(blocks, 1)
        assert compiler.runs == 5


def test_who_wants_gradients_gets_the_plain_pass(blocks: TappedModel, compiler: Counting) -> None:
    with COMPILED.applying(blocks):
        assert blocks.module(drawn(5, 4)).requires_grad
    assert compiler.runs == 0


def test_a_copy_is_compiled_by_itself(blocks: TappedModel, compiler: Counting) -> None:
    with COMPILED.applying(blocks):
        copied = copy.deepcopy(blocks)
        for parameter in copied.module.parameters():
            parameter.data.mul_(2)
        COMPILED.apply(copied)
        found = forward(copied, 2)
    undo(copied.module)
    assert all(map(torch.equal, found, forward(copied, 2)))
    assert compiler.compiled == 6


@pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS["cpu"])), reason="needs a compiler in the path"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_give_what_they_gave_within_rounding(blocks: TappedModel) -> None:
    wanted = forward(blocks, 1, 2)
    with COMPILED.applying(blocks):
        found = forward(blocks, 1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_blocks_of_a_student_are_compiled_for_passes_with_gradient_only(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            passes.append(torch.is_grad_enabled())
            return function(*args)

        return called

    monkeypatch.setattr(torch, "compile", compiler)
    ids = torch.tensor([[0, 1, 2]])
    with compiled_blocks(model(router)):
        router(ids).sum().backward()
        with torch.no_grad():
            router(ids)
    assert passes == [True]
    router(ids)
    assert passes == [True]
    assert router.first.weight.grad is not None
