"""Losses of a curriculum in a loop of one's own: those of the engine."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.errors import BindError
from curricle.training import staged_loss
from tests.parts import Listed
from tests.trainers import SIZE, engine, examples, model, weights

pytestmark = pytest.mark.integration


def loader_of(kind: str, size: int) -> DataLoader[Any]:
    items: Any = examples(kind)
    # Otherwise each iterator draws a number from the global generator.
    return DataLoader(items, batch_size=size, generator=seeding.generator(0, "loader"))


def test_a_loop_of_ones_own_has_the_losses_of_the_engine() -> None:
    curriculum = curricle.extraction(
        total="9 steps", pairs=2, layer_fraction=0.6, trainable="new", optimizer_state="reset"
    )
    student = model("masked", 8, 0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    data = loader_of("masked", SIZE)
    numbers = []
    with staged_loss(
        student, model("masked", 16, 1), curriculum, data, optimizer=optimizer, seed=42
    ) as staged:
        while not staged.is_over:
            loss = staged(staged.next_batch())
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            staged.advance()
            numbers.append(loss.item())
    declared = curricle.SGD(learning_rate=0.05, momentum=0.9)
    expected, final = engine("masked", curriculum, optimizer=declared)
    assert numbers == pytest.approx(expected, rel=2e-6)
    assert all(
        torch.allclose(weight, final[name], rtol=1e-5, atol=2e-7)
        for name, weight in weights(student).items()
    )


def test_items_of_the_loader_and_micro_batches_give_the_losses_of_whole_batches() -> None:
    curriculum = curricle.extraction(total="4 steps", pairs=1, layer_fraction=0.5)
    numbers = []
    for size in (SIZE, SIZE // 4):
        student = model("next_token", 8, 0)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
        loader = loader_of("next_token", size)
        data = curricle.stream(loader, next_token=True)
        with staged_loss(student, model("next_token", 16, 1), curriculum, data) as staged:
            micro_batches = iter(loader)
            while not staged.is_over:
                parts = [next(micro_batches) for _ in range(SIZE // size)]
                staged.begin_step(*parts)
                for part in parts:
                    staged(part).backward()
                numbers.append(float(staged.step_loss.loss))
                optimizer.step()
                optimizer.zero_grad()
                staged.advance()
    assert numbers[:4] == pytest.approx(numbers[4:], rel=2e-5)


def test_a_micro_batch_that_was_not_begun_is_refused() -> None:
    loader = loader_of("masked", SIZE)
    with staged_loss(
        model("masked", 8, 0), model("masked", 16, 1), curricle.one_shot(total="2 steps"), loader
    ) as staged:
        batch = staged.next_batch()
        staged(batch).backward()
        with pytest.raises(BindError, match=r"got 2 calls in a step of 1; call 'begin_step\("):
            staged(batch)
        staged.advance()
        staged(batch).backward()


def test_micro_batches_of_an_objective_that_compares_examples_are_refused() -> None:
    data = loader_of("masked", SIZE)
    curriculum = curricle.one_shot(total="2 steps", objective=curricle.MatchSimilarities())
    with staged_loss(model("masked", 8, 0), model("masked", 16, 1), curriculum, data) as staged:
        batch = staged.next_batch()
        sentence = "'begin_step' must get 1 batch for MatchSimilarities in stage .*; got 2"
        with pytest.raises(BindError, match=sentence):
            staged.begin_step(batch, batch)
        staged.begin_step(batch)
        staged(batch).backward()


def test_items_of_other_data_than_a_loader_are_refused() -> None:
    loader = loader_of("masked", SIZE)
    data = Listed(curricle.stream(loader).batch(0))
    models = model("masked", 8, 0), model("masked", 16, 1)
    with (
        staged_loss(*models, curricle.one_shot(total="2 steps"), data) as staged,
        pytest.raises(BindError, match=r"must be taken on a curricle.Batch where .* got 'dict'"),
    ):
        staged(next(iter(loader)))


def test_a_loop_without_optimizer_cannot_reset_it() -> None:
    curriculum = curricle.extraction(total="4 steps", optimizer_state="reset")
    data = loader_of("masked", SIZE)
    arguments = model("masked", 8, 0), model("masked", 16, 1), curriculum, data
    with staged_loss(*arguments) as staged:
        staged(staged.next_batch()).backward()
        staged.advance()
        batch = staged.next_batch()
        with pytest.raises(BindError, match="'optimizer' must be given, since stage 'logits' res"):
            staged(batch)
