"""Forward passes that collect hidden states by hooks and end early.

`HookedForward` is the state of one set of open taps: its hooks collect states and logits, and
raise `EarlyExit` as soon as the collection is complete. `StoppableModule` is the outermost module
of every pass: it catches the exit inside its own `forward`.

Axes: example, position, width, selected, class (see `tapped`).

Design: wrappers such as `DistributedDataParallel` and `fully_shard` work before and after the
forward pass of the module that they wrap. An exception that passes through them skips their work:
gradients are not synchronized, gathered weights are not freed, and neither raises an error. So they
wrap the `StoppableModule`, which always returns, and its output holds every state that the
loss may use: wrappers find the parameters of a pass by following the graph of its output. Only the
weight of a head that is multiplied in chunks is used outside of the pass, which they do not see.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from curricle.colocation import beside, processor_kind
from curricle.errors import BindError, DataError
from curricle.models.axes import (
    SEQUENCE_AXES,
    ObservedAxes,
    check_logits,
    check_numbers,
    check_state,
    with_features_last,
)
from curricle.models.calls import run_module
from curricle.models.heads import HeadEnd, LinearHead
from curricle.models.inference import HeldLinear
from curricle.models.outputs import (
    entry_of,
    first_tensor,
    heads_beside_logits,
    is_embedding,
    is_span,
    logits_note,
    logits_of_output,
)
from curricle.models.tapped import Activations, Inputs, Place

PassOutput = tuple[list[Tensor], Tensor | None, Tensor | None]
"""Hidden states, logits, and states before the last linear map of the head: a tree that wrappers
of torch can walk."""


@final
class EarlyExit(BaseException):
    """Ends a forward pass. Not an `Exception`, so that model code cannot swallow it."""


@final
class StoppableModule(nn.Module):
    """Outermost module of a hooked model, which returns also when a pass ends early."""

    def __init__(self, module: nn.Module) -> None:
        """Hold a model, which stays as it is and keeps the names of its weights.

        Args:
            module: The model.
        """
        super().__init__()
        self.module = module

    def forward(
        self,
        collector: "HookedForward | PlainCall",
        inputs: Any,  # noqa: ANN401 - of a plain call any arguments
        keywords: Mapping[str, object],
    ) -> Any:  # noqa: ANN401 - of a plain call the output of the model
        """Return the tensors that open taps collect from a pass of the model.

        Args:
            collector: The open taps, or a plain call.
            inputs: Inputs of the model.
            keywords: Fixed keyword arguments of the model.
        """
        return collector.collect(self.module, inputs, keywords)


@final
class PlainCall:
    """A call of the model with arguments of its own."""

    def collect(self, module: nn.Module, inputs: Any, keywords: Mapping[str, object]) -> Any:  # noqa: ANN401
        """Return the output of the model.

        Args:
            module: The model.
            inputs: Its positional arguments.
            keywords: Its keyword arguments.
        """
        return module(*inputs, **keywords)

    def keep_head(self) -> None:
        """Do nothing: the output of a model holds no weights."""


@final
class HookedForward:
    """State of one set of open taps; `run` is one forward pass."""

    def __init__(
        self,
        *,
        places: tuple[Place, ...],
        logits: bool,
        end: HeadEnd | None,
        head: tuple[str, ...],
        ends_at_head: bool,
        axes: tuple[int, int | None],
        observed: ObservedAxes,
    ) -> None:
        """Describe the collection.

        Args:
            places: Places of the hidden states.
            logits: Whether logits are collected.
            end: Last linear map of the head, if its input is collected; None otherwise.
            head: Paths of the modules of the head.
            ends_at_head: Whether the output of the last of them is the logits.
            axes: Axis of features, and of classes; None where a linear map makes the classes.
            observed: Axes that passes of the model have shown.
        """
        width_axis, class_axis = axes
        self._module = observed.module
        self._places = places
        # A module may have several entries of its output among them.
        self._declared: dict[tuple[str, int, str], list[Place]] = defaultdict(list)
        for place in places:
            self._declared[place.path, place.call, place.side].append(place)
        self._reads_logits = logits
        self._end = end
        self._ends_at_head = ends_at_head
        # A tap in or around the head reads all positions, so the head must run on all of them.
        self._can_gather = width_axis == -1 and not any(
            _is_within(path, place.path) or _is_within(place.path, path)
            for place in places
            for path in head
        )
        self._width_axis, self._class_axis = width_axis, class_axis
        self._obscurity = self._logits_note = ""
        self._heads: tuple[str, ...] = ()
        self._are_embeddings = False
        self._is_running = self._has_gathered = False
        self._selected: Tensor | None = None
        self._positions: tuple[int, ...] | None = None
        self._hidden: dict[Place, Tensor] = {}
        self._collected: tuple[Place, ...] = ()
        # In the order in which the pass reaches them, which need not be that of `places`.
        self._versions: list[int] = []
        self._head: LinearHead | None = None
        self._calls: Counter[tuple[str, str]] = Counter()
        self._observed = observed
        self._owners: dict[Place, nn.Module] = {}
        self._output: tuple[object, nn.Module] | None = None

    def hook(self, path: str, side: str) -> "PlaceHook":
        """Return the hook that collects at a module.

        Args:
            path: Path of the module.
            side: `output` or `input`.
        """
        return PlaceHook(self, path, side)

    def run(
        self,
        outermost: nn.Module,
        inputs: Inputs,
        selected: Tensor | None,
        keywords: Mapping[str, object],
    ) -> Activations:
        """Return states and logits of one forward pass.

        Args:
            outermost: The `StoppableModule` of the model, or its wrapper.
            inputs: Inputs of the model.
            selected: Positions of the logits; None for all.
            keywords: Fixed keyword arguments of the model.
        """
        # At the start too: a pass that has failed may have left something.
        self._clear(selected)
        self._is_running = True
        try:
            # Tensors are taken from the output, not from the hooks: a wrapper may have replaced
            # them by copies whose backward pass it watches.
            hidden, logits, states = outermost(self, inputs, keywords)
            head = self._head
            if head is not None and states is not None:
                head = replace(head, states=states)
        finally:
            self._is_running = False
            # Open taps outlive a pass: they must not keep their graphs alive.
            self._hidden, self._owners = {}, {}
            self._selected = self._head = self._output = None
        return Activations(
            dict(zip(self._collected, hidden, strict=True)),
            logits,
            head,
            self._positions,
            self._obscurity,
            self._logits_note,
            self._heads,
            self._are_embeddings,
        )

    def _clear(self, selected: Tensor | None) -> None:
        self._selected = selected
        self._hidden, self._owners = {}, {}
        self._collected = ()
        self._head = self._positions = self._output = None
        self._heads = ()
        self._obscurity = self._logits_note = ""
        self._are_embeddings = False
        self._versions.clear()
        self._calls.clear()
        self._has_gathered = False

    def collect(
        self, module: nn.Module, inputs: Inputs, keywords: Mapping[str, object]
    ) -> PassOutput:
        """Return states and logits of a pass of the model; called by `StoppableModule`.

        Args:
            module: The model.
            inputs: Its inputs.
            keywords: Its fixed keyword arguments.

        Raises:
            BindError: If the pass does not reach a tap or the head, changes a tap in place, or
                leaves open which axis counts features.
        """
        traced = self._unknown_axes() if self._observed.is_active else []
        # Most passes trace nothing and spare the cost, which a small model would notice.
        with self._observed.tracing(traced) if traced else nullcontext():
            try:
                output = run_module(module, inputs, keywords)
            except EarlyExit:
                # The collection is complete: the hooks hold everything.
                pass
            else:
                self._check_complete(output)
            # Passes inside `settle` are of the same module and fire the same hooks.
            self._is_running = False
            if traced:
                self._settle_axes(traced, inputs, keywords)
        self._check_states()
        logits = self._read_logits(inputs)
        # After the pass, when a later module has changed a tap in place if any does.
        self._check_unchanged()
        self._collected = tuple(self._hidden)
        hidden = [
            state.permute(place.order)
            if len(place.order) == state.ndim
            else with_features_last(state, self._width_axis)
            for place, state in self._hidden.items()
        ]
        return hidden, logits, None if self._head is None else self._head.states

    def keep_head(self) -> None:
        """Copy the weights of the head, which a wrapper frees after the pass."""
        if self._head is not None:
            bias = self._head.bias
            self._head = replace(
                self._head,
                weight=self._head.weight.clone(),
                bias=None if bias is None else bias.clone(),
            )

    def _unknown_axes(self) -> list[Place | None]:
        """Return the places whose axis of features is observed; None for the logits."""
        # A declared axis is trusted; the default is checked against the layers of the first pass.
        # So are axes that were traced before.
        unknown: list[Place | None] = (
            [place for place in self._places if not place.order] if self._width_axis == -1 else []
        )
        if self._reads_logits and self._class_axis == -1:
            unknown.append(None)
        return unknown

    def _settle_axes(
        self, traced: list[Place | None], inputs: Inputs, keywords: Mapping[str, object]
    ) -> None:
        """Find the axis of features of everything that was traced."""
        tensors: dict[Place | None, Tensor] = dict(self._hidden.items())
        logits = self._ungathered_logits() if None in traced else None
        if logits is not None:
            tensors[None] = logits
        self._observed.settle(
            {place: tensors[place] for place in traced if place in tensors}, inputs, keywords
        )

    def _check_states(self) -> None:
        for place, state in self._hidden.items():
            if len(place.order) == state.ndim:
                continue
            check_state(
                str(place),
                state,
                module=self._owners[place],
                side=place.side,
                axis=self._width_axis,
                observed=self._observed.axis(place, state),
            )

    def _ungathered_logits(self) -> Tensor | None:
        """Return the logits of the output before any are selected; None if it has none."""
        # Rows of gathered logits are positions: their axes show nothing.
        if self._output is None or self._has_gathered:
            return None
        try:
            # Their last axis counts positions, so its size follows the length of the inputs.
            is_fixed = not self._observed.output and is_span(self._output[0])
            return None if is_fixed else logits_of_output(self._output[0], self._observed.output)
        except BindError:
            return None

    def record_state(self, module: nn.Module, path: str, side: str, output: object) -> None:
        """Collect a hidden state; called by the hook of a place.

        Raises:
            EarlyExit: If the collection is complete.
        """
        # Activation checkpointing runs modules again in the backward pass, after the pass itself.
        if not self._is_running:
            return
        # A module that is used several times is a place in each of its calls.
        call = self._calls[path, side]
        self._calls[path, side] += 1
        places = self._declared.get((path, call, side), ())
        for place in places:
            name = str(place)
            state = (
                entry_of(output, place.entry, name) if place.entry else first_tensor(output, name)
            )
            check_numbers(name, state)
            self._versions.append(_version(state))
            self._hidden[place], self._owners[place] = state, module
        if places:
            self._exit_if_complete()

    def gather_rows(
        self, _module: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the arguments of the head at the selected positions only; a forward pre-hook.

        Raises:
            BindError: If the first argument is no tensor.
        """
        # Of several modules of a head only the first has all positions in its input.
        can_gather = self._is_running and self._can_gather and not self._has_gathered
        if not can_gather or self._selected is None:
            return args, keywords
        state = args[0] if args else next(iter(keywords.values()), None)
        if not isinstance(state, Tensor):
            raise BindError(f"'head' must receive hidden states first; got {type(state).__name__}")
        # For a large vocabulary the head costs more than the blocks: it runs on few rows only.
        rows = self._rows(state, self._selected)
        self._has_gathered = True
        if args:
            return (rows, *args[1:]), keywords
        return args, {**keywords, next(iter(keywords)): rows}

    def record_head(
        self, module: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
    ) -> None:
        """Collect input and weights of the last linear map; a forward pre-hook.

        Raises:
            BindError: If the weight lies outside of the memory.
            EarlyExit: If the collection is complete.
        """
        if not self._is_running or self._end is None or not isinstance(module, nn.Linear):
            return
        states = self._select(first_tensor(args or keywords, "head"))
        if module.weight.is_meta:
            raise BindError(
                "'chunk' needs a head whose weight is in memory; that of this model is offloaded "
                "by its 'device_map'; keep the head in memory, or leave 'chunk' out"
            )
        # Frozen maps may hold a cast copy of their weight, which spares a cast of it here.
        cast = module.held(processor_kind(states)) if isinstance(module, HeldLinear) else None
        weight, bias = cast or (module.weight, module.bias)
        self._head = LinearHead(
            states=_autocast(states),
            weight=weight,
            bias=bias,
            scale=self._end.scale,
            soft_cap=self._end.soft_cap,
        )
        self._exit_if_complete()

    def record_output(self, module: nn.Module, _args: object, output: object) -> None:
        """Collect the output of the head; a forward hook.

        Raises:
            EarlyExit: If the collection is complete.
        """
        # The hook also fires in passes with other open taps of the same model.
        if not self._is_running:
            return
        self._output = output, module
        self._exit_if_complete()

    def _read_logits(self, inputs: Inputs) -> Tensor | None:
        """Return the logits of the output; None if it was not collected or has none.

        A stage may run a whole model whose output none of its objectives reads. So an output
        without logits is only noted here, and becomes an error in an objective that reads logits.
        """
        if self._output is None:
            return None
        output, model = self._output
        axis = self._class_axis
        try:
            logits = logits_of_output(output, self._observed.output, type(self._module).__name__)
            if not self._observed.output and is_span(output):
                self._logits_note = logits_note(output)
                return self._span_rows(logits)
            if axis is not None:
                check_logits(
                    logits,
                    model=model,
                    inputs=None if self._ends_at_head else inputs,
                    axis=axis,
                    observed=self._observed.axis(None, logits),
                )
        except BindError as error:
            self._obscurity = str(error)
            return None
        # A named output is a decision of the user.
        if not self._observed.output:
            self._logits_note, self._heads = logits_note(output), heads_beside_logits(output)
        self._are_embeddings = is_embedding(output)
        return self._select(logits if axis is None else with_features_last(logits, axis))

    def _span_rows(self, logits: Tensor) -> Tensor:
        """Return start and end logits of each example, one below the other.

        Raises:
            BindError: If not two positions of each example are selected.
        """
        selected = self._selected
        rows = logits.flatten(0, 1)
        if selected is not None and len(selected) != len(rows):
            raise BindError(
                f"'selected' must be two positions of each example, for start and end logits, "
                f"{len(rows)} in all; got {len(selected)}"
            )
        return logits if selected is None else rows

    def _select(self, logits: Tensor) -> Tensor:
        selected = self._selected
        if selected is None:
            return logits
        # A declared axis of classes has been moved to the end, where there are positions.
        if self._width_axis != -1 and logits.ndim < SEQUENCE_AXES:
            raise BindError(
                f"'width_axis' must be -1 for logits without positions where some are selected; "
                f"got {self._width_axis}"
            )
        rows = logits if self._has_gathered else self._rows(logits, selected)
        # A head that pools over positions would mix the gathered rows without an error.
        if rows.shape[:-1] != selected.shape:
            raise BindError(
                f"'head' must give logits of its {len(selected)} positions, one below the other; "
                f"got shape {tuple(rows.shape)}"
            )
        return rows

    def _rows(self, state: Tensor, selected: Tensor) -> Tensor:
        """Return the selected rows of a state, and note the shape of all positions.

        Raises:
            DataError: If more are selected than there are, which a GPU would not survive.
        """
        examples, *space = state.shape[:-1]
        # Labels of a map are numbered row by row, as positions of a sequence are.
        self._positions = (examples, math.prod(space)) if space else (examples,)
        rows = state.flatten(0, -2)
        if len(selected) > len(rows):
            raise DataError(
                f"'selected' must be some of the {len(rows)} places where the model gives rows, of "
                f"shape {self._positions}; got {len(selected)}"
            )
        # Where a model is spread over devices, a state may lie elsewhere than the inputs.
        # On a GPU the gradient of an index sorts it; selected rows are distinct.
        return rows.index_select(0, beside(selected, rows))

    def _exit_if_complete(self) -> None:
        # The cheapest test first: it runs after every hooked module.
        if len(self._hidden) < len(self._places):
            return
        has_head = self._end is None or self._head is not None
        has_logits = self._output is not None
        if has_head and (not self._reads_logits or has_logits):
            raise EarlyExit

    def _check_complete(self, output: object) -> None:
        """Check that a pass to the end has reached everything; its output may be the logits.

        Raises:
            BindError: If it has not.
        """
        missing = [place for place in self._places if place not in self._hidden]
        if missing:
            raise BindError(
                f"tap {str(missing[0])!r} must be reached by forward; it was not; name a module "
                f"that runs in every pass, or switch off what skips it, such as layerdrop"
            )
        is_headless = self._end is not None and self._head is None
        if is_headless or (self._reads_logits and self._ends_at_head):
            raise BindError("'head' must be reached by forward; it was not")
        if self._reads_logits:
            self._output = output, self._module

    def _check_unchanged(self) -> None:
        # torch counts changes in place for its own check of saved tensors; a tap is rarely saved.
        for (place, state), version in zip(self._hidden.items(), self._versions, strict=True):
            if _version(state) != version:
                raise BindError(
                    f"tap {str(place)!r} must keep its value to the end of a pass, but a later "
                    f"module changes it in place (as ReLU(inplace=True) does); name that module "
                    f"instead"
                )


