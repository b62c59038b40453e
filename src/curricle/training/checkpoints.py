"""How does an interrupted run go on exactly where it stopped?

A checkpoint is a folder: the student's weights and the optimizer's tensors as safetensors, and a
`state.json` with the step, what was spent and how long the records were. What the objectives of the
stage train beside the student lies in files of its own, with its part of the optimizer's state. A
checkpoint is written beside its final name, flushed and renamed. Random numbers need no room: they
are functions of seed and step.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curricle.errors import CheckpointError
from curricle.files import new_folder
from curricle.models.weights import load_weights, save_weights
from curricle.records import Spent
from curricle.specs import parse, plain

STUDENT, OPTIMIZER, STATE = "student.safetensors", "optimizer.safetensors", "state.json"
ADAPTERS, ADAPTERS_OPTIMIZER = "adapters.safetensors", "adapters-optimizer.safetensors"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands."""

    spent: Spent
    """Consumed so far; its steps are the next step to run."""
    records_bytes: int
    """Length of the records file, to which it is cut when resuming."""
    run: str
    """Digest of everything the run depends on."""


def save_checkpoint(
    folder: Path,
    state: RunState,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    adapters: nn.ModuleList | None = None,
) -> Path:
    """Write a checkpoint and remove the one before it.

    Args:
        folder: Where the checkpoints of the run lie.
        state: Where the run stands.
        module: The student.
        optimizer: Whose state is kept.
        adapters: What the stage trains beside the student, if anything.

    Returns:
        The folder of the checkpoint.
    """
    path = folder / f"step-{state.spent.steps:09d}"
    older = [old for old in _checkpoints(folder) if old != path]
    with new_folder(path) as temporary:
        save_weights(module, temporary / STUDENT)
        save_file(_optimizer_tensors(optimizer, module), temporary / OPTIMIZER)
        if adapters is not None and len(adapters):
            save_weights(adapters, temporary / ADAPTERS)
            save_file(_optimizer_tensors(optimizer, adapters), temporary / ADAPTERS_OPTIMIZER)
        content = {
            "spent": plain(state.spent),
            "records_bytes": state.records_bytes,
            "run": state.run,
        }
        (temporary / STATE).write_text(json.dumps(content, indent=1))
    for old in older:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint below a folder, if there is one."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def read_state(path: Path) -> RunState:
    """Return where the run of a checkpoint stands.

    Raises:
        CheckpointError: If the state cannot be read.
    """
    try:
        content = json.loads((path / STATE).read_text())
        return RunState(
            spent=parse(Spent, content["spent"]),
            records_bytes=int(content["records_bytes"]),
            run=str(content["run"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(path / STATE)!r} must tell where a run stands: {error!r}"
        ) from None


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state into place.

    Raises:
        CheckpointError: If a file is missing, damaged or does not fit.
    """
    load_weights(module, path / STUDENT)
    optimizer.state.clear()
    _restore_optimizer(optimizer, module, path / OPTIMIZER)


def load_adapters(path: Path, adapters: nn.ModuleList, optimizer: torch.optim.Optimizer) -> None:
    """Put what a checkpoint holds of a stage's adapters into place.

    Args:
        path: The checkpoint.
        adapters: Those of the stage that it was written in.
        optimizer: Gets their part of the state; the student's is left as it is.

    Raises:
        CheckpointError: If a file is missing, damaged or does not fit.
    """
    load_weights(adapters, path / ADAPTERS)
    _restore_optimizer(optimizer, adapters, path / ADAPTERS_OPTIMIZER)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def _optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter name/state name`."""
    return {
        f"{name}/{key}": torch.as_tensor(kept).detach().clone().contiguous()
        for name, parameter in module.named_parameters()
        for key, kept in optimizer.state.get(parameter, {}).items()
        if kept is not None
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, path: Path) -> None:
    """Add the state of a module's parameters to an optimizer.

    Raises:
        CheckpointError: If the file cannot be read, or holds state of another model.
    """
    try:
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from None
    named = dict(module.named_parameters())
    for key, tensor in tensors.items():
        name, _, state = key.rpartition("/")
        parameter = named.get(name)
        if parameter is None:
            raise CheckpointError(f"'optimizer' state must be of this model; got {name!r}")
        slot: dict[str, Any] = optimizer.state[parameter]
        # The step count too: the fused AdamW keeps it beside the parameter.
        slot[state] = tensor.to(parameter.device)
