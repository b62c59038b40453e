"""One step: what moves, by how much, and what stays where it is."""

import copy
import math
import random  # noqa: TID251 - what models may do
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tests.parts
from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import one_shot
from curricle.data.batch import Batch
from curricle.errors import DataError, DivergenceError
from curricle.models.tapped import Activations, TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.base import Reads, Sample
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Gaussian, Learned
from curricle.objectives.temperature import LearnedTemperature
from curricle.records import Usage
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.loop.stage_loss import CALIBRATION_BATCHES, StepLoss
from curricle.training.loop.stepping import stepping
from curricle.training.setup.optimizers import SGD, AdamW, Optimizer, Schedule
from tests.parts import INPUTS, Listed, mlp

PLAIN = SGD(learning_rate=0.1)


def stage(name: str = "only", /, **fields: Any) -> Stage:
    defaults: dict[str, Any] = {
        "name": name,
        "duration": Duration(number=10),
        "objectives": (MatchLogits(),),
    }
    return Stage(**(defaults | fields))


def hidden(student: int, teacher: int, **fields: Any) -> tuple[MatchHidden]:
    return (MatchHidden(pair=LayerPair(student=student, teacher=teacher), **fields),)


def bound(*stages: Stage, **parts: Any) -> BoundRun:
    return tests.parts.bound(Curriculum(name="x", stages=stages), **parts)


def stepped(
    run: BoundRun, steps: int = 1, number: int = 0, optimizer: torch.optim.Optimizer | None = None
) -> list[StepLoss]:
    """Run the first steps of a stage; the student is changed."""
    own = optimizer or run.optimizer.build(run.student.module.parameters())
    start = run.stages[number].span.start
    run.student.module.train()
    with stepping(run, run.stages[number], own) as stepper:
        return [stepper.step(step) for step in range(start, start + steps)]


def weights(model: TappedModel) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.module.named_parameters()}


def moved(before: Mapping[str, Tensor], model: TappedModel) -> set[str]:
    return {name for name, now in weights(model).items() if not torch.equal(now, before[name])}


