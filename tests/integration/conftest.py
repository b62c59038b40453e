"""The command line run in this process, and specs so small that it takes a moment."""

import copy
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from tests.runs import tiny_comparison

Command = Callable[..., tuple[object, str, str]]
CopyRun = Callable[..., Path]
PARITY = tiny_comparison() | {
    "curriculum": {"kind": "extraction", "pairs": [{"student": 1, "teacher": 1}]},
    "goal": {"number": 0.1},
}
PARITY["engine"]["save_every"] = 4


def encoder(width: int) -> dict[str, Any]:
    """Return a one-layer encoder."""
    return {
        "kind": "hf",
        "model_type": "megatron-bert",
        "config": {
            "num_hidden_layers": 1,
            "hidden_size": width,
            "num_attention_heads": 2,
            "intermediate_size": 2 * width,
        },
    }


TEXT: dict[str, Any] = {
    "output_dir": "run",
    "cache_dir": "cache",
    "task": {
        "kind": "text",
        "corpus": "corpus",
        "vocabulary_size": 300,
        "window": 16,
        "batch_size": 2,
        "evaluation_batches": 1,
    },
    "teacher": {"model": encoder(16), "total": "4 steps", "checkpoints": 2},
    "student": encoder(8),
    "curriculum": {"kind": "extraction"},
    "budget": "4 steps",
    "optimizer": {"kind": "adamw", "learning_rate": 0.01},
    "engine": {"threads": 1, "save_every": 2},
}


DRAW = Figure.savefig


@pytest.fixture(autouse=True)
def figures(undrawn: None) -> None:
    """Leave figures undrawn; a module whose tests need them has a fixture of this name."""


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Return a function from arguments to exit code, output and error output; it runs here."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[object, str, str]:
        # What fixtures have printed, such as the run that others copy, is not the command's.
        capsys.readouterr()
        code = exit_code(monkeypatch, *arguments)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """Run the command line in this process."""
    from curricle.cli.app import main

    monkeypatch.setattr(sys, "argv", ["curricle", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def parity(tmp_path: Path) -> Path:
    """Return the file of a comparison on (8,2)-parity; the run folder is `run`."""
    return write_parity(tmp_path)


def write_parity(folder: Path) -> Path:
    path = folder / "parity.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(PARITY), sort_keys=False))
    return path


@pytest.fixture(scope="session")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a verb to the run folder that it leaves, with figures.

    Each verb runs once.
    """

    @cache
    def run(verb: str) -> Path:
        folder = tmp_path_factory.mktemp(verb)
        spec = write_parity(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(Figure, "savefig", DRAW)
            assert exit_code(patch, verb, spec.name) == 0
        return folder / "run"

    return run


@pytest.fixture
def copy_run(run_once: Callable[[str], Path], parity: Path, tmp_path: Path) -> CopyRun:
    """Return a function that copies what `curricle VERB parity.yaml` leaves, in `run` by default.

    Nothing in the folder depends on its place, so to train it again would give the same files.
    """

    def copied(verb: str, name: str = "run") -> Path:
        return Path(shutil.copytree(run_once(verb), tmp_path / name))

    return copied


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return the file of a distillation on a corpus of a few lines; the run folder is `run`."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, times in (("train", 60), ("valid", 20)):
        (folder / f"{split}.txt").write_text(
            "the quick brown fox jumps over the lazy dog\n" * times
        )
    path = tmp_path / "text.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(TEXT), sort_keys=False))
    return path
