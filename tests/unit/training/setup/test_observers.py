"""The progress bar shows what the records say."""

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Progress

from curricle.records import (
    EndReason,
    EndRecord,
    EvaluationRecord,
    Record,
    RecoveryRecord,
    RunRecord,
    StageEndRecord,
    StagePlan,
    StageRecord,
    StepRecord,
    Usage,
)
from curricle.training.setup.observers import (
    NoteLine,
    PreparationBar,
    ProgressBar,
    new_progress,
    shown_progress,
)


def opening(*steps: int) -> RunRecord:
    words = {"teacher": "final", "taps": "logits", "objective": "-", "projection": "-"}
    costs = {"student_flops": 1, "teacher_flops": 1, "trained_parameters": 1, "memory_bytes": 1}
    plans = [
        StagePlan(name=str(place), widths="-", steps=one, **words, **costs)  # type: ignore[arg-type]
        for place, one in enumerate(steps)
    ]
    return RunRecord(
        method="extraction",
        seed=0,
        task="parity",
        metric="accuracy",
        batch_size=8,
        stages=tuple(plans),
        student_parameters=1,
        teacher_parameters=1,
        versions={},
        device="cpu",
    )


STAGE = StageRecord(stage="layer 1", usage=Usage(steps=0))
STEP = StepRecord(
    stage="layer 1", loss=0.123456, terms={}, learning_rate=0.1, usage=Usage(steps=20)
)
EVALUATION = EvaluationRecord(stage="layer 1", metrics={"accuracy": 0.5}, usage=Usage(steps=30))
END = EndRecord(metrics={"accuracy": 0.75, "nll": 0.6}, usage=Usage(steps=100))


@pytest.fixture
def progress() -> Progress:
    return new_progress(Console(file=io.StringIO(), width=120))


def shown(progress: Progress, *records: Record) -> tuple[float | None, float, str]:
    """Return total, completed and note after some records."""
    bar = ProgressBar(progress, "extraction seed 0")
    for record in records:
        bar(record)
    (task,) = progress.tasks
    return task.total, task.completed, task.fields["note"]


def test_a_run_of_which_nothing_is_told_has_no_bar(progress: Progress) -> None:
    ProgressBar(progress, "extraction seed 0")
    assert not progress.tasks


def test_a_run_that_ends_before_its_length_has_reached_its_target(progress: Progress) -> None:
    told = shown(progress, opening(100), STAGE, replace(END, usage=Usage(steps=30)))
    assert told == (30, 30, "layer 1  accuracy 0.750 nll 0.600  goal reached")


def test_the_length_is_that_of_all_stages(progress: Progress) -> None:
    assert shown(progress, opening(25, 75)) == (100, 0, "")


@pytest.mark.parametrize(
    ("record", "completed", "note"),
    [
        (STAGE, 0, "layer 1"),
        (STEP, 20, "layer 1  loss 0.1235"),
        (EVALUATION, 30, "layer 1  loss 0.1235  accuracy 0.500"),
        (END, 100, "layer 1  loss 0.1235  accuracy 0.750 nll 0.600"),
    ],
)
def test_each_record_adds_what_it_knows(
    progress: Progress, record: Record, completed: int, note: str
) -> None:
    everything: list[Record] = [STAGE, STEP, EVALUATION, END]
    told = everything[: everything.index(record) + 1]
    assert shown(progress, opening(100), *told) == (100, completed, note)


def test_several_runs_share_one_set_of_bars(progress: Progress) -> None:
    for name in ("a", "b"):
        ProgressBar(progress, name)(opening(10))
    assert [task.description for task in progress.tasks] == ["a", "b"]


def test_the_bar_is_drawn_with_name_and_note() -> None:
    file = io.StringIO()
    with new_progress(Console(file=file, width=120, force_terminal=True)) as progress:
        bar = ProgressBar(progress, "extraction seed 0")
        for record in (opening(100), STAGE, STEP):
            bar(record)
    assert "extraction seed 0" in file.getvalue()
    assert "loss 0.1235" in file.getvalue()


def test_a_note_is_told_once_for_all_runs_that_share_it() -> None:
    console = Console(file=io.StringIO(), width=200)
    tell = NoteLine(console)
    noted = replace(opening(5), notes=("checkpoint 7 lies inside",))
    for record in (
        opening(5),
        noted,
        STAGE,
        replace(noted, seed=1),
        replace(noted, notes=("one", "two")),
    ):
        tell(record)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == (
        "extraction: checkpoint 7 lies inside\nextraction: one\nextraction: two\n"
    )


def test_notes_of_a_comparison_keep_their_strategy() -> None:
    console = Console(file=io.StringIO(), width=200)
    line = NoteLine(console, is_comparison=True)
    shared = ("data: a label each", "3 frozen weights")
    for seed in range(2):
        line(replace(opening(5), notes=shared, seed=seed), "extraction")
    for seed in range(2):
        line(replace(opening(5), notes=(*shared, "goal: at the end"), seed=seed), "one_shot")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "data: a label each",
        "extraction: 3 frozen weights",
        "one_shot: 3 frozen weights",
        "one_shot: goal: at the end",
    ]


