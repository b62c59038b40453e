"""Targets of a spec: captured from its teacher, read by its students, verified against both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from curricle.errors import BindError, CheckpointError, DataError, SpecError
from curricle.files import content_digest
from curricle.records import RunRecord, read_records
from curricle.runs.spec import RunSpec
from curricle.runs.target_folder import capture_targets_of, describe_targets, verify_targets
from curricle.runs.train import rehearse, student_runs, teach, train_class, train_student
from curricle.teachers.store.manifest import read_manifest, write_manifest
from tests.runs import contents

MakeSpec = Callable[..., RunSpec]
EXACT = ("targets.compression.hidden={kind: float32}", "targets.compression.logits={kind: float32}")


@pytest.fixture
def spec(make_spec: MakeSpec, tmp_path: Path) -> RunSpec:
    """Return a comparison whose students read stored targets of one data seed."""
    return make_spec(f"targets.folder={tmp_path / 'targets'}", "data_seed=0", *EXACT)


def trained(spec: RunSpec) -> dict[str, Any]:
    for student in student_runs(spec):
        train_student(spec, student)
    return {
        str(path.relative_to(spec.folder)): load_file(path)
        for path in (spec.folder / "students").rglob("model.safetensors")
    }


def test_students_of_the_first_seed_are_those_that_the_teacher_would_have_taught(
    spec: RunSpec, make_spec: MakeSpec, tmp_path: Path
) -> None:
    teach(spec)
    capture_targets_of(spec)
    rehearse(spec, student_runs(spec))
    found = trained(spec)
    asked = make_spec("data_seed=0", f"output_dir={tmp_path / 'asked'}")
    teach(asked)
    wanted = trained(asked)
    assert len(wanted) == 4
    for path, weights in wanted.items():
        for name, weight in weights.items():
            torch.testing.assert_close(found[path][name], weight, rtol=0, atol=0, msg=path)


def test_the_record_of_a_run_tells_its_teacher_and_that_it_costs_nothing(spec: RunSpec) -> None:
    teach(spec)
    capture_targets_of(spec)
    student = student_runs(spec)[0]
    train_student(spec, student)
    opening = next(iter(read_records(student.folder / "records.jsonl")))
    assert isinstance(opening, RunRecord)
    assert opening.teacher_parameters == 8 * 16 + 16 + 16 * 2 + 2
    assert [stage.teacher_flops for stage in opening.stages] == [0]


def test_a_class_reads_stored_targets(spec: RunSpec) -> None:
    teach(spec)
    capture_targets_of(spec)
    students = student_runs(spec)
    train_class(spec, students, lambda *_: None)
    assert all((student.folder / "model.safetensors").is_file() for student in students)


def test_each_seed_of_data_is_captured(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(f"targets={tmp_path / 't'}")
    teach(spec)
    capture_targets_of(spec)
    trained(spec)
    # 12 steps of 16 examples, of two seeds, for each of two teachers: a few repeat by chance.
    assert (
        sum(one.examples for one in describe_targets(read_manifest(tmp_path / "t")))
        > 2 * 12 * 16 / 2
    )


def test_a_second_capture_makes_nothing_new(spec: RunSpec) -> None:
    teach(spec)
    first = capture_targets_of(spec)
    assert spec.targets is not None
    before = contents(Path(spec.targets.folder))
    assert capture_targets_of(spec) == first
    assert contents(Path(spec.targets.folder)) == before


def test_what_is_stored_is_told(spec: RunSpec) -> None:
    teach(spec)
    manifest = capture_targets_of(spec)
    assert manifest.data.name == "(8,2)-parity"
    references = {str(one.target_set.reference) for one in describe_targets(manifest)}
    assert references == {"final", "10", "20"}
    for one in describe_targets(manifest):
        assert one.examples == one.rows
        # Two logits in float32, a key, a count, and the header of the file.
        assert one.bytes_a_row > 2 * 4 + 16 + 4


def test_whole_targets_are_verified(spec: RunSpec) -> None:
    teach(spec)
    capture_targets_of(spec)
    assert spec.targets is not None
    folder = Path(spec.targets.folder)
    assert verify_targets(folder) == []
    assert {one.share for one in verify_targets(folder, spec)} == {1.0}


@pytest.mark.parametrize(
    "logits", ["{kind: sampled}", "{kind: top_k, k: 1}", "{kind: int8}", "{kind: bfloat16}"]
)
def test_packed_targets_are_verified(make_spec: MakeSpec, tmp_path: Path, logits: str) -> None:
    folder = tmp_path / "targets"
    spec = make_spec(
        f"targets.folder={folder}", f"targets.compression.logits={logits}", "data_seed=0"
    )
    teach(spec)
    capture_targets_of(spec)
    assert all(one.holds and one.rows for one in verify_targets(folder, spec))


def forged(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a file and let the manifest agree."""
    manifest = read_manifest(folder)
    shard = manifest.shards[0]
    tensors = load_file(folder / shard.file)
    change(tensors)
    save_file(tensors, folder / shard.file, metadata={"section": shard.section})
    told = replace(shard, sha256=content_digest(folder / shard.file))
    write_manifest(folder, replace(manifest, shards=(told, *manifest.shards[1:])))


