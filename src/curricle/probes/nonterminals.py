"""Can the grammar be read off a network's hidden states?

The probe of the grammar experiments: for each token, and each level of its derivation tree, the
nonterminal above it is predicted from the hidden states of a frozen model. Which positions are
looked at depends on the positions alone: head h mixes the hidden states by fixed weights
A_h = softmax(P_h^T P_h) and maps the mixture linearly to levels x classes; the heads are added up.

    scores[t] = sum_h W_h (sum_s A_h[t, s] x_s) + b_h

Axes: example, position, width (of the hidden states), level (of the tree), class (nonterminals of a
level), other (held-out examples) and place (their positions).

Design: `nonterminal_probe` reads a model's last numbered tap; all else knows only tensors, so that
any grammar, tree and network will do. Labels of -100 are neither learned nor counted; positions
where all levels have it (padding, the begin token) are not looked at.

Source:
    Allen-Zhu and Li 2023 (arXiv 2305.13673), position-based linear probing of nonterminals;
    Panigrahi et al. 2024 (arXiv 2410.05464) with 16 heads, P in R^{256 x 450}, 7 levels of 30
    classes, Adam at 1e-2, batches of 64, 4 epochs over 10,240 sequences, 6 % warm-up and cosine to
    zero. Deviation: the law of the initial P is not stated; here it is normal with variance 1/256,
    with which the attention begins nearly uniform.
"""

import math
from typing import Final, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from curricle import seeding
from curricle.data.streams import Batch
from curricle.errors import BindError, DataError
from curricle.models.tapped import TappedModel
from curricle.probes.readings import hidden_states, numbered_taps
from curricle.specs import value

IGNORED: Final = -100
"""Label of what is neither learned nor counted."""
LEVELS_AXIS: Final = 2


@final
@value
class NonterminalProbe:
    """Sizes of the probe and how it is trained; the defaults are the paper's."""

    num_classes: int = Field(default=30, gt=1)
    """Nonterminals that a level may hold; labels are smaller."""
    num_heads: int = Field(default=16, gt=0)
    """Ways to look at the positions."""
    position_width: int = Field(default=256, gt=0)
    """Rows of P."""
    num_positions: int = Field(default=450, gt=0)
    """Columns of P; sequences may be shorter."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak rate of Adam."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the rate rises from zero."""
    batch_size: int = Field(default=64, gt=0)
    """Sequences a step."""
    epochs: int = Field(default=4, gt=0)
    """Passes over the sequences."""


@final
class PositionHeads(nn.Module):
    """Linear maps of hidden states that are mixed by position."""

    def __init__(self, settings: NonterminalProbe, *, width: int, num_levels: int) -> None:
        """Draw the weights from torch's global generator, as every torch layer does."""
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
        """Return the scores; labels only tell which positions hold data."""
        places = self.places[:, :, : states.shape[1]]
        agreement = places.transpose(1, 2) @ places
        padding = (labels == IGNORED).all(-1)
        is_padded = bool(padding.any())
        scores: Tensor = torch.zeros((), device=states.device)
        for weights, linear in zip(agreement, self.maps, strict=True):
            # An example without any data would have no place to look at; it is never counted.
            looked = (
                weights.masked_fill(padding[:, None, :], torch.finfo(weights.dtype).min)
                if is_padded
                else weights
            )
            scores = scores + linear(looked.softmax(-1) @ states)
        split: Tensor = scores.unflatten(-1, (self._num_levels, -1))
        return split


def nonterminal_probe(
    model: TappedModel,
    batch: Batch,
    *,
    labels: Int[Tensor, "other place level"],
    training_batch: Batch,
    training_labels: Int[Tensor, "example position level"],
    settings: NonterminalProbe = NonterminalProbe(),  # noqa: B008 - a frozen value
    seed: int = 0,
) -> dict[str, float]:
    """Return how well the symbols above tokens can be read off the last hidden state of a model.

    The numbers are those of `nonterminal_accuracies`.

    Args:
        model: A model of sequences with numbered blocks; it is not changed.
        batch: Held-out sequences; `selected` is not heeded.
        labels: Number of the symbol above each of their positions at each level; -100 for none.
        training_batch: Sequences from which the probe learns.
        training_labels: Labels of these.
        settings: Sizes and training.
        seed: Seed of the probe.
    """
    last = numbered_taps(model)[-1]
    (states,) = hidden_states(model, training_batch, [last]).values()
    (held_out,) = hidden_states(model, batch, [last]).values()
    return nonterminal_accuracies(
        states,
        training_labels.to(states.device),
        held_out,
        labels.to(held_out.device),
        settings=settings,
        seed=seed,
    )


