"""Students stepped as one model end where each would alone, within rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.hidden_layers import hidden_first, joint
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, from_labels, one_shot
from curricle.errors import BindError, DivergenceError
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.channel_selection import ChannelSelection
from curricle.objectives.hidden import LayerPair
from curricle.objectives.labels import LabelLoss
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.fast.batched_students import BatchedStudents
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD, AdamW
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import bound, mlp, parity

TOTAL = Duration(number=12)
NUMBER = 3


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(3, 6)).square().mean())}


def runs(
    curriculum: Callable[..., Curriculum] = one_shot,
    *,
    student: Callable[[int], TappedModel] = lambda seed: mlp(5, 4, seed=seed),
    total: Callable[[int], Duration] = lambda _: TOTAL,
    **parts: Any,
) -> list[BoundRun]:
    """Return students of one teacher that differ in their seeds."""
    teacher = LiveTeacher(mlp(16, 12, seed=1))
    settings = {"log_every": 1, "eval_every": 5} | parts.pop("settings", {})
    return [
        bound(
            curriculum(total=total(seed)),
            student=student(seed),
            teacher=teacher,
            stream=parity(),
            seed=seed,
            settings=settings,
            **parts,
        )
        for seed in range(NUMBER)
    ]


def together(chosen: list[BoundRun], folder: Path | None = None, **options: Any) -> list[Any]:
    seats = [
        SharedRun(
            run=run,
            evaluate=evaluate,
            outputs=Outputs(folder=None if folder is None else folder / str(number)),
        )
        for number, run in enumerate(chosen)
    ]
    return execute_shared(seats, metric="accuracy", batch_students=True, **options)


def assert_close(ones: list[BoundRun], others: list[BoundRun]) -> None:
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(
            dict(one.student.module.named_parameters()),
            dict(other.student.module.named_parameters()),
            rtol=1e-4,
            atol=1e-6,
        )


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of students of every step taken as one."""
    seen: list[int] = []
    step = BatchedStudents.step

    def counting(self: Any, batch: Any, number: int) -> Any:
        seen.append(len(self.steppers))
        return step(self, batch, number)

    monkeypatch.setattr(BatchedStudents, "step", counting)
    return seen


CASES: dict[str, dict[str, Any]] = {
    "one shot": {},
    "labels": {"curriculum": from_labels},
    "extraction": {"curriculum": extraction},
    "own layers": {"curriculum": lambda total: extraction(total=total, pairs=2, trainable="new")},
    "momentum": {"optimizer": SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.1)},
    "adam": {"optimizer": AdamW(learning_rate=0.01, weight_decay=0.1)},
    "adam, reset": {
        "curriculum": lambda total: extraction(total=total, optimizer_state="reset"),
        "optimizer": AdamW(learning_rate=0.01),
    },
    "centered": {"curriculum": lambda total: extraction(total=total, center=True)},
    "selected channels": {
        "curriculum": lambda total: extraction(total=total, projection=ChannelSelection())
    },
    "CKA": {"curriculum": lambda total: hidden_first(total=total, layer_objective="cka")},
    "Procrustes": {"curriculum": lambda total: joint(total=total, layer_objective="procrustes")},
    "half": {"settings": {"teacher_precision": "bfloat16"}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_students_end_where_each_would_alone(case: dict[str, Any], joined: list[int]) -> None:
    apart, stacked = runs(**case), runs(**case)
    before = [parameter.clone() for parameter in stacked[0].student.module.parameters()]
    for run in apart:
        execute(run, evaluate, metric="accuracy", outputs=Outputs())
    together(stacked)
    stages = len(stacked[0].stages)
    assert joined == [NUMBER] * (12 - stages)
    assert_close(stacked, apart)
    moved = zip(before, stacked[0].student.module.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in moved)


def test_students_that_end_earlier_leave_the_others_to_go_on(joined: list[int]) -> None:
    # The length of a run is part of its schedule, so only equal ones step as one.
    lengths = lambda seed: Duration(number=6 if seed == 0 else 12)  # noqa: E731 - a short table
    apart, stacked = runs(total=lengths), runs(total=lengths)
    for run in apart:
        execute(run, evaluate, metric="accuracy", outputs=Outputs())
    together(stacked)
    assert joined == [2] * 11
    assert_close(stacked, apart)


def test_a_student_may_end_at_its_target_while_the_others_go_on(joined: list[int]) -> None:
    asked = iter([True])
    ends = together(runs(), until=lambda _: next(asked, False))
    assert sorted(end.usage.steps for end in ends) == [5, 12, 12]
    assert joined == [3] * 4 + [2] * 7


@pytest.mark.parametrize(
    "optimizer", [SGD(learning_rate=0.1, momentum=0.9), AdamW(learning_rate=0.01)]
)
def test_a_checkpoint_of_stacked_students_is_gone_on_with_alone(
    tmp_path: Path, optimizer: Any
) -> None:
    class CutError(Exception):
        pass

    def cut(metrics: dict[str, float]) -> bool:
        cut.calls += 1  # type: ignore[attr-defined]
        if cut.calls > NUMBER:  # type: ignore[attr-defined]
            raise CutError
        return False

    cut.calls = 0  # type: ignore[attr-defined]
    parts = {"optimizer": optimizer, "settings": {"save_every": 5}}
    whole, first, second = runs(**parts), runs(**parts), runs(**parts)
    together(whole)
    with pytest.raises(CutError):
        together(first, tmp_path, until=cut)
    for number, run in enumerate(second):
        execute(
            run, evaluate, metric="accuracy", outputs=Outputs(folder=tmp_path / str(number)),
            resume=True,
        )  # fmt: skip
    assert_close(second, whole)


def noisy(seed: int) -> TappedModel:
    with seeding.scoped(seed, "model"):
        layers = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    return tapped(layers, blocks=["0", "1"])


def counting(seed: int) -> TappedModel:
    with seeding.scoped(seed, "model"):
        layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    return tapped(layers, blocks=["0", "1"])


def headed(seed: int) -> TappedModel:
    with seeding.scoped(seed, "model"):
        layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return tapped(layers, blocks=["0"], head="2")


ALONE: dict[str, dict[str, Any]] = {
    "noise": {"student": noisy},
    "buffers": {"student": counting},
    "chunks": {
        "curriculum": lambda total: Curriculum(
            name="chunks",
            stages=(Stage(name="all", duration=total, objectives=(LabelLoss(chunk=3),)),),
        ),
        "student": headed,
    },
}


@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE.keys())
def test_what_cannot_be_stacked_steps_alone_and_ends_the_same(
    case: dict[str, Any], joined: list[int]
) -> None:
    apart, stacked = runs(**case), runs(**case)
    for run in apart:
        execute(run, evaluate, metric="accuracy", outputs=Outputs())
    together(stacked)
    assert joined == []
    assert_close(stacked, apart)
    assert all(stage.plan.reads_logits for run in stacked for stage in run.stages)


