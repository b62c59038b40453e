"""The comparison for models of one's own: what it trains, equalizes, writes and refuses."""

import inspect
import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.models.mlp import MLP
from curricle.models.wrapping import tapped
from curricle.records import EndRecord, Record, RunRecord, read_records
from curricle.reports.run_folders import load_runs
from curricle.runs.compare import Comparison, compare
from curricle.runs.report import summarized
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from tests.parts import INPUTS, parity

pytestmark = pytest.mark.usefixtures("undrawn")
CPU = TrainingSettings(device="cpu")


def small(_seed: int = 0) -> MLP:
    """Return a student whose weights come from torch's generators."""
    return MLP(INPUTS, (5,), 2)


def data_of(seed: int) -> Stream:
    return parity(seed=seed)


def compared(**parts: Any) -> Comparison:
    """Return a small comparison; the shape checks of the tests would refuse wrong kinds first."""
    with seeding.scoped(1, "model"):
        teacher = MLP(INPUTS, (16,), 2)
    defaults: dict[str, Any] = {
        "student": small,
        "teacher": teacher,
        "data": parity(),
        "evaluation": [parity(purpose="evaluation").batch(step) for step in range(2)],
        "budget": "12 steps",
        "strategies": ["one_shot", "extraction"],
        "seeds": (0, 1),
        "settings": CPU,
    }
    result: Comparison = inspect.unwrap(compare)(**(defaults | parts))
    return result


def test_a_number_of_seeds_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'seeds' must be a sequence .*seeds=\(0,\).*; got 1$"):
        compared(seeds=1)


def test_held_out_data_may_be_a_loader() -> None:
    batch = parity(purpose="evaluation").batch(0)
    assert batch.labels is not None
    pairs = list(zip(batch.leading, batch.labels, strict=True))
    loader: DataLoader[Any] = DataLoader(pairs, batch_size=4)  # type: ignore[arg-type]
    by_loader = compared(seeds=(0,), evaluation=loader)
    by_batch = compared(seeds=(0,), evaluation=[batch])
    finals = [
        {name: method.final.mean for name, method in result.summary.methods.items()}
        for result in (by_loader, by_batch)
    ]
    assert finals[0] == finals[1]


def test_each_run_has_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    compared(seeds=(0,))
    for name in ("one_shot seed 0", "extraction seed 0"):
        assert name in terminal.getvalue()


def test_every_strategy_is_trained_with_every_seed() -> None:
    result = compared()
    assert set(result.students) == {
        (name, seed) for name in ("one_shot", "extraction") for seed in (0, 1)
    }
    assert set(result.summary.methods) == {"one_shot", "extraction"}
    assert all(len(method.seeds) == 2 for method in result.summary.methods.values())
    assert result.report is None


def test_strategies_of_a_seed_begin_with_the_same_weights_and_seeds_do_not() -> None:
    built = []

    def student(seed: int) -> MLP:
        model = small()
        built.append((seed, model.head.weight.detach().clone()))
        return model

    compared(student=student)
    first = dict(reversed(built))
    assert all(torch.equal(weight, first[seed]) for seed, weight in built)
    assert not torch.equal(first[0], first[1])


def test_a_module_is_copied_and_left_as_it_was() -> None:
    with seeding.scoped(0, "model"):
        student = small()
    before = student.head.weight.detach().clone()
    result = compared(student=student)
    assert torch.equal(student.head.weight, before)
    assert all(trained is not student for trained in result.students.values())
    assert not torch.equal(result.students["one_shot", 0].state_dict()["head.weight"], before)


def test_a_model_with_known_taps_is_copied() -> None:
    with seeding.scoped(0, "model"):
        student = tapped(small())
    result = compared(student=student, seeds=(0,), strategies=["one_shot"])
    assert result.students["one_shot", 0] is not student.module


def test_a_budget_of_flops_pays_for_more_steps_of_cheap_stages(tmp_path: Path) -> None:
    def deep(_seed: int) -> MLP:
        return MLP(INPUTS, (8, 64, 64), 2)

    compared(student=deep, budget="3M flops", seeds=(0,), output_dir=tmp_path / "run")
    steps, flops = {}, {}
    for run in load_runs([tmp_path / "run"]):
        stages = run.opening.stages
        steps[run.method] = sum(stage.steps for stage in stages)
        flops[run.method] = sum(
            stage.steps * (stage.student_flops + stage.teacher_flops) for stage in stages
        )
    assert steps["extraction"] > steps["one_shot"]
    assert all(2.5e6 < cost <= 3e6 for cost in flops.values())


def test_a_shared_teacher_gives_the_same_students() -> None:
    apart, shared = compared(data=data_of), compared(data=data_of, share_teacher=True)
    for run, student in apart.students.items():
        for name, weight in student.state_dict().items():
            assert torch.equal(weight, shared.students[run].state_dict()[name])


