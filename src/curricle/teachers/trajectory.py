"""Checkpoints of a teacher along its training.

A *trajectory* is the ordered list of checkpoints of a teacher. On disk it is a folder of
safetensors files and a `manifest.json` with the hash of each; a list of Hugging Face folders, such
as the `checkpoint-<step>` folders of its Trainer, is also accepted. Hugging Face folders with other
parameter names than the module (sharded ones, mixtures of experts) are read through
`from_pretrained` of the module's class.

The manifest records the teacher's loss on held-out data at each checkpoint, in nats per scored
position. The training loss is not used: that of a batch is noisy, and smoothing it over earlier
steps would shift and widen the transition that `curriculum.loss_transitions` detects.

Design: every checkpoint of a curriculum is checked before training starts. A missing or unreadable
one is an error then, never skipped later.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from curricle.checksums import read_sealed, write_sealed
from curricle.errors import BindError, CheckpointError, reason
from curricle.files import content_digest, inside, remove_leftovers
from curricle.models.weights import check_weights, load_weights, save_weights
from curricle.teachers.checkpoint_folders import checkpoint_folders, evaluation_loss, in_step_order
from curricle.teachers.pretrained import (
    SINGLE,
    check_pretrained,
    load_pretrained,
    needs_own_loader,
    pretrained_files,
)

MANIFEST = "manifest.json"


@final
@dataclass(frozen=True, slots=True)
class Trajectory:
    """Ordered checkpoints of a teacher."""

    files: tuple[tuple[int, Path], ...]
    """Training step and weights file of each checkpoint, or its Hugging Face folder; ascending."""
    losses: tuple[tuple[int, float], ...] = ()
    """Training step and held-out loss of checkpoints, if known; ascending, in nats."""
    digests: tuple[tuple[int, str], ...] = ()
    """Training step and SHA-256 of the weights file of checkpoints, if known."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the training steps of the checkpoints."""
        return tuple(step for step, _ in self.files)

    def path(self, step: int) -> Path:
        """Return the weights file of a checkpoint.

        Raises:
            BindError: If the trajectory has no checkpoint of that step.
        """
        path = dict(self.files).get(step)
        if path is None:
            raise BindError(f"'teacher' checkpoint must be one of {list(self.steps)}; got {step}")
        return path

    def check(self, module: nn.Module, steps: Iterable[int]) -> None:
        """Check that checkpoints exist, are readable and fit a model."""
        for step in steps:
            path = self.path(step)
            if needs_own_loader(module, path):
                check_pretrained(module, path)
            else:
                file = _weights_file(path)
                check_weights(module, file)
                self.check_digest(step)

    def load(self, module: nn.Module, step: int) -> None:
        """Load the weights of a checkpoint into a model, after checking them."""
        path = self.path(step)
        if needs_own_loader(module, path):
            load_pretrained(module, path)
        else:
            self.check_digest(step)
            load_weights(module, _weights_file(path))

    def check_digest(self, step: int) -> None:
        """Check the weights file of a checkpoint against the manifest, if that has its hash.

        Raises:
            CheckpointError: If its hash differs.
        """
        path = _weights_file(self.path(step))
        expected = dict(self.digests).get(step)
        if expected is not None and (digest := content_digest(path)) != expected:
            raise CheckpointError(
                f"{str(path)!r} is damaged or of another run: its SHA-256 must be "
                f"{expected[:16]}... as listed in {MANIFEST!r}; got {digest[:16]}...; train the "
                f"teacher again in another folder"
            )


