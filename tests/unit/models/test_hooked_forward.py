"""Early exits inside what torch wraps around a module: data-parallel and sharded runs."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from curricle import seeding
from curricle.models.hooked import HookedModel
from curricle.models.hooked_forward import PassOutput
from tests.parts import drawn

BLOCKS = ["0", "1", "2", "3"]
Wrapper = Callable[[nn.Module], nn.Module]


@pytest.fixture(scope="module", autouse=True)
def single_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Open a process group of one process, which reaches no network."""
    store: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def module() -> nn.Sequential:
    with seeding.scoped(0, "test model"):
        return nn.Sequential(*(nn.Linear(4, 4) for _ in BLOCKS), nn.Linear(4, 3))


def hooked(module: nn.Module) -> HookedModel:
    return HookedModel(module, blocks=BLOCKS, head="4")


def data_parallel(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, find_unused_parameters=True)


def sharded(module: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    inner = module.get_submodule("module")
    for block in BLOCKS:
        fully_shard(inner.get_submodule(block), mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return module


def gradients(model: HookedModel, tap: int, *, logits: bool = False) -> dict[str, Tensor]:
    """Return the gradients of a pass to a tap, or to the logits."""
    place = model.place(tap)
    model.module.zero_grad()
    with model.open_taps([] if logits else [place], logits=logits) as forward:
        shown = forward(drawn(5, 4))
        output = shown.logits if logits else shown.hidden[place]
        assert output is not None
        output.square().sum().backward()
    # Unused parameters have no gradient in a plain model and zeros after a reducer.
    return {
        name: torch.zeros(parameter.shape) if parameter.grad is None else whole(parameter.grad)
        for name, parameter in model.module.named_parameters()
    }


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


WRAPPERS = pytest.mark.parametrize("wrapper", [data_parallel, sharded])
pytestmark = [
    # An early stage leaves parameters unused only sometimes, which a reducer cannot know.
    pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified"),
]


@WRAPPERS
def test_gradients_of_early_stages_and_of_whole_passes_are_those_of_the_plain_model(
    module: nn.Sequential, wrapper: Wrapper
) -> None:
    plain, model = hooked(deepcopy(module)), hooked(module)
    model.wrap(wrapper)
    # Back and forth: an exit must not leave a state behind on which a later pass depends.
    for tap in (1, 3, 2, 4, 1):
        for logits in (False, True):
            expected = gradients(plain, tap, logits=logits)
            result = gradients(model, tap, logits=logits)
            torch.testing.assert_close(result, expected, rtol=0, atol=0)


@WRAPPERS
def test_an_early_exit_without_gradients_leaves_no_trace(
    module: nn.Sequential, wrapper: Wrapper
) -> None:
    plain, model = hooked(deepcopy(module)), hooked(module)
    model.wrap(wrapper)
    losses = []
    for trained in (plain, model):
        optimizer = torch.optim.SGD(trained.module.parameters(), lr=0.1)
        for _ in range(3):
            # Evaluation between the backward pass and the optimizer, where weights that stay
            # gathered would be updated in the wrong place.
            gradients(trained, 3)
            with torch.no_grad(), trained.open_taps([trained.place(2)], logits=False) as forward:
                losses.append(forward(drawn(5, 4)).hidden[trained.place(2)].sum())
            optimizer.step()
    assert losses[:3] == losses[3:]
    torch.testing.assert_close(
        {name: whole(weight) for name, weight in model.module.state_dict().items()},
        dict(plain.module.state_dict()),
        rtol=0,
        atol=0,
    )


def test_a_wrapper_sees_every_pass_return(module: nn.Sequential) -> None:
    model, outputs = hooked(module), list[PassOutput]()

    def watched(outermost: nn.Module) -> nn.Module:
        outermost.register_forward_hook(lambda _, _args, output: outputs.append(output))
        return outermost

    model.wrap(watched)
    with model.open_taps([model.place(2), model.place(1)], logits=False) as forward:
        shown = forward(drawn(5, 4))
    hidden, logits, states_of_head = outputs.pop()
    assert not outputs
    assert logits is None
    assert states_of_head is None
    assert [id(state) for state in hidden] == [id(state) for state in shown.hidden.values()]
    assert list(shown.hidden) == [model.place(1), model.place(2)]


def test_the_tensors_of_a_wrapper_are_those_of_the_result(module: nn.Sequential) -> None:
    model = hooked(module)

    class Doubles(nn.Module):
        """Replaces tensors, as the backward pass of a reducer needs."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: object) -> PassOutput:
            hidden, logits, states_of_head = self.module(*args)
            return [state * 2 for state in hidden], logits * 2, states_of_head

    inputs = drawn(5, 4)
    model.wrap(Doubles)
    with model.open_taps([model.place(4)], logits=True) as forward:
        shown = forward(inputs)
    assert torch.equal(shown.hidden[model.place(4)], module[:4](inputs) * 2)
    assert shown.logits is not None
    assert torch.equal(shown.logits, module(inputs) * 2)


def test_names_of_weights_do_not_change(module: nn.Sequential) -> None:
    names = list(module.state_dict())
    model = hooked(module)
    model.wrap(data_parallel)
    assert list(model.module.state_dict()) == names


@pytest.mark.parametrize("tap", ["", "0"])
def test_hooks_of_the_model_itself_run_inside_of_the_wrapper(
    module: nn.Sequential, tap: str
) -> None:
    model = hooked(module)
    model.wrap(data_parallel)
    with model.open_taps([model.place(tap)], logits=False) as forward:
        state = forward(drawn(5, 4)).hidden[model.place(tap)]
    assert torch.equal(state, (module if not tap else module[0])(drawn(5, 4)))
