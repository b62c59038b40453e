"""A teacher shows the weights that are asked for and is given back as it came."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.stages import TeacherReference
from curricle.errors import BindError, CheckpointError
from curricle.models.inference import HeldLinear, Inference
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.teachers.live import LiveTeacher, num_parameters
from curricle.teachers.trajectory import Trajectory, TrajectoryWriter, open_trajectory

LOW = Inference(linear=torch.bfloat16)


def mlp(seed: int = 0) -> TappedModel:
    with seeding.scoped(seed, "teacher"):
        return MLP(3, (4,), 2).tapped()


@pytest.fixture
def trajectory(tmp_path: Path) -> Trajectory:
    """Return two checkpoints; checkpoint n holds the weights of seed n."""
    writer = TrajectoryWriter(tmp_path, [10, 20])
    for step in (10, 20):
        writer.save(mlp(step).module, step)
    return open_trajectory(tmp_path)


def logits(model: TappedModel) -> Tensor:
    with torch.no_grad():
        shown: Tensor = model.module(torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]))
    return shown


def test_each_reference_teaches_its_own_weights(trajectory: Trajectory) -> None:
    teacher = LiveTeacher(mlp(0), trajectory)
    with teacher.teaching():
        shown = [logits(teacher.at(reference)) for reference in (10, 20, "final", 10)]
    wanted = [logits(mlp(seed)) for seed in (10, 20, 0, 10)]
    assert all(torch.equal(*pair) for pair in zip(shown, wanted, strict=True))
    assert not torch.equal(shown[0], shown[1])


def test_the_finished_weights_stay_in_the_model(trajectory: Trajectory) -> None:
    teacher = LiveTeacher(mlp(0), trajectory)
    with teacher.teaching(LOW):
        assert teacher.at(20) is not teacher.model
        assert torch.equal(logits(teacher.model), logits(mlp(0)))


def test_the_finished_teacher_needs_no_copy() -> None:
    teacher = LiveTeacher(mlp(0))
    with teacher.teaching():
        assert teacher.at("final") is teacher.model


def test_modes_come_back_after_an_error() -> None:
    teacher = LiveTeacher(mlp(0))

    def fail() -> None:
        with teacher.teaching(LOW):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert teacher.model.module.training
    assert teacher.at("final") is teacher.model


@pytest.mark.parametrize("reference", ["final", 10])
def test_weights_held_in_lower_precision_teach_the_same_in_autocast(
    trajectory: Trajectory, reference: TeacherReference
) -> None:
    teacher = LiveTeacher(mlp(0), trajectory)
    with torch.autocast("cpu", torch.bfloat16):
        with teacher.teaching():
            wanted = logits(teacher.at(reference))
        with teacher.teaching(LOW):
            held = teacher.at(reference)
            assert torch.equal(logits(held), wanted)
            assert not any(part.training for part in held.module.modules())


def test_a_teacher_can_teach_again_with_weights_changed_in_between() -> None:
    teacher = LiveTeacher(mlp(0))
    with teacher.teaching(LOW):
        teacher.at("final")
    teacher.model.module.load_state_dict(mlp(5).module.state_dict())
    with teacher.teaching(LOW), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(teacher.at("final")), logits(mlp(5)))


def test_the_teacher_is_in_evaluation_mode_while_it_teaches() -> None:
    teacher = LiveTeacher(mlp())
    with teacher.teaching():
        assert not any(part.training for part in teacher.model.module.modules())
    assert all(part.training for part in teacher.model.module.modules())


def test_each_submodule_gets_its_own_mode_back() -> None:
    teacher = LiveTeacher(mlp())
    head = teacher.model.module.get_submodule("head")
    head.eval()
    with teacher.teaching():
        pass
    assert teacher.model.module.training
    assert not head.training


def test_a_missing_checkpoint_is_found_before_teaching(trajectory: Trajectory) -> None:
    with pytest.raises(BindError, match=r"must be one of \[10, 20\]; got 30$"):
        LiveTeacher(mlp(), trajectory).check(["final", 10, 30])


def test_a_checkpoint_needs_a_trajectory() -> None:
    with pytest.raises(
        BindError,
        match=r"^'trajectory' must be given to read teacher checkpoint 10; got none; pass ",
    ):
        LiveTeacher(mlp()).check([10])


def test_a_finished_teacher_needs_no_trajectory() -> None:
    LiveTeacher(mlp()).check(["final"])


def test_a_checkpoint_damaged_meanwhile_is_named(trajectory: Trajectory) -> None:
    teacher = LiveTeacher(mlp(0), trajectory)
    trajectory.path(20).write_bytes(b"damaged")
    with teacher.teaching(), pytest.raises(CheckpointError, match="is damaged or of another run"):
        teacher.at(20)


def test_parameters_are_counted() -> None:
    # 3 * 4 + 4 in the block, 4 * 2 + 2 in the head.
    assert num_parameters(mlp()) == 26


def test_tied_parameters_are_counted_once() -> None:
    with seeding.scoped(0, "teacher"):
        model = MLP(3, (3,), 3)
    block = model.blocks[0]
    assert isinstance(block, nn.Sequential)
    tied = block[0].weight
    assert isinstance(tied, nn.Parameter)
    model.head.weight = tied
    # One matrix of 9 and two biases of 3.
    assert num_parameters(model.tapped()) == 15


def test_a_teacher_that_cannot_be_copied_is_refused(trajectory: Trajectory) -> None:
    model = mlp()
    # What is computed of weights is no leaf, as the tied adapters of PEFT are none.
    model.module.transposed = model.module.get_parameter("head.weight").T
    with pytest.raises(BindError, match=r"'teacher' must be a module that copy.deepcopy can"):
        LiveTeacher(model, trajectory).at(10)


def test_checkpoints_of_a_divided_teacher_are_divided_copies_in_its_mode(
    trajectory: Trajectory,
) -> None:
    divided: list[TappedModel] = []

    def divide(model: TappedModel) -> TappedModel:
        divided.append(copy.deepcopy(model))
        divided[-1].module.train()
        return divided[-1]

    whole = mlp(0)
    teacher = LiveTeacher(whole, trajectory).divided(divide)
    with teacher.teaching(LOW):
        shown = teacher.at(20)
        assert teacher.model is divided[0]
        assert shown is divided[1]
        assert not shown.module.training
        # Copies in lower precision would be whole.
        assert not any(isinstance(module, HeldLinear) for module in shown.module.modules())
    assert torch.equal(logits(shown), logits(mlp(20)))
    assert torch.equal(logits(whole), logits(mlp(0)))
    assert teacher.digest == LiveTeacher(mlp(0)).digest


def test_a_teacher_of_which_nothing_is_divided_stays_itself() -> None:
    teacher = LiveTeacher(mlp(0))
    assert teacher.divided(lambda model: model) is teacher
