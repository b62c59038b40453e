"""The record schema, the writer and the reader."""

import json
from pathlib import Path

import pytest

from curricle.checksums import LineChain
from curricle.errors import CheckpointError, SpecError
from curricle.records import (
    EndRecord,
    EvaluationRecord,
    ProbeRecord,
    Record,
    RecordWriter,
    RunRecord,
    StageEndRecord,
    StagePlan,
    StageRecord,
    StepRecord,
    Usage,
    read_probes,
    read_records,
    write_probes,
)
from curricle.values import parse, plain

SPENT = Usage(steps=2, examples=64, tokens=640, student_flops=300, teacher_flops=100, seconds=0.5)
PLAN = StagePlan(
    name="layer 1",
    teacher="final",
    taps="1 <- 2",
    objective="1.0 hidden",
    projection="gaussian 4 x 8",
    widths="4 <- 8",
    steps=2,
    student_flops=150,
    teacher_flops=50,
    trained_parameters=20,
    memory_bytes=320,
)
RUN: list[Record] = [
    RunRecord(
        method="extraction",
        seed=3,
        task="parity",
        metric="accuracy",
        batch_size=32,
        stages=(PLAN,),
        student_parameters=24,
        teacher_parameters=96,
        versions={"torch": "2.13.0"},
        device="cpu, float32",
    ),
    StageRecord(stage="layer 1", usage=Usage()),
    StepRecord(stage="layer 1", loss=0.5, terms={"hidden": 0.5}, learning_rate=0.1, usage=SPENT),
    EvaluationRecord(stage="layer 1", metrics={"accuracy": 0.75}, usage=SPENT),
    EndRecord(metrics={"accuracy": 0.75}, usage=SPENT),
]


def write(path: Path, records: list[Record], *, keep_bytes: int = 0) -> int:
    writer = RecordWriter(path, keep_bytes=keep_bytes)
    for record in records:
        writer.write(record)
    size = writer.size
    writer.close()
    return size


def test_each_record_prints_as_one_short_line() -> None:
    end = StageEndRecord(stage="layer 1", planned=9, done=2, why="plateau", usage=SPENT)
    assert [str(record) for record in (*RUN, end)] == [
        "extraction with seed 3: layer 1 (2 steps)",
        "step 0: stage 'layer 1' begins",
        "step 2 (layer 1): loss 0.5, learning rate 0.1",
        "step 2 (layer 1): accuracy 0.75",
        "end after 2 steps in 0.5 seconds: accuracy 0.75",
        "step 2: stage 'layer 1' ends after 2 of 9 steps (plateau)",
    ]


def test_flops_of_student_and_teacher_add_up() -> None:
    assert SPENT.total_flops == 400


def test_what_is_spent_adds_up_field_by_field() -> None:
    both = SPENT + SPENT
    assert both == Usage(
        steps=4, examples=128, tokens=1280, student_flops=600, teacher_flops=200, seconds=1.0
    )
    assert SPENT + Usage() == SPENT


def test_nothing_is_spent_at_the_start() -> None:
    assert Usage().total_flops == 0


def test_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "records.jsonl", RUN)
    assert list(read_records(tmp_path / "records.jsonl")) == RUN


def test_each_record_is_one_json_object_a_line_with_its_kind(tmp_path: Path) -> None:
    write(tmp_path / "records.jsonl", RUN)
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == [
        "run",
        "stage",
        "step",
        "evaluation",
        "end",
    ]


def test_a_record_can_be_read_before_the_writer_is_closed(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "records.jsonl")
    writer.write(RUN[1])
    assert list(read_records(tmp_path / "records.jsonl")) == [RUN[1]]
    writer.close()


def test_the_folder_of_the_records_is_made(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "one" / "records.jsonl", RUN[:1])
    assert (tmp_path / "runs" / "one" / "records.jsonl").is_file()


def test_a_new_writer_starts_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "records.jsonl", RUN)
    write(tmp_path / "records.jsonl", RUN[:1])
    assert list(read_records(tmp_path / "records.jsonl")) == RUN[:1]


def test_resuming_drops_what_was_written_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    kept = write(path, RUN[:2])
    write(path, RUN[2:4], keep_bytes=kept)
    write(path, RUN[4:], keep_bytes=kept)
    assert list(read_records(path)) == [*RUN[:2], RUN[4]]


