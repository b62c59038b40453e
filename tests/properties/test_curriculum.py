"""Strategies against independent statements of their rules, over many lengths."""

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from curricle.curriculum.durations import Duration
from curricle.curriculum.layer_pairs import evenly_spaced_pairs
from curricle.curriculum.strategies import extraction, progressive
from curricle.models.tapped import tap_number

ladders = st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True).map(
    lambda steps: tuple(sorted(steps))
)
# Quarters are exact in floating point, so that the reference needs no tolerance.
speeds = st.integers(1, 16).map(lambda quarters: quarters / 4)


@given(ladder=ladders, total=st.integers(1, 400), refresh=st.integers(1, 100), speed=speeds)
def test_the_refresh_rule_holds_at_every_step(
    ladder: tuple[int, ...], total: int, refresh: int, speed: float
) -> None:
    actual = progressive(
        total=Duration(number=total), trajectory=ladder, refresh=refresh, speed=speed
    )
    taught = [
        stage.teacher for stage in actual.stages for _ in range(stage.duration.at_most.number)
    ]
    expected = []
    for step in range(total):
        bound = Fraction(speed) * (1 + step // refresh) * refresh
        below = [checkpoint for checkpoint in ladder if checkpoint <= bound]
        expected.append(below[-1] if below else ladder[0])
    assert taught == expected


@given(ladder=ladders, total=st.integers(1, 400), refresh=st.integers(1, 100), speed=speeds)
def test_neighboring_stages_have_different_teachers(
    ladder: tuple[int, ...], total: int, refresh: int, speed: float
) -> None:
    stages = progressive(
        total=Duration(number=total), trajectory=ladder, refresh=refresh, speed=speed
    ).stages
    teachers = [stage.teacher for stage in stages]
    assert len(set(teachers)) == len(teachers)


@given(ladder=ladders, extra=st.integers(0, 10_000))
def test_equal_parts_differ_by_one_step_at_most(ladder: tuple[int, ...], extra: int) -> None:
    total = Duration(number=len(ladder) + extra)
    actual = progressive(total=total, trajectory=ladder)
    lengths = [stage.duration.at_most.number for stage in actual.stages]
    assert sum(lengths) == total.number
    assert max(lengths) - min(lengths) <= 1


@given(
    total=st.integers(2, 10**9),
    num_pairs=st.integers(1, 24),
    share=st.floats(0.01, 0.99),
)
def test_layer_stages_take_their_share_to_the_nearest_unit(
    total: int, num_pairs: int, share: float
) -> None:
    exact = total * share
    if exact < num_pairs or total - exact < 1:
        return
    stages = extraction(total=Duration(number=total), pairs=num_pairs, layer_fraction=share).stages
    lengths = [stage.duration.at_most.number for stage in stages[:-1]]
    assert abs(sum(lengths) - exact) <= 0.5 + 1e-6 * exact
    assert max(lengths) - min(lengths) <= 1


@given(num_pairs=st.integers(1, 48), depth=st.integers(1, 96))
def test_uniform_pairs_ascend_and_are_different_if_there_are_blocks_enough(
    num_pairs: int, depth: int
) -> None:
    taps = [tap_number(float(pair.student), depth) for pair in evenly_spaced_pairs(num_pairs)]
    assert taps == [math.ceil(Fraction(i * depth, num_pairs + 1)) for i in range(1, num_pairs + 1)]
    assert (len(set(taps)) == num_pairs) or num_pairs >= depth
