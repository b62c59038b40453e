"""Accuracy of the nonterminal probe on states with and without the labels."""

import math

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.wrapping import tapped
from curricle.probes.nonterminals import (
    IGNORED,
    NonterminalProbe,
    PositionHeads,
    _check,
    fit_heads,
    nonterminal_accuracies,
    nonterminal_probe,
    rate_share,
)

LENGTH, SPAN, SYMBOLS = 12, 4, 3
SMALL = NonterminalProbe(
    num_classes=4,
    num_heads=4,
    position_width=16,
    num_positions=LENGTH,
    learning_rate=0.05,
    batch_size=32,
    epochs=10,
)
Labeled = tuple[Tensor, Tensor]


def grammar(count: int, seed: int) -> Labeled:
    """Return tokens as states, with three levels above them.

    Each span of four tokens has one ancestor, given by its first token; the other tokens are
    noise. Level 0 is the ancestor, level 1 the token itself, level 2 independent of all tokens.
    """
    generator = seeding.generator(seed, "grammar")
    ancestors = torch.randint(0, SYMBOLS, (count, LENGTH // SPAN), generator=generator)
    tokens = torch.full((count, LENGTH), SYMBOLS)
    tokens[:, ::SPAN] = ancestors
    hidden = torch.randint(0, 2, (count, LENGTH), generator=generator)
    labels = torch.stack([ancestors.repeat_interleave(SPAN, 1), tokens, hidden], -1)
    return torch.nn.functional.one_hot(tokens, SYMBOLS + 1).float(), labels


def test_what_stands_at_a_fixed_distance_is_found_and_what_is_not_there_is_not() -> None:
    actual = nonterminal_accuracies(*grammar(256, 0), *grammar(128, 1), settings=SMALL)
    assert actual["level_0_accuracy"] == 1
    assert actual["level_1_accuracy"] == 1
    # 1,536 coins.
    assert actual["level_2_accuracy"] == pytest.approx(0.5, abs=0.05)
    assert actual["accuracy"] == pytest.approx((2 + actual["level_2_accuracy"]) / 3)


class Blocks(nn.Module):
    """A block that outputs token identities, and a block without them."""

    def __init__(self, *, forgets: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Tanh() if forgets else nn.Identity()])
        self.forgets = forgets

    def forward(self, input_ids: Tensor) -> Tensor:
        state = self.blocks[0](nn.functional.one_hot(input_ids, SYMBOLS + 1).float())
        last: Tensor = self.blocks[1](0 * state if self.forgets else state)
        return last


@pytest.mark.parametrize("forgets", [False, True])
def test_a_model_is_read_at_its_last_tap(forgets: bool) -> None:
    (states, labels), (others, held_out) = grammar(256, 0), grammar(128, 1)
    model = tapped(Blocks(forgets=forgets), blocks=["blocks.0", "blocks.1"])
    actual = nonterminal_probe(
        model,
        Batch(inputs={"input_ids": others.argmax(-1)}),
        labels=held_out,
        training_batch=Batch(inputs={"input_ids": states.argmax(-1)}),
        training_labels=labels,
        settings=SMALL,
    )
    known = 0.0 if forgets else 1.0
    expected = nonterminal_accuracies(
        known * states, labels, known * others, held_out, settings=SMALL
    )
    assert actual == expected
    assert (actual["level_0_accuracy"] == 1) is not forgets


def test_states_that_do_not_tell_the_ancestor_give_chance() -> None:
    (_, labels), (_, held_out) = grammar(256, 0), grammar(128, 1)
    silent = torch.ones(256, LENGTH, 2), torch.ones(128, LENGTH, 2)
    actual = nonterminal_accuracies(
        silent[0], labels[..., :1], silent[1], held_out[..., :1], settings=SMALL
    )
    assert actual["level_0_accuracy"] == pytest.approx(1 / SYMBOLS, abs=0.12)


def test_the_same_seed_gives_the_same_probe_and_another_one_another() -> None:
    states, labels = grammar(40, 0)
    first, again, other = (
        fit_heads(states, labels, settings=SMALL, seed=seed).places for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_states_are_frozen_and_gradients_may_be_off_around_it() -> None:
    states, labels = grammar(40, 0)
    states.requires_grad_()
    with torch.no_grad():
        nonterminal_accuracies(states, labels, states, labels, settings=SMALL)
    assert states.grad is None


def test_heads_mix_by_position_and_add_up() -> None:
    with seeding.scoped(0, "heads"):
        heads = PositionHeads(SMALL, width=4, num_levels=2)
    states, labels = grammar(3, 0)
    actual = heads(states, labels[..., :2])
    expected = torch.zeros(3, LENGTH, 8)
    for places, linear in zip(heads.places, heads.maps, strict=True):
        weights = torch.exp(places.T @ places)
        weights /= weights.sum(1, keepdim=True)
        expected += linear(torch.einsum("ts,esw->etw", weights, states))
    assert actual.shape == (3, LENGTH, 2, 4)
    assert torch.allclose(actual.flatten(2), expected, atol=1e-5)


def test_padding_is_not_looked_at() -> None:
    with seeding.scoped(0, "heads"):
        heads = PositionHeads(SMALL, width=4, num_levels=3)
    states, labels = grammar(2, 0)
    labels[0, 8:] = IGNORED
    changed = states.clone()
    changed[0, 8:] = 100.0
    before, after = heads(states, labels), heads(changed, labels)
    assert torch.equal(before[0, :8], after[0, :8])
    # Equal to a shorter sequence, too.
    alone = heads(states[:1, :8], labels[:1, :8])
    assert torch.allclose(before[:1, :8], alone, atol=1e-6)


def test_what_has_no_label_is_neither_learned_nor_counted() -> None:
    (states, labels), (others, held_out) = grammar(256, 0), grammar(64, 1)
    labels[:, 1::2] = IGNORED
    held_out[:, 0] = IGNORED
    held_out[..., 2] = IGNORED
    actual = nonterminal_accuracies(states, labels, others, held_out, settings=SMALL)
    assert list(actual) == ["level_0_accuracy", "level_1_accuracy", "accuracy"]
    # Positions 4 and 8 of a kind were learned at even places only, and the rest by their places.
    assert actual["level_0_accuracy"] > 0.4


def test_held_out_sequences_may_have_another_length() -> None:
    states, labels = grammar(256, 0)
    others, held_out = grammar(64, 1)
    actual = nonterminal_accuracies(
        states, labels, others[:, :SPAN], held_out[:, :SPAN], settings=SMALL
    )
    assert actual["level_1_accuracy"] > 0.9


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    shares = [rate_share(step, 100, 0.06) for step in range(100)]
    assert shares[:7] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])
    # Half way between steps 6 and 100.
    assert rate_share(53, 100, 0.06) == pytest.approx(0.5)
    assert shares[-1] == pytest.approx((1 + math.cos(math.pi * 93 / 94)) / 2)
    assert rate_share(0, 1, 0.0) == 1


