"""The exact laws of the shipped grammars, held to numbers worked out apart from this code.

They come from another dynamic program over the published rules.
"""

import pytest

from curricle.data.synthetic.grammar_statistics import StringStatistics, string_statistics
from curricle.data.synthetic.grammars import shipped

# Of the symbols 7 to 22.
MEAN_LENGTHS = {
    "cfg3b": (
        *(2.5, 2.5, 2.5),
        *(7.5, 7.5, 7.5),
        *(15, 22.5, 22.5),
        *(48.75, 60, 48.75),
        *(157.5, 133.125, 127.5),
        275.625,
    ),
    "cfg3b-p2": (
        *(2.5, 2.5, 3),
        *(8, 8, 8),
        *(16, 24, 24),
        *(52, 64, 52),
        *(168, 142, 136),
        294,
    ),
}
CASES = [
    (name, symbol, mean)
    for name, means in MEAN_LENGTHS.items()
    for symbol, mean in zip(range(7, 23), means, strict=True)
]


def law(name: str, start: int | None = None) -> StringStatistics:
    return string_statistics(shipped(name, start=start))


@pytest.mark.parametrize(("name", "symbol", "mean"), CASES)
def test_the_mean_length_of_every_symbol(name: str, symbol: int, mean: float) -> None:
    assert law(name, symbol).mean_length == pytest.approx(mean, rel=1e-13)


@pytest.mark.parametrize(
    ("name", "shortest", "longest", "sd"),
    [("cfg3b", 138, 432, 41.70937), ("cfg3b-p2", 161, 432, 44.344)],
)
def test_the_range_of_the_lengths(name: str, shortest: int, longest: int, sd: float) -> None:
    found = law(name)
    assert (found.min_length, found.max_length) == (shortest, longest)
    assert found.sd_length == pytest.approx(sd, abs=5e-4)


def test_the_quantiles_of_the_length_of_the_variant() -> None:
    found = law("cfg3b-p2")
    assert [found.length_quantile(share) for share in (0.5, 0.99, 0.999)] == [296, 385, 392]


@pytest.mark.parametrize(
    ("name", "counts", "shares"),
    [
        ("cfg3b", [91.875, 91.875, 91.875], [1 / 3, 1 / 3, 1 / 3]),
        ("cfg3b-p2", [91.875, 91.875, 110.25], [5 / 16, 5 / 16, 3 / 8]),
    ],
)
def test_how_often_each_terminal_comes(name: str, counts: list[float], shares: list[float]) -> None:
    found = law(name)
    assert list(found.token_counts.values()) == pytest.approx(counts, rel=1e-13)
    assert list(found.token_frequencies.values()) == pytest.approx(shares, rel=1e-13)


@pytest.mark.parametrize(("name", "bits"), [("cfg3b", 169.25), ("cfg3b-p2", 132.5)])
def test_the_entropy_of_the_derivation(name: str, bits: float) -> None:
    assert law(name).entropy == pytest.approx(bits, rel=1e-13)


def test_the_entropy_of_a_token_of_the_variant() -> None:
    assert law("cfg3b-p2").entropy_per_token == pytest.approx(0.4507, abs=5e-5)
