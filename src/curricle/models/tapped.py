"""Taps of a model, and the protocol of models whose hidden states can be read.

A *tap* is a numbered place whose hidden state can be read: 0 after the embedding or input, l
after block l, numbered alike in all models. A tap may also be named by module path, or given as a
fraction of the model's depth, which lets one curriculum serve models of different depth.

Axes: example, position (absent for models without one), width (always the last axis of a hidden
state), selected (positions with logits), class.

Design: the taps to collect are an argument and their states a result. `open_taps` registers hooks
once; inside its context each forward pass stops right after the deepest open tap.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from curricle.errors import BindError, CurricleError
from curricle.models.heads import LinearHead
from curricle.models.restoring import modes_kept

Tap = int | float | str
"""A tap: its number, a fraction of the depth strictly between 0 and 1, a module path, or an entry
of an output: `output:NAME` of the model's, `PATH:NAME` of a module's, where NAME may be the number
of an item of a tuple, or a path such as `boxes.scores`."""
OUTPUT = "output"
"""Name of the whole model in taps of the entries of its output."""

REFUSALS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of forward passes on inputs that they cannot take."""
SEQUENCE_FIRST = (1, 0, 2)
"""Order of axes that puts the examples of a sequence-first state before its positions."""
Inputs = Tensor | Mapping[str, Tensor]
"""A model's input: one tensor, or named tensors passed as keywords."""


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A module's output in one of its calls: the meaning of a tap in a given model."""

    path: str
    """Module path as in `named_modules`; empty for the module itself."""
    call: int = 0
    """Which call within one forward pass, for modules that are used several times."""
    side: str = "output"
    """`output`, or `input` for the input of the module (tap 0 without an embedding)."""
    tap: str = field(default="", compare=False)
    """The tap as users number it, for people; empty for taps named by path."""
    order: tuple[int, ...] = field(default=(), compare=False)
    """Axes of the module's tensor in the order example, positions, features, if it is another."""
    stack: str = field(default="", compare=False)
    """Name of the stack of blocks, such as `encoder`; empty if there is one, or for paths."""
    entry: str = ""
    """Name or number of one of several outputs of the module; empty for its hidden state."""

    def __str__(self) -> str:
        """Return the path in the form in which users write it."""
        name = self.path if self.call == 0 else f"{self.path}#{self.call}"
        if self.entry:
            return f"{name or OUTPUT}:{self.entry}"
        return name if self.side == "output" else f"{name} (input)"

    @property
    def is_encoded(self) -> bool:
        """Return whether the state has the positions of an encoder beside a decoder."""
        return self.stack == "encoder"

    @property
    def label(self) -> str:
        """Return the tap's number if it has one, and its path otherwise."""
        return self.tap or str(self)


@final
@dataclass(frozen=True, slots=True)
class Activations:
    """Hidden states and logits of one forward pass."""

    hidden: Mapping[Place, Float[Tensor, "*leading width"]]
    """Hidden state of each open tap."""
    logits: Float[Tensor, "*selected class"] | None = None
    """Logits at the selected positions, if they are open."""
    head: LinearHead | None = None
    """Input of the last linear map at the selected positions, if it is open."""
    positions: tuple[int, ...] | None = None
    """Shape of the positions among which the selected ones were taken, as the model has them; None
    if none were selected, or the model does not have any."""
    obscurity: str = ""
    """Reason for an output without logits where they are open; empty otherwise."""
    logits_note: str = ""
    """Which part of the output was taken for the logits; empty if it was the only one."""
    heads: tuple[str, ...] = ()
    """Names of further scores in an output with logits, as of a second head."""
    are_embeddings: bool = False
    """Whether the output is named as embeddings of sentences, which are no scores of classes."""


@runtime_checkable
class Forward(Protocol):
    """A forward pass with open taps."""

    def __call__(
        self, inputs: Inputs, selected: Int[Tensor, " selected"] | None = None
    ) -> Activations:
        """Return the states and logits of the pass at the open taps."""
        ...


@runtime_checkable
class TappedModel(Protocol):
    """A module with readable hidden states and a forward pass that can stop early."""

    @property
    def module(self) -> nn.Module:
        """Return the plain module, which owns all parameters."""
        ...

    @property
    def depth(self) -> int:
        """Return the number of blocks, which is the number of the last tap."""
        ...

    @property
    def is_residual(self) -> bool:
        """Return whether the taps lie on one residual stream: its scale grows with depth."""
        ...

    def place(self, tap: Tap) -> Place:
        """Return the place of a tap; `BindError` if the model has no such tap."""
        ...

    def open_taps(
        self, places: Iterable[Place], *, logits: bool, head: bool = False
    ) -> AbstractContextManager[Forward]:
        """Open taps at some places and, on request, the logits or the input of their last layer.

        `head` adds the states before the last linear layer of the head, and its weights;
        `BindError` if the head does not end in one.
        """
        ...


def tap_number(tap: float, depth: int) -> int:
    """Return the number of a tap that is given as a number or as a fraction of the depth.

    A fraction f means tap ceil(f * depth): 1/2 of three blocks is tap 2.

    Raises:
        BindError: If there is no such tap.
    """
    if isinstance(tap, float) and not 0 < tap < 1:
        raise BindError(f"tap {tap!r} as a fraction must lie strictly between 0 and 1; got {tap}")
    # The small term keeps 0.2 * 5 = 1.0000000000000002 from counting as more than 1.
    number = math.ceil(tap * depth - 1e-9) if isinstance(tap, float) else tap
    if not 0 <= number <= depth:
        raise BindError(f"tap {tap!r} must lie between 0 and the model's depth {depth}; got {tap}")
    return number


def run_trial(who: str, forward: "Forward", inputs: Inputs, selected: Tensor | None) -> Activations:
    """Return states and logits of a first batch, which shows whether model and data fit.

    Args:
        who: Role of the model, for people.
        forward: Forward pass with open taps.
        inputs: Its inputs.
        selected: Positions of the logits.

    Raises:
        BindError: If its forward pass fails; the message is passed on.
    """
    try:
        return forward(inputs, selected)
    except REFUSALS as error:
        if isinstance(error, CurricleError):
            raise
        raise BindError(
            f"{who!r} must take the inputs of the stream; its forward pass failed with: {error}"
        ) from error


def check_head(model: TappedModel, inputs: Inputs) -> None:
    """Check on one position that a model's logits are those of its `LinearHead`.

    Raises:
        BindError: If the head does not end in a linear map, or `forward` makes something else of
            its output.
    """
    leading = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    selected = leading.new_zeros(1, dtype=torch.int64)
    with (
        torch.no_grad(),
        modes_kept(model.module),
        model.open_taps((), logits=True, head=True) as forward,
    ):
        model.module.eval()
        states = forward(inputs, selected)
    if states.head is None or states.logits is None or not states.head.gives(states.logits):
        raise BindError(
            f"'chunk' must be None for {type(model.module).__name__}, which makes its logits from "
            f"the last linear map of its head in a way that does not follow from its configuration"
        )
