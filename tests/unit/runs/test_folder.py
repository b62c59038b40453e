"""Run folders: claimed once, read back, never overwritten."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, SpecError
from curricle.runs.folder import (
    Origin,
    claim_teacher,
    end_of,
    has_checkpoint,
    has_spec,
    is_begun,
    is_claimed,
    read_origin,
    recorded_steps,
    refuse_taken,
    start,
    stored_spec,
    teacher_digest,
    unused_folder,
    working,
)
from curricle.runs.spec import RunSpec, changed, load_spec
from curricle.runs.train import single_run, teach, train_student
from tests.runs import contents

MakeSpec = Callable[..., RunSpec]
TAUGHT = Origin(command="teach", title="a", line="curricle teach a.yaml")
COMPARED = Origin(command="compare", title="b c", line="curricle compare 'b c.yaml'")


def test_a_started_folder_tells_what_was_asked_for_and_how(make_spec: MakeSpec) -> None:
    spec = make_spec()
    start(spec, COMPARED)
    assert has_spec(spec.folder)
    assert stored_spec(spec.folder) == spec
    assert read_origin(spec.folder) == COMPARED


def test_a_folder_that_was_moved_is_named_as_it_is_called_now(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    start(make_spec(), COMPARED)
    moved = make_spec().folder.rename(tmp_path / "moved")
    assert stored_spec(moved) == make_spec(f"output_dir={moved}")


def test_a_run_is_begun_if_this_command_has_started_this_spec(make_spec: MakeSpec) -> None:
    assert not is_begun(make_spec(), "compare")
    start(make_spec(), COMPARED)
    assert is_begun(make_spec(), "compare")
    assert not is_begun(make_spec(), "distill")
    assert not is_begun(make_spec("seed=7"), "compare")


def test_a_folder_is_started_once(make_spec: MakeSpec) -> None:
    start(make_spec(), COMPARED)
    with pytest.raises(CheckpointError, match=r"'output_dir' '.*run' must not hold a run already"):
        refuse_taken(make_spec(), "compare")


def test_a_folder_with_nothing_but_a_teacher_may_be_used(make_spec: MakeSpec) -> None:
    start(make_spec(), TAUGHT)
    start(make_spec(), COMPARED)
    assert read_origin(make_spec().folder) == COMPARED


def test_a_teacher_is_taught_once(make_spec: MakeSpec) -> None:
    start(make_spec(), TAUGHT)
    with pytest.raises(CheckpointError, match="must not hold a run already"):
        start(make_spec(), TAUGHT)


@pytest.mark.parametrize("name", ["records.jsonl", "students"])
def test_a_folder_with_a_student_is_taken_whatever_else_it_holds(
    make_spec: MakeSpec, name: str
) -> None:
    start(make_spec(), TAUGHT)
    (make_spec().folder / name).mkdir()
    with pytest.raises(CheckpointError, match="must not hold a run already"):
        refuse_taken(make_spec(), "distill")


def test_a_folder_that_cannot_be_written_is_told(make_spec: MakeSpec) -> None:
    make_spec().folder.write_text("a file")
    with pytest.raises(CheckpointError, match=r"'output_dir' must be a folder .* got .*exists"):
        start(make_spec(), COMPARED)


NO_COMMAND = [
    "{",
    "[]",
    "null",
    "",
    '{"command": "teach"}',
    '{"title": 1, "line": 2, "command": 3}',
]


@pytest.mark.parametrize("content", [None, *NO_COMMAND])
def test_a_folder_without_a_command_is_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"must be a run folder with a 'run\.json'"):
        read_origin(tmp_path)


def test_a_folder_of_a_run_made_in_python_is_told_how_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(
        CheckpointError, match=r"; a run made in Python is resumed by 'curricle.dis"
    ):
        read_origin(tmp_path)


@pytest.mark.parametrize("content", NO_COMMAND)
def test_a_damaged_command_is_not_taken_for_a_run_made_in_python(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "records.jsonl").touch()
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError) as refusal:
        read_origin(tmp_path)
    assert "Python" not in str(refusal.value)
    assert "__init__" not in str(refusal.value)
    assert str(refusal.value).endswith("; restore it, or run again in another folder")


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_the_way_out_of_a_damaged_command_leads_out(
    make_spec: MakeSpec, tmp_path: Path, place: float
) -> None:
    start(make_spec(), COMPARED)
    path = make_spec().folder / "run.json"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    told = rf"; restore it, or run '{make_spec().folder}/spec.yaml' with another 'output_dir'$"
    with pytest.raises(CheckpointError, match=told):
        stored_spec(make_spec().folder)
    other = load_spec(make_spec().folder / "spec.yaml", [f"output_dir={tmp_path / 'other'}"])
    start(other, COMPARED)
    assert stored_spec(other.folder) == make_spec(f"output_dir={tmp_path / 'other'}")


def test_a_folder_without_a_spec_is_told(tmp_path: Path) -> None:
    assert not has_spec(tmp_path)
    with pytest.raises(SpecError, match=r"spec.yaml' cannot be read"):
        stored_spec(tmp_path)


def test_a_claimed_teacher_is_recognized(make_spec: MakeSpec) -> None:
    assert not is_claimed(make_spec())
    claim_teacher(make_spec())
    assert is_claimed(make_spec())


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["teacher.model.widths=[17]"], r"'teacher.model.widths' was \[16\] and is \[17\]"),
        (["teacher.total=21 steps"], "'teacher.total.number' was 20 and is 21"),
        (["teacher.checkpoints=4"], "'teacher.checkpoints' was 2 and is 4"),
        (["optimizer.learning_rate=0.1"], "'optimizer.learning_rate' was 0.3 and is 0.1"),
        (
            ["teacher.optimizer={kind: sgd, learning_rate: 0.4}"],
            "'teacher.optimizer.learning_rate' was 0.3 and is 0.4",
        ),
        (["engine.max_grad_norm=1"], "'engine.max_grad_norm' was 0 and is 1.0"),
        (["seed=1"], "'seed' was 0 and is 1"),
        (["task.degree=3"], "'task.degree' was 2 and is 3"),
        (
            ["task.degree=3", "seed=1"],
            "'task.degree' was 2 and is 3, 'seed' was 0 and is 1",
        ),
    ],
)
def test_the_teacher_of_another_spec_is_refused_with_what_differs(
    make_spec: MakeSpec, assignments: list[str], words: str
) -> None:
    claim_teacher(make_spec())
    with pytest.raises(
        CheckpointError,
        match=rf"must hold the teacher of this spec; it was trained by another spec, in which "
        rf"{words}; '--set output_dir=\.\.\.' takes another folder$",
    ):
        refuse_taken(make_spec(*assignments), "distill")


def test_a_teacher_of_an_earlier_version_is_known_by_its_digest_alone(make_spec: MakeSpec) -> None:
    claim_teacher(make_spec())
    claim = {"spec": teacher_digest(make_spec())}
    (make_spec().folder / "teacher" / "taught.json").write_text(json.dumps(claim))
    assert is_claimed(make_spec())
    with pytest.raises(CheckpointError, match=rf"its digest is {claim['spec']}, not [0-9a-f]+; "):
        is_claimed(make_spec("seed=1"))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", "null", '{"spec": 5}', '{"spec": "z123456789abcdef"}', b"\xff\xfe", ""],
)
def test_a_damaged_claim_is_told(make_spec: MakeSpec, content: str | bytes) -> None:
    claim_teacher(make_spec())
    path = make_spec().folder / "teacher" / "taught.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        CheckpointError,
        match=r"taught.json' must hold the training settings of the teacher beside it: "
        r".*; remove this file, and the command compares the teacher's records",
    ):
        is_claimed(make_spec())


@pytest.mark.parametrize("place", [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.98, 0.9999])
def test_a_flipped_bit_of_a_claim_is_no_other_spec(make_spec: MakeSpec, place: float) -> None:
    claim_teacher(make_spec())
    path = make_spec().folder / "teacher" / "taught.json"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    for spec in (make_spec(), make_spec("seed=1")):
        with pytest.raises(CheckpointError, match=r"taught.json' must hold the training settings"):
            is_claimed(spec)


def test_a_removed_claim_is_written_again_and_the_teacher_stays(make_spec: MakeSpec) -> None:
    spec = make_spec()
    start(spec, TAUGHT)
    teach(spec)
    path = spec.folder / "teacher" / "taught.json"
    whole, before = path.read_bytes(), contents(spec.folder / "teacher")
    path.write_text("{")
    with pytest.raises(CheckpointError, match=rf"'curricle resume {spec.folder}' compares"):
        teach(stored_spec(spec.folder))
    path.unlink()
    teach(stored_spec(spec.folder))
    assert path.read_bytes() == whole
    assert contents(spec.folder / "teacher") == before


def test_without_its_claim_the_teacher_of_another_spec_is_still_refused(
    make_spec: MakeSpec,
) -> None:
    teach(make_spec())
    (make_spec().folder / "teacher" / "taught.json").unlink()
    with pytest.raises(CheckpointError, match="'seed' was 0 and is 1"):
        teach(make_spec("seed=1"))


@pytest.mark.parametrize(
    "assignment",
    [
        "task.degree=3",
        "teacher.total=21 steps",
        "teacher.checkpoints=4",
        "optimizer.learning_rate=0.1",
        "engine.max_grad_norm=1",
        "engine.precision=bfloat16",
        "seed=1",
    ],
)
def test_a_teacher_is_another_if_its_training_is(make_spec: MakeSpec, assignment: str) -> None:
    assert teacher_digest(make_spec(assignment)) != teacher_digest(make_spec())


@pytest.mark.parametrize(
    "assignment", ["student.widths=[3]", "budget=9 steps", "seeds=[5]", "engine.log_every=1"]
)
def test_a_teacher_is_the_same_whatever_its_students_are(
    make_spec: MakeSpec, assignment: str
) -> None:
    assert teacher_digest(make_spec(assignment)) == teacher_digest(make_spec())


@pytest.fixture
def text(tmp_path: Path, make_spec: MakeSpec) -> Callable[[str], RunSpec]:
    """Return a function from the text of a corpus, always at one path, to a spec."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()

    def make(line: str) -> RunSpec:
        for split in ("train", "valid"):
            (corpus / f"{split}.txt").write_text(line * 40)
        model = "{kind: hf, model_type: bert}"
        sizes = "vocabulary_size: 300, window: 8, batch_size: 2, evaluation_batches: 1"
        return make_spec(
            f"task={{kind: text, corpus: {corpus}, {sizes}}}",
            f"teacher={{model: {model}, total: 20 steps}}",
            f"student={model}",
        )

    return make


