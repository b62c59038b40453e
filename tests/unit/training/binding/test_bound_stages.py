"""A trial step finds what a stage reaches and what it costs, and changes nothing."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, from_labels, one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Learned
from curricle.objectives.temperature import LearnedTemperature, Temperature
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_objectives import adapters_of
from curricle.training.setup.optimizers import SGD, AdamW
from tests.parts import CLASSES, INPUTS, Listed, bound, layers, mlp

BATCH = 8


def product(*sizes: int) -> int:
    """Return the FLOPs of a batch through linear maps of the given sizes."""
    return sum(2 * BATCH * before * after for before, after in itertools.pairwise(sizes))


# --- what a step costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, "auto"])
@pytest.mark.parametrize("trainable", ["reached", "all"])
def test_a_step_in_chunks_costs_each_model_what_all_logits_cost(chunk: Any, trainable: Any) -> None:
    plans = []
    for size in (None, chunk):
        declared = Stage(
            name="logits",
            duration=Duration(number=3),
            objectives=(MatchLogits(chunk=size),),
            trainable=trainable,
        )
        headed = [tapped(mlp(9, seed=seed).module, head="head") for seed in (0, 1)]
        run = bound(
            Curriculum(name="x", stages=(declared,)),
            student=headed[0],
            teacher=LiveTeacher(headed[1]),
        )
        plans.append(run.stages[0].plan)
    assert plans[0].student_flops == plans[1].student_flops
    assert plans[0].teacher_flops == plans[1].teacher_flops
    assert plans[0].trained_parameters == plans[1].trained_parameters


def test_the_student_pays_forward_and_backward_to_its_tap_and_the_teacher_forward_to_its() -> None:
    run = bound(layers((1, 1), (2, 2)))
    first, second = (stage.plan for stage in run.stages)
    # Backward: once for the weights of each layer, once for the inputs of all but the first.
    assert first.student_flops == 2 * product(6, 5)
    assert second.student_flops == 3 * product(6, 5, 4) - product(6, 5)
    # The teacher adds the projection of its state to the student's width.
    assert first.teacher_flops == product(6, 16) + product(16, 5)
    assert second.teacher_flops == product(6, 16, 12) + product(12, 4)


def test_logits_cost_both_models_whole() -> None:
    (stage,) = bound(one_shot(total=Duration(number=3))).stages
    assert stage.plan.student_flops == 3 * product(6, 5, 4, 2) - product(6, 5)
    assert stage.plan.teacher_flops == product(6, 16, 12, 2)


def test_labels_cost_no_teacher() -> None:
    run = bound(from_labels(total=Duration(number=3)), teacher=None)
    assert run.stages[0].plan.teacher_flops == 0
    assert run.stages[0].plan.teacher == "none"


def test_frozen_layers_cost_no_backward_pass() -> None:
    run = bound(layers((1, 1), (2, 2), trainable="new"))
    # Both layers forward; backward only to the weights of the second.
    assert run.stages[1].plan.student_flops == product(6, 5, 4) + product(5, 4)


def test_a_student_that_runs_whole_pays_for_it() -> None:
    run = bound(layers((1, 1), trainable="all"))
    assert run.stages[0].plan.student_flops == product(6, 5, 4, 2) + product(6, 5)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_does_not_change_the_cost(accumulation: int) -> None:
    curriculum = layers((2, 2))
    whole = bound(curriculum).stages[0].plan
    parts = bound(curriculum, settings={"gradient_accumulation_steps": accumulation}).stages[0].plan
    assert parts.student_flops == whole.student_flops
    assert parts.teacher_flops == whole.teacher_flops
    assert parts.memory_bytes < whole.memory_bytes


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        # Weights and gradients; momentum; two moments.
        (SGD(learning_rate=0.1), 2),
        (SGD(learning_rate=0.1, momentum=0.9), 3),
        (AdamW(learning_rate=0.1), 4),
    ],
)
def test_memory_is_trained_weights_with_their_state_and_kept_activations(
    optimizer: SGD | AdamW, copies: int
) -> None:
    (stage,) = bound(layers((1, 1)), optimizer=optimizer).stages
    weights = 6 * 5 + 5
    # Autograd keeps the output of the ReLU and the difference to the target.
    activations = 2 * BATCH * 5
    assert stage.plan.trained_parameters == weights
    assert stage.plan.memory_bytes == 4 * (copies * weights + activations)


def test_labels_are_data_and_no_activations() -> None:
    block = torch.zeros(1000, dtype=torch.int64)
    costs = []
    for labels in (block[:BATCH], block[:BATCH].clone()):
        data = Listed(Batch(inputs=torch.ones(BATCH, INPUTS), labels=labels))
        run = bound(from_labels(total="3 steps"), teacher=None, stream=data)
        costs.append(run.stages[0].plan.memory_bytes)
    assert costs[0] == costs[1]


def learned(**fields: Any) -> Curriculum:
    """Return a stage with a learned projection from width 5 to width 16."""
    hidden = MatchHidden(pair=LayerPair(student=1, teacher=1), projection=Learned())
    stage = Stage(name="layer", duration="10 steps", objectives=(hidden,), **fields)
    return Curriculum(name="learned", stages=(stage,))


@pytest.mark.parametrize(
    ("optimizer", "copies"), [(SGD(learning_rate=0.1), 2), (AdamW(learning_rate=0.1), 4)]
)
def test_what_objectives_train_is_told_and_counted_in_the_memory(
    optimizer: SGD | AdamW, copies: int
) -> None:
    (stage,) = bound(learned(), optimizer=optimizer).stages
    weights, own = 6 * 5 + 5, 5 * 16
    # The output of the ReLU, that of the map, and the target, both as wide as the teacher.
    activations = BATCH * (5 + 16 + 16)
    assert stage.plan.trained_parameters == weights
    assert stage.plan.adapter_parameters == own
    assert stage.plan.memory_bytes == 4 * (copies * (weights + own) + activations)


def test_the_student_pays_for_what_objectives_train() -> None:
    (stage,) = bound(learned()).stages
    # The map forward, and backward to its weights and to the state.
    assert stage.plan.student_flops == 2 * product(6, 5) + 3 * product(5, 16)
    assert stage.plan.teacher_flops == product(6, 16)


def test_what_objectives_train_is_not_the_student() -> None:
    (stage,) = bound(learned()).stages
    assert stage.trained == FIRST


def test_a_stage_must_train_the_student_and_not_only_what_its_objectives_own() -> None:
    first, second = learned().stages * 2
    stages = (first, replace(second, name="again", trainable="new"))
    with pytest.raises(BindError, match=r"'trainable' must leave something to train; got 'new'"):
        bound(Curriculum(name="x", stages=stages))


def test_looking_at_a_stage_leaves_first_values_as_they_are() -> None:
    (stage,) = bound(learned(), seed=3).stages
    (found,) = adapters_of(stage.terms)
    first = Learned().adapter(
        seed=3, name="blocks.0 <- blocks.0", student_width=5, teacher_width=16
    )
    torch.testing.assert_close(found.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in found.parameters())


def test_an_objective_is_told_the_length_of_its_stage() -> None:
    halfway = LearnedTemperature(ramp=0.5, label_weight=0)
    stages = tuple(
        Stage(name=str(steps), duration=Duration(number=steps), objectives=(halfway,))
        for steps in (10, 40)
    )
    for stage in bound(Curriculum(name="x", stages=stages)).stages:
        (found,) = adapters_of(stage.terms)
        assert isinstance(found, Temperature)
        for _ in range(stage.span.most // 2 - 1):
            found.advance()
        assert found.reversal < 1
        found.advance()
        assert found.reversal == 1


# --- what a stage reaches -------------------------------------------------------------------------

FIRST = {"blocks.0.0.weight", "blocks.0.0.bias"}
SECOND = {"blocks.1.0.weight", "blocks.1.0.bias"}
HEAD = {"head.weight", "head.bias"}


def test_a_stage_trains_up_to_its_tap() -> None:
    run = bound(layers((1, 1), (2, 2)))
    assert [stage.trained for stage in run.stages] == [FIRST, FIRST | SECOND]


def test_own_leaves_earlier_layers_frozen() -> None:
    run = bound(layers((1, 1), (2, 2), trainable="new"))
    assert [stage.trained for stage in run.stages] == [FIRST, SECOND]


def test_logits_after_own_layers_train_everything() -> None:
    run = bound(extraction(total=Duration(number=20), trainable="new"))
    assert [stage.trained for stage in run.stages] == [FIRST, FIRST | SECOND | HEAD]


def test_all_runs_the_whole_student_and_trains_what_is_reached() -> None:
    (stage,) = bound(layers((1, 1), trainable="all")).stages
    assert stage.reads.student_logits
    assert stage.trained == FIRST


def test_what_the_user_has_frozen_stays_out() -> None:
    student = mlp(5, 4)
    student.module.get_parameter("blocks.0.0.weight").requires_grad_(False)
    (stage,) = bound(layers((1, 1)), student=student).stages
    assert stage.trained == {"blocks.0.0.bias"}


def test_a_stage_with_nothing_to_train_is_an_error() -> None:
    doubled = layers((2, 1), (1, 1), trainable="new")
    with pytest.raises(
        BindError, match=r"^stage 'layer 2': 'trainable' must leave something to train; got 'new'"
    ):
        bound(doubled)


def test_a_frozen_student_is_an_error() -> None:
    student = mlp(5)
    student.module.requires_grad_(False)
    sentence = (
        r"^'student' must have weights with requires_grad to be trained; got none among its 4; "
        r"student\.requires_grad_\(True\) frees them, and PEFT loads an adapter to be trained with "
        r"is_trainable=True$"
    )
    with pytest.raises(BindError, match=sentence):
        bound(layers((1, 1)), student=student)


@pytest.mark.parametrize("is_detached", [True, False], ids=["detached", "no_grad"])
def test_a_student_whose_logits_carry_no_gradient_is_an_error(is_detached: bool) -> None:
    class Ungraded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(INPUTS, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            if is_detached:
                return cast("Tensor", self.inner(inputs)).detach()
            with torch.no_grad():
                return cast("Tensor", self.inner(inputs))

    with seeding.scoped(0, "model"):
        student = tapped(Ungraded())
    sentence = (
        r"^stage 'logits': objectives must reach weights of the student that train; got none of "
        r"its 2 with requires_grad, of which 'inner.weight' is the first: its logits carry no "
        r"gradient, as those of a 'forward' under torch\.no_grad or with a detach\(\); or they "
    )
    with pytest.raises(BindError, match=sentence):
        bound(one_shot(total="2 steps"), student=student)


def test_weights_that_no_objective_reaches_are_named() -> None:
    student = mlp(5, 4)
    for path in ("blocks.0", "head"):
        student.module.get_submodule(path).requires_grad_(False)
    sentence = (
        r"got none of its 2 with requires_grad, of which 'blocks\.1\.0\.weight' is the first: they "
        r"come after the last tap or output that the objectives read, or the state there is "
    )
    with pytest.raises(BindError, match=sentence):
        bound(layers((1, 1)), student=student)


# --- nothing changes ------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Has running statistics, noise, and a part that its owner holds in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Dropout())
        self.frozen = nn.BatchNorm1d(5).eval()
        self.head = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.frozen(self.first(inputs)))
        return logits


def noisy() -> TappedModel:
    with seeding.scoped(0, "model"):
        return tapped(Noisy(), blocks=["first", "frozen"], head="head")


def modes(model: TappedModel) -> dict[str, bool]:
    return {name: part.training for name, part in model.module.named_modules()}


Snapshot = Callable[[TappedModel], object]


@pytest.mark.parametrize(
    "snapshot",
    [
        modes,
        lambda model: {name: one.tolist() for name, one in model.module.state_dict().items()},
        lambda model: [one.requires_grad for one in model.module.parameters()],
        lambda model: [one.grad for one in model.module.parameters()],
        lambda model: [len(part._forward_hooks) for part in model.module.modules()],
        lambda model: torch.get_rng_state().tolist(),
    ],
    ids=["modes", "weights and buffers", "flags", "gradients", "hooks", "random numbers"],
)
def test_binding_leaves_student_and_teacher_untouched(snapshot: Snapshot) -> None:
    student, teacher = noisy(), noisy()
    student.module.get_parameter("head.bias").requires_grad_(False)
    before = snapshot(student), snapshot(teacher)
    bound(
        extraction(total=Duration(number=9), trainable="new"),
        student=student,
        teacher=LiveTeacher(teacher),
    )
    assert (snapshot(student), snapshot(teacher)) == before


def test_a_failed_binding_leaves_the_student_untouched() -> None:
    student = noisy()
    before = modes(student)
    with pytest.raises(BindError):
        bound(
            one_shot(total=Duration(number=3)),
            student=student,
            teacher=LiveTeacher(mlp(4, num_classes=3)),
        )
    assert modes(student) == before


@pytest.mark.parametrize(("student", "noise"), [(mlp(5), False), (noisy(), True)])
def test_noise_in_the_forward_pass_is_noticed(student: TappedModel, noise: bool) -> None:
    curriculum = one_shot(total=Duration(number=3))
    assert bound(curriculum, student=student).draws_noise is noise


def test_a_plan_says_in_words_what_a_stage_does() -> None:
    objectives = (MatchHidden(pair=LayerPair(student=1, teacher=2)), MatchLogits(weight=0.5))
    stage = Stage(name="both", duration=Duration(number=2), objectives=objectives)
    plan = bound(Curriculum(name="x", stages=(stage,))).stages[0].plan
    assert plan.taps == "1 <- 2 + logits"
    assert plan.widths == "5 <- 12 + -"
