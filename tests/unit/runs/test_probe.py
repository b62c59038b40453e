"""The networks of a run folder, looked at by the probes that fit their task."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.models.mlp import MLP
from curricle.models.weights import load_weights, save_weights
from curricle.probes.correlations import output_correlations
from curricle.probes.forward_passes import hidden_states
from curricle.probes.representations import linear_probe, tap_similarity
from curricle.records import PROBES, ProbeRecord, read_probes
from curricle.runs import probe as probing
from curricle.runs.folder import Origin, start
from curricle.runs.probe import probe_run
from curricle.runs.spec import RunSpec
from curricle.runs.train import planned_student, single_run, student_runs, teach, train_student
from tests.parts import edit_records

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
    folder: Path,
    examples: int | None = 64,
    *,
    trains_probes: bool = False,
    only: tuple[str, ...] = (),
) -> list[ProbeRecord]:
    return probe_run(
        folder,
        examples=examples,
        watch=lambda _: None,
        trains_probes=trains_probes,
        only=only,
    )


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
        for probe in ("correlations", "ranks", "similarity")
    ]
    checkpoints = [
        (probe, "teacher", 0, step) for step in (10, 20) for probe in ("correlations", "ranks")
    ]
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
    assert [one.model for one in found] == ["teacher"] * 4 + ["one_shot"] * 3


def test_a_taught_teacher_alone_is_looked_at(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec(), "teach"), only=("ranks",))
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
    assert [one.is_teacher for one in found] == [True] * 4 + [False] * 3


def test_the_number_of_examples_follows_the_task_or_the_user(compared: Path) -> None:
    assert {one.examples for one in probed(compared, 32)} == {32}
    found = {one.probe: one.examples for one in probed(compared, None)}
    assert found == {"correlations": 100_000, "ranks": 16_384, "similarity": 16_384}
    assert {one.examples for one in probed(compared, 32, trains_probes=True)} == {32}


def test_a_tree_of_parities_is_compared_by_its_taps_alone(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec("task.depth=2"), "distill"))
    assert [one.probe for one in found] == ["ranks", "ranks", "ranks", "similarity"]


def test_a_probe_of_students_needs_a_student(make_spec: MakeSpec) -> None:
    folder = run(make_spec("task.depth=2"), "teach")
    with pytest.raises(
        BindError, match=r"must hold a finished student for the probes \['similarity'\]; got none$"
    ):
        probed(folder, only=("similarity",))


def test_only_the_named_probes_look(compared: Path) -> None:
    assert {one.probe for one in probed(compared, only=("ranks",))} == {"ranks"}


def test_a_name_that_is_no_probe_of_the_task_is_refused(compared: Path) -> None:
    with pytest.raises(
        SpecError, match=r"^'--only' must name probes that fit the task; got 'rank'; did you mean"
    ):
        probed(compared, only=("rank",))


def test_a_student_has_the_ranks_of_its_teacher_and_of_its_projected_targets(
    make_spec: MakeSpec,
) -> None:
    """Against numpy, from the weights on disk and the projection of the run's seed."""
    spec = make_spec("curriculum={kind: extraction}")
    folder = run(spec, "distill")
    batch: Batch = make_spec("task.evaluation_examples=64", "task.batch_size=64").task.open(
        seed=0, cache_dir=Path("cache")
    ).evaluation[0]  # fmt: skip
    *_, last = probed(folder, only=("ranks",))
    with seeding.scoped(0, "models"):
        student = weights_of(folder / "model.safetensors", 8)
        teacher = weights_of(folder / "teacher/model.safetensors", 16)
    (term,) = planned_student(spec, single_run(spec)).stages[0].terms
    matrix = term.objective.matrix  # type: ignore[attr-defined]
    states = hidden_states(student.tapped(), batch, [1])["1"]
    taught = hidden_states(teacher.tapped(), batch, [1])["1"]
    assert last.numbers["rank_1"] == pytest.approx(rank(states.numpy()))
    assert last.numbers["teacher_1"] == pytest.approx(rank(taught.numpy(), 8))
    assert last.numbers["target_1"] == pytest.approx(rank((taught @ matrix.mT).numpy()), rel=1e-5)


def rank(states: "np.ndarray[Any, Any]", directions: int | None = None) -> float:
    """Return the effective rank, as a power of two: 2 to the entropy in bits."""
    values = np.linalg.svd(states - states.mean(0), compute_uv=False)[:directions]
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(2 ** -(shares * np.log2(shares)).sum())


def test_labels_of_a_tree_can_be_read_off(make_spec: MakeSpec) -> None:
    found = probed(run(make_spec("task.depth=2"), "teach"), trains_probes=True)
    steps = [one.step for one in found if one.probe == "linear"]
    assert steps == [10, 20]


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
