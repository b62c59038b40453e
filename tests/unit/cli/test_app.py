"""The command line: what it prints, with which code it ends, what it calls itself."""

import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from curricle.cli import app as cli
from curricle.errors import CheckpointError, SpecError
from curricle.figure_points import read_recipe, usual_folder
from curricle.runs.folder import Origin
from curricle.training.setup.interrupts import Interrupted
from tests.parts import name_lost_processes
from tests.runs import tiny_comparison


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["curricle", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_help_ends_with_zero(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    assert "curriculum" in capsys.readouterr().out


def test_a_command_that_does_not_exist_ends_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "tech") == 2
    assert "tech" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [SpecError("'a' must be b; got c"), CheckpointError("'a' is\n b")]
)
def test_a_users_mistake_is_one_line_and_ends_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr(cli, "_compare", failing(error))
    assert run(monkeypatch, "demo") == 2
    assert capsys.readouterr().err == f"curricle: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize(
    ("sets", "remedy"),
    [
        (
            ["--set", "engine.save_every=9"],
            "'curricle resume runs/demo' keeps finished runs and restarts the others, since they",
        ),
        ([], "'curricle resume runs/demo' keeps finished runs and restarts the others, since"),
    ],
)
def test_an_interrupt_tells_how_to_go_on_and_from_where(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    sets: list[str],
    remedy: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_start", lambda *_: None)
    monkeypatch.setattr(cli, "_teach", failing(KeyboardInterrupt()))
    assert run(monkeypatch, "demo", *sets) == 130
    assert capsys.readouterr().err.startswith(f"curricle: stopped; {remedy}")


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"curricle {project['version']}\n"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_compare", failing(ZeroDivisionError("ours")))
    monkeypatch.setattr(sys, "argv", ["curricle", "demo"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.main()


def test_every_verb_has_help() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__
        shown = CliRunner().invoke(cli.app, [name, "--help"])
        assert shown.exit_code == 0
        assert "Raises" not in shown.output


def test_the_line_to_run_it_again_can_be_pasted() -> None:
    line = cli._line("compare", Path("a b.yaml"), ["budget=150 steps", "seeds=[0]"])
    assert line == "curricle compare 'a b.yaml' --set 'budget=150 steps' --set 'seeds=[0]'"


def test_an_interrupted_recipe_is_gone_on_with_by_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curricle_papers.recipes.running.teach", failing(KeyboardInterrupt()))
    assert run(monkeypatch, "reproduce", "parity-mlp", "--scale", "smoke") == 130
    told = capsys.readouterr().err
    assert told.startswith("curricle: stopped; 'curricle reproduce parity-mlp --scale smoke' keeps")


def test_panels_of_a_recipe_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curricle_papers.recipes.running.measure", failing(KeyboardInterrupt()))
    run(monkeypatch, "reproduce", "methods", "--panels", "digits-mlp, parity-mlp")
    record = read_recipe(usual_folder("methods", "small"))
    assert [panel.name for panel in record.panels] == ["parity-mlp", "digits-mlp"]


def signaling(number: int) -> Callable[..., None]:
    return lambda *_, **__: signal.raise_signal(number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_a_run_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_start", lambda *_: None)
    monkeypatch.setattr(cli, "_teach", signaling(number))
    assert run(monkeypatch, "demo") == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"curricle: stopped by {number.name}; 'curricle resume runs/demo'")
    assert printed.count("\n") == 1
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("number", "code", "by"), [(signal.SIGTERM, 143, " by SIGTERM"), (signal.SIGINT, 130, "")]
)
def test_a_signal_before_a_run_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    by: str,
) -> None:
    monkeypatch.setattr(cli, "_compare", signaling(number))
    assert run(monkeypatch, "demo") == code
    assert capsys.readouterr().err == f"curricle: stopped{by}; the same command starts again\n"


def test_a_run_that_saved_a_checkpoint_goes_on_from_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_start", lambda *_: None)
    saved = Interrupted(signal.SIGTERM, tmp_path / "step-3")
    monkeypatch.setattr(cli, "_teach", failing(saved))
    assert run(monkeypatch, "demo") == 143
    assert "resumes from the newest checkpoint" in capsys.readouterr().err


def test_a_process_that_is_lost_before_the_training_is_named_and_gives_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_start", lambda *_: None)
    name_lost_processes(monkeypatch)
    monkeypatch.setattr(cli, "_teach", failing(RuntimeError("/gloo/: Connection closed by peer")))
    assert run(monkeypatch, "demo") == 2
    assert capsys.readouterr().err == "curricle: process 1 of 2 must answer\n"


@pytest.mark.parametrize("verb", ["demo", "resume"])
def test_a_launcher_of_several_processes_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    verb: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = demo_folder(tmp_path) if verb == "resume" else None
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(monkeypatch, verb, *([str(folder)] if folder else [])) == 2
    assert "'WORLD_SIZE' must be 1" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_of_a_launcher_alone_sets_damaged_checkpoints_aside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int
) -> None:
    folder = demo_folder(tmp_path)
    events: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    origin = Origin(command="distill", title="", line="")
    monkeypatch.setattr("curricle.runs.folder.read_origin", lambda _: origin)
    placement = SimpleNamespace(wait=lambda: events.append("wait"))
    spec = SimpleNamespace(engine=SimpleNamespace(placement=placement))
    monkeypatch.setattr("curricle.cli.launching.divided", lambda _: spec)
    monkeypatch.setattr(cli, "_set_damaged_aside", lambda _: events.append("set aside"))
    monkeypatch.setattr(cli, "_go_on", lambda *_: events.append("go on"))
    assert run(monkeypatch, "resume", str(folder), "--fallback") == 0
    assert events == [*["set aside"] * (rank == 0), "wait", "go on"]


