"""How are many steps of a small student taken in one compiled call?

The batches of K steps are read at once and shown to the teacher in one pass. Then one function
takes the student's K steps, forward passes, losses, gradients and updates, from weights, moments,
inputs, targets and rates to new weights, new moments and losses. Its graph is traced once, K times
over, and compiled by torch; calls from Python, which are what a small step costs, are made once a
block.

Axes: step (of the block), then those of a single step.

Design: what is traced is the plain code of a stage as a function of its weights, so there is no
second forward pass or loss. Nothing is changed before the losses of the block are known: if one is
not finite the caller takes its steps one by one, and the error names the right one. Equal graphs
are compiled once in a process, whoever needs them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from curricle.data.blocks import Block, read_block
from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.training.batches import excess
from curricle.training.joined import Joined, is_counter
from curricle.training.optimizers import Moments
from curricle.training.stepping import StepOutcome

Given = tuple[
    dict[str, Tensor],
    dict[str, Tensor],
    dict[str, Moments],
    dict[str, Any],
    dict[str, Tensor],
    dict[str, Tensor],
]
"""Weights that move and that do not, moments, batches, targets, and what the optimizer wants to
know of each step. No tensor is left to the graph: in an equal one it would be another run's."""
Taken = tuple[dict[str, Tensor], dict[str, Moments], Tensor]
"""Weights, moments and losses after a block."""


