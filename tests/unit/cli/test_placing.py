"""Options that say where the students of a comparison are trained."""

import pytest

from curricle.cli.placing import Placing
from curricle.errors import SpecError
from curricle.runs.workers import LocalWorkers


def test_one_job_is_done_in_this_process() -> None:
    assert Placing(1).is_single
    assert not Placing(2).is_single


def test_several_jobs_have_processes_here() -> None:
    workers = Placing(2).workers()
    assert isinstance(workers, LocalWorkers)
    workers.close()


def test_an_unknown_place_is_named_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"'--on' must be 'local' or 'ray'; got 'raj'"):
        Placing(place="raj")


def test_a_cluster_takes_no_number_of_jobs() -> None:
    with pytest.raises(
        SpecError,
        match=(
            r"'--jobs' must be left out with '--on ray', whose resources determine the number of "
            r"tasks at the same time; got 4$"
        ),
    ):
        Placing(jobs=4, place="ray")


def test_resources_of_a_cluster_are_refused_without_one() -> None:
    with pytest.raises(SpecError, match=r"without '--on ray'; got 1 and 0\.25"):
        Placing(num_gpus=0.25)
