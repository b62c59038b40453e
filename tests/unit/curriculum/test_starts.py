"""A start is a value that gives a map, and the random one is that of a shared projection."""

from typing import Any

import pytest
import torch

from curricle.curriculum.starts import PrincipalStart, RandomStart, WarmStart
from curricle.errors import BindError, SpecError
from curricle.objectives.principal import principal_map
from curricle.objectives.projections import Gaussian, Identity, Orthogonal, Sign
from curricle.specs import parse, plain
from tests.parts import drawn

ROWS = drawn(20, 8)


@pytest.mark.parametrize("law", [Gaussian(), Sign(), Orthogonal()], ids=lambda law: law.kind)
def test_the_random_map_is_the_projection_that_layers_share(law: Any) -> None:
    start = RandomStart(projection=law)
    shared = law.matrix(seed=3, name="shared", student_width=5, teacher_width=8)
    assert torch.equal(start.map(seed=3, student_width=5, teacher_width=8)(ROWS), shared)
    assert start.law == f"{law.kind} shared"


def test_another_seed_gives_another_random_map() -> None:
    first, second = (
        RandomStart().map(seed=seed, student_width=5, teacher_width=8)(ROWS) for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_the_principal_map_is_that_of_the_rows_for_every_seed() -> None:
    for seed in (0, 1):
        found = PrincipalStart().map(seed=seed, student_width=5, teacher_width=8)(ROWS)
        assert torch.equal(found, principal_map(ROWS, 5))


def test_a_student_wider_than_its_teacher_has_no_principal_start() -> None:
    with pytest.raises(
        BindError,
        match=r"^'start' by principal components must have a student that is not wider than its "
        r"teacher; got widths 9 and 8$",
    ):
        PrincipalStart().map(seed=0, student_width=9, teacher_width=8)


def test_a_random_start_may_widen() -> None:
    matrix = RandomStart().map(seed=0, student_width=9, teacher_width=8)(ROWS)
    assert matrix.shape == (9, 8)


def test_an_identity_needs_equal_widths_when_it_is_bound() -> None:
    with pytest.raises(BindError, match="must pair equal widths; got student width 5"):
        RandomStart(projection=Identity()).map(seed=0, student_width=5, teacher_width=8)


@pytest.mark.parametrize(
    "start", [RandomStart(), RandomStart(projection=Sign()), PrincipalStart()], ids=str
)
def test_a_start_survives_plain_data(start: Any) -> None:
    assert parse(WarmStart, plain(start)) == start


def test_a_projection_that_is_trained_is_no_start() -> None:
    with pytest.raises(SpecError, match="learned"):
        parse(WarmStart, {"kind": "random", "projection": {"kind": "learned"}})


def test_a_principal_start_has_no_projection() -> None:
    with pytest.raises(SpecError, match="'projection' is not a field"):
        parse(WarmStart, {"kind": "principal", "projection": {"kind": "sign"}})
