"""Learning rates of a Trainer with schedules or factors by stage.

A scheduler of torch sets the rate of the next step when a step is taken. Whether that step belongs
to another stage is known only after the evaluation, so `StageRates` can set it again.
"""

from collections.abc import Callable
from typing import final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Factor = Callable[[int], float]
"""Function from a step to the factor of the learning rate."""


@final
class StageRates(LambdaLR):
    """Scheduler by the open stage; the function itself is in no checkpoint."""

    def __init__(self, optimizer: Optimizer, factor: Factor) -> None:
        """Set the rates of the first step.

        Args:
            optimizer: The optimizer of the Trainer.
            factor: Returns the factor of a step, by the stage that is open.
        """
        super().__init__(optimizer, factor)

    def refresh(self) -> None:
        """Set the rates of the step at hand again, after its stage is known."""
        factor = self.lr_lambdas[0](self.last_epoch)
        rates = [rate * factor for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = list(rates)