@final
class CompiledSteps:
    """Takes a fixed number of steps at once."""

    def __init__(self, joined: Joined, number: int) -> None:
        """Take who steps; nothing is compiled before the first block.

        Args:
            joined: One or several students; their optimizer keeps all moments already.
            number: Steps in one call.
        """
        self._joined, self._number = joined, number
        self._run = joined.steppers[0].run
        named = joined.weights.items()
        self._moving = {name: weight for name, weight in named if weight.requires_grad}
        self._still = {name: one.detach() for name, one in named if name not in self._moving}
        self._decays = {
            name: group["weight_decay"]
            for group in joined.optimizer.param_groups
            for name, weight in self._moving.items()
            if any(weight is one for one in group["params"])
        }
        self._known: tuple[object, Callable[[Given], Taken]] | None = None

    def step(self, step: int) -> list[list[StepOutcome]] | None:
        """Take the steps from one on.

        Returns:
            The outcomes of each step, one a student; None if nothing was done and they must be
            taken one by one, because batches differ in shape or a loss is not finite.

        Raises:
            BindError: If the steps of the stage cannot be compiled.
        """
        steppers = self._joined.steppers
        block = read_block(self._run.stream, step, self._number, self._run.settings.torch_device())
        # Compiled look-ups are not bounded; steps that may exceed a table are taken one by one.
        if block is None or excess(self._run.tables, "student", block.first.inputs):
            return None
        each = [one.targets_of(block) for one in steppers]
        targets = self._joined.gathered(each, axis=1)
        weights, moments = self._now()
        factors = self._factors(step)
        given: Given = (weights, self._still, moments, block.parts, targets, factors)
        try:
            with torch.no_grad():
                moved, kept, totals = self._function(block, given)(given)
        except (AssertionError, RuntimeError) as error:
            raise BindError(
                f"'compiled_steps' must be 1 in stage {steppers[0].stage.declared.name!r}, whose "
                f"steps torch cannot compile; got {self._number}: {error}"
            ) from error
        if not bool(totals.isfinite().all()):
            return None
        self._commit(moved, kept)
        self._joined.set_rate(steppers[0].learning_rate(step + self._number - 1))
        counts = steppers[0].counts(block.first)
        return [self._joined.outcomes(one.unbind(0), counts) for one in totals.clone().unbind(0)]

    def _now(self) -> tuple[dict[str, Tensor], dict[str, Moments]]:
        """Return the weights that move and what is kept for them."""
        state = self._joined.optimizer.state
        moments: dict[str, Moments] = {
            name: {
                key: kept
                for key, kept in state.get(weight, {}).items()
                if isinstance(kept, Tensor) and not is_counter(key, kept)
            }
            for name, weight in self._moving.items()
        }
        return {name: weight.detach() for name, weight in self._moving.items()}, moments

    def _factors(self, step: int) -> dict[str, Tensor]:
        """Return what the optimizer wants to know of each step, for each weight."""
        first, device = self._joined.steppers[0], self._run.settings.torch_device()
        rates = [first.learning_rate(step + offset) for offset in range(self._number)]
        following = torch.arange(1, self._number + 1, dtype=torch.float64)
        chosen: dict[float, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, weight in self._moving.items():
            done = float(self._joined.optimizer.state.get(weight, {}).get("step", 0))
            if done not in chosen:
                factors = self._run.optimizer.factors(
                    torch.tensor(rates, dtype=torch.float64), done + following
                )
                chosen[done] = factors.to(device, weight.dtype)
            found[name] = chosen[done]
        return found

    def _commit(self, moved: dict[str, Tensor], kept: dict[str, Moments]) -> None:
        """Put new weights and moments in the places of the old."""
        weights, moments = self._now()
        places, values = [*weights.values()], [moved[name] for name in weights]
        for name, known in moments.items():
            places += known.values()
            values += [kept[name][key] for key in known]
        torch._foreach_copy_(places, values)
        for weight in self._moving.values():
            counter = self._joined.optimizer.state.get(weight, {}).get("step")
            if counter is not None:
                counter += self._number

    def _function(self, block: Block, given: Given) -> Callable[[Given], Taken]:
        """Return the compiled function of a block; all else has the shapes that it had before."""
        if self._known is None or self._known[0] != block.shapes:
            scales = self._joined.scales(block.first)
            graph = make_fx(partial(self._steps, scales), tracing_mode="fake")(given)
            device = self._run.settings.torch_device().type
            key = "\n".join([device, repr(_shapes(given)), graph.code, *_constants(graph)])
            self._known = block.shapes, compiled(Traced(key=key, device=device, graph=graph))
        return self._known[1]

    def _steps(self, scales: Sequence[float], given: Given) -> Taken:
        """Return what the steps of a block make of tensors."""
        weights, still, moments, parts, targets, factors = given
        totals = []
        for number in range(self._number):
            batch, target, factor = (_at(one, number) for one in (parts, targets, factors))
            with torch.enable_grad():
                moving = {name: one.detach().requires_grad_() for name, one in weights.items()}
                found = self._joined.totals({**still, **moving}, Batch(**batch), target)
                seeds = [torch.full_like(*one) for one in zip(found, scales, strict=True)]
                gradients = torch.autograd.grad(found, list(moving.values()), seeds)
            totals.append(torch.stack([one.detach() for one in found]))
            moved = {
                name: self._run.optimizer.moved(
                    weights[name],
                    gradient,
                    moments[name],
                    decay=self._decays[name],
                    factors=factor[name],
                )
                for name, gradient in zip(moving, gradients, strict=True)
            }
            weights = {name: weight for name, (weight, _) in moved.items()}
            moments = {name: kept for name, (_, kept) in moved.items()}
        return weights, moments, torch.stack(totals)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A graph of tensor operations, known by what it computes."""

    key: str
    """Its code, device, and the shapes of its inputs."""
    device: str = field(compare=False)
    """Where it runs."""
    graph: fx.GraphModule = field(compare=False)
    """The graph."""


@lru_cache(maxsize=64)
def compiled(traced: Traced) -> Callable[[Given], Taken]:
    """Return a compiled graph; the same for all that compute the same."""
    # As one CUDA graph, or without Python between kernels.
    option = "triton.cudagraphs" if traced.device == "cuda" else "cpp_wrapper"
    # A module's own call would cost every block its hooks.
    found: Callable[[Given], Taken] = torch.compile(
        traced.graph.forward, fullgraph=True, dynamic=False, options={option: True}
    )
    return found


def _constants(graph: fx.GraphModule) -> list[str]:
    """Return the tensors that a graph holds itself, which its code only names."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    return [f"{name} = {getattr(graph, name).tolist()}" for name in dict.fromkeys(names)]


def _at(named: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what belongs to one step of a block."""
    return {
        name: one[number] if isinstance(one, Tensor) else _at(one, number)
        for name, one in named.items()
    }


def _shapes(given: object) -> object:
    """Return the names, shapes and types of nested tensors."""
    if isinstance(given, Tensor):
        return tuple(given.shape), given.stride(), given.dtype
    if isinstance(given, Mapping):
        return [(name, _shapes(one)) for name, one in given.items()]
    return [_shapes(one) for one in given] if isinstance(given, tuple) else given
