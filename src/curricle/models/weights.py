"""How are a model's weights kept on disk?

As one safetensors file, written in one step and without pickle. Tied weights are stored once.
`check_weights` compares names and shapes without reading the numbers, so that a whole trajectory
can be checked before training starts.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from curricle.errors import CheckpointError
from curricle.files import new_file
from curricle.specs import fingerprint


@contextmanager
def serializing(path: Path) -> Iterator[None]:
    """Turn what safetensors says of a full disk, which is no `OSError`, into a sentence.

    Yields:
        Nothing.

    Raises:
        CheckpointError: If it cannot write.
    """
    try:
        yield
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} cannot be written: {error}") from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of a module."""
    state = module.state_dict()
    if any(map(_is_slice, state.values())):
        # Weights of stacked students: safetensors would refuse to write a part of a storage.
        owned = {
            names[0]: state[names[0]].clone(memory_format=torch.contiguous_format)
            for names in _owners(module)
        }
        save_tensors(owned, path, metadata={"format": "pt"})
        return
    with new_file(path) as temporary, serializing(path):
        save_model(module, str(temporary))


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name as one safetensors file, in one step.

    Args:
        tensors: The tensors, none of which may be a part of another one's storage.
        path: The file.
        metadata: Texts for the head of the file.
    """
    with new_file(path) as temporary, serializing(path):
        save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))


def check_weights(module: nn.Module, path: Path) -> None:
    """Check that a file holds weights for a module.

    Raises:
        CheckpointError: If it is missing, damaged, or made by a model of other names or shapes.
    """
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} must be a safetensors file; there is none")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} must be a safetensors file: {error}") from None
    wanted = shapes(module)
    # Of names that share their memory the file holds one.
    missing = [names[0] for names in _owners(module) if not any(name in found for name in names)]
    foreign = [name for name in found if name not in wanted]
    other = [name for name in found if name in wanted and wanted[name] != found[name]]
    if missing or foreign:
        name = (missing or foreign)[0]
        rule = "is missing" if missing else "is not in the model"
        raise CheckpointError(f"{str(path)!r} must hold this model's weights; {name!r} {rule}")
    if other:
        raise CheckpointError(
            f"{str(path)!r} must hold this model's weights; {other[0]!r} has shape "
            f"{found[other[0]]} instead of {wanted[other[0]]}"
        )


def load_weights(module: nn.Module, path: Path) -> None:
    """Read the weights of a module from a file that fits it.

    Raises:
        CheckpointError: If it is missing, damaged, or made by a model of other names or shapes.
    """
    check_weights(module, path)
    load_model(module, str(path), strict=False)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def architecture(module: nn.Module) -> str:
    """Return a digest of the names and shapes, equal for models that can share weights."""
    return fingerprint([[name, list(shape)] for name, shape in shapes(module).items()])


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers with their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_slice(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes


def _owners(module: nn.Module) -> list[list[str]]:
    """Return the names of every parameter and buffer, those that share their memory together."""
    owners: dict[object, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        # Empty tensors have no memory to share.
        owners.setdefault(tensor.data_ptr() or name, []).append(name)
    return list(owners.values())
