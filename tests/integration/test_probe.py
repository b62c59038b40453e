"""`curricle probe` on finished runs of a parity, of a text and of a grammar."""

from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.records import read_probes

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
CopyRun = Callable[..., Path]
WRITTEN = ("probes.jsonl", "probes.png", "probes.svg")


def test_a_comparison_on_parity_is_looked_into(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    code, shown, told = command("probe", "run", "--examples", "256")
    assert (code, told) == (0, "")
    assert "correlations: mean correlation of the output" in shown
    assert "CKA of student tap ~ teacher tap; 256 held-out examples" in shown
    # Before it stands the comparison, if this test is the first that needs it.
    tables = shown[shown.index("correlations: mean") :]
    assert tables.count("progressive") == 3
    assert [line for line in shown.splitlines() if line.startswith("run/")] == [
        f"run/{name}" for name in WRITTEN
    ]
    assert all((tmp_path / "run" / name).stat().st_size for name in WRITTEN)
    found = read_probes(tmp_path / "run" / "probes.jsonl")
    assert set(found[0].numbers) == {
        f"{side}_{degree}_{kind}"
        for side in ("in", "out")
        for degree in (1, 2)
        for kind in ("mean", "max")
    }


def test_a_student_of_masked_text_is_looked_into(
    command: Command, text: Path, tmp_path: Path
) -> None:
    command("distill", text)
    code, shown, told = command("probe", "run", "--examples", "6")
    assert (code, told) == (0, "")
    assert "ngrams: median L1 distance" in shown
    found = read_probes(tmp_path / "run" / "probes.jsonl")
    assert [(one.probe, one.model, one.step) for one in found] == [
        ("ngrams", "teacher", 2),
        ("ranks", "teacher", 2),
        ("ngrams", "teacher", 4),
        ("ranks", "teacher", 4),
        ("ngrams", "extraction", 4),
        ("ranks", "extraction", 4),
        ("similarity", "extraction", 4),
    ]
    assert all(0 <= one.numbers["robust_3_median"] <= 2 for one in found[:5:2])
    # Tap 0 shows the embeddings of the same tokens, in both.
    assert set(found[6].numbers) == {"cka_0_0", "cka_0_1", "cka_1_0", "cka_1_1"}


def test_probes_are_trained_on_strings_of_a_grammar(
    command: Command, text: Path, tmp_path: Path
) -> None:
    strings = "task={kind: pcfg, start: 13, batch_size: 2, evaluation_batches: 1}"
    assert command("distill", text, "--set", strings)[0] == 0
    code, shown, told = command("probe", "run", "--examples", "6", "--train-probes")
    assert (code, told) == (0, "")
    words = " ".join(shown.split())
    assert "linear: accuracy of the labels read off each tap" in words
    assert "nonterminals: accuracy of the symbols above each token" in words
    found = read_probes(tmp_path / "run" / "probes.jsonl")
    assert [(one.probe, one.model, one.step) for one in found[-5:]] == [
        ("ngrams", "extraction", 4),
        ("linear", "extraction", 4),
        ("nonterminals", "extraction", 4),
        ("ranks", "extraction", 4),
        ("similarity", "extraction", 4),
    ]
    assert set(found[-4].numbers) == {"linear_0_accuracy", "linear_1_accuracy"}
    assert set(found[-3].numbers) == {
        "level_0_accuracy",
        "level_1_accuracy",
        "level_2_accuracy",
        "accuracy",
    }


def test_no_probe_is_trained_on_a_text(command: Command, text: Path) -> None:
    command("distill", text)
    code, shown, told = command("probe", "run", "--examples", "6", "--train-probes")
    assert (code, shown) == (2, "")
    assert "'--train-probes' must be left out but for parity and strings of a grammar" in told


def test_probing_and_reporting_do_not_disturb_each_other(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    summary = (tmp_path / "run" / "summary.json").read_bytes()
    command("probe", "run", "--examples", "64")
    assert command("report", "run")[0] == 0
    assert (tmp_path / "run" / "summary.json").read_bytes() == summary
    assert command("resume", "run")[0] == 0


def test_what_is_no_run_is_told_in_one_line(command: Command, tmp_path: Path) -> None:
    code, shown, told = command("probe", "nothing")
    assert (code, shown) == (2, "")
    assert told.startswith("curricle: 'nothing' must be a run folder")
    assert told.count("\n") == 1
