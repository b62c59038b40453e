"""Several students as one batched model, or one student, as a function of its weights.

Students of one architecture at the same step of the same stage become one model; its weights have
a new first axis, by `vmap` over `functional_call` of their `StageLoss`. Each student's parameters
and optimizer state are views of its slice, so code that reads them between two steps needs no
special case. A single student keeps its own weights, without that axis.

Axes: student (if there are several), then those of the weight.

Design: shapes do not show whether two models compute the same, nor whether a model is a function of
its weights at all, so the losses of the batched model are compared with those of the single ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from curricle.data.batch import Batch
from curricle.objectives.base import Target
from curricle.training.loop.stage_loss import StageLoss, StepLoss, gradients_of_sums
from curricle.training.loop.stepping import Stepper

TOLERANCE = 1e-3
"""Largest relative difference of a loss at which two models are taken to compute the same."""


@final
class BatchedStudents:
    """Several students as one model, or one student."""

    def __init__(self, steppers: Sequence[Stepper]) -> None:
        """Batch students with open stages.

        Args:
            steppers: Steps of each; several students share memory from now on.
        """
        self.steppers = steppers
        parameters = [dict(stepper.run.student.module.named_parameters()) for stepper in steppers]
        self._sums = _Sums(steppers[0].run.student.module, steppers[0].loss)
        self._is_batched = len(steppers) > 1
        self.weights: dict[str, Tensor]
        """The weights of all students, by name."""
        if not self._is_batched:
            self.weights, self.optimizer = dict(parameters[0]), steppers[0].optimizer
            return
        self.weights = {}
        for name, parameter in parameters[0].items():
            batched = torch.stack([named[name].detach() for named in parameters])
            for number, named in enumerate(parameters):
                # `data` keeps the Parameter itself, by which an optimizer finds the state of the
                # weight.
                named[name].data = batched[number]
            self.weights[name] = batched.requires_grad_(parameter.requires_grad)
        self.optimizer = _batched_optimizer(steppers, parameters, self.weights)
        """Moves the weights of all students."""

    def agrees(self, batch: Batch) -> bool:
        """Return whether the batched model gives the losses of the single ones."""
        targets = [stepper.loss.targets(batch) for stepper in self.steppers]
        with torch.no_grad():
            batched = self.totals(self.weights, batch, self.gathered(targets))
            single = [
                stepper.loss.sums(batch, target, is_traced=True)
                for stepper, target in zip(self.steppers, targets, strict=True)
            ]
        expected = [torch.stack(column) for column in zip(*single, strict=True)]
        return all(
            # NaN of both is agreement: the step itself names the student that has diverged.
            torch.allclose(total, sums.reshape(total.shape), rtol=TOLERANCE, equal_nan=True)
            for total, sums in zip(batched, expected, strict=True)
        )

    def step(self, batch: Batch, step: int) -> list[StepLoss]:
        """Take a step of all students.

        Returns:
            The loss of each student.
        """
        first = self.steppers[0]
        targets = self.gathered([stepper.loss.targets(batch) for stepper in self.steppers])
        totals = self.totals(self.weights, batch, targets)
        counts = first.loss.counts(batch)
        losses = self.losses([total.detach() for total in totals], counts)
        if not all(bool(total.isfinite().all()) for total in totals):
            # Each student's own check names its seed. Before the update, so that all weights stay
            # those before the step.
            for stepper, loss in zip(self.steppers, losses, strict=True):
                stepper.check(loss, step)
        for weight in self.weights.values():
            weight.grad = None
        scales = first.loss.scales(counts)
        torch.autograd.backward(totals, gradients_of_sums(totals, scales))
        self.set_rate(first.learning_rate(step))
        self.optimizer.step()
        return losses

    def losses(self, totals: Sequence[Tensor], counts: list[int]) -> list[StepLoss]:
        """Return the loss of each student.

        Args:
            totals: Each objective's sums, without gradient.
            counts: Each objective's number of positions.
        """
        weights = self.steppers[0].loss.weights
        sums_of_students = zip(*totals, strict=True) if self._is_batched else [totals]
        return [StepLoss([*sums], counts, weights) for sums in sums_of_students]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gathered(self, targets: Sequence[Sequence[Target]], axis: int = 0) -> dict[str, Tensor]:
        """Return the students' targets by the number of the objective, without empty ones.

        Args:
            targets: Those of each student.
            axis: Place of the axis of students, if there are several.
        """
        return {
            # `vmap` maps tensors alone, so objectives without a target have no entry.
            str(number): torch.stack(column, dim=axis) if self._is_batched else column[0]
            for number, column in enumerate(zip(*targets, strict=True))
            if column[0] is not None
        }

    def totals(
        self, weights: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return each objective's sum, or the sums of the students, as a function of weights."""

        def sums(weights: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[Tensor, ...]:
            result: tuple[Tensor, ...] = functional_call(self._sums, weights, (batch, targets))
            return result

        named = {f"student.{name}": weight for name, weight in weights.items()}
        # The batch is no argument: all students read the same, and `vmap` would look for an axis of
        # students in it.
        result: tuple[Tensor, ...] = (vmap(sums) if self._is_batched else sums)(
            named, dict(targets)
        )
        return result


@final
class _Sums(nn.Module):
    """Sums of a stage's loss in a module; `functional_call` replaces its weights."""

    def __init__(self, student: nn.Module, loss: StageLoss) -> None:
        super().__init__()
        self.student = student
        self._loss = loss

    def forward(self, batch: Batch, targets: dict[str, Tensor]) -> tuple[Tensor, ...]:
        number = len(self._loss.weights)
        return tuple(
            self._loss.sums(
                batch, [targets.get(str(place)) for place in range(number)], is_traced=True
            )
        )


def _batched_optimizer(
    steppers: Sequence[Stepper],
    parameters: Sequence[dict[str, nn.Parameter]],
    weights: dict[str, Tensor],
) -> torch.optim.Optimizer:
    """Return an optimizer for the batched weights; the students' states become views of its."""
    # By the groups of the first student, since equal settings are a condition of a group.
    names = {parameter: name for name, parameter in parameters[0].items()}
    first = steppers[0].optimizer
    groups: list[dict[str, object]] = [
        {**group, "params": [weights[names[parameter]] for parameter in group["params"]]}
        for group in first.param_groups
    ]
    # Its settings travel with the groups; other arguments of its class have defaults.
    kind: Callable[..., torch.optim.Optimizer] = type(first)
    optimizer = kind(groups)
    for parameter, name in names.items():
        states = [
            stepper.optimizer.state[named[name]]
            for stepper, named in zip(steppers, parameters, strict=True)
        ]
        for key, value in first.state[parameter].items():
            if not isinstance(value, Tensor):
                optimizer.state[weights[name]][key] = value
            elif is_counter(key, value):
                # One counter for all students: equal counters are part of their batching key.
                optimizer.state[weights[name]][key] = value
                for state in states:
                    state[key] = value
            else:
                batched = torch.stack([state[key] for state in states])
                optimizer.state[weights[name]][key] = batched
                for number, state in enumerate(states):
                    state[key] = batched[number]
    return optimizer


def is_counter(key: str, value: object) -> bool:
    """Return whether an entry of an optimizer's state is its number of updates."""
    return key == "step" and isinstance(value, Tensor)
