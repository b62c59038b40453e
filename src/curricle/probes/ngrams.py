"""Reliance of masked language models on n-gram windows.

A position p is masked; the model's distribution there is the reference. Then more of the context is
hidden, and the distance to the reference measures the effect of the hidden tokens:

- `robust`: the other tokens of the n-gram window around p are also hidden. A large distance means
  that the prediction depends on the window.
- `close`: all tokens outside the window are hidden. A small distance means that the window alone
  determines the prediction.

A teacher in its phase transition relies on short windows, and later less and less: this is the
implicit curriculum of the text and grammar experiments.

Axes: example, position, class, sample (a masked position with data of an example).

Design: hidden tokens are replaced by the mask token and, as in the training data of the paper,
excluded from attention. A model trained without such gaps may fail on them, so `hides_attention`
can be disabled. Positions beyond an example's data are skipped, and windows are cut at its ends.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464), M_robust and M_close as computed by its code: the L1
    norm of the difference of the softmaxes (twice the total variation distance, 2 at most), at
    positions 30, 60, ..., 420 of 1024 sequences; figures show the median. Deviation: none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from curricle.data.batch import SEQUENCE_AXES, Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.tapped import TappedModel
from curricle.probes.forward_passes import selected_logits

POSITIONS: Final = tuple(range(30, 421, 30))
"""Masked positions of the paper, for sequences of about 300 tokens."""
SIZES: Final = (3, 5)
"""Window sizes of the paper's figures; its code also has 2 and 4."""
PERCENTILES: Final = (25, 75)


def ngram_reliance(
    model: TappedModel,
    batch: Batch,
    *,
    mask_token: int,
    positions: Sequence[int] = POSITIONS,
    sizes: Sequence[int] = SIZES,
    hides_attention: bool = True,
) -> dict[str, float]:
    """Return the reliance of a masked language model on short windows.

    The numbers are `robust_<n>_<statistic>` and `close_<n>_<statistic>` for every window size n,
    with the statistics `median`, `mean`, `sd`, `p25` and `p75` over (example, position).

    Args:
        model: A masked language model with inputs `input_ids` and `attention_mask`.
        batch: Full sequences; tokens masked for training are restored first.
        mask_token: Id of the mask token.
        positions: Positions to mask, one after another.
        sizes: Window sizes n; a window is {p - n//2, ..., p + (n-1)//2}.
        hides_attention: Whether hidden tokens are also excluded from attention.
    """
    distances = ngram_distances(
        model,
        batch,
        mask_token=mask_token,
        positions=positions,
        sizes=sizes,
        hides_attention=hides_attention,
    )
    return {
        f"{name}_{statistic}": number
        for name, samples in distances.items()
        for statistic, number in _statistics(samples).items()
    }


def ngram_distances(
    model: TappedModel,
    batch: Batch,
    *,
    mask_token: int,
    positions: Sequence[int] = POSITIONS,
    sizes: Sequence[int] = SIZES,
    hides_attention: bool = True,
) -> dict[str, Float[Tensor, " sample"]]:
    """Return the distances behind `ngram_reliance`, as `robust_<n>` and `close_<n>`.

    Args:
        model: A masked language model with inputs `input_ids` and `attention_mask`.
        batch: Full sequences; tokens masked for training are restored first.
        mask_token: Id of the mask token.
        positions: Positions to mask, one after another.
        sizes: Window sizes.
        hides_attention: Whether hidden tokens are also excluded from attention.

    Raises:
        SpecError: If a size is below 2, a position below 1, or either list is empty.
        DataError: If no example reaches the first position.
    """
    for name, minimum, numbers in (("sizes", 2, sizes), ("positions", 1, positions)):
        if min(numbers, default=0) < minimum:
            raise SpecError(f"{name!r} must be numbers from {minimum} on; got {list(numbers)}")
    sequences = _Sequences.of(batch)
    distances: dict[str, list[Tensor]] = {
        f"{kind}_{size}": [] for size in sizes for kind in ("robust", "close")
    }
    for position in positions:
        reaching = sequences.reaching(position, longer_than=max(sizes))
        if not len(reaching.tokens):
            continue
        predict = partial(
            _prediction,
            model,
            reaching,
            position,
            mask_token=mask_token,
            hides_attention=hides_attention,
        )
        alone = _window(reaching, position, 1)
        reference = predict(alone)
        for size in sizes:
            inside = _window(reaching, position, size)
            for kind, hidden in (("robust", inside), ("close", ~inside | alone)):
                distance = (predict(hidden) - reference).abs().sum(-1)
                distances[f"{kind}_{size}"].append(distance.cpu())
    if not any(distances.values()):
        raise DataError(
            f"'positions' must lie inside sequences that are longer than {max(sizes)} tokens; "
            f"got {list(positions)} for sequences of up to {int(sequences.valid.sum(1).max())}"
        )
    return {name: torch.cat(chunks) for name, chunks in distances.items()}


