"""Budgets buy steps: as many as were asked for, or as many as their cost allows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import build
from curricle.data.synthetic.parity import ParityStream
from curricle.errors import SpecError
from curricle.models.mlp import MLP
from curricle.records import Usage
from curricle.runs import budget as budgets
from curricle.runs.budget import AnyBudget, Budget, bind_within, fitted, seconds_per_step
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.binding.starting import apply_start
from curricle.training.binding.timeline import Timeline
from curricle.training.loop.stepping import Stepper
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.placement import SingleDevice
from curricle.training.setup.settings import TrainingSettings
from curricle.values import parse

# FLOPs of one step at 8 inputs, 16 examples, student widths (8, 8), teacher widths (16, 16), two
# classes. A product of (m, k) and (k, n) matrices takes 2mkn.
STUDENT_LAYERS = (8 * 8, 8 * 8, 8 * 2)
TEACHER_LAYERS = (8 * 16, 16 * 16, 16 * 2)
FORWARD = 2 * 16 * sum(STUDENT_LAYERS)
# Gradients of all weights, and of the inputs of all layers but the first.
BACKWARD = 2 * 16 * (sum(STUDENT_LAYERS) + sum(STUDENT_LAYERS[1:]))
LABELS_STEP = FORWARD + BACKWARD
LOGITS_STEP = LABELS_STEP + 2 * 16 * sum(TEACHER_LAYERS)
# The first layers only, forward and the student's gradient, and the projection from 16 to 8.
LAYER_STEP = 2 * 2 * 16 * STUDENT_LAYERS[0] + 2 * 16 * TEACHER_LAYERS[0] + 2 * 16 * 16 * 8

Parts = tuple[Callable[[Duration], Curriculum], Callable[[Curriculum], BoundRun]]


def parts(call: dict[str, Any], trajectory: tuple[int, ...] = (10, 20)) -> Parts:
    with seeding.scoped(0, "models"):
        student, teacher = MLP(8, (8, 8), 2), MLP(8, (16, 16), 2)
    live = LiveTeacher(teacher.tapped())
    stream = ParityStream(num_inputs=8, degree=2, batch_size=16, seed=0)

    def curriculum(total: Duration) -> Curriculum:
        return build(call, total=total, trajectory=trajectory)

    def bound(chosen: Curriculum) -> BoundRun:
        return bind(
            chosen,
            student=student.tapped(),
            teacher=live,
            stream=stream,
            optimizer=SGD(learning_rate=0.1),
            settings=TrainingSettings(threads=1),
            seed=0,
        )

    return curriculum, bound


def steps(limit: str, call: dict[str, Any]) -> list[int]:
    fit = fitted(parse(AnyBudget, limit), *parts(call))
    return [stage.duration.at_most.number for stage in fit.stages]


EXTRACTION = {
    "kind": "extraction",
    "pairs": [{"student": 1, "teacher": 1}],
    "durations": ["4 steps"],
}


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("2.5M examples", 2_500_000, "examples"),
        ("64k tokens", 64_000, "tokens"),
        ("1_500 steps", 1500, "steps"),
        ("4T flops", 4e12, "flops"),
        ("10 GFLOPs", 1e10, "flops"),
        ("10G FLOPs", 1e10, "flops"),
        ("10GFLOPs", 1e10, "flops"),
        ("1.5 kflop", 1500, "flops"),
        ("1 FLOPs", 1, "flops"),
        ("3G flops", 3e9, "flops"),
        (" 0.5  seconds ", 0.5, "seconds"),
        (".5 epoch", 0.5, "epochs"),
        ("1e-1 epochs", 0.1, "epochs"),
        ("1e4 steps", 10_000, "steps"),
        ("1/3 epochs", 1 / 3, "epochs"),
    ],
)
def test_a_budget_is_read_from_text(text: str, number: float, unit: str) -> None:
    assert parse(AnyBudget, text) == Budget(number=number, unit=unit)  # type: ignore[arg-type]


def test_a_fraction_of_an_epoch_is_an_exact_length() -> None:
    limit: Budget = parse(AnyBudget, "1/3 epochs")
    assert limit.duration() == Duration(number=1, unit="epochs", divisor=3)


@pytest.mark.parametrize(
    "text", ["1/2 steps", "1/0 epochs", "ten steps", "steps", "", "1 2 steps", "1.2.3 steps"]
)
def test_a_text_that_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(
        SpecError, match=r"a budget must read like '1500 steps', '2.5M examples'|must be"
    ):
        parse(AnyBudget, text)


@pytest.mark.parametrize("number", [0, -3])
def test_a_budget_of_nothing_is_refused(number: int) -> None:
    with pytest.raises(SpecError, match=f"greater than 0; got {number}"):
        parse(AnyBudget, f"{number} steps")


def test_a_budget_of_an_unknown_unit_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'flops' or 'seconds'; got 'parsecs'"):
        parse(AnyBudget, "3 parsecs")


@pytest.mark.parametrize("text", ["5 flops", "5 seconds", "1.5 steps"])
def test_only_whole_lengths_are_durations(text: str) -> None:
    with pytest.raises(SpecError, match=f"'budget' must be a whole number .* got {text}"):
        parse(AnyBudget, text).duration()


def test_a_length_is_the_curriculums_length() -> None:
    assert steps("7 steps", {"kind": "one_shot"}) == [7]


def test_flops_buy_as_many_steps_as_they_pay_for() -> None:
    assert steps(f"{10 * LOGITS_STEP} flops", {"kind": "one_shot"}) == [10]
    assert steps(f"{10 * LOGITS_STEP - 1} flops", {"kind": "one_shot"}) == [9]


def test_a_strategy_without_a_teacher_gets_more_steps_for_the_same_flops() -> None:
    expected = 10 * LOGITS_STEP // LABELS_STEP
    assert expected > 10
    assert steps(f"{10 * LOGITS_STEP} flops", {"kind": "from_labels"}) == [expected]


def test_cheap_stages_buy_more_steps_at_the_end() -> None:
    rest = (10 * LOGITS_STEP - 4 * LAYER_STEP) // LOGITS_STEP
    assert 4 + rest > 10
    assert steps(f"{10 * LOGITS_STEP} flops", EXTRACTION) == [4, rest]


def test_fixed_stages_are_in_steps_where_the_budget_is_no_length() -> None:
    call = EXTRACTION | {"durations": ["64 examples"]}
    with pytest.raises(SpecError, match=r"in steps for a budget of FLOPs or seconds\); got 64 e"):
        steps(f"{10 * LOGITS_STEP} flops", call)


def test_flops_that_end_before_the_last_stage_are_refused() -> None:
    with pytest.raises(SpecError, match=r"'budget' \d+ flops must pay for every stage"):
        steps(f"{4 * LAYER_STEP} flops", EXTRACTION)


def test_flops_below_those_of_a_step_are_refused_with_its_cost() -> None:
    with pytest.raises(SpecError, match=r"pay for every stage; one step costs [\d.e+]+ flops"):
        steps(f"{LOGITS_STEP - 1} flops", {"kind": "one_shot"})


def test_the_number_of_stages_may_depend_on_the_length() -> None:
    # Checkpoint 20 teaches from step 10 on, so 7 steps have one stage and 14 have two.
    call = {"kind": "progressive", "refresh": 10}
    assert steps(f"{7 * LOGITS_STEP} flops", call) == [7]
    assert steps(f"{14 * LOGITS_STEP} flops", call) == [10, 4]


def test_seconds_buy_steps_by_the_time_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "seconds_per_step", lambda run: [0.125, 0.5])
    # 4 steps at 1/8 second leave 3.5 seconds for steps of half a second.
    assert steps("4 seconds", EXTRACTION) == [4, 7]


def bound_run(call: dict[str, Any]) -> BoundRun:
    curriculum, bound = parts(call)
    return bound(curriculum(Duration(number=40)))


def test_each_stage_is_timed() -> None:
    seconds = seconds_per_step(bound_run(EXTRACTION))
    assert len(seconds) == 2
    assert min(seconds) > 0


def test_timing_leaves_weights_and_modes_as_they_were() -> None:
    run = bound_run({"kind": "one_shot"})
    module = run.student.module.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seconds_per_step(run)
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())
    assert not module.training


def test_a_failure_while_timing_leaves_weights_and_modes_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = bound_run({"kind": "one_shot"})
    module = run.student.module
    module.get_submodule("head").eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    clock = iter(range(9))
    # The fifth step fails, for lack of time.
    monkeypatch.setattr(SingleDevice, "now", lambda _: float(next(clock)))
    with pytest.raises(StopIteration):
        seconds_per_step(run)
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes


def test_timing_runs_the_steps_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    run = bound_run({"kind": "extraction", "durations": ["4 steps"], "schedule": "own"})
    seen: list[int] = []

    def take(_: Stepper, number: int, stop: int) -> None:
        seen.append(number)

    monkeypatch.setattr(Stepper, "take", take)
    seconds_per_step(run)
    # 20 steps of a stage of 4 are its steps five times; the other one lasts from 4 to 40.
    assert seen == [0, 1, 2, 3] * 5 + list(range(4, 24))


def test_timing_gives_torchs_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    run = bound_run({"kind": "one_shot"})
    more = dataclasses.replace(run.settings, threads=before + 1)
    seen: list[int] = []

    def take(_: Stepper, number: int, stop: int) -> None:
        seen.append(torch.get_num_threads())

    monkeypatch.setattr(Stepper, "take", take)
    seconds_per_step(dataclasses.replace(run, settings=more))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_timing_needs_no_checkpoints() -> None:
    assert len(seconds_per_step(bound_run({"kind": "progressive"}))) == 2


def test_timing_holds_the_teacher_in_evaluation_mode() -> None:
    run = bound_run({"kind": "one_shot"})
    assert run.teacher is not None
    seen: list[bool] = []
    teacher = run.teacher.model.module.train()
    for part in teacher.modules():
        part.register_forward_hook(lambda module, *_: seen.append(module.training))
    seconds_per_step(run)
    assert seen
    assert not any(seen)
    assert teacher.training


def test_a_budget_is_written_as_it_is_read() -> None:
    assert str(Budget(number=1500, unit="steps")) == "1500 steps"
    assert dataclasses.replace(Budget(number=3, unit="steps"), unit="flops").unit == "flops"


def test_a_number_without_a_unit_is_told_how_a_budget_reads() -> None:
    with pytest.raises(SpecError, match=r"must read like '1500 steps', '2.5M examples'.*got 3000"):
        budgets.budget(3000)


def test_a_budget_pays_for_the_longest_stages() -> None:
    rule = {"kind": "plateau", "at_most": "4 steps", "window": 1, "patience": 1}
    fixed = steps("100 steps", EXTRACTION), steps("100k flops", EXTRACTION)
    ruled = EXTRACTION | {"durations": [rule]}
    assert (steps("100 steps", ruled), steps("100k flops", ruled)) == fixed


PRINCIPAL = {"kind": "one_shot", "init": {"kind": "principal"}}


def test_a_budget_of_flops_pays_for_the_start() -> None:
    curriculum, bound = parts(PRINCIPAL)
    run = bound(curriculum(Duration(number=10)))
    assert run.warm_start is not None
    usage = apply_start(run.warm_start, Usage(), run.settings.placement)
    start = usage.student_flops + usage.teacher_flops
    assert start > 0
    (paid,) = steps(f"{start + 10 * LOGITS_STEP} flops", PRINCIPAL)
    (less,) = steps(f"{start + 10 * LOGITS_STEP - 1} flops", PRINCIPAL)
    assert (paid, less) == (10, 9)


def test_measuring_a_start_leaves_the_student_as_it_was() -> None:
    curriculum, bound = parts(PRINCIPAL)
    module = bound(curriculum(Duration(number=10))).student.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fitted(parse(AnyBudget, "1G flops"), curriculum, bound)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_a_budget_below_the_cost_of_the_start_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'budget' 10 flops must pay for the warm start; it costs"):
        steps("10 flops", PRINCIPAL)


@pytest.mark.parametrize(("limit", "saved"), [("40 steps", "steps"), ("4M flops", "flops")])
def test_steps_that_a_stage_saves_are_counted_in_the_currency_of_the_budget(
    limit: str, saved: str
) -> None:
    call = {"kind": "auto", "labels": None}
    run = bind_within(parse(AnyBudget, limit), *parts(call), name="auto")
    assert run.saved == saved


def test_auto_costs_the_same_flops_whether_its_layers_are_left_out_or_not() -> None:
    limit = 100 * LOGITS_STEP
    call = {"kind": "auto", "init": None}
    run = bind_within(parse(AnyBudget, f"{limit} flops"), *parts(call), name="auto")
    costs = [stage.plan.student_flops + stage.plan.teacher_flops for stage in run.stages]
    full, omitted = (Timeline([stage.span for stage in run.stages]) for _ in range(2))
    for stage in run.stages[:-1]:
        full.close(full.start + stage.span.most, "length")
        omitted.leave_out()
    logits = [timeline.num_steps - timeline.start for timeline in (full, omitted)]
    layers = sum(
        stage.span.most * cost for stage, cost in zip(run.stages[:-1], costs, strict=False)
    )
    spent = [layers + logits[0] * costs[-1], logits[1] * costs[-1]]
    assert limit - costs[-1] < spent[0] <= limit
    # A step of a layer is worth at most one of the last stage, however much its projection costs.
    worths = [min(cost, costs[-1]) for cost in costs[:-1]]
    pairs = zip(run.stages[:-1], worths, strict=True)
    expected = sum(stage.span.most * worth for stage, worth in pairs) + logits[0] * costs[-1]
    assert expected - costs[-1] < spent[1] <= expected <= limit
