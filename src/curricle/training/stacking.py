"""How do several small students, or several steps of one, go as one call?

A small model spends its time on calls, not on arithmetic. Students of one architecture that are in
the same stage, at the same step, with the same optimizer, are joined to one batched model, and one
forward pass, backward pass and update moves all of them. Steps before the next record, evaluation
or checkpoint, which nobody looks between, may be taken ahead in one compiled call.

Results agree with those of separate runs and single steps within rounding: a batched matrix product
adds up in another order. What can be neither stacked nor compiled steps alone, one step at a time:
models with buffers or noise, clipped gradients, batches in parts, logits in chunks, objectives that
train something besides.

Design: who stands where is found out at every step, so students begin, change stages and end as
they like; one of a class who stands there alone takes its step as ever. What is computed for others
than the one who asks, or for later, is kept until it is asked for.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from curricle.models.weights import architecture
from curricle.specs import fingerprint, plain
from curricle.training.compiling import CompiledSteps
from curricle.training.joined import Joined, is_counter
from curricle.training.stepping import StepOutcome, Stepper


@final
class Stack:
    """Where the students of a classroom meet, or a student takes its steps ahead."""

    def __init__(self, ahead: int = 1, *, is_class: bool = True) -> None:
        """Begin with nobody.

        Args:
            ahead: Steps that one compiled call takes.
            is_class: Whether several students are to come; one who is alone among them waits.
        """
        self._ahead, self._is_class = ahead, is_class
        self._members: list[_Member] = []
        self._together: _Group | None = None

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
        stepper.with_others = lambda step: self._step(member, step)
        stepper.ahead = lambda: len(member.ready)
        self._members.append(member)
        try:
            yield
        finally:
            self._members.remove(member)
            member.leave()

    def _step(self, asking: "_Member", step: int) -> StepOutcome | None:
        """Return the outcome of a step, taken with all who stand where one stands, if any do."""
        if not asking.ready and asking.is_primed:
            self._take(self._group(asking, step), step)
        asking.next = step + 1
        return asking.ready.popleft() if asking.ready else None

    def _group(self, asking: "_Member", step: int) -> "list[_Member]":
        """Return those who stand where one stands; none if it stands there alone among others."""
        if not self._is_class:
            return [asking]
        group = [
            one
            for one in self._members
            if (one.key, one.next) == (asking.key, step) and not one.ready
        ]
        return group if asking in group and len(group) > 1 else []

    def _take(self, group: "list[_Member]", step: int) -> None:
        """Take the next step or steps of some students, who are left their outcomes."""
        if not group:
            return
        number = min(self._ahead, *(one.stepper.until - step for one in group))
        is_block = 1 < number == self._ahead
        if len(group) == 1 and not is_block:
            return
        if self._together is None or self._together.members != group:
            self._together = _Group(group, self._ahead)
            if not self._together.agrees(step):
                for one in group:
                    one.key = None
                return
        if not (is_block and self._together.take_block(step)) and len(group) > 1:
            self._together.take(step)


@final
class _Member:
    """One student's stage, which may be stepped with those of others."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.key: str | None = _key(stepper)
        """Equal for students that may be stacked; None for one that is not."""
        self.next: int | None = None
        """The step that it asks for next; None until it has taken one alone."""
        self.ready: deque[StepOutcome] = deque()
        """What was computed for it when somebody else asked, or ahead."""

    @property
    def is_primed(self) -> bool:
        """Return whether it may be joined: its optimizer keeps what it will keep to the end."""
        run, stage = self.stepper.run, self.stepper.stage
        state = self.stepper.optimizer.state
        named = run.student.module.named_parameters()
        return self.key is not None and (
            not run.optimizer.moments
            or all(state.get(parameter) for name, parameter in named if name in stage.trained)
        )

    def leave(self) -> None:
        """Give the student memory of its own again."""
        for parameter in self.stepper.run.student.module.parameters():
            parameter.data = parameter.data.clone()
        for state in self.stepper.optimizer.state.values():
            for name, kept in state.items():
                if kept is not None:
                    state[name] = kept.clone()


@final
class _Group:
    """Members who step as one."""

    def __init__(self, members: list[_Member], ahead: int) -> None:
        self.members = members
        self._steppers = [one.stepper for one in members]
        self._joined = Joined(self._steppers)
        self._compiled: CompiledSteps | None = None
        if ahead > 1:
            self._compiled = CompiledSteps(self._joined, ahead)

    def agrees(self, step: int) -> bool:
        """Return whether the members compute the same."""
        return self._joined.agrees(self._steppers[0].batch(step))

    def take(self, step: int) -> None:
        """Take one step."""
        outcomes = self._joined.step(self._steppers[0].batch(step), step)
        for member, outcome in zip(self.members, outcomes, strict=True):
            member.ready.append(outcome)

    def take_block(self, step: int) -> bool:
        """Return whether several steps were taken; otherwise they must be taken one by one."""
        found = None if self._compiled is None else self._compiled.step(step)
        for outcomes in found or []:
            for member, outcome in zip(self.members, outcomes, strict=True):
                member.ready.append(outcome)
        if found is None:
            # Batches that differ in shape once do so again, and are read in vain each time.
            self._compiled = None
        return found is not None


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
        if is_counter(key, kept)
    ]
