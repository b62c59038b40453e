"""Sizes that no memory holds are refused before anything is made."""

import pytest

from curricle import memory
from curricle.errors import BindError
from curricle.memory import check_memory, memory_limit
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
