"""A model with the arguments of its blocks in each batch of a calibration.

Blocks run one at a time on the states that the blocks before them have made, so that a fit of block
after block costs each of them a few passes, and not the whole model.

Axes: example, position, row (a counted position), width.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.least_squares.flops import passes_of
from curricle.least_squares.roles import PLACE, Roles, roles
from curricle.least_squares.sublayers import Anatomy, BlockCall, Sublayer, anatomy
from curricle.models.tapped import SEQUENCE_FIRST, Inputs, TappedModel

PROBED_POSITIONS = 5
"""Tokens of the example by which roles are determined."""
STATE_AXES = 3


@final
@dataclass(frozen=True, slots=True, eq=False)
class Understood:
    """Sublayers of a block and their roles; none, with a reason, if they are not understood."""

    sublayers: tuple[Sublayer, ...] = ()
    roles: tuple[Roles, ...] = ()
    reason: str = ""


@final
class CalibratedModel:
    """A model, its blocks, and their inputs in each batch."""

    def __init__(
        self,
        model: TappedModel,
        batches: Sequence[Inputs],
        counted: Sequence[Bool[Tensor, "example position"] | None],
    ) -> None:
        """Run the model on each batch.

        Args:
            model: The model, in evaluation mode.
            batches: Its inputs.
            counted: Positions that count; None for all.
        """
        self.model, self.batches, self._counted = model, batches, counted
        self.module = model.module
        self.places = [model.place(number) for number in range(1, model.depth + 1)]
        self.paths = [place.path for place in self.places]
        self.blocks = [self.module.get_submodule(path) for path in self.paths]
        self._roles: dict[object, tuple[Roles, ...]] = {}
        self.calls: list[list[BlockCall]] = []
        """Arguments of each block in each batch."""
        self.states: list[Tensor] = []
        """Input of the next block to fit, in each batch."""
        self.num_passed = 0
        """Number of blocks that the states have passed."""
        self._outputs: list[Callable[[Tensor], object] | None] = []
        """Output of each block as a function of its state; None if it holds more than that."""
        self.restart()

    @property
    def obstacle(self) -> str:
        """Return the reason why no block can run by itself; empty if there is none."""
        if len(set(self.paths)) < len(self.paths):
            return "its blocks share their weights"
        if any(place.order == SEQUENCE_FIRST for place in self.places):
            return "its states have the positions before the examples"
        if any(state.ndim != STATE_AXES for state in self.states):
            return "its states are not rows of positions"
        if self.states[0].shape[1] <= PLACE:
            return f"its sequences have fewer than {PLACE + 1} positions"
        return ""

    @property
    def width(self) -> int:
        """Return the width of the states."""
        return self.states[0].shape[-1]

    def restart(self) -> None:
        """Run the model again, whose weights may have changed, up to the first block's input."""
        passes = [self._pass(inputs) for inputs in self.batches]
        self.calls = [calls for calls, _ in passes]
        self.states = [state for _, state in passes]
        self.num_passed = 0

    def _pass(self, inputs: Inputs, *, runs_blocks: bool = False) -> tuple[list[BlockCall], Tensor]:
        """Return the arguments of all blocks and the first block's input."""
        calls, outputs = list[tuple[BlockCall, Tensor]](), list[object]()

        def before(_: nn.Module, args: tuple[object, ...], keywords: Mapping[str, object]) -> None:
            call = _call(args, keywords)
            if call is not None:
                calls.append(call)

        def after(_: nn.Module, __: object, output: object) -> None:
            outputs.append(output)

        with ExitStack() as stack, torch.no_grad():
            for block in self.blocks:
                handle = block.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
                stack.callback(block.register_forward_hook(after).remove)
            if self._outputs and not runs_blocks:
                # The arguments of a block do not depend on the state that it receives.
                stack.enter_context(self._skipping(None))
            stack.enter_context(passes_of(self.module))
            forward = stack.enter_context(self.model.open_taps([self.places[-1]], logits=False))
            forward(inputs)
        self._outputs = self._outputs or [_rebuilt(output) for output in outputs]
        return [call for call, _ in calls], calls[0][1]

    @contextmanager
    def around_blocks(self, batch: int) -> Iterator[None]:
        """Let passes of a batch run the modules around the blocks.

        States that have passed all blocks are handed to the modules behind them. Where the states
        are within the stack, or the outputs of blocks hold more than them, the blocks run.
        """
        with ExitStack() as stack:
            if self.num_passed in {0, len(self.blocks)}:
                stack.enter_context(self._skipping(self.states[batch] if self.num_passed else None))
            yield

    @contextmanager
    def _skipping(self, last: Tensor | None) -> Iterator[None]:
        """Let blocks hand on their inputs, and the last of them a given state."""
        with ExitStack() as stack:
            if None not in self._outputs:
                for block, rebuilt in zip(self.blocks, self._outputs, strict=False):
                    state = last if block is self.blocks[-1] else None
                    kept = block.__dict__.get("forward")
                    block.forward = _passing_on(rebuilt, state)
                    stack.callback(_restore, block, kept)
            yield

    def rows(self, batch: int, tensor: Tensor) -> Float[Tensor, "row width"]:
        """Return the counted positions of a batch as rows, in float64 on the CPU.

        Args:
            batch: Number of the batch.
            tensor: A tensor with the examples and positions of the states, or of other rows.
        """
        return self.rows_in_place(batch, tensor).to("cpu", torch.float64)

    def rows_in_place(self, batch: int, tensor: Tensor) -> Float[Tensor, "row width"]:
        """Return the counted positions as rows, in the precision and on the device of a tensor."""
        leading, counted = self.states[batch].shape[:2], self._counted[batch]
        rows = tensor.reshape(-1, tensor.shape[-1])
        if counted is not None and len(rows) == leading.numel():
            rows = rows[beside(counted.flatten(), rows)]
        return rows

    def understood(self, number: int) -> Understood:
        """Return sublayers and roles of a block."""
        block, call, state = self.blocks[number], self.calls[0][number], self.states[0]
        with passes_of(self.module):
            structure = anatomy(block, call, state)
            if structure.reason:
                return Understood(reason=structure.reason)
            return Understood(structure.sublayers, self._roles_of(number, structure))

    def _roles_of(self, number: int, structure: Anatomy) -> tuple[Roles, ...]:
        # Blocks of a stack are alike: those with the same maps of the same sizes have these roles.
        key = tuple(
            (linear.path, linear.sizes)
            for sublayer in structure.sublayers
            for linear in (*sublayer.inputs, sublayer.output)
        )
        if key not in self._roles:
            block, (calls, state) = (
                self.blocks[number],
                self._pass(_example(self.batches[0], self._counted[0]), runs_blocks=True),
            )
            call = calls[number]
            if any(weight.dtype != torch.float32 for weight in block.parameters()):
                # Effects of single columns drown in the rounding of 16 bits.
                block, call = copy.deepcopy(block).float(), call.in_float32()
            self._roles[key] = tuple(
                roles(block, call, state.float(), sublayer) for sublayer in structure.sublayers
            )
        return self._roles[key]

    def run(self, batch: int, number: int, state: Tensor) -> Tensor:
        """Return the output of a block for a state of a batch."""
        with torch.no_grad(), passes_of(self.module):
            return self.calls[batch][number].run(self.blocks[number], state)

    def advance(self, number: int) -> None:
        """Replace the states by the outputs of a block."""
        self.hand_on(self.run(batch, number, state) for batch, state in enumerate(self.states))

    def hand_on(self, states: Iterable[Tensor]) -> None:
        """Replace the states by those behind the next block."""
        self.states = list(states)
        self.num_passed += 1


