"""Fit of the modules before and behind the blocks: embeddings, normalizations, heads.

Before the blocks, parameters are paired by name; every axis of the teacher's width is mapped to the
student's, which covers tables of tokens and positions, patches of images and class tokens. Behind
them, modules are paired by the order of their calls:

- a map to outputs of both models, such as the logits, is fitted through its input: the teacher's
  weights times the least-squares map from the student's input to the teacher's; where the outputs
  are logits of tokens, `logit_fit` goes on from there;
- a map into neurons, such as that of a pooler, is fitted to those neurons of the teacher that the
  next map reads most;
- a map whose activation a normalization follows, before a table of tokens as output, is fitted to
  the mapped input of that normalization where the activation is nearly linear: plus a constant,
  which the normalization subtracts, or, without a bias, at a small scale, which it undoes.

Axes: row, width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from curricle.least_squares.calibrated import CalibratedModel
from curricle.least_squares.flops import passes_of
from curricle.least_squares.logit_fit import logit_map
from curricle.least_squares.maps import LinearMap, Norm, linear_map, norm_of
from curricle.least_squares.solving import Affine, ChannelMoments, Moments
from curricle.least_squares.sublayers import Stop

SHIFT = 3.0
"""Distance of the last kind of map from the bend of its activation, in standard deviations."""
SMALL = 0.1
"""Standard deviation of its output at a small scale: smooth activations bend at about 1."""


Readings = Sequence[Mapping[str, tuple[Tensor, Tensor | None]]]
"""Input and output of modules by path, in each batch."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Student and teacher in one calibration."""

    student: CalibratedModel
    teacher: CalibratedModel
    stream: Tensor
    """Map from the teacher's states to the student's."""
    readings: Readings = ()
    """Outputs of the teacher's modules outside its blocks."""

    @property
    def batches(self) -> range:
        """Return the numbers of the batches."""
        return range(len(self.student.batches))

    def reading(self, steps: Sequence["_Step"]) -> "Pair":
        """Return the pair with the outputs of some modules of the teacher."""
        steps = [step for step in steps if step.norm or step.linear]
        readings = _read(self.teacher, steps) if steps else ()
        return replace(self, readings=readings)

    def received(self, batch: int, linear: LinearMap) -> Tensor:
        """Return the rows that a map of the student outside the blocks reads."""
        return self.student.rows(batch, _input(self.student, batch, linear.path))

    def read_by(self, batch: int, path: str) -> Tensor:
        """Return the rows that a module of the teacher reads."""
        return self.teacher.rows(batch, self.readings[batch][path][0])

    def computed(self, batch: int, path: str) -> Tensor:
        """Return the rows that a module of the teacher computes."""
        output = self.readings[batch][path][1]
        assert output is not None  # noqa: S101 - the last output is not asked for
        return self.teacher.rows(batch, output)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A module outside the blocks with its call in the first batch."""

    path: str
    linear: LinearMap | None
    norm: Norm | None


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Surroundings:
    """Modules that run before and behind the blocks, in order."""

    before: tuple[_Step, ...]
    behind: tuple[_Step, ...]
    early: frozenset[str]
    """Parameters that belong to no block and to no module that runs behind the blocks only."""
    late_maps: frozenset[str]
    """Parameters of the linear maps that run behind the blocks only."""


def fit_front(pair: Pair, *, maps_outputs: bool = False) -> list[str]:
    """Set the modules before the blocks.

    Args:
        pair: The models.
        maps_outputs: Whether maps behind the blocks become the teacher's with their inputs mapped,
            where no fit of them follows; normalizations there stay as drawn.

    Returns:
        Parts that were left as drawn, with the reason.
    """
    student_side, teacher_side = _surroundings(pair.student), _surroundings(pair.teacher)
    norms, teacher_norms = (
        [step.norm for step in side.before if step.norm] for side in (student_side, teacher_side)
    )
    fitted = {f"{norm.path}.{name}" for norm in norms for name in ("weight", "bias")}
    sources = {name: weight.detach() for name, weight in pair.teacher.module.named_parameters()}
    unfitted = list[str]()
    with torch.no_grad():
        for name, weight in pair.student.module.named_parameters():
            is_output = maps_outputs and name in student_side.late_maps
            if (name not in student_side.early and not is_output) or name in fitted:
                continue
            source = _paired(name, weight, sources)
            mapped = None if source is None else _mapped(source, weight.shape, pair.stream)
            if mapped is None:
                unfitted.append(f"{name!r}: the teacher has no parameter that fits")
            else:
                weight.copy_(mapped)
    if len(norms) != len(teacher_norms):
        return [*unfitted, "normalizations before the blocks: the teacher has others"]
    pair = pair.reading(teacher_side.before)
    for norm, twin in zip(norms, teacher_norms, strict=True):
        _fit_norm(pair, norm, twin)
    return unfitted


def fit_tail(pair: Pair) -> list[str]:
    """Fit the modules behind the blocks, which are fitted by now.

    Returns:
        Parts that were left as drawn, with the reason.
    """
    student_side, teacher_side = _surroundings(pair.student), _surroundings(pair.teacher)
    kinds = [[step.norm is None for step in side.behind] for side in (student_side, teacher_side)]
    if kinds[0] != kinds[1]:
        return ["the head: the teacher's has other modules"]
    pair, unfitted = pair.reading(teacher_side.behind), list[str]()
    early = {
        id(weight)
        for name, weight in pair.student.module.named_parameters()
        if name in student_side.early
    }
    for number, (step, twin) in enumerate(
        zip(student_side.behind, teacher_side.behind, strict=True)
    ):
        reason = ""
        if step.norm is not None and twin.norm is not None:
            if (step.norm.width, twin.norm.width) == tuple(pair.stream.shape):
                _fit_norm(pair, step.norm, twin.norm)
            else:
                reason = "its width is not that of the states"
        elif step.linear is not None and twin.linear is not None:
            ahead = number + 1 < len(student_side.behind)
            following = (
                (student_side.behind[number + 1], teacher_side.behind[number + 1])
                if ahead
                else (None, None)
            )
            reason = _fit_map(pair, (step.linear, twin.linear), following, early)
        if reason:
            unfitted.append(f"{step.path!r}: {reason}")
    return unfitted


def _fit_map(
    pair: Pair,
    maps: tuple[LinearMap, LinearMap],
    following: Sequence[_Step | None],
    early: Set[int],
) -> str:
    """Fit a map behind the blocks.

    Args:
        pair: The models.
        maps: The student's map and the teacher's.
        following: The step behind each.
        early: Identities of the parameters that are set before the blocks.

    Returns:
        The reason if it was left as drawn.
    """
    linear, teacher_map = maps
    student_next, teacher_next = following
    if id(linear.module.weight) in early:
        # Its weight is the table of tokens, which is set already.
        linear.set_bias(teacher_map)
        return ""
    if linear.sizes[0] == teacher_map.sizes[0]:
        return _fit_outputs(pair, linear, teacher_map)
    if linear.sizes[0] > teacher_map.sizes[0] or student_next is None or teacher_next is None:
        return "its outputs are not those of the teacher's"
    if student_next.linear is not None and teacher_next.linear is not None:
        return _fit_neurons(pair, linear, teacher_map, teacher_next.linear)
    if student_next.norm is None or teacher_next.norm is None:
        return "what follows it is not understood"
    return _fit_straightened(pair, linear, student_next.norm, teacher_next.norm)


def _fit_outputs(pair: Pair, linear: LinearMap, teacher_map: LinearMap) -> str:
    # With the bias of the inner map: the map's own bias takes what it adds.
    moments = Moments(has_bias=linear.has_bias)
    for batch in pair.batches:
        moments.add(pair.received(batch, linear), pair.read_by(batch, teacher_map.path))
    sizes = teacher_map.sizes[1], linear.sizes[1]
    start = torch.zeros(*sizes, dtype=torch.float64)
    if sizes == (pair.stream.shape[1], pair.stream.shape[0]):
        start = pair.stream.mT.clone()
    inner = moments.solve(Affine(start, torch.zeros(sizes[0], dtype=torch.float64)))
    affine = teacher_map.affine
    solution = Affine(affine.weight @ inner.weight, affine.bias + affine.weight @ inner.bias)
    if _are_logits_of_tokens(pair, teacher_map):
        solution = logit_map(solution, _logits(pair, linear, teacher_map), has_bias=linear.has_bias)
    linear.set(solution)
    return ""


def _logits(
    pair: Pair, linear: LinearMap, teacher_map: LinearMap
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows that a student's map reads and the teacher's outputs, batch by batch."""
    for batch in pair.batches:
        received = _input(pair.student, batch, linear.path)
        with torch.no_grad(), passes_of(pair.teacher.module):
            outputs = teacher_map.module(pair.readings[batch][teacher_map.path][0])
        yield (
            pair.student.rows_in_place(batch, received),
            pair.teacher.rows_in_place(batch, outputs),
        )


