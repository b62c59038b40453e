"""Position-based linear probe of a grammar's nonterminals in hidden states.

The probe of the grammar experiments: for each token, and each level of its derivation tree, the
nonterminal above it is predicted from the hidden states of a frozen model. The attention depends on
the positions only: head h mixes the hidden states with fixed weights A_h = softmax(P_h^T P_h) and
maps the mixture linearly to levels x classes; the heads are summed.

    scores[t] = sum_h W_h (sum_s A_h[t, s] x_s) + b_h

Axes: example, position, width (of the hidden states), level (of the tree), class (nonterminals of a
level), other (held-out examples) and place (their positions).

Design: `nonterminal_probe` reads a model's last numbered tap; all other functions take tensors, so
that any grammar, tree and network works. Labels of -100 are neither learned nor counted; positions
with -100 at all levels (padding, the begin token) get no attention.

Source:
    Allen-Zhu and Li 2023 (arXiv 2305.13673), position-based linear probing of nonterminals;
    Panigrahi et al. 2024 (arXiv 2410.05464) with 16 heads, P in R^{256 x 450}, 7 levels of 30
    classes, Adam at 1e-2, batches of 64, 4 epochs over 10,240 sequences, 6 % warm-up and cosine to
    zero. Deviation: the law of the initial P is not stated; here it is normal with variance 1/256,
    so that the initial attention is nearly uniform.
"""

import math
from typing import Final, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from curricle import seeding
from curricle.colocation import beside
from curricle.data.batch import Batch
from curricle.errors import BindError, DataError
from curricle.models.tapped import TappedModel
from curricle.probes.forward_passes import hidden_states, numbered_taps
from curricle.values import value

IGNORED: Final = -100
"""Label excluded from training and accuracy."""
LEVELS_AXIS: Final = 2


@final
@value
class NonterminalProbe:
    """Sizes and training settings of the probe; the defaults are the paper's."""

    num_classes: int = Field(default=30, gt=1)
    """Number of nonterminals per level; an upper bound of the labels."""
    num_heads: int = Field(default=16, gt=0)
    """Number of attention heads over positions."""
    position_width: int = Field(default=256, gt=0)
    """Rows of P."""
    num_positions: int = Field(default=450, gt=0)
    """Columns of P; the maximum sequence length."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak rate of Adam."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Fraction of the steps with a rising rate, from zero."""
    batch_size: int = Field(default=64, gt=0)
    """Sequences per step."""
    epochs: int = Field(default=4, gt=0)
    """Passes over the sequences."""


@final
class PositionHeads(nn.Module):
    """Linear maps of hidden states mixed by position."""

    def __init__(self, settings: NonterminalProbe, *, width: int, num_levels: int) -> None:
        """Sample the weights from torch's global generator, as every torch layer does."""
        super().__init__()
        shape = (settings.num_heads, settings.position_width, settings.num_positions)
        self.places = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.places, std=settings.position_width**-0.5)
        self.maps = nn.ModuleList(
            nn.Linear(width, num_levels * settings.num_classes) for _ in range(settings.num_heads)
        )
        self._num_levels = num_levels

    def forward(
        self,
        states: Float[Tensor, "example position width"],
        labels: Int[Tensor, "example position level"],
    ) -> Float[Tensor, "example position level class"]:
        """Return the scores; labels are used only as a mask of the positions with data."""
        places = self.places[:, :, : states.shape[1]]
        agreement = places.transpose(1, 2) @ places
        padding = (labels == IGNORED).all(-1)
        is_padded = bool(padding.any())
        scores: Tensor = states.new_zeros((), dtype=torch.get_default_dtype())
        for weights, linear in zip(agreement, self.maps, strict=True):
            # The lowest finite value, because minus infinity gives NaN for an example without data.
            masked = (
                weights.masked_fill(padding[:, None, :], torch.finfo(weights.dtype).min)
                if is_padded
                else weights
            )
            scores = scores + linear(masked.softmax(-1) @ states)
        split: Tensor = scores.unflatten(-1, (self._num_levels, -1))
        return split


def nonterminal_probe(
    model: TappedModel,
    batch: Batch,
    *,
    labels: Int[Tensor, "other place level"],
    training_batch: Batch,
    training_labels: Int[Tensor, "example position level"],
    settings: NonterminalProbe = NonterminalProbe(),
    seed: int = 0,
) -> dict[str, float]:
    """Return the probe's accuracies on the last hidden state of a model.

    The numbers are those of `nonterminal_accuracies`.

    Args:
        model: A model of sequences with numbered blocks; it is not modified.
        batch: Held-out sequences; `selected` is ignored.
        labels: Number of the symbol above each of their positions at each level; -100 for none.
        training_batch: Training sequences of the probe.
        training_labels: Labels of these.
        settings: Sizes and training.
        seed: Seed of the probe.
    """
    last = numbered_taps(model)[-1]
    (states,) = hidden_states(model, training_batch, [last]).values()
    (held_out,) = hidden_states(model, batch, [last]).values()
    return nonterminal_accuracies(
        states,
        beside(training_labels, states),
        held_out,
        beside(labels, held_out),
        settings=settings,
        seed=seed,
    )


