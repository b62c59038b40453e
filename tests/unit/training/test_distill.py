"""The one call that distils: what it takes, gives, writes and refuses."""

import inspect
import io
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import extraction, from_labels, one_shot, progressive
from curricle.data.batch import Batch
from curricle.data.dataloaders import stream
from curricle.errors import BindError, CheckpointError, DataError, LostProcessError
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.records import RECORDS, EndRecord, Record, RunRecord, read_records
from curricle.runs.target_capture import capture_targets
from curricle.teachers.store.codecs import Exact
from curricle.teachers.stored import open_targets
from curricle.teachers.trajectory import TrajectoryWriter, open_trajectory
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import Result, distill
from curricle.training.loop.evaluation import label_metrics
from curricle.training.loop.resuming import FINISHED
from curricle.training.setup.arguments import as_evaluation
from curricle.training.setup.divergence import SkipSteps
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from curricle.training.targets.capture import TargetCompression
from tests.parts import (
    CLASSES,
    INPUTS,
    Listed,
    drawn,
    embedder,
    name_lost_processes,
    parity,
    tokens,
)

TOTAL = Duration(number=12)
CPU = TrainingSettings(device="cpu")


def mlp(*widths: int, seed: int = 0) -> MLP:
    with seeding.scoped(seed, "model"):
        return MLP(INPUTS, widths, 2)


def held_out() -> list[Batch]:
    return [parity(purpose="evaluation").batch(step) for step in range(3)]


def distilled(**parts: Any) -> Result:
    defaults: dict[str, Any] = {
        "student": mlp(5),
        "teacher": mlp(16, seed=1),
        "curriculum": extraction(total=TOTAL),
        "data": parity(),
        "evaluation": held_out(),
        "settings": CPU,
    }
    return distill(**(defaults | parts))


def test_the_student_that_was_passed_is_trained_in_place() -> None:
    student = mlp(5)
    before = student.head.weight.clone()
    result = distilled(student=student)
    assert result.student is student
    assert not torch.equal(student.head.weight, before)


def test_metrics_are_those_of_the_trained_student() -> None:
    result = distilled()
    wanted = label_metrics(held_out())
    with torch.no_grad():
        assert result.metrics == wanted(tapped(result.student))


def test_the_result_says_what_was_spent() -> None:
    usage = distilled().usage
    assert (usage.steps, usage.examples) == (12, 96)
    assert usage.student_flops > 0
    assert usage.teacher_flops > 0


def test_a_result_shows_in_one_line_without_layers() -> None:
    result = distilled()
    count = sum(weight.numel() for weight in result.student.parameters())
    shown = repr(result)
    assert shown.startswith(f"Result(student=<MLP, {count:,} parameters>, metrics={{")
    assert f"steps={result.usage.steps}, seconds=" in shown
    # Nothing chose the weights.
    assert result.best_step is None
    assert "best_step" not in shown
    assert repr(replace(result, best_step=8, notes=("one",))).endswith("notes=1, best_step=8)")


def test_an_evaluator_of_ones_own_is_used() -> None:
    def evaluate(model: TappedModel) -> dict[str, float]:
        return {"accuracy": 0.25, "depth": float(model.depth)}

    assert distilled(evaluation=evaluate).metrics == {"accuracy": 0.25, "depth": 1.0}


def test_the_metric_of_ones_own_judges_the_run() -> None:
    seen: list[Record] = []
    distilled(evaluation=lambda _: {"f1": 0.5}, metric="f1", observers=[seen.append])
    assert isinstance(seen[0], RunRecord)
    assert seen[0].metric == "f1"


def test_a_declared_direction_of_the_metric_is_recorded() -> None:
    seen: list[Record] = []
    distilled(
        evaluation=lambda _: {"xyz": 0.5}, metric="xyz", better="lower", observers=[seen.append]
    )
    assert isinstance(seen[0], RunRecord)
    assert (seen[0].metric, seen[0].better) == ("xyz", "lower")


def test_a_metric_that_the_evaluation_does_not_give_is_told() -> None:
    with pytest.raises(
        BindError, match=r"'evaluation' returns, \['f1'\]; got 'accuracy'; metric='f1' judges by it"
    ):
        distilled(evaluation=lambda _: {"f1": 0.5})


