"""How are a model's weights kept on disk?

As one safetensors file, written atomically, without pickle. Tied weights are stored once.
`check_weights` compares names and shapes without reading the numbers, so that a whole trajectory
can be checked before training starts.
"""

from pathlib import Path

import safetensors
from safetensors.torch import load_model, save_model
from torch import nn

from curricle.errors import CheckpointError
from curricle.specs import fingerprint


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of a module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_model(module, str(temporary))
    temporary.replace(path)


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
    shared = _shared_names(module)
    missing = [name for name in wanted if name not in found and name not in shared]
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


def _shared_names(module: nn.Module) -> set[str]:
    """Return the names of tensors that share their memory with another name."""
    owners: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        owners.setdefault(tensor.data_ptr(), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
