"""Formulae of memory and communication, against closed forms.

`tests/integration/test_communication.py` compares them with the bytes that processes send.
"""

from dataclasses import replace

from curricle.training.setup.rank_costs import (
    Parallel,
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


def sizes(
    depth: int = BLOCKS,
    *,
    num_frozen: int = 0,
    micro_batches: int = 1,
    teacher: tuple[Unit, ...] = (),
) -> StageSizes:
    """Return the sizes of blocks of equal width under a head; `depth` of them run."""
    has_head = depth == BLOCKS
    head = Unit(weights=(weight(2 * WIDTH, WIDTH, trained=has_head),), in_backward=True)
    blocks = [
        Unit(
            weights=(weight(WIDTH, WIDTH, trained=num_frozen <= number < depth),),
            in_forward=number < depth,
            in_backward=num_frozen <= number < depth,
        )
        for number in range(BLOCKS)
    ]
    return StageSizes(
        student=(head, *blocks), teacher=teacher, moments=2, micro_batches=micro_batches
    )


def costs(
    depth: int,
    parallel: Parallel,
    number: int,
    *,
    num_frozen: int = 0,
    micro_batches: int = 1,
    replicas: int = 1,
) -> RankCosts:
    parts = sizes(depth, num_frozen=num_frozen, micro_batches=micro_batches)
    return rank_costs(parts, NO_PASSES, parallel=parallel, num_processes=number, replicas=replicas)


def test_all_gathers_grow_with_the_depth_of_a_stage_by_two_a_block() -> None:
    # The root stays gathered from the forward to the backward pass, blocks do not.
    assert [costs(depth, "fsdp2", 2).num_all_gathers for depth in (1, 2, 3)] == [3, 5, 7]


def test_one_frozen_block_is_gathered_for_the_backward_pass_too() -> None:
    # The root, three blocks forward, and backward the third and the prefetched second.
    assert costs(BLOCKS, "fsdp2", 2, num_frozen=2).num_all_gathers == 6


def test_blocks_without_weights_are_not_gathered() -> None:
    root, *blocks = sizes().student
    empty = Unit(weights=(), in_backward=True)
    padded = StageSizes(student=(root, empty, *blocks, empty), teacher=(), moments=2)
    plan = rank_costs(padded, NO_PASSES, parallel="fsdp2", num_processes=2)
    assert plan == costs(BLOCKS, "fsdp2", 2)


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


def test_gathers_repeat_for_each_micro_batch_and_gradients_are_reduced_once() -> None:
    plan, single = (costs(BLOCKS, "fsdp2", 2, micro_batches=number) for number in (3, 1))
    assert plan.all_gathered == 3 * single.all_gathered
    assert plan.reduce_scattered == single.reduce_scattered == 4 * (BLOCKS + 2) * WIDTH**2


def test_gradients_are_whole_while_micro_batches_add_them_up() -> None:
    plan, single = (costs(BLOCKS, "fsdp2", 2, micro_batches=number) for number in (3, 1))
    # In place of those of the head, which is the largest unit, those of three blocks as well.
    assert plan.memory - single.memory == BLOCKS * 4 * WIDTH**2


def test_replicas_gather_within_their_group_and_add_up_gradients_over_groups() -> None:
    plan, group = costs(BLOCKS, "fsdp2", 8, replicas=4), costs(BLOCKS, "fsdp2", 2)
    assert plan.memory == group.memory
    share = 4 * (BLOCKS + 2) * WIDTH**2 // 2
    assert plan.all_reduced == share
    assert plan.sent == group.sent + 2 * share * 3 // 4


def test_a_shared_teacher_copies_a_head_that_is_read_in_chunks() -> None:
    block = Unit(weights=(weight(WIDTH, WIDTH, trained=False),))
    plans = [
        rank_costs(
            replace(sizes(teacher=(block,)), teacher_head=head),
            NO_PASSES,
            parallel="fsdp2",
            num_processes=2,
            is_teacher_shared=is_shared,
        ).teacher
        for is_shared in (False, True)
        for head in (0, 100)
    ]
    assert (plans[1] - plans[0], plans[3] - plans[2]) == (0, 100)
