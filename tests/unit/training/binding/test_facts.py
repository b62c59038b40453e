"""A run is known by what its result depends on, and a change is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model

from curricle.curriculum.strategies import extraction, from_labels, one_shot
from curricle.errors import CheckpointError
from curricle.models.tapped import TappedModel
from curricle.models.weights import load_weights
from curricle.models.wrapping import tapped
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.facts import (
    FACTS,
    MOST_CHANGES,
    differences,
    run_facts,
    write_facts,
)
from curricle.training.distill import execute
from curricle.training.loop.evaluation import label_metrics
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD
from curricle.values import fingerprint
from tests.parts import Tuned, bound, mlp, parity


def facts(**parts: Any) -> dict[str, Any]:
    return run_facts(bound(one_shot(total="4 steps"), **parts))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"optimizer": SGD(learning_rate=0.2)}, "'optimizer.learning_rate' was 0.1 and is 0.2"),
        ({"seed": 3}, "'seed' was 0 and is 3"),
        ({"student": mlp(5, 5)}, "the student has another architecture"),
        (
            {"teacher": LiveTeacher(mlp(16, 12, seed=2))},
            "the teacher has other weights or adapters",
        ),
        ({"stream": parity(seed=1)}, "the data differ"),
        (
            {"settings": {"gradient_accumulation_steps": 2}},
            "'settings.gradient_accumulation_steps' was 1 and is 2",
        ),
    ],
)
def test_what_has_changed_is_named(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    write_facts(tmp_path, facts())
    assert differences(tmp_path, facts(**parts)) == words


def test_equal_runs_have_equal_facts_also_from_a_file(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    assert differences(tmp_path, facts()) == ""
    assert "'seed'" in differences(tmp_path, facts(seed=1))


def adapted(change: Callable[[Any], object] | None = None) -> TappedModel:
    """Return a network with adapters `a`, which is active, and `b` at its first layer."""
    model = mlp(5, 4)
    module: Any = model.module
    module.blocks[0][0] = Tuned(module.blocks[0][0], "a", "b")
    if change is not None:
        change(module.blocks[0][0])
    return tapped(module)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: setattr(layer, "active_adapters", ["b"]), "other adapters of the student"),
        (lambda layer: layer.scaling.update(a=3.0), "other adapters of the student"),
        (lambda layer: layer.low.requires_grad_(False), "other weights of the student are frozen"),
        (lambda layer: layer.scaling.update(b=3.0), ""),
    ],
    ids=["active", "factor", "frozen", "factor of another"],
)
def test_what_a_student_trains_is_part_of_a_run(
    tmp_path: Path, change: Callable[[Any], object], words: str
) -> None:
    write_facts(tmp_path, facts(student=adapted()))
    found = differences(tmp_path, facts(student=adapted(change)))
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_a_student_without_adapters_has_the_facts_that_it_had() -> None:
    assert not {"student_frozen", "student_adapters"} & facts().keys()


def test_a_length_is_named_by_its_place(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    longer = run_facts(bound(one_shot(total="9 steps")))
    assert differences(tmp_path, longer) == "'curriculum.0.duration.number' was 4 and is 9"


def test_many_changes_are_counted(tmp_path: Path) -> None:
    then, now = ({str(number): start + number for number in range(5)} for start in (0, 10))
    write_facts(tmp_path, then)
    assert differences(tmp_path, now).split("; ")[MOST_CHANGES:] == ["and 2 more"]


def test_a_long_value_is_named_in_part(tmp_path: Path) -> None:
    write_facts(tmp_path, {"pattern": "a" * 500})
    assert len(differences(tmp_path, {"pattern": "b"})) < 120


def test_a_folder_without_facts_names_nothing(tmp_path: Path) -> None:
    assert differences(tmp_path, facts()) == ""


@pytest.mark.parametrize("content", ["{", "[]", "flipped"])
def test_damaged_facts_are_named(content: str, tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    flipped = (tmp_path / FACTS).read_text().replace("0", "1", 1)
    (tmp_path / FACTS).write_text(flipped if content == "flipped" else content)
    assert "run-facts.json' cannot name the change: " in differences(tmp_path, facts())


@pytest.mark.parametrize("place", [0, -1])
def test_every_number_of_the_teacher_counts(place: int) -> None:
    teacher = mlp(40, 40, seed=1)
    before = fingerprint(run_facts(bound(one_shot(total="4 steps"), teacher=LiveTeacher(teacher))))
    with torch.no_grad():
        teacher.module.get_parameter("blocks.1.0.weight")[place, place] += 1e-6
    after = fingerprint(run_facts(bound(one_shot(total="4 steps"), teacher=LiveTeacher(teacher))))
    assert before != after


def executed(folder: Path, total: str) -> None:
    evaluate = label_metrics([parity().batch(0)])
    run = bound(one_shot(total=total))
    execute(run, evaluate, metric="accuracy", outputs=Outputs(folder=folder), resume=True)


def test_a_finished_run_cannot_be_prolonged(tmp_path: Path) -> None:
    executed(tmp_path, "2 steps")
    sentence = r"'curriculum.0.duration.number' was 2 and is 5; a finished run cannot be prolonged"
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        executed(tmp_path, "5 steps")
    # The named call gives a new run the weights of the finished student.
    call = re.search(r"safetensors\.torch\.load_model\(student, '(.*)'\)$", str(refusal.value))
    assert call is not None
    student = mlp(5, 4, seed=3)
    load_model(student.module, call[1])
    finished = bound(one_shot(total="2 steps"))
    load_weights(finished.student.module, tmp_path / "model.safetensors")
    for name, weight in finished.student.module.state_dict().items():
        assert torch.equal(student.module.state_dict()[name], weight)


def test_only_pairs_that_earlier_versions_rounded_otherwise_are_facts() -> None:
    def keys(depth: int, teacher_depth: int) -> set[str]:
        curriculum = extraction(total="8 steps")
        teacher = LiveTeacher(mlp(*[7] * teacher_depth, seed=1))
        return set(run_facts(bound(curriculum, student=mlp(*[5] * depth), teacher=teacher)))

    assert keys(3, 6) - keys(2, 4) == {"pairs"}
    assert "pairs" not in run_facts(bound(from_labels(total="8 steps"), teacher=None))
