"""The one loop, its optimizers, checkpoints, budget and observers."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.training.binding.bound_run import BoundRun as BoundRun
    from curricle.training.binding.bound_run import bind as bind
    from curricle.training.distill import Result as Result
    from curricle.training.distill import execute as execute
    from curricle.training.loop.evaluation import Evaluator as Evaluator
    from curricle.training.loop.evaluation import label_metrics as label_metrics
    from curricle.training.loop.run_outputs import Outputs as Outputs
    from curricle.training.loop.staged import StagedLoss as StagedLoss
    from curricle.training.loop.staged import staged_loss as staged_loss
    from curricle.training.setup.divergence import RollBack as RollBack
    from curricle.training.setup.divergence import SkipSteps as SkipSteps
    from curricle.training.setup.divergence import StopRun as StopRun
    from curricle.training.setup.observers import ProgressBar as ProgressBar
    from curricle.training.setup.optimizers import SGD as SGD
    from curricle.training.setup.optimizers import AdamW as AdamW
    from curricle.training.setup.optimizers import Schedule as Schedule
    from curricle.training.setup.settings import TrainingSettings as TrainingSettings
    from curricle.training.sharing.shared_runs import SharedRun as SharedRun
    from curricle.training.sharing.shared_runs import execute_shared as execute_shared
    from curricle.training.targets.capture import TargetCompression as TargetCompression
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "binding.bound_run": ("BoundRun", "bind"),
            "distill": ("Result", "execute"),
            "loop.run_outputs": ("Outputs",),
            "loop.evaluation": ("Evaluator", "label_metrics"),
            "setup.divergence": ("RollBack", "SkipSteps", "StopRun"),
            "setup.observers": ("ProgressBar",),
            "setup.optimizers": ("AdamW", "SGD", "Schedule"),
            "setup.settings": ("TrainingSettings",),
            "sharing.shared_runs": ("SharedRun", "execute_shared"),
            "loop.staged": ("StagedLoss", "staged_loss"),
            "targets.capture": ("TargetCompression",),
        },
    )
