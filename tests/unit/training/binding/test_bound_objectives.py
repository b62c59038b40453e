"""Terms that own an adapter are copied for a stage; the optimizer knows adapters for one block."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from curricle.data.batch import Batch
from curricle.models.tapped import Activations, Place
from curricle.objectives.adapters import LinearMap, adapter_of
from curricle.objectives.base import BoundObjective, Reads, Sample
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.projections import Learned
from curricle.training.binding.bound_objectives import (
    Term,
    adapters_of,
    described,
    opened,
    trained_beside,
)
from curricle.training.setup.optimizers import SGD, AdamW, Optimizer
from tests.parts import drawn

OPTIMIZERS: list[Optimizer] = [
    SGD(learning_rate=0.1, momentum=0.9),
    SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.5),
    AdamW(learning_rate=0.1),
    AdamW(learning_rate=0.1, weight_decay=0.5),
]
every_optimizer = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS, ids=["sgd", "decaying sgd", "adamw", "decaying adamw"]
)


def bound(objective: Any) -> Term:
    student, teacher = Place("s"), Place("t")
    sample = Sample(
        batch=Batch(inputs=torch.zeros(5, 2), labels=torch.zeros(5, dtype=torch.int64)),
        student=Activations({student: drawn(5, 3)}, drawn(5, 2)),
        teacher=Activations({teacher: drawn(5, 4)}),
        seed=0,
    )
    term: BoundObjective = objective.bind(
        Reads(student=(student,), teacher=(teacher,)), sample, is_residual=False
    )
    return Term(weight=1.0, needs_teacher=objective.needs_teacher, objective=term)


PLAIN = bound(LabelLoss())
OWNER = bound(MatchHidden(pair=LayerPair(student=1, teacher=1), projection=Learned()))


class Counting(nn.Module):
    """Counts the updates of its stage."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.weight = nn.Parameter(torch.ones(2, 2))

    def advance(self) -> None:
        self.number += 1


def test_a_term_without_adapter_is_opened_as_it_is() -> None:
    (term,) = opened([PLAIN])
    assert term is PLAIN
    assert len(adapters_of([PLAIN])) == 0


def test_a_term_with_an_adapter_is_opened_as_a_copy() -> None:
    first, second = opened([OWNER])[0], opened([OWNER])[0]
    weights = [adapter_of(term.objective) for term in (OWNER, first, second)]
    maps = [found for found in weights if isinstance(found, LinearMap)]
    with torch.no_grad():
        maps[1].weight.add_(1)
    assert torch.equal(maps[0].weight, maps[2].weight)
    assert not torch.equal(maps[0].weight, maps[1].weight)


def test_adapters_are_listed_in_the_order_of_the_terms() -> None:
    terms = opened([OWNER, PLAIN, replace(OWNER, weight=2.0)])
    found = adapters_of(terms)
    assert [*found] == [adapter_of(terms[0].objective), adapter_of(terms[2].objective)]


def test_what_is_said_of_several_terms_is_joined_without_repeating() -> None:
    words = described([OWNER, OWNER, PLAIN])
    assert words["projection"] == "learned 4x3 + -"
    assert words["objective"] == "1 x MSE + 1 x cross-entropy"


@every_optimizer
def test_inside_the_block_adapters_move_like_the_student(optimizer: Optimizer) -> None:
    student, beside = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    built = optimizer.build([student])
    adapters = nn.ModuleList([LinearMap(beside.detach().clone())])
    (own,) = adapters.parameters()
    with trained_beside(built, adapters, weight_decay=optimizer.weight_decay):
        for _ in range(3):
            for parameter in (student, own):
                parameter.grad = torch.full_like(parameter, 0.3)
            built.step()
    assert torch.equal(own, student)
    assert not torch.equal(student, torch.ones(2, 2))


@every_optimizer
def test_after_the_block_the_optimizer_is_as_if_there_had_been_no_adapter(
    optimizer: Optimizer,
) -> None:
    student = nn.Parameter(torch.ones(2, 2))
    built = optimizer.build([student])
    groups = list(built.param_groups)
    adapters = nn.ModuleList([LinearMap(torch.ones(2, 2))])
    with trained_beside(built, adapters, weight_decay=optimizer.weight_decay):
        for parameter in (student, *adapters.parameters()):
            parameter.grad = torch.ones_like(parameter)
        built.step()
    assert built.param_groups == groups
    assert list(built.state) == [student]


def test_an_adapter_that_counts_is_told_of_the_updates_inside_the_block() -> None:
    built = SGD(learning_rate=0.1).build([nn.Parameter(torch.ones(2))])
    counting, other = Counting(), LinearMap(torch.ones(2, 2))
    with trained_beside(built, nn.ModuleList([counting, other]), weight_decay=0.0):
        for _ in range(3):
            built.step()
    built.step()
    assert counting.number == 3


def test_an_exception_ends_the_block_too() -> None:
    built = SGD(learning_rate=0.1).build([nn.Parameter(torch.ones(2))])
    counting = Counting()
    with (
        pytest.raises(KeyError),
        trained_beside(built, nn.ModuleList([counting]), weight_decay=0.0),
    ):
        raise KeyError
    built.step()
    assert counting.number == 0
    assert len(built.param_groups) == 1


def test_without_adapters_nothing_is_added() -> None:
    built = AdamW(learning_rate=0.1).build([nn.Parameter(torch.ones(2))])
    with trained_beside(built, nn.ModuleList(), weight_decay=0.1):
        assert len(built.param_groups) == 1
        assert not built._optimizer_step_post_hooks
