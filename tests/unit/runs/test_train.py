"""From a spec to runs on disk: what is bound, trained, reused and kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from curricle import seeding
from curricle.checksums import SEAL, write_sealed
from curricle.errors import BindError, CheckpointError, DataError, SpecError
from curricle.models.mlp import MLPSpec
from curricle.models.weights import save_weights
from curricle.records import EndRecord, EvaluationRecord, Record, RunRecord
from curricle.runs import budget as budgets
from curricle.runs.folder import TAUGHT, end_of, is_claimed, recorded_steps
from curricle.runs.spec import RunSpec
from curricle.runs.train import (
    classes,
    planned_student,
    rehearse,
    single_run,
    student_runs,
    teach,
    train_class,
    train_student,
)
from curricle.teachers.trajectory import open_trajectory
from curricle.training.binding.facts import FACTS
from curricle.training.loop.best import BEST
from curricle.training.setup.optimizers import SGD
from tests.runs import contents

MakeSpec = Callable[..., RunSpec]


def stop_at(steps: int) -> Callable[[Record], None]:
    """Return an observer that interrupts a run after some steps."""

    def observe(record: Record) -> None:
        if not isinstance(record, RunRecord) and record.usage.steps >= steps:
            raise KeyboardInterrupt

    return observe


def test_a_comparison_runs_every_strategy_of_a_seed_before_the_next_seed(
    make_spec: MakeSpec,
) -> None:
    spec = make_spec()
    runs = student_runs(spec)
    assert [str(run) for run in runs] == [
        "one_shot seed 0",
        "progressive seed 0",
        "one_shot seed 1",
        "progressive seed 1",
    ]
    assert runs[3].folder == spec.folder / "students" / "progressive" / "seed-1"


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ([], [1, 1, 1, 1]),
        (["data_seed=5"], [1, 1, 1, 1]),
        (["share_teacher=true"], [2, 2]),
        (["share_teacher=true", "data_seed=5"], [4]),
        (["batch_students=true", "data_seed=5"], [4]),
    ],
)
def test_students_of_the_same_data_make_a_class(
    make_spec: MakeSpec, fields: list[str], sizes: list[int]
) -> None:
    spec = make_spec(*fields)
    found = classes(spec)
    assert [len(students) for students in found] == sizes
    assert sorted(str(run) for one in found for run in one) == sorted(map(str, student_runs(spec)))


def test_seeds_read_the_same_data_if_the_spec_says_so(make_spec: MakeSpec) -> None:
    def data(*fields: str) -> set[str]:
        spec = make_spec(*fields)
        return {planned_student(spec, run).stream.fingerprint for run in student_runs(spec)}

    assert len(data()) == 2
    assert len(data("data_seed=0")) == 1
    assert data("data_seed=0") < data()


def test_a_stacked_class_leaves_what_its_students_alone_would_leave_within_rounding(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    found = []
    for name, fields in (("alone", []), ("class", ["batch_students=true"])):
        spec = make_spec(f"output_dir={tmp_path / name}", "data_seed=5", *fields)
        teach(spec)
        for students in classes(spec):
            train_class(spec, students, lambda run, record: None)
        found.append([load_file(run.folder / "model.safetensors") for run in student_runs(spec)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_class_leaves_what_its_students_alone_would_leave(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    weights = []
    for name, fields in (("alone", []), ("class", ["share_teacher=true"])):
        spec = make_spec(f"output_dir={tmp_path / name}", "data_seed=5", *fields)
        teach(spec)
        for students in classes(spec):
            train_class(spec, students, lambda run, record: None)
        weights.append(contents(spec.folder / "students", "model.safetensors"))
    assert len(weights[0]) == 4
    assert weights[0] == weights[1]


def test_a_class_goes_on_where_it_stopped(make_spec: MakeSpec, tmp_path: Path) -> None:
    fields = ("share_teacher=true", "data_seed=5", "engine.save_every=4")
    whole, cut = (make_spec(f"output_dir={tmp_path / n}", *fields) for n in ("whole", "cut"))
    for spec in (whole, cut):
        teach(spec)
    (students,) = classes(whole)
    train_class(whole, students, lambda run, record: None)
    stop = stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        train_class(cut, classes(cut)[0], lambda run, record: stop(record))
    # One that is finished is left alone, and the last one is taught alone.
    train_student(cut, classes(cut)[0][0])
    told: list[str] = []
    train_class(cut, classes(cut)[0], lambda run, record: told.append(str(run)))
    assert len(set(told)) == 3
    found = [contents(spec.folder / "students", "model.safetensors") for spec in (whole, cut)]
    assert found[0] == found[1]


def test_a_class_of_one_is_no_class(make_spec: MakeSpec) -> None:
    spec = make_spec("share_teacher=true")
    teach(spec)
    run = classes(spec)[0][0]
    told: list[Record] = []
    train_class(spec, [run], lambda _, record: told.append(record))
    assert isinstance(told[-1], EndRecord)
    assert end_of(run.folder) == told[-1]


def test_a_comparison_needs_strategies(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="'strategies' must be in the spec for 'curricle compare'"):
        student_runs(make_spec("strategies={}", "seeds=null"))


def test_a_strategys_own_optimizer_trains_its_students_only(make_spec: MakeSpec) -> None:
    own = "strategies.one_shot.optimizer={kind: sgd, learning_rate: 1.0}"
    spec = make_spec(own)
    rates = [run.optimizer.learning_rate for run in student_runs(spec)]
    assert rates == [1.0, 0.3, 1.0, 0.3]
    assert single_run(spec).optimizer == SGD(learning_rate=0.3)


def test_a_single_run_lies_at_the_top_of_its_folder(make_spec: MakeSpec) -> None:
    spec = make_spec("seed=5")
    run = single_run(spec)
    assert (run.name, run.seed, run.folder) == ("one_shot", 5, spec.folder)


def test_a_taught_teacher_leaves_its_checkpoints_and_its_end(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    trajectory = spec.folder / "teacher" / "trajectory"
    steps = sorted(path.stem for path in trajectory.glob("*.safetensors"))
    assert steps == ["step-000000010", "step-000000020"]
    assert end_of(spec.folder / "teacher") is not None


def test_a_taught_teacher_keeps_its_held_out_loss_with_its_checkpoints(
    make_spec: MakeSpec,
) -> None:
    # Step 20 is the end: what was found there stands in the last record as well.
    spec = make_spec("teacher.checkpoints=4")
    teach(spec)
    kept = dict(open_trajectory(spec.folder / "teacher" / "trajectory").losses)
    end = end_of(spec.folder / "teacher")
    assert sorted(kept) == [5, 10, 15, 20]
    assert end is not None
    assert kept[20] == end.metrics["nll"]


def test_a_taught_teacher_is_left_alone(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    before = contents(spec.folder)
    told: list[Record] = []
    teach(spec, [told.append])
    assert contents(spec.folder) == before
    assert not told


def test_a_teacher_goes_on_from_its_checkpoint(make_spec: MakeSpec) -> None:
    spec = make_spec("engine.save_every=5")
    with pytest.raises(KeyboardInterrupt):
        teach(spec, [stop_at(12)])
    told: list[Record] = []
    teach(spec, [told.append])
    later = [one.usage.steps for one in told if not isinstance(one, RunRecord)]
    assert min(later) > 10
    assert isinstance(told[-1], EndRecord)


def test_the_teacher_of_another_spec_is_not_trained_over(make_spec: MakeSpec) -> None:
    teach(make_spec())
    before = contents(make_spec().folder)
    with pytest.raises(CheckpointError, match="must hold the teacher of this spec"):
        teach(make_spec("seed=1"))
    assert contents(make_spec().folder) == before


def test_a_student_needs_a_taught_teacher(make_spec: MakeSpec) -> None:
    spec = make_spec()
    with pytest.raises(CheckpointError, match=r"model.safetensors' must be a safetensors file"):
        train_student(spec, single_run(spec))


def test_a_trained_student_is_not_trained_again(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    end = train_student(spec, single_run(spec))
    before = contents(spec.folder)
    assert train_student(spec, single_run(spec)) == end
    assert contents(spec.folder) == before


def test_a_kill_after_the_last_record_leaves_the_rest_to_the_next_start(
    make_spec: MakeSpec,
) -> None:
    spec = make_spec()
    teach(spec)
    train_student(spec, single_run(spec))
    before = contents(spec.folder)
    for folder in (spec.folder, spec.folder / "teacher"):
        (folder / SEAL).rename(folder / f".{SEAL}.123.tmp")
    (spec.folder / BEST).touch()
    teach(spec)
    train_student(spec, single_run(spec))
    assert contents(spec.folder) == before


def test_temporary_files_of_a_killed_start_are_removed(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teacher = spec.folder / "teacher"
    leftovers = [teacher / f".{TAUGHT}.123.tmp", spec.folder / f".{FACTS}.123.tmp"]
    teacher.mkdir(parents=True)
    for path in leftovers:
        path.touch()
    teach(spec)
    train_student(spec, single_run(spec))
    assert not any(path.exists() for path in leftovers)


def test_an_interrupted_student_ends_as_an_uninterrupted_one(make_spec: MakeSpec) -> None:
    spec = make_spec("engine.save_every=4")
    teach(spec)
    whole, cut = student_runs(spec)[0], single_run(spec)
    train_student(spec, whole)
    with pytest.raises(KeyboardInterrupt):
        train_student(spec, cut, [stop_at(6)])
    train_student(spec, cut)
    name = "model.safetensors"
    assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_on_seconds_keeps_the_length_it_began_with(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("budget=10 seconds", "engine.save_every=4")
    teach(spec)
    monkeypatch.setattr(budgets, "seconds_per_step", lambda run: [1.0] * len(run.stages))
    with pytest.raises(KeyboardInterrupt):
        train_student(spec, single_run(spec), [stop_at(6)])
    monkeypatch.setattr(budgets, "seconds_per_step", lambda run: [2.0] * len(run.stages))
    assert train_student(spec, single_run(spec)).usage.steps == 10
    assert recorded_steps(spec.folder) == 10


def test_a_run_may_end_at_its_target_and_is_not_gone_on_with(make_spec: MakeSpec) -> None:
    sets = ["budget=60 steps", "engine.eval_every=2", "engine.save_every=4"]
    spec = make_spec(*sets)
    teach(spec)
    told: list[Record] = []
    train_student(spec, student_runs(spec)[0], [told.append])
    found = [
        (record.metrics["accuracy"], record.usage.steps)
        for record in told
        if isinstance(record, EvaluationRecord)
    ]
    best, _ = max(found)
    first = next(steps for accuracy, steps in found if accuracy >= best)
    assert 2 < first < 60

    ending = make_spec(*sets, f"goal={{number: {best}, ends_run: true}}")
    end = train_student(ending, single_run(ending))
    assert end.usage.steps == first
    assert end.metrics["accuracy"] == best
    assert recorded_steps(ending.folder) == 60
    before, again = contents(ending.folder), list[Record]()
    assert train_student(ending, single_run(ending), [again.append]) == end
    assert not again
    assert contents(ending.folder) == before


def test_without_its_option_a_target_ends_no_run(make_spec: MakeSpec) -> None:
    spec = make_spec("goal={number: 0.0}")
    teach(spec)
    assert train_student(spec, single_run(spec)).usage.steps == 12


def test_planning_writes_nothing(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    run = planned_student(spec, single_run(spec))
    assert [stage.plan.steps for stage in run.stages] == [12]
    assert not contents(tmp_path)


def test_a_plan_on_seconds_needs_no_taught_teacher(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("budget=10 seconds", "curriculum.kind=progressive")
    monkeypatch.setattr(budgets, "WARM_UP_STEPS", 0)
    monkeypatch.setattr(budgets, "TIMED_STEPS", 1)
    assert planned_student(spec, single_run(spec)).num_steps > 2


def test_what_does_not_fit_is_told_with_its_strategy_and_stage(make_spec: MakeSpec) -> None:
    spec = make_spec("curriculum={kind: extraction, pairs: [{student: 7, teacher: 1}]}")
    with pytest.raises(BindError, match=r"^'extraction': stage 'layer 1': student's tap 7 must"):
        rehearse(spec, [single_run(spec)])


def test_a_checkpoint_that_will_not_be_kept_shows_before_training(make_spec: MakeSpec) -> None:
    spec = make_spec("curriculum={kind: progressive, trajectory: [10, 17]}")
    with pytest.raises(
        BindError, match=r"'progressive': 'teacher' checkpoint must be one of \[10, 20\]; got 17"
    ):
        rehearse(spec, [single_run(spec)])


@pytest.mark.parametrize("budget", ["12 steps", "200k flops", "1 seconds"])
def test_a_rehearsal_finds_mistakes_under_every_budget(make_spec: MakeSpec, budget: str) -> None:
    curriculum = "curriculum={kind: extraction, pairs: [{student: 7, teacher: 1}]}"
    spec = make_spec(curriculum, f"budget={budget}")
    with pytest.raises(BindError, match="tap 7"):
        rehearse(spec, [single_run(spec)])


def test_a_rehearsal_on_seconds_takes_no_time(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(run: object) -> list[float]:
        raise AssertionError

    monkeypatch.setattr(budgets, "seconds_per_step", measure)
    spec = make_spec("budget=10 seconds")
    rehearse(spec, [single_run(spec)])


def test_a_rehearsal_looks_at_the_teacher_that_is_there(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    with seeding.scoped(0, "other"):
        other = MLPSpec(widths=(3,)).build(num_inputs=8, num_classes=2, num_positions=1)
    save_weights(other.module, spec.folder / "teacher" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged or of another run"):
        rehearse(spec, [single_run(spec)])


TRANSITION = "curriculum={kind: progressive, select: transition}"


def test_a_transition_is_provisional_until_the_teacher_is_taught(make_spec: MakeSpec) -> None:
    spec = make_spec(TRANSITION, "teacher.checkpoints=4")
    before = planned_student(spec, single_run(spec))
    teach(spec)
    after = planned_student(spec, single_run(spec))
    assert before.teachers == (10, 20)
    assert "provisional" in " ".join(before.notes)
    assert "provisional" not in " ".join(after.notes)
    assert [stage.span.end for stage in after.stages] == [stage.span.end for stage in before.stages]


def test_a_student_is_taught_by_the_checkpoint_inside_the_transition(make_spec: MakeSpec) -> None:
    spec = make_spec(TRANSITION, "teacher.checkpoints=5")
    teach(spec)
    manifest = spec.folder / "teacher" / "trajectory" / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["losses"] = [[4, 0.69], [8, 0.69], [12, 0.69], [16, 0.4], [20, 0.01]]
    del listed["check"]
    write_sealed(manifest, listed)
    told: list[Record] = []
    train_student(spec, single_run(spec), [told.append])
    opening = told[0]
    assert isinstance(opening, RunRecord)
    assert [stage.teacher for stage in opening.stages] == ["step 16", "step 20"]
    assert opening.notes[0].startswith(
        "checkpoint 16 lies inside the teacher's transition (loss 0.69"
    )


def test_a_teacher_of_an_earlier_version_has_no_losses_to_find_a_transition_in(
    make_spec: MakeSpec,
) -> None:
    spec = make_spec(TRANSITION)
    teach(spec)
    manifest = spec.folder / "teacher" / "trajectory" / "manifest.json"
    manifest.write_text(json.dumps({"steps": [10, 20]}))
    with pytest.raises(SpecError, match=r"^'select' 'transition' must have the teacher's loss at"):
        rehearse(spec, [single_run(spec)])


def test_a_teacher_that_cannot_train_shows_in_the_rehearsal(make_spec: MakeSpec) -> None:
    with pytest.raises(
        DataError, match=r"'gradient_accumulation_steps' must divide the 16 examples"
    ):
        rehearse(make_spec("engine.gradient_accumulation_steps=3"))


def test_a_student_is_drawn_from_its_own_seed(make_spec: MakeSpec) -> None:
    spec = make_spec()
    first, _, second, _ = (planned_student(spec, run) for run in student_runs(spec))
    weights = [next(run.student.module.parameters()) for run in (first, second)]
    assert not weights[0].equal(weights[1])


def test_students_keep_their_best_weights_and_the_teacher_its_last(make_spec: MakeSpec) -> None:
    spec = make_spec("engine.keep_best=true", "engine.eval_every=3")
    seen: list[Record] = []
    teach(spec, [seen.append])
    end = train_student(spec, single_run(spec))
    assert (end.best_metric, end.best_step in {3, 6, 9, 12}) == ("accuracy", True)
    taught = end_of(spec.folder / "teacher")
    assert taught is not None
    assert taught.best_step == 0
    notes = [note for record in seen if isinstance(record, RunRecord) for note in record.notes]
    assert any("the teacher ends with its last weights" in note for note in notes)
    trajectory = open_trajectory(spec.folder / "teacher" / "trajectory")
    weights = load_file(spec.folder / "teacher" / "model.safetensors")
    last = load_file(trajectory.path(20))
    assert all(torch.equal(weights[name], last[name]) for name in weights)


def test_best_weights_of_a_single_evaluation_are_refused_before_the_teacher_is_taught(
    make_spec: MakeSpec,
) -> None:
    spec = make_spec("engine.keep_best=true", "engine.eval_every=500")
    with pytest.raises(BindError, match="'eval_every' must be below the 12 steps of the run"):
        rehearse(spec, student_runs(spec))


def test_students_of_a_class_keep_their_best_weights_as_alone(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    settings = ("engine.keep_best=nll", "engine.eval_every=3", "data_seed=0")
    shared = make_spec(*settings, "share_teacher=true", f"output_dir={tmp_path / 'shared'}")
    alone = make_spec(*settings, f"output_dir={tmp_path / 'alone'}")
    for spec in (shared, alone):
        teach(spec)
    train_class(shared, student_runs(shared), lambda _, __: None)
    for student in student_runs(alone):
        train_student(alone, student)
    for first, second in zip(student_runs(shared), student_runs(alone), strict=True):
        ends = [end_of(run.folder) for run in (first, second)]
        assert ends[0] is not None
        assert ends[1] is not None
        assert ends[0].best_step == ends[1].best_step > 0
        assert contents(first.folder, "model.safetensors") == contents(
            second.folder, "model.safetensors"
        )


def test_a_teacher_and_a_budget_may_be_given_in_epochs(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = torch.zeros(50, 8)
    rows[:, 0] = torch.arange(50) % 2
    labels = (torch.arange(50) % 2).long()
    save_file({"inputs": rows, "labels": labels}, tmp_path / "rows.safetensors")
    task = f"{{kind: tensors, data: {tmp_path / 'rows.safetensors'}, batch_size: 8}}"
    spec = make_spec(f"task={task}", "teacher.total=3 epochs", "budget=2 epochs")
    # Of 50 rows 48 are trained on, six batches an epoch.
    assert spec.teacher_steps() == 18
    assert spec.trajectory_steps() == (9, 18)
    rehearse(spec, student_runs(spec))
    teach(spec)
    assert open_trajectory(spec.folder / "teacher" / "trajectory").steps == (9, 18)
    assert train_student(spec, student_runs(spec)[1]).usage.steps == 12
    endless = make_spec("budget=2 epochs", f"output_dir={tmp_path / 'endless'}")
    with pytest.raises(BindError, match="for data that do not repeat"):
        rehearse(endless, student_runs(endless))


def test_a_folder_of_too_long_a_name_is_refused_where_a_teacher_is_looked_for(
    make_spec: MakeSpec,
) -> None:
    with pytest.raises(
        CheckpointError, match=r"'output_dir' must be a folder .* got a name of 300"
    ):
        is_claimed(make_spec(f"output_dir={'a' * 300}"))
