"""Models of any kind, read at taps through forward hooks.

`HookedModel` reads the outputs of submodules through forward hooks and ends the forward pass as
soon as all open taps are collected, so an early stage costs only the layers it uses. The
prefix that runs is the module's own code: values and gradients equal those of the full pass
exactly.

Axes: example, position, width, selected, class (see `tapped`).

Design: hooks live as long as the taps are open, not as long as a pass, so that a training loop
registers them once a stage; they are gone when the taps close, also after an exception. Nothing is
added to the module. Parallel wrappers surround the `StoppableModule` around it, through which no
early exit passes; see `hooked_forward`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar, final

from torch import nn

from curricle.errors import BindError, near_names
from curricle.models.axes import ObservedAxes
from curricle.models.heads import HeadEnd
from curricle.models.hooked_forward import HookedForward, PlainCall, StoppableModule
from curricle.models.inference import HeldLinear
from curricle.models.nested_tensors import padded_inside
from curricle.models.peft_adapters import is_tuned
from curricle.models.stacks import Numbering
from curricle.models.tapped import OUTPUT, Forward, Place, Tap, tap_number

Wrapper = TypeVar("Wrapper", bound=nn.Module)


@final
class HookedModel:
    """Any `torch.nn.Module`, read at module paths.

    With `blocks` the taps have numbers and strategies can place them; without, stages name
    module paths such as `encoder.2`, or `encoder.2#1` for the second call in one pass.

    An evaluation function receives one. Calling it calls the module, with the same arguments and
    result; `module` is the module itself, with everything else it has.
    """

    def __init__(  # noqa: PLR0913 - each argument is a fact about the module
        self,
        module: nn.Module,
        *,
        blocks: Sequence[str] | Numbering = (),
        head: str | Sequence[str] = (),
        head_end: HeadEnd | None = None,
        is_residual: bool = False,
        width_axis: int = -1,
        output: str = "",
        keywords: Mapping[str, object] | None = None,
    ) -> None:
        """Name the places of a module.

        Args:
            module: The model; it stays as it is.
            blocks: Paths of the blocks in forward order; block l is tap l, tap 0 is the first
                block's input. A `Numbering` also holds the reason for none, and notes.
            head: Path of the module that turns hidden states into logits, position by position,
                or of all such modules between the last block and the logits. If given, they run
                at the selected positions only.
            head_end: None if the output of the (last) head is the logits and the pass ends there.
                Otherwise logits are the output of `forward`, made of the last linear map of the
                head as described here.
            is_residual: Whether the blocks write into one residual stream.
            width_axis: Axis of the hidden states that counts features, and of the logits that
                counts classes unless a linear map makes them; 1 for convolutions: their
                logits are selected by position row by row.
            output: Name of the entry of the output of `forward` that holds the logits; empty for
                the usual one.
            keywords: Fixed keyword arguments of every forward call.

        Raises:
            BindError: If a path does not exist.
        """
        self._module = module
        # Apart from the module, so that hooks of its owner do not see the outcome of an early exit.
        self._outermost: nn.Module = StoppableModule(module)
        self._modules = dict(module.named_modules())
        self._numbering = (
            blocks if isinstance(blocks, Numbering) else Numbering(paths=tuple(blocks))
        )
        self._blocks = self._numbering.paths
        self._head = (head,) if isinstance(head, str) else tuple(head)
        # After a head that ends in logits nothing is left to run; otherwise `forward` goes on.
        self._ends_at_head = bool(self._head) and head_end is None
        self._head_end = HeadEnd(path=self._head[-1]) if self._ends_at_head else head_end
        self._is_residual = is_residual
        self._width_axis = width_axis
        self._keywords = dict(keywords or {})
        # The blocks of transformers have their features last, except in maps: no pass has to show
        # it, and some families change with the size of an image.
        main = self._numbering.main
        has_known_states = is_residual if main is None else not main.has_maps
        self._output = output
        self._observed = ObservedAxes(
            module,
            has_known_states=has_known_states and hasattr(module, "config"),
            output=output,
        )
        # A wrong path is an error now, not in the middle of the first pass.
        for path in (*self._blocks, *self._head):
            self._place_at(path)

    @property
    def module(self) -> nn.Module:
        """Return the plain module."""
        return self._module

    @property
    def outermost(self) -> nn.Module:
        """Return the module through which forward passes run."""
        return self._outermost

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Run forward passes through a wrapper, such as `DistributedDataParallel`.

        The wrapper gets a module with a forward pass that always returns, also where the taps end
        it early; `module`, and the names in its state, stay as they are.

        Args:
            wrapper: Returns the replacement of a module in calls; may return the module itself.
        """
        self._outermost = wrapper(self._outermost)

    @contextmanager
    def wrapped(self, wrapper: Callable[[nn.Module], Wrapper]) -> Iterator[Wrapper]:
        """Run forward passes through a wrapper within the block; see `wrap`.

        Yields:
            The wrapper.
        """
        inside = self._outermost
        outside = wrapper(inside)
        self._outermost = outside
        try:
            yield outside
        finally:
            self._outermost = inside

    @property
    def axes(self) -> ObservedAxes:
        """Return the axes of features that passes have shown; see `axes.observing`."""
        return self._observed

    @property
    def output(self) -> str:
        """Return the name of the output with the logits; empty for the usual one."""
        return self._output

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the decisions about the model, one sentence each."""
        return self._numbering.notes

    def __call__(self, *args: object, **keywords: object) -> Any:  # noqa: ANN401 - as the module's
        """Return the output of the module for the same arguments."""
        return self._outermost(PlainCall(), args, keywords)

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
            return self._named_place(tap)
        main = self._numbering.main
        if main is not None:
            return self._oriented(main.places[tap_number(tap, main.depth)])
        if not self._blocks and self._numbering.reason:
            raise BindError(self._numbering.reason)
        if not self._blocks:
            raise BindError(
                f"tap {tap!r} needs a model with numbered blocks; got {self._name} without "
                f"'blocks', so name a module path: {near_names('', filter(None, self._modules))}"
            )
        number = tap_number(tap, self.depth)
        # Embeddings have no name that all families share; the input of block 1 is their output.
        if number == 0:
            first = self._place_at(self._blocks[0])
            return self._oriented(Place(first.path, first.call, "input", tap="0"))
        block = self._place_at(self._blocks[number - 1])
        return self._oriented(Place(block.path, block.call, tap=str(number)))

    def open_taps(
        self, places: Iterable[Place], *, logits: bool, head: bool = False
    ) -> AbstractContextManager[Forward]:
        """Return the forward pass with open taps and, on request, the logits or their head.

        Raises:
            BindError: If the head is wanted and does not end in a linear map.
        """
        end = self._linear_end() if head else None
        # Several objectives may read one place, which is collected once.
        return self._open(tuple(dict.fromkeys(places)), logits=logits, end=end)

    @contextmanager
    def _open(
        self, places: tuple[Place, ...], *, logits: bool, end: HeadEnd | None
    ) -> Iterator[Forward]:
        # A linear map has its classes last, wherever the states have their features.
        class_axis = None if self._is_linear(self._head_end) else self._width_axis
        collector = HookedForward(
            places=places,
            logits=logits,
            end=end,
            head=self._head,
            ends_at_head=self._ends_at_head,
            axes=(self._width_axis, class_axis),
            observed=self._observed,
        )
        with ExitStack() as stack:
            stack.enter_context(padded_inside(self._module, [place.path for place in places]))
            # One hook counts the calls of a module, however many of them are places.
            for path, side in {(place.path, place.side): None for place in places}:
                target = self._modules[path]
                hook = collector.hook(path, side)
                handle = (
                    target.register_forward_pre_hook(hook.before, with_kwargs=True)
                    if side == "input"
                    else target.register_forward_hook(hook.after)
                )
                stack.callback(handle.remove)
            # Without logits the head is not reached, or runs on all positions for a tap behind it.
            for path in self._head if logits or end else ():
                head = self._modules[path]
                handle = head.register_forward_pre_hook(collector.gather_rows, with_kwargs=True)
                stack.callback(handle.remove)
            # After the gathering hook of the same module, whose rows this one reads.
            if end is not None:
                hook_end = self._modules[end.path].register_forward_pre_hook
                stack.callback(hook_end(collector.record_head, with_kwargs=True).remove)
            if logits and self._ends_at_head:
                last = self._modules[self._head[-1]]
                stack.callback(last.register_forward_hook(collector.record_output).remove)
            yield lambda inputs, selected=None: collector.run(
                self._outermost, inputs, selected, self._keywords
            )

    @property
    def _name(self) -> str:
        return type(self._module).__name__

    def _linear_end(self) -> HeadEnd:
        end = self._head_end
        if self._width_axis != -1:
            raise BindError(
                f"'chunk' must be None for {self._name}, whose states have their features on axis "
                f"{self._width_axis}: computing in chunks needs them on the last axis"
            )
        if end is not None and is_tuned(self._modules[end.path]):
            raise BindError(
                f"'chunk' must be None for {self._name}, whose head {end.path!r} has an adapter of "
                f"PEFT, which the computation in chunks would leave out"
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
        # A subclass may compute something else of its weight than a product.
        return end is not None and type(self._modules[end.path]) in (nn.Linear, HeldLinear)

    def _oriented(self, place: Place) -> Place:
        """Return a place; declared axes take precedence over traced ones."""
        if self._numbering.order:
            return replace(place, order=self._numbering.order)
        return place if self._width_axis == -1 else replace(place, order=())

    def _named_place(self, name: str) -> Place:
        """Return the place of a module path, of a tap in a named stack, or of a named output.

        Examples are `encoder.2`, `encoder:2` and `output:scores`.
        """
        for stack in self._numbering.stacks:
            prefix, mark, number = name.partition(":")
            if mark and prefix == stack.name and name not in self._modules:
                return self._oriented(stack.places[tap_number(_number(name, number), stack.depth)])
        path, _, entry = name.partition(":")
        path = "" if path == OUTPUT and OUTPUT not in self._modules else path
        if entry and path.partition("#")[0] in self._modules:
            return replace(self._place_at(path), entry=entry)
        place = self._place_at(name)
        # A path of a block has the axes of its tap.
        places = [tap for stack in self._numbering.stacks for tap in stack.places if tap == place]
        return self._oriented(replace(places[0], tap="") if places else place)

    def _place_at(self, name: str) -> Place:
        path, mark, call = name.partition("#")
        if path not in self._modules or (mark and not call.isdecimal()):
            paths = [path for path in self._modules if path]
            raise BindError(
                f"tap {name!r} must be a module path of {self._name}; {near_names(path, paths)}"
            )
        return Place(path, int(call) if mark else 0)


def _number(tap: str, number: str) -> float:
    """Return the number or fraction in a tap of a named stack.

    Raises:
        BindError: If it is neither.
    """
    try:
        return int(number) if number.isdecimal() else float(number)
    except ValueError:
        raise BindError(
            f"tap {tap!r} must end in a number or a fraction of the depth after ':'; got {number!r}"
        ) from None
