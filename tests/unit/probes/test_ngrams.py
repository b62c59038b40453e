"""Reliance of language models with known inputs of their predictions."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.probes.ngrams import ngram_distances, ngram_reliance

MASK, VOCABULARY, LENGTH = 4, 5, 20


class Looker(nn.Module):
    """Predicts at p the token at p + offset with certainty; 3 if it is masked, unseen or beyond."""

    def __init__(self, offset: int, *, heeds_attention: bool = False) -> None:
        super().__init__()
        self.offset, self.heeds_attention = offset, heeds_attention
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.seen.append((input_ids.clone(), attention_mask.clone()))
        activations = input_ids
        if self.heeds_attention:
            activations = activations.masked_fill(attention_mask == 0, MASK)
        moved = torch.full_like(activations, MASK)
        width = activations.shape[1]
        for place in range(width):
            if 0 <= place + self.offset < width:
                moved[:, place] = activations[:, place + self.offset]
        message = moved.masked_fill(moved == MASK, 3)
        return 50.0 * nn.functional.one_hot(message, VOCABULARY)


def looker(offset: int, *, heeds_attention: bool = False) -> TappedModel:
    return tapped(Looker(offset, heeds_attention=heeds_attention))


def text(rows: int = 6) -> Batch:
    """Return sequences of the tokens 0 to 2."""
    with seeding.scoped(0, "text"):
        return Batch(inputs={"input_ids": torch.randint(0, 3, (rows, LENGTH))})


def medians(model: TappedModel, sizes: Sequence[int] = (2, 3, 4, 5)) -> dict[str, float]:
    actual = ngram_reliance(model, text(), mask_token=MASK, positions=[6, 12], sizes=sizes)
    return {name.removesuffix("_median"): actual[name] for name in actual if "median" in name}


def test_a_model_of_the_nearest_neighbor_leans_on_every_window_that_holds_it() -> None:
    # All mass moves from one token to another: an L1 norm of 2.
    assert medians(looker(1)) == pytest.approx(
        {
            "robust_2": 0,  # {p-1, p} does not hide p+1,
            "close_2": 2,  # the only input of the prediction.
            "robust_3": 2,
            "close_3": 0,
            "robust_4": 2,
            "close_4": 0,
            "robust_5": 2,
            "close_5": 0,
        }
    )


@pytest.mark.parametrize(("offset", "smallest"), [(-1, 2), (-2, 4), (2, 5)])
def test_windows_are_those_of_the_paper(offset: int, smallest: int) -> None:
    actual = medians(looker(offset))
    leaned = [size for size in (2, 3, 4, 5) if actual[f"robust_{size}"] > 1]
    sufficed = [size for size in (2, 3, 4, 5) if actual[f"close_{size}"] < 1]
    # {p-1, p}, {p-1, p, p+1}, {p-2, ..., p+1}, {p-2, ..., p+2}.
    assert leaned == sufficed == [size for size in (2, 3, 4, 5) if size >= smallest]


def test_a_model_that_ignores_its_neighbors_does_not_lean_on_them() -> None:
    actual = medians(looker(5), sizes=[3, 5])
    assert actual == pytest.approx({"robust_3": 0, "close_3": 2, "robust_5": 0, "close_5": 2})


def test_a_model_that_ignores_everything_is_not_moved_at_all() -> None:
    assert set(medians(looker(40)).values()) == {0.0}


def test_half_of_the_probability_moves_an_l1_norm_of_one() -> None:
    class Half(nn.Module):
        """Predicts token 0 or 1 alone, or half of each if the left neighbor is masked."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            unknown = torch.roll(input_ids, 1, 1) == MASK
            shares = torch.zeros(*input_ids.shape, VOCABULARY)
            shares[..., 0] = torch.where(unknown, 0.5, 1.0)
            shares[..., 1] = torch.where(unknown, 0.5, 0.0)
            return shares.log().clamp(min=-100)

    actual = ngram_reliance(tapped(Half()), text(), mask_token=MASK, positions=[6], sizes=[3])
    assert actual["robust_3_mean"] == pytest.approx(1)
    assert actual["robust_3_sd"] == pytest.approx(0, abs=1e-12)


def test_what_is_hidden_is_masked_and_not_attended() -> None:
    model = looker(0)
    ngram_distances(model, text(1), mask_token=MASK, positions=[6], sizes=[3])
    module = model.module
    assert isinstance(module, Looker)
    # A second, shorter pass determines which axis counts classes.
    full = [(ids, seen) for ids, seen in module.seen if ids.shape[1] == LENGTH]
    hidden = [(ids == MASK).nonzero()[:, 1].tolist() for ids, _ in full]
    unseen = [(seen == 0).nonzero()[:, 1].tolist() for _, seen in full]
    outside = [place for place in range(LENGTH) if place not in (5, 7)]
    assert hidden == unseen == [[6], [5, 6, 7], outside]