def test_a_loader_is_read_as_a_stream_of_the_seed() -> None:
    loader = DataLoader(
        TensorDataset(drawn(24, INPUTS), torch.arange(24) % CLASSES), batch_size=8, shuffle=True
    )
    weights = [
        [
            *distilled(
                data=data, teacher=None, curriculum=from_labels(total=TOTAL), seed=3
            ).student.parameters()
        ]
        for data in (loader, stream(loader, seed=3))
    ]
    assert all(map(torch.equal, *weights))


def test_data_of_another_kind_are_refused() -> None:
    with pytest.raises(BindError, match=r"^'data' must be a stream or a DataLoader; got 'list'; "):
        # The shape checks of the tests would refuse it first.
        inspect.unwrap(distill)(mlp(5), None, from_labels(total=TOTAL), [1], evaluation=held_out())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "settings": (
        {"settings": {"prefetch": "batch"}},
        "curricle.TrainingSettings(...), as curricle.TrainingSettings(prefetch='batch'); got",
    ),
    "curriculum": (
        {"curriculum": "extraction"},
        "as curricle.extraction(total='10k steps'); got 'extraction'",
    ),
    "strategy": (
        {"curriculum": from_labels},
        "as curricle.extraction(total='10k steps'); got the function 'from_labels'",
    ),
    "optimizer": (
        {"optimizer": torch.optim.AdamW([torch.ones(1)])},
        "curricle.AdamW(learning_rate=...) or curricle.SGD(learning_rate=...); got 'torch.optim.",
    ),
    "optimizer class": (
        {"optimizer": torch.optim.AdamW},
        "curricle.SGD(learning_rate=...); got the class 'torch.optim.adamw.AdamW'",
    ),
    "stream": (
        {"evaluation": parity()},
        "'evaluation' must be a stream of a known length, its 'examples_per_epoch'",
    ),
    "batch": ({"evaluation": held_out()[0]}, "'evaluation' must be a sequence of curricle.Batch"),
    "items": ({"evaluation": [{"labels": 1}]}, "'evaluation' must hold batches, written curricle."),
}


@pytest.mark.parametrize(("parts", "told"), WRONG.values(), ids=WRONG)
def test_what_to_pass_instead_is_told(parts: dict[str, Any], told: str) -> None:
    usual = {"curriculum": from_labels(total=TOTAL), "evaluation": held_out(), "settings": CPU}
    with pytest.raises(BindError) as error:
        # The shape checks of the tests would refuse it first.
        inspect.unwrap(distill)(mlp(5), None, data=parity(), **(usual | parts))
    assert told in str(error.value)


def test_any_module_can_be_distilled_at_module_paths() -> None:
    with seeding.scoped(0, "model"):
        student = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, 2))
    pairs: Any = ({"student": "1", "teacher": "blocks.0"},)
    assert distilled(student=student, curriculum=extraction(total=TOTAL, pairs=pairs)).metrics


def test_a_tapped_model_is_taken_as_it_is() -> None:
    with seeding.scoped(0, "model"):
        module = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, 2))
    assert distilled(student=tapped(module, blocks=["1"])).student is module


def test_labels_need_no_teacher() -> None:
    result = distilled(teacher=None, curriculum=from_labels(total=TOTAL))
    assert result.usage.teacher_flops == 0


def test_a_teacher_that_is_needed_must_be_given() -> None:
    with pytest.raises(BindError, match=r"^'teacher' must be given to run 'extraction'; got none$"):
        distilled(teacher=None)


def test_a_trajectory_that_is_needed_must_be_given() -> None:
    with pytest.raises(BindError, match=r"^'trajectory' must be given to read teacher checkpoint"):
        distilled(curriculum=progressive(total=TOTAL, trajectory=(1, 2)))


def test_a_student_follows_a_trajectory(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path, [1, 2])
    for step in (1, 2):
        writer.save(mlp(16, seed=step), step)
    found = open_trajectory(tmp_path)
    curriculum = progressive(total=TOTAL, trajectory=found)
    assert distilled(curriculum=curriculum, trajectory=found).usage.steps == 12


def test_a_run_folder_holds_records_and_the_student(tmp_path: Path) -> None:
    result = distilled(output_dir=str(tmp_path / "run"))
    *_, end = read_records(tmp_path / "run" / RECORDS)
    assert isinstance(end, EndRecord)
    assert end.metrics == result.metrics
    assert (tmp_path / "run" / FINISHED).is_file()


def test_a_run_folder_is_not_used_twice(tmp_path: Path) -> None:
    distilled(output_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"must not hold a run already"):
        distilled(output_dir=tmp_path)


