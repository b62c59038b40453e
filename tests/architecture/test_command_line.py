"""The verbs and options of the command line, frozen: a change here is a change for every user."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner

from curricle.cli import app as cli
from curricle.cli import targets as cli_targets
from curricle.errors import SpecError
from curricle.runs import spec

# Verb: arguments in order, then options.
FROZEN = {
    "demo": (["name"], ["--output-dir", "--set", "--jobs"]),
    "plan": (["spec"], ["--set", "--world-size"]),
    "teach": (["spec"], ["--set", "--nproc"]),
    "distill": (["spec"], ["--set", "--nproc"]),
    "reproduce": (
        ["name"],
        ["--scale", "--output-dir", "--set", "--panels", "--jobs", "--within", "--list"],
    ),
    "compare": (["spec"], ["--set", "--jobs", "--on", "--num-cpus", "--num-gpus"]),
    "resume": (["run"], ["--jobs", "--nproc", "--on", "--num-cpus", "--num-gpus", "--fallback"]),
    "report": (["runs"], ["--output"]),
    "probe": (["run"], ["--examples", "--train-probes", "--only"]),
    "evaluate": (
        ["run"],
        [
            *("--on", "--strategy", "--seed", "--metric", "--repetitions", "--blimp", "--lm-eval"),
            "--pairs",
            *("--fine-tune", "--test", "--seeds", "--epochs", "--learning-rate"),
            *("--all-students", "--jobs", "--json"),
        ],
    ),
    "export": (
        ["run"],
        ["--to", "--strategy", "--seed", "--layout", "--onnx", "--onnx-tolerance"],
    ),
    "trajectory": (["path"], []),
}
FROZEN_TARGETS = {
    "capture": (["spec"], ["--set", "--jobs", "--on", "--num-cpus", "--num-gpus"]),
    "verify": (["folder"], ["--spec", "--set"]),
    "info": (["folder"], []),
    "import": (["source", "folder"], ["--num-classes", "--temperature", "--missing"]),
}


def options(callback: Callable[..., object]) -> tuple[list[str], list[str]]:
    """Return the names of arguments, and the spelling of options."""
    arguments: list[str] = []
    options: list[str] = []
    for name, parameter in inspect.signature(callback).parameters.items():
        info = get_args(parameter.annotation)[1]
        if isinstance(info, OptionInfo):
            spelled = [*(info.param_decls or ()), info.default]
            named = [one for one in spelled if isinstance(one, str) and one.startswith("--")]
            options.append(named[0] if named else "--" + name.replace("_", "-"))
        else:
            arguments.append(name)
    return arguments, options


def verbs(app: typer.Typer = cli.app) -> dict[str, tuple[list[str], list[str]]]:
    found = {}
    for command in app.registered_commands:
        assert command.callback is not None
        found[command.name or command.callback.__name__] = options(command.callback)
    return found


def test_the_verbs_and_their_options_are_those_that_are_documented() -> None:
    assert verbs() == FROZEN
    assert verbs(cli_targets.app) == FROZEN_TARGETS
    assert [group.name for group in cli.app.registered_groups] == ["targets"]


def test_the_options_before_a_verb_are_those_that_are_documented() -> None:
    assert cli.app.registered_callback is not None
    assert cli.app.registered_callback.callback is not None
    assert options(cli.app.registered_callback.callback) == ([], ["--version"])


def test_every_verb_is_documented() -> None:
    registered = [*cli.app.registered_commands, *cli_targets.app.registered_commands]
    commands = [command.callback for command in registered]
    assert all(callback is not None and inspect.getdoc(callback) for callback in commands)


@pytest.mark.parametrize("verb", ["plan", "teach", "distill", "compare"])
def test_a_verb_that_reads_a_spec_takes_any_number_of_changes(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    taken = []

    def load(path: Path, assignments: list[str] | None) -> None:
        taken.append((str(path), assignments))
        raise SpecError("'spec' is not read here")

    monkeypatch.setattr(spec, "load_spec", load)
    CliRunner().invoke(cli.app, [verb, "a.yaml", "--set", "seed=1", "--set", "budget=2 steps"])
    CliRunner().invoke(cli.app, [verb, "b.yaml"])
    assert taken == [("a.yaml", ["seed=1", "budget=2 steps"]), ("b.yaml", None)]