def test_a_file_shorter_than_the_checkpoint_says_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    size = write(path, RUN[:2])
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError,
        match=rf"records\.jsonl' must hold the {size + 1} bytes from which the checkpoint resumes; "
        rf"got {size}; restore it, or move the folder '{tmp_path}' away and run again$",
    ):
        RecordWriter(path, keep_bytes=size + 1)
    assert path.read_bytes() == before


def test_a_missing_file_cannot_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bytes from which the checkpoint .*got 0; restore"):
        RecordWriter(tmp_path / "records.jsonl", keep_bytes=1)
    assert not (tmp_path / "records.jsonl").exists()


def test_synced_records_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("curricle.records.os.fsync", synced.append)
    writer = RecordWriter(tmp_path / "records.jsonl")
    writer.write(RUN[1])
    assert not synced
    writer.sync()
    assert len(synced) == 1
    writer.close()


def test_records_of_earlier_versions_do_not_tell_their_run() -> None:
    content = plain(RUN[0])
    del content["run"]
    assert parse(RunRecord, content).run == ""


def test_the_size_counts_the_bytes_on_disk(tmp_path: Path) -> None:
    size = write(tmp_path / "records.jsonl", RUN)
    assert size == (tmp_path / "records.jsonl").stat().st_size


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, RUN)
    path.write_bytes(path.read_bytes()[:-5])
    assert list(read_records(path)) == RUN[:-1]


def test_an_empty_file_holds_no_records(tmp_path: Path) -> None:
    assert write(tmp_path / "records.jsonl", []) == 0
    assert list(read_records(tmp_path / "records.jsonl")) == []


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"records\.jsonl' must be a records file; there is"):
        list(read_records(tmp_path / "records.jsonl"))


@pytest.mark.parametrize("line", [b"{not json}\n", b'{"kind": "song"}\n', b'{"kind": "end"}\n'])
def test_a_complete_line_that_is_no_record_is_told_with_its_number(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "records.jsonl"
    write(path, RUN[:1])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(
        CheckpointError,
        match=rf"records\.jsonl' line 2 is not a record: .*; restore it, or move the folder "
        rf"'{tmp_path}' away and run again$",
    ):
        list(read_records(path))


def test_a_loss_that_is_no_number_is_no_record() -> None:
    with pytest.raises(SpecError, match=r"^'StepRecord\.loss' must be a finite number"):
        StepRecord(stage="a", loss=float("nan"), terms={}, learning_rate=0.1, usage=SPENT)


FOUND = ProbeRecord(
    probe="ngrams",
    model="teacher",
    is_teacher=True,
    seed=3,
    step=40,
    examples=256,
    numbers={"robust_3_median": 0.5},
)


def test_what_probes_have_found_comes_back_in_order_and_replaces_what_was_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "deep" / "probes.jsonl"
    write_probes(path, [FOUND, FOUND])
    assert read_probes(path) == [FOUND, FOUND]
    write_probes(path, [FOUND])
    assert read_probes(path) == [FOUND]


def test_the_schema_of_a_probes_record_is_frozen() -> None:
    assert json.dumps(plain(FOUND)) == (
        '{"kind": "probe", "probe": "ngrams", "model": "teacher", "is_teacher": true, "seed": 3, '
        '"step": 40, "examples": 256, "numbers": {"robust_3_median": 0.5}}'
    )


def test_the_single_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, RUN[:1])
    line = json.loads(path.read_text())
    del line["notes"], line["check"]
    path.write_text(json.dumps(line | {"note": "checkpoint 7 lies inside"}) + "\n")
    (record,) = read_records(path)
    assert isinstance(record, RunRecord)
    assert record.notes == ("checkpoint 7 lies inside",)


def test_the_former_name_of_the_usage_is_read(tmp_path: Path) -> None:
    path, chain = tmp_path / "records.jsonl", LineChain()
    documents = map(plain, RUN)
    renamed = [
        {"usage" if name == "usage" else name: entry for name, entry in document.items()}
        for document in documents
    ]
    assert any("usage" in document for document in renamed)
    path.write_bytes(b"".join(map(chain.line, renamed)))
    assert list(read_records(path)) == RUN


def test_a_folder_without_probes_has_no_results_of_any(tmp_path: Path) -> None:
    assert read_probes(tmp_path / "probes.jsonl") == []


def test_damaged_results_of_probes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"must be the file that 'curricle probe' wrote; "):
        read_probes(path)
