"""Import of targets captured by other programs.

Two layouts of top-k log-probabilities are converted to stored targets of codec `top_k`, so that
readers handle a single layout:

- Parquet files as DistillKit's capture with vLLM writes them, beside a `compression_config.yaml`:
  columns `input_ids`, `compressed_logprobs` and `bytepacked_indices`; or the raw columns
  `input_ids`, `token_ids` and `top_values`. See `teachers.store.distillkit` for the packed form.
- JSON lines, each an object with the input ids (`prompt_token_ids` or `input_ids`) and the
  log-probabilities at them (`prompt_logprobs` or `logprobs`), one entry per position: a mapping
  from id to `{"logprob", "rank"}` as vLLM's server answers, or a list of `{"token": "token_id:7",
  "logprob"}` as a chat answer with `return_tokens_as_token_ids` holds. The first entry of
  `prompt_logprobs` is null, since nothing comes before it. Whole answers of vLLM's server hold
  both in `choices`; requests need `prompt_logprobs` and `return_token_ids`.

Axes: row (positions of one sequence), draw (known classes, the most likely first).

Design: row i is the teacher's prediction after the ids up to i, as everywhere in this package. vLLM
stores it at the predicted position, i + 1. Lists as long as the ids without a leading null are
rejected as ambiguous.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curricle.data.example_keys import example_keys
from curricle.data.streams import Batch
from curricle.errors import CheckpointError, DataError
from curricle.extras import imported
from curricle.locks import locked
from curricle.teachers.store.codecs import TopK
from curricle.teachers.store.distillkit import Compression, read_compression
from curricle.teachers.store.manifest import MANIFEST, DataFacts, Manifest, Section, read_manifest
from curricle.teachers.store.shards import ShardWriter
from curricle.yaml_specs import from_json

Missing = Literal["rest", "renormalize"]
BATCH_ROWS = 64
"""Sequences of a Parquet file that are read at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """The teacher's predictions on one sequence."""

    ids: tuple[int, ...]
    """The sequence."""
    classes: Int[Tensor, "row draw"]
    """Most likely next ids after each of its first ids."""
    log_known: Float[Tensor, "row draw"]
    """Their log-probabilities; minus infinity where fewer are known."""


def import_targets(
    source: Path,
    folder: Path,
    *,
    num_classes: int | None = None,
    temperature: float = 1.0,
    missing: Missing = "rest",
    inputs: str = "input_ids",
) -> Manifest:
    """Convert targets captured by another program to a store; return its manifest.

    Args:
        source: A folder of Parquet files, one such file, or a file of JSON lines.
        folder: Where the store will be.
        num_classes: Size of the vocabulary; None takes that of DistillKit's configuration.
        temperature: Softening with which the log-probabilities were made.
        missing: Treatment of the mass of classes that are not known.
        inputs: Name of the ids among the inputs of the student.

    Returns:
        The manifest of the store.

    Raises:
        DataError: If the layout is not supported, or the size of the vocabulary is not known.
        CheckpointError: If the folder holds targets already, or another process writes into it.
    """
    is_lines = source.suffix in {".jsonl", ".json"}
    config = None if is_lines else read_compression(source if source.is_dir() else source.parent)
    classes = num_classes if config is None else config.d
    if classes is None:
        raise DataError(
            f"'num_classes' must be given where {str(source)!r} does not tell it; got none"
        )
    spoken = _from_lines(source) if is_lines else _from_parquet(source, config)
    # The first sequence fixes the number of classes per row, which the manifest states before any
    # shard is written.
    first = next(spoken, None)
    if first is None:
        raise DataError(f"{str(source)!r} must hold at least one sequence; got none")
    section = Section(
        facts={"kind": "logits", "num_classes": classes},
        selected=False,
        codec=TopK(k=first.classes.shape[1], temperature=temperature, missing=missing),
        width=classes,
    )
    manifest = Manifest(sections=(section,), data=DataFacts(name=source.name))
    # Two writers in one folder would overwrite each other's shards and manifest.
    with locked(folder, remedy="wait for its end or take another folder"):
        _make_room(folder)
        writer = ShardWriter(folder, manifest)
        for sequence in _and_first(first, spoken):
            _add(writer, section, sequence, inputs)
        return writer.finish([section])


def _make_room(folder: Path) -> None:
    """Remove the manifest of a failed import, which starts again from the beginning.

    Raises:
        CheckpointError: If the folder holds other targets, or those of an unfinished capture.
    """
    if not (folder / MANIFEST).is_file():
        return
    # An import has no teacher weights, so a digest marks an unfinished capture, which is resumable.
    there = read_manifest(folder)
    if there.finished or there.teacher.weights:
        raise CheckpointError(
            f"{str(folder)!r} must not hold targets already; import into another folder"
        )
    (folder / MANIFEST).unlink()


def _and_first(first: Spoken, sequences: Iterator[Spoken]) -> Iterator[Spoken]:
    yield first
    yield from sequences


