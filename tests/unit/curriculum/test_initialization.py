"""Maps of warm starts; the random map is that of a shared projection."""

from typing import Any

import pytest
import torch
import yaml

from curricle.curriculum.initialization import (
    LeastSquaresStart,
    PrincipalStart,
    RandomStart,
    WarmStart,
    warm_start,
)
from curricle.curriculum.strategies import one_shot
from curricle.errors import BindError, SpecError
from curricle.objectives.principal import principal_map
from curricle.objectives.projections import Gaussian, Identity, Orthogonal, Sign
from curricle.runs.spec import RunSpec
from curricle.values import parse, plain, to_yaml
from tests.parts import drawn
from tests.runs import tiny_comparison

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
        actual = PrincipalStart().map(seed=seed, student_width=5, teacher_width=8)(ROWS)
        assert torch.equal(actual, principal_map(ROWS, 5))


def test_a_student_wider_than_its_teacher_has_no_principal_start() -> None:
    with pytest.raises(
        BindError,
        match=r"^'init' by principal components needs a student no wider than its teacher; "
        r"got widths 9 and 8; take 'random', which maps to any width, or .* of width 8 or less$",
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


@pytest.mark.parametrize("start", [{"kind": "random"}, {"kind": "principal"}], ids=str)
def test_a_run_spec_with_a_start_survives_yaml(start: dict[str, str]) -> None:
    call = {"kind": "extraction", "shared_projection": True, "init": start}
    spec = parse(RunSpec, tiny_comparison() | {"curriculum": call})
    assert parse(RunSpec, yaml.safe_load(to_yaml(spec))) == spec


def test_a_start_that_is_none_is_found_when_the_spec_is_read() -> None:
    call = {"kind": "one_shot", "init": {"kind": "warm"}}
    with pytest.raises(SpecError, match=r"'curriculum'.*init.*'random', 'principal'"):
        parse(RunSpec, tiny_comparison() | {"curriculum": call})


def test_guide_is_the_fit_of_the_first_block() -> None:
    assert warm_start("guide") == LeastSquaresStart(blocks=1)
    assert parse(WarmStart, {"kind": "least_squares", "blocks": 1}) == warm_start("guide")


def test_the_fit_of_all_blocks_keeps_the_digest_of_before() -> None:
    assert plain(LeastSquaresStart()) == {"kind": "least_squares", "batches": 12}


def test_a_name_that_no_start_has_is_answered_by_what_each_sets() -> None:
    with pytest.raises(SpecError) as error:
        one_shot(total="9 steps", init="embeddings")
    assert str(error.value) == (
        "'init' must be one of 'random' (the embeddings alone), 'principal' (the embeddings "
        "alone), 'selection' (the embeddings alone), 'least_squares' (embeddings, blocks and head),"
        " 'guide' (the embeddings and the first block), 'auto' (the first that fits of "
        "least_squares, random and principal); got 'embeddings'"
    )
    with pytest.raises(SpecError, match=r"^'init' must be one of 'random' \(the embeddings"):
        warm_start("embeddings")
