"""Learning rates of a Trainer whose stages have schedules or factors of their own.

A scheduler of torch sets the rate of the next step when a step is taken. Whether that step belongs
to another stage is known only after the evaluation, so `StageRates` can set it again.
"""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Factor = Callable[[int], float]
"""Function from a step to the factor of the learning rate."""


@final
class StageRates(LRScheduler):
    """Scheduler whose factor depends on the open stage."""

    def __init__(self, optimizer: Optimizer, factor: Factor) -> None:
        """Set the rates of the first step.

        Args:
            optimizer: The optimizer of the Trainer.
            factor: Returns the factor of a step, by the stage that is open.
        """
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group of parameters."""
        factor = self.factor(self.last_epoch)
        return [float(rate) * factor for rate in self.base_lrs]

    def refresh(self) -> None:
        """Set the rates of the step at hand again, after its stage is known."""
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = list(rates)

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the function, which the curriculum gives again."""
        return {name: state for name, state in super().state_dict().items() if name != "factor"}