def test_strategies_take_arguments_and_functions() -> None:
    result = compared(
        strategies={
            "half": {"kind": "extraction", "layer_fraction": 0.5},
            "labels": partial(curricle.from_labels, name="labels"),
        },
        seeds=(0,),
    )
    assert set(result.summary.methods) == {"half", "labels"}


def test_the_folder_holds_runs_and_a_report_that_knows_target_and_budget(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = compared(output_dir=folder, goal="one_shot", better="higher")
    assert result.report == folder / "report.html"
    assert "extraction" in (folder / "report.html").read_text(encoding="utf-8")
    again = summarized([folder])[1]
    assert again == result.summary
    assert again.goal_of == "one_shot"
    assert again.budget == {"number": 12.0, "unit": "steps"}
    records = read_records(folder / "students" / "extraction" / "seed-1" / "records.jsonl")
    first, *_, last = records
    assert isinstance(first, RunRecord)
    assert isinstance(last, EndRecord)


def test_a_comparison_goes_on_only_from_a_folder() -> None:
    with pytest.raises(BindError, match=r"^'resume' must be False without 'output_dir'"):
        compared(resume=True)


def test_a_finished_comparison_is_resumed_without_training(tmp_path: Path) -> None:
    first = compared(output_dir=tmp_path / "run")
    seen: list[tuple[str, int]] = []

    def watch(name: str, seed: int, record: Record) -> None:
        if not isinstance(record, RunRecord | EndRecord):
            seen.append((name, seed))

    again = compared(output_dir=tmp_path / "run", resume=True, watch=watch)
    assert not seen
    for run, student in first.students.items():
        weights = again.students[run].state_dict()
        assert all(
            torch.equal(weight, weights[name]) for name, weight in student.state_dict().items()
        )


def test_every_record_comes_with_strategy_and_seed() -> None:
    ends: list[tuple[str, int]] = []

    def watch(name: str, seed: int, record: Record) -> None:
        if isinstance(record, EndRecord):
            ends.append((name, seed))

    compared(watch=watch)
    assert ends == [("one_shot", 0), ("extraction", 0), ("one_shot", 1), ("extraction", 1)]


def test_the_text_holds_the_table_and_the_verdict() -> None:
    text = str(compared())
    assert "| one_shot" in text
    assert "| extraction" in text
    assert text.splitlines()[-1]


@pytest.mark.parametrize(("every", "is_noted"), [(12, True), (11, False)])
def test_a_goal_that_is_noticed_at_the_end_alone_is_noted(every: int, *, is_noted: bool) -> None:
    settings = TrainingSettings(device="cpu", eval_every=every)
    summary = compared(seeds=(0,), goal=0.5, settings=settings).summary
    notes = [note for note in summary.notes if note.startswith("goal: ")]
    sentence = (
        "goal: the metric is evaluated at the end alone, since 'eval_every' is 12 and the run has "
        "12 steps; a smaller 'eval_every' shows when the goal is reached"
    )
    assert notes == ([sentence] if is_noted else [])
    without = compared(seeds=(0,), settings=settings).summary
    assert not [note for note in without.notes if note.startswith("goal: ")]


def test_a_mistake_in_the_last_strategy_shows_before_the_first_is_trained() -> None:
    trained: list[str] = []
    with pytest.raises(BindError, match=r"'wrong': .*tap"):
        compared(
            strategies={
                "one_shot": {"kind": "one_shot"},
                "wrong": {"kind": "extraction", "pairs": [{"student": 7, "teacher": 1}]},
            },
            watch=lambda name, _seed, _record: trained.append(name),
        )
    assert not trained


@pytest.mark.parametrize(
    ("parts", "kind", "sentence"),
    [
        ({"seeds": ()}, SpecError, r"'seeds' must be different numbers, at least one; got \[\]"),
        ({"seeds": (1, 1)}, SpecError, r"'seeds' must be different .* got \[1, 1\]"),
        ({"strategies": []}, SpecError, "'strategies' must be names such as"),
        ({"strategies": "one_shot"}, SpecError, "'strategies' must be names .* got 'one_shot'"),
        ({"strategies": ["one_shto"]}, SpecError, "'one_shto' is not a strategy.*'one_shot'"),
        ({"strategies": {"a/b": {"kind": "one_shot"}}}, SpecError, "names of folders; got 'a/b'"),
        (
            {"strategies": {"fixed": curricle.one_shot(total="3 steps")}},
            SpecError,
            "'fixed' to .* got 'Curriculum', whose length no budget can set",
        ),
        ({"budget": "12 stpes"}, SpecError, "stpes"),
        (
            {"student": lambda: None},
            BindError,
            "'student' must be a module or a function from a seed",
        ),
        ({"goal": "labels"}, SpecError, "'goal' must be a number or one of the strategies"),
        ({"student": "bert"}, BindError, "'student' must be a torch.nn.Module"),
        ({"teacher": "bert"}, BindError, "'teacher' must be a torch.nn.Module"),
        (
            {"data": 3},
            BindError,
            "'data' must be a DataLoader, a stream or a function from a seed to a stream",
        ),
        ({"evaluation": 3}, BindError, "'evaluation' must be a sequence of curricle.Batch"),
    ],
)
def test_wrong_arguments_are_refused(parts: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        compared(**parts)


def test_a_folder_with_another_comparison_is_refused(tmp_path: Path) -> None:
    compared(output_dir=tmp_path / "run", seeds=(0,))
    with pytest.raises(CheckpointError, match="must not hold a comparison already; 'resume=True'"):
        compared(output_dir=tmp_path / "run", seeds=(0,))
    with pytest.raises(CheckpointError, match="must hold the metric, goal and budget of this"):
        compared(output_dir=tmp_path / "run", seeds=(0,), budget="13 steps", resume=True)


def test_evaluation_and_optimizer_are_those_of_the_call() -> None:
    result = compared(
        evaluation=lambda _model: {"score": 0.25},
        metric="score",
        better="higher",
        optimizer=SGD(learning_rate=0.1),
        seeds=(0,),
    )
    assert result.summary.metric == "score"
    assert {method.final.mean for method in result.summary.methods.values()} == {0.25}


def test_held_out_batches_may_be_given_as_batches() -> None:
    batch = parity(purpose="evaluation").batch(0)
    assert isinstance(batch, Batch)
    assert compared(evaluation=[batch], seeds=(0,)).summary.metric == "accuracy"


@pytest.mark.parametrize(
    ("budget", "length", "lengths"),
    [
        ("20 steps", "400 steps", "400 steps where the budget 20 steps stands for 20"),
        ("20 steps", "5 steps", "5 steps where the budget 20 steps stands for 20"),
        ("100k flops", "400 steps", r"400 steps where 'total' 1000000 steps \(\S+ flops of the"),
        ("1G flops", "1 steps", r"1 step where 'total' 1000000 steps \(\S+ flops of the budget"),
    ],
)
def test_a_function_that_ignores_its_total_is_refused(
    budget: str, length: str, lengths: str
) -> None:
    strategies = {
        "honest": {"kind": "one_shot"},
        "cheat": lambda total: curricle.one_shot(total=length),
    }
    message = rf"'cheat' to a curriculum as long as 'total'.*got {lengths}.*hand on 'total'"
    with pytest.raises(SpecError, match=message):
        compared(strategies=strategies, budget=budget, seeds=(0,))


@pytest.mark.parametrize("budget", ["20 steps", "333 examples"])
def test_a_function_may_round_lengths_and_end_by_a_rule(budget: str) -> None:
    def halves(total: curricle.Duration) -> curricle.Curriculum:
        rule = curricle.UntilPlateau(at_most=f"{total.number // 2} {total.unit}", window=1)
        return curricle.extraction(total=total, durations=(rule,))

    result = compared(strategies={"halves": halves}, budget=budget, seeds=(0,))
    assert set(result.summary.methods) == {"halves"}


def test_a_budget_may_be_given_in_epochs() -> None:
    batch = parity().batch(0)
    assert batch.labels is not None
    rows = TensorDataset(batch.leading, batch.labels)
    loader = DataLoader(rows, batch_size=2, shuffle=True, drop_last=True)
    result = compared(data=loader, budget="2 epochs", strategies=["one_shot"], seeds=(0,))
    (run,) = result.summary.methods["one_shot"].seeds
    assert run.usage["examples"] == 2 * batch.num_examples


def test_a_strategy_in_the_form_of_a_spec_is_refused_with_that_of_python() -> None:
    nested = {"labels": {"curriculum": {"kind": "from_labels"}}}
    with pytest.raises(SpecError, match=r"write \{'labels': \{'kind': 'from_labels'\}\}"):
        compared(strategies=nested)


def test_the_teacher_is_measured_on_the_held_out_data_of_its_students() -> None:
    """Against the share of its right answers on the held-out batches, counted by hand."""
    with seeding.scoped(3, "model"):
        teacher = MLP(INPUTS, (16,), 2)
    held_out = [parity(purpose="evaluation").batch(step) for step in range(2)]
    summary = compared(teacher=teacher, evaluation=held_out, seeds=(0,)).summary
    right = [(teacher(batch.leading).argmax(-1) == batch.labels).float() for batch in held_out]
    assert summary.teacher_final == pytest.approx(float(torch.cat(right).mean()))


def test_a_teacher_is_not_measured_by_a_function_of_the_caller() -> None:
    calls: list[object] = []

    def judge(model: Any) -> dict[str, float]:
        calls.append(model.module)
        return {"accuracy": 0.5}

    with seeding.scoped(3, "model"):
        teacher = MLP(INPUTS, (16,), 2)
    summary = compared(teacher=teacher, evaluation=judge, seeds=(0,)).summary
    assert summary.teacher_final is None
    assert teacher not in calls
