"""How is any module read at its taps, and stopped right after the last one?

`HookedModel` reads the outputs of submodules through forward hooks and ends the forward pass by
a private signal as soon as everything that was asked for has been seen, so an early stage costs
only the layers it uses. The prefix that runs is the module's own code: values and gradients equal
those of the full pass exactly.

Axes: example, position, width, selected, class (see `tapped`).

Design: hooks live as long as a reading, not as long as a pass, so that a training loop registers
them once a stage; they are gone when the reading closes, also after an exception. Hooks that fire
outside a pass of the reading (activation checkpointing recomputes forwards in the backward pass)
are ignored. Nothing is added to the module.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from curricle.errors import BindError, DataError, near_names
from curricle.models.axes import (
    SEQUENCE_AXES,
    ObservedAxes,
    check_logits,
    check_numbers,
    check_state,
    with_features_last,
)
from curricle.models.heads import HeadEnd, LinearHead
from curricle.models.inference import HeldLinear
from curricle.models.nesting import padded_inside
from curricle.models.outputs import first_tensor, logits_in, logits_note
from curricle.models.stacks import Numbering
from curricle.models.tapped import Activations, Inputs, Place, Reader, Tap, tap_number
from curricle.models.tuners import is_tuned


@final
class _Enough(BaseException):
    """Ends a forward pass. Not an `Exception`, so that model code cannot swallow it."""


@final
class HookedModel:
    """Any `torch.nn.Module`, read at module paths.

    With `blocks` the taps have numbers and strategies can place them; without, stages name
    module paths such as `encoder.2`, or `encoder.2#1` for the second call in one pass.

    An evaluation function receives one. Calling it calls the module, with the same arguments and
    result; `module` is the module itself, with everything else it has.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        blocks: Sequence[str] | Numbering = (),
        head: str | Sequence[str] = (),
        head_end: HeadEnd | None = None,
        is_residual: bool = False,
        width_axis: int = -1,
        keywords: Mapping[str, object] | None = None,
    ) -> None:
        """Name the places of a module.

        Args:
            module: The model; it stays as it is.
            blocks: Paths of the blocks in forward order; block l is tap l, tap 0 is the first
                block's input. A `Numbering` also holds why there are none, and notes.
            head: Path of the module that turns hidden states into logits, position by position,
                or of all such modules between the last block and the logits. If given, they run
                at the selected positions only.
            head_end: None if the output of the (last) head is the logits and the pass ends there.
                Otherwise logits are what `forward` returns, and this says how they come of the last
                linear map of the head.
            is_residual: Whether the blocks write into one residual stream.
            width_axis: Axis of the hidden states that counts features, and of the logits that
                counts classes unless a linear map makes them; 1 for convolutions, whose
                logits cannot be selected by position.
            keywords: Fixed keyword arguments of every forward call.

        Raises:
            BindError: If a path does not exist.
        """
        self._module = module
        self._modules = dict(module.named_modules())
        self._numbering = (
            blocks if isinstance(blocks, Numbering) else Numbering(paths=tuple(blocks))
        )
        self._blocks = self._numbering.paths
        self._head = (head,) if isinstance(head, str) else tuple(head)
        self._ends_at_head = bool(self._head) and head_end is None
        self._head_end = HeadEnd(path=self._head[-1]) if self._ends_at_head else head_end
        self._is_residual = is_residual
        self._width_axis = width_axis
        self._keywords = dict(keywords or {})
        # The blocks of transformers have their features last: no pass has to show it.
        self._observed = ObservedAxes(
            module, has_known_states=is_residual and hasattr(module, "config")
        )
        for path in (*self._blocks, *self._head):
            self._place_at(path)

    @property
    def module(self) -> nn.Module:
        """Return the plain module."""
        return self._module

    @property
    def axes(self) -> ObservedAxes:
        """Return the axes of features that passes have shown; see `axes.observing`."""
        return self._observed

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was decided about the model, one sentence each."""
        return self._numbering.notes

    def __call__(self, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the module's
        """Return what the module returns for the same arguments."""
        return self._module(*args, **keywords)

    @property
    def depth(self) -> int:
        """Return the number of declared blocks."""
        return len(self._blocks)

    @property
    def is_residual(self) -> bool:
        """Return whether the taps lie on one residual stream."""
        return self._is_residual

    def place(self, tap: Tap) -> Place:
        """Return the place of a tap.

        Raises:
            BindError: If the model has no such tap.
        """
        if isinstance(tap, str):
            return self._place_at(tap)
        if not self._blocks and self._numbering.reason:
            raise BindError(self._numbering.reason)
        if not self._blocks:
            raise BindError(
                f"tap {tap!r} needs a model with numbered blocks; got {self._name} without "
                f"'blocks', so name a module path: {near_names('', filter(None, self._modules))}"
            )
        number = tap_number(tap, self.depth)
        if number == 0:
            first = self._place_at(self._blocks[0])
            return Place(first.path, first.call, "input", tap="0")
        block = self._place_at(self._blocks[number - 1])
        return Place(block.path, block.call, tap=str(number))

    def reading(
        self, places: Iterable[Place], *, logits: bool, head: bool = False
    ) -> AbstractContextManager[Reader]:
        """Return an open reading of some places and, if wanted, of the logits or of their head.

        Raises:
            BindError: If the head is wanted and does not end in a linear map.
        """
        end = self._linear_end() if head else None
        return self._open(tuple(dict.fromkeys(places)), logits=logits, end=end)

    @contextmanager
    def _open(
        self, places: tuple[Place, ...], *, logits: bool, end: HeadEnd | None
    ) -> Iterator[Reader]:
        class_axis = None if self._is_linear(self._head_end) else self._width_axis
        reading = _Reading(
            places=places,
            wants_logits=logits,
            end=end,
            head=self._head,
            ends_at_head=self._ends_at_head,
            axes=(self._width_axis, class_axis),
            observed=self._observed,
        )
        with ExitStack() as stack:
            stack.enter_context(padded_inside(self._module, [place.path for place in places]))
            for path, side in {(place.path, place.side): None for place in places}:
                target = self._modules[path]
                hook = reading.hook(path, side)
                handle = (
                    target.register_forward_pre_hook(hook.before, with_kwargs=True)
                    if side == "input"
                    else target.register_forward_hook(hook.after)
                )
                stack.callback(handle.remove)
            for path in self._head if logits or end else ():
                head = self._modules[path]
                handle = head.register_forward_pre_hook(reading.gather, with_kwargs=True)
                stack.callback(handle.remove)
            if end is not None:
                hook_end = self._modules[end.path].register_forward_pre_hook
                stack.callback(hook_end(reading.take_head, with_kwargs=True).remove)
            if logits and self._ends_at_head:
                last = self._modules[self._head[-1]]
                stack.callback(last.register_forward_hook(reading.take_logits).remove)
            yield lambda inputs, selected=None: reading.run(inputs, selected, self._keywords)

    @property
    def _name(self) -> str:
        return type(self._module).__name__

    def _linear_end(self) -> HeadEnd:
        end = self._head_end
        if self._width_axis != -1:
            raise BindError(
                f"'chunk' must be None for {self._name}, whose states have their features on axis "
                f"{self._width_axis}: in chunks the head reads them on the last one"
            )
        if end is not None and is_tuned(self._modules[end.path]):
            raise BindError(
                f"'chunk' must be None for {self._name}, around whose head {end.path!r} PEFT has "
                f"put an adapter: in chunks the weights below it would be read alone"
            )
        if end is None or not self._is_linear(end):
            kind = "none" if end is None else type(self._modules[end.path]).__name__
            raise BindError(
                f"'chunk' must be None for {self._name}: its head must be known and end in an "
                f"nn.Linear to be read before it; got {kind}; "
                f"'tapped(model, head=...)' names it"
            )
        return end

    def _is_linear(self, end: HeadEnd | None) -> bool:
        return end is not None and type(self._modules[end.path]) in (nn.Linear, HeldLinear)

    def _place_at(self, name: str) -> Place:
        path, mark, call = name.partition("#")
        if path not in self._modules or (mark and not call.isdecimal()):
            known = [known for known in self._modules if known]
            raise BindError(
                f"tap {name!r} must be a module path of {self._name}; {near_names(path, known)}"
            )
        return Place(path, int(call) if mark else 0)


@final
class _Reading:
    """The state of one open reading; `run` is one forward pass."""

    def __init__(
        self,
        *,
        places: tuple[Place, ...],
        wants_logits: bool,
        end: HeadEnd | None,
        head: tuple[str, ...],
        ends_at_head: bool,
        axes: tuple[int, int | None],
        observed: ObservedAxes,
    ) -> None:
        width_axis, class_axis = axes
        self._module = observed.module
        self._wanted = places
        self._wants_logits = wants_logits
        self._end = end
        self._ends_at_head = ends_at_head
        # A tap in or around the head shows all positions, so then the head has to run on all.
        self._gathers = width_axis == -1 and not any(
            _is_within(path, place.path) or _is_within(place.path, path)
            for place in places
            for path in head
        )
        self._width_axis, self._class_axis = width_axis, class_axis
        self._obscurity = self._logits_note = ""
        self._running = self._gathered = False
        self._selected: Tensor | None = None
        self._positions: tuple[int, ...] | None = None
        self._hidden: dict[Place, Tensor] = {}
        self._versions: list[int] = []
        self._logits: Tensor | None = None
        self._shown_head: LinearHead | None = None
        self._calls: Counter[tuple[str, str]] = Counter()
        self._observed = observed
        self._owners: dict[Place, nn.Module] = {}
        self._output: tuple[object, nn.Module] | None = None

    def hook(self, path: str, side: str) -> "_Hook":
        return _Hook(self, path, side)

    def run(
        self, inputs: Inputs, selected: Tensor | None, keywords: Mapping[str, object]
    ) -> Activations:
        self._hidden, self._logits, self._selected = {}, None, selected
        self._shown_head = self._positions = None
        self._obscurity = self._logits_note = ""
        self._versions.clear()
        self._calls.clear()
        self._running, self._gathered = True, False
        try:
            self._pass(inputs, keywords)
            self._take_output(inputs)
        finally:
            self._running = False
            # A reading outlives its passes: it must not keep their graphs alive.
            hidden, logits, head = self._hidden, self._logits, self._shown_head
            self._hidden, self._logits, self._selected = {}, None, None
            self._shown_head = self._output = None
        self._check_unchanged(hidden)
        hidden = {
            place: with_features_last(state, self._width_axis) for place, state in hidden.items()
        }
        return Activations(
            hidden, logits, head, self._positions, self._obscurity, self._logits_note
        )

    def _pass(self, inputs: Inputs, keywords: Mapping[str, object]) -> None:
        """Run the module as far as needed and settle the axes of what it has shown."""
        targets: list[Place | None] = list(self._wanted) if self._width_axis == -1 else []
        if self._wants_logits and self._class_axis == -1:
            targets.append(None)
        with self._observed.tracing(targets):
            try:
                output = (
                    self._module(inputs, **keywords)
                    if isinstance(inputs, Tensor)
                    else self._module(**inputs, **keywords)
                )
            except _Enough:
                pass
            else:
                self._finish(output)
            self._running = False
            tensors: dict[Place | None, Tensor] = dict(self._hidden.items())
            logits = self._whole_logits() if None in targets else None
            if logits is not None:
                tensors[None] = logits
            self._observed.settle(
                {place: tensors[place] for place in targets if place in tensors}, inputs, keywords
            )
        for place, state in self._hidden.items():
            check_state(
                str(place),
                state,
                module=self._owners[place],
                side=place.side,
                axis=self._width_axis,
                observed=self._observed.axis(place, state),
            )

    def _whole_logits(self) -> Tensor | None:
        """Return the logits of the output before any are selected, if it has logits."""
        if self._output is None or self._gathered:
            return None
        try:
            return logits_in(self._output[0])
        except BindError:
            return None

    def seen(self, module: nn.Module, path: str, side: str, output: object) -> None:
        if not self._running:
            return
        call = self._calls[path, side]
        self._calls[path, side] += 1
        place = Place(path, call, side)
        if place not in self._wanted:
            return
        state = first_tensor(output, str(place))
        check_numbers(str(place), state)
        self._versions.append(_version(state))
        self._hidden[place], self._owners[place] = state, module
        self._stop_if_complete()

    def gather(
        self, _module: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        if not (self._running and self._gathers) or self._gathered or self._selected is None:
            return args, keywords
        state = args[0] if args else next(iter(keywords.values()), None)
        if not isinstance(state, Tensor):
            raise BindError(f"'head' must receive hidden states first; got {type(state).__name__}")
        rows = self._rows(state, self._selected)
        self._gathered = True
        if args:
            return (rows, *args[1:]), keywords
        return args, {**keywords, next(iter(keywords)): rows}

    def take_head(
        self, module: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
    ) -> None:
        if not self._running or self._end is None or not isinstance(module, nn.Linear):
            return
        states = self._select(first_tensor(args or keywords, "head"))
        held = module.held(states.device.type) if isinstance(module, HeldLinear) else None
        weight, bias = held or (module.weight, module.bias)
        self._shown_head = LinearHead(
            states=_autocast(states),
            weight=weight,
            bias=bias,
            scale=self._end.scale,
            soft_cap=self._end.soft_cap,
        )
        self._stop_if_complete()

    def take_logits(self, module: nn.Module, _args: object, output: object) -> None:
        if not self._running:
            return
        self._output = output, module
        self._stop_if_complete()

    def _take_output(self, inputs: Inputs) -> None:
        """Take the logits of an output, or the reason why there are none.

        A stage may run a whole model whose output none of its objectives reads, so the reason is
        an error only for an objective that does.
        """
        if self._output is None:
            return
        output, model = self._output
        axis = self._class_axis
        try:
            logits = logits_in(output, type(self._module).__name__)
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
            return
        self._logits_note = logits_note(output)
        self._logits = self._select(logits if axis is None else with_features_last(logits, axis))

    def _select(self, logits: Tensor) -> Tensor:
        selected = self._selected
        if selected is None:
            return logits
        has_positions = logits.ndim >= SEQUENCE_AXES
        is_last = has_positions and self._class_axis in (None, logits.ndim - 1)
        if self._width_axis != -1 and not is_last:
            raise BindError(
                f"'width_axis' must be -1 for logits at selected positions; got {self._width_axis}"
            )
        rows = logits if self._gathered else self._rows(logits, selected)
        if rows.shape[:-1] != selected.shape:
            raise BindError(
                f"'head' must give logits of its {len(selected)} positions, one below the other; "
                f"got shape {tuple(rows.shape)}"
            )
        return rows

    def _rows(self, state: Tensor, selected: Tensor) -> Tensor:
        """Return the selected rows of a state, whose positions the caller can compare.

        Raises:
            DataError: If more are selected than there are, which a GPU would not survive.
        """
        self._positions = tuple(state.shape[:-1])
        rows = state.flatten(0, -2)
        if len(selected) > len(rows):
            raise DataError(
                f"'selected' must be some of the {len(rows)} places where the model gives rows, of "
                f"shape {self._positions}; got {len(selected)}"
            )
        return rows[selected]

    def _stop_if_complete(self) -> None:
        if len(self._hidden) < len(self._wanted):
            return
        has_head = self._end is None or self._shown_head is not None
        has_logits = self._output is not None
        if has_head and (not self._wants_logits or has_logits):
            raise _Enough

    def _finish(self, output: object) -> None:
        missing = [place for place in self._wanted if place not in self._hidden]
        if missing:
            raise BindError(
                f"tap {str(missing[0])!r} must be reached by forward; it was not; name a module "
                f"that runs in every pass, or switch off what skips it, such as layerdrop"
            )
        unseen = self._end is not None and self._shown_head is None
        if unseen or (self._wants_logits and self._ends_at_head):
            raise BindError("'head' must be reached by forward; it was not")
        if self._wants_logits:
            self._output = output, self._module

    def _check_unchanged(self, hidden: Mapping[Place, Tensor]) -> None:
        for (place, state), version in zip(hidden.items(), self._versions, strict=True):
            if _version(state) != version:
                raise BindError(
                    f"tap {str(place)!r} must keep its value to the end of a pass, but a later "
                    f"module changes it in place (as ReLU(inplace=True) does); name that module "
                    f"instead"
                )


@final
class _Hook:
    """The two hook signatures of torch, bound to a place."""

    def __init__(self, reading: _Reading, path: str, side: str) -> None:
        self._reading, self._path, self._side = reading, path, side

    def before(
        self, module: nn.Module, args: tuple[object, ...], keywords: dict[str, object]
    ) -> None:
        self._reading.seen(module, self._path, self._side, args or tuple(keywords.values()))

    def after(self, module: nn.Module, _args: object, output: object) -> None:
        self._reading.seen(module, self._path, self._side, output)


def _is_within(path: str, outer: str) -> bool:
    """Return whether a module path is another one or lies below it."""
    return not outer or f"{path}.".startswith(f"{outer}.")


def _version(state: Tensor) -> int:
    """Return how often a tensor has been changed in place, as far as torch counts it."""
    return 0 if state.is_inference() else state._version  # noqa: SLF001 - torch has no other name


def _autocast(states: Tensor) -> Tensor:
    """Return states in the precision in which a linear map would multiply them here."""
    device = states.device.type
    if states.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))