def _are_logits_of_tokens(pair: Pair, linear: LinearMap) -> bool:
    """Return whether the outputs of a teacher's map are its logits, one for each of its tokens."""
    model, returned = pair.teacher, list[Tensor]()
    if not any(
        isinstance(module, nn.Embedding) and module.num_embeddings == linear.sizes[0]
        for module in model.module.modules()
    ):
        return False
    with ExitStack() as stack, torch.no_grad():
        handle = linear.module.register_forward_hook(lambda *call: returned.append(call[2]))
        stack.callback(handle.remove)
        stack.enter_context(model.around_blocks(0))
        stack.enter_context(passes_of(model.module))
        forward = stack.enter_context(model.model.open_taps((), logits=True))
        logits = forward(model.batches[0]).logits
    # Some models scale or bound what the map returns.
    return logits is not None and torch.equal(logits.flatten(), returned[0].flatten())


def _fit_neurons(pair: Pair, linear: LinearMap, teacher_map: LinearMap, reader: LinearMap) -> str:
    size = linear.sizes[0]
    if reader.sizes[1] != teacher_map.sizes[0]:
        return "what follows it is not understood"
    energy = torch.zeros(teacher_map.sizes[0], dtype=torch.float64)
    for batch in pair.batches:
        energy += pair.read_by(batch, reader.path).square().sum(0)
    energy *= reader.affine.weight.square().sum(0)
    channels = energy.topk(size).indices.sort().values
    moments = Moments(has_bias=linear.has_bias)
    for batch in pair.batches:
        target = pair.computed(batch, teacher_map.path)
        moments.add(pair.received(batch, linear), target[:, channels])
    drawn = linear.affine
    zero = Affine(torch.zeros_like(drawn.weight), torch.zeros_like(drawn.bias))
    linear.set(moments.solve(zero))
    return ""


