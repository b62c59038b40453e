"""The plan of a call in Python: stages, lengths and cost, and nothing trained."""

import inspect

import pytest
import torch

import curricle
from curricle.errors import BindError
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
    curriculum, seen = curricle.extraction(total="8 steps", layer_fraction=0.5), []
    parts = (mlp(5, 4).module, mlp(16, 12, seed=1).module, curriculum, parity())
    planned = plan(*parts)
    curricle.distill(
        *parts,
        evaluation=[parity(purpose="evaluation").batch(0)],
        settings=curricle.TrainingSettings(device="cpu"),
        observers=[seen.append],
    )
    assert seen[0].stages == planned.stages


@pytest.mark.parametrize(
    ("place", "sentence"),
    [(0, "'student' must be"), (1, "'teacher' must be"), (2, "'curriculum' must be")],
)
def test_what_does_not_fit_is_refused(place: int, sentence: str) -> None:
    parts = [mlp(5).module, mlp(16, seed=1).module, curricle.one_shot(total="4 steps"), parity()]
    parts[place] = "that"
    with pytest.raises(BindError, match=sentence):
        inspect.unwrap(plan)(*parts)
