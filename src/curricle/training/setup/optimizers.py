"""Optimizers and learning-rate schedules as frozen values.

An optimizer is a value with its learning rate and a schedule; `build` makes the torch optimizer,
and `moved` is the same update as a function of tensors, for steps that are compiled.
Weight decay applies to matrices only: decaying biases and norms would fight the normalization.

Units: the learning rate is that of torch's optimizers; schedule lengths are shares of the whole.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.errors import SpecError
from curricle.values import value

Moments = Mapping[str, Tensor]
"""Optimizer state of a weight, by torch's names."""
# Kernels take the rate in float32, where a larger number is infinite: the first update would
# destroy the weights before any check of a loss sees it.
LearningRate = Annotated[float, Field(gt=0, le=torch.finfo(torch.float32).max)]


@final
@value
class Schedule:
    """Learning rate over a stretch of training, as a factor of its peak."""

    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the stretch in which the rate rises linearly from 0."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the fall from the peak after the warm-up."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak at which a decay ends."""

    def __post_init__(self) -> None:
        """Check that there is a decay that ends at the floor.

        Raises:
            SpecError: If not.
        """
        if self.decay == "constant" and self.floor:
            raise SpecError(
                f"'floor' has no effect with decay='constant'; choose 'cosine' or 'linear', or "
                f"remove it (got {self.floor})"
            )

    def factor(self, step: int, total: int) -> float:
        """Return the factor at a step counted from 0, in a stretch of `total` steps."""
        if self.decay == "constant" and not self.warmup:
            return 1.0
        rising = self.warmup * total
        if step < rising:
            # Counted from 1, so that the first step moves the weights, and with one more than the
            # steps of the rise, so that the peak comes once, at the first step after it.
            return (step + 1) / (math.floor(rising) + 1)
        # The divisor is at least 1: less than one step may be left after the warm-up of a short
        # stretch, and the share must not exceed 1.
        # A stage that takes the steps which another has saved goes on at the end of its schedule.
        done = min((step - rising) / max(total - rising, 1), 1.0)
        if self.decay == "cosine":
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
        return 1 - (1 - self.floor) * done if self.decay == "linear" else 1.0


@final
@value
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: LearningRate
    """Peak learning rate; positive, and a number in float32."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum; 0 is plain descent."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty on matrices."""
    schedule: Schedule = Schedule()
    """Learning rate over the run."""

    @property
    def moments(self) -> int:
        """Return how many numbers are kept for each parameter."""
        return int(self.momentum > 0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimizer."""
        groups = decay_groups(parameters, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)

    def factors(
        self, rates: Float[Tensor, " step"], _counts: Float[Tensor, " step"]
    ) -> Float[Tensor, "step 1"]:
        """Return the factors of steps that `moved` needs.

        Args:
            rates: Learning rate of each.
        """
        # Descent has no bias correction; the argument keeps one signature for both optimizers.
        return rates[:, None]

    def moved(
        self, weight: Tensor, gradient: Tensor, moments: Moments, *, decay: float, factors: Tensor
    ) -> tuple[Tensor, Moments]:
        """Return a weight after one step, and its moments, equal to those of the built optimizer.

        Args:
            weight: The weight; it stays as it is.
            gradient: Its gradient.
            moments: State of torch's optimizer for it, without the number of updates.
            decay: Its weight decay.
            factors: Result of `factors` for the step.
        """
        (rate,) = factors
        # Left out where it is zero: in a compiled step each addition of nothing is a pass over the
        # weight.
        descent = gradient + decay * weight if decay else gradient
        if not self.momentum:
            return weight - rate * descent, {}
        # The buffer is there: steps are taken singly until torch has made all moments.
        buffer = self.momentum * moments["momentum_buffer"] + descent
        return weight - rate * buffer, {"momentum_buffer": buffer}


@final
@value
class AdamW:
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: LearningRate
    """Peak learning rate; positive, and a number in float32."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment; the second paper's values."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices, times the learning rate."""
    schedule: Schedule = Schedule(warmup=0.06, decay="cosine")
    """Learning rate over the run."""

    @property
    def moments(self) -> int:
        """Return how many numbers are kept for each parameter."""
        return 2

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimizer."""
        # Fused updates round differently from torch's other implementations, so the choice is part
        # of what makes a resumed run bit-equal.
        return torch.optim.AdamW(
            decay_groups(parameters, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.epsilon,
            fused=True,
        )

    def factors(
        self, rates: Float[Tensor, " step"], counts: Float[Tensor, " step"]
    ) -> Float[Tensor, "step 3"]:
        """Return the factors of steps that `moved` needs; see `SGD.factors`."""
        # Counts come in float64, in which torch computes its corrections, too: in float32 the power
        # of a beta near 1 loses digits, and compiled steps would drift from single ones.
        first, second = (1 - beta**counts for beta in self.betas)
        return torch.stack([rates, rates / first, second.sqrt()], dim=1)

    def moved(
        self, weight: Tensor, gradient: Tensor, moments: Moments, *, decay: float, factors: Tensor
    ) -> tuple[Tensor, Moments]:
        """Return a weight after one step, and its moments; see `SGD.moved`."""
        rate, corrected, root = factors
        beta1, beta2 = self.betas
        first = beta1 * moments["exp_avg"] + (1 - beta1) * gradient
        second = beta2 * moments["exp_avg_sq"] + (1 - beta2) * gradient * gradient
        # The decay comes before the update and acts on the old weight, in the order of torch's
        # kernel: another order rounds differently.
        decayed = weight * (1 - rate * decay) if decay else weight
        updated = decayed - corrected * first / (second.sqrt() / root + self.epsilon)
        return updated, {"exp_avg": first, "exp_avg_sq": second}


Optimizer = Annotated[SGD | AdamW, Field(discriminator="kind")]


def decay_groups(
    parameters: Iterable[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, object]]:
    """Return parameter groups: matrices, which decay, and the rest, which do not."""
    # A generator such as `module.parameters()` can be read once only, and both groups need it.
    everything = list(parameters)
    if not weight_decay:
        # A second group would cost every step some microseconds for nothing.
        return [{"params": everything, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in everything if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in everything if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