def test_a_teacher_of_another_text_at_the_same_place_is_another(
    text: Callable[[str], RunSpec],
) -> None:
    first = teacher_digest(text("the quick brown fox jumps over the lazy dog\n"))
    assert teacher_digest(text("pack my box with five dozen liquor jugs\n")) != first
    assert teacher_digest(text("the quick brown fox jumps over the lazy dog\n")) == first


def test_a_teacher_is_the_same_wherever_its_text_lies(
    text: Callable[[str], RunSpec], tmp_path: Path
) -> None:
    spec = text("the quick brown fox jumps over the lazy dog\n")
    first = teacher_digest(spec)
    (tmp_path / "corpus").rename(tmp_path / "moved")
    assert teacher_digest(changed(spec, [f"task.corpus={tmp_path / 'moved'}"])) == first


def test_a_run_that_was_not_begun_has_neither_length_nor_end(tmp_path: Path) -> None:
    assert end_of(tmp_path) is None
    assert recorded_steps(tmp_path) is None


def test_a_finished_run_tells_its_length_and_end(make_spec: MakeSpec) -> None:
    spec = make_spec("curriculum.kind=progressive")
    teach(spec)
    end = train_student(spec, single_run(spec))
    assert end_of(spec.folder) == end
    assert recorded_steps(spec.folder) == 12


