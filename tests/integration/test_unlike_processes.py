"""Processes that were given different models or data, or of which one hangs."""

import json
import socket
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("processes")]
ALIKE = "; pass the same arguments to every process, with models and data from one seed or one file"
BEGIN = (
    "BindError: 'parallel' must divide one run among its processes; in process 1, counted from 0, "
)


def processes(module: str, number: int) -> list["subprocess.Popen[str]"]:
    """Start the processes of a program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, "-W", "ignore", "-m", f"tests.integration.{module}"]
    return [
        subprocess.Popen(
            [*program, str(rank), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(number)
    ]


@pytest.fixture(scope="module")
def ends() -> list[dict[str, str]]:
    """Return the ends of the runs of two processes, by name."""
    members = processes("unlike", 2)
    outputs = [member.communicate()[0] for member in members]
    return [dict(json.loads(line) for line in output.splitlines()) for output in outputs]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("teacher", "the teacher has other weights or adapters"),
        ("batch", "the batch of step 0 has other numbers"),
        ("data", "the data differ"),
        ("optimizer", "'optimizer.learning_rate' is 0.2, in process 0 0.1"),
        ("interval", "'eval_every' is 3, in process 0 4"),
        ("folder", "'output_dir' is None, in process 0 '"),
        ("held-out data", "held-out data differ"),
        ("length", "'curriculum.0.duration.number' is 9, in process 0 8"),
    ],
)
def test_what_differs_in_a_process_is_named_in_all(
    name: str, words: str, ends: list[dict[str, str]]
) -> None:
    for end in ends:
        assert end[name].startswith(BEGIN + words)
        assert end[name].endswith(ALIKE)


def test_another_architecture_of_the_student_is_refused(ends: list[dict[str, str]]) -> None:
    message = (
        "BindError: 'student' must have the same architecture in all processes; that of process 1"
    )
    assert [end["student"].startswith(message) for end in ends] == [True, True]


def test_other_weights_of_the_student_are_those_of_the_first_process(
    ends: list[dict[str, str]],
) -> None:
    # They are drawn anew in each process, where the caller sets no seed.
    assert {end["weights of the student"] for end in ends} == {ends[0]["alike"]}


def test_the_metrics_of_the_first_process_decide(ends: list[dict[str, str]]) -> None:
    # Those of the second are best at the last of the two evaluations.
    assert ends[0]["metric"] == ends[1]["metric"]
    assert ends[0]["metric"].startswith("step 4: ")


def test_a_failed_process_is_named_in_a_second_run_of_another_placement(
    ends: list[dict[str, str]],
) -> None:
    assert ends[1]["failure"] == "ZeroDivisionError: of a user"
    assert ends[0]["failure"].startswith(
        "LostProcessError: process 1 of 2, counted from 0, has ended by ZeroDivisionError: of a"
    )


def test_a_process_that_hangs_is_named_within_the_timeout_of_replicas() -> None:
    *members, hanging = processes("hanging", 4)
    outputs = [member.communicate(timeout=60)[0] for member in members]
    hanging.communicate()
    message = (
        "LostProcessError: process 3 of 4, counted from 0, must answer within the 5 seconds of "
        "'timeout'; it has ended or hangs"
    )
    assert [output.startswith(message) for output in outputs] == [True] * 3, outputs
