"""What a run of a spec needs before it is bound."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.errors import BindError
from curricle.runs.assemble import data_seed, is_ready, open_task, open_teacher
from curricle.runs.spec import RunSpec
from curricle.runs.target_folder import capture_targets
from curricle.runs.train import student_runs, teach
from curricle.tasks import TextTask
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.manifest import DataFacts, read_manifest, write_manifest
from curricle.teachers.stored import StoredTeacher

MakeSpec = Callable[..., RunSpec]


def test_students_read_the_data_of_their_seed_unless_there_is_one_for_all(
    make_spec: MakeSpec,
) -> None:
    assert [data_seed(make_spec(), seed) for seed in (3, 4)] == [3, 4]
    assert [data_seed(make_spec("data_seed=7"), seed) for seed in (3, 4)] == [7, 7]


def test_the_teacher_is_asked_itself_or_by_its_stored_targets(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec()
    assert not is_ready(spec)
    teach(spec)
    assert is_ready(spec)
    assert isinstance(open_teacher(spec, open_task(spec, 0, "student")), LiveTeacher)
    told = make_spec(f"targets.folder={tmp_path / 'targets'}")
    capture_targets(told)
    found = open_teacher(told, open_task(told, 0, "student"))
    assert isinstance(found, StoredTeacher)
    assert found.trajectory is not None
    assert found.trajectory.steps == spec.trajectory_steps()


def test_targets_of_another_tokenizer_are_refused(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(f"targets.folder={tmp_path / 'targets'}", "data_seed=0")
    teach(spec)
    capture_targets(spec)
    data = open_task(spec, 0, "student")
    manifest = read_manifest(tmp_path / "targets")
    write_manifest(tmp_path / "targets", replace(manifest, data=DataFacts(tokenizer="a" * 64)))
    # A task without a tokenizer has nothing to compare.
    open_teacher(spec, data)
    monkeypatch.setattr(type(spec.task), "tokenizer_digest", lambda *_: "b" * 64)
    with pytest.raises(BindError, match="must hold targets of this tokenizer"):
        open_teacher(spec, data)


def test_only_texts_have_a_tokenizer(make_spec: MakeSpec, tmp_path: Path) -> None:
    assert not make_spec().task.tokenizer_digest(tmp_path)
    assert len(student_runs(make_spec())) == 4
    text = TextTask(vocabulary_size=300)
    assert text.tokenizer_digest(tmp_path) == text.tokenizer_digest(tmp_path) != ""
    assert text.tokenizer_digest(tmp_path) != TextTask(vocabulary_size=301).tokenizer_digest(
        tmp_path
    )
