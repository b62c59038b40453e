"""Evaluation of the student of a run: trial before training, modes, and finite metrics."""

import math
from typing import final

import torch

from curricle import seeding
from curricle.curriculum.durations import UntilMetric
from curricle.errors import CurricleError, DataError, DivergenceError
from curricle.metrics import CLASS_METRICS
from curricle.models.restoring import Modes, buffers_kept, set_modes
from curricle.models.tapped import REFUSALS
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.loop.evaluation import Evaluator, position_excess
from curricle.training.loop.results import plain_metrics

CLASS_METRIC_NAMES = frozenset(metric.name for metric in CLASS_METRICS)
"""Metrics of every evaluator of this package, which need no trial before training."""


@final
class StudentEvaluation:
    """Evaluations of one run's student."""

    def __init__(self, run: BoundRun, evaluate: Evaluator, metric: str) -> None:
        """Take an evaluator.

        Args:
            run: The run.
            evaluate: Gives the student's metrics.
            metric: The metric by which the run is judged.
        """
        self.modes: Modes = ()
        """Modes of the student's modules in training, which follow each evaluation."""
        self._run, self._evaluate, self._metric = run, evaluate, metric
        rules = [stage.span.rule for stage in run.stages]
        self._names = (metric, *(rule.metric for rule in rules if isinstance(rule, UntilMetric)))
        # Evaluators of this package give finite metrics for every student that has not diverged.
        self._is_built_in = str(getattr(evaluate, "__module__", "")).startswith("curricle.")
        self._excess = position_excess(evaluate, run.tables)

    def divide(self, run: BoundRun, modes: Modes) -> None:
        """Evaluate a student that processes hold in shares from now on.

        Args:
            run: The run with that student.
            modes: Modes of its modules in training.
        """
        self._run, self.modes = run, modes

    def require(self, name: str) -> None:
        """Require a further metric.

        Args:
            name: Its name.
        """
        self._names = (*self._names, name)

    def try_once(self) -> None:
        """Check the result of the evaluation before a weight changes; nothing of it is recorded.

        Evaluators of this package are not run for it if their metrics suffice and no batch is
        longer than a table of positions.
        """
        suffices = self._is_built_in and CLASS_METRIC_NAMES.issuperset(self._names)
        if suffices and not self._excess:
            return
        with (
            # An evaluation of the user may move running statistics and draw random numbers; the run
            # after it must be the one without a trial.
            buffers_kept(self._run.student.module),
            seeding.scoped(self._run.seed, "evaluation/trial", beyond_torch=True),
        ):
            self._evaluated()

    def metrics(self, stage: BoundStage, step: int) -> dict[str, float]:
        """Return the student's finite metrics.

        Args:
            stage: The open stage, for the error.
            step: The last step.

        Raises:
            DivergenceError: If the metric by which the run is judged, or any metric of an
                evaluation of this package, is not finite.
        """
        metrics = self._evaluated()
        for name, number in metrics.items():
            # Metrics of the caller may be undefined for some students, as a precision without
            # positive predictions.
            if not math.isfinite(number) and (name == self._metric or self._is_built_in):
                raise DivergenceError(
                    f"{name!r} must be finite; got {number} in stage {stage.declared.name!r} "
                    f"after step {step} with seed {self._run.seed}"
                )
        # Records are strict JSON, which has no NaN.
        return {name: number for name, number in metrics.items() if math.isfinite(number)}

    def _evaluated(self) -> dict[str, float]:
        """Return the evaluation of the student in its current state; its modes are restored.

        Raises:
            DataError: If a pass fails, and held-out batches are longer than a table of positions.
            REFUSALS: If it fails otherwise.
        """
        module, settings = self._run.student.module, self._run.settings
        # Statistics of batches are those of the share of each process.
        settings.placement.copy_first(module.buffers())
        module.eval()
        try:
            with torch.no_grad(), settings.autocast():
                metrics = plain_metrics(self._evaluate(self._run.student), *self._names)
            # A function of the caller may draw its own samples in each process, which must decide
            # alike whether a stage ends or weights are the best.
            return settings.placement.of_first(metrics)
        except REFUSALS as error:
            if isinstance(error, CurricleError) or not self._excess:
                raise
            raise DataError(
                f"'evaluation': {self._excess}; its forward pass failed with: {error}"
            ) from error
        finally:
            module.train()
            set_modes(self.modes)
