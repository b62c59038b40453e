"""Many optimizer steps of a small student in one compiled call.

The batches of K steps are read at once and passed through the teacher in one forward pass. Then one
function takes the student's K steps, forward passes, losses, gradients and updates, from weights,
moments, inputs, targets and rates to new weights, new moments and losses. Its graph is traced once,
K times over, and compiled by torch; the calls from Python that dominate a small step are made once
a block.

Axes: step (of the block), then those of a single step.

Design: the traced code is `StageLoss.sums` as a function of the weights, so there is no second
forward pass or loss. Nothing is changed before the losses of the block are known: if one is not
finite the steps are taken singly, and the error names the right step. Equal graphs are compiled
once in a process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypedDict, final

import torch
from torch import Tensor, fx
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from curricle.data.batch import Batch, check_positions
from curricle.data.blocks import Block, StudentTensors, of_step, read_block
from curricle.errors import BindError
from curricle.models.tapped import Activations, Place
from curricle.objectives.base import BoundObjective, Target
from curricle.training.binding.batches import excess
from curricle.training.fast.batched_students import BatchedStudents, is_counter
from curricle.training.loop.stage_loss import StageLoss, StepLoss, gradients_of_sums
from curricle.training.setup.optimizers import Moments

BlockInputs = tuple[
    dict[str, Tensor],
    dict[str, Tensor],
    dict[str, Moments],
    StudentTensors,
    dict[str, Tensor],
    dict[str, Tensor],
]
"""Trained and frozen weights, moments, batches, targets, and the optimizer's factors of each step.
All tensors are inputs: a constant of the graph would belong to another run in an equal graph."""
BlockOutputs = tuple[dict[str, Tensor], dict[str, Moments], Tensor]
"""Weights, moments and losses after a block."""


@final
class FusedSteps:
    """A fixed number of steps at once."""

    def __init__(self, students: BatchedStudents, number: int) -> None:
        """Take the students; nothing is compiled before the first block.

        Args:
            students: One or several students; their optimizer has all moments already.
            number: Steps in one call.
        """
        self._students, self._number = students, number
        self._run = students.steppers[0].run
        named = students.weights.items()
        self._moving = {name: weight for name, weight in named if weight.requires_grad}
        self._frozen = {name: weight.detach() for name, weight in named if name not in self._moving}
        self._decays = {
            name: group["weight_decay"]
            for group in students.optimizer.param_groups
            for name, weight in self._moving.items()
            # By identity: `in` would compare tensors by their numbers.
            if any(weight is parameter for parameter in group["params"])
        }
        self._compiled: tuple[object, Callable[[BlockInputs], BlockOutputs]] | None = None

    def step(self, step: int) -> list[list[StepLoss]] | None:
        """Take the steps from one on.

        Returns:
            For each step the loss of each student; None if nothing was done and the steps must be
            taken singly, because batches differ in shape or a loss is not finite.

        Raises:
            BindError: If the steps of the stage cannot be compiled.
        """
        run, steppers = self._run, self._students.steppers
        block = read_block(
            self._run.stream, step, self._number, self._run.settings.placement.part_of
        )
        # Compiled look-ups are not bounded; steps that may exceed a table are taken one by one.
        if block is None or excess(run.tables, "student", block.first.inputs):
            return None
        # Outside of the graph: a block has one pass of the teacher, whose targets all its steps
        # read.
        targets = self._students.gathered(
            [block_targets(stepper.loss, block) for stepper in steppers], axis=1
        )
        weights, moments = self._state()
        factors = self._factors(step)
        inputs: BlockInputs = (weights, self._frozen, moments, block.parts, targets, factors)
        try:
            # Gradients are operations of the graph, so autograd must not record the call as well.
            with torch.no_grad():
                new_weights, new_moments, totals = self._function(block, inputs)(inputs)
        except (AssertionError, RuntimeError) as error:
            raise BindError(
                f"'compiled_steps' must be 1 in stage {steppers[0].stage.declared.name!r}, whose "
                f"steps torch cannot compile; got {self._number}: {error}"
            ) from error
        if not bool(totals.isfinite().all()):
            # Nothing is committed yet, so single steps find the weights before the block and stop
            # at the step that diverges.
            return None
        self._commit(new_weights, new_moments)
        # The rate of the last step, as single steps would leave it in the optimizer.
        self._students.set_rate(steppers[0].learning_rate(step + self._number - 1))
        counts = steppers[0].loss.counts(block.first)
        # A copy: outputs of a CUDA graph lie in memory that the next block overwrites.
        return [self._students.losses(sums.unbind(0), counts) for sums in totals.clone().unbind(0)]

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Moments]]:
        """Return the trained weights and the optimizer's moments of each."""
        state = self._students.optimizer.state
        moments: dict[str, Moments] = {
            name: {
                key: moment
                for key, moment in state.get(weight, {}).items()
                # The number of updates enters by `_factors`, as the corrections that follow from
                # it.
                if isinstance(moment, Tensor) and not is_counter(key, moment)
            }
            for name, weight in self._moving.items()
        }
        return {name: weight.detach() for name, weight in self._moving.items()}, moments

    def _factors(self, step: int) -> dict[str, Tensor]:
        """Return the optimizer's factors of each step, such as rates, for each weight."""
        first = self._students.steppers[0]
        rates = [first.learning_rate(step + offset) for offset in range(self._number)]
        # In float64: of 1 - beta**count few digits are left in float32 for small counts.
        following = torch.arange(1, self._number + 1, dtype=torch.float64)
        factors_by_count: dict[float, Tensor] = {}
        factors: dict[str, Tensor] = {}
        for name, weight in self._moving.items():
            updates = float(self._students.optimizer.state.get(weight, {}).get("step", 0))
            # Counts differ if an earlier stage has trained only some of the weights.
            if updates not in factors_by_count:
                exact = self._run.optimizer.factors(
                    torch.tensor(rates, dtype=torch.float64), updates + following
                )
                factors_by_count[updates] = exact.to(weight)
            factors[name] = factors_by_count[updates]
        return factors

    def _commit(self, new_weights: dict[str, Tensor], new_moments: dict[str, Moments]) -> None:
        """Copy new weights and moments into the places of the old."""
        weights, moments = self._state()
        places, values = [*weights.values()], [new_weights[name] for name in weights]
        for name, moments_of_weight in moments.items():
            places += moments_of_weight.values()
            values += [new_moments[name][key] for key in moments_of_weight]
        # In place, because the parameters and states of the students are views; in one call, since
        # blocks exist to save a call for each weight.
        torch._foreach_copy_(places, values)
        for weight in self._moving.values():
            counter = self._students.optimizer.state.get(weight, {}).get("step")
            if counter is not None:
                # In place as well: batched students share the counter.
                counter += self._number

    def _function(self, block: Block, inputs: BlockInputs) -> Callable[[BlockInputs], BlockOutputs]:
        """Return the compiled function of a block; shapes besides the block's never change."""
        if self._compiled is None or self._compiled[0] != block.shapes:
            loss = self._students.steppers[0].loss
            scales = loss.scales(loss.counts(block.first))
            # Fake tensors: tracing computes nothing, and no value of an input enters the graph.
            graph = make_fx(partial(self._steps, scales, block.length), tracing_mode="fake")(inputs)
            kind = self._run.settings.placement.kind
            # Equal code computes the same only for inputs of equal shapes and with equal constants,
            # which the code names but does not contain.
            key = "\n".join([kind, repr(_shapes(inputs)), graph.code, *_constants(graph)])
            self._compiled = block.shapes, compiled(Traced(key=key, kind=kind, graph=graph))
        return self._compiled[1]

    def _steps(
        self, scales: Sequence[float], length: int | None, inputs: BlockInputs
    ) -> BlockOutputs:
        """Return weights, moments and losses after the steps of a block, as a pure function."""
        weights, frozen, moments, tensors_of_batches, targets, factors = inputs
        totals = []
        for number in range(self._number):
            batch = Batch(**of_step(tensors_of_batches, number), length=length)
            target, factor = (
                {name: tensors[number] for name, tensors in named.items()}
                for named in (targets, factors)
            )
            with torch.enable_grad():
                # New leaves: the gradient of a step must not run into the steps before it.
                moving = {
                    name: weight.detach().requires_grad_() for name, weight in weights.items()
                }
                sums = self._students.totals({**frozen, **moving}, batch, target)
                gradients = torch.autograd.grad(
                    sums, list(moving.values()), gradients_of_sums(sums, scales)
                )
            totals.append(torch.stack([total.detach() for total in sums]))
            updated = {
                name: self._run.optimizer.moved(
                    weights[name],
                    gradient,
                    moments[name],
                    decay=self._decays[name],
                    factors=factor[name],
                )
                for name, gradient in zip(moving, gradients, strict=True)
            }
            weights = {name: weight for name, (weight, _) in updated.items()}
            moments = {name: moment for name, (_, moment) in updated.items()}
        return weights, moments, torch.stack(totals)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A graph of tensor operations, identified by its code, constants and inputs."""

    key: str
    """Kind of processor; shapes, strides and dtypes of the inputs; code; constants of the graph."""
    kind: str = field(compare=False)
    """Kind of processor that runs it."""
    graph: fx.GraphModule = field(compare=False)
    """The graph."""


@lru_cache(maxsize=64)
def compiled(traced: Traced) -> Callable[[BlockInputs], BlockOutputs]:
    """Return a compiled graph; equal graphs share it."""
    # As one CUDA graph, or without Python between kernels.
    option = "triton.cudagraphs" if traced.kind == "cuda" else "cpp_wrapper"
    # A module's own call would cost every block its hooks.
    function: Callable[[BlockInputs], BlockOutputs] = torch.compile(
        traced.graph.forward, fullgraph=True, dynamic=False, options={option: True}
    )
    return function


def _constants(graph: fx.GraphModule) -> list[str]:
    """Return the tensors that a graph holds itself, which its code only names."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    return [f"{name} = {getattr(graph, name).tolist()}" for name in dict.fromkeys(names)]