def test_a_note_of_a_single_run_begins_with_its_subject() -> None:
    console = Console(file=io.StringIO(), width=200)
    NoteLine(console)(replace(opening(5), notes=("goal: at the end", "data: a label each")))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "goal: at the end\ndata: a label each\n"


def test_a_note_begins_with_the_name_that_the_spec_gives() -> None:
    console = Console(file=io.StringIO(), width=200)
    NoteLine(console)(replace(opening(5), notes=("checkpoint 7 lies inside",)), "two-shot")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "two-shot: checkpoint 7 lies inside\n"


@pytest.mark.parametrize("name", ["a[red]b", "x[/bold]", "[link=x]y", ":smile:"])
def test_names_are_not_read_as_markup(name: str) -> None:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system=None)
    with new_progress(console) as progress:
        bar = ProgressBar(progress, name)
        for record in (opening(100), replace(STAGE, stage=name)):
            bar(record)
    NoteLine(console)(replace(opening(1), notes=("note",)), name)
    assert file.getvalue().count(name) >= 3


def test_escape_sequences_in_names_do_not_reach_the_terminal(progress: Progress) -> None:
    assert shown(progress, opening(100), replace(STAGE, stage="\x1b[2J"))[2] == r"\x1b[2J"


def test_preparation_is_shown_on_a_terminal_until_it_is_done() -> None:
    file = io.StringIO()
    bar = PreparationBar(Console(file=file, width=120, force_terminal=True))
    bar("tokenizing [train]", 1, 4)
    assert "tokenizing [train]" in file.getvalue()
    bar("tokenizing [train]", 4, 4)
    # The cursor is back and the line is gone.
    assert "\x1b[2K" in file.getvalue()


def test_preparation_is_silent_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    bar = PreparationBar(Console(file=file))
    bar("tokenizing", 1, 4)
    bar.close()
    assert not file.getvalue()


@pytest.mark.parametrize(("why", "word"), [("plateau", ""), ("goal", "  goal reached")])
def test_a_stage_that_its_rule_ends_shortens_the_bar(
    progress: Progress, why: EndReason, word: str
) -> None:
    end = StageEndRecord(stage="layer 1", planned=40, done=30, why=why, usage=Usage(steps=30))
    assert shown(progress, opening(40, 60), STAGE, end) == (90, 30, f"layer 1{word}")


def test_saved_steps_of_a_stage_left_out_lengthen_the_bar(progress: Progress) -> None:
    left_out = StageEndRecord(stage="layer 1", planned=40, done=0, why="explained", usage=Usage())
    step = replace(STEP, usage=Usage(steps=75))
    total, completed, _ = shown(progress, opening(40, 60), left_out, step)
    assert (total, completed) == (75, 75)


class Terminal(io.StringIO):
    """Text of a stream that is a terminal."""

    def isatty(self) -> bool:
        return True


RUN = (replace(opening(100), notes=("logits are the output",)), STAGE, STEP, EVALUATION, END)


def stderr_of_a_call(
    monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, *, is_wanted: bool
) -> str:
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", "80")
    with shown_progress(is_wanted=is_wanted) as new_observer:
        observe = new_observer("extraction")
        for record in RUN:
            observe(record)
    return stderr.getvalue()


def test_a_python_call_shows_a_bar_and_notes_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = stderr_of_a_call(monkeypatch, Terminal(), is_wanted=True)
    for part in ("extraction: logits are the output", "100/100", "loss 0.1235", "accuracy 0.750"):
        assert part in text


@pytest.mark.parametrize(
    ("stderr", "term", "is_wanted"),
    [(io.StringIO, "xterm", True), (Terminal, "dumb", True), (Terminal, "xterm", False)],
)
def test_a_python_call_shows_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch, stderr: type[io.StringIO], term: str, *, is_wanted: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    assert not stderr_of_a_call(monkeypatch, stderr(), is_wanted=is_wanted)


def test_output_into_a_file_stays_there_while_bars_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", file)
    with shown_progress(is_wanted=True) as new_observer:
        new_observer("extraction")(STEP)
        sys.stdout.write("a line of the caller\n")
    assert file.getvalue() == "a line of the caller\n"
    assert "a line of the caller" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("student", "name"), [("", "extraction"), ("layer seed 1", "layer seed 1")]
)
def test_a_student_that_ends_at_chance_is_named(student: str, name: str) -> None:
    console = Console(file=io.StringIO(), width=400)
    line = NoteLine(console)
    line(replace(opening(5), chance=0.8), student=student)
    line(replace(END, metrics={"accuracy": 0.75}), student=student)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith(f"{name}: the student ends at chance or below: ")


def test_a_failure_that_a_run_survives_is_shown() -> None:
    console = Console(file=io.StringIO(), width=400)
    record = RecoveryRecord(
        stage="logits", fault="'loss' is nan", action="skipped", usage=Usage(steps=7)
    )
    NoteLine(console)(record, student="small")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "small: step 7 (logits): skipped: 'loss' is nan\n"
