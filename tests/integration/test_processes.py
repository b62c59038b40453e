"""Data-parallel runs against one process: weights, metrics, usage, signals, resumption."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import curricle
from tests.integration.processes import (
    CASES,
    OPTIMIZER,
    TOTAL,
    Vectors,
    distilled,
    network,
    read_results,
)

SPEC = Path(__file__).parents[2] / "recipes" / "parity.yaml"
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("processes")]


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of a group of processes."""
    number: int = request.param
    folder = tmp_path_factory.mktemp(f"processes-{number}")
    program = [sys.executable, "-W", "ignore", "-m", "tests.integration.processes"]
    members = [
        subprocess.Popen(
            [*program, str(folder / "store"), str(rank), str(number), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    errors = [member.communicate()[1] for member in members]
    assert [member.returncode for member in members] == [0] * number, errors
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """Return the results of one process."""
    return {name: distilled(case, parallel="none") for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_the_student_of_one(
    name: str, group: Path, alone: dict[str, dict[str, Any]]
) -> None:
    result, expected = read_results(group / "results")[name], alone[name]
    tolerance = CASES[name].tolerance
    for path, weight in expected["weights"].items():
        torch.testing.assert_close(
            result["weights"][path],
            weight,
            rtol=0,
            atol=tolerance,
        )
    assert result["metrics"] == pytest.approx(expected["metrics"], abs=tolerance)
    assert result["usage"] == expected["usage"]


def test_a_signal_to_one_process_ends_all_at_one_step_and_one_process_goes_on(group: Path) -> None:
    assert [path.read_text() for path in sorted(group.glob("code-*"))][:2] == ["143", "143"]
    resumed, whole = network(8, 1), network(8, 1)
    for student, folder in ((resumed, group / "killed"), (whole, None)):
        curricle.distill(
            student,
            network(16, 0),
            curricle.extraction(total=TOTAL, pairs=1, layer_fraction=0.25),
            Vectors(),
            evaluation=[Vectors().batch(10**6)],
            optimizer=OPTIMIZER,
            settings=curricle.TrainingSettings(threads=1),
            progress=False,
            output_dir=folder,
            resume=folder is not None,
        )
    for path, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[path], weight, rtol=0, atol=1e-10)


def test_without_a_launcher_there_is_one_process(alone: dict[str, dict[str, Any]]) -> None:
    result, expected = distilled(CASES["labels"], parallel="ddp"), alone["labels"]
    assert all(
        torch.equal(result["weights"][path], weight) for path, weight in expected["weights"].items()
    )


def test_the_command_line_divides_batches_among_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "curricle", "distill", str(SPEC)]
    sizes = [
        "teacher.total=20 steps",
        "budget=20 steps",
        "task.batch_size=8",
        "curriculum.durations=[8 steps]",
    ]
    for name, options in (("alone", []), ("divided", ["--nproc", "2"])):
        sets = [part for size in (*sizes, f"output_dir={name}") for part in ("--set", size)]
        ended = subprocess.run(
            [*command, *sets, *options], check=False, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        # One process prints.
        assert ended.stdout.count("after 20 steps") == 1
    alone, divided = (
        load_file(tmp_path / name / "model.safetensors") for name in ("alone", "divided")
    )
    for path, weight in alone.items():
        torch.testing.assert_close(divided[path], weight, rtol=0, atol=1e-5)
