"""Contract of projection laws: a fixed matrix that preserves the scale of its inputs."""

import math
from typing import Any

import pytest
import torch

from curricle.errors import BindError
from curricle.objectives.projections import (
    Gaussian,
    Identity,
    Learned,
    Orthogonal,
    Projection,
    Sign,
)
from curricle.values import parse, plain

Law = Gaussian | Sign | Orthogonal | Identity
RANDOM: list[Law] = [Gaussian(), Sign(), Orthogonal()]
LAWS: list[Law] = [*RANDOM, Identity()]
WIDTHS = [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1)]

every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
every_random_law = pytest.mark.parametrize("law", RANDOM, ids=lambda law: law.kind)
every_pair = pytest.mark.parametrize(
    ("law", "student_width", "teacher_width"),
    [
        pytest.param(law, *widths, id=f"{law.kind}-{widths[0]}x{widths[1]}")
        for law in LAWS
        for widths in WIDTHS
        if law in RANDOM or widths[0] == widths[1]
    ],
)


def draw(
    law: Law,
    student_width: int = 6,
    teacher_width: int = 6,
    *,
    seed: int = 0,
    name: str = "1 <- 2",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    return law.matrix(
        seed=seed, name=name, student_width=student_width, teacher_width=teacher_width, dtype=dtype
    )


@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_has_the_shape_and_type_asked_for(
    law: Law, student_width: int, teacher_width: int, dtype: torch.dtype
) -> None:
    matrix = draw(law, student_width, teacher_width, dtype=dtype)
    assert matrix.shape == (student_width, teacher_width)
    assert matrix.dtype == dtype
    assert matrix.device.type == "cpu"
    assert not matrix.requires_grad


@every_pair
def test_equal_arguments_give_equal_matrices(
    law: Law, student_width: int, teacher_width: int
) -> None:
    one, other = (draw(law, student_width, teacher_width) for _ in range(2))
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()


@every_pair
def test_another_type_is_only_a_cast(law: Law, student_width: int, teacher_width: int) -> None:
    exact = draw(law, student_width, teacher_width, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        actual = draw(law, student_width, teacher_width, dtype=dtype)
        assert torch.equal(actual, exact.to(dtype))


@every_random_law
@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "1 <- 3"}], ids=["seed", "name"])
def test_another_seed_or_name_gives_another_matrix(law: Law, change: dict[str, int | str]) -> None:
    assert not torch.equal(draw(law), draw(law, **change))  # type: ignore[arg-type]


@every_random_law
def test_matrices_of_different_names_are_unrelated(law: Law) -> None:
    one, other = draw(law, 48, 64, name="a"), draw(law, 48, 64, name="b")
    cosine = (one * other).sum() / (one.norm() * other.norm())
    # Of independent entries it spreads by one over the root of their number.
    assert abs(cosine.item()) < 5 / math.sqrt(48 * 64)


@every_pair
def test_the_mean_square_of_what_is_projected_is_kept(
    law: Law, student_width: int, teacher_width: int
) -> None:
    state = torch.linspace(-1, 2, teacher_width, dtype=torch.float64)
    remaining = [
        (draw(law, student_width, teacher_width, seed=seed, dtype=torch.float64) @ state)
        .square()
        .mean()
        for seed in range(400)
    ]
    ratio = torch.stack(remaining).mean() / state.square().mean()
    # One mean square spreads by at most the root of 2 over the rows; here over 400 draws.
    assert ratio.item() == pytest.approx(1, abs=5 * math.sqrt(2 / student_width / 400))


@every_random_law
def test_entries_have_mean_zero_and_one_variance(law: Law) -> None:
    matrix = draw(law, 64, 128, dtype=torch.float64)
    assert matrix.mean().item() == pytest.approx(0, abs=5 / math.sqrt(64 * 128 * 128))
    assert matrix.square().mean().item() == pytest.approx(1 / 128, rel=0.1)


@every_random_law
def test_lengths_survive_a_projection_to_many_rows(law: Law) -> None:
    states = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    projected = states @ draw(law, 192, 256).mT
    ratio = projected.square().mean(-1) / states.square().mean(-1)
    assert ((ratio - 1).abs() < 6 * math.sqrt(2 / 192)).all()


@every_law
def test_it_survives_plain_data(law: Law) -> None:
    assert plain(law)["kind"] == law.kind
    assert parse(Projection, plain(law)) == law


# --- a trained one --------------------------------------------------------------------------------


def first(student_width: int = 4, teacher_width: int = 9, **other: Any) -> torch.Tensor:
    fields: dict[str, Any] = {"seed": 0, "name": "1 <- 2"}
    law = Learned().adapter(
        student_width=student_width, teacher_width=teacher_width, **(fields | other)
    )
    return law.weight


def test_a_learned_map_goes_from_the_student_to_the_teacher_and_is_trained() -> None:
    weight = first()
    assert weight.shape == (9, 4)
    assert (weight.dtype, weight.requires_grad) == (torch.float32, True)


def test_first_values_are_a_function_of_seed_name_and_widths() -> None:
    assert torch.equal(first(), first())
    for change in ({"seed": 1}, {"name": "1 <- 3"}):
        assert not torch.equal(first(), first(**change))
    assert not torch.equal(first(6, 6), first(6, 6).mT)


def test_first_values_keep_the_mean_square_of_what_they_map() -> None:
    weight = first(128, 64)
    assert weight.mean().item() == pytest.approx(0, abs=5 / math.sqrt(64 * 128 * 128))
    assert weight.square().mean().item() == pytest.approx(1 / 128, rel=0.1)


def test_a_learned_map_shares_no_draw_with_a_fixed_one() -> None:
    fixed = draw(Gaussian(), 6, 6)
    cosine = (fixed * first(6, 6)).sum() / (fixed.norm() * first(6, 6).norm())
    assert abs(cosine.item()) < 5 / 6


def test_a_learned_map_survives_plain_data() -> None:
    assert plain(Learned()) == {"kind": "learned"}
    assert parse(Projection, {"kind": "learned"}) == Learned()


def test_identity_changes_nothing() -> None:
    assert torch.equal(draw(Identity(), 3, 3, seed=5, name="any"), torch.eye(3))


def test_identity_refuses_unequal_widths() -> None:
    with pytest.raises(
        BindError,
        match=r"^'1 <- 2' with projection 'identity' must pair equal widths; got student width 3 "
        r"and teacher width 4; use 'gaussian', 'sign' or 'orthogonal'$",
    ):
        draw(Identity(), 3, 4)