@pytest.mark.integration
@pytest.mark.usefixtures("undrawn")
def test_verbs_that_do_not_train_run_beside_a_launcher_of_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(yaml.safe_dump(tiny_comparison() | {"seeds": [0]}))
    assert run(monkeypatch, "compare", "spec.yaml") == 0
    capturing = ("--set", "targets.folder=targets")
    assert run(monkeypatch, "targets", "capture", "spec.yaml", *capturing) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    reading = (
        ("plan", "spec.yaml"),
        ("plan", "spec.yaml", "--set", "output_dir=new", "--set", "budget=1 seconds"),
        ("report", "run"),
        ("probe", "run"),
        ("targets", "info", "targets"),
        ("targets", "verify", "targets", "--spec", "spec.yaml", *capturing),
    )
    codes = {line: run(monkeypatch, *line) for line in reading}
    assert codes == dict.fromkeys(reading, 0)
    capsys.readouterr()
    for line in (
        ("teach", "spec.yaml", "--set", "output_dir=new"),
        ("distill", "spec.yaml", "--set", "output_dir=new"),
        ("compare", "spec.yaml", "--set", "output_dir=new"),
        ("resume", "run"),
        ("targets", "capture", "spec.yaml", "--set", "targets.folder=new"),
        ("reproduce", "parity-mlp", "--scale", "smoke", "--output-dir", "new"),
    ):
        assert run(monkeypatch, *line) == 2, line
        assert "'WORLD_SIZE' must be 1" in capsys.readouterr().err
    assert not Path("new").exists()


@pytest.mark.parametrize("name", ["parity", "text"])
@pytest.mark.parametrize("folder", ["", "a", "runs/b c"])
def test_a_demo_names_its_folder_to_be_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    monkeypatch.setattr(cli, "_compare", lambda *_, line, **__: lines.append(line))
    option = ("--output-dir", folder) if folder else ()
    assert run(monkeypatch, "demo", name, "--set", "seeds=[1]", *option) == 0
    assert shlex.split(lines[0]) == ["curricle", "demo", name, "--set", "seeds=[1]", *option]


def demo_folder(parent: Path) -> Path:
    """Return a run folder in which nothing has been trained yet."""
    from curricle.runs.demo import demo_spec
    from curricle.runs.folder import start

    folder = parent / "run"
    start(demo_spec("parity", str(folder)), Origin(command="compare", title="", line=""))
    return folder


def test_errors_do_not_change_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_compare", failing(SpecError("'a' is \x1b[31mred")))
    assert run(monkeypatch, "demo") == 2
    assert capsys.readouterr().err == "curricle: 'a' is \\x1b[31mred\n"


@pytest.mark.integration
def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "curricle", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("curricle ")


@pytest.mark.integration
def test_a_plan_of_several_processes_prints_one_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "console", Console(width=200))
    Path("spec.yaml").write_text(yaml.safe_dump(tiny_comparison()))
    assert run(monkeypatch, "plan", "spec.yaml", "--world-size", "2") == 0
    printed = capsys.readouterr().out
    assert "one_shot: one of 2 processes" in printed
    assert "sent a step" in printed
    # The notes of all runs once, after the tables.
    assert printed.count("memory: not counted are projections") == 1
    assert printed.count("data: ") == 1
    assert not Path("run").exists()