def _fit_straightened(pair: Pair, linear: LinearMap, student_norm: Norm, norm: Norm) -> str:
    """Fit a map to the input of a normalization, where the activation between is nearly linear.

    Returns:
        The reason if it was left as drawn.
    """
    if (linear.sizes[0], norm.width) != tuple(pair.stream.shape):
        return "its width is not that of the states"
    moments, targets = Moments(has_bias=linear.has_bias), list[Tensor]()
    for batch in pair.batches:
        targets.append(pair.read_by(batch, norm.path) @ pair.stream.mT)
        moments.add(pair.received(batch, linear), targets[-1])
    drawn, values = linear.affine, torch.cat(targets)
    solution = moments.solve(Affine(torch.zeros_like(drawn.weight), torch.zeros_like(drawn.bias)))
    if student_norm.subtracts_mean and linear.has_bias:
        # Positive almost everywhere, and beyond the bend of the activation.
        shift = SHIFT - values.min(0).values.median() + SHIFT * values.std()
        linear.set(Affine(solution.weight, solution.bias + shift))
    else:
        scale = SMALL / values.std()
        linear.set(Affine(scale * solution.weight, scale * solution.bias))
    return ""


def _fit_norm(pair: Pair, norm: Norm, teacher_norm: Norm) -> None:
    sums = ChannelMoments()
    for batch in pair.batches:
        plain = norm.plain(_input(pair.student, batch, norm.path))
        target = pair.computed(batch, teacher_norm.path) @ pair.stream.mT
        sums.add(pair.student.rows(batch, plain), target)
    norm.set_gain(*sums.gain_and_shift(has_shift=norm.has_shift))


def _input(model: CalibratedModel, batch: int, path: str) -> Tensor:
    """Return the input of a module outside the blocks, before which the pass ends."""
    received = list[Tensor]()

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        received.append(args[0])
        raise Stop

    with ExitStack() as stack, torch.no_grad(), suppress(Stop):
        stack.callback(model.module.get_submodule(path).register_forward_pre_hook(record).remove)
        stack.enter_context(model.around_blocks(batch))
        stack.enter_context(passes_of(model.module))
        forward = stack.enter_context(model.model.open_taps((), logits=True))
        forward(model.batches[batch])
    return received[0]


