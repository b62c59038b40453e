"""Students in shares of one process: copies, whole weights after a run, clipping, refusals.

Several processes are in `tests/integration/test_processes.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, final

import pytest
import torch
from torch import Tensor, distributed, nn

from curricle import seeding
from curricle.errors import BindError, SpecError
from curricle.models.dispatching import HOOK
from curricle.models.hooked import HookedModel
from curricle.models.shares import is_sharded, is_share, whole
from curricle.training.setup.placement import HOST
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.sharding import FullyShard, fully_sharded
from tests.parts import drawn

BLOCKS = ["0", "1"]


@pytest.fixture(scope="module", autouse=True)
def placement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullyShard]:
    """Open a process group of one process, which reaches no network."""
    store: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield FullyShard("cpu", 60.0)
    distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Draw the weights of a test from a stream."""
    with seeding.scoped(0, "test"):
        yield


@pytest.fixture
def model() -> HookedModel:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in BLOCKS), nn.Linear(4, 3))
    return HookedModel(module, blocks=BLOCKS, head="2")


def step(model: HookedModel) -> None:
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    with model.open_taps([], logits=True) as forward:
        logits = forward(drawn(5, 4)).logits
        assert logits is not None
        logits.square().sum().backward()
    optimizer.step()


def test_the_very_module_has_the_trained_weights_after_the_block(
    placement: FullyShard, model: HookedModel
) -> None:
    expected = HookedModel(nn.Sequential(*model.module.children()), blocks=BLOCKS, head="2")
    before = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    parameters = list(model.module.parameters())
    step(expected)
    after = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    model.module.load_state_dict(before)
    with placement.sharded(model) as sharded:
        assert isinstance(sharded, HookedModel)
        assert is_sharded(sharded.module)
        step(sharded)
    assert list(model.module.parameters()) == parameters
    torch.testing.assert_close(dict(model.module.named_parameters()), after, rtol=0, atol=1e-7)


def test_the_module_itself_gets_no_hooks_and_can_be_sharded_again(
    placement: FullyShard, model: HookedModel
) -> None:
    kinds = [type(module) for module in model.module.modules()]
    for _ in range(2):
        with placement.sharded(model) as sharded:
            assert sharded is not model
    assert [type(module) for module in model.module.modules()] == kinds
    assert not any(module._forward_pre_hooks for module in model.module.modules())


def test_the_module_holds_no_weights_meanwhile(placement: FullyShard, model: HookedModel) -> None:
    with placement.sharded(model):
        assert sum(weight.numel() for weight in model.module.parameters()) == 0


def test_nothing_is_gathered_after_an_exception(placement: FullyShard, model: HookedModel) -> None:
    with pytest.raises(LookupError), placement.sharded(model):
        raise LookupError
    assert sum(weight.numel() for weight in model.module.parameters()) == 0


def test_weights_are_in_shares_again_after_a_pass_without_gradient(
    placement: FullyShard, model: HookedModel
) -> None:
    with placement.sharded(model) as sharded:
        # The input of a block, behind which the pass is left before the block has run.
        with torch.no_grad(), sharded.open_taps([sharded.place(0)], logits=False) as forward:
            forward(drawn(5, 4))
        assert all(is_share(weight) for weight in sharded.module.parameters())


def test_a_head_that_is_read_without_gradient_outlives_the_pass(
    placement: FullyShard, model: HookedModel
) -> None:
    weight = model.module.get_submodule("2").weight
    expected = whole(weight).clone() if isinstance(weight, Tensor) else None
    with (
        placement.sharded(model) as sharded,
        torch.no_grad(),
        sharded.open_taps([], logits=False, head=True) as forward,
    ):
        head = forward(drawn(5, 4)).head
        assert head is not None
        torch.testing.assert_close(head.weight, expected, rtol=0, atol=0)


def test_a_sharded_model_is_called_as_the_module_is(
    placement: FullyShard, model: HookedModel
) -> None:
    inputs = drawn(5, 4)
    expected = model.module(inputs)
    with placement.sharded(model) as sharded, torch.no_grad():
        assert isinstance(sharded, HookedModel)
        torch.testing.assert_close(sharded(inputs), expected, rtol=0, atol=0)


def test_blocks_that_share_weights_with_other_modules_are_one_group_with_them(
    placement: FullyShard, model: HookedModel
) -> None:
    blocks = model.module.get_submodule("0"), model.module.get_submodule("1")
    blocks[1].weight = blocks[0].weight
    with placement.sharded(model) as sharded:
        step(sharded)  # type: ignore[arg-type] # a hooked model
    assert blocks[1].weight is blocks[0].weight


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_gradients_in_shares_and_whole_ones_are_clipped_together(
    placement: FullyShard, model: HookedModel, max_norm: float
) -> None:
    beside = nn.Parameter(torch.ones(3))
    beside.grad = torch.full((3,), 2.0)
    with placement.sharded(model) as sharded:
        with sharded.open_taps([], logits=True) as forward:
            logits = forward(drawn(5, 4)).logits
            assert logits is not None
            logits.square().sum().backward()
        parameters = [*sharded.module.parameters(), beside]
        before = flat_gradients(parameters)
        placement.clip(parameters, max_norm)
        after = flat_gradients(parameters)
    factor = min(1.0, max_norm / float(before.square().sum().sqrt() + 1e-6))
    torch.testing.assert_close(after, before * factor)