class Speller(nn.Module):
    """Gives logits for each of 7 tokens at every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.block = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.embed(tokens)))
        return logits


def speller(width: int = 5, seed: int = 0) -> TappedModel:
    with seeding.scoped(seed, "model"):
        return tapped(Speller(width), blocks=["block"], head="head")


def uneven() -> Batch:
    """Return 4 sequences of 3 with 3, 0, 1 and 1 selected and 3, 1, 2 and 3 valid positions."""
    return Batch(
        inputs=torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0], [2, 4, 6]]),
        labels=torch.tensor([3, 1, 2, 6, 5]),
        selected=torch.tensor([0, 1, 2, 7, 9]),
        valid=torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool(),
    )


def sequences(*stages: Stage, batch: Batch | None = None, **settings: Any) -> BoundRun:
    return bound(
        *stages,
        student=speller(),
        teacher=LiveTeacher(speller(9, seed=1)),
        stream=Listed(batch or uneven()),
        settings=settings,
    )


# --- accumulation ---------------------------------------------------------------------------------

TERMS: dict[str, tuple[Any, ...]] = {
    "labels": (LabelLoss(),),
    "logits": (MatchLogits(),),
    "valid states": hidden(1, 1),
    "selected states": hidden(1, 1, positions="selected"),
    "logits in chunks": (MatchLogits(chunk=1),),
    "labels in chunks": (LabelLoss(chunk=2),),
    "several": (*hidden(1, 1, weight=0.3), MatchLogits(weight=2.0), LabelLoss(weight=0.1)),
}


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("objectives", TERMS.values(), ids=TERMS.keys())
def test_parts_of_a_batch_give_the_update_of_the_whole(
    objectives: tuple[Any, ...], accumulation: int
) -> None:
    whole = sequences(stage(objectives=objectives))
    parts = sequences(stage(objectives=objectives), gradient_accumulation_steps=accumulation)
    (one,), (other,) = stepped(whole), stepped(parts)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(other.terms, one.terms, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights(parts.student), weights(whole.student), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("trainable", ["reached", "all"])
@pytest.mark.parametrize("labels", [None, 2], ids=["labels at once", "labels in chunks"])
def test_the_update_in_chunks_is_that_of_all_logits(
    labels: int | None, trainable: str, precision: str
) -> None:
    each = []
    for chunk in (None, 2):
        declared = (MatchLogits(chunk=chunk), LabelLoss(weight=0.5, chunk=chunk and labels))
        run = sequences(stage(objectives=declared, trainable=trainable), precision=precision)
        each.append((stepped(run, 3)[-1].terms, weights(run.student)))
    tolerance = 1e-5 if precision == "float32" else 1e-2
    torch.testing.assert_close(*each, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_update_is_that_of_the_mean_over_all_labeled_positions(accumulation: int) -> None:
    run = sequences(stage(objectives=(LabelLoss(),)), gradient_accumulation_steps=accumulation)
    plain = copy.deepcopy(run.student.module)
    (outcome,) = stepped(run)
    batch = uneven()
    assert isinstance(batch.inputs, Tensor)
    assert batch.labels is not None
    loss = functional.cross_entropy(plain(batch.inputs).flatten(0, 1)[batch.selected], batch.labels)
    loss.backward()
    wanted = {
        name: (one - 0.1 * one.grad if one.grad is not None else one).detach()
        for name, one in plain.named_parameters()
    }
    torch.testing.assert_close(outcome.loss, loss.detach())
    torch.testing.assert_close(weights(run.student), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("objectives", TERMS.values(), ids=TERMS.keys())
def test_a_batch_in_which_everything_is_ignored_does_not_crash(
    objectives: tuple[Any, ...], accumulation: int
) -> None:
    nothing = torch.empty(0, dtype=torch.long)
    ignored = Batch(
        inputs=torch.tensor([[1, 2], [3, 4]]),
        labels=nothing,
        selected=nothing,
        valid=torch.zeros(2, 2, dtype=torch.bool),
    )
    run = sequences(
        stage(objectives=objectives), gradient_accumulation_steps=accumulation, batch=ignored
    )
    before = weights(run.student)
    (outcome,) = stepped(run)
    assert outcome.loss.item() == 0
    assert not moved(before, run.student)


# --- what moves -----------------------------------------------------------------------------------

FIRST = {"blocks.0.0.weight", "blocks.0.0.bias"}
SECOND = {"blocks.1.0.weight", "blocks.1.0.bias"}
HEAD = {"head.weight", "head.bias"}
OPTIMIZERS = [
    SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.5),
    AdamW(learning_rate=0.1, weight_decay=0.5),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adamw"])


def with_state(run: BoundRun, optimizer: torch.optim.Optimizer) -> set[str]:
    return {name for name, one in run.student.module.named_parameters() if one in optimizer.state}


@every_optimizer
def test_beyond_the_stage_there_is_no_gradient_update_decay_or_state(optimizer: Optimizer) -> None:
    run = bound(stage(objectives=hidden(1, 1)), optimizer=optimizer)
    own = optimizer.build(run.student.module.parameters())
    before = weights(run.student)
    run.student.module.train()
    with stepping(run, run.stages[0], own) as stepper:
        for step in range(3):
            stepper.step(step)
        named = run.student.module.named_parameters()
        with_gradient = {name for name, one in named if one.grad is not None}
    assert with_gradient == moved(before, run.student) == with_state(run, own) == FIRST


@every_optimizer
def test_own_leaves_what_earlier_stages_trained_where_it_is(optimizer: Optimizer) -> None:
    stages = [
        stage("1", objectives=hidden(1, 1), trainable="new"),
        stage("2", objectives=hidden(2, 2), trainable="new"),
    ]
    run = bound(*stages, optimizer=optimizer)
    own = optimizer.build(run.student.module.parameters())
    stepped(run, 3, optimizer=own)
    between = weights(run.student)
    # Momentum and moments of the first layer are there now and must not move it.
    stepped(run, 3, number=1, optimizer=own)
    assert moved(between, run.student) == SECOND


def test_deeper_stages_train_earlier_layers_too_unless_told_otherwise() -> None:
    run = bound(stage("1", objectives=hidden(1, 1)), stage("2", objectives=hidden(2, 2)))
    before = weights(run.student)
    stepped(run, number=1)
    assert moved(before, run.student) == FIRST | SECOND


@pytest.mark.parametrize(("trainable", "calls"), [("reached", 0), ("all", 1)])
def test_all_runs_the_student_to_its_end(trainable: str, calls: int) -> None:
    run = bound(stage(objectives=hidden(1, 1), trainable=trainable))
    seen: list[object] = []
    run.student.module.get_submodule("head").register_forward_hook(lambda *call: seen.append(call))
    before = weights(run.student)
    stepped(run)
    assert len(seen) == calls
    assert moved(before, run.student) == FIRST


def test_the_whole_student_trains_on_logits() -> None:
    run = bound(stage())
    before = weights(run.student)
    stepped(run)
    assert moved(before, run.student) == FIRST | SECOND | HEAD


def test_the_teacher_gets_no_gradient_and_does_not_move() -> None:
    run = bound(stage(objectives=(*hidden(1, 1), MatchLogits())))
    assert run.teacher is not None
    before = weights(run.teacher.model)
    stepped(run, 3)
    assert not moved(before, run.teacher.model)
    assert all(one.grad is None for one in run.teacher.model.module.parameters())


def test_after_a_stage_flags_gradients_and_hooks_are_as_before() -> None:
    run = bound(stage(objectives=hidden(1, 1)))
    module = run.student.module
    module.get_parameter("head.bias").requires_grad_(False)
    stepped(run)
    frozen = [name for name, one in module.named_parameters() if not one.requires_grad]
    assert frozen == ["head.bias"]
    assert all(one.grad is None for one in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_a_student_equal_to_its_teacher_has_loss_zero() -> None:
    run = bound(stage(), student=mlp(5), teacher=LiveTeacher(mlp(5)))
    assert stepped(run)[0].loss.item() == pytest.approx(0, abs=1e-7)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    run = bound(stage(objectives=(*hidden(1, 1, weight=0.25), MatchLogits(weight=3))))
    (outcome,) = stepped(run)
    states, logits = (term.item() for term in outcome.terms)
    assert outcome.loss.item() == pytest.approx(0.25 * states + 3 * logits, rel=1e-6)


# --- how fast -------------------------------------------------------------------------------------


def rates(run: BoundRun, number: int) -> list[float]:
    own = run.optimizer.build(run.student.module.parameters())
    bound_stage = run.stages[number]
    with stepping(run, bound_stage, own) as stepper:
        return [
            stepper.learning_rate(step)
            for step in range(bound_stage.span.start, bound_stage.span.end)
        ]


FALLING = SGD(learning_rate=0.8, schedule=Schedule(decay="linear"))


def test_the_global_schedule_runs_over_all_stages() -> None:
    run = bound(
        stage("a", duration=Duration(number=2)),
        stage("b", duration=Duration(number=2)),
        optimizer=FALLING,
    )
    assert rates(run, 0) + rates(run, 1) == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_an_own_schedule_begins_anew() -> None:
    run = bound(
        stage("a", duration=Duration(number=2)),
        stage("b", duration=Duration(number=4), schedule="own"),
        optimizer=FALLING,
    )
    # The first stage sees 2 of the run's 6 steps.
    assert rates(run, 0) == pytest.approx([0.8, 0.8 * 5 / 6])
    assert rates(run, 1) == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_stage_may_scale_the_rate() -> None:
    run = bound(stage("a", duration=Duration(number=2), learning_rate_scale=0.5), optimizer=FALLING)
    assert rates(run, 0) == pytest.approx([0.4, 0.2])


def test_the_rate_is_the_one_that_is_used() -> None:
    slow, fast = (bound(stage(learning_rate_scale=scale)) for scale in (1.0, 3.0))
    before = weights(slow.student)
    for run in (slow, fast):
        stepped(run)
    small, large = (
        weights(run.student)["head.weight"] - before["head.weight"] for run in (slow, fast)
    )
    torch.testing.assert_close(large, 3 * small, rtol=1e-3, atol=1e-8)


def update(run: BoundRun) -> Tensor:
    before = weights(run.student)
    stepped(run)
    return torch.cat([(now - before[name]).flatten() for name, now in weights(run.student).items()])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_long_gradient_is_cut_to_the_given_norm(accumulation: int) -> None:
    free = update(bound(stage()))
    cut = update(
        bound(
            stage(), settings={"max_grad_norm": 1e-3, "gradient_accumulation_steps": accumulation}
        )
    )
    # Plain descent moves by rate times gradient; the direction stays.
    assert cut.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)
    torch.testing.assert_close(cut / cut.norm(), free / free.norm(), rtol=0, atol=1e-3)


def test_a_short_gradient_is_not_stretched() -> None:
    assert torch.equal(
        update(bound(stage(), settings={"max_grad_norm": 1e3})), update(bound(stage()))
    )


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown", "words"),
    [
        (3e38, "(inf|nan)", ""),
        (math.nan, "nan", "'inputs' holds 12 nan of 12 numbers, first in example 0"),
        (math.inf, "(inf|nan)", "'inputs' holds 12 infinite of 12 numbers, first in example 0"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(
    value: float, shown: str, words: str
) -> None:
    good = Batch(inputs=torch.ones(2, INPUTS))
    bad = Batch(inputs=torch.full((2, INPUTS), value))
    run = bound(stage("steep", objectives=hidden(1, 1)), stream=Listed(good, good, bad), seed=7)
    own = run.optimizer.build(run.student.module.parameters())
    with stepping(run, run.stages[0], own) as stepper:
        stepper.step(0)
        stepper.step(1)
        before = weights(run.student)
        with pytest.raises(
            DivergenceError,
            match=rf"^'loss' must be finite; got {shown} in stage 'steep' at step 2 with seed 7"
            + (f"; inputs of step 2 are not finite: {words}$" if words else "$"),
        ):
            stepper.step(2)
    assert not moved(before, run.student)


@pytest.mark.parametrize("fault", [0, 1, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"prefetch": "batch"}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_inputs_of_an_earlier_step_are_named_where_not_every_loss_is_looked_at(
    settings: dict[str, Any], fault: int
) -> None:
    good = Batch(inputs=torch.ones(2, INPUTS))
    bad = Batch(inputs=torch.tensor([[1.0], [math.nan]]).expand(2, INPUTS))
    batches = [bad if step == fault else good for step in range(4)]
    run = bound(stage("steep", objectives=hidden(1, 1)), stream=Listed(*batches), settings=settings)
    own = run.optimizer.build(run.student.module.parameters())
    sentence = rf"; inputs of step {fault} are not finite: 'inputs' .*, first in example 1$"
    with stepping(run, run.stages[0], own) as stepper:
        # As on a GPU.
        stepper._checks_each_step = False
        outcomes = [stepper.step(step) for step in range(4)]
        with pytest.raises(
            DivergenceError, match=f"^'loss' must be finite; .* at step 3 .*{sentence}"
        ):
            stepper.check(outcomes[3], 3)
        with pytest.raises(DivergenceError, match=f"^'weights' must be finite; .*{sentence}"):
            stepper.check_weights(3)


def test_weights_that_are_not_finite_are_noticed() -> None:
    run = bound(stage("steep"), seed=7)
    own = run.optimizer.build(run.student.module.parameters())
    with stepping(run, run.stages[0], own) as stepper:
        stepper.check_weights(3)
        with torch.no_grad():
            run.student.module.get_parameter("head.bias")[0] = math.inf
        with pytest.raises(
            DivergenceError,
            match=r"^'weights' must be finite; they are not in stage 'steep' after step 3 with "
            r"seed 7$",
        ):
            stepper.check_weights(3)


# --- calibration ----------------------------------------------------------------------------------


def centered(**parts: Any) -> BoundRun:
    return bound(stage(objectives=hidden(1, 1, center=True, normalize="none")), **parts)


def projected(run: BoundRun, steps: range) -> Tensor:
    """Return the projected teacher states of some steps, from the modules alone."""
    assert run.teacher is not None
    block = run.teacher.model.module.get_submodule("blocks.0")
    inputs = [run.stream.batch(step).inputs for step in steps]
    matrix = Gaussian().matrix(
        seed=0, name="blocks.0 <- blocks.0", student_width=5, teacher_width=16
    )
    with torch.no_grad():
        states: Tensor = block(torch.cat([one for one in inputs if isinstance(one, Tensor)]))
    return states @ matrix.mT


def test_centering_subtracts_the_mean_over_the_first_batches() -> None:
    run = centered()
    target = projected(run, range(1)) - projected(run, range(CALIBRATION_BATCHES)).mean(0)
    inputs = run.stream.batch(0).inputs
    with torch.no_grad():
        states = run.student.module.get_submodule("blocks.0")(inputs)
    (outcome,) = stepped(run)
    torch.testing.assert_close(outcome.loss, (states - target).square().mean())


def test_the_teachers_pass_over_the_first_batches_is_counted() -> None:
    run = centered()
    optimizer = run.optimizer.build(run.student.module.parameters())
    with stepping(run, run.stages[0], optimizer) as stepper:
        usage = stepper.calibration
    batch = run.stream.batch_size
    # A block of 16 to 16 and the projection of what it shows to 5.
    assert usage.teacher_flops == CALIBRATION_BATCHES * batch * 2 * (INPUTS * 16 + 16 * 5)
    assert usage.examples == usage.tokens == CALIBRATION_BATCHES * batch
    assert (usage.steps, usage.student_flops) == (0, 0)


def test_no_pass_is_counted_where_no_statistics_are_asked_for() -> None:
    run = bound(stage(objectives=hidden(1, 1)))
    optimizer = run.optimizer.build(run.student.module.parameters())
    with stepping(run, run.stages[0], optimizer) as stepper:
        assert stepper.calibration == Usage()


def test_centering_is_the_same_wherever_a_stage_is_entered() -> None:
    one, other = centered(), centered()
    own = one.optimizer.build(one.student.module.parameters())
    losses = []
    for run, first in ((one, 4), (other, 4)):
        run.student.module.load_state_dict(mlp(5, 4).module.state_dict())
        with stepping(run, run.stages[0], own) as stepper:
            losses.append(stepper.step(first).loss.item())
    assert losses[0] == losses[1]


def test_without_centering_no_batch_is_read_ahead() -> None:
    stream = Listed(Batch(inputs=torch.ones(2, INPUTS)))
    run = bound(stage(), stream=stream)
    stream.read.clear()
    with stepping(run, run.stages[0], run.optimizer.build(run.student.module.parameters())):
        assert stream.read == []


# --- what is trained besides ----------------------------------------------------------------------

LEARNED = hidden(1, 1, projection=Learned())
TEMPERATURE = LearnedTemperature(label_weight=0, ramp=0.3)
OWNERS: dict[str, tuple[Any, ...]] = {
    "projection": LEARNED,
    "temperature": (TEMPERATURE,),
    "instances": (LearnedTemperature(variant="instance", label_weight=0, ramp=0.3),),
    "both": (*LEARNED, TEMPERATURE),
}
every_owner = pytest.mark.parametrize("objectives", OWNERS.values(), ids=OWNERS.keys())


def beside(run: BoundRun, steps: int, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what a stage has trained beside the student after some steps."""
    with stepping(run, run.stages[0], optimizer) as stepper:
        for step in range(steps):
            stepper.step(step)
        return copy.deepcopy(stepper.loss.adapters.state_dict())