def nonterminal_accuracies(
    states: Float[Tensor, "example position width"],
    labels: Int[Tensor, "example position level"],
    held_out_states: Float[Tensor, "other place width"],
    held_out_labels: Int[Tensor, "other place level"],
    *,
    settings: NonterminalProbe = NonterminalProbe(),
    seed: int = 0,
) -> dict[str, float]:
    """Return the held-out accuracy of every level, after training the probe.

    The names are `level_<l>_accuracy`, with l counted from 0 in the order of the labels, and
    `accuracy`, the mean over levels with labels; all are shares of labeled positions.

    Args:
        states: Hidden states of a frozen model, without the start token.
        labels: Number of the ancestor of each token at each level; -100 for none.
        held_out_states: States of other sequences.
        held_out_labels: Labels of these.
        settings: Sizes and training.
        seed: Seed of the initial weights and of the order of the sequences.

    Raises:
        DataError: If no held-out position has a label.
    """
    _check(states, labels, settings)
    _check(held_out_states, held_out_labels, settings)
    heads = fit_heads(states, labels, settings=settings, seed=seed)
    right = torch.zeros(labels.shape[-1], dtype=torch.float64)
    count = torch.zeros_like(right)
    with torch.no_grad():
        for chunk, chunk_labels in zip(
            held_out_states.split(settings.batch_size),
            held_out_labels.split(settings.batch_size),
            strict=True,
        ):
            predicted = heads(chunk.float(), chunk_labels).argmax(-1)
            counted = chunk_labels != IGNORED
            right += ((predicted == chunk_labels) & counted).sum((0, 1)).cpu()
            count += counted.sum((0, 1)).cpu()
    if not count.any():
        raise DataError(f"'held_out_labels' must label a position; all are {IGNORED}")
    shares = {level: float(right[level] / count[level]) for level in count.nonzero()[:, 0].tolist()}
    numbers = {f"level_{level}_accuracy": share for level, share in shares.items()}
    return numbers | {"accuracy": math.fsum(shares.values()) / len(shares)}


def fit_heads(
    states: Float[Tensor, "example position width"],
    labels: Int[Tensor, "example position level"],
    *,
    settings: NonterminalProbe = NonterminalProbe(),
    seed: int = 0,
) -> PositionHeads:
    """Return the probe's heads, trained on labeled states by mean cross-entropy in nats.

    Args:
        states: Hidden states of a frozen model.
        labels: Number of the ancestor of each token at each level; -100 for none.
        settings: Sizes and training.
        seed: Seed of the initial weights and of the order of the sequences.
    """
    _check(states, labels, settings)
    with seeding.scoped(seed, "probe/nonterminals"):
        heads = PositionHeads(settings, width=states.shape[-1], num_levels=labels.shape[-1])
    beside(heads, states)
    optimizer = torch.optim.Adam(heads.parameters(), lr=settings.learning_rate)
    steps_per_epoch = -(-len(states) // settings.batch_size)
    total = settings.epochs * steps_per_epoch
    with torch.enable_grad():
        for step in range(total):
            epoch, index = divmod(step, steps_per_epoch)
            if index == 0:
                batches = _order(len(states), seed, epoch).split(settings.batch_size)
            rows = beside(batches[index], states)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_share(step, total, settings.warmup)
            batch_labels = labels[rows]
            scores = heads(states[rows].detach().float(), batch_labels)
            loss = nn.functional.cross_entropy(
                scores.flatten(0, -2),
                batch_labels.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            optimizer.zero_grad()
            (loss / (batch_labels != IGNORED).sum().clamp(min=1)).backward()
            optimizer.step()
    return heads.eval()


def rate_share(step: int, total: int, warmup: float) -> float:
    """Return the learning rate of a step as a share of its peak: linear warm-up, then cosine.

    Args:
        step: Number of the step, from 0.
        total: Total number of steps.
        warmup: Fraction of warm-up steps.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2


def _order(count: int, seed: int, epoch: int) -> Int[Tensor, " example"]:
    generator = seeding.generator(seed, "probe/nonterminals/order", epoch)
    return torch.randperm(count, generator=generator)


def _check(states: Tensor, labels: Tensor, settings: NonterminalProbe) -> None:
    """Check that labels match states, and that the probe is large enough for both.

    Raises:
        BindError: If shapes differ, or a sequence or a label exceeds the probe's sizes.
    """
    if labels.shape[:LEVELS_AXIS] != states.shape[:LEVELS_AXIS]:
        raise BindError(
            f"'labels' must have the examples and positions of 'states', "
            f"{tuple(states.shape[:LEVELS_AXIS])}; got {tuple(labels.shape[:LEVELS_AXIS])}"
        )
    if states.shape[1] > settings.num_positions:
        raise BindError(
            f"'num_positions' must be at least the sequences' {states.shape[1]}; "
            f"got {settings.num_positions}"
        )
    real = labels[labels != IGNORED]
    if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < settings.num_classes:
        raise BindError(
            f"'labels' must lie between 0 and {settings.num_classes - 1}, or be {IGNORED}; "
            f"got {int(real.min())} to {int(real.max())}"
        )
