"""Import of top-k log-probabilities written by other programs.

Two layouts are converted to stored targets of codec `top_k`, so that reading needs a single layout:

- Parquet files of DistillKit's capture with vLLM, beside a `compression_config.yaml`: columns
  `input_ids`, `compressed_logprobs` and `bytepacked_indices`; or the raw columns `input_ids`,
  `token_ids` and `top_values`. See `teachers.store.distillkit` for the packed form.
- JSON lines, each an object with the input ids (`prompt_token_ids` or `input_ids`) and the
  log-probabilities at them (`prompt_logprobs` or `logprobs`), one entry a position: a mapping from
  id to `{"logprob", "rank"}` as in responses of vLLM's server, or a list of `{"token":
  "token_id:7", "logprob"}` as in chat responses with `return_tokens_as_token_ids`. The first entry
  of `prompt_logprobs` is null, since it has no context. Complete responses of vLLM's server have
  both in `choices`; requests need `prompt_logprobs` and `return_token_ids`.

Axes: row (positions of one sequence), draw (stored classes, the most likely first).

Design: row i is the teacher's prediction after the ids up to i, as in the rest of curricle. vLLM
files it under the predicted position, i + 1. Lists as long as the ids without null in front are
refused, because both readings are possible.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from curricle.data.batch import Batch
from curricle.data.example_keys import example_keys
from curricle.errors import CheckpointError, DataError
from curricle.extras import imported
from curricle.locks import locked
from curricle.teachers.store.codecs import TopK
from curricle.teachers.store.distillkit import Compression, read_compression
from curricle.teachers.store.manifest import MANIFEST, DataFacts, Manifest, TargetSet, read_manifest
from curricle.teachers.store.shards import ShardWriter
from curricle.yaml_specs import Document, from_json

Missing = Literal["rest", "renormalize"]
Rows = list[int] | list[list[float]]
"""A column of a Parquet row: packed bytes, or lists of numbers."""
BATCH_ROWS = 64
"""Sequences of a Parquet file that are in memory at a time."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSequence:
    """A sequence with a teacher's top-k predictions."""

    ids: tuple[int, ...]
    """Token ids of the sequence."""
    classes: Int[Tensor, "row draw"]
    """Most likely next ids at each of its first positions."""
    log_probabilities: Float[Tensor, "row draw"]
    """Their log-probabilities; minus infinity marks an unused entry."""


def import_targets(
    source: Path,
    folder: Path,
    *,
    num_classes: int | None = None,
    temperature: float = 1.0,
    missing: Missing = "rest",
    inputs: str = "input_ids",
) -> Manifest:
    """Convert another program's captured predictions to a store; return its manifest.

    Args:
        source: A folder of Parquet files, a single such file, or a file of JSON lines.
        folder: Folder of the new store.
        num_classes: Size of the vocabulary; None takes that of DistillKit's configuration.
        temperature: Temperature of the log-probabilities.
        missing: Use of the missing mass; see `TopK`.
        inputs: Name of the input with the ids in the batches of students.

    Returns:
        The manifest of the store.

    Raises:
        DataError: If the layout is not supported, or the size of the vocabulary is unknown.
        CheckpointError: If the folder already holds targets, or another process writes into it.
    """
    is_lines = source.suffix in {".jsonl", ".json"}
    config = None if is_lines else read_compression(source if source.is_dir() else source.parent)
    classes = num_classes if config is None else config.d
    if classes is None:
        raise DataError(
            f"'num_classes' must be given, because {str(source)!r} does not contain it; got none"
        )
    sequences = _read_lines(source) if is_lines else _read_parquet(source, config)
    # The manifest is written before the targets and needs k, which the first sequence defines.
    first = next(sequences, None)
    if first is None:
        raise DataError(f"{str(source)!r} must hold at least one sequence; got none")
    target_set = TargetSet(
        facts={"kind": "logits", "num_classes": classes},
        selected=False,
        codec=TopK(k=first.classes.shape[1], temperature=temperature, missing=missing),
        width=classes,
    )
    manifest = Manifest(sections=(target_set,), data=DataFacts(name=source.name))
    with locked(folder, remedy="wait for its end or take another folder"):
        _discard_failed_import(folder)
        writer = ShardWriter(folder, manifest)
        for sequence in itertools.chain([first], sequences):
            _add(writer, target_set, sequence, inputs)
        return writer.finish([target_set])