def test_resuming_a_complete_run_gives_the_same_student(tmp_path: Path) -> None:
    settings = TrainingSettings(device="cpu", save_every=5)
    first = distilled(output_dir=tmp_path, settings=settings)
    again = distilled(output_dir=tmp_path, settings=settings, resume=True, student=mlp(5, seed=9))
    torch.testing.assert_close(
        dict(again.student.state_dict()), dict(first.student.state_dict()), rtol=0, atol=0
    )


def test_observers_are_told() -> None:
    seen: list[Record] = []
    distilled(observers=[seen.append])
    assert [record.kind for record in seen] == ["run", "stage", "stage", "end"]


@pytest.mark.parametrize(
    ("observers", "sentence"),
    [
        (
            print,
            (
                r"must be a sequence of functions that take a record, as observers=\[print\]; got "
                r"'builtin_function_or_method'$"
            ),
        ),
        ([3], r"must hold functions that take a record; got 'int'$"),
        ("wandb", r"must hold functions that take a record; got 'w'$"),
    ],
    ids=["function", "number", "name"],
)
def test_observers_of_another_kind_are_refused(observers: Any, sentence: str) -> None:
    usual: dict[str, Any] = {"data": parity(), "evaluation": held_out(), "settings": CPU}
    with pytest.raises(BindError, match=f"^'observers' {sentence}"):
        # The shape checks of the tests would refuse them first.
        inspect.unwrap(distill)(
            mlp(5), None, from_labels(total=TOTAL), observers=observers, **usual
        )


@pytest.mark.parametrize("resume", [True, "fallback"])
def test_a_run_goes_on_only_from_a_folder(resume: Any) -> None:
    sentence = (
        f"^'resume' must be False without 'output_dir', the folder with the checkpoints to go on "
        f"from; got {resume!r}$"
    )
    with pytest.raises(BindError, match=sentence):
        distilled(resume=resume)


def test_a_note_says_that_checkpoints_need_a_folder(tmp_path: Path) -> None:
    settings = TrainingSettings(device="cpu", save_every=5)
    note = "'save_every' 5 has no effect without 'output_dir': no checkpoint is written"
    assert note in distilled(settings=settings).notes
    assert note not in distilled(settings=settings, output_dir=tmp_path / "run").notes


@pytest.mark.parametrize(("progress", "is_shown"), [(True, True), (False, False)])
def test_progress_is_shown_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, *, progress: bool, is_shown: bool
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    distilled(progress=progress)
    assert ("extraction" in terminal.getvalue() and "12/12" in terminal.getvalue()) is is_shown


def test_a_loader_of_held_out_data_is_read_whole_and_draws_nothing() -> None:
    batch = parity(purpose="evaluation").batch(0)
    assert batch.labels is not None
    pairs = TensorDataset(batch.leading, batch.labels)
    # The last batch is smaller than the others.
    loader = DataLoader(pairs, batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    metrics = distilled(evaluation=loader, data=DataLoader(pairs, batch_size=4)).metrics
    assert torch.equal(torch.get_rng_state(), before)
    whole = distilled(evaluation=[batch], data=DataLoader(pairs, batch_size=4)).metrics
    assert metrics == pytest.approx(whole)


def test_labels_of_held_out_tokens_are_shifted_like_those_of_training() -> None:
    ids = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(0))
    loader: DataLoader[Any] = DataLoader(
        [{"input_ids": row, "labels": row} for row in ids],  # type: ignore[arg-type]
        batch_size=2,
    )
    training = stream(loader, next_token=True)
    batches = as_evaluation(loader, training)
    assert isinstance(batches, list)
    labels = training.batch(1).labels
    assert labels is not None
    assert batches[1].labels is not None
    assert torch.equal(batches[1].labels, labels)