def test_a_run_cut_off_within_its_first_line_has_no_length(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(json.dumps({"kind": "run"})[:-1])
    assert recorded_steps(tmp_path) is None


def test_a_demo_takes_a_folder_of_its_own(tmp_path: Path) -> None:
    assert unused_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert unused_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_a_taken_folder_names_the_fields_in_which_the_specs_differ(make_spec: MakeSpec) -> None:
    start(make_spec(), COMPARED)
    other = make_spec("optimizer.learning_rate=0.1", "student.widths=[9]")
    with pytest.raises(
        CheckpointError,
        match=r"'student.widths' was \[8\] and is \[9\], "
        r"'optimizer.learning_rate' was 0.3 and is 0.1$",
    ):
        start(other, COMPARED)


@pytest.mark.parametrize("command", ["rm", "", "Teach", "teach "])
def test_only_known_commands_are_gone_on_with(tmp_path: Path, command: object) -> None:
    origin = {"command": command, "title": "", "line": ""}
    (tmp_path / "run.json").write_text(json.dumps(origin))
    with pytest.raises(CheckpointError, match=r"'command' in .*run.json' must be one of teach, .*"):
        read_origin(tmp_path)


# --- damage, other writers, impossible places -----------------------------------------------------


@pytest.mark.parametrize("name", ["spec.yaml", "run.json"])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.9999])
def test_a_flipped_bit_of_what_a_run_was_started_with_is_noticed(
    make_spec: MakeSpec, name: str, place: float
) -> None:
    start(make_spec(), COMPARED)
    path = make_spec().folder / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        stored_spec(make_spec().folder)


