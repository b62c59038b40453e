"""The networks of a run folder, looked at by the probes that fit their task."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError
from curricle.models.mlp import MLP
from curricle.models.weights import load_weights, save_weights
from curricle.probes.correlations import output_correlations
from curricle.probes.representations import linear_probe, tap_similarity
from curricle.records import PROBES, ProbeRecord
from curricle.runs import probe as probing
from curricle.runs.folder import Origin, start
from curricle.runs.probe import probe_run
from curricle.runs.spec import RunSpec
from curricle.runs.train import single_run, student_runs, teach, train_student
from tests.parts import edit_records, read_probes

MakeSpec = Callable[..., RunSpec]


def run(spec: RunSpec, command: str) -> Path:
    """Return the folder of a run of which everything is finished."""
    start(spec, Origin(command=command, title="tiny", line=f"curricle {command} tiny.yaml"))
    teach(spec)
    students = {"teach": [], "distill": [single_run(spec)], "compare": student_runs(spec)}
    for student in students[command]:
        train_student(spec, student)
    return spec.folder


def probed(
    folder: Path, examples: int | None = 64, *, trains_probes: bool = False
) -> list[ProbeRecord]:
    return probe_run(folder, examples=examples, watch=lambda _: None, trains_probes=trains_probes)


def weights_of(path: Path, width: int) -> MLP:
    module = MLP(8, (width,), 2)
    load_weights(module, path)
    return module


@pytest.fixture
def compared(make_spec: MakeSpec) -> Path:
    return run(make_spec(), "compare")


def test_checkpoints_and_students_are_looked_at(compared: Path) -> None:
    seen = [(one.probe, one.model, one.seed, one.step) for one in probed(compared)]
    students = [
        (probe, name, seed, 12)
        for seed, name in product((0, 1), ("one_shot", "progressive"))
        for probe in ("correlations", "similarity")
    ]
    checkpoints = [("correlations", "teacher", 0, step) for step in (10, 20)]
    assert seen == checkpoints + students


def test_what_is_found_is_written_into_the_folder_and_the_same_again(compared: Path) -> None:
    found = probed(compared)
    assert read_probes(compared / PROBES) == found
    assert probed(compared) == found


def test_nothing_else_in_the_folder_changes(compared: Path) -> None:
    before = {path: path.read_bytes() for path in compared.rglob("*") if path.is_file()}
    probed(compared)
    after = {path: path.read_bytes() for path in compared.rglob("*") if path.is_file()}
    after.pop(compared / PROBES)
    assert after == before


def test_the_numbers_are_those_of_the_weights_on_disk(compared: Path, make_spec: MakeSpec) -> None:
    """Against the probes, called with the networks that the files hold."""
    held_out = make_spec("task.evaluation_examples=64", "task.batch_size=64").task.open(
        seed=0, cache_dir=Path("cache")
    )
    batch: Batch = held_out.evaluation[0]
    found = probed(compared)
    with seeding.scoped(0, "models"):
        early = weights_of(compared / "teacher/trajectory/step-000000010.safetensors", 16)
        teacher = weights_of(compared / "teacher/model.safetensors", 16)
        student = weights_of(compared / "students/progressive/seed-1/model.safetensors", 8)
    expected = output_correlations(early.tapped(), batch, support=range(2))
    assert found[0].numbers == pytest.approx(expected)
    alike = tap_similarity(student.tapped(), batch, teacher=teacher.tapped())
    assert found[-1].numbers == pytest.approx(alike)


def test_trained_probes_look_when_asked_to(compared: Path, make_spec: MakeSpec) -> None:
    """Against the probe, called with the network that the file holds."""
    found = probed(compared, trains_probes=True)
    untrained = [one for one in found if one.probe != "linear"]
    linear = [one for one in found if one.probe == "linear"]
    assert untrained == probed(compared)
    assert len(linear) == 2 + 4
    held_out = make_spec("task.evaluation_examples=64", "task.batch_size=64").task.open(
        seed=0, cache_dir=Path("cache")
    )
    with seeding.scoped(0, "models"):
        student = weights_of(compared / "students/progressive/seed-1/model.safetensors", 8)
    assert linear[-1].numbers == linear_probe(student.tapped(), held_out.evaluation[0])


@pytest.mark.parametrize("quirk", [False, True])
def test_hidden_tokens_leave_the_attention_as_they_did_in_training(
    quirk: bool, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def reliance(*_: object, hides_attention: bool, **__: object) -> dict[str, float]:
        told.append(hides_attention)
        return {}

    monkeypatch.setattr(probing, "ngram_reliance", reliance)
    encoder = (
        "{kind: hf, model_type: modernbert, config: {num_hidden_layers: 1, hidden_size: 8, "
        "num_attention_heads: 2, intermediate_size: 16}}"
    )
    spec = make_spec(
        f"task={{kind: pcfg, start: 10, batch_size: 2, masking_quirk: {quirk}}}".lower(),
        f"student={encoder}",
        f"teacher={{model: {encoder}, total: 1 steps}}",
        "optimizer={kind: adamw, learning_rate: 0.01}",
    )
    probed(run(spec, "teach"), 4)
    assert told == [quirk]


def test_a_distilled_student_is_looked_at(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec(), "distill"))
    assert [one.model for one in found] == ["teacher", "teacher", "one_shot", "one_shot"]


def test_a_taught_teacher_alone_is_looked_at(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec(), "teach"))
    assert [(one.model, one.step, one.is_teacher) for one in found] == [
        ("teacher", 10, True),
        ("teacher", 20, True),
    ]


def test_students_that_are_not_finished_are_left_out(compared: Path) -> None:
    records = compared / "students/progressive/seed-1/records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    edit_records(records, "".join(lines[:-1]))
    left = {(one.model, one.seed) for one in probed(compared) if not one.is_teacher}
    assert left == {("one_shot", 0), ("progressive", 0), ("one_shot", 1)}


def test_everyone_is_told_before_it_is_looked_at(compared: Path) -> None:
    told: list[str] = []
    probe_run(compared, examples=64, watch=told.append)
    assert told[:3] == [
        "teacher after 10 steps",
        "teacher after 20 steps",
        "one_shot seed 0 after 12 steps",
    ]


def test_a_strategy_may_be_called_teacher(make_spec: MakeSpec) -> None:
    strategies = "strategies={teacher: {curriculum: {kind: from_labels}}}"
    found = probed(run(make_spec(strategies, "seeds=[0]"), "compare"))
    assert [one.is_teacher for one in found] == [True, True, False, False]


def test_the_number_of_examples_follows_the_task_or_the_user(compared: Path) -> None:
    assert {one.examples for one in probed(compared, 32)} == {32}
    found = {one.probe: one.examples for one in probed(compared, None)}
    assert found == {"correlations": 100_000, "similarity": 16_384}
    assert {one.examples for one in probed(compared, 32, trains_probes=True)} == {32}


def test_a_tree_of_parities_is_compared_by_its_taps_alone(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec("task.depth=2"), "distill"))
    assert [one.probe for one in found] == ["similarity"]


def test_a_task_without_a_fitting_probe_needs_a_student(make_spec: MakeSpec) -> None:
    folder = run(make_spec("task.depth=2"), "teach")
    with pytest.raises(
        BindError, match=r"must hold a finished student, or a task that probes know \(parity or "
    ):
        probed(folder)


def test_labels_of_a_tree_can_be_read_off(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec("task.depth=2"), "teach"), trains_probes=True)
    assert [(one.probe, one.step) for one in found] == [("linear", 10), ("linear", 20)]


def test_a_teacher_that_is_not_taught_cannot_be_looked_at(make_spec: MakeSpec) -> None:
    spec = make_spec()
    start(spec, Origin(command="compare", title="tiny", line="curricle compare tiny.yaml"))
    with pytest.raises(
        CheckpointError,
        match=r"must hold a finished teacher; it does not, .*'curricle resume .*run'",
    ):
        probed(spec.folder)


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a run folder"):
        probed(tmp_path)


def test_a_damaged_student_is_told(compared: Path) -> None:
    with seeding.scoped(0, "models"):
        save_weights(MLP(8, (9,), 2), compared / "students/one_shot/seed-0/model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged or of another run"):
        probed(compared)