def test_an_empty_loader_is_no_evaluation() -> None:
    empty: DataLoader[Any] = DataLoader([], batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(BindError, match="at least one batch; got an empty DataLoader"):
        distilled(evaluation=empty)


def test_a_missing_evaluation_is_named() -> None:
    sentence = (
        r"^'distill' must be called with 'evaluation', held-out data with labels: a DataLoader, a "
        r"stream or a list of curricle\.Batch\(inputs=x, labels=y\); help"
        r"\(curricle\.distill\) lists its arguments$"
    )
    with pytest.raises(BindError, match=sentence):
        distill(mlp(5), mlp(16), extraction(total=TOTAL), parity())  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("start", r"belongs to the strategy, as curricle\.extraction\(\.\.\., init=\.\.\.\)"),
        ("pairs", r"belongs to the strategy"),
        ("device", r"belongs to settings=curricle\.TrainingSettings\(device=\.\.\.\)"),
        ("evaluate_every", r"belongs to settings=curricle\.TrainingSettings\(eval_every="),
        ("learning_rate", r"belongs to optimizer=curricle\.AdamW\(learning_rate=\.\.\.\)"),
        ("observer", r"'observers'"),
    ],
)
def test_the_place_of_a_foreign_argument_is_named(name: str, hint: str) -> None:
    with pytest.raises(BindError, match=f"'{name}' is not an argument of 'distill'; .*{hint}"):
        distilled(**{name: 1})


def test_everything_follows_from_the_seed() -> None:
    def head(seed: int) -> torch.Tensor:
        student = distilled(seed=seed).student
        return student.get_parameter("head.weight")

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


@pytest.mark.parametrize("curriculum", [extraction(total="300 steps"), one_shot(total="300 steps")])
def test_a_student_comes_close_to_its_teacher(curriculum: Any) -> None:
    def gap(student: nn.Module) -> float:
        inputs = parity(purpose="evaluation").batch(0).inputs
        with torch.no_grad():
            target, found = (model(inputs).log_softmax(-1) for model in (teacher, student))
        return float((target.exp() * (target - found)).sum(-1).mean())

    teacher, student = mlp(16, seed=1), mlp(12)
    before = gap(student)
    fast = SGD(learning_rate=0.5, momentum=0.9)
    result = distilled(student=student, teacher=teacher, curriculum=curriculum, optimizer=fast)
    assert gap(result.student) < before / 10


def test_nobody_teaches_itself() -> None:
    model = mlp(5)
    with pytest.raises(
        BindError,
        match=r"^'student' and 'teacher' must be different modules; got the same module for both$",
    ):
        distilled(student=model, teacher=model)


def test_best_weights_by_a_metric_without_direction_are_refused_before_binding() -> None:
    settings = TrainingSettings(device="cpu", eval_every=2, keep_best="gain")
    with seeding.scoped(0, "models"):
        student = nn.Linear(3, 2)
    # Binding would refuse a student of other inputs than the data.
    with pytest.raises(BindError, match="'keep_best' must have a metric of known direction"):
        distilled(student=student, settings=settings)


def test_stored_targets_are_not_for_compiled_steps(tmp_path: Path) -> None:
    curriculum = one_shot(total=TOTAL)
    capture_targets(
        mlp(5),
        mlp(16, seed=1),
        curriculum,
        parity(),
        folder=tmp_path / "store",
        compression=TargetCompression(hidden=Exact(), logits=Exact()),
        settings=CPU,
    )
    with pytest.raises(
        BindError, match=r"^'compiled_steps=2' cannot be used with stored targets: "
    ):
        distilled(
            curriculum=curriculum,
            teacher=open_targets(tmp_path / "store"),
            settings=TrainingSettings(device="cpu", compiled_steps=2),
        )


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (None, mlp(4), "'student' must be a torch.nn.Module, .*got None"),
        (
            mlp(4),
            "runs/teacher",
            (
                r"'teacher' must be a torch.nn.Module, .*got 'runs/teacher'; a folder or a name of "
                r"the Hub is loaded before the call, .*\.from_pretrained\('runs/teacher'\), and "
                r"curricle.open_targets opens a folder of stored targets as a teacher$"
            ),
        ),
        ("bert", mlp(4), r"'student' must .*got 'bert'; .*\.from_pretrained\('bert'\)$"),
    ],
    ids=["student", "teacher", "name"],
)
def test_what_is_no_model_is_called_by_its_argument(
    student: Any, teacher: Any, sentence: str
) -> None:
    with pytest.raises(BindError, match=sentence):
        inspect.unwrap(distill)(
            student,
            teacher,
            one_shot(total="1 steps"),
            parity(),
            evaluation=[parity().batch(0)],
        )


def test_a_student_around_its_teacher_is_refused() -> None:
    teacher = mlp(4)
    with pytest.raises(
        BindError, match=r"must not share memory.*'0.blocks.0.0.weight' of the stud"
    ):
        distill(
            nn.Sequential(teacher),
            teacher,
            one_shot(total="1 steps"),
            parity(),
            evaluation=[parity().batch(0)],
        )