def _shapes(tensors: object) -> object:
    """Return the names, shapes, strides and dtypes of nested tensors."""
    if isinstance(tensors, Tensor):
        return tuple(tensors.shape), tensors.stride(), tensors.dtype
    if isinstance(tensors, Mapping):
        return [(name, _shapes(value)) for name, value in tensors.items()]
    return [_shapes(value) for value in tensors] if isinstance(tensors, tuple) else tensors


@final
class _States(TypedDict, total=False):
    """States of a teacher; without logits there is no key."""

    hidden: Mapping[Place, Tensor]
    logits: Tensor


def block_targets(loss: StageLoss, block: Block) -> list[Target]:
    """Return the targets of each batch of a block, along a new first axis; None without a teacher.

    Args:
        loss: Loss of the stage.
        block: The batches.
    """
    states = loss.teacher_states(block.whole)
    if states is None:
        return [None] * len(loss.terms)
    # Inside `vmap` the number of positions can no longer be checked.
    check_positions("'logits'", states.positions, block.whole)
    rows = _States(hidden={place: block.cut(state) for place, state in states.hidden.items()})
    if states.logits is not None:
        rows["logits"] = block.cut(states.logits)
    with torch.no_grad(), loss.teacher_autocast():
        # Objectives are written for the axes of one batch, so the steps of the states are mapped
        # over.
        return [
            vmap(partial(_target, term.objective, block.length))(rows, block.parts)
            if term.needs_teacher
            else None
            for term in loss.terms
        ]


def _target(
    objective: BoundObjective, length: int | None, states: _States, batch: StudentTensors
) -> Target:
    return objective.target(Activations(**states), Batch(**batch, length=length))
