"""Sizes that no memory holds are refused before anything is made."""

import pytest
import torch

from curricle import memory
from curricle.errors import BindError
from curricle.memory import check_memory, is_out_of_memory, memory_limit
from curricle.objectives.projections import Gaussian, Learned, Sign


def test_what_fits_is_not_refused() -> None:
    check_memory(10**6, "a table")


def test_what_is_larger_than_the_memory_is_refused_with_both_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 3 * 10**9)
    check_memory(3 * 10**9, "a table")
    sentence = r"^a table must fit into memory; it takes 3.1 GB, and a process gets at most 3.0 GB"
    with pytest.raises(BindError, match=sentence):
        check_memory(3_100_000_000, "a table")


def test_without_a_known_limit_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: None)
    check_memory(10**18, "a table")


def test_the_limit_of_the_process_counts_where_it_is_below_the_machine() -> None:
    resource = pytest.importorskip("resource")
    _, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    machine = memory_limit()
    assert machine is not None
    resource.setrlimit(resource.RLIMIT_AS, (machine - 4096, hard))
    try:
        assert memory_limit() == machine - 4096
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("law", [Gaussian(), Sign()])
def test_a_projection_that_no_memory_holds_is_refused(law: Gaussian | Sign) -> None:
    with pytest.raises(BindError, match=r"a projection of [\d,]+ entries in float64 must"):
        law.matrix(seed=0, name="a", student_width=10**7, teacher_width=10**8)


def test_a_learned_map_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(BindError, match=r"a projection of [\d,]+ entries in float64 must"):
        Learned().adapter(seed=0, name="a", student_width=10**7, teacher_width=10**8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: not enough memory"), False),
    ],
)
def test_failed_allocations_are_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_torch_refuses_is_a_lack_of_memory() -> None:
    # More than any address space has, so that it fails on every machine.
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**57, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
