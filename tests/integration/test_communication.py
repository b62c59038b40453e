"""Formulae of communication, against what placements send between two and four gloo processes."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from curricle.models.hooked import HookedModel
from curricle.models.restoring import frozen_but
from curricle.training.setup.rank_costs import RankCosts, StageSizes, Unit, rank_costs
from curricle.training.setup.settings import TrainingSettings
from tests.unit.training.setup.test_rank_costs import BLOCKS, NO_PASSES, WIDTH, costs, weight

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("processes")]

NUM_PROCESSES = 2
GLOO_REDUCE_SCATTER = 2
"""Rings of gloo's reduce-scatter, which is an all-reduce of which each process takes its part."""
IO = Path("/proc/self/io")


class Case(NamedTuple):
    """A stage in several processes."""

    parallel: Literal["ddp", "fsdp2"]
    depth: int
    """Deepest tap of the stage; with all blocks also the head."""
    num_frozen: int = 0
    """Blocks below those that it trains."""
    micro_batches: int = 1
    replicas: int = 1
    processes: int = NUM_PROCESSES
    is_teacher: bool = False
    """Whether it is a pass of a teacher in shares, of as many blocks."""

    @property
    def trained(self) -> set[str]:
        """Return the names of the trained weights; the head is module `BLOCKS`."""
        last = self.depth + (self.depth == BLOCKS)
        return {f"{number}.weight" for number in range(self.num_frozen, last)}

    def planned(self) -> RankCosts:
        """Return the costs by the formulae."""
        return costs(
            self.depth,
            self.parallel,
            self.processes,
            num_frozen=self.num_frozen,
            micro_batches=self.micro_batches,
            replicas=self.replicas,
        )


DDP = [
    *(Case("ddp", depth) for depth in (1, 2, BLOCKS)),
    Case("ddp", BLOCKS, num_frozen=1),
    Case("ddp", BLOCKS, micro_batches=3),
]
FSDP2 = [
    *(Case("fsdp2", depth) for depth in (1, 2, BLOCKS)),
    Case("fsdp2", 2, num_frozen=1),
    Case("fsdp2", BLOCKS, num_frozen=2),
    Case("fsdp2", 1, micro_batches=2),
    Case("fsdp2", BLOCKS, micro_batches=3),
]
REPLICAS = [
    *(Case("fsdp2", depth, replicas=2) for depth in (1, BLOCKS)),
    Case("fsdp2", BLOCKS, micro_batches=3, replicas=2),
]
QUARTET = [
    *(Case("fsdp2", depth, replicas=2, processes=4) for depth in (1, BLOCKS)),
    Case("fsdp2", BLOCKS, micro_batches=3, replicas=2, processes=4),
]
TEACHERS = [Case("fsdp2", depth, is_teacher=True) for depth in (1, 2, BLOCKS)]
Outcomes = dict[str, tuple[int, dict[str, int]]]
"""Bytes and collectives of a step, by case."""


