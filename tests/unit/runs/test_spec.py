"""Run specs: what they accept, what they refuse and what they derive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curricle.curriculum.durations import Duration
from curricle.errors import SpecError
from curricle.models.mlp import MLPSpec
from curricle.runs.spec import RunSpec, changed, load_spec, require_field
from curricle.values import parse, plain, to_yaml

MakeSpec = Callable[..., RunSpec]
HF = "{kind: hf, model_type: bert}"
TEXT = ("task={kind: text, window: 32, batch_size: 10}", f"student={HF}")
PRETRAINED = "teacher={model: {kind: pretrained, path: there}, folders: [%s]}"


def test_a_spec_is_read_from_a_file_with_overrides(tmp_path: Path, make_spec: MakeSpec) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(make_spec()))
    spec = load_spec(path, ["student.widths=[9]", "seed=7"])
    assert spec.student == MLPSpec(widths=(9,))
    assert spec.seed == 7


@pytest.mark.parametrize("select", ["transition", "equal", [10, 20]])
def test_a_selection_of_checkpoints_is_stored_and_read_again(
    tmp_path: Path, make_spec: MakeSpec, select: object
) -> None:
    spec = make_spec(f"strategies.progressive.curriculum.select={select}")
    (tmp_path / "spec.yaml").write_text(to_yaml(spec))
    assert load_spec(tmp_path / "spec.yaml") == spec
    assert spec.strategies["progressive"].curriculum["select"] == select


def test_a_checkpoint_that_cannot_be_selected_shows_when_the_spec_is_read(
    make_spec: MakeSpec,
) -> None:
    with pytest.raises(
        SpecError, match=r"'strategies.progressive.curriculum': 'select' must list .*; got 15$"
    ):
        make_spec("strategies.progressive.curriculum.select=[15, 20]")


def test_a_stored_spec_is_equal_when_read_again(tmp_path: Path, make_spec: MakeSpec) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(make_spec()))
    assert load_spec(path) == make_spec()


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("shade: red\n")
    with pytest.raises(SpecError, match=r"spec.yaml: 'shade' is not a field; .*available: 'seed'"):
        load_spec(path)


def test_a_spec_is_changed_by_overrides(make_spec: MakeSpec) -> None:
    assert changed(make_spec(), ["budget=3 seconds"]).budget == make_spec("budget=3 seconds").budget


def test_a_mistake_in_an_override_names_the_path(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match=r"--set: 'task.batch_size' .*integer.*; got 'many'"):
        changed(make_spec(), ["task.batch_size=many"])


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("task.batch_sice=5", "'task': 'batch_sice' is not a field; did you mean 'batch_size'"),
        ("curriculum.kind=one_shut", "'curriculum': 'kind' 'one_shut' is not a strategy; did you"),
        ("curriculum.pears=3", "'curriculum': 'pears' is not an argument of one_shot"),
        ("strategies.one_shot.curriculum.kind=two", "'strategies.one_shot.curriculum': 'kind'"),
        ("budget=1 steps", "'strategies.progressive.curriculum': 'total' 1 steps must be longer"),
        ("budget=1.5 steps", "^'budget' must be a whole number"),
        ("goal.final_of=one_shut", "'goal.final_of' must name a strategy; got 'one_shut'; did"),
        ("goal={number: 1, final_of: one_shot}", "'number' must not be given with 'final_of'"),
        ("seeds=[1, 1]", r"'seeds' must differ; got \[1, 1\]"),
        (
            "strategies={}",
            r"'seeds' must come with 'strategies' .*; got \[0, 1\] without",
        ),
        ("seeds=[]", "'seeds' .*at least 1 item"),
        ("output_dir=", "'output_dir' .*at least 1 character"),
        ("teacher.total=null", "'teacher': 'total' must be given exactly .* got None for kind 'ml"),
        ("teacher.total=0 steps", "'teacher.total': a duration must be a positive whole number"),
        ("teacher.checkpoints=0", "'teacher.checkpoints' .*greater than 0; got 0"),
        ("teacher.folders=[a]", "'folders' must go with a pretrained teacher; got 'mlp'"),
        (
            "goal.number=99",
            "'goal': 'number' must lie between 0 and 1 for 'accuracy'; got 99.0",
        ),
        ("goal={ends_run: true}", "'goal': 'ends_run' must come with a 'number'; got none"),
        ("optimizer.learning_rate=1e40", "'optimizer.*learning_rate' .*less than or equal to"),
        (f"student={HF}", "'student.kind' must be 'mlp' for the task 'parity'; got 'hf'"),
        (
            "strategies.a/b={curriculum: {kind: one_shot}}",
            "'strategies.a/b' .*made of letters, digits",
        ),
        ("strategies={'..': {curriculum: {kind: one_shot}}}", "made of letters, digits"),
    ],
)
def test_a_mistake_is_told_with_its_path(
    make_spec: MakeSpec, assignment: str, sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        make_spec(assignment)


def test_text_is_not_for_networks_without_positions(make_spec: MakeSpec) -> None:
    with pytest.raises(
        SpecError, match=r"'teacher.model.kind' must be 'hf' or 'pretrained' .*'text'; got 'mlp'"
    ):
        make_spec(*TEXT)


def test_the_teachers_checkpoints_are_equally_spaced(make_spec: MakeSpec) -> None:
    spec = make_spec("teacher.total=100 steps", "teacher.checkpoints=4")
    assert spec.trajectory_steps() == (25, 50, 75, 100)


def test_a_teacher_has_no_more_checkpoints_than_steps(make_spec: MakeSpec) -> None:
    spec = make_spec("teacher.total=3 steps", "teacher.checkpoints=5", "budget=9 steps")
    assert spec.trajectory_steps() == (1, 2, 3)


@pytest.mark.parametrize(
    ("total", "steps"), [("64 examples", 7), ("640 tokens", 2), ("641 tokens", 3)]
)
def test_the_teachers_length_is_counted_in_its_own_unit(
    make_spec: MakeSpec, total: str, steps: int
) -> None:
    # 10 windows of 32 tokens a step.
    teacher = f"teacher={{model: {HF}, total: {total}}}"
    assert make_spec(*TEXT, teacher).teacher_steps() == steps


def test_a_pretrained_teacher_is_not_trained(make_spec: MakeSpec) -> None:
    spec = make_spec(*TEXT, PRETRAINED % "a, b")
    assert spec.teacher_steps() == 0
    assert spec.trajectory_steps() == (1, 2)


@pytest.mark.parametrize(
    ("field", "got"),
    [("optimizer: {kind: sgd, learning_rate: 1}", "'sgd'"), ("checkpoints: 7", "7")],
)
def test_a_pretrained_teacher_takes_nothing_that_only_training_heeds(
    make_spec: MakeSpec, field: str, got: str
) -> None:
    name = field.partition(":")[0]
    with pytest.raises(SpecError, match=rf"'teacher': '{name}' must be left out .*; got {got}"):
        make_spec(*TEXT, f"teacher={{model: {{kind: pretrained, path: a}}, {field}}}")


@pytest.mark.parametrize("kind", ["text", "pcfg"])
@pytest.mark.parametrize("path", ["teacher.model", "student"])
def test_the_next_token_is_not_for_models_that_see_it(
    make_spec: MakeSpec, path: str, kind: str
) -> None:
    causal = "{kind: hf, model_type: gpt2, head: causal_lm}"
    sets = [
        f"task={{kind: {kind}, objective: next_token}}",
        f"teacher={{model: {causal}, total: 100 steps}}",
        f"student={causal}",
    ]
    assert make_spec(*sets).student.head == "causal_lm"  # type: ignore[union-attr]
    with pytest.raises(SpecError, match=rf"'{path}.head' must be 'causal_lm' to predict the next"):
        make_spec(*sets, f"{path}.head=masked_lm")


def test_folders_of_a_trainer_tell_their_steps(make_spec: MakeSpec) -> None:
    spec = make_spec(*TEXT, PRETRAINED % "x/checkpoint-500, x/checkpoint-1000")
    assert spec.trajectory_steps() == (500, 1000)


def test_folders_are_put_in_the_order_of_their_steps(make_spec: MakeSpec) -> None:
    spec = make_spec(*TEXT, PRETRAINED % "x/checkpoint-10, x/checkpoint-9")
    assert spec.trajectory_steps() == (9, 10)


def test_two_folders_of_one_step_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="'teacher': 'folders' must "):
        make_spec(*TEXT, PRETRAINED % "x/checkpoint-9, y/checkpoint-9")


def test_a_strategy_may_bring_its_own_optimizer(make_spec: MakeSpec) -> None:
    spec = make_spec("strategies.one_shot.optimizer={kind: sgd, learning_rate: 1.0}")
    own = spec.strategies["one_shot"].optimizer
    assert own is not None
    assert own.learning_rate == 1.0
    assert spec.strategies["progressive"].optimizer is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            ("strategies={}", "seeds=null"),
            r"'share_teacher' needs 'strategies', for 'curricle compare'; got none",
        ),
        (
            ("budget=5 seconds",),
            r"'share_teacher=true' cannot be used with a budget of 5 seconds: .*; remove one of",
        ),
    ],
)
def test_a_shared_teacher_needs_students_and_a_budget_that_each_has_for_itself(
    make_spec: MakeSpec, fields: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        make_spec("share_teacher=true", *fields)


def test_a_field_that_a_command_needs_is_given() -> None:
    total = Duration(number=3)
    assert require_field(total, "budget", "distill") is total


def test_a_missing_field_is_told_with_its_command() -> None:
    with pytest.raises(SpecError, match="'budget' must be in the spec for 'curricle distill'"):
        require_field(None, "budget", "distill")


def test_a_spec_without_a_student_can_still_teach(make_spec: MakeSpec) -> None:
    bare: dict[str, Any] = plain(make_spec())
    for name in ("student", "curriculum", "strategies", "seeds", "budget"):
        del bare[name]
    assert parse(RunSpec, bare).student is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ((), r"'batch_students' needs 'data_seed': students of one strategy"),
        (
            ("data_seed=0", "engine.max_grad_norm=1.0"),
            r"'batch_students=true' cannot be used with 'engine.max_grad_norm=1.0': ",
        ),
        (
            ("data_seed=0", "engine.gradient_accumulation_steps=2"),
            r"'batch_students=true' cannot be used with 'engine.gradient_accumulation_steps=2': ",
        ),
    ],
)
def test_students_that_could_not_be_batched_are_refused(
    make_spec: MakeSpec, fields: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        make_spec("batch_students=true", *fields)


@pytest.mark.parametrize("field", ["output_dir", "cache_dir", "targets"])
def test_folders_are_one_line(make_spec: MakeSpec, field: str) -> None:
    with pytest.raises(SpecError, match="must be one line of printable characters"):
        make_spec(f'{field}="a\\e[31m"')


def test_a_strategy_has_a_short_name(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="at most 100 characters"):
        make_spec(f"strategies.{'a' * 101}.curriculum.kind=one_shot")


def test_a_strategy_in_the_form_of_python_is_refused_with_that_of_a_spec(
    make_spec: MakeSpec,
) -> None:
    with pytest.raises(SpecError, match=r"as \{curriculum: \{kind: from_labels\}\}; got"):
        make_spec("strategies.labels={kind: from_labels}")