def test_a_spec_that_was_edited_is_told_with_the_way_out(make_spec: MakeSpec) -> None:
    start(make_spec(), COMPARED)
    path = make_spec().folder / "spec.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.3", "learning_rate: 0.4"))
    with pytest.raises(CheckpointError, match=r"must be the spec .* run a copy of the spec with a"):
        stored_spec(make_spec().folder)


def test_a_folder_of_an_earlier_version_has_no_hashes_and_is_read(make_spec: MakeSpec) -> None:
    start(make_spec(), COMPARED)
    path = make_spec().folder / "run.json"
    path.write_text(json.dumps({"command": "compare", "title": "b c", "line": COMPARED.line}))
    assert stored_spec(make_spec().folder) == make_spec()
    assert read_origin(make_spec().folder) == COMPARED


def test_a_second_command_in_a_folder_is_told_whose_the_first_is(make_spec: MakeSpec) -> None:
    spec = make_spec()
    with working(spec.folder), pytest.raises(CheckpointError, match=r"writer at a time; process "):
        start(spec, COMPARED)
    assert not has_spec(spec.folder)
    start(spec, COMPARED)


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 256])
def test_a_folder_that_cannot_be_is_told(make_spec: MakeSpec, name: str) -> None:
    spec = replace(make_spec(), output_dir=name)
    with pytest.raises(CheckpointError, match=r"^'output_dir' must be a folder that can be writ"):
        refuse_taken(spec, "compare")


def resumed(spec: RunSpec) -> None:
    teach(spec)
    train_student(spec, single_run(spec))


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_damaged_weights_of_a_finished_run_are_noticed(make_spec: MakeSpec, owner: str) -> None:
    spec = make_spec()
    teach(spec)
    train_student(spec, single_run(spec))
    path = (spec.folder if owner == "student" else spec.folder / "teacher") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged or of another run"):
        resumed(spec)


@pytest.mark.parametrize(
    ("finished", "unfinished", "expected"),
    [((), (), False), (("teacher",), (), False), (("teacher",), (".",), True)],
)
def test_checkpoints_of_finished_runs_are_not_resumed_from(
    tmp_path: Path,
    finished: tuple[str, ...],
    unfinished: tuple[str, ...],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "curricle.runs.folder.end_of",
        lambda run: "end" if str(run.relative_to(tmp_path)) in finished else None,
    )
    for name in (*finished, *unfinished):
        checkpoint = tmp_path / name / "checkpoints" / "step-000000008"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").touch()
    # A note about a damaged checkpoint is none.
    (tmp_path / "students" / "one_shot" / "seed-0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "students/one_shot/seed-0/checkpoints/fallbacks.json").touch()
    assert has_checkpoint(tmp_path) is expected