def test_the_defaults_are_those_of_the_paper() -> None:
    paper = NonterminalProbe()
    assert (paper.num_heads, paper.num_classes) == (16, 30)
    assert (paper.position_width, paper.num_positions) == (256, 450)
    assert (paper.learning_rate, paper.warmup, paper.batch_size, paper.epochs) == (
        0.01,
        0.06,
        64,
        4,
    )


def test_labels_belong_to_states() -> None:
    states, labels = grammar(4, 0)
    # The function behind, since the shape checks of the tests would see it before the public ones.
    with pytest.raises(
        BindError,
        match=r"^'labels' must have the examples and positions of 'states', \(4, 12\); "
        r"got \(4, 11\)$",
    ):
        _check(states, labels[:, :11], SMALL)


def test_the_probe_has_room_for_every_position() -> None:
    states, labels = torch.zeros(2, 13, 4), torch.zeros(2, 13, 1, dtype=torch.long)
    with pytest.raises(
        BindError, match=r"^'num_positions' must be at least the sequences' 13; got 12$"
    ):
        fit_heads(states, labels, settings=SMALL)


@pytest.mark.parametrize("label", [4, -1])
def test_labels_are_classes(label: int) -> None:
    states, labels = grammar(2, 0)
    labels[1, 3, 2] = label
    with pytest.raises(
        BindError, match=r"^'labels' must lie between 0 and 3, or be -100; got (0 to 4|-1 to 3)$"
    ):
        fit_heads(states, labels, settings=SMALL)


def test_something_held_out_is_labeled() -> None:
    states, labels = grammar(2, 0)
    with pytest.raises(DataError, match=r"^'held_out_labels' must label a position; all are -100$"):
        nonterminal_accuracies(
            states, labels, states, torch.full_like(labels, IGNORED), settings=SMALL
        )


def test_sizes_are_positive() -> None:
    with pytest.raises(SpecError, match="num_heads"):
        NonterminalProbe(num_heads=0)
