"""Formulae of communication, against what two gloo processes send."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from tests.unit.training.setup.test_rank_costs import BLOCKS, WIDTH, costs

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("processes")]

GLOO_REDUCE_SCATTER = 2
"""Rings of gloo's reduce-scatter, which is an all-reduce of which each process takes its part."""
IO = Path("/proc/self/io")
Outcomes = dict[str, tuple[int, dict[str, int]]]
"""Bytes and collectives of a step, by division and depth."""


class Net(nn.Module):
    """Blocks of equal width under a head; `depth` of them run."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.depth = depth

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        for block in list(self.blocks)[: self.depth]:
            state = block(state).relu()
        return torch.as_tensor(self.head(state)) if self.depth == BLOCKS else state


def sent_bytes() -> int:
    """Return the bytes that this process has written, sockets included."""
    fields = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(fields["wchar"])


def measured(step: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """Return the bytes that a step sends, and its collectives by name."""
    step()
    with CommDebugMode() as mode:
        step()
    before = sent_bytes()
    step()
    distributed.barrier()
    counts = {str(name): count for name, count in mode.get_comm_counts().items()}
    return sent_bytes() - before, counts


def sharded_step(depth: int) -> Callable[[], object]:
    net, mesh = Net(depth), init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)
    return lambda: net(torch.ones(1, WIDTH)).sum().backward()


def replicated_step(depth: int) -> Callable[[], object]:
    net = Net(depth)
    net.head.requires_grad_(depth == BLOCKS)
    for block in net.blocks[depth:]:
        block.requires_grad_(False)
    wrapped = DistributedDataParallel(net)
    return lambda: wrapped(torch.ones(1, WIDTH)).sum().backward()


def run_rank(rank: int, number: int, file: str, results: str) -> None:
    """Write what each kind of step sends."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=number
    )
    steps = {"ddp": replicated_step, "fsdp2": sharded_step}
    outcomes = {
        f"{parallel} {depth}": measured(build(depth))
        for parallel, build in steps.items()
        for depth in (1, 2, BLOCKS)
    }
    if rank == 0:
        Path(results).write_text(json.dumps(outcomes))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Return bytes and collectives of a step in two processes, by division and depth."""
    if not IO.is_file():
        pytest.skip("the system does not count what a process writes")
    with tempfile.TemporaryDirectory() as folder:
        results = str(Path(folder, "results"))
        spawn(run_rank, (2, str(Path(folder, "group")), results), nprocs=2)
        loaded: Outcomes = json.loads(Path(results).read_text())
    return loaded


@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_ddp_sends_the_bytes_of_the_formula(outcomes: Outcomes, depth: int) -> None:
    sent, _ = outcomes[f"ddp {depth}"]
    # Headers of messages, and the barrier.
    assert sent == pytest.approx(costs(depth, "ddp", 2).sent, rel=0.02)


@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_fsdp2_sends_the_bytes_of_the_formula_but_for_gloo_s_reduce_scatter(
    outcomes: Outcomes, depth: int
) -> None:
    sent, _ = outcomes[f"fsdp2 {depth}"]
    plan = costs(depth, "fsdp2", 2)
    expected = (plan.all_gathered + GLOO_REDUCE_SCATTER * plan.reduce_scattered) / 2
    assert sent == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_fsdp2_makes_the_collectives_of_the_formula(outcomes: Outcomes, depth: int) -> None:
    _, counts = outcomes[f"fsdp2 {depth}"]
    plan = costs(depth, "fsdp2", 2)
    gathers = sum(count for name, count in counts.items() if "gather" in name)
    scatters = sum(count for name, count in counts.items() if "scatter" in name)
    assert (gathers, scatters) == (plan.num_all_gathers, plan.num_reduce_scatters)
