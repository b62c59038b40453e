"""How do several small students step as one model?

A small model spends its time on calls, not on arithmetic. Students of one architecture that are in
the same stage, at the same step, with the same optimizer, have their weights stacked along a new
first axis, and one batched forward pass, backward pass and update moves all of them. Each student's
own weights and optimizer state are views of its slice, so whatever reads them between two steps, an
evaluation or a checkpoint, finds what it always finds.

Results agree with those of separate runs within rounding: a batched matrix product adds up in
another order. What cannot be stacked steps alone, in the same classroom: models with buffers or
noise, clipped gradients, batches in parts, logits in chunks, objectives that train something
besides.

Axes: student, then those of the weight.

Design: who stands where is found out at every step, so students begin, change stages and end as
they like; a student alone at a step takes it as ever. What is computed for others than the one who
asks is kept until they ask. Shapes do not tell whether two models compute the same, so whoever is
stacked first has its losses compared with its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from curricle.data.streams import Batch
from curricle.models.weights import architecture
from curricle.specs import fingerprint, plain
from curricle.training.stepping import StepOutcome, Stepper

TOLERANCE = 1e-3
"""Largest relative difference of a loss at which two models are taken to compute the same."""


@final
class Stack:
    """Where the students of a classroom meet."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._members: list[_Member] = []
        self._joined: _Joined | None = None

    @contextmanager
    def joining(self, stepper: Stepper) -> Iterator[None]:
        """Let a stage take its steps together with those of others who stand at the same.

        Args:
            stepper: What runs the steps of the stage; one that cannot be stacked is left alone.
        """
        if not _is_stackable(stepper):
            yield
            return
        member = _Member(stepper)
        stepper.joined = lambda step: self._step(member, step)
        self._members.append(member)
        try:
            yield
        finally:
            self._members.remove(member)
            member.leave()

    def _step(self, asking: "_Member", step: int) -> StepOutcome | None:
        """Return the outcome of a step, taken with all who stand where one stands, if any do."""
        if asking.ready is None and asking.key is not None:
            group = [one for one in self._members if (one.key, one.next) == (asking.key, step)]
            if asking in group and len(group) > 1:
                self._take(group, step)
        outcome, asking.ready = asking.ready, None
        asking.next = step + 1
        return outcome

    def _take(self, group: "list[_Member]", step: int) -> None:
        run = group[0].stepper.run
        batch = run.stream.batch(step).to(run.settings.torch_device())
        if self._joined is None or self._joined.group != group:
            self._joined = _Joined(group)
            if not self._joined.agrees(batch):
                for one in group:
                    one.key = None
                return
        self._joined.step(batch, step)


@final
class _Member:
    """One student's stage, which may be stepped with those of others."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.key: str | None = _key(stepper)
        """Equal for students that may be stacked; None for one that is not."""
        self.next: int | None = None
        """The step that it asks for next; None until it has taken one alone."""
        self.ready: StepOutcome | None = None
        """What was computed for it when somebody else asked."""

    def leave(self) -> None:
        """Give the student memory of its own again."""
        for parameter in self.stepper.run.student.module.parameters():
            parameter.data = parameter.data.clone()
        for state in self.stepper.optimizer.state.values():
            for name, kept in state.items():
                if isinstance(kept, Tensor):
                    state[name] = kept.clone()


def _is_stackable(stepper: Stepper) -> bool:
    run = stepper.run
    return not (
        run.draws_noise
        or stepper.stage.reads.student_head
        or any(True for _ in run.student.module.buffers())
        or run.settings.clip_norm is not None
        or run.settings.accumulation > 1
        or len(stepper.adapters)
        or any(term.stored is not None and not term.stored.is_dense for term in stepper.stage.terms)
    )


def _key(stepper: Stepper) -> str:
    run, stage = stepper.run, stepper.stage
    module = run.student.module
    return fingerprint(
        [
            [type(module).__qualname__, repr(module), architecture(module)],
            [name for name, parameter in module.named_parameters() if parameter.requires_grad],
            [plain(stage.declared), stage.start, stage.end, run.num_steps],
            [plain(run.optimizer), _counters(stepper)],
        ]
    )


def _counters(stepper: Stepper) -> list[list[object]]:
    """Return what the optimizer counts; earlier stages may have trained other weights."""
    state = stepper.optimizer.state
    return [
        [name, key, kept.tolist()]
        for name, parameter in stepper.run.student.module.named_parameters()
        for key, kept in state.get(parameter, {}).items()
        if _is_counter(key, kept)
    ]


def _is_counter(key: str, kept: object) -> bool:
    return key == "step" and isinstance(kept, Tensor)


@final
class _Joined:
    """Some students as one model."""

    def __init__(self, group: list[_Member]) -> None:
        self.group = group
        self._steppers = [one.stepper for one in group]
        each = [dict(one.run.student.module.named_parameters()) for one in self._steppers]
        self._weights: dict[str, Tensor] = {}
        for name, parameter in each[0].items():
            stacked = torch.stack([one[name].detach() for one in each])
            for number, one in enumerate(each):
                one[name].data = stacked[number]
            self._weights[name] = stacked.requires_grad_(parameter.requires_grad)
        self._optimizer = _stacked_optimizer(self._steppers, each, self._weights)
        self._inside = _Totals(self._steppers[0])

    def agrees(self, batch: Batch) -> bool:
        """Return whether the stacked models give the losses that they give one by one."""
        targets = [one.targets(batch) for one in self._steppers]
        with torch.no_grad():
            together = self._totals(batch, targets)
            apart = [
                one.totals(batch, target)
                for one, target in zip(self._steppers, targets, strict=True)
            ]
        return all(
            torch.allclose(stacked, torch.stack(own), rtol=TOLERANCE, equal_nan=True)
            for stacked, own in zip(together, zip(*apart, strict=True), strict=True)
        )

    def step(self, batch: Batch, step: int) -> None:
        """Take one step and leave each member its outcome."""
        first = self._steppers[0]
        totals = self._totals(batch, [one.targets(batch) for one in self._steppers])
        counts = first.counts(batch)
        outcomes = [
            StepOutcome([one.detach() for one in own], counts, first.weights)
            for own in zip(*totals, strict=True)
        ]
        if not all(bool(total.isfinite().all()) for total in totals):
            for one, outcome in zip(self._steppers, outcomes, strict=True):
                one.check(outcome, step)
        for weight in self._weights.values():
            weight.grad = None
        scales = [weight / count for weight, count in zip(first.weights, counts, strict=True)]
        torch.autograd.backward(
            totals,
            [torch.full_like(total, scale) for total, scale in zip(totals, scales, strict=True)],
        )
        rate = first.learning_rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        for member, outcome in zip(self.group, outcomes, strict=True):
            member.ready = outcome

    def _totals(
        self, batch: Batch, targets: Sequence[Sequence[Tensor | None]]
    ) -> tuple[Tensor, ...]:
        """Return each objective's sums, one a student."""
        present = {
            str(number): torch.stack([one for one in column if one is not None])
            for number, column in enumerate(zip(*targets, strict=True))
            if column[0] is not None
        }

        def inside(weights: dict[str, Tensor], target: dict[str, Tensor]) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = functional_call(self._inside, weights, (batch, target))
            return found

        named = {f"student.{name}": weight for name, weight in self._weights.items()}
        totals: tuple[Tensor, ...] = vmap(inside)(named, present)
        return totals


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
            elif _is_counter(key, kept):
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
