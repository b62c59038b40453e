"""What a checkpoint holds comes back exactly, and anything else is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.errors import CheckpointError
from curricle.objectives.adapters import LinearMap
from curricle.records import Spent
from curricle.training.checkpoints import (
    ADAPTERS,
    ADAPTERS_OPTIMIZER,
    OPTIMIZER,
    STATE,
    STUDENT,
    RunState,
    latest_checkpoint,
    load_adapters,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from curricle.training.optimizers import SGD, AdamW, Optimizer
from tests.parts import drawn

OPTIMIZERS: list[Optimizer] = [
    SGD(learning_rate=0.1),
    SGD(learning_rate=0.1, momentum=0.9),
    AdamW(learning_rate=0.1),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["plain", "sgd", "adamw"])


def model(seed: int = 0, width: int = 4) -> nn.Module:
    with seeding.scoped(seed, "model"):
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def stepped(optimizer: Optimizer, module: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Return an optimizer that has taken some steps; the last layer never had a gradient."""
    built = optimizer.build(module.parameters())
    for _ in range(steps):
        for name, parameter in module.named_parameters():
            if not name.startswith("2."):
                parameter.grad = parameter.detach().cos()
        built.step()
    return built


def state(steps: int = 7) -> RunState:
    spent = Spent(steps=steps, examples=70, tokens=700, student_flops=5, seconds=1.5)
    return RunState(spent=spent, records_bytes=123, run="0123456789abcdef")


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@every_optimizer
def test_weights_and_optimizer_go_on_as_if_nothing_had_happened(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    module = model()
    built = stepped(optimizer, module, 3)
    path = save_checkpoint(tmp_path, state(), module, built)
    other = model(1)
    restored = optimizer.build(other.parameters())
    load_checkpoint(path, other, restored)
    assert same(module, other)
    for one, its in ((module, built), (other, restored)):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, 0.3)
        its.step()
    assert same(module, other)


@every_optimizer
def test_parameters_without_state_have_none_after_loading(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    module = model()
    built = stepped(optimizer, module, 2)
    path = save_checkpoint(tmp_path, state(), module, built)
    other = model()
    restored = stepped(optimizer, other, 1)
    load_checkpoint(path, other, restored)
    with_state = [parameter in restored.state for parameter in other.parameters()]
    assert with_state[4:] == [False, False]


def test_where_the_run_stood_is_read_back(tmp_path: Path) -> None:
    module = model()
    path = save_checkpoint(tmp_path, state(), module, stepped(OPTIMIZERS[0], module, 1))
    assert read_state(path) == state()


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    for steps in (5, 10, 100):
        last = save_checkpoint(tmp_path, state(steps), module, built)
    assert list(tmp_path.iterdir()) == [last]
    assert latest_checkpoint(tmp_path) == last
    assert last.name == "step-000000100"


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    paths = {save_checkpoint(tmp_path, state(), module, built) for _ in range(2)}
    assert list(tmp_path.iterdir()) == list(paths)


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-000000009").mkdir()
    (tmp_path / "step-000000009" / STUDENT).touch()
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"spent": {"stepz": 1}}'])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE).write_text(content)
    with pytest.raises(CheckpointError, match=r"state.json' must tell where a run stands: "):
        read_state(tmp_path)


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must tell where a run stands: FileNotFound"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", [STUDENT, OPTIMIZER])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    file = save_checkpoint(tmp_path, state(), module, built) / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(file.parent, module, built)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    module, other = model(), model(width=5)
    path = save_checkpoint(tmp_path, state(), module, stepped(OPTIMIZERS[1], module, 1))
    with pytest.raises(CheckpointError, match=r"must hold this model's weights"):
        load_checkpoint(path, other, OPTIMIZERS[1].build(other.parameters()))


def test_state_of_a_parameter_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    module = model()
    path = save_checkpoint(tmp_path / "a", state(), module, stepped(OPTIMIZERS[1], module, 1))
    with seeding.scoped(0, "model"):
        foreign = nn.Sequential(*model().children(), nn.Linear(2, 2))
    built = OPTIMIZERS[1].build(foreign.parameters())
    for parameter in foreign.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    strange = save_checkpoint(tmp_path / "b", state(), foreign, built)
    (path / OPTIMIZER).write_bytes((strange / OPTIMIZER).read_bytes())
    with pytest.raises(
        CheckpointError, match=r"^'optimizer' state must be of this model; got '3\.\w+'$"
    ):
        load_checkpoint(path, module, OPTIMIZERS[1].build(module.parameters()))


def test_a_checkpoint_is_plain_data_and_safetensors(tmp_path: Path) -> None:
    module = model()
    path = save_checkpoint(tmp_path, state(), module, stepped(OPTIMIZERS[2], module, 1))
    assert sorted(file.name for file in path.iterdir()) == sorted([STUDENT, OPTIMIZER, STATE])
    assert json.loads((path / STATE).read_text())["spent"]["steps"] == 7


# --- what is trained besides ----------------------------------------------------------------------


def beside(seed: int = 0) -> nn.ModuleList:
    return nn.ModuleList([LinearMap(drawn(4, 3, seed=seed)), nn.BatchNorm1d(2)])


def moved(
    optimizer: Optimizer, module: nn.Module, adapters: nn.ModuleList
) -> torch.optim.Optimizer:
    """Return an optimizer that has moved a student and adapters, and still holds both."""
    built = optimizer.build([*module.parameters(), *adapters.parameters()])
    for _ in range(3):
        for parameter in [*module.parameters(), *adapters.parameters()]:
            parameter.grad = parameter.detach().cos()
        built.step()
    return built


@every_optimizer
def test_adapters_and_their_state_come_back_beside_the_students(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    module, adapters = model(), beside()
    built = moved(optimizer, module, adapters)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=adapters)
    other, others = model(1), beside(1)
    restored = optimizer.build([*other.parameters(), *others.parameters()])
    load_checkpoint(path, other, restored)
    load_adapters(path, others, restored)
    assert same(module, other)
    assert same(adapters, others)
    for each, its in (([module, adapters], built), ([other, others], restored)):
        for parameter in [one for part in each for one in part.parameters()]:
            parameter.grad = torch.full_like(parameter, 0.3)
        its.step()
    assert same(module, other)
    assert same(adapters, others)


def test_the_students_files_hold_nothing_of_the_adapters(tmp_path: Path) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    with_them = save_checkpoint(tmp_path / "a", state(), module, built, adapters=adapters)
    without = save_checkpoint(tmp_path / "b", state(), module, built)
    for name in (STUDENT, OPTIMIZER):
        assert (with_them / name).read_bytes() == (without / name).read_bytes()
    assert {file.name for file in with_them.iterdir()} - {
        file.name for file in without.iterdir()
    } == {
        ADAPTERS,
        ADAPTERS_OPTIMIZER,
    }


def test_no_adapters_leave_no_file(tmp_path: Path) -> None:
    module = model()
    built = stepped(OPTIMIZERS[0], module, 1)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=nn.ModuleList())
    assert not (path / ADAPTERS).exists()


@pytest.mark.parametrize("name", [ADAPTERS, ADAPTERS_OPTIMIZER])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_adapters_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    file = save_checkpoint(tmp_path, state(), module, built, adapters=adapters) / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=name):
        load_adapters(file.parent, adapters, built)


def test_adapters_of_another_stage_are_refused(tmp_path: Path) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=adapters)
    with pytest.raises(CheckpointError, match=r"must hold this model's weights"):
        load_adapters(path, nn.ModuleList([LinearMap(drawn(5, 3))]), built)