@final
class TrajectoryWriter:
    """Writer of the checkpoints of a training run at selected steps."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        """Set the steps; the folder is created with the first checkpoint."""
        self._folder = folder
        self.steps = frozenset(steps)

    def remove_leftovers(self) -> None:
        """Remove temporary files of a killed process; for the only writer of the run."""
        remove_leftovers(self._folder, rf"step-\d+\.safetensors|{re.escape(MANIFEST)}")

    def save(
        self, module: nn.Module, step: int, loss: float | None = None, *, is_writer: bool = True
    ) -> None:
        """Write the checkpoint of a step and list it in the manifest.

        Args:
            module: The teacher.
            step: Its training step.
            loss: Its loss on held-out data, in nats; None if unknown.
            is_writer: Whether this process writes; otherwise it only hands over its shares.
        """
        file = self._folder / _file_name(step)
        save_weights(module, file if is_writer else None)
        if not is_writer:
            return
        manifest = self._folder / MANIFEST
        listed = _read_manifest(manifest) if manifest.is_file() else _Listed()
        losses, digests = dict(listed.losses), dict(listed.digests)
        if loss is not None:
            losses[step] = loss
        digests[step] = content_digest(file)
        document = {
            "steps": sorted({*listed.steps, step}),
            "losses": sorted(losses.items()),
            "sha256": sorted(digests.items()),
        }
        write_sealed(manifest, document)


def checkpoint_steps(total: int, number: int) -> tuple[int, ...]:
    """Return equally spaced steps of a training, of which the last is its end.

    Args:
        total: Length of the training in steps.
        number: Number of checkpoints; of a shorter training one at each step.
    """
    number = min(number, total)
    return tuple(sorted({round(total * i / number) for i in range(1, number + 1)}))


def open_trajectory(folder: Path | str) -> Trajectory:
    """Return the trajectory in a folder written by `TrajectoryWriter`.

    Raises:
        CheckpointError: If the manifest or a listed file is missing or damaged.
    """
    folder = Path(folder)
    listed = _read_manifest(folder / MANIFEST)
    files = tuple((step, inside(folder, _file_name(step))) for step in listed.steps)
    for _, path in files:
        if not path.is_file():
            raise CheckpointError(f"{str(path)!r} is listed as a checkpoint and must exist")
    return Trajectory(files, listed.losses, listed.digests)


@final
@dataclass(frozen=True, slots=True)
class _Listed:
    """Content of a manifest."""

    steps: tuple[int, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    digests: tuple[tuple[int, str], ...] = ()


def _read_manifest(manifest: Path) -> _Listed:
    try:
        # Version 0.1 wrote no hashes, and earlier ones no losses.
        listed = read_sealed(manifest, needs_check=False)
        steps = tuple(int(step) for step in listed["steps"])
        losses = tuple((int(step), float(loss)) for step, loss in listed.get("losses", []))
        digests = tuple((int(step), str(digest)) for step, digest in listed.get("sha256", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(manifest)!r} must list the steps of a trajectory: {reason(error)}; train the "
            f"teacher again in another folder"
        ) from None
    if list(steps) != sorted(set(steps)) or any(step < 0 for step in steps):
        raise CheckpointError(
            f"{str(manifest)!r} must list steps that ascend from 0; got {list(steps)}"
        )
    return _Listed(steps, losses, digests)


def hugging_face_trajectory(folders: Sequence[Path | str] | Path | str) -> Trajectory:
    """Return the trajectory made of Hugging Face model folders.

    Folders named `checkpoint-<step>`, as by the Trainer, `step<step>` or `chck_<words>` are sorted
    by that number; otherwise folders keep their order and are numbered from 1. Losses come from the
    evaluations at these steps in the Trainer's `trainer_state.json`.

    Args:
        folders: Folders with `model.safetensors`, or with several files and their index; or the one
            folder that holds them under such names, also one of the Hub's cache.

    Raises:
        CheckpointError: If there is none, a folder has no safetensors or a damaged state, or a step
            occurs twice.
    """
    if not folders:
        raise CheckpointError("'folders' must be at least one; got none")
    if isinstance(folders, (str, Path)):
        ordered = checkpoint_folders(Path(folders))
    else:
        ordered = in_step_order([Path(folder) for folder in folders])
    for _, folder in ordered:
        pretrained_files(folder)
    evaluations = [(step, evaluation_loss(folder, step)) for step, folder in ordered]
    losses = tuple((step, loss) for step, loss in evaluations if loss is not None)
    return Trajectory(tuple(ordered), losses)


def hugging_face_steps(folders: Sequence[Path]) -> tuple[int, ...]:
    """Return the steps in the names of Hugging Face model folders, ascending.

    Raises:
        CheckpointError: If a step occurs twice.
    """
    return tuple(step for step, _ in in_step_order(folders))


def _weights_file(path: Path) -> Path:
    """Return the weights file of a checkpoint."""
    return path / SINGLE if path.is_dir() else path


def _file_name(step: int) -> str:
    return f"step-{step:09d}.safetensors"
