"""Weights on disk: a safetensors file per model, written atomically and without pickle.

Tied weights are stored once. `check_weights` compares names and shapes without reading the numbers,
so that a whole trajectory can be checked before training starts.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from curricle.colocation import copied_to_host
from curricle.errors import CheckpointError
from curricle.files import new_file
from curricle.models.dispatching import offloaded_weights
from curricle.models.peft_adapters import tuner_settings
from curricle.models.shares import is_sharded, is_share, share_of, whole_parts
from curricle.values import fingerprint


@contextmanager
def serializing(path: Path) -> Iterator[None]:
    """Convert errors of safetensors on a full disk, which are not `OSError`s.

    Yields:
        Nothing.

    Raises:
        CheckpointError: If it cannot write.
    """
    try:
        yield
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} cannot be written: {error}") from error


def save_weights(module: nn.Module, path: Path | None) -> None:
    """Write the parameters and buffers of a module.

    Args:
        module: The module; one that processes hold in shares is saved by all of them together.
        path: The file; None only hands this process's shares to the one that writes.
    """
    if is_sharded(module):
        parts = host_copies(module, keeps=path is not None)
        if path is not None:
            save_tensors(parts, path, metadata={"format": "pt"})
        return
    if path is None:
        return
    state = module.state_dict()
    if any(_is_slice(tensor) or not tensor.is_contiguous() for tensor in state.values()):
        # Weights of stacked students, and transposed ones of tied adapters: safetensors writes
        # neither slices of a storage nor tied names in another memory order.
        save_tensors(host_copies(module), path, metadata={"format": "pt"})
        return
    with new_file(path) as temporary, serializing(path):
        save_model(module, str(temporary))


def host_copies(module: nn.Module, *, keeps: bool = True) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers of a module in host memory, tied ones once.

    Args:
        module: The module; of one in shares every process calls this.
        keeps: Whether this process keeps the tensors; otherwise the result is empty.
    """
    if is_sharded(module):
        return whole_parts(module, keeps=keeps)
    if not keeps:
        return {}
    state = module.state_dict()
    return copied_to_host((names[0], state[names[0]]) for names in _owners(module))


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name as a safetensors file, atomically.

    Args:
        tensors: The tensors, which must not share their storage.
        path: The file.
        metadata: Texts for the head of the file.
    """
    with new_file(path) as temporary, serializing(path):
        save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))


def check_weights(module: nn.Module, path: Path) -> None:
    """Check that a file holds weights for a module.

    Raises:
        CheckpointError: If it is missing, damaged, or of a model with other names or shapes.
    """
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} must be a safetensors file; there is none")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} must be a safetensors file: {error}") from None
    expected = shapes(module)
    # Of tied names the file has one.
    missing = [names[0] for names in _owners(module) if not any(name in stored for name in names)]
    foreign = [name for name in stored if name not in expected]
    different = [name for name in stored if expected.get(name, stored[name]) != stored[name]]
    if missing or foreign:
        name = (missing or foreign)[0]
        rule = "is missing" if missing else "is not in the model"
        raise CheckpointError(f"{str(path)!r} must hold this model's weights; {name!r} {rule}")
    if different:
        raise CheckpointError(
            f"{str(path)!r} must hold this model's weights; {different[0]!r} has shape "
            f"{stored[different[0]]} instead of {expected[different[0]]}"
        )


def load_weights(module: nn.Module, path: Path) -> None:
    """Read the weights of a module, or this process's shares of them, from a file that fits it.

    Raises:
        CheckpointError: If it is missing, damaged, or of a model with other names or shapes.
    """
    check_weights(module, path)
    # Not strict, since all but one of tied names are missing; the others were checked.
    load_state(module, load_file(path))


def load_state(module: nn.Module, state: Mapping[str, object]) -> None:
    """Put entries of a state dictionary with whole tensors into a module.

    Args:
        module: The module; of weights in shares this process takes its own.
        state: Its entries, of tied names one.
    """
    present = module.state_dict()
    divided = {
        name: share_of(entry, present[name])
        if isinstance(entry, Tensor) and isinstance(present.get(name), Tensor)
        else entry
        for name, entry in state.items()
    }
    module.load_state_dict(divided, strict=False)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer by name."""
    state = module.state_dict()
    return {name: tuple(item.shape) for name, item in state.items() if isinstance(item, Tensor)}


def architecture(module: nn.Module) -> str:
    """Return a digest of the names and shapes, equal for models with exchangeable weights."""
    return fingerprint([[name, list(shape)] for name, shape in shapes(module).items()])


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers with their names, in hexadecimal.

    Tuples and settings of quantized modules, extra states of any kind and the active adapters of
    PEFT are included. Weights that accelerate has offloaded are read one by one.
    """
    digest = hashlib.sha256()
    readers = offloaded_weights(module)
    for name, content in sorted(module.state_dict().items()):
        _add(digest, name, readers[name]() if name in readers else content)
    for path, settings in sorted(tuner_settings(module).items()):
        _add(digest, f"{path}/adapters", settings)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, content: object) -> None:
    """Add an entry of a state dictionary, with nested values, to a digest."""
    if isinstance(content, Tensor):
        digest.update(f"{name}:{content.dtype}:{tuple(content.shape)};".encode())
        components = _components(content)
        if components is None:
            flat = content.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        else:
            _add(digest, f"{name}/parts", components)
    elif isinstance(content, Mapping):
        for key, entry in content.items():
            _add(digest, f"{name}/{key}", entry)
    elif isinstance(content, (list, tuple)):
        for number, entry in enumerate(content):
            _add(digest, f"{name}/{number}", entry)
    else:
        # Memory addresses differ between processes.
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(content))
        digest.update(f"{name}={text};".encode())


def _components(tensor: Tensor) -> list[object] | None:
    """Return the components of a quantized, sparse or wrapped tensor; None for plain numbers."""
    if tensor.is_quantized:
        return [tensor.int_repr(), *_quantization(tensor)]
    if tensor.layout != torch.strided:
        dense = tensor.detach().to_dense()
        return [str(tensor.layout), dense]
    if is_traceable_wrapper_subclass(tensor):
        names, settings = tensor.__tensor_flatten__()
        return [*(getattr(tensor, name) for name in names), settings]
    return None


def _quantization(tensor: Tensor) -> list[object]:
    """Return the scales and zero points of a quantized tensor."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.q_scale(), tensor.q_zero_point()]
    return [
        tensor.q_per_channel_axis(),
        tensor.q_per_channel_scales(),
        tensor.q_per_channel_zero_points(),
    ]


def _is_slice(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes


def _owners(module: nn.Module) -> list[list[str]]:
    """Return the names of every parameter and buffer, with tied names together."""
    owners: dict[object, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        # Empty tensors have no memory to share, and shares no memory of their own.
        key = id(tensor) if is_share(tensor) else tensor.data_ptr() or name
        owners.setdefault(key, []).append(name)
    return list(owners.values())