@every_owner
@every_optimizer
def test_what_objectives_own_is_trained_and_then_forgotten(
    objectives: tuple[Any, ...], optimizer: Optimizer
) -> None:
    run = bound(stage(objectives=objectives), optimizer=optimizer)
    own = optimizer.build(run.student.module.parameters())
    first, later = beside(run, 0, own), beside(run, 4, own)
    assert all(not torch.equal(one, later[name]) for name, one in first.items())
    # Each time the stage is opened it begins with the first values.
    torch.testing.assert_close(beside(run, 0, own), first, rtol=0, atol=0)
    names = {name for name, one in run.student.module.named_parameters() if one in own.state}
    assert len(own.state) == len(names)


@every_owner
@pytest.mark.parametrize("accumulation", [2, 4])
def test_parts_of_a_batch_train_what_objectives_own_like_the_whole(
    objectives: tuple[Any, ...], accumulation: int
) -> None:
    trained = []
    for parts in (1, accumulation):
        run = sequences(stage(objectives=objectives), gradient_accumulation_steps=parts)
        trained.append(beside(run, 5, run.optimizer.build(run.student.module.parameters())))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=1e-6)


def test_a_learned_map_descends_the_loss_and_a_temperature_climbs_it() -> None:
    losses = []
    for steps in (0, 30):
        # A sure teacher, whose divergence depends on the temperature.
        teacher = mlp(16, 12, seed=1)
        with torch.no_grad():
            teacher.module.get_parameter("head.weight").mul_(30)
        objectives = stage(objectives=(*LEARNED, TEMPERATURE), duration=Duration(number=40))
        run = bound(objectives, teacher=LiveTeacher(teacher))
        own = run.optimizer.build(run.student.module.parameters())
        before = copy.deepcopy(run.student.module.state_dict())
        with stepping(run, run.stages[0], own) as stepper:
            for _ in range(steps):
                stepper.step(0)
                # Only what is trained besides moves.
                run.student.module.load_state_dict(before)
            losses.append([term.item() for term in stepper.step(0).terms])
    (first_map, first_temperature), (later_map, later_temperature) = losses
    assert later_map < first_map
    assert later_temperature > first_temperature