def _read(model: CalibratedModel, steps: Sequence[_Step]) -> Readings:
    """Return the inputs and outputs of modules outside the blocks in each batch.

    The output of a map that comes last is left out: it may be logits of a large vocabulary.
    """
    left_out = steps[-1].path if steps[-1].linear is not None else ""
    readings = list[dict[str, tuple[Tensor, Tensor | None]]]()

    def record_at(path: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            readings[-1][path] = args[0], output

        return record

    def end(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - a hook's
        readings[-1][left_out] = args[0], None
        raise Stop

    with ExitStack() as stack, torch.no_grad():
        for step in steps:
            module = model.module.get_submodule(step.path)
            if step.path == left_out:
                stack.callback(module.register_forward_pre_hook(end).remove)
            else:
                stack.callback(module.register_forward_hook(record_at(step.path)).remove)
        stack.enter_context(passes_of(model.module))
        forward = stack.enter_context(model.model.open_taps((), logits=True))
        for batch, inputs in enumerate(model.batches):
            readings.append({})
            with model.around_blocks(batch), suppress(Stop):
                forward(inputs)
    return readings


def _surroundings(model: CalibratedModel) -> _Surroundings:
    """Return the modules outside the blocks, as the first batch calls them."""
    # Number of blocks that have run before each call.
    calls, num_blocks = list[tuple[int, _Step]](), 0

    def count(*_: object) -> None:
        nonlocal num_blocks
        num_blocks += 1

    def record_at(path: str) -> object:
        def record(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                norm = norm_of(path, module, args[0], output)
                calls.append((num_blocks, _Step(path, linear_map(path, module), norm)))

        return record

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.module.named_modules():
            if path in model.paths:
                stack.callback(module.register_forward_hook(count).remove)
            elif not _is_inside(path, model) and not any(module.children()):
                stack.callback(module.register_forward_hook(record_at(path)).remove)
        stack.enter_context(model.around_blocks(0))
        stack.enter_context(passes_of(model.module))
        forward = stack.enter_context(model.model.open_taps((), logits=True))
        forward(model.batches[0])
    before = tuple(step for number, step in calls if number == 0)
    late = {step.path for number, step in calls if number} - {step.path for step in before}
    early = frozenset(
        name
        for name, _ in model.module.named_parameters()
        if not _is_inside(name, model) and name.rpartition(".")[0] not in late
    )
    behind = tuple(
        step for number, step in calls if number == len(model.paths) and (step.norm or step.linear)
    )
    late_maps = frozenset(
        f"{step.path}.{name}" for step in behind if step.linear for name in ("weight", "bias")
    )
    return _Surroundings(before, behind, early, late_maps)


def _is_inside(path: str, model: CalibratedModel) -> bool:
    return any(path.startswith(f"{block}.") for block in model.paths)


def _paired(name: str, weight: Tensor, sources: dict[str, Tensor]) -> Tensor | None:
    """Return the teacher's parameter of the same name, or with the same end of the name."""
    if name in sources:
        return sources[name]
    end = name.split(".")[-2:]
    candidates = [
        source
        for path, source in sources.items()
        if path.split(".")[-2:] == end and source.ndim == weight.ndim
    ]
    return candidates[0] if len(candidates) == 1 else None


def _mapped(source: Tensor, shape: Sequence[int], stream: Tensor) -> Tensor | None:
    """Return a teacher's parameter with its axis of the states mapped; None if it does not fit."""
    source, sizes = source.to("cpu", torch.float64), tuple(stream.shape)
    if source.ndim != len(shape):
        return None
    pairs = list(zip(shape, source.shape, strict=True))
    if all(size == source_size for size, source_size in pairs):
        return source
    # Tables have the states on their last axis; maps from other features on their first.
    axes = [axis for axis, pair in enumerate(pairs) if pair == sizes]
    if not axes or any(pair[0] != pair[1] for axis, pair in enumerate(pairs) if axis != axes[-1]):
        return None
    return (source.movedim(axes[-1], -1) @ stream.mT).movedim(-1, axes[-1])
