"""A teacher of whom only targets are left: what serves an objective, and what it cannot do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curricle.curriculum.initialization import PrincipalStart
from curricle.curriculum.stages import Curriculum, Stage
from curricle.errors import BindError, CheckpointError
from curricle.objectives.divergences import ReverseKL
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Sign
from curricle.objectives.sparse import SparseTarget
from curricle.objectives.temperature import LearnedTemperature
from curricle.teachers.store.codecs import Exact, Sampled, TopK
from curricle.teachers.store.manifest import read_manifest, write_manifest
from curricle.teachers.stored import StoredTeacher, open_targets
from curricle.training.targets.capture import TargetCompression, capture
from tests.parts import bound, mlp, stored_target

STATES = MatchHidden(pair=LayerPair(student=1, teacher=1))


def staged(*objectives: Any, **fields: Any) -> Curriculum:
    stage = Stage(name="only", duration="3 steps", objectives=objectives)
    return Curriculum(name="own", stages=(stage,), **fields)


def captured(folder: Path, *objectives: Any, logits: Any = None, **parts: Any) -> StoredTeacher:
    compression = TargetCompression(hidden=Exact(), logits=logits or Exact())
    capture([bound(staged(*objectives), **parts)], folder, compression=compression)
    return open_targets(folder)


def test_a_student_of_another_seed_is_taught_by_the_draw_of_the_store(tmp_path: Path) -> None:
    teacher = captured(tmp_path, STATES)
    runs = [bound(staged(STATES), teacher=teacher, seed=seed) for seed in (0, 1)]
    targets = [stored_target(run, run.stream.batch(0)) for run in runs]
    assert torch.equal(*targets)


def test_among_several_draws_the_own_one_is_read_and_others_are_told(tmp_path: Path) -> None:
    for seed in (0, 1):
        teacher = captured(tmp_path, STATES, seed=seed)
    for seed in (0, 1):
        bound(staged(STATES), teacher=teacher, seed=seed)
    with pytest.raises(BindError, match="and be one; there are 2"):
        bound(staged(STATES), teacher=teacher, seed=2)


@pytest.mark.parametrize(
    "other",
    [
        replace(STATES, projection=Sign()),
        replace(STATES, normalize="rms"),
        replace(STATES, pair=LayerPair(student=2, teacher=1)),
        MatchLogits(num_classes=1),
    ],
)
def test_targets_of_another_kind_do_not_serve(tmp_path: Path, other: Any) -> None:
    teacher = captured(tmp_path, STATES, MatchLogits())
    with pytest.raises(BindError, match=r"must hold targets of teacher 'final' with .*; stored:"):
        bound(staged(other), teacher=teacher)


def test_a_tap_that_is_not_stored_is_told(tmp_path: Path) -> None:
    teacher = captured(tmp_path, STATES)
    other = replace(STATES, pair=LayerPair(student=1, teacher=2))
    with pytest.raises(
        BindError, match="must hold hidden states at the teacher's tap '2'; got those at"
    ):
        bound(staged(other), teacher=teacher)
    with pytest.raises(BindError, match="'targets' must hold logits to match them"):
        bound(staged(MatchLogits()), teacher=teacher)


def test_taps_are_numbered_as_in_the_model(tmp_path: Path) -> None:
    model, live = captured(tmp_path, STATES).model, mlp(16, 12, seed=1)
    assert model.depth == live.depth
    assert str(model.place(0.5)) == str(live.place(0.5))
    assert model.place(2).label == "2"
    assert str(model.place("blocks.0")) == str(live.place("blocks.0"))


def test_a_checkpoint_that_was_not_asked_is_told(tmp_path: Path) -> None:
    teacher = captured(tmp_path, STATES)
    teacher.check(["final"])
    with pytest.raises(BindError, match=r"must be one whose targets are stored, \['final'\]"):
        teacher.check([40])


def test_a_teacher_in_another_precision_is_told(tmp_path: Path) -> None:
    teacher = captured(tmp_path, STATES, settings={"teacher_precision": "bfloat16"})
    for same in ({"teacher_precision": "bfloat16"}, {"precision": "bfloat16"}):
        bound(staged(STATES), teacher=teacher, settings=same)
    with pytest.raises(BindError, match="'teacher_precision' must be 'bfloat16', in which"):
        bound(staged(STATES), teacher=teacher)
    other = captured(tmp_path / "other", STATES)
    with pytest.raises(BindError, match="'teacher_precision' must be 'float32', in which"):
        bound(staged(STATES), teacher=other, settings={"precision": "bfloat16"})


def test_it_cannot_be_run(tmp_path: Path) -> None:
    teacher = captured(tmp_path, STATES)
    with pytest.raises(BindError, match="must be a model to be read at"):
        teacher.model.open_taps([teacher.model.place(1)], logits=False)
    with pytest.raises(BindError, match="'init' 'principal' needs a teacher with weights"):
        bound(staged(STATES, init=PrincipalStart()), teacher=teacher)


@pytest.mark.parametrize(
    "objective", [MatchLogits(divergence=ReverseKL()), LearnedTemperature(label_weight=0.0)]
)
def test_drawn_classes_are_read_by_forward_divergence_only(tmp_path: Path, objective: Any) -> None:
    teacher = captured(tmp_path, MatchLogits(), logits=Sampled())
    with pytest.raises(BindError, match="must be read by 'logits' with divergence 'forward_kl'"):
        bound(staged(objective), teacher=teacher)


@pytest.mark.parametrize("codec", [Sampled(temperature=2.0), TopK(temperature=2.0)])
def test_another_temperature_than_that_of_the_store_is_told(tmp_path: Path, codec: Any) -> None:
    softened = MatchLogits(teacher_temperature=2.0)
    teacher = captured(tmp_path, softened, logits=codec)
    bound(staged(softened), teacher=teacher)
    with pytest.raises(BindError, match="'teacher_temperature' must be 2"):
        bound(staged(MatchLogits()), teacher=teacher)


def test_targets_are_those_of_sparse_kinds_only_where_told(tmp_path: Path) -> None:
    teacher = captured(tmp_path, STATES, MatchLogits(), logits=TopK(k=1))
    run = bound(staged(STATES, MatchLogits()), teacher=teacher)
    states, logits = (term.stored for term in run.stages[0].terms)
    assert states is not None
    assert logits is not None
    assert (states.is_dense, logits.is_dense) == (True, False)
    assert isinstance(logits.target(run.stream.batch(0), 8), SparseTarget)
    assert states.blank(3, torch.zeros(1)).shape == (3, 5)


def test_an_objective_must_say_what_its_targets_are(tmp_path: Path) -> None:
    class Own:
        weight, needs_teacher = 1.0, True

        def reads(self, student: Any, teacher: Any) -> Any:
            return MatchLogits().reads(student, teacher)

        def bind(self, reads: Any, sample: Any, *, is_residual: bool) -> Any:
            inner = MatchLogits().bind(reads, sample, is_residual=is_residual)

            class Bound:
                count, target, total = inner.count, inner.target, inner.total
                describe = inner.describe

            return Bound()

    teacher = captured(tmp_path / "store", MatchLogits())
    with pytest.raises(BindError, match="'Bound' must have 'target_facts'"):
        bound(staged(Own()), teacher=teacher)
    with pytest.raises(BindError, match="'Bound' must have 'target_facts'"):
        captured(tmp_path / "other", Own())


@pytest.mark.parametrize("field", ["num_classes", "teacher_width"])
def test_facts_that_are_no_numbers_are_refused(tmp_path: Path, field: str) -> None:
    captured(tmp_path, STATES, MatchLogits())
    manifest = read_manifest(tmp_path)
    sections = [
        replace(section, facts={**section.facts, field: "many"})
        if field in section.facts
        else section
        for section in manifest.sections
    ]
    write_manifest(tmp_path, replace(manifest, sections=tuple(sections)))
    with pytest.raises(CheckpointError, match="'facts' of a set of stored targets must hold whole"):
        open_targets(tmp_path)
