"""A card states the numbers of the run that ended with the exported weights."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import curricle
from curricle import seeding
from curricle.errors import BindError, CheckpointError
from curricle.runs.run_match import records_of_model
from tests.parts import mlp, parity


def trained(folder: Path, student: nn.Module | None = None, **settings: Any) -> nn.Module:
    result = curricle.distill(
        mlp(5).module if student is None else student,
        mlp(16, seed=1),
        curricle.one_shot(total="4 steps"),
        parity(),
        evaluation=[parity(purpose="evaluation").batch(0)],
        settings=curricle.TrainingSettings(device="cpu", **settings),
        output_dir=folder,
    )
    return result.student


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.inner(inputs)
        return output


SAME: dict[str, Callable[[nn.Module], nn.Module]] = {
    "the student": lambda student: student,
    "in half the precision": lambda student: copy.deepcopy(student).bfloat16(),
    "in a wrapper": Wrapped,
    "a part": lambda student: student.get_submodule("head"),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_weights_at_the_end_of_the_run_have_its_card(
    tmp_path: Path, change: Callable[[nn.Module], nn.Module]
) -> None:
    student = change(trained(tmp_path / "run"))
    curricle.export(student, tmp_path / "out", run=tmp_path / "run")
    assert "# Student of one\\_shot" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("has_file", [True, False])
@pytest.mark.parametrize(
    "other",
    [lambda: mlp(5, seed=7).module, lambda: nn.Linear(6, 2)],
    ids=["same architecture", "another"],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path, other: Callable[[], nn.Module], has_file: bool
) -> None:
    trained(tmp_path / "run")
    if not has_file:
        (tmp_path / "run" / "model.safetensors").unlink()
    with seeding.scoped(0, "test model"):
        model = other()
    with pytest.raises(CheckpointError, match=r"'run' must be the run that .* leave 'run' out"):
        curricle.export(model, tmp_path / "out", run=tmp_path / "run")
    assert not (tmp_path / "out").exists()


def test_the_digest_of_the_records_stands_for_a_missing_file(tmp_path: Path) -> None:
    student = trained(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert records_of_model(tmp_path / "run", student)


def test_the_best_weights_are_those_of_their_run(tmp_path: Path) -> None:
    student = trained(tmp_path / "run", keep_best=True, eval_every=1)
    assert records_of_model(str(tmp_path / "run"), student)


def test_tied_weights_are_found_by_their_content(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.head = nn.Linear(6, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.head(self.second(self.first(inputs).relu()))
            return output

    with seeding.scoped(0, "test model"):
        student = Tied()
    assert records_of_model(tmp_path / "run", trained(tmp_path / "run", student))


@pytest.mark.integration
def test_a_student_with_merged_adapters_is_that_of_its_run(tmp_path: Path) -> None:

    names = [name for name, module in mlp(5).module.named_modules() if type(module) is nn.Linear]
    config = peft.LoraConfig(target_modules=names[:1], modules_to_save=names[-1:], r=2)
    with seeding.scoped(0, "test model"):
        student = peft.get_peft_model(mlp(5).module, config)
    adapted = trained(tmp_path / "run", student)
    exported = curricle.export(adapted, tmp_path / "out", run=tmp_path / "run")
    assert exported.merged
    merged = copy.deepcopy(adapted).merge_and_unload()  # type: ignore[operator]
    assert records_of_model(tmp_path / "run", merged)
    with torch.no_grad():
        merged.get_submodule(names[-1]).weight.add_(1)
    with pytest.raises(CheckpointError, match=rf"as in '{names[-1]}.weight' \(1 of 4 tensors"):
        records_of_model(tmp_path / "run", merged)


def test_a_folder_without_records_names_the_argument(tmp_path: Path) -> None:
    with seeding.scoped(0, "test model"):
        model = nn.Linear(2, 2)
    (tmp_path / "comparison" / "students" / "one_shot" / "seed-0").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"'run' must .*such as '.*students/one_shot/seed-0'"):
        records_of_model(tmp_path / "comparison", model)
    (tmp_path / "trainer").mkdir()
    with pytest.raises(CheckpointError, match=r"'run' must .* CurriculumTrainer; leave 'run' out"):
        records_of_model(tmp_path / "trainer", model)
    with pytest.raises(CheckpointError, match=r"'run' must .*absent', which does not exist"):
        records_of_model(tmp_path / "absent", model)
    with pytest.raises(BindError, match=r"'run' must be the folder of a run.*got 'int'"):
        inspect.unwrap(records_of_model)(3, model)
