"""Tasks on rows and tensors opened to streams and sizes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from curricle import seeding
from curricle.errors import BindError, DataError, SpecError
from curricle.example_tasks import BUILT_IN, FACTS, MNIST1D, ExamplesTask, TensorsTask
from curricle.metrics import METRICS
from tests.parts import drawn


def rows(folder: Path, number: int = 40) -> str:
    path = folder / "data.jsonl"
    lines = [json.dumps({"text": f"text {n}", "label": n % 3}) for n in range(number)]
    path.write_text("\n".join(lines))
    return str(path)


def stored(path: Path, inputs: torch.Tensor, labels: torch.Tensor) -> str:
    save_file({"inputs": inputs, "labels": labels}, path)
    return str(path)


@pytest.mark.parametrize("facts", FACTS.values(), ids=[*FACTS])
def test_the_metric_of_every_kind_reads_the_labels_of_its_loss(facts: Any) -> None:
    reads = {"cross_entropy": "classes", "similarity": "pairs"}.get(facts.label_loss, "values")
    # Texts without labels are compared with the teacher.
    assert METRICS[facts.metric].reads in {reads, "teacher"}


def test_texts_open_to_their_sizes(tmp_path: Path) -> None:
    task = ExamplesTask(data=rows(tmp_path), window=8, batch_size=4, vocabulary_size=270)
    data = task.open(seed=0, cache_dir=tmp_path / "cache")
    assert (data.num_classes, data.num_positions, data.padding_token) == (3, 8, 0)
    assert 260 < data.num_inputs <= 270
    assert data.name == "classification of data.jsonl"
    assert task.tokens_per_batch == data.stream.tokens_per_batch == 32
    assert [batch.num_examples for batch in data.evaluation] == [2]
    other = task.open(seed=0, cache_dir=tmp_path / "cache", reader="student")
    assert other.stream.fingerprint != data.stream.fingerprint
    labels = data.evaluation[0].labels
    assert labels is not None
    assert labels.tolist() == [19 % 3, 39 % 3]


def test_held_out_rows_without_an_answer_in_the_window_are_counted(tmp_path: Path) -> None:
    long = {"prompt": "a long prompt of many words", "completion": "no"}
    short = {"prompt": "a", "completion": "yes"}
    for split, examples in {"train": [short] * 8, "valid": [short, short, long]}.items():
        path = tmp_path / f"{split}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in examples))
    task = ExamplesTask(
        kind="instructions", data=str(tmp_path), window=8, batch_size=2, vocabulary_size=270
    )
    stream = task.open(seed=0, cache_dir=tmp_path / "cache").stream
    note = str(getattr(stream, "note", ""))
    assert note.startswith("data: 0 training rows and 1 held-out rows have no answer within 8 tok")


def test_a_start_token_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"source": "a", "target": "b"}\n' * 20)
    fields = {"kind": "seq2seq", "data": str(tmp_path), "vocabulary_size": 270}
    with pytest.raises(
        BindError, match="'start_token' must be a token of the tokenizer; got '<s>'"
    ):
        ExamplesTask(**fields, start_token="<s>").open(seed=0, cache_dir=tmp_path)  # type: ignore[arg-type]
    task = ExamplesTask(**fields, start_token="<bos>")  # type: ignore[arg-type]
    inputs = task.open(seed=0, cache_dir=tmp_path).stream.batch(0).inputs
    assert not isinstance(inputs, torch.Tensor)
    assert (inputs["decoder_input_ids"][:, 0] == 3).all()


def test_a_tokenizer_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    task = ExamplesTask(data=rows(tmp_path), tokenizer="bert-base-uncased")
    with pytest.raises(BindError, match="'tokenizer' must be a folder with a tokenizer; got 'bert"):
        task.open(seed=0, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("encoding", "shape", "sizes"), [("vector", (64,), (64, 1)), ("image", (1, 8, 8), (1, 8))]
)
def test_digits_are_images_between_0_and_1(
    encoding: Any, shape: tuple[int, ...], sizes: tuple[int, int], tmp_path: Path
) -> None:
    data = TensorsTask(encoding=encoding).open(seed=0, cache_dir=tmp_path)
    leading = data.stream.batch(0).leading
    assert tuple(leading.shape[1:]) == shape
    assert (float(leading.min()), float(leading.max())) == (0.0, 1.0)
    assert (data.num_inputs, data.num_positions, data.num_classes) == (*sizes, 10)
    assert sum(batch.num_examples for batch in data.evaluation) == 1797 // 5


def test_signals_of_mnist_1d_are_the_same_for_every_seed_and_move_no_generator(
    tmp_path: Path,
) -> None:

    # Nothing else stands between the two states of Python's generator: the checks of types in tests
    # draw from it for every sequence.
    state, foreign = seeding.global_state(), seeding.foreign_state()
    BUILT_IN[MNIST1D]("train")
    assert seeding.foreign_state() == foreign
    assert seeding.global_state() == state
    data = TensorsTask(data="mnist1d", batch_size=4000)
    opened = [data.open(seed=seed, cache_dir=tmp_path) for seed in (0, 1)]
    assert (opened[0].num_inputs, opened[0].num_classes) == (40, 10)
    assert [sum(batch.num_examples for batch in one.evaluation) for one in opened] == [1000] * 2
    first, second = (one.stream.batch(0).leading.sort(0).values for one in opened)
    assert torch.equal(first, second)
    # The paper's data are centered, with standard deviation 1, over both parts.
    assert float(first.std()) == pytest.approx(1.0, abs=0.05)


def test_mnist_1d_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(BindError, match=r"'mnist1d' must be installed for MNIST-1D: pip install '"):
        TensorsTask(data="mnist1d").open(seed=0, cache_dir=tmp_path)


def test_a_folder_has_a_file_of_tensors_for_each_part(tmp_path: Path) -> None:
    stored(tmp_path / "train.safetensors", drawn(6, 3), torch.arange(6) % 2)
    stored(tmp_path / "valid.safetensors", drawn(4, 3), torch.arange(4) % 2)
    data = TensorsTask(data=str(tmp_path), batch_size=6).open(seed=0, cache_dir=tmp_path)
    assert torch.equal(data.evaluation[0].leading, drawn(4, 3))
    read = data.stream.batch(0).leading.sort(0).values
    assert torch.equal(read, drawn(6, 3).sort(0).values)


def test_positions_count_as_tokens(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.safetensors", drawn(20, 5, 3), torch.zeros(20, 5).long())
    task = TensorsTask(data=file, encoding="positions", batch_size=4)
    assert task.tokens_per_batch == 20
    assert task.open(seed=0, cache_dir=tmp_path).stream.tokens_per_batch == 20


@pytest.mark.parametrize(
    ("inputs", "labels", "fields", "sentence"),
    [
        (drawn(20, 3), drawn(20), {}, r"must be whole numbers \(example\); got torch.float32"),
        (drawn(20, 3), drawn(20), {"labels": "values"}, r"must be floats \(example, value\)"),
        (
            drawn(20, 3),
            torch.zeros(20, 3).long(),
            {"encoding": "positions"},
            "'inputs' of .* must have 3 axes with encoding 'positions'; got shape",
        ),
        (
            drawn(20, 3),
            torch.zeros(20).long(),
            {"encoding": "image"},
            "'inputs' of .* must have 3 or 4 axes with encoding 'image'; got shape",
        ),
        (
            drawn(20, 1, 4, 4),
            torch.zeros(20, 4, 5).long(),
            {"encoding": "image"},
            r"'labels' of .* must have the size of the images, \(4, 4\); got \(4, 5\)",
        ),
    ],
)
def test_tensors_of_other_axes_are_refused(
    inputs: torch.Tensor, labels: torch.Tensor, fields: Any, sentence: str, tmp_path: Path
) -> None:
    file = stored(tmp_path / "a.safetensors", inputs, labels)
    with pytest.raises(DataError, match=sentence):
        TensorsTask(data=file, **fields).open(seed=0, cache_dir=tmp_path)


def test_files_without_the_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"x": drawn(2)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"the tensors 'inputs' and 'labels'; got \['x'\]"):
        TensorsTask(data=str(tmp_path / "a.safetensors")).open(seed=0, cache_dir=tmp_path)
    with pytest.raises(
        DataError, match=r"'data' must be 'digits', 'mnist1d', a .safetensors file or a folder"
    ):
        TensorsTask(data=str(tmp_path / "b.safetensors")).open(seed=0, cache_dir=tmp_path)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SpecError, match="kind"):
        ExamplesTask(kind="summary", data="x")  # type: ignore[arg-type]