@final
class Collectives(TorchDispatchMode):
    """Counts collectives by name; `CommDebugMode` of torch loses its place at an early exit."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def sent_bytes() -> int:
    """Return the bytes that this process has written, sockets included."""
    fields = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(fields["wchar"])


def measured(step: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """Return the bytes that a step sends, and its collectives by name."""
    step()
    with Collectives() as collectives:
        step()
    before = sent_bytes()
    step()
    distributed.barrier()
    return sent_bytes() - before, dict(collectives.counts)


@contextmanager
def opened(case: Case) -> Iterator[Callable[[], object]]:
    """Place a model as a run does, and return a step of it without the optimizer."""
    widths = [*[WIDTH] * BLOCKS, 2 * WIDTH]
    module = nn.Sequential(*(nn.Linear(WIDTH, width, bias=False) for width in widths))
    student = HookedModel(module, blocks=[str(number) for number in range(BLOCKS)], head="3")
    settings = TrainingSettings(parallel=case.parallel, replicas=case.replicas)
    has_logits = case.depth == BLOCKS
    if case.is_teacher:
        teacher = settings.placement.divided(student)
        places = [] if has_logits else [teacher.place(case.depth)]
        with torch.no_grad(), teacher.open_taps(places, logits=has_logits) as forward:
            yield lambda: forward(torch.ones(1, WIDTH))
        return
    with (
        settings.placement.sharded(student) as model,
        frozen_but(model.module, case.trained),
        settings.placement.synchronized(model) as unsummed,
    ):
        places = [] if has_logits else [model.place(case.depth)]

        def micro_batch() -> None:
            with model.open_taps(places, logits=has_logits) as forward:
                states = forward(torch.ones(1, WIDTH))
                output = states.logits if has_logits else states.hidden[places[0]]
                assert output is not None
                output.sum().backward()

        def step() -> None:
            model.module.zero_grad()
            for _ in range(case.micro_batches - 1):
                with unsummed():
                    micro_batch()
            micro_batch()

        yield step


def run_rank(rank: int, number: int, file: str, results: str) -> None:
    """Write what a step of each case sends."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=number
    )
    outcomes = {}
    cases = QUARTET if number == 4 else (*DDP, *FSDP2, *REPLICAS, *TEACHERS)
    for case in cases:
        with opened(case) as step:
            outcomes[str(case)] = measured(step)
    if rank == 0:
        Path(results).write_text(json.dumps(outcomes))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Return bytes and collectives of a step in two or four processes."""
    if not IO.is_file():
        pytest.skip("the system does not count what a process writes")
    loaded: Outcomes = {}
    for number in (NUM_PROCESSES, 4):
        with tempfile.TemporaryDirectory() as folder:
            results = str(Path(folder, "results"))
            spawn(run_rank, (number, str(Path(folder, "group")), results), nprocs=number)
            loaded |= json.loads(Path(results).read_text())
    return loaded


@pytest.mark.parametrize("case", [*DDP, *REPLICAS], ids=str)
def test_all_reduces_send_the_bytes_of_the_formula(outcomes: Outcomes, case: Case) -> None:
    sent, _ = outcomes[str(case)]
    # Headers of messages, and the barrier.
    assert sent == pytest.approx(case.planned().sent, rel=0.02)


@pytest.mark.parametrize("case", [*FSDP2, *QUARTET], ids=str)
def test_fsdp2_sends_the_bytes_of_the_formula_but_for_gloo_s_reduce_scatter(
    outcomes: Outcomes, case: Case
) -> None:
    sent, _ = outcomes[str(case)]
    plan = case.planned()
    # Two shares: each process sends half. Of an all-reduce between two replicas it sends all.
    halves = plan.all_gathered + GLOO_REDUCE_SCATTER * plan.reduce_scattered
    assert sent == pytest.approx(halves / 2 + plan.all_reduced, rel=0.02)


@pytest.mark.parametrize("case", [*FSDP2, *QUARTET], ids=str)
def test_fsdp2_makes_the_collectives_of_the_formula(outcomes: Outcomes, case: Case) -> None:
    _, counts = outcomes[str(case)]
    plan = case.planned()
    gathers = sum(count for name, count in counts.items() if "gather" in name)
    scatters = sum(count for name, count in counts.items() if "scatter" in name)
    assert (gathers, scatters) == (plan.num_all_gathers, plan.num_reduce_scatters)


@pytest.mark.parametrize("case", TEACHERS, ids=str)
def test_a_teacher_in_shares_is_gathered_as_deep_as_it_is_read(
    outcomes: Outcomes, case: Case
) -> None:
    sent, counts = outcomes[str(case)]
    # The head, twice as wide, is the root, which is always gathered.
    blocks = [Unit(weights=(weight(WIDTH, WIDTH, trained=False),)) for _ in range(case.depth)]
    root = Unit(weights=(weight(2 * WIDTH, WIDTH, trained=False),))
    taught = StageSizes(student=(), teacher=(root, *blocks), moments=0)
    plan = rank_costs(
        taught,
        NO_PASSES,
        parallel="fsdp2",
        num_processes=NUM_PROCESSES,
        is_teacher_shared=True,
    )
    assert sent == pytest.approx(4 * (2 + case.depth) * WIDTH**2 / 2, rel=0.02)
    assert plan.sent == 4 * (2 + case.depth) * WIDTH**2 // 2
    assert sum(counts.values()) == plan.num_all_gathers == 1 + case.depth
