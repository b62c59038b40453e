"""Runs over everything that trains, held to recorded outcomes; see `tests.golden.runs`.

Where the recorded kernels compute, weights, records and files are equal bit by bit; elsewhere
losses and metrics agree within a tolerance.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.cases import Case
from tests.golden.outcomes import DIGESTS, Machine, Outcome, differences, read_outcomes
from tests.golden.runs import ALL, CASES, HAS_COMPILER, RECORDED, main, perform

MACHINE, OUTCOMES = read_outcomes(RECORDED)
IS_SAME = MACHINE.computes_as(Machine.current(), is_compiled=False)


def marks(case: Case) -> list[pytest.MarkDecorator]:
    # What torch's compiler imports warns of itself.
    warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning")
    return [pytest.mark.integration] * case.is_slow + [warnings] * case.is_compiled


every_case = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(case)) for name, case in CASES.items()]
)
every_twin = pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.same_weights]
)
SMALLEST = "one shot"


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def performed(name: str) -> Outcome:
    return perform(CASES[name])


@every_case
def test_the_outcome_is_the_recorded_one(name: str) -> None:
    case = CASES[name]
    if case.is_compiled and not HAS_COMPILER:
        pytest.skip("no C++ compiler")
    phrases = differences(
        OUTCOMES[name],
        performed(name),
        precision=case.precision,
        compares_digests=MACHINE.computes_as(Machine.current(), is_compiled=case.is_compiled),
    )
    assert not phrases


@every_twin
def test_runs_that_are_the_same_by_construction_have_one_outcome(name: str) -> None:
    case = CASES[name]
    present, twin = performed(name), performed(case.same_weights)
    assert present.weights == twin.weights
    assert present.numbers["loss"] == twin.numbers["loss"]
    assert not case.same_records or present == twin


def test_every_case_is_recorded_and_nothing_else() -> None:
    assert OUTCOMES.keys() == CASES.keys()
    assert len(CASES) == len(ALL)


def test_digests_are_compared_here() -> None:
    if not IS_SAME:
        pytest.skip(f"digests are recorded on {MACHINE}; here numbers alone are compared")
    assert all(OUTCOMES[name].records for name in CASES)


@pytest.mark.parametrize("name", DIGESTS)
def test_another_digest_is_a_difference_where_digests_are_compared(name: str) -> None:
    recorded = OUTCOMES[SMALLEST]
    digests: dict[str, Any] = {name: "0" * 64}
    changed = replace(recorded, **digests)
    for compares, number in ((True, 1), (False, 0)):
        phrases = differences(recorded, changed, precision="float32", compares_digests=compares)
        assert len(phrases) == number


@pytest.mark.parametrize(
    ("numbers", "phrase"),
    [
        ({"loss": [1.0, 2.003]}, "loss[1]: 2.0 became 2.003"),
        ({"loss": [1.0]}, "loss: 2 numbers became 1"),
        ({"loss": [1.0, 2.0], "nll": [1.0]}, "numbers: ['loss'] became ['loss', 'nll']"),
        ({"loss": [1.0, float("nan")]}, "loss[1]: 2.0 became nan"),
    ],
)
def test_other_numbers_are_a_difference(numbers: dict[str, list[float]], phrase: str) -> None:
    recorded = replace(OUTCOMES[SMALLEST], numbers={"loss": [1.0, 2.0]})
    phrases = differences(
        recorded, replace(recorded, numbers=numbers), precision="float32", compares_digests=False
    )
    assert phrases == [phrase]


def test_outcomes_without_numbers_are_refused() -> None:
    recorded = OUTCOMES[SMALLEST]
    with pytest.raises(ValueError, match="must hold numbers"):
        differences(
            recorded, replace(recorded, numbers={}), precision="float32", compares_digests=True
        )


def test_the_command_compares_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compare", "--only", SMALLEST]) == 0
    assert re.search(r"^1 cases of .* compared by .*, 0 different$", capsys.readouterr().out, re.M)


def test_the_command_writes_a_case_beside_those_that_are_recorded(tmp_path: Path) -> None:
    if Machine.current() != MACHINE:
        pytest.skip("a part of the cases can be written on the recorded machine only")
    path = tmp_path / RECORDED.name
    path.write_bytes(RECORDED.read_bytes())
    assert main(["--write", str(path), "--only", SMALLEST]) == 0
    assert path.read_bytes() == RECORDED.read_bytes()