def _discard_failed_import(folder: Path) -> None:
    """Remove the manifest of a failed import, which then starts again.

    Raises:
        CheckpointError: If the folder holds other targets, those of an unfinished capture included.
    """
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    # A capture has digests of weights from its start; only imports have none.
    if manifest.finished or manifest.teacher.weights:
        raise CheckpointError(
            f"{str(folder)!r} must not hold targets already; import into another folder"
        )
    (folder / MANIFEST).unlink()


def _add(writer: ShardWriter, target_set: TargetSet, sequence: ScoredSequence, inputs: str) -> None:
    """Add a sequence, with as many classes per row as the first sequence.

    Raises:
        DataError: If an id is not a class.
    """
    codec, ids = target_set.codec, torch.tensor([sequence.ids])
    assert isinstance(codec, TopK)  # noqa: S101 - set by the caller
    # Students look their targets up by the content of their own batches, so keys come from it.
    keys = example_keys(Batch(inputs={inputs: ids}), selected=False)
    if not writer.find_missing(target_set, keys)[0]:
        return
    classes, log_probabilities = sequence.classes, sequence.log_probabilities
    if classes.numel() and not 0 <= int(classes.max()) < target_set.width:
        raise DataError(
            f"'num_classes' must be more than every id; got {target_set.width} and the id "
            f"{int(classes.max())}"
        )
    # All rows of a shard have the same width: longer rows are cut, shorter ones get unused entries.
    classes, log_probabilities = classes[:, : codec.k], log_probabilities[:, : codec.k]
    padding = (0, codec.k - classes.shape[1])
    classes = functional.pad(classes, padding)
    log_probabilities = functional.pad(log_probabilities, padding, value=float("-inf"))
    entries = codec.entries(classes, log_probabilities, target_set.width)
    writer.add(target_set, keys, np.array([len(classes)]), entries)


def _read_parquet(source: Path, config: Compression | None) -> Iterator[ScoredSequence]:
    """Yield the sequences of Parquet files.

    Raises:
        DataError: If there is no file, or its columns are not supported.
    """
    parquet = imported("pyarrow.parquet", package="pyarrow", extra="datasets", use="Parquet files")
    files = [source] if source.is_file() else sorted(source.glob("*.parquet"))
    if not files:
        raise DataError(f"{str(source)!r} must hold Parquet files or be JSON lines; got neither")
    for path in files:
        file = parquet.ParquetFile(path)
        names = set(file.schema_arrow.names)
        if {"input_ids", "token_ids", "top_values"} <= names:
            columns = ["input_ids", "token_ids", "top_values"]
        elif {"input_ids", "compressed_logprobs", "bytepacked_indices"} <= names and config:
            columns = ["input_ids", "compressed_logprobs", "bytepacked_indices"]
        else:
            raise DataError(
                f"{str(path)!r} must have the columns of DistillKit, and its "
                f"'compression_config.yaml' beside it for packed ones; got {sorted(names)}"
            )
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            # Raw columns need no configuration, even if a file of it lies beside them.
            row_config = None if "token_ids" in names else config
            for ids, *values in zip(*(column.to_pylist() for column in batch), strict=True):
                yield _parquet_row(ids, *values, config=row_config)