def _call(
    args: tuple[object, ...], keywords: Mapping[str, object]
) -> tuple[BlockCall, Tensor] | None:
    """Return the arguments of a block apart from its state, and the state; None without one."""
    if args and isinstance(args[0], Tensor):
        return BlockCall(args[1:], dict(keywords)), args[0]
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            others = {key: keywords[key] for key in keywords if key != name}
            return BlockCall(args, others, name), value
    return None


def _rebuilt(output: object) -> Callable[[Tensor], object] | None:
    """Return a block's output as a function of its state; None if it holds other tensors."""
    if isinstance(output, Tensor):
        return lambda state: state
    if type(output) is tuple and not any(isinstance(entry, Tensor) for entry in output[1:]):
        extras = output[1:]
        return lambda state: (state, *extras)
    return None


def _passing_on(
    rebuilt: Callable[[Tensor], object] | None, state: Tensor | None
) -> Callable[..., object]:
    """Return a block's `forward` that returns a given state, or the one that it receives."""

    def forward(*args: object, **keywords: object) -> object:
        call = _call(args, keywords)
        assert rebuilt is not None and call is not None  # noqa: S101, PT018 - blocks were run
        return rebuilt(call[1] if state is None else state)

    return forward


def _restore(block: nn.Module, forward: object) -> None:
    del block.forward
    if forward is not None:
        block.__dict__["forward"] = forward


def _example(inputs: Inputs, counted: Bool[Tensor, "example position"] | None) -> Inputs:
    """Return the longest example, of a few counted positions if it has tokens."""
    example, positions = 0, torch.arange(PROBED_POSITIONS)
    if counted is not None:
        # Padding may come first, and attention does not read it.
        example = int(counted.sum(1).argmax())
        positions = counted[example].nonzero()[:PROBED_POSITIONS, 0].cpu()

    def cut(tensor: Tensor) -> Tensor:
        row = tensor[example : example + 1]
        has_tokens = tensor.ndim == 2 and not tensor.is_floating_point()  # noqa: PLR2004
        return row[:, beside(positions[positions < row.shape[1]], row)] if has_tokens else row

    return (
        cut(inputs)
        if isinstance(inputs, Tensor)
        else {name: cut(tensor) for name, tensor in inputs.items()}
    )
