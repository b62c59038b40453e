"""Explained share before a stage: batches, cost, records, and what an omitted stage leaves."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from curricle.curriculum.automatic import auto
from curricle.curriculum.durations import Duration, UnlessExplained
from curricle.curriculum.stages import Curriculum, Saved, Stage
from curricle.errors import BindError, SpecError
from curricle.models.tapped import TappedModel
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.records import EndRecord, Record, StageEndRecord, StageRecord, Usage
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.explained import PROBE_BATCHES, Explained, explained_before
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.staged import StagedLoss
from tests.parts import INPUTS, bound, mlp, parity

LAYER = MatchHidden(pair=LayerPair(student=1, teacher=1))


def curriculum(share: float, *, saved: Saved = "drop", layers: int = 1) -> Curriculum:
    stages = [
        Stage(
            name=f"layer {number}",
            duration=UnlessExplained(share=share, duration=Duration(number=6)),
            objectives=(LAYER,),
        )
        for number in range(1, layers + 1)
    ]
    logits = Stage(name="logits", duration="14 steps", objectives=(MatchLogits(),))
    return Curriculum(name="tried", stages=(*stages, logits), saved=saved)


def run_of(share: float = 0.5, *, equal: bool = True, **fields: Any) -> BoundRun:
    """Return a run of a student that is its teacher, or of a constant one."""
    student, teacher = mlp(16, 12, seed=1), mlp(16, 12, seed=1)
    if not equal:
        for weight in list(student.module.parameters())[-2:]:
            torch.nn.init.zeros_(weight)
    return bound(curriculum(share, **fields), student=student, teacher=LiveTeacher(teacher))


def measured(run: BoundRun, usage: Usage | None = None) -> Explained:
    assert isinstance(run.teacher, LiveTeacher)
    with run.teacher.teaching(run.settings.teacher_inference):
        found = explained_before(run, run.stages[0], usage or Usage())
    assert found is not None
    return found


def records_of(run: BoundRun) -> list[Record]:
    seen: list[Record] = []

    def evaluate(_model: TappedModel) -> dict[str, float]:
        return {"size": 1.0}

    execute(run, evaluate, metric="size", outputs=Outputs(observers=(seen.append,)))
    return seen


def test_a_student_that_is_its_teacher_explains_everything() -> None:
    assert measured(run_of()).share == pytest.approx(1, abs=1e-6)


def test_a_student_with_constant_outputs_explains_nothing() -> None:
    assert measured(run_of(equal=False)).share == 0


def test_a_stage_of_another_duration_is_not_measured() -> None:
    run = run_of()
    assert explained_before(run, run.stages[-1], Usage()) is None


def test_the_measurement_is_paid_for() -> None:
    usage = measured(run_of()).usage
    examples = PROBE_BATCHES * 8
    assert (usage.steps, usage.examples) == (0, examples)
    # Three maps of the forward pass, two FLOPs for a product with its addition.
    flops = examples * 2 * (INPUTS * 16 + 16 * 12 + 12 * 2)
    assert (usage.student_flops, usage.teacher_flops) == (flops, flops)


class Watched:
    """Remembers the steps whose batches are read."""

    def __init__(self) -> None:
        self._stream, self.steps = parity(), list[int]()
        self.fingerprint = self._stream.fingerprint
        self.batch_size, self.tokens_per_batch = (
            self._stream.batch_size,
            self._stream.tokens_per_batch,
        )

    def batch(self, step: int) -> Any:
        self.steps.append(step)
        return self._stream.batch(step)


@pytest.mark.parametrize(
    ("usage", "first"),
    [
        (Usage(), 0),
        # A start has read three batches of 8.
        (Usage(examples=24), 3),
        (Usage(steps=5, examples=40), 5),
        # The run has 20 steps.
        (Usage(examples=800), 12),
    ],
)
def test_batches_are_those_that_the_run_has_not_read(usage: Usage, first: int) -> None:
    stream = Watched()
    run = bound(curriculum(0.5), stream=stream)
    stream.steps.clear()
    measured(run, usage)
    assert stream.steps == list(range(first, first + PROBE_BATCHES))


def test_the_measurement_changes_neither_weights_nor_modes() -> None:
    run = run_of()
    module = run.student.module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    measured(run)
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def ends(records: Sequence[Record]) -> list[tuple[str, int, str]]:
    return [(end.stage, end.done, end.why) for end in records if isinstance(end, StageEndRecord)]


def test_a_stage_with_explained_targets_takes_no_step_and_the_record_has_the_share() -> None:
    records = records_of(run_of())
    assert ends(records) == [("layer 1", 0, "explained")]
    first, second = (record for record in records if isinstance(record, StageRecord))
    assert first.explained == pytest.approx(1, abs=1e-6)
    assert str(first) == (
        "step 0: stage 'layer 1' begins; the student explains 100.0 % of the final targets"
    )
    assert (second.stage, second.usage.steps, second.explained) == ("logits", 0, None)


def test_a_stage_with_unexplained_targets_is_run() -> None:
    records = records_of(run_of(equal=False))
    assert ends(records) == [("layer 1", 6, "length")]


def test_several_stages_are_left_out_one_after_another() -> None:
    records = records_of(run_of(layers=3))
    assert ends(records) == [(f"layer {number}", 0, "explained") for number in (1, 2, 3)]


def test_a_measurement_holds_until_a_step_is_taken() -> None:
    run = run_of(layers=3)
    shares = [record for record in records_of(run) if isinstance(record, StageRecord)]
    assert [record.usage.examples for record in shares] == [PROBE_BATCHES * 8] * 4
    assert len({record.explained for record in shares[:3]}) == 1
    other = records_of(run_of(layers=2, equal=False))
    begins = [record.usage.examples for record in other if isinstance(record, StageRecord)]
    # Stages of six steps of 8 examples are run, with a measurement before each.
    assert begins == [64, 64 + 48 + 64, 64 + 48 + 64 + 48]


def test_the_usage_of_the_run_holds_that_of_the_measurement() -> None:
    run = run_of()
    (end,) = (record for record in records_of(run) if isinstance(record, EndRecord))
    plan = run.stages[-1].plan
    assert end.usage.examples == (PROBE_BATCHES + 14) * 8
    assert end.usage.teacher_flops == (14 + PROBE_BATCHES) * plan.teacher_flops


@pytest.mark.parametrize(("saved", "steps"), [("drop", 14), ("steps", 20)])
def test_the_last_stage_takes_the_steps_that_are_saved(saved: Saved, steps: int) -> None:
    (end,) = (record for record in records_of(run_of(saved=saved)) if isinstance(record, EndRecord))
    assert end.usage.steps == steps


def test_saved_flops_buy_steps_of_the_last_stage() -> None:
    run = run_of(saved="flops")
    layer, logits = (stage.plan.student_flops + stage.plan.teacher_flops for stage in run.stages)
    (end,) = (record for record in records_of(run) if isinstance(record, EndRecord))
    assert 0 < layer < logits
    assert end.usage.steps == 14 + 6 * layer // logits


def test_a_loop_of_its_own_leaves_the_stage_out_too() -> None:
    run = run_of(saved="steps")
    with StagedLoss(run) as loss:
        loss(loss.next_batch())
        loss.advance()
        assert loss.stage.declared.name == "logits"
        assert loss.usage.examples == (PROBE_BATCHES + 1) * 8
        assert loss.timeline.num_steps == 20


def test_a_last_stage_without_logits_is_refused() -> None:
    stages = (
        *curriculum(0.5).stages[:-1],
        Stage(name="labels", duration="14 steps", objectives=(LabelLoss(),)),
    )
    with pytest.raises(
        BindError,
        match=r"^stage 'layer 1' can be left out only before a last stage that matches logits; "
        r"got '1 x .*' in 'labels'$",
    ):
        bound(Curriculum(name="tried", stages=stages))


def test_the_last_stage_cannot_be_left_out() -> None:
    with pytest.raises(
        SpecError,
        match=r"the last of the 'stages' must not be one that can be left out.*; got 'layer 1'$",
    ):
        Curriculum(name="tried", stages=curriculum(0.5).stages[:1])


def test_auto_leaves_out_a_layer_that_two_fractions_mean_and_one_that_is_not_there() -> None:
    run = bound(auto(total="20 steps"), student=mlp(5), teacher=LiveTeacher(mlp(16, seed=1)))
    assert [(stage.declared.name, stage.span.most) for stage in run.stages] == [
        ("layer 1", 3),
        ("logits", 17),
    ]
    assert any(
        note.startswith(
            "stage 'layer 2' does not apply to these models and its time goes to 'logits' (stages "
        )
        for note in run.notes
    )