def _parquet_row(
    ids: list[int], first: Rows, second: Rows, *, config: Compression | None
) -> ScoredSequence:
    # The packed and the raw columns are in opposite order.
    if config is None:
        classes, log_probabilities = torch.tensor(first), torch.tensor(second).float()
    else:
        log_probabilities = config.log_probabilities(torch.tensor(first, dtype=torch.uint8))
        classes = config.classes(torch.tensor(second, dtype=torch.uint8))
    return ScoredSequence(ids=tuple(ids), classes=classes, log_probabilities=log_probabilities)


def _read_lines(path: Path) -> Iterator[ScoredSequence]:
    """Yield the sequences of a file of JSON lines.

    Raises:
        DataError: If a line has another layout; the message has its number.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            for record in _response_records(from_json(line)):
                yield _parse_record(record)
        # Malformed JSON can fail anywhere in the parsing, so all of these mean a wrong layout.
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            cause = error if isinstance(error, DataError) else repr(error)
            raise DataError(
                f"line {number} of {str(path)!r} must hold token ids and their log-probabilities "
                f"as vLLM writes them: {cause}"
            ) from None


def _response_records(line: object) -> Iterator[Document]:
    """Yield the records of a line: itself, or the choices of a complete server response.

    Batches of requests have `response.body` around each response. Values beside the choices, as the
    ids of a chat, belong to all choices.

    Raises:
        DataError: If the line is no object, or the server did not return the ids.
    """
    if not isinstance(line, dict):
        raise DataError(f"a line must be an object; got {type(line).__name__!r}")
    response = line.get("response")
    body = response["body"] if isinstance(response, Mapping) else line
    if "choices" not in body:
        yield body
        return
    names = {"prompt_token_ids", "prompt_logprobs"}
    shared = {name: body[name] for name in names if body.get(name) is not None}
    for choice in body["choices"]:
        record = shared | {name: choice[name] for name in names if choice.get(name) is not None}
        if record.keys() != names:
            raise DataError(
                f"a response with 'choices' must hold 'prompt_token_ids' and 'prompt_logprobs', "
                f"which vLLM's server returns if the request has 'return_token_ids': true and "
                f"'prompt_logprobs'; got {sorted(choice)}"
            )
        yield record


def _parse_record(record: Document) -> ScoredSequence:
    """Return the sequence of a record.

    Raises:
        DataError: If the positions of its entries are ambiguous.
    """
    ids = record["prompt_token_ids"] if "prompt_token_ids" in record else record["input_ids"]
    entries = record["prompt_logprobs"] if "prompt_logprobs" in record else record["logprobs"]
    # The first token has no context. Without its null, entry i predicts id i + 1, as rows do here.
    if entries and entries[0] is None:
        entries = entries[1:]
    if len(entries) >= len(ids):
        raise DataError(
            f"'logprobs' must begin with null, or be fewer than the {len(ids)} ids; got "
            f"{len(entries)}"
        )
    # The codec expects the most likely class first; servers do not promise an order.
    rows = [sorted(_class_scores(entry), key=lambda score: -score[1]) for entry in entries]
    longest = max(map(len, rows), default=0)
    classes = torch.zeros(len(rows), longest, dtype=torch.int64)
    log_probabilities = torch.full((len(rows), longest), float("-inf"))
    for row, scores in enumerate(rows):
        for place, (number, score) in enumerate(scores):
            classes[row, place], log_probabilities[row, place] = number, score
    return ScoredSequence(
        ids=tuple(map(int, ids)), classes=classes, log_probabilities=log_probabilities
    )


def _class_scores(entry: object) -> Iterable[tuple[int, float]]:
    """Yield the ids of a position with their log-probabilities."""
    if isinstance(entry, Mapping):
        for number, score in entry.items():
            if not isinstance(score, Mapping):
                yield int(number), float(score)
            # vLLM adds the actual next id even if it is not among the k most likely ones. With it,
            # rows would differ in length, and its rank would be wrong.
            elif (score.get("rank") or 0) <= len(entry):
                yield int(number), float(score["logprob"])
    else:
        for score in cast("Iterable[Document]", entry):
            yield int(str(score["token"]).removeprefix("token_id:")), float(score["logprob"])
