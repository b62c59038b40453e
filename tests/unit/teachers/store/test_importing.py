"""Targets of other programs: they teach as the distributions that were written."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import yaml
from pyarrow import parquet

from curricle.data.batch import Batch
from curricle.errors import CheckpointError, DataError
from curricle.locks import locked
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.store.distillkit import CONFIGURATION
from curricle.teachers.store.importing import import_targets
from curricle.teachers.store.manifest import Manifest, TeacherFacts, read_manifest, write_manifest
from curricle.teachers.stored import open_targets

IDS = [3, 1, 4, 1]
CLASSES = 9
# After each of the first three ids: two classes with their probabilities.
KNOWN = [[(5, 0.5), (2, 0.25)], [(0, 0.75), (8, 0.125)], [(7, 0.5), (6, 0.25)]]


def target(folder: Path, ids: list[int], places: list[int]) -> SparseTarget:
    """Read some positions as a causal model with logits there would."""
    teacher = open_targets(folder)
    (section,) = teacher.store.manifest.sections
    batch = Batch(inputs={"input_ids": torch.tensor([ids])}, selected=torch.tensor(places))
    found: SparseTarget = teacher.store.reader(section).target(
        batch, selected=True, rows=len(places)
    )
    return found


def agrees(found: SparseTarget, rows: list[int]) -> bool:
    masses = [dict(KNOWN[row]) for row in rows]
    for number, wanted in enumerate(masses):
        pairs = zip(found.ids[number].tolist(), found.weights[number].tolist(), strict=True)
        told = {key: mass for key, mass in pairs if mass}
        if told.keys() != wanted.keys():
            return False
        if any(abs(told[key] - mass) > 1e-3 for key, mass in wanted.items()):
            return False
    return True


def entry(row: int, **more: Any) -> dict[str, Any]:
    return {
        str(number): {"logprob": math.log(mass), "rank": place + 1, "decoded_token": "x"} | more
        for place, (number, mass) in enumerate(KNOWN[row])
    }


def listed(row: int) -> list[dict[str, Any]]:
    return [{"token": f"token_id:{n}", "logprob": math.log(m)} for n, m in KNOWN[row]]


LINES: list[dict[str, Any]] = [
    {"prompt_token_ids": IDS, "prompt_logprobs": [None, *map(entry, range(3))]},
    {"input_ids": IDS, "logprobs": [None, *map(listed, range(3))]},
    {"input_ids": IDS, "logprobs": list(map(listed, range(3)))},
    {
        "input_ids": IDS,
        "prompt_logprobs": [
            None,
            # The id that came next is told although it is the seventh.
            entry(0) | {"1": {"logprob": -9.0, "rank": 7}},
            entry(1),
            entry(2),
        ],
    },
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_lines_of_vllm_are_read(tmp_path: Path, line: dict[str, Any]) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(line) + "\n")
    manifest = import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
    assert manifest.is_complete
    found = target(tmp_path / "store", IDS, [0, 2])
    assert agrees(found, [0, 2])
    assert found.remaining_mass is not None
    torch.testing.assert_close(found.remaining_mass, torch.tensor([0.25, 0.25]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "line",
    [
        {"ids": IDS},
        {"input_ids": IDS, "logprobs": [listed(0)] * 4},
        {"input_ids": IDS, "logprobs": [[{"token": "cat", "logprob": -1.0}]]},
        [],
    ],
)
def test_another_layout_of_lines_is_told(tmp_path: Path, line: Any) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=r"line 1 of .* must hold token ids"):
        import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)


def test_what_cannot_be_a_store_is_told(tmp_path: Path) -> None:
    lines = tmp_path / "t.jsonl"
    lines.write_text("")
    with pytest.raises(DataError, match="must hold at least one sequence"):
        import_targets(lines, tmp_path / "store", num_classes=CLASSES)
    with pytest.raises(DataError, match="'num_classes' must be given"):
        import_targets(lines, tmp_path / "store")
    lines.write_text(json.dumps(LINES[0]))
    with pytest.raises(DataError, match="must be more than every id; got 8 and the id 8"):
        import_targets(lines, tmp_path / "store", num_classes=8)
    with pytest.raises(DataError, match="must hold Parquet files or be JSON lines"):
        import_targets(tmp_path, tmp_path / "store", num_classes=8)


def test_a_folder_that_holds_targets_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(LINES[0]))
    import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
    with pytest.raises(CheckpointError, match="must not hold targets already"):
        import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)


def test_a_capture_that_was_interrupted_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(LINES[0]))
    left = Manifest(teacher=TeacherFacts(weights={"final": "ab"}))
    write_manifest(tmp_path / "store", left)
    with pytest.raises(CheckpointError, match="must not hold targets already"):
        import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
    assert read_manifest(tmp_path / "store") == left
    with (
        locked(tmp_path / "other"),
        pytest.raises(CheckpointError, match="must have one writer at a time"),
    ):
        import_targets(tmp_path / "t.jsonl", tmp_path / "other", num_classes=CLASSES)


def columns(**lists: Any) -> pyarrow.Table:
    return pyarrow.table({name: [found] for name, found in lists.items()})


def test_raw_columns_are_read(tmp_path: Path) -> None:
    table = columns(
        input_ids=IDS,
        token_ids=[[number for number, _ in row] for row in KNOWN],
        top_values=[[math.log(mass) for _, mass in row] for row in KNOWN],
    )
    parquet.write_table(table, tmp_path / "data_0.parquet")
    import_targets(tmp_path, tmp_path / "store", num_classes=CLASSES, missing="renormalize")
    found = target(tmp_path / "store", IDS, [0, 1, 2])
    assert found.remaining_mass is None
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3))


def test_packed_columns_are_read_by_their_configuration(tmp_path: Path) -> None:
    packed = [
        list(torch.tensor([math.log(mass) for _, mass in row]).view(torch.uint8).tolist())
        for row in KNOWN
    ]
    # Two ids of four bits in one byte.
    ids = [[row[0][0] << 4 | row[1][0]] for row in KNOWN]
    table = columns(input_ids=IDS, compressed_logprobs=packed, bytepacked_indices=ids)
    parquet.write_table(table, tmp_path / "data_0.parquet")
    with pytest.raises(DataError, match=r"'compression_config.yaml' beside it"):
        import_targets(tmp_path, tmp_path / "store", num_classes=CLASSES)
    config = {"d": CLASSES, "k": 2, "exact_k": 2, "residual_bins": [], "delta_encoding": False}
    (tmp_path / CONFIGURATION).write_text(yaml.safe_dump(config))
    import_targets(tmp_path, tmp_path / "store")
    assert agrees(target(tmp_path / "store", IDS, [0, 1, 2]), [0, 1, 2])


def test_sequences_of_fewer_classes_and_twice_the_same_are_read(tmp_path: Path) -> None:
    shorter = {"input_ids": [2, 2], "logprobs": [[{"token": "token_id:4", "logprob": -0.1}]]}
    lines = "\n".join(json.dumps(line) for line in (LINES[2], shorter, LINES[2]))
    (tmp_path / "t.jsonl").write_text(lines)
    manifest = import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
    assert manifest.shards[0].examples == 2
    assert target(tmp_path / "store", [2, 2], [0]).weights[0, 1] == 0


ANSWER: dict[str, Any] = {
    "prompt_token_ids": IDS,
    "prompt_logprobs": [None, *map(entry, range(3))],
    "text": "x",
    "logprobs": None,
}


@pytest.mark.parametrize(
    "line",
    [
        {"id": "a", "object": "text_completion", "choices": [{"index": 0, **ANSWER}]},
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {}, "prompt_token_ids": None}],
            "prompt_token_ids": IDS,
            "prompt_logprobs": ANSWER["prompt_logprobs"],
        },
        {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [ANSWER]}}},
    ],
    ids=["completion", "chat", "batch of requests"],
)
def test_whole_answers_of_a_server_are_read(tmp_path: Path, line: dict[str, Any]) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(line) + "\n")
    import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
    assert agrees(target(tmp_path / "store", IDS, [0, 2]), [0, 2])


def test_each_choice_of_an_answer_is_a_sequence(tmp_path: Path) -> None:
    other = {**ANSWER, "prompt_token_ids": [8, 1, 4, 1]}
    (tmp_path / "t.jsonl").write_text(json.dumps({"choices": [ANSWER, other]}) + "\n")
    import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
    assert agrees(target(tmp_path / "store", [8, 1, 4, 1], [1]), [1])


@pytest.mark.parametrize("missing", ["prompt_token_ids", "prompt_logprobs"])
def test_an_answer_without_ids_names_what_to_ask_for(tmp_path: Path, missing: str) -> None:
    choice = {name: found for name, found in ANSWER.items() if name != missing}
    (tmp_path / "t.jsonl").write_text(json.dumps({"choices": [choice]}) + "\n")
    with pytest.raises(DataError, match=r"^line 1 of .*'return_token_ids': true and 'prompt_logp"):
        import_targets(tmp_path / "t.jsonl", tmp_path / "store", num_classes=CLASSES)