@pytest.mark.parametrize("settings", [{"max_grad_norm": 0.1}, {"gradient_accumulation_steps": 2}])
def test_settings_that_batched_students_lack_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BindError, match=r"^'batch_students' cannot be used with '[a-z_]*=[0-9.]*'"):
        together(runs(settings=settings))


class Scaled(nn.Module):
    """A model whose factor no shape, name or printed word tells."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.factor * self.layer(inputs)
        return found


def test_models_that_only_look_alike_are_not_stacked(joined: list[int]) -> None:
    def student(seed: int) -> TappedModel:
        with seeding.scoped(seed, "model"):
            return tapped(Scaled(1.0 + seed), blocks=["layer"])

    apart, stacked = runs(student=student), runs(student=student)
    for run in apart:
        execute(run, evaluate, metric="accuracy", outputs=Outputs())
    together(stacked)
    assert joined == []
    assert_close(stacked, apart)


def test_models_that_only_look_alike_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def student(seed: int) -> TappedModel:
        with seeding.scoped(seed, "model"):
            return tapped(Scaled(1.0 + seed), blocks=["layer"])

    asked: list[int] = []
    agrees = BatchedStudents.agrees

    def counting(self: Any, batch: Any) -> bool:
        asked.append(len(self.steppers))
        return agrees(self, batch)

    monkeypatch.setattr(BatchedStudents, "agrees", counting)
    together(runs(student=student))
    assert asked == [NUMBER]


def test_students_whose_optimizers_have_counted_differently_are_not_stacked(
    joined: list[int],
) -> None:
    # Their last stages are the same, but the first have trained other layers.
    def curricula(number: int) -> Curriculum:
        pair = LayerPair(student=number, teacher=1)
        return extraction(total=TOTAL, pairs=(pair,), durations=(Duration(number=6),))

    def both() -> list[BoundRun]:
        teacher = LiveTeacher(mlp(16, 12, seed=1))
        return [
            bound(
                curricula(number),
                student=mlp(5, 4, seed=number),
                teacher=teacher,
                stream=parity(),
                optimizer=AdamW(learning_rate=0.01),
                seed=number,
            )
            for number in (1, 2)
        ]

    apart, stacked = both(), both()
    for run in apart:
        execute(run, evaluate, metric="accuracy", outputs=Outputs())
    together(stacked)
    assert joined == []
    assert_close(stacked, apart)


def test_a_loss_that_is_not_finite_names_its_student() -> None:
    chosen = runs()
    with torch.no_grad():
        module = chosen[1].student.module
        assert isinstance(module, MLP)
        next(module.parameters()).fill_(1e38)
    with pytest.raises(DivergenceError, match=r"^'loss' must be finite.* with seed 1$"):
        together(chosen)