@pytest.mark.parametrize("folder", ["", "a\0b", "x" * 300])
def test_a_run_folder_that_cannot_be_is_told(folder: str) -> None:
    with pytest.raises(CheckpointError, match=r"^'output_dir' must be a folder that can be writ"):
        distilled(output_dir=folder)


def test_a_run_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(CheckpointError, match=r"where the file '.*run' exists$"):
        distilled(output_dir=tmp_path / "run")


def interrupt(record: Record) -> None:
    if record.kind == "step" and record.usage.steps == 8:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("written", "every", "told"),
    [
        (False, None, "nothing was written, since 'output_dir' is None"),
        (True, None, "resume=True) starts anew, since no checkpoint was written yet"),
        (True, 5, "resume=True) resumes from the newest checkpoint"),
    ],
)
def test_an_interruption_says_what_a_second_call_would_do(
    tmp_path: Path, written: bool, every: int | None, told: str
) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        distilled(
            output_dir=tmp_path if written else None,
            settings=TrainingSettings(device="cpu", save_every=every, log_every=1),
            observers=[interrupt],
        )
    assert told in stopped.value.__notes__[0]


def test_an_interruption_at_the_end_says_that_the_run_is_finished(tmp_path: Path) -> None:
    def interrupt_at_the_end(record: Record) -> None:
        if record.kind == "end":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as stopped:
        distilled(output_dir=tmp_path, observers=[interrupt_at_the_end])
    assert "the run is finished, and curricle.distill(" in stopped.value.__notes__[0]
    assert distilled(output_dir=tmp_path, resume=True).usage.steps > 0


@pytest.mark.parametrize(("steps", "at_chance"), [(1, True), (300, False)])
def test_a_student_that_ends_at_chance_is_noted(steps: int, at_chance: bool) -> None:
    held_out = parity(1).batch(0)
    batch = Batch(inputs=held_out.inputs, labels=held_out.labels)
    stream = Listed(batch)
    with seeding.scoped(0, "models"):
        student = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 2))
    result = distill(
        student,
        None,
        from_labels(total=f"{steps} steps"),
        stream,
        evaluation=[batch],
        optimizer=SGD(learning_rate=0.5 if steps > 1 else 1e-9),
        settings=TrainingSettings(device="cpu"),
    )
    assert any("ends at chance" in note for note in result.notes) == at_chance


def test_a_teacher_at_chance_is_noted_before_training(caplog: pytest.LogCaptureFixture) -> None:
    batches = [parity(1).batch(step) for step in range(4)]
    labels = [batch.labels for batch in batches if batch.labels is not None]
    # Logits that are the labels themselves, and their opposite.
    for sign, is_noted in ((1.0, False), (-1.0, True)):
        marked = [
            Batch(
                inputs=torch.cat([batch.leading[:, :-1], label[:, None].float()], 1), labels=label
            )
            for batch, label in zip(batches, labels, strict=True)
        ]
        with seeding.scoped(0, "models"):
            student, teacher = nn.Linear(INPUTS, 2), nn.Linear(INPUTS, 2)
        with torch.no_grad():
            teacher.weight.zero_()
            teacher.bias.copy_(torch.tensor([0.5, 0.0]) * sign)
            teacher.weight[1, -1] = sign
        caplog.clear()
        result = distill(
            student,
            teacher,
            one_shot(total="2 steps"),
            Listed(*marked),
            evaluation=marked,
            settings=TrainingSettings(device="cpu"),
        )
        assert any("the teacher is at chance" in note for note in result.notes) == is_noted
        assert ("the teacher is at chance" in caplog.text) == is_noted


