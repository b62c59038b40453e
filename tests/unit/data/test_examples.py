"""Parts of a source and the batches of examples in memory."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from curricle.data.examples import ExampleStream, open_table
from curricle.data.table_files import Row
from curricle.errors import DataError

ROWS: list[Row] = [{"text": f"text {number}", "label": number % 2} for number in range(40)]


def numbers(rows: list[Row]) -> list[int]:
    return [int(row["text"].split()[1]) for row in rows]


def write(path: Path, rows: list[Row] = ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_twentieth_row_of_a_single_file_is_held_out(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl")
    assert numbers(open_table(file, "valid")) == [19, 39]
    assert numbers(open_table(file, "train")) == [n for n in range(40) if n not in (19, 39)]


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_a_folder_has_a_file_for_each_part(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.jsonl", ROWS[:3])
    write(tmp_path / f"{name}.jsonl", ROWS[3:5])
    (tmp_path / "README.md").write_text("no table")
    assert numbers(open_table(tmp_path, "train")) == [0, 1, 2]
    assert numbers(open_table(tmp_path, "valid")) == [3, 4]


def test_data_sets_of_the_package_datasets_are_read_as_they_are() -> None:
    datasets = importlib.import_module("datasets")
    table = datasets.Dataset.from_list(ROWS)
    assert open_table(table, "train") == open_table(ROWS, "train")
    splits = datasets.DatasetDict({"train": table, "validation": table.select([5])})
    assert numbers(open_table(splits, "valid")) == [5]
    assert len(open_table(splits, "train")) == 40


def test_a_data_set_by_name_is_loaded_by_the_package_datasets(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    assert numbers(open_table(f"datasets:{tmp_path}", "valid")) == [19, 39]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"valid.jsonl": ROWS}, "must have a part 'train'"),
        ({"train.jsonl": ROWS, "train.csv": ROWS}, "must hold one file for 'train'; got train.csv"),
        ({"train.jsonl": []}, "must have rows for 'valid'; got none; .* it needs at least 20"),
    ],
)
def test_a_folder_without_a_part_is_refused(
    tmp_path: Path, files: dict[str, list[Row]], sentence: str
) -> None:
    for name, rows in files.items():
        write(tmp_path / name, rows)
    with pytest.raises(DataError, match=sentence):
        open_table(tmp_path, "valid")


def test_a_source_that_does_not_exist_is_named() -> None:
    with pytest.raises(DataError, match="'data' must be a file, a folder or datasets:NAME; got"):
        open_table("x", "train")


def stream(**fields: object) -> ExampleStream:
    inputs = torch.arange(10).float().unsqueeze(1)
    defaults = {"batch_size": 4, "seed": 3}
    return ExampleStream(inputs, torch.arange(10) % 3, **(defaults | fields))  # type: ignore[arg-type]


def seen(data: ExampleStream, step: int) -> list[int]:
    inputs = data.batch(step).inputs
    assert isinstance(inputs, Tensor)
    return inputs.flatten().long().tolist()


def test_batches_are_permutations_that_cross_the_end_of_an_epoch() -> None:
    data = stream()
    read = [number for step in range(5) for number in seen(data, step)]
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10] != read[10:]
    assert seen(data, 1) == read[4:8]
    assert seen(stream(seed=4), 0) != read[:4] or seen(stream(seed=5), 0) != read[:4]
    assert len(seen(stream(batch_size=25), 0)) == 25
    labels = data.batch(0).labels
    assert labels is not None
    assert labels.tolist() == [number % 3 for number in read[:4]]


def test_held_out_batches_are_in_order_with_a_short_last_one() -> None:
    batches = stream().held_out(100)
    assert [batch.num_examples for batch in batches] == [4, 4, 2]
    assert [batch.num_examples for batch in stream().held_out(2)] == [4, 4]
    assert torch.equal(batches[2].leading.flatten(), torch.tensor([8.0, 9.0]))


def test_the_fingerprint_covers_content_shape_and_order() -> None:
    other = ExampleStream(torch.ones(10, 1), torch.arange(10) % 3, batch_size=4, seed=3)
    streams = [stream(), stream(seed=4), stream(batch_size=5), stream(purpose="x"), other]
    assert len({data.fingerprint for data in streams}) == 5
    assert stream().fingerprint == stream().fingerprint


def test_values_at_positions_are_scored_at_each_of_them() -> None:
    labels = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    data = ExampleStream(torch.ones(6, 3, 4), labels, batch_size=2, positions="token")
    (batch, *_) = data.held_out(1)
    assert batch.labels is not None
    assert torch.equal(batch.labels, labels[:2].flatten(0, 1))
    assert (batch.positions, batch.num_selected, data.tokens_per_batch) == ((2, 3), 6, 6)


def test_inputs_and_labels_of_different_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"equally many examples, at least one; got \[2, 3\]"):
        ExampleStream(torch.ones(3, 1), torch.ones(2), batch_size=1)


def test_groups_stay_together_in_every_order() -> None:
    inputs = {"input_ids": torch.arange(30).reshape(30, 1)}
    data = ExampleStream(inputs, None, batch_size=6, group=3)
    steps = [data.batch(step) for step in range(10)]
    for batch in steps:
        assert batch.labels is None
        groups = batch.leading.reshape(2, 3)
        assert (groups - groups[:, :1] == torch.arange(3)).all()
        assert (groups[:, 0] % 3 == 0).all()
    first = torch.cat([batch.leading.flatten() for batch in steps[:5]])
    assert first.tolist() != list(range(30))
    assert sorted(first.tolist()) == list(range(30))
    with pytest.raises(DataError, match=r"must be multiples of the 3 of a group; got 30 and 8"):
        ExampleStream(inputs, None, batch_size=8, group=3)
