"""Records of the run that trained a model, for its model card.

A card states the numbers of a run, so the exported weights must be those at its end. They are
compared with the weights in its folder: by name, then by content, since a wrapper may have renamed
them and a part of the student may be exported alone. Weights in another precision are compared
after conversion. Layers whose adapters were merged have to agree in name and shape.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors
import torch
from torch import Tensor, nn

from curricle.errors import BindError, CheckpointError
from curricle.files import content_digest
from curricle.models.dispatching import offloaded_weights
from curricle.models.weights import save_weights
from curricle.records import RECORDS, EndRecord, Record, read_records
from curricle.runs.folder import STUDENTS
from curricle.training.loop.resuming import FINISHED

TUNED = ".base_layer"
"""Part of the names of weights below an adapter of PEFT, which merging changes."""
ADAPTED = "base_model.model."
"""Start of the names of all weights of a model with adapters of PEFT."""


def finished_records(folder: Path) -> tuple[Record, ...]:
    """Return the records of a finished run.

    Args:
        folder: Its folder.

    Raises:
        CheckpointError: If there are none, or the run is not finished.
    """
    records = tuple(read_records(folder / RECORDS))
    if not records or not isinstance(records[-1], EndRecord):
        raise CheckpointError(
            f"{str(folder)!r} must hold a finished run to be exported; it is not finished: resume "
            f"it first"
        )
    return records


def records_of_model(run: str | Path, module: nn.Module) -> tuple[Record, ...]:
    """Return the records of the run that trained a model.

    Args:
        run: Folder of the run.
        module: The model, before its adapters are merged.

    Raises:
        BindError: If `run` is no folder name.
        CheckpointError: If it is not the folder of a finished run, or its final weights are not
            those of the model.
    """
    if not isinstance(run, str | Path):
        raise BindError(
            f"'run' must be the folder of a run, the 'output_dir' of curricle.distill; got "
            f"{type(run).__name__!r}"
        )
    folder = Path(run)
    if not (folder / RECORDS).is_file():
        raise CheckpointError(
            f"'run' must be the folder of a run of one student with {RECORDS!r}; got "
            f"{str(folder)!r}, {_kind_of(folder)}"
        )
    records = finished_records(folder)
    end = records[-1]
    assert isinstance(end, EndRecord)  # noqa: S101 - checked with the records
    differences = _differences(module, folder / FINISHED, end)
    if differences:
        raise CheckpointError(
            f"'run' must be the run that trained 'student'; got {str(folder)!r}, whose final "
            f"weights are others, as in {differences[0]!r} ({len(differences)} of "
            f"{len(module.state_dict())} tensors differ); give the folder of its own run, or leave "
            f"'run' out for a short card"
        )
    return records


def _kind_of(folder: Path) -> str:
    """Return the nature of a folder without records, and the remedy, for an error sentence."""
    students = sorted((folder / STUDENTS).glob("*/seed-*"))
    if students:
        return (
            f"a comparison of {len(students)} runs; give the folder of the exported student, such "
            f"as {str(students[0])!r}"
        )
    if not folder.is_dir():
        return "which does not exist"
    return (
        "which has none, as folders of CurriculumTrainer; leave 'run' out for a short card, or "
        "give the 'output_dir' of curricle.distill"
    )


def _differences(module: nn.Module, path: Path, end: EndRecord) -> list[str]:
    """Return the names of weights of a model that are not those at the end of a run."""
    if not path.is_file():
        return [] if _has_digest(module, end.weights) else list(module.state_dict())
    with safetensors.safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        differing = {
            name: weight
            for name, weight in _weights(module)
            if weight is None or name not in stored or not _equal(file.get_tensor(name), weight)
        }
        # Names in a wrapper, tied names and NaN: contents are read only where names do not settle.
        types = {weight.dtype for weight in differing.values() if weight is not None}
        contents = {_content(file.get_tensor(name).to(kind)) for name in stored for kind in types}
        tuned = {
            _merged_name(name): file.get_slice(name).get_shape() for name in stored if TUNED in name
        }
    return [
        name
        for name, weight in differing.items()
        if weight is None
        or (
            _content(weight) not in contents and tuned.get(_merged_name(name)) != list(weight.shape)
        )
    ]


def _has_digest(module: nn.Module, digest: str) -> bool:
    """Return whether the file of a model's weights has a digest; true if that is unknown."""
    if not digest:
        return True
    with TemporaryDirectory() as folder:
        save_weights(module, path := Path(folder) / FINISHED)
        return content_digest(path) == digest


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the weights of a model by name, on the CPU; None for an entry that is no tensor.

    Yields:
        Name and weight.
    """
    readers = offloaded_weights(module)
    for name, content in module.state_dict().items():
        weight = readers[name]() if name in readers else content
        is_plain = isinstance(weight, Tensor) and not weight.is_quantized
        yield name, weight.detach().cpu() if is_plain else None


def _equal(stored: Tensor, weight: Tensor) -> bool:
    return stored.shape == weight.shape and torch.equal(stored.to(weight.dtype), weight)


def _content(weight: Tensor) -> str:
    """Return a digest of the shape and the numbers of a tensor."""
    digest = hashlib.sha256(f"{weight.dtype}:{tuple(weight.shape)};".encode())
    digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _merged_name(name: str) -> str:
    """Return the name that a weight below an adapter has after merging."""
    return name.removeprefix(ADAPTED).replace(TUNED, "")
