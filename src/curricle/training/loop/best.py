"""Best weights of a run by a metric, as `load_best_model_at_end` of the Trainer has them.

At each evaluation the student's weights are kept if the metric is better than at all evaluations
before; of equal values the earlier one stays. At the end of the run the student gets the best
weights. With a run folder they lie in `best.safetensors`, which goes into every checkpoint, so that
a resumed run has those of its own past; without one they are in memory.
"""

import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import final

from torch import Tensor, nn

from curricle.checksums import check_sealed
from curricle.errors import BindError
from curricle.files import new_file
from curricle.metric_words import direction_by_name, is_plain
from curricle.metrics import Direction
from curricle.models.shares import is_share
from curricle.models.weights import load_weights, save_weights
from curricle.training.setup.settings import TrainingSettings
from curricle.values import value

BEST = "best.safetensors"
"""File of the best weights, in a run folder and in its checkpoints."""


@final
@value
class BestPoint:
    """Evaluation with the best metric until now."""

    step: int
    """Steps taken before it."""
    metrics: dict[str, float]
    """All metrics of the student at it."""


@final
class BestWeights:
    """The best weights of one run."""

    def __init__(
        self, metric: str, better: Direction, *, folder: Path | None, is_writer: bool = True
    ) -> None:
        """Begin without any weights.

        Args:
            metric: Metric that decides.
            better: Which values of it are better.
            folder: Run folder; None keeps the weights in memory.
            is_writer: Whether this process writes the file, which all processes read.
        """
        self.metric, self.better = metric, better
        self.point: BestPoint | None = None
        """The best evaluation; None before the first."""
        self.path = None if folder is None else folder / BEST
        """File of the weights; None if they are in memory."""
        self._state: dict[str, object] = {}
        self._is_writer = is_writer

    def keep(self, module: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the weights of a module if its metric is the best.

        Args:
            module: The student.
            step: Number of steps taken.
            metrics: Its metrics; one that is not finite is missing and never the best.
        """
        number = metrics.get(self.metric)
        if number is None or not self._is_better(number):
            return
        if self.path is None:
            self._state = {
                name: _copy(entry) if isinstance(entry, Tensor) else deepcopy(entry)
                for name, entry in module.state_dict().items()
            }
        else:
            save_weights(module, self.path if self._is_writer else None)
        self.point = BestPoint(step=step, metrics=dict(metrics))

    def _is_better(self, number: float) -> bool:
        if self.point is None:
            return True
        best = self.point.metrics[self.metric]
        return number > best if self.better == "higher" else number < best

    def load(self, module: nn.Module) -> None:
        """Put the best weights into a module, if there are any; a file must be written by now."""
        if self.point is None:
            return
        if self.path is None:
            module.load_state_dict(self._state)
        else:
            load_weights(module, self.path)

    def copy_to(self, folder: Path) -> None:
        """Copy the weights into a checkpoint, if there are any."""
        if self.path is not None and self.point is not None:
            shutil.copyfile(self.path, folder / BEST)

    def restore(self, checkpoint: Path, point: BestPoint | None) -> None:
        """Go on from a checkpoint.

        Weights of steps after it are replaced, since these steps are taken again.

        Args:
            checkpoint: Folder of the checkpoint, with the weights.
            point: The best evaluation before it, or None.
        """
        self.point = point
        if point is None:
            return
        check_sealed(checkpoint, [BEST])
        if self.path is not None and self._is_writer:
            with new_file(self.path) as temporary:
                shutil.copyfile(checkpoint / BEST, temporary)

    def remove(self) -> None:
        """Remove the file after the end of the run, whose finished weights are the best ones."""
        if self.path is not None and self._is_writer:
            self.path.unlink(missing_ok=True)


def _copy(tensor: Tensor) -> Tensor:
    # Of a tensor in shares the copy is this process's share, where the share lies.
    copied = tensor.detach().clone()
    return copied if is_share(copied) else copied.cpu()


def best_facts(best: BestWeights | None, eval_every: int) -> dict[str, object]:
    """Return the facts on which the best weights depend; none if they are not kept."""
    if best is None:
        return {}
    return {"keep_best": [best.metric, best.better], "eval_every": eval_every}


def best_weights(
    settings: TrainingSettings,
    metric: str,
    better: Direction | None,
    *,
    folder: Path | None,
    is_writer: bool = True,
) -> BestWeights | None:
    """Return where the best weights are kept; None if the settings keep none.

    Args:
        settings: Settings with `keep_best`.
        metric: Metric by which the run is judged.
        better: Which values of it are better, if that is declared.
        folder: Run folder, or None.
        is_writer: Whether this process writes into it.

    Raises:
        BindError: If the direction is not declared, and the name has words of unknown meaning:
            `time_to_accuracy` is no accuracy.
    """
    if settings.keep_best is False:
        return None
    name = metric if settings.keep_best is True else settings.keep_best
    direction = better if name == metric else None
    if direction is None and is_plain(name):
        direction = direction_by_name(name)
    if direction is None:
        raise BindError(
            f"'keep_best' must have a metric of known direction; {name!r} does not say whether "
            f"lower or higher values are better; make it the metric of the run and pass "
            f"better='lower' or better='higher'"
        )
    return BestWeights(name, direction, folder=folder, is_writer=is_writer)


def check_evaluated(settings: TrainingSettings, num_steps: int) -> None:
    """Check that the best weights are chosen among several evaluations.

    Args:
        settings: Settings with `keep_best`.
        num_steps: Length of the run in steps.

    Raises:
        BindError: If the student is evaluated at the end alone.
    """
    if settings.keep_best is not False and settings.eval_every >= num_steps:
        raise BindError(
            f"'eval_every' must be below the {num_steps} steps of the run where 'keep_best' "
            f"chooses among evaluations; got {settings.eval_every}, so that only the end is "
            f"evaluated"
        )