def test_the_gradient_of_what_objectives_own_is_cut_with_the_students() -> None:
    cut = bound(stage(objectives=LEARNED), settings={"max_grad_norm": 1e-3})
    before = weights(cut.student)
    own = cut.optimizer.build(cut.student.module.parameters())
    with stepping(cut, cut.stages[0], own) as stepper:
        first = [parameter.detach().clone() for parameter in stepper.loss.adapters.parameters()]
        stepper.step(0)
        steps = [
            (now - then).flatten()
            for now, then in zip(stepper.loss.adapters.parameters(), first, strict=True)
        ] + [(now - before[name]).flatten() for name, now in weights(cut.student).items()]
    assert torch.cat(steps).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_weights_besides_that_are_not_finite_are_noticed() -> None:
    run = bound(stage(objectives=LEARNED))
    own = run.optimizer.build(run.student.module.parameters())
    with stepping(run, run.stages[0], own) as stepper:
        with torch.no_grad():
            next(stepper.loss.adapters.parameters())[0] = math.inf
        with pytest.raises(DivergenceError, match=r"^'weights' must be finite"):
            stepper.check_weights(0)


class OwnBound:
    """A user's bound objective: the squared distance of the logits to a trained center."""

    def __init__(self) -> None:
        self.adapter = nn.BatchNorm1d(2)

    def count(self, batch: Batch) -> int:
        return batch.num_examples

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        raise AssertionError

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Tensor:
        assert student.logits is not None
        states: Tensor = self.adapter(student.logits)
        return (states - 1).square().sum()

    def describe(self) -> tuple[str, str, str, str]:
        return "logits", "own", "-", "-"