@pytest.mark.parametrize("reads", ["logits", "hidden"])
def test_a_teacher_is_judged_on_all_classes_and_only_by_logits_that_are_read(reads: str) -> None:
    # Sorted by class, as folders of classes are read.
    inputs = torch.randn(240, INPUTS, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(240) // 120
    sign = 1.0 if reads == "logits" else -1.0
    inputs[:, -1] = (labels * 2.0 - 1.0) * sign
    held_out = [
        Batch(inputs=inputs[start : start + 8], labels=labels[start : start + 8])
        for start in range(0, 240, 8)
    ]
    with seeding.scoped(0, "models"):
        student, inner = nn.Sequential(nn.Linear(INPUTS, 2)), nn.Linear(INPUTS, 2)
    teacher = nn.Sequential(inner)
    with torch.no_grad():
        inner.weight.zero_()
        inner.weight[1, -1] = 1.0
    pair = curricle.LayerPair(student="0", teacher="0")
    hidden = curricle.Stage(
        name="hidden",
        duration=curricle.Duration(number=2),
        objectives=(curricle.MatchHidden(pair=pair),),
    )
    curriculum = (
        one_shot(total="2 steps")
        if reads == "logits"
        else curricle.Curriculum(name="hidden", stages=(hidden,))
    )
    result = distill(
        student,
        teacher,
        curriculum,
        Listed(*held_out),
        evaluation=held_out,
        settings=TrainingSettings(device="cpu"),
    )
    assert not any("the teacher is at chance" in note for note in result.notes)


def test_an_id_without_a_row_in_the_held_out_data_is_refused_in_a_sentence() -> None:
    texts = tokens(selects=False)
    ids = cast("dict[str, Tensor]", texts.batch(0).inputs)["input_ids"].clone()
    ids[0, 0] = 99
    with pytest.raises(DataError, match=r"^'evaluation': 'input_ids' must lie between 0 and 10, "):
        distill(
            embedder(4, 0),
            embedder(6, 1),
            one_shot(total="2 steps"),
            texts,
            evaluation=[
                Batch(
                    inputs={"input_ids": ids}, labels=ids.flatten() % 3, selected=torch.arange(20)
                )
            ],
            settings=TrainingSettings(device="cpu"),
        )


def test_held_out_texts_longer_than_a_table_of_positions_are_refused_before_training() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids, self.places = nn.Embedding(5, 4), nn.Embedding(4, 4)
            self.head = nn.Linear(4, 5)

        def forward(self, input_ids: Tensor) -> Tensor:
            places = self.places(torch.arange(input_ids.shape[1]))
            logits: Tensor = self.head(self.ids(input_ids) + places)
            return logits

    def rows(length: int) -> Batch:
        ids = torch.arange(2 * length).view(2, length) % 5
        return Batch(
            inputs={"input_ids": ids},
            labels=ids.flatten().flip(0),
            selected=torch.arange(2 * length),
        )

    with seeding.scoped(0, "model"):
        student = Positioned()
    start = {name: weight.clone() for name, weight in student.state_dict().items()}
    sentence = (
        r"^'evaluation': 'input_ids' must have at most the 4 positions of the student's table "
        r"'places'; got 6; truncate them in the collate function; its forward pass failed with: "
    )
    with pytest.raises(DataError, match=sentence):
        distill(
            student,
            None,
            from_labels(total="2 steps"),
            Listed(rows(4)),
            evaluation=[rows(4), rows(6)],
            settings=CPU,
        )
    assert all(torch.equal(student.state_dict()[name], start[name]) for name in start)


def test_skipped_steps_are_in_the_notes_also_of_a_finished_run_that_is_read_again(
    tmp_path: Path,
) -> None:
    good = [parity().batch(step) for step in range(12)]
    bad = replace(good[3], inputs=good[3].leading * float("nan"))
    parts = {
        "data": Listed(*good[:3], bad, *good[4:]),
        "settings": TrainingSettings(device="cpu", on_divergence=SkipSteps()),
        "output_dir": tmp_path,
    }
    result = distilled(**parts)
    (note,) = [note for note in result.notes if "skipped" in note]
    assert note.startswith("1 step was skipped, since ")
    assert "'failed-steps' of the run folder" in note
    assert note in distilled(**parts, resume=True).notes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_models_are_bound_ends_with_its_exit_code_and_a_sentence(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def binding(*_: object, **__: object) -> BoundRun:
        signal.raise_signal(number)
        raise AssertionError("the signal must not let binding go on")

    monkeypatch.setattr("curricle.training.distill.bind", binding)
    with pytest.raises(SystemExit) as raised:
        distilled(output_dir=tmp_path)
    assert raised.value.code == 128 + number
    (sentence,) = caplog.messages
    assert sentence == (
        f"curricle: stopped by {number.name}; curricle.distill(..., output_dir={str(tmp_path)!r}, "
        f"resume=True) starts anew, since no checkpoint was written yet"
    )
    assert signal.getsignal(number) == signal.SIG_DFL


def test_processes_that_are_lost_while_models_are_bound_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def binding(*_: object, **__: object) -> BoundRun:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    name_lost_processes(monkeypatch)
    monkeypatch.setattr("curricle.training.distill.bind", binding)
    with pytest.raises(LostProcessError, match="process 1 of 2 must answer"):
        distilled()