def test_hidden_tokens_may_be_left_in_the_attention() -> None:
    model = looker(0)
    ngram_distances(
        model, text(1), mask_token=MASK, positions=[6], sizes=[3], hides_attention=False
    )
    module = model.module
    assert isinstance(module, Looker)
    assert all(bool(seen.all()) for _, seen in module.seen)


def test_tokens_that_training_hides_are_put_back_first() -> None:
    full = text()
    tokens = full.leading.clone()
    selected = torch.tensor([5, 7, LENGTH + 5])
    labels = tokens.view(-1)[selected]
    masked = tokens.clone()
    masked.view(-1)[selected] = MASK
    batch = Batch(inputs={"input_ids": masked}, labels=labels, selected=selected)
    settings = {"mask_token": MASK, "positions": [6], "sizes": [3]}
    assert ngram_reliance(looker(1), batch, **settings) == ngram_reliance(  # type: ignore[arg-type]
        looker(1),
        full,
        **settings,  # type: ignore[arg-type]
    )


def test_positions_beyond_an_examples_data_are_skipped() -> None:
    valid = torch.ones(6, LENGTH, dtype=torch.bool)
    valid[2:, 10:] = False
    batch = Batch(inputs=text().inputs, valid=valid)
    model = looker(1)
    actual = ngram_distances(model, batch, mask_token=MASK, positions=[6, 12, 25], sizes=[3])
    # Six examples reach position 6, two reach 12, none 25.
    assert [len(distances) for distances in actual.values()] == [8, 8]
    module = model.module
    assert isinstance(module, Looker)
    assert not any(bool(seen[2:, 10:].any()) for _, seen in module.seen[:3])


def test_a_model_that_sees_by_attention_alone_gives_the_same() -> None:
    settings = {"mask_token": MASK, "positions": [6], "sizes": [3, 5]}
    blind, plain = (
        ngram_reliance(looker(2, heeds_attention=heeds), text(), **settings)  # type: ignore[arg-type]
        for heeds in (True, False)
    )
    assert blind == plain


def test_the_statistics_are_those_of_the_samples() -> None:
    batch, model = text(), looker(1)
    settings = {"mask_token": MASK, "positions": [3, 6, 9], "sizes": [2]}
    distances = ngram_distances(model, batch, **settings)["close_2"]  # type: ignore[arg-type]
    actual = ngram_reliance(model, batch, **settings)  # type: ignore[arg-type]
    assert len(distances) == 18
    assert actual["close_2_mean"] == pytest.approx(float(distances.mean()))
    ends = [float(distances.quantile(share)) for share in (0.25, 0.75)]
    assert [actual["close_2_p25"], actual["close_2_p75"]] == pytest.approx(ends)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sizes": [3, 1]}, r"'sizes' must be numbers from 2 on; got \[3, 1\]"),
        ({"sizes": []}, r"'sizes' must be numbers from 2 on; got \[\]"),
        ({"positions": [0]}, r"'positions' must be numbers from 1 on; got \[0\]"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, list[int]], sentence: str) -> None:
    with pytest.raises(SpecError, match=f"^{sentence}$"):
        ngram_reliance(looker(1), text(), mask_token=MASK, **settings)  # type: ignore[arg-type]


def test_some_sequence_must_reach_a_position() -> None:
    with pytest.raises(
        DataError,
        match=r"^'positions' must lie inside sequences that are longer than 3 tokens; got \[30\] "
        r"for sequences of up to 20$",
    ):
        ngram_reliance(looker(1), text(), mask_token=MASK, positions=[30], sizes=[3])


def test_a_window_as_long_as_the_sequence_leaves_nothing_to_see() -> None:
    with pytest.raises(DataError, match="longer than 20 tokens"):
        ngram_reliance(looker(1), text(), mask_token=MASK, positions=[6], sizes=[LENGTH])


@pytest.mark.parametrize("inputs", [torch.zeros(3, 4), {"tokens": torch.zeros(3, 4).long()}])
def test_batches_without_tokens_are_refused(inputs: Tensor | dict[str, Tensor]) -> None:
    with pytest.raises(BindError, match=r"^'batch' must hold rows of token ids as 'input_ids'"):
        ngram_reliance(looker(1), Batch(inputs=inputs), mask_token=MASK, positions=[2])
