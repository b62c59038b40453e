"""The plan of a call in Python: stages, lengths and cost, and nothing trained."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.errors import BindError, DataError, SpecError
from curricle.metrics import TEACHER_AT_CHANCE
from curricle.runs.planning import plan
from tests.parts import mlp, parity


def test_a_plan_is_made_in_python() -> None:
    student = mlp(5, 4).module
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    curriculum = curricle.extraction(total="40 steps", layer_fraction=0.5)
    found = plan(student, mlp(16, 12, seed=1).module, curriculum, parity())
    assert found.num_steps == 40
    assert [(stage.name, stage.steps) for stage in found.stages] == [
        ("layer 1", 20),
        ("logits", 20),
    ]
    assert "| layer 1 | final | 1 <- 1 |" in str(found)
    assert all(note in str(found) for note in found.notes)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_a_plan_has_the_numbers_of_the_run() -> None:
    curriculum = curricle.extraction(total="8 steps", layer_fraction=0.5)
    seen: list[Any] = []
    parts = (mlp(5, 4).module, mlp(16, 12, seed=1).module, curriculum, parity())
    planned = plan(*parts)
    curricle.distill(
        *parts,
        evaluation=[parity(purpose="evaluation").batch(0)],
        settings=curricle.TrainingSettings(device="cpu"),
        observers=[seen.append],
    )
    assert seen[0].stages == planned.stages


def test_what_surrounds_a_plan_does_not_enter_it() -> None:
    rows: Any = [(torch.ones(6), number % 2) for number in range(8)]
    with seeding.scoped(0, "models"):
        parts = (nn.Linear(6, 2), nn.Linear(6, 2), curricle.one_shot(total="4 steps"))
    with torch.inference_mode(), torch.device("meta"):
        planned = plan(*parts, DataLoader(rows, batch_size=4))
    assert planned.num_steps == 4


def planned(**options: Any) -> curricle.Plan:
    models = mlp(5).module, mlp(16, seed=1).module
    return plan(*models, curricle.one_shot(total="4 steps"), parity(), **options)


def test_a_plan_checks_held_out_data_and_metric_as_a_run_does() -> None:
    held_out = [parity(purpose="evaluation").batch(step) for step in range(4)]
    with seeding.scoped(0, "models"):
        constant = nn.Linear(6, 2)
    nn.init.zeros_(constant.weight)
    parts = mlp(5).module, constant, curricle.one_shot(total="4 steps"), parity()
    notes = plan(*parts, evaluation=held_out, metric="nll").notes
    assert TEACHER_AT_CHANCE in notes
    assert TEACHER_AT_CHANCE not in plan(*parts).notes
    assert TEACHER_AT_CHANCE not in plan(*parts, evaluation=lambda _: {"own": 1.0}).notes
    for options in ({}, {"evaluation": held_out}):
        with pytest.raises(SpecError, match="'acuracy'"):
            planned(metric="acuracy", **options)
    batch = curricle.Batch(inputs=torch.zeros(2, 6), labels=torch.zeros(2))
    with pytest.raises(DataError, match="'labels' of 'evaluation' must be whole numbers"):
        planned(evaluation=[batch])
    assert planned(evaluation=held_out, metric="kl").num_steps == 4


def test_a_plan_refuses_one_module_for_both_models() -> None:
    model = mlp(5).module
    sentence = "^'student' and 'teacher' must be different modules; got the same module for both$"
    with pytest.raises(BindError, match=sentence):
        plan(model, model, curricle.one_shot(total="4 steps"), parity())


def test_a_plan_refuses_best_weights_of_a_single_evaluation() -> None:
    settings = curricle.TrainingSettings(device="cpu", eval_every=4, keep_best=True)
    models = mlp(5).module, mlp(16, seed=1).module
    with pytest.raises(BindError, match="'eval_every' must be below the 4 steps of the run"):
        plan(*models, curricle.one_shot(total="4 steps"), parity(), settings=settings)


def test_a_plan_refuses_an_optimizer_of_torch() -> None:
    model = mlp(5).module
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = model, mlp(16, seed=1).module, curricle.one_shot(total="4 steps"), parity()
    with pytest.raises(BindError, match=r"'optimizer' must be curricle\.AdamW"):
        inspect.unwrap(plan)(*parts, optimizer=optimizer)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (0, "'student' must be"),
        (1, "'teacher' must be"),
        (
            2,
            "'curriculum' must be the result of a strategy, as curricle.extraction\\(total='10k st",
        ),
    ],
)
def test_what_does_not_fit_is_refused(place: int, sentence: str) -> None:
    parts = [mlp(5).module, mlp(16, seed=1).module, curricle.one_shot(total="4 steps"), parity()]
    parts[place] = "that"
    with pytest.raises(BindError, match=sentence):
        inspect.unwrap(plan)(*parts)
