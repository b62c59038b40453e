"""Data-parallel runs against one process: weights, metrics, usage, signals, resumption."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from curricle.records import EvaluationRecord, read_records
from tests.integration.processes import (
    CASES,
    distilled,
    read_results,
    recorded,
    runs,
)

SPEC = Path(__file__).parents[2] / "recipes" / "parity.yaml"
TIMEOUT = 20
"""Seconds after which a process counts as hanging, many times those of a step."""
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("processes")]


GROUPS = {"pair": 2, "quartet": 4}
RUNS = [
    (group, parallel, name)
    for group, number in GROUPS.items()
    for parallel, name in runs(number)
    if not CASES[name].is_noisy
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two processes, which resume a run of one."""
    folder = tmp_path_factory.mktemp("processes-2")
    with pytest.raises(SystemExit):
        recorded(folder / "begun", is_killed=True)
    run_processes(folder, 2)
    return folder


@pytest.fixture(scope="module")
def quartet(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of four processes, which resume a run of two."""
    folder = tmp_path_factory.mktemp("processes-4")
    shutil.copytree(pair / "fsdp2", folder / "begun")
    run_processes(folder, 4)
    return folder


@pytest.fixture(params=["pair", "quartet"])
def group(request: pytest.FixtureRequest) -> Path:
    """Return the folder of a group, which has run once for all tests."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def run_processes(folder: Path, number: int) -> None:
    """Run a group of processes that write their results to a folder."""
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


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """Return the results of one process."""
    return {name: distilled(case, parallel="none") for name, case in CASES.items()}


@pytest.mark.parametrize(("group", "parallel", "name"), RUNS, indirect=["group"])
def test_several_processes_train_the_student_of_one(
    parallel: str, name: str, group: Path, alone: dict[str, dict[str, Any]]
) -> None:
    number = int(group.name.removeprefix("processes-")[0])
    result = read_results(group / "results", number)[parallel, name]
    expected = alone[name]
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


def test_every_process_has_the_same_weights_at_the_end(group: Path) -> None:
    digests = [json.loads(path.read_text()) for path in sorted(group.glob("weights-*.json"))]
    assert len(digests) == int(group.name.removeprefix("processes-")[0])
    assert digests == [digests[0]] * len(digests)


def test_masks_of_dropout_are_those_of_the_rank_in_any_placement(
    pair: Path, alone: dict[str, dict[str, Any]]
) -> None:
    name = "padded text, dropout"
    results = read_results(pair / "results", 2)
    copies, shares = (results[parallel, name]["weights"] for parallel in ("ddp", "fsdp2"))
    torch.testing.assert_close(shares, copies, rtol=0, atol=CASES[name].tolerance)
    # The second process draws other masks than the first, hence than one process.
    single = alone[name]["weights"]
    assert max(float((single[path] - copies[path]).abs().max()) for path in single) > 1e-4


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_signal_to_one_process_ends_all_at_one_step_and_one_process_goes_on(
    parallel: str, group: Path, tmp_path: Path
) -> None:
    codes = [path.read_text() for path in group.glob(f"code-{parallel}-*")]
    assert codes == ["143"] * int(group.name.removeprefix("processes-")[0])
    shutil.copytree(group / parallel, tmp_path / "run")
    resumed, whole = recorded(tmp_path / "run", resume=True), recorded(None)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=1e-10)


def test_an_early_exit_gathers_the_weights_of_the_blocks_that_it_runs(group: Path) -> None:
    # The weights outside of blocks once a step, those of a block before and after its pass; the
    # last is a step to the logits, whose head is outside of the blocks.
    expected = [
        {"_allgather_base_": 1 + 2 * blocks, "_reduce_scatter_base_": blocks + is_whole}
        for blocks, is_whole in [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1)]
    ]
    counts = [json.loads(path.read_text()) for path in group.glob("collectives-*.json")]
    assert counts == [expected] * int(group.name.removeprefix("processes-")[0])


