"""Hugging Face folders as checkpoints of an existing module.

A folder with a single `model.safetensors` with the module's parameter names is read as a plain
weights file. All others (several files, separately stored experts) are read through
`from_pretrained` of the module's class, which converts their names and shapes, into a second
module; its weights are then copied.

Design: the class comes from the module, so transformers is not imported here. Only safetensors are
read, from the local disk, and no code of the folder is run. Links are allowed: the folders of the
Hub's cache consist of them.
"""

import copy
from pathlib import Path

import safetensors
from torch import nn

from curricle import seeding
from curricle.errors import CheckpointError, short_reason
from curricle.files import is_plain_name
from curricle.models.peft_adapters import base_of
from curricle.models.weights import shapes
from curricle.yaml_specs import from_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLE = "pytorch_model"
LOADER = "from_pretrained"
"""Class method of transformers' models that reads a folder."""


def pretrained_files(folder: Path) -> list[Path]:
    """Return the weights files of a Hugging Face folder.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: If it holds no safetensors or an adapter alone, or its index lists a file
            that is missing or outside of the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        if (folder / ADAPTER).is_file():
            raise CheckpointError(
                f"{str(folder)!r} must hold a complete model; got an adapter of PEFT alone; load "
                f"it with its base, then save with merge_and_unload().save_pretrained(...)"
            )
        pickles = sorted(path.name for path in folder.glob(f"{PICKLE}*"))
        remedy = (
            f"; got {pickles[0]!r}, a pickle, which is not read because reading it can run code; "
            f"'save_pretrained' of the model writes safetensors"
            if pickles
            else ""
        )
        raise CheckpointError(
            f"{str(folder / SINGLE)!r} is listed as a checkpoint and must exist{remedy}"
        )
    names = _read_index(folder / INDEX)
    for name in names:
        if not is_plain_name(name):
            raise CheckpointError(
                f"{str(folder / INDEX)!r} must list plain names of files beside it; got {name!r}"
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{str(folder / name)!r} is listed in {INDEX!r} and must exist; it does not"
            )
    return [folder / name for name in names]


def _read_index(index: Path) -> list[str]:
    try:
        listed = from_json(index.read_bytes())["weight_map"]
        names = sorted({str(name) for name in listed.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{str(index)!r} must have a 'weight_map' of files: {error!r}"
        ) from None
    if not names:
        raise CheckpointError(f"{str(index)!r} must list at least one file; got none")
    return names


def needs_own_loader(module: nn.Module, path: Path) -> bool:
    """Return whether a checkpoint must be read through the class of a module.

    Args:
        module: The module.
        path: A weights file, never read this way, or a Hugging Face folder.
    """
    if not path.is_dir():
        return False
    if not (callable(getattr(type(module), LOADER, None)) and hasattr(module, "config")):
        return False
    if base_of(module) is not module:
        # The method of a PEFT wrapper loads adapters into a base model.
        return False
    files = pretrained_files(path)
    return len(files) > 1 or not _has_names(module, files[0])


def check_pretrained(module: nn.Module, folder: Path) -> None:
    """Check that a Hugging Face folder holds the weights of a module; reads them once."""
    _load_copy(module, folder)


def load_pretrained(module: nn.Module, folder: Path) -> None:
    """Copy the weights of a Hugging Face folder into a module."""
    module.load_state_dict(_load_copy(module, folder).state_dict())


def _has_names(module: nn.Module, file: Path) -> bool:
    """Return whether all names of a file are the module's; True for a damaged file."""
    try:
        with safetensors.safe_open(file, framework="pt") as tensors:
            return set(tensors.keys()) <= set(shapes(module))
    except safetensors.SafetensorError:
        # Loading as a plain weights file reports the damage.
        return True


def _load_copy(module: nn.Module, folder: Path) -> nn.Module:
    """Return a second module of the same class with the weights of a folder.

    Raises:
        CheckpointError: If the class cannot read it, or weights are missing or left over.
    """
    pretrained_files(folder)
    floats = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    try:
        # Weights missing in a folder are initialized at random, which must not advance the
        # generators of the run.
        with seeding.scoped(0, "pretrained"):
            loaded, report = getattr(type(module), LOADER)(
                str(folder),
                config=copy.deepcopy(module.config),
                dtype=next(floats, None),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        # The errors of model families for an unsuitable folder have no common base class.
        cause = short_reason(error)
        raise CheckpointError(
            f"{str(folder)!r} must hold weights of {type(module).__name__}; loading failed: {cause}"
        ) from error
    for kind, rule in (("missing_keys", "is missing"), ("unexpected_keys", "is not in the model")):
        names = sorted(report.get(kind, ()))
        if names:
            raise CheckpointError(
                f"{str(folder)!r} must hold this model's weights; {names[0]!r} {rule}"
            )
    if shapes(loaded) != shapes(module):
        raise CheckpointError(
            f"{str(folder)!r} must hold weights of this model's shapes; got those of another "
            f"configuration"
        )
    result: nn.Module = loaded
    return result
