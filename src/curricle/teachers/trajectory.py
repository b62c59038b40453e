"""What did a teacher look like along its training?

A *trajectory* is the ordered list of checkpoints of one teacher. On disk it is a folder of
safetensors files and a `manifest.json`; a list of Hugging Face folders, such as the
`checkpoint-<step>` folders of its Trainer, serves as well.

The manifest keeps the teacher's loss on held-out data at each checkpoint, in nats a scored
position. Not its training loss: that of one batch is noisy, and smoothing it over earlier steps
would move and widen the very transition that `curriculum.transitions` looks for.

Design: every checkpoint that a curriculum names is checked before training starts. A missing or
unreadable one is an error then, never skipped later.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from curricle.errors import BindError, CheckpointError, reason
from curricle.files import write_text
from curricle.models.weights import check_weights, load_weights, save_weights

MANIFEST, TRAINER_STATE = "manifest.json", "trainer_state.json"


@final
@dataclass(frozen=True, slots=True)
class Trajectory:
    """Ordered checkpoints of one teacher."""

    files: tuple[tuple[int, Path], ...]
    """Training step and weights file of each checkpoint, ascending."""
    losses: tuple[tuple[int, float], ...] = ()
    """Training step and held-out loss of the checkpoints where it is known, ascending; in nats."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the training steps of the checkpoints."""
        return tuple(step for step, _ in self.files)

    def path(self, step: int) -> Path:
        """Return the weights file of a checkpoint.

        Raises:
            BindError: If the trajectory has no checkpoint of that step.
        """
        found = dict(self.files).get(step)
        if found is None:
            raise BindError(f"'teacher' checkpoint must be one of {list(self.steps)}; got {step}")
        return found

    def check(self, module: nn.Module, steps: Iterable[int]) -> None:
        """Check that checkpoints exist, can be read and belong to a model."""
        for step in steps:
            check_weights(module, self.path(step))

    def load(self, module: nn.Module, step: int) -> None:
        """Put the weights of a checkpoint into a model."""
        load_weights(module, self.path(step))


@final
class TrajectoryWriter:
    """Keeps checkpoints of a training run at chosen steps."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        """Choose the steps; the folder is made at the first checkpoint."""
        self._folder = folder
        self.steps = frozenset(steps)

    def save(self, module: nn.Module, step: int, loss: float | None = None) -> None:
        """Write the checkpoint of a step and list it in the manifest.

        Args:
            module: The teacher.
            step: Its training step.
            loss: Its loss on held-out data, in nats; None if it is not known.
        """
        save_weights(module, self._folder / _file_name(step))
        manifest = self._folder / MANIFEST
        known = json.loads(manifest.read_text()) if manifest.is_file() else {}
        steps, losses = known.get("steps", []), dict(known.get("losses", []))
        if loss is not None:
            losses[step] = loss
        listed = {"steps": sorted({*steps, step}), "losses": sorted(losses.items())}
        write_text(manifest, json.dumps(listed, indent=1))


def open_trajectory(folder: Path | str) -> Trajectory:
    """Return the trajectory in a folder that `TrajectoryWriter` made.

    Raises:
        CheckpointError: If the manifest or a listed file is missing or damaged.
    """
    where = Path(folder)
    manifest = where / MANIFEST
    try:
        listed = json.loads(manifest.read_text())
        steps = [int(step) for step in listed["steps"]]
        # Earlier versions did not keep losses.
        losses = tuple((int(step), float(loss)) for step, loss in listed.get("losses", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(manifest)!r} must list the steps of a trajectory: {reason(error)}"
        ) from None
    files = tuple((step, where / _file_name(step)) for step in steps)
    _all_present(path for _, path in files)
    return Trajectory(files, losses)


def hugging_face_trajectory(folders: Sequence[Path | str]) -> Trajectory:
    """Return the trajectory made of Hugging Face model folders, in the given order.

    A folder named `checkpoint-<step>` gives its step; otherwise they are numbered from 1. Losses
    are those that the Trainer has noted in `trainer_state.json` where it evaluated at that step.

    Raises:
        CheckpointError: If there is none, one holds no `model.safetensors` or a damaged state, or
            the steps do not ascend.
    """
    chosen = [Path(folder) for folder in folders]
    steps = hugging_face_steps(chosen)
    if not steps:
        raise CheckpointError("'folders' must be at least one; got none")
    paths = [folder / "model.safetensors" for folder in chosen]
    _all_present(paths)
    noted = [_noted_loss(folder, step) for folder, step in zip(chosen, steps, strict=True)]
    known = [(step, loss) for step, loss in zip(steps, noted, strict=True) if loss is not None]
    return Trajectory(tuple(zip(steps, paths, strict=True)), tuple(known))


def hugging_face_steps(folders: Sequence[Path]) -> tuple[int, ...]:
    """Return the steps that the names of Hugging Face model folders stand for.

    Raises:
        CheckpointError: If they do not ascend.
    """
    found = [re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in folders]
    named = [int(match.group(1)) for match in found if match is not None]
    steps = named if len(named) == len(folders) else list(range(1, len(folders) + 1))
    if steps != sorted(set(steps)):
        raise CheckpointError(f"'folders' must have ascending steps; got {steps}")
    return tuple(steps)


def _noted_loss(folder: Path, step: int) -> float | None:
    """Return the evaluation loss of a step in the Trainer's state, in nats; None if it has none.

    Raises:
        CheckpointError: If the state is damaged.
    """
    state = folder / TRAINER_STATE
    if not state.is_file():
        return None
    try:
        history = json.loads(state.read_text())["log_history"]
        found = [one["eval_loss"] for one in history if "eval_loss" in one and one["step"] == step]
        return float(found[-1]) if found else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(state)!r} must hold the 'log_history' of a Trainer: {error!r}"
        ) from None


def _file_name(step: int) -> str:
    return f"step-{step:09d}.safetensors"


def _all_present(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{str(path)!r} is listed as a checkpoint and must exist")