def flat_gradients(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    return torch.cat([whole(gradient).flatten() for gradient in gradients])


def test_nothing_is_clipped_without_gradients(placement: FullyShard) -> None:
    placement.clip([nn.Parameter(torch.ones(3))], 0.1)


def test_a_single_process_pads_no_passes(placement: FullyShard) -> None:
    assert placement.padding([1, 2, 3]) == ()


def test_other_processes_run_an_item_more_where_items_are_left_over(
    placement: FullyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_number", 3)
    padded = []
    for rank in range(3):
        monkeypatch.setattr(placement, "_rank", rank)
        padded.append(len(placement.shared("abcd")) + len(placement.padding("abcd")))
    assert padded == [2, 2, 2]


def test_a_scalar_weight_is_refused(placement: FullyShard) -> None:
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.tensor(1.0))
    message = r"must have weights with an axis to be divided by parallel='fsdp2'; 'scale' is a scal"
    with pytest.raises(BindError, match=message), placement.sharded(HookedModel(module)):
        pass


def test_trained_weights_of_two_types_are_refused(placement: FullyShard) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    message = r"of one type for parallel='fsdp2'; '0.weight' is torch.float32 and '1.weight' is"
    with pytest.raises(BindError, match=message), placement.sharded(HookedModel(module)):
        pass
    module[1].requires_grad_(requires_grad=False)
    with placement.sharded(HookedModel(module)):
        pass


def test_a_module_that_cannot_be_copied_is_refused(placement: FullyShard) -> None:
    module = nn.Linear(2, 2)
    module.derived = module.weight * 2
    message = (
        r"must be a module that copy.deepcopy can copy for parallel='fsdp2'; .* parallel='ddp'"
    )
    with pytest.raises(BindError, match=message), placement.sharded(HookedModel(module)):
        pass


@final
class Foreign:
    """A model that runs its module itself."""

    depth, is_residual = 0, False

    def __init__(self) -> None:
        self.module = nn.Linear(2, 2)

    def place(self, tap: object) -> NoReturn:
        raise NotImplementedError

    def open_taps(self, places: object, *, logits: bool, head: bool = False) -> NoReturn:
        raise NotImplementedError


def test_a_model_that_runs_its_module_itself_is_refused(placement: FullyShard) -> None:
    message = "'parallel' must be 'none' for a student that runs its module itself; got 'Foreign'"
    with pytest.raises(BindError, match=message), placement.sharded(Foreign()):
        pass


def test_compiled_blocks_are_refused() -> None:
    with pytest.raises(SpecError, match=r"'parallel=fsdp2' cannot be used with 'compile=both'"):
        TrainingSettings(parallel="fsdp2", compile="both")


def test_without_a_group_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    assert fully_sharded("cpu", 60.0, 1) is HOST


def test_replicas_that_do_not_divide_the_processes_are_refused() -> None:
    with pytest.raises(BindError, match=r"'replicas' must divide the 1 processes .*; got 2"):
        FullyShard("cpu", 60.0, replicas=2)


def test_a_teacher_keeps_its_weights_beside_its_copy_in_shares(
    placement: FullyShard, model: HookedModel
) -> None:
    parameters = list(model.module.parameters())
    before = [weight.detach().clone() for weight in parameters]
    inputs = drawn(5, 4)
    divided = placement.divided(model)
    with torch.no_grad(), divided.open_taps([divided.place(0)], logits=True) as forward:
        logits = forward(inputs).logits
    assert logits is not None
    torch.testing.assert_close(logits, model.module(inputs), rtol=0, atol=0)
    # In shares again after the pass, and without gradients.
    assert all(is_share(weight) for weight in divided.module.parameters())
    assert not any(weight.requires_grad for weight in divided.module.parameters())
    assert list(model.module.parameters()) == parameters
    assert all(map(torch.equal, parameters, before))


def test_tied_weights_of_a_teacher_are_one_share(placement: FullyShard, model: HookedModel) -> None:
    model.module.get_submodule("1").weight = model.module.get_submodule("0").weight
    divided = placement.divided(model).module
    assert divided.get_submodule("1").weight is divided.get_submodule("0").weight


def test_a_scalar_weight_of_a_teacher_is_refused(placement: FullyShard) -> None:
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.tensor(1.0))
    message = (
        r"'teacher' must have weights with an axis .* teacher_parallel='fsdp2'; 'scale' is a "
        r"scalar; .*, or set teacher_parallel='whole'"
    )
    with pytest.raises(BindError, match=message):
        placement.divided(HookedModel(module))


def test_a_teacher_that_runs_its_module_itself_is_refused(placement: FullyShard) -> None:
    message = (
        "'teacher_parallel' must be 'whole' for a teacher that runs its module itself; got 'Fore"
    )
    with pytest.raises(BindError, match=message):
        placement.divided(Foreign())


def test_a_teacher_that_accelerate_has_placed_is_refused(
    placement: FullyShard, model: HookedModel
) -> None:
    vars(model.module.get_submodule("1"))[HOOK] = object()
    with pytest.raises(BindError, match=r"'teacher' must be in one place .* its 'device_map' h"):
        placement.divided(model)


def test_a_teacher_in_shares_needs_a_student_in_shares() -> None:
    message = "'teacher_parallel' must be 'whole' with parallel='ddp'; got 'fsdp2'; 'parallel: fsd"
    with pytest.raises(SpecError, match=message):
        TrainingSettings(parallel="ddp", teacher_parallel="fsdp2")


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"compile": "teacher"}, "compile=teacher"), ({"prefetch": "targets"}, "prefetch=targets")],
)
def test_what_would_gather_a_teacher_out_of_order_is_refused(
    settings: dict[str, Any], name: str
) -> None:
    message = f"'teacher_parallel=fsdp2' cannot be used with '{name}': "
    with pytest.raises(SpecError, match=message):
        TrainingSettings(parallel="fsdp2", teacher_parallel="fsdp2", **settings)
