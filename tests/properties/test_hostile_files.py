"""Files of any content are read or refused in a sentence that a terminal can show.

`tests.soak.fuzz` reads more inputs, mutated by hand; here hypothesis draws and shrinks them.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from curricle.checksums import LineChain, sealed
from curricle.curriculum.strategies import extraction
from curricle.errors import CurricleError
from curricle.records import EndRecord, StageRecord, StepRecord, Usage, read_records
from curricle.runs.spec import load_spec
from curricle.runs.target_capture import capture_targets
from curricle.tasks import TextTask
from curricle.teachers.store.manifest import MANIFEST, read_manifest
from curricle.teachers.store.shards import check_content, open_shard
from curricle.values import plain
from tests.parts import mlp, parity
from tests.runs import tiny_comparison

FEW = settings(max_examples=80)
"""Inputs of each kind of file."""
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "a" * 300, "\x1b[31m", "\ud800", "1e400", "<b>"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def refused_in_words(read: Callable[[], object]) -> None:
    """Read something that may be refused, but only by an error of curricle."""
    try:
        read()
    except CurricleError as error:
        sentence = " ".join(str(error).split())
        assert sentence
        assert sentence.isprintable()
        assert len(sentence) <= 1500


@st.composite
def grafted(draw: st.DrawFn, document: Any) -> Any:
    """Return plain data in which one place holds something else, or is missing."""
    if not isinstance(document, (dict, list)) or not document or draw(st.integers(0, 4)) == 0:
        return draw(TREES)
    if isinstance(document, list):
        place: Any = draw(st.integers(0, len(document) - 1))
        changed: Any = list(document)
    else:
        place, changed = draw(st.sampled_from(sorted(document))), dict(document)
    if draw(st.integers(0, 9)) == 0:
        del changed[place]
    else:
        changed[place] = draw(grafted(document[place]))
    return changed


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Return bytes of which a slice is replaced by others."""
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(len(data), start + 40)))
    return data[:start] + draw(st.binary(max_size=12)) + data[stop:]


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


# --- specs ----------------------------------------------------------------------------------------


@FEW
@given(document=grafted(tiny_comparison()))
def test_a_spec_of_any_fields_is_clean(document: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "spec.yaml"
    path.write_bytes(as_json(document))
    refused_in_words(lambda: load_spec(path))


@FEW
@given(data=damaged(yaml.safe_dump(tiny_comparison()).encode()))
def test_a_spec_of_any_bytes_is_clean(data: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "spec.yaml"
    path.write_bytes(data)
    refused_in_words(lambda: load_spec(path))


# --- records --------------------------------------------------------------------------------------

RECORDS = [
    plain(StageRecord(stage="logits", usage=Usage())),
    plain(
        StepRecord(
            stage="logits", loss=1.0, terms={"logits": 1.0}, learning_rate=0.1, usage=Usage(steps=1)
        )
    ),
    plain(EndRecord(metrics={"accuracy": 0.5}, usage=Usage(steps=2))),
]


@FEW
@given(documents=grafted(RECORDS))
def test_records_of_any_fields_are_clean(documents: Any, tmp_path_factory: Any) -> None:
    chain, lines = LineChain(), []
    for document in documents if isinstance(documents, list) else [documents]:
        # Numbers that JSON lacks are written by no chain.
        is_chained = isinstance(document, dict) and "check" not in document
        with suppress(ValueError):
            lines.append(chain.line(document) if is_chained else as_json(document) + b"\n")
    path = tmp_path_factory.getbasetemp() / "records.jsonl"
    path.write_bytes(b"".join(lines))
    refused_in_words(lambda: list(read_records(path)))


@FEW
@given(data=damaged(b"".join(map(LineChain().line, RECORDS))))
def test_records_of_any_bytes_are_clean(data: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "records.jsonl"
    path.write_bytes(data)
    refused_in_words(lambda: list(read_records(path)))


# --- manifests and stores -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("store") / "targets"
    student, teacher = mlp(5, 4).module, mlp(16, 12, seed=1).module
    capture_targets(student, teacher, extraction(total="8 steps"), parity(), folder=folder)
    return folder


@FEW
@given(data=st.data())
def test_a_manifest_of_any_fields_is_clean(store: Path, data: st.DataObject) -> None:
    document = json.loads((store / MANIFEST).read_text())
    document.pop("check")
    changed = data.draw(grafted(document))
    folder = store.with_name("manifest")
    folder.mkdir(exist_ok=True)
    text = sealed(changed).encode() if isinstance(changed, dict) else as_json(changed)
    (folder / MANIFEST).write_bytes(text)
    refused_in_words(lambda: read_manifest(folder))


@FEW
@given(data=st.data())
def test_a_shard_of_any_bytes_is_clean(store: Path, data: st.DataObject) -> None:
    shard = read_manifest(store).shards[0]
    content = data.draw(damaged((store / shard.file).read_bytes()))
    folder = store.with_name("shard")
    folder.mkdir(exist_ok=True)
    (folder / shard.file).write_bytes(content)
    # The size in the manifest is that of the damaged file, so that its head is read.
    resized = replace(shard, size=len(content))
    refused_in_words(lambda: open_shard(folder, resized))
    refused_in_words(lambda: check_content(folder, resized))


# --- corpora --------------------------------------------------------------------------------------

LINES = ["the quick brown fox jumps over the lazy dog", "", "zwölf Boxkämpfer jagen Viktor"] * 9


@settings(max_examples=25)
@given(
    data=damaged("\n".join(LINES).encode())
    | damaged("\n".join(json.dumps({"text": line}) for line in LINES).encode()),
    suffix=st.sampled_from([".txt", ".jsonl", ".txt.gz"]),
)
def test_a_corpus_of_any_bytes_is_clean(data: bytes, suffix: str, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    path = folder / f"corpus{suffix}"
    path.write_bytes(data)

    def read() -> None:
        task = TextTask(
            corpus=str(path), vocabulary_size=270, window=8, batch_size=2, evaluation_batches=1
        )
        task.open(seed=0, cache_dir=folder / "cache").stream.batch(0)

    refused_in_words(read)
