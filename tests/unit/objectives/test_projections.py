"""Projections: literal entries, stability, the invariant of their scale, and their errors."""

import hashlib
import math
import re

import pytest
import torch
from torch import Tensor

from curricle.errors import BindError, SpecError
from curricle.objectives.projections import Gaussian, Identity, Orthogonal, Projection, Sign
from curricle.values import parse, plain

LAWS = [Gaussian(), Sign(), Orthogonal()]
MASK = 2**64 - 1


def philox_words(key: int, count: int) -> list[int]:
    """Return words of Philox4x64-10 by the listing of Salmon et al. 2011, in plain Python."""
    words: list[int] = []
    block = 1
    while len(words) < count:
        counter, low, high = [block, 0, 0, 0], key & MASK, key >> 64
        for _ in range(10):
            left, right = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
            counter = [
                (right >> 64) ^ counter[1] ^ low,
                right & MASK,
                (left >> 64) ^ counter[3] ^ high,
                left & MASK,
            ]
            low, high = (low + 0x9E3779B97F4A7C15) & MASK, (high + 0xBB67AE8584CAA73B) & MASK
        words += counter
        block += 1
    return words[:count]


def stream_key(text: str) -> int:
    """Return the key of a stream from the text of its name."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") // 2


def plain_normals(words: list[int]) -> list[float]:
    """Return Box-Muller normals with `math` alone."""
    uniforms = [((word // 4096) + 0.5) / 2**52 for word in words]
    normals: list[float] = []
    for first, second in zip(uniforms[0::2], uniforms[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(first))
        normals += [radius * math.cos(math.tau * second), radius * math.sin(math.tau * second)]
    return normals


def draw(
    law: Gaussian | Sign | Orthogonal,
    *,
    widths: tuple[int, int] = (5, 7),
    seed: int = 11,
    name: str = "h1",
) -> Tensor:
    """Return a float64 matrix."""
    return law.matrix(
        seed=seed,
        name=name,
        student_width=widths[0],
        teacher_width=widths[1],
        dtype=torch.float64,
    )


def test_gaussian_entries_are_box_muller_normals_of_published_philox_words() -> None:
    words = philox_words(stream_key("11/projection/gaussian/h1/5/7"), 36)
    expected = torch.tensor(plain_normals(words)[:35], dtype=torch.float64).reshape(5, 7)
    torch.testing.assert_close(draw(Gaussian()), expected / math.sqrt(7), rtol=1e-6, atol=1e-7)


def test_sign_entries_are_the_bits_of_published_philox_words() -> None:
    words = philox_words(stream_key("11/projection/sign/h1/9/16"), 3)
    bits = [(words[entry // 64] >> (entry % 64)) & 1 for entry in range(144)]
    expected = torch.tensor([0.25 if bit else -0.25 for bit in bits], dtype=torch.float64)
    assert torch.equal(draw(Sign(), widths=(9, 16)), expected.reshape(9, 16))


@pytest.mark.parametrize("widths", [(3, 5), (5, 3), (4, 4)])
def test_orthogonal_entries_are_the_sign_fixed_qr_factor_of_the_normals(
    widths: tuple[int, int],
) -> None:
    long, short = max(widths), min(widths)
    name = f"11/projection/orthogonal/h1/{widths[0]}/{widths[1]}"
    words = philox_words(stream_key(name), long * short + long * short % 2)
    normals = torch.tensor(plain_normals(words)[: long * short], dtype=torch.float64)
    factor, triangle = torch.linalg.qr(normals.reshape(long, short))
    columns = factor * triangle.diagonal().sign() * math.sqrt(long / widths[1])
    expected = columns if widths[0] == long and long != short else columns.T
    torch.testing.assert_close(draw(Orthogonal(), widths=widths), expected, rtol=1e-5, atol=1e-5)


# Printed once by the pure-Python functions above; they must never change.
GOLDEN_GAUSSIAN = [-0.888914520, 1.139614049, -0.017076965, 0.361353069, 0.150704906, -0.198857076]
GOLDEN_SIGN = "++++++--+--++++++-++----"
GOLDEN_ORTHOGONAL = [-0.783553609, 0.613351014, 0.099218318, 0.354623136, 0.572600884, -0.739168897]


def test_gaussian_entries_never_change() -> None:
    expected = torch.tensor(GOLDEN_GAUSSIAN, dtype=torch.float64).reshape(2, 3)
    actual = draw(Gaussian(), widths=(2, 3), seed=0, name="golden")
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-7)


def test_sign_entries_never_change() -> None:
    actual = draw(Sign(), widths=(4, 6), seed=0, name="golden")
    assert "".join("+" if entry > 0 else "-" for entry in actual.flatten().tolist()) == GOLDEN_SIGN


def test_orthogonal_entries_never_change() -> None:
    expected = torch.tensor(GOLDEN_ORTHOGONAL, dtype=torch.float64).reshape(2, 3)
    actual = draw(Orthogonal(), widths=(2, 3), seed=0, name="golden")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_the_same_arguments_give_the_same_matrix(law: Gaussian | Sign | Orthogonal) -> None:
    assert torch.equal(draw(law), draw(law))


@pytest.mark.parametrize("law", LAWS)
def test_the_number_of_threads_does_not_change_the_matrix(
    law: Gaussian | Sign | Orthogonal,
) -> None:
    before = torch.get_num_threads()
    alone = draw(law, widths=(24, 40))
    torch.set_num_threads(2)
    together = draw(law, widths=(24, 40))
    torch.set_num_threads(before)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("law", LAWS)
def test_another_name_gives_another_matrix(law: Gaussian | Sign | Orthogonal) -> None:
    assert not torch.equal(draw(law, name="h1"), draw(law, name="h2"))


@pytest.mark.parametrize("law", LAWS)
def test_another_seed_gives_another_matrix(law: Gaussian | Sign | Orthogonal) -> None:
    assert not torch.equal(draw(law, seed=1), draw(law, seed=2))


@pytest.mark.parametrize("law", LAWS)
def test_another_width_gives_more_than_a_cut_of_the_matrix(
    law: Gaussian | Sign | Orthogonal,
) -> None:
    assert not torch.equal(draw(law, widths=(6, 7))[:5], draw(law, widths=(5, 7)))


def test_two_laws_do_not_share_their_draws() -> None:
    agree = draw(Gaussian(), widths=(50, 50)).sign() == draw(Sign(), widths=(50, 50)).sign()
    # 2500 fair coins: five standard deviations are 0.05.
    assert abs(agree.double().mean().item() - 0.5) < 0.05


@pytest.mark.parametrize("law", [*LAWS, Identity()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_lower_precision_is_a_cast_of_the_same_matrix(
    law: Gaussian | Sign | Orthogonal | Identity, dtype: torch.dtype
) -> None:
    cast = law.matrix(seed=1, name="h", student_width=4, teacher_width=4, dtype=dtype)
    exact = law.matrix(seed=1, name="h", student_width=4, teacher_width=4, dtype=torch.float64)
    assert cast.dtype == dtype
    assert torch.equal(cast, exact.to(dtype))


def test_float32_is_the_default() -> None:
    matrix = Gaussian().matrix(seed=1, name="h", student_width=2, teacher_width=3)
    assert matrix.dtype == torch.float32


def test_gaussian_moments_are_those_of_a_normal_law() -> None:
    standard = draw(Gaussian(), widths=(400, 500)) * math.sqrt(500)
    # 200,000 entries: bounds of five standard errors, sqrt(1, 2, 96) / sqrt(200,000) each.
    assert abs(standard.mean().item()) < 0.012
    assert abs(standard.square().mean().item() - 1) < 0.016
    assert abs(standard.pow(4).mean().item() - 3) < 0.11


def test_sign_has_two_values_about_equally_often() -> None:
    matrix = draw(Sign(), widths=(100, 64))
    assert set(matrix.flatten().tolist()) == {0.125, -0.125}
    assert abs(matrix.mean().item() / 0.125) < 5 / math.sqrt(6400)


def test_orthogonal_rows_are_orthonormal_for_a_narrow_student() -> None:
    matrix = draw(Orthogonal(), widths=(12, 30))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12, dtype=torch.float64))


def test_orthogonal_columns_are_orthogonal_and_keep_the_mean_square_for_a_wide_student() -> None:
    matrix = draw(Orthogonal(), widths=(30, 12))
    expected = torch.eye(12, dtype=torch.float64) * 30 / 12
    torch.testing.assert_close(matrix.T @ matrix, expected)


def test_orthogonal_of_one_row_is_a_unit_vector() -> None:
    assert draw(Orthogonal(), widths=(1, 9)).norm().item() == pytest.approx(1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("widths", [(3, 8), (8, 3), (5, 5)])
def test_the_mean_square_of_a_coordinate_is_kept_in_expectation(
    law: Gaussian | Sign | Orthogonal, widths: tuple[int, int]
) -> None:
    # Uneven on purpose: a law with preferred coordinates would fail.
    state = torch.arange(1, widths[1] + 1, dtype=torch.float64) ** 2
    squares = [(draw(law, widths=widths, seed=seed) @ state).square() for seed in range(1500)]
    each = torch.stack(squares).mean(0) / state.square().mean()
    # Relative spread of one square is at most sqrt(2); five standard errors are 0.18.
    torch.testing.assert_close(each, torch.ones_like(each), rtol=0, atol=0.18)


def test_identity_gives_back_the_state() -> None:
    matrix = Identity().matrix(seed=3, name="h", student_width=6, teacher_width=6)
    assert torch.equal(matrix, torch.eye(6))


def test_identity_of_unequal_widths_is_refused_in_one_sentence() -> None:
    sentence = (
        "'h1' with projection 'identity' must pair equal widths; got student width 4 and teacher "
        "width 6; use 'gaussian', 'sign' or 'orthogonal'"
    )
    with pytest.raises(BindError, match=f"^{re.escape(sentence)}$"):
        Identity().matrix(seed=0, name="h1", student_width=4, teacher_width=6)


def test_the_scale_is_a_factor_of_the_same_entries() -> None:
    assert torch.equal(draw(Gaussian(scale=0.25)), 0.25 * draw(Gaussian()))
    with pytest.raises(SpecError, match=r"'Gaussian\.scale'"):
        Gaussian(scale=0.0)


@pytest.mark.parametrize("law", [*LAWS, Identity()])
def test_a_projection_is_read_back_from_plain_data(
    law: Gaussian | Sign | Orthogonal | Identity,
) -> None:
    assert plain(law)["kind"] == type(law).__name__.lower()
    assert parse(Projection, plain(law)) == law


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(SpecError, match="'sparse' is not a kind; available: 'gaussian'"):
        parse(Projection, {"kind": "sparse"})