def test_sharded_processes_go_on_where_another_number_of_processes_stopped(group: Path) -> None:
    finished = load_file(group / "begun" / "model.safetensors")
    whole = recorded(None).state_dict()
    torch.testing.assert_close(finished, dict(whole), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("is_alive", [False, True])
def test_an_error_of_one_process_ends_the_others_and_is_named(rank: int, *, is_alive: bool) -> None:
    # Of a process that ends the others learn at once, of one that does not after the timeout.
    outputs, codes = run_failing(rank, timeout=5 if is_alive else TIMEOUT, is_alive=is_alive)
    assert outputs[rank].splitlines()[0] == "ZeroDivisionError: of a user"
    assert (
        f"LostProcessError: process {rank} of 2, counted from 0, has ended by "
        f"ZeroDivisionError: of a user; the run goes on"
    ) in outputs[1 - rank]
    assert codes == [1, 1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_no_thread_of_gloo_outlives_a_run_that_has_made_the_group(parallel: str) -> None:
    outputs, codes = run_failing(rank=None, timeout=TIMEOUT, parallel=parallel)
    assert (outputs, codes) == (["threads: []\n"] * 2, [0, 0])


def run_failing(
    rank: int | None, *, timeout: float, is_alive: bool = False, parallel: str = "ddp"
) -> tuple[list[str], list[int]]:
    """Return what two processes print, one of which fails, and their exit codes.

    Args:
        rank: The process that fails; None for none.
        timeout: Seconds within which processes must answer.
        is_alive: Whether it ends only after the other.
        parallel: Placement.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(rank), str(port), str(timeout), parallel, *(["waits"] if is_alive else [])]
    program = [sys.executable, "-W", "ignore", "-m", "tests.integration.failing"]
    members = [
        subprocess.Popen(
            [*program, str(number), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(2)
    ]
    # The process that fails last: its standard input ends where it is communicated with.
    order = (0, 1) if rank is None else (1 - rank, rank)
    outputs = {number: members[number].communicate()[0] for number in order}
    return [outputs[0], outputs[1]], [member.returncode for member in members]


def test_without_a_launcher_there_is_one_process(alone: dict[str, dict[str, Any]]) -> None:
    result, expected = distilled(CASES["labels"], parallel="ddp"), alone["labels"]
    assert all(
        torch.equal(result["weights"][path], weight) for path, weight in expected["weights"].items()
    )


def test_the_command_line_divides_batches_among_processes(
    commanded: dict[str, Tensor], tmp_path: Path
) -> None:
    ended = run_command(["-m", "curricle"], tmp_path, ["--nproc", "2"])
    assert ended.returncode == 0, ended.stderr
    # One process prints.
    assert ended.stdout.count("after 20 steps") == 1
    divided = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(divided, commanded, rtol=0, atol=1e-5)


def test_a_mistake_in_several_processes_ends_with_one_sentence(tmp_path: Path) -> None:
    pairs = ["--set", "curriculum.pairs=[{student: 5, teacher: 1}]"]
    divided = run_command(["-m", "curricle"], tmp_path, [*pairs, "--nproc", "2"])
    alone = run_command(["-m", "curricle"], tmp_path, pairs)
    assert divided.returncode == alone.returncode == 2
    assert divided.stderr.count("student's tap 5") == 1
    assert divided.stderr.endswith(alone.stderr)
    assert "Traceback" not in divided.stderr


def test_torchrun_restarts_a_run_whose_process_was_killed_or_hangs(
    commanded: dict[str, Tensor], tmp_path: Path
) -> None:
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "2",
    ]
    engine = ["--set", "engine.save_every=4", "--set", f"engine.timeout={TIMEOUT}"]
    ended = run_command([*torchrun, "-m", "tests.integration.faults"], tmp_path, engine)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("after 20 steps") == 1
    assert f"process 1 of 2, counted from 0, must answer within the {TIMEOUT} seconds" in (
        ended.stderr
    )
    # The third attempt has gone on from the checkpoint of the second.
    steps = [
        record.usage.steps
        for record in read_records(tmp_path / "records.jsonl")
        if isinstance(record, EvaluationRecord)
    ]
    assert steps == sorted(set(steps))
    restarted = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(restarted, commanded, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return the weights that one process of the command line trains."""
    folder = tmp_path_factory.mktemp("command")
    ended = run_command(["-m", "curricle"], folder, [])
    assert ended.returncode == 0, ended.stderr
    return load_file(folder / "model.safetensors")


def run_command(
    program: list[str], folder: Path, options: list[str]
) -> "subprocess.CompletedProcess[str]":
    """Return the end of a run of the command line."""
    sizes = [
        "teacher.total=20 steps",
        "budget=20 steps",
        "task.batch_size=8",
        "curriculum.durations=[8 steps]",
        f"output_dir={folder}",
    ]
    sets = [part for size in sizes for part in ("--set", size)]
    line = [sys.executable, "-W", "ignore", *program, "distill", str(SPEC), *sets, *options]
    return subprocess.run(line, check=False, capture_output=True, text=True)