@final
@dataclass(frozen=True, slots=True)
class _Sequences:
    """Rows of tokens without hidden ones."""

    tokens: Int[Tensor, "example position"]
    valid: Bool[Tensor, "example position"]
    extra_inputs: Mapping[str, Tensor]
    """Further named inputs of the model."""

    @staticmethod
    def of(batch: Batch) -> "_Sequences":
        """Return the sequences of a batch, with tokens masked for training restored.

        Raises:
            BindError: If the batch does not hold token ids as `input_ids`.
        """
        named = {"input_ids": batch.inputs} if isinstance(batch.inputs, Tensor) else batch.inputs
        tokens = named.get("input_ids")
        if tokens is None or tokens.is_floating_point() or tokens.ndim != SEQUENCE_AXES:
            shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
            raise BindError(f"'batch' must hold rows of token ids as 'input_ids'; got {shapes}")
        restored = tokens.clone()
        if batch.selected is not None and batch.labels is not None:
            restored.view(-1)[batch.selected] = batch.labels.to(restored.dtype)
        valid = torch.ones_like(restored, dtype=torch.bool) if batch.valid is None else batch.valid
        extra_inputs = {
            name: tensor
            for name, tensor in named.items()
            if name not in {"input_ids", "attention_mask"}
        }
        return _Sequences(restored, valid, extra_inputs)

    def reaching(self, position: int, *, longer_than: int) -> "_Sequences":
        """Return the sequences with data at a position and before it, longer than a window."""
        if position >= self.tokens.shape[1]:
            rows = torch.zeros(len(self.tokens), dtype=torch.bool)
        else:
            rows = self.valid[:, position - 1 : position + 1].all(1)
            rows &= self.valid.sum(1) > longer_than
        extra_inputs = {name: tensor[rows] for name, tensor in self.extra_inputs.items()}
        return _Sequences(self.tokens[rows], self.valid[rows], extra_inputs)


def _window(sequences: _Sequences, position: int, size: int) -> Bool[Tensor, " position"]:
    """Return the mask of an n-gram window, cut at the ends; size 1 is the position alone."""
    offsets = torch.arange(sequences.tokens.shape[1]) - position
    return (offsets >= -(size // 2)) & (offsets <= (size - 1) // 2)


def _prediction(
    model: TappedModel,
    sequences: _Sequences,
    position: int,
    hidden: Bool[Tensor, " position"],
    *,
    mask_token: int,
    hides_attention: bool,
) -> Float[Tensor, "example class"]:
    """Return the predicted distribution at a position with some positions hidden."""
    valid, tokens = sequences.valid, sequences.tokens
    inputs = {
        "input_ids": tokens.masked_fill(hidden & valid, mask_token),
        "attention_mask": (valid & ~hidden if hides_attention else valid).long(),
        **sequences.extra_inputs,
    }
    selected = torch.arange(len(tokens)) * tokens.shape[1] + position
    logits = selected_logits(model, Batch(inputs=inputs, selected=selected))
    return logits.double().softmax(-1)


def _statistics(distances: Float[Tensor, " sample"]) -> dict[str, float]:
    exact = distances.double()
    shares = torch.tensor([50, *PERCENTILES], dtype=torch.float64) / 100
    median, *percentiles = exact.quantile(shares).tolist()
    return {
        "median": median,
        "mean": float(exact.mean()),
        "sd": float(exact.std(correction=0)),
        **{f"p{share}": number for share, number in zip(PERCENTILES, percentiles, strict=True)},
    }