def test_forged_targets_are_found(spec: RunSpec) -> None:
    teach(spec)
    capture_targets_of(spec)
    assert spec.targets is not None
    folder = Path(spec.targets.folder)
    forged(folder, lambda tensors: tensors["values"].add_(1.0))
    assert verify_targets(folder) == []
    with pytest.raises(CheckpointError, match=r"must hold the teacher's targets; of 'logits-"):
        verify_targets(folder, spec)
    forged(folder, lambda tensors: tensors["values"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="must hold numbers; some are 'nan'"):
        verify_targets(folder)
    forged(folder, lambda tensors: tensors["keys"].fill_(7))
    with pytest.raises(CheckpointError, match="must hold every example once; got one twice"):
        verify_targets(folder)


def test_targets_of_another_teacher_are_refused(
    spec: RunSpec, make_spec: MakeSpec, tmp_path: Path
) -> None:
    teach(spec)
    capture_targets_of(spec)
    assert spec.targets is not None
    other = make_spec(
        f"targets.folder={spec.targets.folder}", "seed=5", f"output_dir={tmp_path / 'other'}"
    )
    teach(other)
    with pytest.raises(BindError, match="must hold targets of this teacher"):
        rehearse(other, student_runs(other))


def test_data_that_were_not_captured_end_in_a_sentence(spec: RunSpec, make_spec: MakeSpec) -> None:
    teach(spec)
    capture_targets_of(spec)
    assert spec.targets is not None
    other = make_spec(f"targets.folder={spec.targets.folder}", "data_seed=9")
    with pytest.raises(DataError, match=r"is not among the \d+ of 'logits-.*'data_seed'"):
        train_student(other, student_runs(other)[0])


def test_targets_are_captured_of_a_finished_teacher_only(spec: RunSpec) -> None:
    with pytest.raises(CheckpointError, match="must hold a finished teacher"):
        capture_targets_of(spec)
    with pytest.raises(BindError, match="must come with the finished teacher"):
        rehearse(spec, student_runs(spec))


def test_a_spec_without_targets_has_nothing_to_capture(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="'targets' must be in the spec for"):
        capture_targets_of(make_spec())


def test_a_budget_that_the_teacher_enters_is_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match=r"'targets' cannot be used with a budget of 1e.06 flops"):
        make_spec("targets=t", "budget=1e6 flops")


def test_a_text_is_the_folder(make_spec: MakeSpec) -> None:
    targets = make_spec("targets=some/folder").targets
    assert targets is not None
    assert targets.folder == "some/folder"
