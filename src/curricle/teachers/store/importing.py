"""How do targets that other programs have written become a store?

Two layouts of top-k log-probabilities are read and written anew as stored targets of codec `top_k`,
so that whoever reads needs to know one layout only:

- Parquet files as DistillKit's capture with vLLM writes them, beside a `compression_config.yaml`:
  columns `input_ids`, `compressed_logprobs` and `bytepacked_indices`; or the raw columns
  `input_ids`, `token_ids` and `top_values`. See `teachers.store.distillkit` for the packed form.
- JSON lines, each an object with the ids that were shown (`prompt_token_ids` or `input_ids`) and
  the log-probabilities at them (`prompt_logprobs` or `logprobs`), one entry a position: a mapping
  from id to `{"logprob", "rank"}` as vLLM's server answers, or a list of `{"token": "token_id:7",
  "logprob"}` as a chat answer with `return_tokens_as_token_ids` holds. The first entry of
  `prompt_logprobs` is null, since nothing comes before it. Whole answers of vLLM's server hold
  both in `choices`; requests need `prompt_logprobs` and `return_token_ids`.

Axes: row (positions of one sequence), draw (known classes, the most likely first).

Design: row i is what the teacher says after having read the ids up to i, as everywhere here. vLLM
files it under the position that is predicted, i + 1. Lists whose first entry is no null and that
are as long as the ids are refused, since it cannot be told which of the two they mean.
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
    """What a teacher has said of one sequence."""

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
    """Write what another program has captured as a store; return its manifest.

    Args:
        source: A folder of Parquet files, one such file, or a file of JSON lines.
        folder: Where the store will be.
        num_classes: Size of the vocabulary; None takes that of DistillKit's configuration.
        temperature: Softening with which the log-probabilities were made.
        missing: What becomes of the mass of classes that are not known.
        inputs: Name under which the model that reads gets its ids.

    Returns:
        The manifest of the store.

    Raises:
        DataError: If the layout is another one, or the size of the vocabulary is not known.
        CheckpointError: If the folder holds targets already, or somebody else writes into it.
    """
    is_lines = source.suffix in {".jsonl", ".json"}
    config = None if is_lines else read_compression(source if source.is_dir() else source.parent)
    classes = num_classes if config is None else config.d
    if classes is None:
        raise DataError(
            f"'num_classes' must be given where {str(source)!r} does not tell it; got none"
        )
    spoken = _from_lines(source) if is_lines else _from_parquet(source, config)
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
    with locked(folder, remedy="wait for its end or take another folder"):
        _make_room(folder)
        writer = ShardWriter(folder, manifest)
        for one in _and_first(first, spoken):
            _add(writer, section, one, inputs)
        return writer.finish([section])


def _make_room(folder: Path) -> None:
    """Forget what an import that failed has left; it is made anew.

    Raises:
        CheckpointError: If the folder holds other targets, also those of a capture that goes on.
    """
    if not (folder / MANIFEST).is_file():
        return
    there = read_manifest(folder)
    if there.finished or there.teacher.weights:
        raise CheckpointError(
            f"{str(folder)!r} must not hold targets already; import into another folder"
        )
    (folder / MANIFEST).unlink()


def _and_first(first: Spoken, others: Iterator[Spoken]) -> Iterator[Spoken]:
    yield first
    yield from others


def _add(writer: ShardWriter, section: Section, spoken: Spoken, inputs: str) -> None:
    """Add one sequence, with as many classes a row as the first one has.

    Raises:
        DataError: If an id is no class.
    """
    codec, ids = section.codec, torch.tensor([spoken.ids])
    assert isinstance(codec, TopK)  # noqa: S101 - made above
    keys = example_keys(Batch(inputs={inputs: ids}), selected=False)
    if not writer.lacks(section, keys)[0]:
        return
    if spoken.classes.numel() and not 0 <= int(spoken.classes.max()) < section.width:
        raise DataError(
            f"'num_classes' must be more than every id; got {section.width} and the id "
            f"{int(spoken.classes.max())}"
        )
    classes, log_known = (one[:, : codec.k] for one in (spoken.classes, spoken.log_known))
    lacking = codec.k - classes.shape[1]
    classes = torch.nn.functional.pad(classes, (0, lacking))
    log_known = torch.nn.functional.pad(log_known, (0, lacking), value=float("-inf"))
    entries = codec.entries(classes, log_known, section.width)
    writer.add(section, keys, np.array([len(classes)]), entries)


def _from_parquet(source: Path, config: Compression | None) -> Iterator[Spoken]:
    """Yield the sequences of Parquet files.

    Raises:
        DataError: If there is no file, or its columns are others.
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
            for ids, first, second in zip(*(one.to_pylist() for one in batch), strict=True):
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
        DataError: If a line is another layout; it is numbered.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            for answer in _answers(from_json(line)):
                yield _line(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = error if isinstance(error, DataError) else repr(error)
            raise DataError(
                f"line {number} of {str(path)!r} must hold token ids and their log-probabilities "
                f"as vLLM writes them: {said}"
            ) from None


def _answers(line: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what a line holds: itself, or the choices of a server's whole answer.

    A batch of requests is answered with `response.body` around each answer. What stands beside the
    choices, as the ids of a chat, belongs to all of them.

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


def _line(found: Mapping[str, Any]) -> Spoken:
    """Return what one line tells.

    Raises:
        DataError: If it cannot be told which position an entry means.
    """
    ids = found["prompt_token_ids"] if "prompt_token_ids" in found else found["input_ids"]
    told = found["prompt_logprobs"] if "prompt_logprobs" in found else found["logprobs"]
    if told and told[0] is None:
        told = told[1:]
    if len(told) >= len(ids):
        raise DataError(
            f"'logprobs' must begin with null, or be fewer than the {len(ids)} ids; got {len(told)}"
        )
    rows = [sorted(_known(entry), key=lambda one: -one[1]) for entry in told]
    most = max(map(len, rows), default=0)
    classes = torch.zeros(len(rows), most, dtype=torch.int64)
    log_known = torch.full((len(rows), most), float("-inf"))
    for row, known in enumerate(rows):
        for place, (number, likely) in enumerate(known):
            classes[row, place], log_known[row, place] = number, likely
    return Spoken(ids=tuple(map(int, ids)), classes=classes, log_known=log_known)


def _known(entry: Any) -> Iterable[tuple[int, float]]:  # noqa: ANN401 - parsed JSON
    """Yield the ids of one position with their log-probabilities."""
    if isinstance(entry, Mapping):
        for number, told in entry.items():
            if isinstance(told, Mapping) and (told.get("rank") or 0) > len(entry):
                # The id that came next is told even if it is none of the most likely.
                continue
            yield int(number), float(told["logprob"] if isinstance(told, Mapping) else told)
    else:
        for told in entry:
            yield int(str(told["token"]).removeprefix("token_id:")), float(told["logprob"])