@final
class PlaceHook:
    """Both hook signatures of torch, bound to a place."""

    def __init__(self, collector: HookedForward, path: str, side: str) -> None:
        """Bind the hook.

        Args:
            collector: The open taps.
            path: Path of the module.
            side: `output` or `input`.
        """
        self._collector, self._path, self._side = collector, path, side

    def before(
        self, module: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
    ) -> None:
        """Collect the input of a module; a forward pre-hook."""
        self._collector.record_state(module, self._path, self._side, args or (*keywords.values(),))

    def after(self, module: nn.Module, _args: object, output: object) -> None:
        """Collect the output of a module; a forward hook."""
        self._collector.record_state(module, self._path, self._side, output)


def _is_within(path: str, outer: str) -> bool:
    """Return whether a module path is another path or lies below it."""
    return not outer or f"{path}.".startswith(f"{outer}.")


def _version(state: Tensor) -> int:
    """Return how often a tensor has been changed in place, as far as torch counts it."""
    return 0 if state.is_inference() else state._version  # noqa: SLF001 - torch has no other name


def _autocast(states: Tensor) -> Tensor:
    """Return states in the precision in which a linear map would multiply them here."""
    kind = processor_kind(states)
    # Autocast leaves double precision alone.
    if states.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return states
    return states.to(torch.get_autocast_dtype(kind))
