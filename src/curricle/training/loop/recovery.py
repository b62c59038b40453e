"""Recovery of a run from failed steps: judgment of losses, bounds, and the kept batch.

A `Recovery` belongs to one run. It judges each loss by the reaction of the settings, counts skipped
steps and returns, and holds the factor of the learning rate that returns have left. Its `state` is
part of every checkpoint, so that a resumed run decides as the run that was not interrupted.

The batch of a failed step lies in `failed-steps/step-N` of the run folder: its tensors as
safetensors, `failure.json` with stage, step, seed and fault, and a manifest with their hashes.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import final

from safetensors.torch import save_file
from torch import Tensor

from curricle.checksums import SEAL, folder_seal
from curricle.data.batch import Batch
from curricle.data.batch_tensors import named_tensors
from curricle.errors import CheckpointError
from curricle.files import new_folder, remove_leftovers
from curricle.models.weights import serializing
from curricle.records import EndRecord
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.setup.divergence import RollBack, SkipSteps
from curricle.training.setup.settings import TrainingSettings
from curricle.values import value

FAILED = "failed-steps"
"""Folder in the run folder with the batches of failed steps."""
BATCH, FAILURE = "batch.safetensors", "failure.json"
MEMORY = 32
"""Steps over which the running mean of losses forgets, and before which it judges none."""


@final
@value
class RecoveryState:
    """State of a recovery in a checkpoint."""

    skipped: int = 0
    """Number of steps that were skipped."""
    roll_backs: int = 0
    """Number of returns to a checkpoint."""
    learning_rate_scale: float = 1.0
    """Factor of the learning rate."""
    micro_batches: int = 0
    """Number of micro-batches of a step after a lack of memory; 0 for that of the settings."""
    mean_loss: float = 0.0
    """Running mean of the losses of the open stage."""
    num_losses: int = 0
    """Number of these losses."""
    last_loss: float | None = None
    """Loss of the last step of the open stage that was applied; None before the first."""


@final
class Recovery:
    """Recovery of one run."""

    def __init__(self, settings: TrainingSettings, folder: Path | None = None) -> None:
        """Begin without a failed step.

        Args:
            settings: Settings with the reaction.
            folder: Run folder; None keeps no batches.
        """
        self.reaction = settings.on_divergence
        """Reaction to a diverged step."""
        self.state = RecoveryState()
        """Counts and sums, without those of the open stage since it was set."""
        self._folder = None if folder is None else folder / FAILED
        self._mean, self._number = 0.0, 0
        self._last: Tensor | float | None = None
        self._is_tracking = settings.checks_each_loss
        self._declared_micro_batches = settings.gradient_accumulation_steps

    @property
    def learning_rate_scale(self) -> float:
        """Return the factor of the learning rate."""
        return self.state.learning_rate_scale

    @property
    def micro_batches(self) -> int:
        """Return the number of micro-batches of a step."""
        return self.state.micro_batches or self._declared_micro_batches

    def halve(self) -> None:
        """Halve the micro-batches for the rest of the run."""
        self.state = self._changed(micro_batches=2 * self.micro_batches)

    def enter_stage(self) -> None:
        """Forget the losses of the stage before, since other objectives have other losses."""
        self._mean, self._number, self._last = 0.0, 0, None

    def fault(self, loss: StepLoss) -> str:
        """Return the rule that the loss of a step breaks; empty if the step may be applied.

        Args:
            loss: The loss; `add` takes it into the running mean if the step is applied.
        """
        if not loss.is_finite:
            return f"'loss' must be finite; got {loss.loss.item()}"
        ratio = self.reaction.explosion
        if ratio is None or self._number < MEMORY:
            return ""
        number = loss.loss.item()
        if not number > ratio * self._mean > 0:
            return ""
        return (
            f"'loss' must stay below {ratio:g} times its running mean of {self._mean:.4g}; "
            f"got {number:.4g}"
        )

    def add(self, loss: StepLoss) -> None:
        """Add the loss of an applied step to the running mean.

        Args:
            loss: The loss, in which no rule found a fault.
        """
        if not self._is_tracking:
            return
        self._last = loss.loss
        if self.reaction.explosion is not None:
            self._number += 1
            # A plain mean until the memory is full, then an exponential one.
            self._mean += (self._last.item() - self._mean) / min(self._number, MEMORY)

    def skips(self) -> bool:
        """Return whether a failed step is skipped, and count it."""
        reaction = self.reaction
        if not isinstance(reaction, SkipSteps) or self.state.skipped >= reaction.at_most:
            return False
        self.state = self._changed(skipped=self.state.skipped + 1)
        return True

    def rolls_back(self) -> bool:
        """Return whether a failed step may be followed by a return to a checkpoint."""
        return isinstance(self.reaction, RollBack) and self.state.roll_backs < self.reaction.at_most

    def roll_back(self) -> None:
        """Count a return and lower the learning rate, once the checkpoint is restored."""
        assert isinstance(self.reaction, RollBack)  # noqa: S101 - `rolls_back` comes first
        scale = self.state.learning_rate_scale * self.reaction.learning_rate_scale
        self.state = self._changed(roll_backs=self.state.roll_backs + 1, learning_rate_scale=scale)

    @property
    def bound(self) -> str:
        """Return the end of an error sentence where a bound is reached; empty otherwise."""
        reaction, state = self.reaction, self.state
        if isinstance(reaction, SkipSteps) and state.skipped:
            return f"; {skipped(state.skipped)} before, the limit of 'on_divergence'"
        if isinstance(reaction, RollBack) and state.roll_backs >= reaction.at_most:
            return (
                f"; the run was rolled back {times(state.roll_backs)} before, the limit of "
                f"'on_divergence'; a batch that fails at every learning rate is left out by "
                f"on_divergence={{'kind': 'skip'}}, with which the run goes on from its newest "
                f"checkpoint"
            )
        return ""

    def loss_for_rules(self, loss: StepLoss) -> Tensor | float | None:
        """Return the loss that counts for the rules of stages.

        Of a skipped step it is that of the last applied step of the stage; None before the first.

        Args:
            loss: Loss of a step.
        """
        return self._last if loss.fault else loss.loss

    def snapshot(self) -> RecoveryState:
        """Return the state for a checkpoint."""
        last = None if self._last is None else float(self._last)
        return self._changed(mean_loss=self._mean, num_losses=self._number, last_loss=last)

    def restore(self, state: RecoveryState) -> None:
        """Go on from a checkpoint.

        Args:
            state: Its state.
        """
        self.state = state
        self._mean, self._number, self._last = state.mean_loss, state.num_losses, state.last_loss

    def _changed(self, **changes: float | None) -> RecoveryState:
        return replace(self.state, **changes)  # type: ignore[arg-type]

    def keep(self, batch: Batch, step: int, facts: Mapping[str, object]) -> Path | None:
        """Keep the batch of a failed step in the run folder, if there is one.

        Args:
            batch: The whole batch.
            step: Its step.
            facts: Facts about the failure, as plain data.

        Returns:
            The folder of the step; None if nothing was kept.
        """
        if self._folder is None:
            return None
        path = self._folder / f"step-{step:09d}"
        # A disk that refuses must not hide the failure itself.
        with suppress(CheckpointError), new_folder(path) as temporary:
            with serializing(path):
                save_file(_copies(batch), temporary / BATCH)
            text = json.dumps({"step": step, **facts}, indent=1)
            (temporary / FAILURE).write_text(text, encoding="utf-8")
            (temporary / SEAL).write_text(folder_seal(temporary, [BATCH, FAILURE]))
        return path if path.is_dir() else None


def skipped(number: int) -> str:
    """Return the number of skipped steps in words, as `2 steps were skipped`."""
    return "1 step was skipped" if number == 1 else f"{number:,} steps were skipped"


def times(number: int) -> str:
    """Return a number of times in words."""
    return "once" if number == 1 else f"{number:,} times"


def recovery_notes(end: EndRecord, *, has_folder: bool) -> tuple[str, ...]:
    """Return the notes about steps that a finished run has skipped or rolled back.

    Args:
        end: The last record of the run.
        has_folder: Whether the run has a folder, in which the batches are.
    """
    place = f"in {FAILED!r} of the run folder" if has_folder else "not kept without 'output_dir'"
    batches = f"the batches are {place}, and the records of kind 'recovery' name each step"
    notes = []
    if end.skipped_steps:
        reason = "since their loss or gradient was not finite or exploded"
        notes.append(f"{skipped(end.skipped_steps)}, {reason}; {batches}")
    if end.roll_backs:
        notes.append(
            f"the run was rolled back {times(end.roll_backs)} to a checkpoint after steps that "
            f"had failed, with a lower learning rate from then on; {batches}"
        )
    return tuple(notes)


def clear_failed_steps(folder: Path) -> None:
    """Remove leftovers of a process that was killed while it kept a batch.

    Args:
        folder: The run folder.
    """
    remove_leftovers(folder / FAILED, r"step-\d{9,}")


def _copies(batch: Batch) -> dict[str, Tensor]:
    """Return copies of the tensors of a batch on the CPU, none of which shares memory."""
    return {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in named_tensors(batch).items()
    }
