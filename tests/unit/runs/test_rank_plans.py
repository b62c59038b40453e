"""Plans of one of several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import curricle
from curricle.errors import BindError, SpecError
from curricle.runs.rank_plans import plan_ranks, planned_ranks
from curricle.runs.spec import RunSpec
from curricle.runs.train import student_runs
from curricle.values import parse
from tests.parts import mlp, parity
from tests.runs import tiny_comparison

HEADS = "| stage | parallel | parameters | gradients | optimizer | gathered | teacher |"


def planned(world_size: int, curriculum: Any = None, **options: Any) -> curricle.RankPlan:
    return plan_ranks(
        mlp(5, 4).module,
        mlp(16, 12, seed=1).module,
        curriculum or curricle.extraction(total="40 steps", layer_fraction=0.5),
        parity(),
        world_size=world_size,
        **options,
    )


def test_each_stage_has_a_row_for_each_division_of_the_work() -> None:
    plan = planned(2)
    assert [stage.name for stage in plan.stages] == ["layer 1", "logits"]
    rows = [(costs.parallel, costs.is_teacher_shared) for costs in plan.stages[0].rows]
    assert rows == [("none", False), ("ddp", False), ("fsdp2", False), ("fsdp2", True)]
    assert HEADS in str(plan)


def test_without_a_teacher_none_can_be_shared() -> None:
    curriculum = curricle.from_labels(total="4 steps")
    (stage,) = planned(2, curriculum).stages
    assert [(costs.parallel, costs.teacher) for costs in stage.rows] == [
        ("none", 0),
        ("ddp", 0),
        ("fsdp2", 0),
    ]


def test_processes_divide_the_activations() -> None:
    stage = planned(4).stages[-1]
    assert 4 * stage.share.activations == stage.batch.activations
    assert 4 * stage.share.student_flops == stage.batch.student_flops


def test_gradients_of_ddp_travel_twice_around_the_ring() -> None:
    ddp = planned(4).stages[-1].rows[1]
    parameters = 7 * 5 + 6 * 4 + 5 * 2
    assert ddp.all_reduced == 4 * parameters
    assert ddp.sent == 2 * 4 * parameters * 3 // 4


def test_models_without_memory_are_planned() -> None:
    with torch.device("meta"):
        student, teacher = nn.Linear(6, 2), nn.Linear(6, 2)
    curriculum = curricle.one_shot(total="4 steps")
    plan = plan_ranks(student, teacher, curriculum, parity(), world_size=2)
    assert plan.stages[0].rows[0].parameters == 4 * 7 * 2


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_processes_below_one_is_refused(number: int) -> None:
    message = f"'world_size' must be a positive number of processes; got {number}"
    with pytest.raises(SpecError, match=message):
        planned(number)


def test_processes_that_cannot_divide_the_examples_are_refused_with_the_next_batch_size() -> None:
    message = "'batch_size' must be a multiple of 7 processes .*; got micro-batches of 8; .* of 14$"
    with pytest.raises(SpecError, match=message):
        planned(7)


def test_replicas_of_the_settings_are_counted() -> None:
    settings = curricle.TrainingSettings(parallel="fsdp2", replicas=2)
    plan, group = planned(4, settings=settings), planned(2)
    assert "| logits | fsdp2, 2 replicas |" in str(plan)
    assert plan.stages[-1].rows[2].parameters == group.stages[-1].rows[2].parameters


def test_replicas_that_do_not_divide_the_processes_are_refused() -> None:
    settings = curricle.TrainingSettings(parallel="fsdp2", replicas=3)
    message = "'world_size' must be a multiple of the 3 groups of 'replicas', .*; got 4"
    with pytest.raises(SpecError, match=message):
        planned(4, settings=settings)


def test_a_missing_tap_names_its_stage() -> None:
    pairs = (curricle.LayerPair(student=9, teacher=1),)
    curriculum = curricle.extraction(total="4 steps", pairs=pairs, layer_fraction=0.5)
    with pytest.raises(BindError, match="stage 'layer 1': student's tap 9 must lie"):
        planned(2, curriculum)


def test_a_spec_is_planned_without_its_folder(tmp_path: Path) -> None:
    spec = parse(RunSpec, tiny_comparison() | {"output_dir": str(tmp_path / "run")})
    plans = [planned_ranks(spec, run, 2) for run in student_runs(spec)]
    assert all(plan.stages for plan in plans)
    assert not (tmp_path / "run").exists()
