"""A run does not depend on the state of torch around it, and leaves that state as it was."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

import curricle
from curricle import seeding
from curricle.curriculum.strategies import extraction, one_shot
from curricle.errors import BindError
from curricle.teachers.live import LiveTeacher
from curricle.training.distill import execute
from curricle.training.loop.evaluation import label_metrics
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.torch_state import (
    check_single_process,
    standard_state,
    surrounding_notes,
)
from tests.parts import CLASSES, INPUTS, bound, mlp, parity


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # noqa: TID251 - what is tested
    try:
        yield
    finally:
        torch.set_default_dtype(before)  # noqa: TID251 - as it was


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast without cache": lambda: torch.autocast(
        "cpu", dtype=torch.bfloat16, cache_enabled=False
    ),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
}


def weights_of_a_run(**settings: Any) -> dict[str, Tensor]:
    student, teacher, stream = mlp(5, 4), mlp(16, 12, seed=1), parity()
    curricle.distill(
        student,
        teacher,
        extraction(total="6 steps", pairs=1),
        stream,
        evaluation=[stream.batch(0)],
        optimizer=curricle.SGD(learning_rate=0.1),
        settings=curricle.TrainingSettings(device="cpu", eval_every=3, **settings),
    )
    return student.module.state_dict()


def state_of_torch() -> list[object]:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return [
        depth,
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_anomaly_enabled(),
    ]


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16", "prefetch": "targets"}])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_run_inside_is_the_run_outside(name: str, settings: dict[str, Any]) -> None:
    expected = weights_of_a_run(**settings)
    # Models are built outside: `mlp` inside would have other weights.
    student, teacher, stream = mlp(5, 4), mlp(16, 12, seed=1), parity()
    batches = [stream.batch(0)]
    with SURROUNDINGS[name]():
        before = state_of_torch()
        curricle.distill(
            student,
            teacher,
            extraction(total="6 steps", pairs=1),
            stream,
            evaluation=batches,
            optimizer=curricle.SGD(learning_rate=0.1),
            settings=curricle.TrainingSettings(device="cpu", eval_every=3, **settings),
        )
        assert state_of_torch() == before
    found = student.module.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_only_executing_inside_changes_nothing_either() -> None:
    def trained(around: AbstractContextManager[Any]) -> Tensor:
        run = bound(one_shot(total="4 steps"))
        evaluate = label_metrics([parity().batch(0)])
        with around:
            execute(run, evaluate, metric="accuracy", outputs=Outputs())
        return run.student.module.get_parameter("head.weight").detach()

    inside = trained(torch.autocast("cpu", dtype=torch.bfloat16))
    assert torch.equal(inside, trained(nullcontext()))


def test_casts_that_were_made_outside_are_not_used_after_weights_have_moved() -> None:
    with seeding.scoped(0, "model"):
        linear = nn.Linear(2, 1, bias=False)
    inputs = torch.ones(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear(inputs)
        with standard_state(), torch.no_grad():
            linear.weight.fill_(3.0)
        assert linear(inputs).item() == 6.0


def test_an_autocast_in_the_own_forward_pass_stays() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)
            self.seen: set[torch.dtype] = set()

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits: Tensor = self.linear(inputs)
            self.seen.add(logits.dtype)
            return logits

    with seeding.scoped(0, "model"):
        student = Cast()
    stream = parity()
    curricle.distill(
        student, mlp(4), one_shot(total="2 steps"), stream, evaluation=[stream.batch(0)]
    )
    assert student.seen == {torch.bfloat16}


def test_an_autocast_that_was_switched_off_is_noted() -> None:
    student, teacher = mlp(5), mlp(6)
    with SURROUNDINGS["autocast"]():
        run = bound(one_shot(total="1 steps"), student=student, teacher=LiveTeacher(teacher))
    assert [note for note in run.notes if "autocast is off" in note]


class Rotated(nn.Module):
    """Makes a tensor of the default dtype in its forward pass, as models of doubles may."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(INPUTS, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(inputs.double() @ torch.eye(INPUTS))
        return logits


def test_models_may_rely_on_the_default_dtype() -> None:
    with default_dtype(torch.float64), seeding.scoped(0, "models"):
        student, teacher = Rotated(), Rotated()
        result = curricle.distill(
            student,
            teacher,
            one_shot(total="2 steps"),
            parity(),
            evaluation=[parity().batch(0)],
            settings=curricle.TrainingSettings(device="cpu"),
        )
    assert result.usage.steps == 2


def test_without_surroundings_nothing_is_noted() -> None:
    assert bound(one_shot(total="1 steps")).notes == ()
    assert surrounding_notes() == ()


@standard_state()
def nothing() -> None:
    """Runs as a run would begin."""


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_a_function_transform_is_refused(transform: Callable[..., Any]) -> None:
    def inside(number: Tensor) -> Tensor:
        nothing()
        return number.sum()

    with pytest.raises(BindError, match=r"transform of torch.func, such as 'grad' or 'vmap'"):
        transform(inside)(torch.ones(3))


@pytest.mark.parametrize(
    ("around", "sentence"),
    [
        (FakeTensorMode, "'FakeTensor'"),
        (parametrize.cached, r"'torch.nn.utils.parametrize.cached'"),
    ],
)
def test_a_mode_that_replaces_tensors_is_refused(
    around: Callable[[], AbstractContextManager[Any]], sentence: str
) -> None:
    with around(), pytest.raises(BindError, match=sentence):
        nothing()


def test_a_refusal_leaves_the_surroundings_as_they_were() -> None:
    with ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        stack.enter_context(parametrize.cached())
        before = state_of_torch()
        with pytest.raises(BindError):
            nothing()
        assert state_of_torch() == before
    nothing()


def test_several_processes_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = parity()
    with pytest.raises(BindError, match=r"'WORLD_SIZE' must be 1.*got 2; .*parallel='ddp'"):
        curricle.distill(
            mlp(5),
            mlp(6),
            one_shot(total="1 steps"),
            stream,
            evaluation=[stream.batch(0)],
            output_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused_when_targets_are_captured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(BindError, match="got 4"):
        curricle.capture_targets(
            mlp(5), mlp(6), one_shot(total="1 steps"), parity(), folder=tmp_path / "targets"
        )
    assert not (tmp_path / "targets").exists()


def test_several_processes_may_bind_and_read_but_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = bound(one_shot(total="1 steps"))
    assert run.num_steps == 1
    outputs = Outputs(folder=tmp_path / "run")
    with pytest.raises(BindError, match="got 2"):
        execute(run, lambda _: {"accuracy": 0.0}, metric="accuracy", outputs=outputs)
    assert not (tmp_path / "run").exists()


def test_what_is_refused_stays_refused_inside_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        standard_state(is_training=False),
        pytest.raises(BindError, match="got 2"),
        standard_state(),
    ):
        pass


def test_a_process_group_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(BindError, match="got 3"):
        check_single_process()


@pytest.mark.parametrize("size", ["1", "", "unknown"])
def test_one_process_of_a_launcher_is_a_run(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    check_single_process()
