"""Formulae of memory and communication, against closed forms.

`tests/integration/test_communication.py` compares them with the bytes that processes send.
"""

from curricle.training.setup.rank_costs import (
    Passes,
    RankCosts,
    StageSizes,
    Unit,
    Weight,
    rank_costs,
)

NO_PASSES = Passes(activations=0, logits=0)
WIDTH, BLOCKS = 256, 3


def weight(rows: int, columns: int, *, trained: bool = True) -> Weight:
    return Weight(shape=(rows, columns), item_bytes=4, trained=trained, has_state=trained)


def sizes(depth: int = BLOCKS, *, teacher: tuple[Unit, ...] = ()) -> StageSizes:
    """Return the sizes of a `Net` of which some blocks run."""
    reached = [number < depth for number in range(BLOCKS)]
    head = weight(2 * WIDTH, WIDTH, trained=depth == BLOCKS)
    blocks = [
        Unit(
            weights=(weight(WIDTH, WIDTH, trained=is_in),),
            in_forward=is_in,
            in_backward=is_in,
        )
        for is_in in reached
    ]
    return StageSizes(
        student=(Unit(weights=(head,), in_backward=True), *blocks), teacher=teacher, moments=2
    )


def costs(depth: int, parallel: str, number: int) -> RankCosts:
    return rank_costs(sizes(depth), NO_PASSES, parallel=parallel, num_processes=number)  # type: ignore[arg-type]


def test_all_gathers_grow_with_the_depth_of_a_stage_to_two_a_unit() -> None:
    # Measured with gloo: a root and k blocks are gathered twice.
    assert [costs(depth, "fsdp2", 2).num_all_gathers for depth in (1, 2, 3)] == [4, 6, 8]


def test_one_process_sends_nothing() -> None:
    assert costs(BLOCKS, "none", 1).sent == costs(BLOCKS, "fsdp2", 1).sent == 0


def test_copies_take_sixteen_bytes_a_weight_and_their_buckets_four_more() -> None:
    # Rajbhandari et al.: weight, gradient and two moments of Adam in float32.
    weights = (BLOCKS + 2) * WIDTH**2
    assert costs(BLOCKS, "none", 1).memory == 16 * weights
    assert costs(BLOCKS, "ddp", 8).memory == 20 * weights


def test_shares_fall_with_the_number_of_processes() -> None:
    plan = costs(BLOCKS, "fsdp2", 8)
    weights = (BLOCKS + 2) * WIDTH**2
    assert plan.parameters + plan.gradients + plan.optimizer == 16 * weights // 8


def test_shares_are_padded_along_the_first_axis() -> None:
    # Five rows for four processes are two rows each.
    assert weight(5, 3).share(4) == 2 * 3 * 4
    assert weight(5, 3).whole(4) == 4 * 2 * 3 * 4


def test_state_of_earlier_stages_stays_in_memory() -> None:
    frozen = Weight(shape=(WIDTH, WIDTH), item_bytes=4, trained=False, has_state=True)
    kept = StageSizes(student=(Unit(weights=(frozen,)),), teacher=(), moments=2)
    plan = rank_costs(kept, NO_PASSES, parallel="ddp", num_processes=2)
    assert (plan.gradients, plan.optimizer) == (0, 2 * 4 * WIDTH**2)


def test_a_shared_teacher_takes_its_share_and_is_gathered_once_a_micro_batch() -> None:
    block = Unit(weights=(weight(WIDTH, WIDTH, trained=False),))
    taught = sizes(teacher=(block, block, block, block, block))
    whole, shared = (
        rank_costs(
            taught, NO_PASSES, parallel="fsdp2", num_processes=4, is_teacher_shared=is_shared
        )
        for is_shared in (False, True)
    )
    unit = 4 * WIDTH**2
    assert whole.teacher == 5 * unit
    # A quarter of it, the root, the unit that runs and the next.
    assert shared.teacher == 5 * unit // 4 + 3 * unit
    assert shared.all_gathered - whole.all_gathered == 5 * unit


def test_gathers_repeat_for_each_micro_batch() -> None:
    parts = StageSizes(student=sizes().student, teacher=(), moments=2, micro_batches=3)
    plan = rank_costs(parts, NO_PASSES, parallel="fsdp2", num_processes=2)
    assert plan.all_gathered == 3 * costs(BLOCKS, "fsdp2", 2).all_gathered
