"""How do one or several students step as a function of their weights?

Students of one architecture that stand at the same step of the same stage are one model whose
weights have a new first axis. One student alone is itself, without that axis. Each student's own
weights and optimizer state are views of its slice, so whatever reads them between two steps finds
what it always finds.

Axes: student (if there are several), then those of the weight.

Design: shapes do not tell whether two models compute the same, nor whether a model is a function of
its weights at all, so the losses of those who are joined are compared with their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from curricle.data.streams import Batch
from curricle.objectives.terms import Target
from curricle.training.stepping import StepOutcome, Stepper

TOLERANCE = 1e-3
"""Largest relative difference of a loss at which two models are taken to compute the same."""


@final
class Joined:
    """Some students as one model, or one as it is."""

    def __init__(self, steppers: Sequence[Stepper]) -> None:
        """Join students whose stages are open.

        Args:
            steppers: What runs the steps of each; several share memory from now on.
        """
        self.steppers = steppers
        each = [dict(one.run.student.module.named_parameters()) for one in steppers]
        self._inside = _Totals(steppers[0])
        self._is_stacked = len(steppers) > 1
        self.weights: dict[str, Tensor]
        """The weights of all, by name."""
        if not self._is_stacked:
            self.weights, self.optimizer = dict(each[0]), steppers[0].optimizer
            return
        self.weights = {}
        for name, parameter in each[0].items():
            stacked = torch.stack([one[name].detach() for one in each])
            for number, one in enumerate(each):
                one[name].data = stacked[number]
            self.weights[name] = stacked.requires_grad_(parameter.requires_grad)
        self.optimizer = _stacked_optimizer(steppers, each, self.weights)
        """Moves the weights of all."""

    def agrees(self, batch: Batch) -> bool:
        """Return whether the stacked models give the losses that they give one by one."""
        targets = [one.targets(batch) for one in self.steppers]
        with torch.no_grad():
            together = self.totals(self.weights, batch, self.gathered(targets))
            apart = [
                one.totals(batch, target)
                for one, target in zip(self.steppers, targets, strict=True)
            ]
        own = [torch.stack(column) for column in zip(*apart, strict=True)]
        return all(
            torch.allclose(one, other.reshape(one.shape), rtol=TOLERANCE, equal_nan=True)
            for one, other in zip(together, own, strict=True)
        )

    def step(self, batch: Batch, step: int) -> list[StepOutcome]:
        """Return the outcome of each student in a step that is taken."""
        first = self.steppers[0]
        targets = self.gathered([one.targets(batch) for one in self.steppers])
        totals = self.totals(self.weights, batch, targets)
        counts = first.counts(batch)
        outcomes = self.outcomes([one.detach() for one in totals], counts)
        if not all(bool(total.isfinite().all()) for total in totals):
            for one, outcome in zip(self.steppers, outcomes, strict=True):
                one.check(outcome, step)
        for weight in self.weights.values():
            weight.grad = None
        scales = self.scales(batch)
        torch.autograd.backward(
            totals,
            [torch.full_like(total, scale) for total, scale in zip(totals, scales, strict=True)],
        )
        self.set_rate(first.learning_rate(step))
        self.optimizer.step()
        return outcomes

    def outcomes(self, totals: Sequence[Tensor], counts: list[int]) -> list[StepOutcome]:
        """Return what a step has shown each student.

        Args:
            totals: Each objective's sums, without gradient.
            counts: Each objective's number of positions.
        """
        weights = self.steppers[0].weights
        each = zip(*totals, strict=True) if self._is_stacked else [totals]
        return [StepOutcome([*own], counts, weights) for own in each]

    def scales(self, batch: Batch) -> list[float]:
        """Return the factor of each objective's sum in the loss."""
        first = self.steppers[0]
        return [
            weight / count for weight, count in zip(first.weights, first.counts(batch), strict=True)
        ]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gathered(self, targets: Sequence[Sequence[Target]], axis: int = 0) -> dict[str, Tensor]:
        """Return the students' targets by the number of the objective, those without left out.

        Args:
            targets: Those of each student.
            axis: Where the axis of students goes, if there are several.
        """
        return {
            str(number): torch.stack(column, dim=axis) if self._is_stacked else column[0]
            for number, column in enumerate(zip(*targets, strict=True))
            if column[0] is not None
        }

    def totals(
        self, weights: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return each objective's sum, or the sums of the students, as a function of weights."""

        def inside(weights: dict[str, Tensor], target: dict[str, Tensor]) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = functional_call(self._inside, weights, (batch, target))
            return found

        named = {f"student.{name}": weight for name, weight in weights.items()}
        found: tuple[Tensor, ...] = (vmap(inside) if self._is_stacked else inside)(
            named, dict(targets)
        )
        return found


@final
class _Totals(nn.Module):
    """The losses of a student as a function of its weights, which `functional_call` replaces."""

    def __init__(self, stepper: Stepper) -> None:
        super().__init__()
        self.student = stepper.run.student.module
        self._stepper = stepper

    def forward(self, batch: Batch, targets: dict[str, Tensor]) -> tuple[Tensor, ...]:
        number = len(self._stepper.weights)
        return tuple(
            self._stepper.totals(batch, [targets.get(str(place)) for place in range(number)])
        )


def _stacked_optimizer(
    steppers: Sequence[Stepper],
    each: Sequence[dict[str, nn.Parameter]],
    weights: dict[str, Tensor],
) -> torch.optim.Optimizer:
    """Return the members' optimizer for the stacked weights; their states become views of its."""
    names = {parameter: name for name, parameter in each[0].items()}
    first = steppers[0].optimizer
    groups: list[dict[str, Any]] = [
        {**one, "params": [weights[names[parameter]] for parameter in one["params"]]}
        for one in first.param_groups
    ]
    # Its settings travel with the groups; what else its class wants has a default.
    kind: Any = type(first)
    optimizer: torch.optim.Optimizer = kind(groups)
    for parameter, name in names.items():
        states = [one.optimizer.state[own[name]] for one, own in zip(steppers, each, strict=True)]
        for key, kept in first.state[parameter].items():
            if not isinstance(kept, Tensor):
                optimizer.state[weights[name]][key] = kept
            elif is_counter(key, kept):
                # The same for all: otherwise their keys would differ.
                optimizer.state[weights[name]][key] = kept
                for state in states:
                    state[key] = kept
            else:
                stacked = torch.stack([state[key] for state in states])
                optimizer.state[weights[name]][key] = stacked
                for number, state in enumerate(states):
                    state[key] = stacked[number]
    return optimizer


def is_counter(key: str, kept: object) -> bool:
    """Return whether something that an optimizer keeps is its number of updates."""
    return key == "step" and isinstance(kept, Tensor)
