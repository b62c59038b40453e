"""Every kind of duration ends a stage in time, and a run goes on bit-equal in the middle of it.

The second stage is reached by the rule of the first, or after its maximum.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from curricle.curriculum.durations import (
    Duration,
    StageDuration,
    UnlessExplained,
    UntilMetric,
    UntilPlateau,
    duration,
)
from curricle.curriculum.stages import Curriculum, Stage
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.models.tapped import TappedModel
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Learned
from curricle.records import RECORDS, Record, StageEndRecord, StageRecord, StepRecord, read_records
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD, AdamW, Schedule
from curricle.values import parse, plain, to_yaml
from tests.parts import bound, mlp

MOST, LAST = 12, 5
DURATIONS: dict[str, StageDuration] = {
    "length": Duration(number=MOST),
    "plateau": UntilPlateau(at_most="12 steps", window=3, patience=1, min_improvement=0.9),
    "plateau with a minimum": UntilPlateau(
        at_most="12 steps", at_least=duration("7 steps"), window=3, patience=1, min_improvement=0.9
    ),
    "plateau that is not reached": UntilPlateau(
        at_most="12 steps", window=2, patience=4, min_improvement=0.0
    ),
    "metric": UntilMetric(metric="steps", reaches=8, direction="above", at_most="12 steps"),
    "metric with a minimum": UntilMetric(
        metric="steps",
        reaches=1,
        direction="above",
        at_most="12 steps",
        at_least=duration("7 steps"),
    ),
    "metric that is not reached": UntilMetric(
        metric="steps", reaches=0, direction="below", at_most="12 steps"
    ),
    "length that is not left out": UnlessExplained(share=0.9, duration=Duration(number=MOST)),
    "plateau that is not left out": UnlessExplained(
        share=0.9,
        duration=UntilPlateau(at_most="12 steps", window=3, patience=1, min_improvement=0.9),
    ),
    # The student explains .63 of its teacher's outputs by chance.
    "left out": UnlessExplained(share=0.5, duration=Duration(number=MOST)),
}
ENDS = {
    "length": (12, None),
    # Windows of 3 steps: the second does not fall by 90 %.
    "plateau": (6, "plateau"),
    "plateau with a minimum": (9, "plateau"),
    "plateau that is not reached": (12, "length"),
    # Evaluations after 4, 8 and 12 steps.
    "metric": (8, "metric"),
    "metric with a minimum": (8, "metric"),
    "metric that is not reached": (12, "length"),
    "length that is not left out": (12, "length"),
    "plateau that is not left out": (6, "plateau"),
    "left out": (0, "explained"),
}
every_duration = pytest.mark.parametrize("name", DURATIONS)


class CutError(Exception):
    """Ends a run from outside."""


def curriculum(name: str, **fields: Any) -> Curriculum:
    pair = LayerPair(student=1, teacher=1)
    layer = MatchHidden(pair=pair, projection=Learned(), center=True)
    stages = (
        Stage(name="layer", duration=DURATIONS[name], objectives=(layer,), **fields),
        Stage(name="logits", duration=f"{LAST} steps", objectives=(MatchLogits(),)),
    )
    return Curriculum(name=name, stages=stages)


def run_of(name: str, **settings: Any) -> BoundRun:
    return bound(
        curriculum(name),
        student=mlp(5, 4, seed=1),
        optimizer=AdamW(learning_rate=0.01, schedule=Schedule(warmup=0.1, decay="cosine")),
        settings={"log_every": 1, "eval_every": 4} | settings,
    )


def executed(
    run: BoundRun, folder: Path | None = None, *, resume: bool = False, stop: int | None = None
) -> list[Record]:
    """Return the records that are told, until those of a step."""
    seen: list[Record] = []
    last = [0]

    def observe(record: Record) -> None:
        seen.append(record)
        if isinstance(record, StepRecord):
            last[0] = record.usage.steps
            if record.usage.steps == stop:
                raise CutError

    def evaluate(model: TappedModel) -> dict[str, float]:
        square = sum(float(weight.square().sum()) for weight in model.module.parameters())
        return {"size": square, "steps": float(last[0])}

    outputs = Outputs(folder=folder, observers=(observe,))
    execute(run, evaluate, metric="size", outputs=outputs, resume=resume)
    return seen


@cache
def records_of(name: str) -> list[Record]:
    """Return the records of a whole run, which several tests read."""
    return executed(run_of(name))


def timeless(folder: Path) -> list[dict[str, Any]]:
    lines = [plain(record) for record in read_records(folder / RECORDS)]
    for line in lines:
        line.get("usage", {}).pop("seconds", None)
    return lines


@every_duration
def test_a_duration_reads_back_from_yaml(name: str) -> None:
    stage = curriculum(name).stages[0]
    assert parse(Stage, yaml.safe_load(to_yaml(stage))) == stage


@every_duration
def test_a_duration_has_a_maximum(name: str) -> None:
    assert DURATIONS[name].at_most == Duration(number=MOST)


@every_duration
def test_a_plan_counts_with_the_maximum(name: str) -> None:
    run = run_of(name)
    assert [plan.steps for plan in run.plans] == [MOST, LAST]
    assert run.num_steps == MOST + LAST


@every_duration
def test_a_stage_ends_in_time_and_the_next_begins_at_once(name: str) -> None:
    records = records_of(name)
    done, _ = ENDS[name]
    assert [one.usage.steps for one in records if isinstance(one, StageRecord)] == [0, done]
    steps = [(one.stage, one.usage.steps) for one in records if isinstance(one, StepRecord)]
    expected = [("layer", step) for step in range(1, done + 1)]
    assert steps == expected + [("logits", step) for step in range(done + 1, done + LAST + 1)]


@every_duration
def test_the_reason_is_recorded_for_a_rule_alone(name: str) -> None:
    found = [one for one in records_of(name) if isinstance(one, StageEndRecord)]
    done, why = ENDS[name]
    told = [(one.stage, one.planned, one.done, one.why, one.usage.steps) for one in found]
    assert told == ([] if why is None else [("layer", MOST, done, why, done)])


@every_duration
def test_the_learning_rate_follows_the_planned_run_at_the_real_step(name: str) -> None:
    records = records_of(name)
    rates = [one.learning_rate for one in records if isinstance(one, StepRecord)]
    schedule = Schedule(warmup=0.1, decay="cosine")
    expected = [0.01 * schedule.factor(step, MOST + LAST) for step in range(len(rates))]
    assert rates == pytest.approx(expected, rel=1e-12)


@every_duration
def test_a_schedule_of_its_own_spans_the_longest_stage(name: str) -> None:
    run = bound(
        curriculum(name, schedule="own"),
        student=mlp(5, 4, seed=1),
        optimizer=SGD(learning_rate=1.0, schedule=Schedule(decay="linear")),
        settings={"log_every": 1, "eval_every": 4},
    )
    rates = [
        one.learning_rate
        for one in executed(run)
        if isinstance(one, StepRecord) and one.stage == "layer"
    ]
    assert rates == pytest.approx([1 - step / MOST for step in range(ENDS[name][0])])


@pytest.mark.parametrize(
    ("name", "every", "stops"),
    [
        # The record of a step comes before its checkpoint: the first of these go on within a
        # window, after one, after the last of the stage, and in the next stage.
        ("plateau", 1, (3, 4, 7, 9)),
        ("plateau", 4, (6, 10)),
        # A window ends after 6 steps without ending the stage.
        ("plateau with a minimum", 1, (7, 10)),
        ("plateau that is not reached", 5, (12, 14)),
        ("metric", 1, (8, 9)),
        ("metric with a minimum", 1, (5,)),
        ("plateau that is not left out", 1, (4, 7)),
        ("left out", 1, (1, 3)),
    ],
)
def test_a_run_that_is_killed_anywhere_goes_on_bit_equal(
    tmp_path: Path, name: str, every: int, stops: tuple[int, ...]
) -> None:
    whole = run_of(name)
    executed(whole, tmp_path / "whole")
    for stop in stops:
        folder = tmp_path / str(stop)
        with pytest.raises(CutError):
            executed(run_of(name, save_every=every), folder, stop=stop)
        again = run_of(name, save_every=every)
        executed(again, folder, resume=True)
        for (path, weight), other in zip(
            again.student.module.named_parameters(), whole.student.module.parameters(), strict=True
        ):
            assert torch.equal(weight, other), path
        assert timeless(folder) == timeless(tmp_path / "whole")


@every_duration
def test_a_goal_ends_every_stage(name: str) -> None:
    pair = LayerPair(student=1, teacher=1)
    stage = Stage(
        name="both",
        duration=DURATIONS[name],
        objectives=(MatchHidden(pair=pair), MatchLogits()),
    )
    last = Stage(name="logits", duration="5 steps", objectives=(MatchLogits(),))
    run = bound(Curriculum(name="x", stages=(stage, last)), settings={"eval_every": 4})
    seen: list[Record] = []
    end = execute(
        run,
        lambda _: {"steps": 0.5},
        metric="steps",
        outputs=Outputs(observers=(seen.append,)),
        until=lambda metrics: metrics["steps"] == 0.5,
    )
    assert end.usage.steps == 4
    reasons = [one.why for one in seen if isinstance(one, StageEndRecord)]
    assert reasons == ([] if name == "length" else ["goal"])


@pytest.mark.parametrize("name", [name for name in DURATIONS if name != "length"])
def test_a_rule_is_refused_where_a_length_is_fixed(name: str) -> None:
    kinds = "plateau|metric|unless_explained"
    sentence = rf"a length must be fixed here, such as '1500 steps'.* got kind '({kinds})'$"
    with pytest.raises(SpecError, match=sentence):
        duration(plain(DURATIONS[name]))
    rule: Any = DURATIONS[name]
    with pytest.raises(SpecError, match=sentence):
        duration(rule)


def test_a_run_with_another_rule_is_another_run(tmp_path: Path) -> None:
    with pytest.raises(CutError):
        executed(run_of("plateau", save_every=1), tmp_path, stop=4)
    with pytest.raises(CheckpointError, match=r"'curriculum\.0\.duration\.at_least\.number'"):
        executed(run_of("plateau with a minimum"), tmp_path, resume=True)


def test_another_interval_between_evaluations_is_another_run_only_with_a_metric(
    tmp_path: Path,
) -> None:
    for name in ("plateau", "metric"):
        with pytest.raises(CutError):
            executed(run_of(name, save_every=1), tmp_path / name, stop=4)
    executed(run_of("plateau", eval_every=3), tmp_path / "plateau", resume=True)
    with pytest.raises(CheckpointError, match=r"'settings\.eval_every' was 4 and is 3"):
        executed(run_of("metric", eval_every=3), tmp_path / "metric", resume=True)


@pytest.mark.parametrize("name", ["plateau with a minimum", "plateau that is not reached"])
def test_an_evaluation_that_fails_at_the_end_of_a_window_costs_nothing(
    tmp_path: Path, name: str
) -> None:
    whole = run_of(name, eval_every=6)
    executed(whole, tmp_path / "whole")
    calls: list[int] = []

    def failing(_: TappedModel) -> dict[str, float]:
        calls.append(1)
        # The first call is the trial before training, the third comes after 12 steps.
        return {"size": 0.0, "steps": 0.0} if len(calls) < FAILS[name] else {}

    outputs = Outputs(folder=tmp_path / "cut")
    with pytest.raises(BindError, match="'metric' must be one of"):
        execute(run_of(name, eval_every=6), failing, metric="size", outputs=outputs)
    again = run_of(name, eval_every=6)
    executed(again, tmp_path / "cut", resume=True)
    for weight, other in zip(
        again.student.module.parameters(), whole.student.module.parameters(), strict=True
    ):
        assert torch.equal(weight, other)
    found = [one for one in read_records(tmp_path / "cut" / RECORDS) if one.kind == "stage_end"]
    assert [(one.done, one.why) for one in found] == [ENDS[name]]


FAILS = {"plateau with a minimum": 2, "plateau that is not reached": 3}
"""Call of the evaluation that fails: after a window within the stage, and at its end."""