class Own:
    """A user's objective."""

    weight = 1.0
    needs_teacher = False

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        return Reads(student_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> OwnBound:
        return OwnBound()


def test_an_objective_of_the_user_owns_what_it_shows_as_its_adapter() -> None:
    run = bound(stage(objectives=(Own(),)))
    own = run.optimizer.build(run.student.module.parameters())
    assert run.stages[0].plan.adapter_parameters == 4
    first, later = beside(run, 0, own), beside(run, 3, own)
    # Binding has tried it on a copy: no batch is counted yet.
    assert [one["0.num_batches_tracked"].item() for one in (first, later)] == [0, 3]
    assert not torch.equal(first["0.bias"], later["0.bias"])


def test_half_precision_trains_what_objectives_own_in_full_precision() -> None:
    run = bound(stage(objectives=(*LEARNED, TEMPERATURE)), settings={"precision": "bfloat16"})
    found = beside(run, 3, run.optimizer.build(run.student.module.parameters()))
    assert {one.dtype for one in found.values()} == {torch.float32, torch.int64}


# --- noise and precision --------------------------------------------------------------------------


def noisy() -> TappedModel:
    with seeding.scoped(0, "model"):
        layers = nn.Sequential(nn.Linear(INPUTS, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    return tapped(layers, blocks=["0", "1"])


def noisy_losses(order: list[int], seed: int = 0) -> dict[int, float]:
    run = bound(
        stage(), student=noisy(), stream=Listed(Batch(inputs=torch.ones(4, INPUTS))), seed=seed
    )
    start = copy.deepcopy(run.student.module.state_dict())
    own = run.optimizer.build(run.student.module.parameters())
    losses = {}
    with stepping(run, run.stages[0], own) as stepper:
        for step in order:
            run.student.module.load_state_dict(start)
            losses[step] = stepper.step(step).loss.item()
    return losses


def test_dropout_is_a_function_of_seed_and_step() -> None:
    forward, backward = noisy_losses([0, 1, 2, 3]), noisy_losses([3, 2, 1, 0])
    assert forward == backward
    assert len(set(forward.values())) > 1
    assert noisy_losses([0, 1, 2, 3], seed=1) != forward


def test_the_teacher_alone_may_run_in_half_precision() -> None:
    shown: list[torch.dtype] = []
    for settings in ({}, {"teacher_precision": "bfloat16"}, {"precision": "bfloat16"}):
        run = bound(stage(), settings=settings)
        assert run.teacher is not None
        for model in (run.teacher.model, run.student):
            head = model.module.get_submodule("head")
            head.register_forward_hook(lambda _module, _inputs, found: shown.append(found.dtype))
        stepped(run, 1)
    full, half = torch.float32, torch.bfloat16
    assert shown == [full, full, half, full, half, half]


def test_half_precision_runs_and_keeps_the_weights_in_full_precision() -> None:
    stages = [stage("a", objectives=hidden(1, 1)), stage("b")]
    half = bound(*stages, settings={"precision": "bfloat16"})
    full = bound(*stages)
    for number in (0, 1):
        one, other = stepped(half, 2, number), stepped(full, 2, number)
        assert one[-1].loss.dtype == torch.float32
        # bfloat16 has 8 bits.
        assert one[-1].loss.item() == pytest.approx(other[-1].loss.item(), rel=0.05, abs=0.01)
    assert {parameter.dtype for parameter in half.student.module.parameters()} == {torch.float32}
    assert (
        weights(half.student)["head.weight"].tolist()
        != weights(full.student)["head.weight"].tolist()
    )


class Jittered(nn.Module):
    """Adds noise from a generator that is not torch's."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        with seeding.scoped(0, "model"):
            self.linear = nn.Linear(INPUTS, 2)
        self._draw = draw

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs * (1 + self._draw()))
        return logits


@pytest.mark.parametrize(
    "draw",
    [random.random, lambda: float(np.random.rand())],  # noqa: NPY002 - as models do
    ids=["python", "numpy"],
)
def test_noise_of_other_generators_is_the_same_in_every_run(draw: Callable[[], float]) -> None:
    def trained() -> Tensor:
        run = tests.parts.bound(one_shot(total="3 steps"), student=tapped(Jittered(draw)))
        assert run.draws_foreign_noise
        assert [note for note in run.notes if "generator of Python or numpy" in note]
        optimizer = run.optimizer.build(run.student.module.parameters())
        with stepping(run, run.stages[0], optimizer) as stepper:
            for step in range(3):
                stepper.step(step)
        return run.student.module.get_parameter("linear.weight").detach().clone()

    first = trained()
    draw()
    assert torch.equal(first, trained())


def test_a_student_without_noise_is_not_taken_for_one_with_it() -> None:
    assert not tests.parts.bound(one_shot(total="3 steps")).draws_foreign_noise


class Short(Speller):
    """Takes three positions at most."""

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 3:
            raise IndexError("index out of range in self")
        return super().forward(tokens)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_later_batch_that_a_model_cannot_take_is_located(who: str, accumulation: int) -> None:
    with seeding.scoped(0, "model"):
        wrong = tapped(Short(5), blocks=["block"], head="head")
    longer = Batch(inputs=torch.zeros(4, 4).long(), length=4)
    parts: dict[str, Any] = {
        "student": speller(),
        "teacher": LiveTeacher(speller(9, seed=1)),
        "stream": Listed(Batch(inputs=torch.zeros(4, 3).long(), length=3), longer),
        "settings": {"gradient_accumulation_steps": accumulation},
    }
    parts[who] = wrong if who == "student" else LiveTeacher(wrong)
    with pytest.raises(
        DataError,
        match=rf"^stage 'only', step 1, seed 0: '{who}' must take every batch of the stream; its "
        r"forward pass failed with: index out of range in self$",
    ):
        stepped(bound(stage(), **parts), steps=2)