def _add(writer: ShardWriter, section: Section, spoken: Spoken, inputs: str) -> None:
    """Add a sequence, with as many classes per row as the first sequence.

    Raises:
        DataError: If an id is no class.
    """
    codec, ids = section.codec, torch.tensor([spoken.ids])
    assert isinstance(codec, TopK)  # noqa: S101 - made above
    # A sequence that occurs twice in the data is stored once.
    keys = example_keys(Batch(inputs={inputs: ids}), selected=False)
    if not writer.lacks(section, keys)[0]:
        return
    if spoken.classes.numel() and not 0 <= int(spoken.classes.max()) < section.width:
        raise DataError(
            f"'num_classes' must be more than every id; got {section.width} and the id "
            f"{int(spoken.classes.max())}"
        )
    classes, log_known = (rows[:, : codec.k] for rows in (spoken.classes, spoken.log_known))
    # Shards hold rectangular tensors, so rows with fewer classes are padded with log-probability
    # minus infinity, which `TopK.decode` treats as unknown.
    lacking = codec.k - classes.shape[1]
    classes = torch.nn.functional.pad(classes, (0, lacking))
    log_known = torch.nn.functional.pad(log_known, (0, lacking), value=float("-inf"))
    entries = codec.entries(classes, log_known, section.width)
    writer.add(section, keys, np.array([len(classes)]), entries)


def _from_parquet(source: Path, config: Compression | None) -> Iterator[Spoken]:
    """Yield the sequences of Parquet files.

    Raises:
        DataError: If there is no file, or its columns are not those of a known layout.
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
            # Packed columns cannot be decoded without the configuration.
            raise DataError(
                f"{str(path)!r} must have the columns of DistillKit, and its "
                f"'compression_config.yaml' beside it for packed ones; got {sorted(names)}"
            )
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for ids, first, second in zip(*(column.to_pylist() for column in batch), strict=True):
                yield _parquet_row(ids, first, second, config if "token_ids" not in names else None)


def _parquet_row(
    ids: list[int], first: list[Any], second: list[Any], config: Compression | None
) -> Spoken:
    if config is None:
        classes, log_known = torch.tensor(first), torch.tensor(second).float()
    else:
        log_known = config.log_probabilities(torch.tensor(first, dtype=torch.uint8))
        classes = config.classes(torch.tensor(second, dtype=torch.uint8))
    return Spoken(ids=tuple(ids), classes=classes, log_known=log_known)


def _from_lines(path: Path) -> Iterator[Spoken]:
    """Yield the sequences of a file of JSON lines.

    Raises:
        DataError: If a line has another layout, with the number of the line.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            for answer in _answers(from_json(line)):
                yield _line(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            cause = error if isinstance(error, DataError) else repr(error)
            raise DataError(
                f"line {number} of {str(path)!r} must hold token ids and their log-probabilities "
                f"as vLLM writes them: {cause}"
            ) from None


def _answers(line: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the answers in a line: the line itself, or the choices of a server's complete answer.

    A batch of requests is answered with `response.body` around each answer. Fields beside the
    choices, such as the ids of a chat, belong to every choice.

    Raises:
        DataError: If a server has not returned the ids.
    """
    response = line.get("response")
    body = response["body"] if isinstance(response, Mapping) else line
    if "choices" not in body:
        yield body
        return
    names = {"prompt_token_ids", "prompt_logprobs"}
    shared = {name: body[name] for name in names if body.get(name) is not None}
    for choice in body["choices"]:
        answer = shared | {name: choice[name] for name in names if choice.get(name) is not None}
        if answer.keys() != names:
            raise DataError(
                f"an answer with 'choices' must hold 'prompt_token_ids' and 'prompt_logprobs', "
                f"which vLLM's server returns if the request has 'return_token_ids': true and "
                f"'prompt_logprobs'; got {sorted(choice)}"
            )
        yield answer


def _line(fields: Mapping[str, Any]) -> Spoken:
    """Return the predictions in one line.

    Raises:
        DataError: If the position of the entries is ambiguous.
    """
    ids = fields["prompt_token_ids"] if "prompt_token_ids" in fields else fields["input_ids"]
    entries = fields["prompt_logprobs"] if "prompt_logprobs" in fields else fields["logprobs"]
    # A leading null marks vLLM's convention of storing a prediction at the predicted position.
    if entries and entries[0] is None:
        entries = entries[1:]
    if len(entries) >= len(ids):
        raise DataError(
            f"'logprobs' must begin with null, or be fewer than the {len(ids)} ids; "
            f"got {len(entries)}"
        )
    # Decoding relies on the most likely class being first; JSON objects have no order.
    rows = [sorted(_known(entry), key=lambda pair: -pair[1]) for entry in entries]
    num_known = max(map(len, rows), default=0)
    classes = torch.zeros(len(rows), num_known, dtype=torch.int64)
    log_known = torch.full((len(rows), num_known), float("-inf"))
    for row, pairs in enumerate(rows):
        for place, (number, likely) in enumerate(pairs):
            classes[row, place], log_known[row, place] = number, likely
    return Spoken(ids=tuple(map(int, ids)), classes=classes, log_known=log_known)


def _known(entry: Any) -> Iterable[tuple[int, float]]:  # noqa: ANN401 - parsed JSON
    """Yield the ids of one position with their log-probabilities."""
    if isinstance(entry, Mapping):
        for number, answer in entry.items():
            if isinstance(answer, Mapping) and (answer.get("rank") or 0) > len(entry):
                # vLLM adds the actual next id even if it is not among the most likely. Keeping it
                # would reveal the label at some positions only.
                continue
            yield int(number), float(answer["logprob"] if isinstance(answer, Mapping) else answer)
    else:
        for answer in entry:
            yield int(str(answer["token"]).removeprefix("token_id:")), float(answer["logprob"])