def nonterminal_accuracies(
    states: Float[Tensor, "example position width"],
    labels: Int[Tensor, "example position level"],
    held_out_states: Float[Tensor, "other place width"],
    held_out_labels: Int[Tensor, "other place level"],
    *,
    settings: NonterminalProbe = NonterminalProbe(),  # noqa: B008 - a frozen value
    seed: int = 0,
) -> dict[str, float]:
    """Return the held-out accuracy of every level, after training the probe.

    The numbers are called `level_<l>_accuracy`, with l counted from 0 in the order of the labels,
    and `accuracy`, the mean over levels that have labels; shares of labeled positions.

    Args:
        states: Hidden states of a frozen model, without the start token.
        labels: Number of the ancestor of each token at each level; -100 where there is none.
        held_out_states: States of other sequences.
        held_out_labels: Labels of these.
        settings: Sizes and training.
        seed: Seed of the initial weights and of the order of the sequences.

    Raises:
        DataError: If no held-out position has a label.
    """
    _check(states, labels, settings)
    _check(held_out_states, held_out_labels, settings)
    heads = fitted_heads(states, labels, settings=settings, seed=seed)
    right = torch.zeros(labels.shape[-1], dtype=torch.float64)
    count = torch.zeros_like(right)
    with torch.no_grad():
        for some, wanted in zip(
            held_out_states.split(settings.batch_size),
            held_out_labels.split(settings.batch_size),
            strict=True,
        ):
            found = heads(some.float(), wanted).argmax(-1)
            counted = wanted != IGNORED
            right += ((found == wanted) & counted).sum((0, 1)).cpu()
            count += counted.sum((0, 1)).cpu()
    if not count.any():
        raise DataError(f"'held_out_labels' must label a position; all are {IGNORED}")
    shares = {level: float(right[level] / count[level]) for level in count.nonzero()[:, 0].tolist()}
    numbers = {f"level_{level}_accuracy": share for level, share in shares.items()}
    return numbers | {"accuracy": math.fsum(shares.values()) / len(shares)}


def fitted_heads(
    states: Float[Tensor, "example position width"],
    labels: Int[Tensor, "example position level"],
    *,
    settings: NonterminalProbe = NonterminalProbe(),  # noqa: B008 - a frozen value
    seed: int = 0,
) -> PositionHeads:
    """Return the probe's heads, trained on labeled states by mean cross-entropy in nats.

    Args:
        states: Hidden states of a frozen model.
        labels: Number of the ancestor of each token at each level; -100 where there is none.
        settings: Sizes and training.
        seed: Seed of the initial weights and of the order of the sequences.
    """
    _check(states, labels, settings)
    with seeding.scoped(seed, "probe/nonterminals"):
        heads = PositionHeads(settings, width=states.shape[-1], num_levels=labels.shape[-1])
    heads.to(states.device)
    optimizer = torch.optim.Adam(heads.parameters(), lr=settings.learning_rate)
    an_epoch = -(-len(states) // settings.batch_size)
    total = settings.epochs * an_epoch
    with torch.enable_grad():
        for step in range(total):
            epoch, part = divmod(step, an_epoch)
            if part == 0:
                parts = _order(len(states), seed, epoch).split(settings.batch_size)
            rows = parts[part].to(states.device)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_share(step, total, settings.warmup)
            wanted = labels[rows]
            scores = heads(states[rows].detach().float(), wanted)
            loss = nn.functional.cross_entropy(
                scores.flatten(0, -2), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            optimizer.zero_grad()
            (loss / (wanted != IGNORED).sum().clamp(min=1)).backward()
            optimizer.step()
    return heads.eval()


def rate_share(step: int, total: int, warmup: float) -> float:
    """Return the learning rate of a step as a share of its peak: linear warm-up, then cosine.

    Args:
        step: Number of the step, from 0.
        total: Number of all steps.
        warmup: Share of the steps that warm up.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2


def _order(count: int, seed: int, epoch: int) -> Int[Tensor, " example"]:
    generator = seeding.generator(seed, "probe/nonterminals/order", epoch)
    return torch.randperm(count, generator=generator)


def _check(states: Tensor, labels: Tensor, settings: NonterminalProbe) -> None:
    """Check that labels belong to states and the probe has room for both.

    Raises:
        BindError: If not.
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
