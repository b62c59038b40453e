"""Named streams, and the loan of torch's global generator."""

import hashlib
import random

import numpy as np
import pytest
import torch

from curricle import seeding


def test_a_derived_seed_is_the_head_of_a_blake2b_hash() -> None:
    digest = hashlib.blake2b(b"7/projection/2", digest_size=8).digest()
    assert seeding.derive(7, "projection", 2) == int.from_bytes(digest, "little") // 2


def test_the_derivation_never_changes() -> None:
    # Recorded once; another number here means that no earlier run can be repeated.
    assert seeding.derive(0, "data") == 454_179_170_045_371_426


def test_a_derived_seed_fits_into_63_bits() -> None:
    assert all(0 <= seeding.derive(seed, "data") < 2**63 for seed in range(100))


@pytest.mark.parametrize("other", [(1, "data", 0), (0, "model", 0), (0, "data", 1), (0, "data")])
def test_seed_purpose_and_index_each_make_another_stream(other: tuple[int, str, int]) -> None:
    assert seeding.derive(*other) != seeding.derive(0, "data", 0)


def test_indexes_do_not_run_into_each_other() -> None:
    assert seeding.derive(0, "data", 1, 23) != seeding.derive(0, "data", 12, 3)


def test_a_generator_starts_afresh_each_time() -> None:
    first = torch.rand(4, generator=seeding.generator(3, "data", 5))
    second = torch.rand(4, generator=seeding.generator(3, "data", 5))
    assert torch.equal(first, second)


def test_a_generator_is_seeded_with_the_derived_seed() -> None:
    assert seeding.generator(3, "data").initial_seed() == seeding.derive(3, "data")


def test_a_numpy_generator_starts_afresh_each_time() -> None:
    first = seeding.numpy_generator(3, "data", 5).random(4)
    second = seeding.numpy_generator(3, "data", 5).random(4)
    assert np.array_equal(first, second)


def test_numpy_streams_of_two_purposes_differ() -> None:
    first = seeding.numpy_generator(3, "data").random(4)
    second = seeding.numpy_generator(3, "mask").random(4)
    assert not np.array_equal(first, second)


def test_a_scoped_block_draws_the_stream_of_its_name() -> None:
    with seeding.scoped(3, "model"):
        drawn = torch.rand(4)
    expected = torch.rand(4, generator=seeding.generator(3, "model"))
    assert torch.equal(drawn, expected)


def test_a_scoped_block_puts_the_global_state_back() -> None:
    before = seeding.global_state()
    with seeding.scoped(3, "model"):
        torch.rand(4)
    assert seeding.global_state() == before


def test_a_scoped_block_puts_the_global_state_back_after_an_error() -> None:
    before = seeding.global_state()
    with pytest.raises(ValueError, match="stop"), seeding.scoped(3, "model"):
        raise ValueError("stop")
    assert seeding.global_state() == before


def test_the_same_name_builds_the_same_module() -> None:
    weights = []
    for _ in range(2):
        with seeding.scoped(3, "model"):
            weights.append(torch.nn.Linear(3, 2).weight)
    assert torch.equal(*weights)


def test_the_global_state_tells_that_something_was_drawn() -> None:
    with seeding.scoped(0, "probe"):
        before = seeding.global_state()
        torch.rand(1)
        assert seeding.global_state() != before


def test_the_global_states_of_devices_are_seen_once_they_are_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = torch.zeros(8, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state, state])
    assert seeding.global_state()[1:] == (bytes(8), bytes(8))


def test_a_scope_beyond_torch_seeds_and_restores_python_and_numpy() -> None:
    def drawn() -> tuple[float, float, float]:
        with seeding.scoped(0, "noise", 3, beyond_torch=True):
            return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - as models do

    before = seeding.foreign_state()
    first = drawn()
    assert seeding.foreign_state() == before
    random.random()
    np.random.rand()  # noqa: NPY002 - as models do
    assert drawn() == first
    assert seeding.foreign_state() != before


def test_a_plain_scope_leaves_python_and_numpy_alone() -> None:
    before = seeding.foreign_state()
    with seeding.scoped(0, "noise"):
        assert seeding.foreign_state() == before
