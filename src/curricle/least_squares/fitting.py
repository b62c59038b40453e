"""Closed-form fit of a student to its teacher, block by block in the order of the forward pass.

Axes: row (a counted position), width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from curricle.least_squares.blocks import Anatomy, BlockCall, Part, anatomy, read
from curricle.least_squares.maps import LinearMap, Norm, linear_map, norm_of
from curricle.least_squares.residual import stream_map
from curricle.least_squares.roles import Roles, roles
from curricle.least_squares.solving import Affine, ChannelMoments, Moments
from curricle.least_squares.targets import Encoding, Survey, encoding
from curricle.models.tapped import Inputs, TappedModel

Run = Callable[[nn.Module, Any], Any]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBatch:
    """Inputs of both models, and which positions count."""

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    kept: Tensor | None = None
    """Counted positions, of shape (example, position); None for all."""


@final
@dataclass(slots=True)
class Report:
    """What was fitted and what was left."""

    fitted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@final
class _Model:
    """A model with the arguments of its blocks in every calibration batch."""

    def __init__(self, model: TappedModel, batches: Sequence[Mapping[str, Tensor]], kept: Sequence[Tensor | None]) -> None:
        self.module = model.module
        self.kept = kept
        self.paths = [model.place(number).path for number in range(1, model.depth + 1)]
        self.blocks = [self.module.get_submodule(path) for path in self.paths]
        self.batches = batches
        self.calls: list[list[BlockCall]] = []
        self._roles: dict[Any, list[Roles]] = {}
        self.states: list[Tensor] = []
        for batch in batches:
            calls, state = self._calls(batch)
            self.calls.append(calls)
            self.states.append(state)

    def _calls(self, batch: Mapping[str, Tensor]) -> tuple[list[BlockCall], Tensor]:
        calls: list[tuple[BlockCall, Tensor]] = []

        def before(_: nn.Module, args: Any, keywords: Any) -> None:
            if args:
                calls.append((BlockCall(args[1:], dict(keywords)), args[0]))
            else:
                others = dict(keywords)
                name = next(key for key, value in others.items() if isinstance(value, Tensor))
                state = others.pop(name)
                calls.append((BlockCall((), others, name), state))

        with ExitStack() as stack, torch.no_grad():
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            self.module(**batch)
        return [call for call, _ in calls], calls[0][1]

    def rows(self, number: int, tensor: Tensor) -> Tensor:
        """Return the counted positions of a batch as rows."""
        kept = self.kept[number]
        tensor = tensor.reshape(*self.states[number].shape[:2], -1)
        return tensor[kept] if kept is not None else tensor.flatten(0, 1)

    def anatomy(self, number: int) -> tuple[Anatomy, list[Roles]]:
        block, call, state = self.blocks[number], self.calls[0][number], self.states[0]
        parts = anatomy(block, call, state)
        key = tuple((linear.path, linear.sizes) for part in parts.parts for linear in (*part.inputs, part.output))
        if key not in self._roles:
            probe_call, probe_state = self._probe(number)
            self._roles[key] = [roles(block, probe_call, probe_state, part) for part in parts.parts]
        return parts, self._roles[key]

    def _probe(self, number: int) -> tuple[BlockCall, Tensor]:
        first = {name: _small(tensor) for name, tensor in self.batches[0].items()}
        calls, state = self._calls(first)
        return calls[number], state

    def advance(self, number: int) -> None:
        for batch, state in enumerate(self.states):
            with torch.no_grad():
                self.states[batch] = self.calls[batch][number].run(self.blocks[number], state)


def _small(value: Any) -> Any:
    """Return one example of an input, of a few positions if it has tokens."""
    if not isinstance(value, Tensor):
        return value
    has_tokens = value.ndim == 2 and not value.is_floating_point()
    return value[:1, :PROBED] if has_tokens else value[:1]


PROBED = 5
"""Positions of the example by which roles are found."""


@torch.no_grad()
def fit(student: TappedModel, teacher: TappedModel, batches: Sequence[CalibrationBatch], pairs: Sequence[int] | None = None) -> Report:
    """Fit a student to its teacher.

    Args:
        student: The student; its weights are set.
        teacher: The teacher.
        batches: Calibration batches.
        pairs: The teacher's block that each block of the student ends with.
    """
    report = Report()
    kept = [batch.kept for batch in batches]
    student.module.eval()
    teacher.module.eval()
    theirs = _Model(teacher, [batch.teacher for batch in batches], kept)
    depth = len(theirs.blocks)
    own_paths = [student.place(number).path for number in range(1, student.depth + 1)]
    if pairs is None:
        pairs = [-(-(number + 1) * depth // len(own_paths)) for number in range(len(own_paths))]
    moments = _stream_moments(theirs, (0, *pairs))
    width = student.module.get_submodule(own_paths[0])
    own = _Model(student, [batch.student for batch in batches], kept)
    student_width = own.states[0].shape[-1]
    norms = [module for module in teacher.module.modules() if type(module).__name__.lower().endswith("norm") and getattr(module, "weight", None) is not None]
    keeps_mean = any(Norm("", module).subtracts_mean for module in norms)
    stream = stream_map(moments, student_width, keeps_mean=keeps_mean)
    del width
    _set_front(student.module, teacher.module, own, theirs, stream, report)
    own = _Model(student, [batch.student for batch in batches], kept)
    theirs = _Model(teacher, [batch.teacher for batch in batches], kept)
    begin = 0
    for number, end in enumerate(pairs):
        _fit_block(own, number, theirs, list(range(begin, end)), stream, report)
        own.advance(number)
        for block in range(begin, end):
            theirs.advance(block)
        begin = end
    _fit_tail(own, theirs, stream, report)
    return report


def _stream_moments(model: _Model, depths: Sequence[int]) -> list[Tensor]:
    states = list(model.states)
    moments = []
    for depth in range(len(model.blocks) + 1):
        if depth:
            model.advance(depth - 1)
        if depth in depths:
            rows = [model.rows(number, state).double() for number, state in enumerate(model.states)]
            moments.append(torch.stack([part.mT @ part for part in rows]).sum(0))
    model.states = states
    return moments


def _survey(theirs: _Model, block: int, states: Sequence[Tensor], parts: Sequence[Part], role: Sequence[Roles]) -> list[Survey]:
    module = theirs.blocks[block]
    surveys: list[Survey] = []
    for batch, state in enumerate(states):
        paths = [linear.path for part in parts for linear in (*part.inputs, part.output)]
        reading = read(module, theirs.calls[batch][block], state, paths)
        for index, part in enumerate(parts):
            columns = torch.cat([theirs.rows(batch, reading.outputs[linear.path]) for linear in part.inputs], -1).double()
            columns = torch.cat([columns, torch.ones_like(columns[:, :1])], -1)
            inputs = theirs.rows(batch, reading.inputs[part.output.path]).double()
            if batch == 0:
                surveys.append(Survey(part, role[index], columns.mT @ columns, inputs.mT @ inputs))
            else:
                surveys[index].columns += columns.mT @ columns
                surveys[index].inputs += inputs.mT @ inputs
    return surveys


def _fit_block(own: _Model, number: int, theirs: _Model, blocks: list[int], stream: Tensor, report: Report) -> None:
    name = own.paths[number]
    found, found_roles = own.anatomy(number)
    if found.reason:
        report.left.append(f"{name}: {found.reason}")
        return
    teacher = [theirs.anatomy(block) for block in blocks]
    for block, (parts, _) in zip(blocks, teacher, strict=True):
        if parts.reason or len(parts.parts) != len(found.parts):
            report.left.append(f"{name}: {theirs.paths[block]}: {parts.reason or 'other parts'}")
            return
    # Inputs of the teacher's blocks.
    inputs = [list(theirs.states)]
    for block in blocks[:-1]:
        inputs.append([theirs.calls[batch][block].run(theirs.blocks[block], state) for batch, state in enumerate(inputs[-1])])
    surveys = [
        _survey(theirs, block, inputs[index], teacher[index][0].parts, teacher[index][1])
        for index, block in enumerate(blocks)
    ]
    fit_ = _BlockFit(own, number, theirs, blocks, stream, inputs, [entry[0].parts for entry in teacher], surveys, report)
    stages = sorted({part.stage for part in found.parts})
    for stage in stages:
        members = [index for index, part in enumerate(found.parts) if part.stage == stage]
        fit_.stage(found.parts, found_roles, members, is_last=stage == stages[-1])


@final
class _BlockFit:
    def __init__(self, own: _Model, number: int, theirs: _Model, blocks: list[int], stream: Tensor, inputs: list[list[Tensor]], parts: list[tuple[Part, ...]], surveys: list[list[Survey]], report: Report) -> None:
        self.own, self.number, self.theirs, self.blocks = own, number, theirs, blocks
        self.stream, self.inputs, self.parts, self.surveys = stream, inputs, parts, surveys
        self.report = report

    def own_reading(self, batch: int, paths: Sequence[str], stop: str = ""):
        return read(self.own.blocks[self.number], self.own.calls[batch][self.number], self.own.states[batch], paths, stop_at=stop)

    def their_reading(self, index: int, batch: int, paths: Sequence[str]):
        return read(self.theirs.blocks[self.blocks[index]], self.theirs.calls[batch][self.blocks[index]], self.inputs[index][batch], paths)

    def batches(self) -> range:
        return range(len(self.own.states))

    def stage(self, parts: Sequence[Part], role: Sequence[Roles], members: Sequence[int], *, is_last: bool) -> None:
        name = self.own.paths[self.number]
        first, last = 0, len(self.blocks) - 1
        lead = parts[members[0]]
        is_first = lead.stage == 0
        for member in members:
            part = parts[member]
            if part.norm is not None:
                their = self.parts[first if is_first else last][member].norm
                assert their is not None
                self.norm(part.norm, their, first if is_first else last)
        encodings: list[Encoding] = []
        for member in members:
            part = parts[member]
            surveys = [survey[member] for survey in self.surveys]
            reason = role[member].reason or next((s.roles.reason for s in surveys if s.roles.reason), "")
            if reason or bool(role[member].heads) != bool(surveys[0].roles.heads):
                self.report.left.append(f"{name}.{part.inputs[0].path}: {reason or 'another kind'}")
                encodings.append(None)
                continue
            code = encoding(role[member], part, surveys, self.stream)
            encodings.append(code)
            self.readers(part, member, code)
        self.writers(parts, members, encodings, is_last=is_last)
        for member in members:
            part = parts[member]
            if part.end_norm is not None:
                their = self.parts[last][member].end_norm
                self.norm(part.end_norm, their, last)
        self.report.fitted += [f"{name}: {', '.join(l.path for l in parts[m].inputs)} -> {parts[m].output.path}" for m in members]

    def norm(self, own: Norm, their: Norm, index: int) -> None:
        sums = ChannelMoments()
        for batch in self.batches():
            received = self.own_reading(batch, [own.path], stop=own.path).inputs[own.path]
            target = self.their_reading(index, batch, [their.path]).outputs[their.path]
            sums.add(self.own.rows(batch, own.plain(received)), self.theirs.rows(batch, target).double() @ self.stream.mT)
        own.set_gain(*sums.gain_and_shift(has_shift=own.has_shift))

    def readers(self, part: Part, member: int, code: Encoding) -> None:
        starts = torch.tensor([0, *part.widths]).cumsum(0).tolist()
        sums = [Moments(has_bias=linear.has_bias) for linear in part.inputs]
        for batch in self.batches():
            lead = part.inputs[0].path
            received = self.own.rows(batch, self.own_reading(batch, [lead], stop=lead).inputs[lead])
            target = 0
            for index, matrix in enumerate(code.columns):
                their = self.parts[index][member]
                reading = self.their_reading(index, batch, [linear.path for linear in their.inputs])
                columns = torch.cat([self.theirs.rows(batch, reading.outputs[linear.path]) for linear in their.inputs], -1)
                target = target + columns.double() @ matrix.mT
            for linear_index, linear in enumerate(part.inputs):
                chosen = slice(starts[linear_index], starts[linear_index + 1])
                sums[linear_index].add(received, target[:, chosen])
        for index, linear in enumerate(part.inputs):
            chosen = slice(starts[index], starts[index + 1])
            weight, bias = 0, 0
            for number, matrix in enumerate(code.columns):
                their = self.parts[number][member]
                whole = [entry.affine for entry in their.inputs]
                weight = weight + matrix[chosen] @ torch.cat([entry.weight for entry in whole]) @ self.stream.mT
                bias = bias + matrix[chosen] @ torch.cat([entry.bias for entry in whole])
            solution = sums[index].solve(Affine(weight, bias))
            drawn = linear.affine
            is_set = code.is_set[chosen][:, None]
            linear.set(Affine(torch.where(is_set, solution.weight, drawn.weight), torch.where(is_set[:, 0], solution.bias, drawn.bias)))

    def writers(self, parts: Sequence[Part], members: Sequence[int], encodings: Sequence[Encoding], *, is_last: bool) -> None:
        outputs = [parts[member].output for member in members]
        has_bias = outputs[0].has_bias
        sums = Moments(has_bias=has_bias)
        last = len(self.blocks) - 1
        following = None if is_last else next(part for part in parts if part.stage == parts[members[0]].stage + 1)
        for batch in self.batches():
            paths = [linear.path for linear in outputs]
            lead = parts[members[0]]
            reads = lead.norm.path if lead.norm is not None else lead.inputs[0].path
            reading = self.own_reading(batch, [*paths, reads], stop="" if len(outputs) > 1 else paths[0])
            received = torch.cat([self.own.rows(batch, reading.inputs[path]) for path in paths], -1)
            state = self.own.rows(batch, reading.inputs[reads])
            target = self.their_end(batch, parts, members, following)
            sums.add(received, target @ self.stream.mT - state.double())
        prior_weight = []
        prior_bias = torch.zeros(len(self.stream), dtype=torch.float64)
        for member, code in zip(members, encodings, strict=True):
            affine = parts[member].output.affine
            if code is None:
                prior_weight.append(torch.zeros_like(affine.weight))
                continue
            weight = 0
            for index, decode in enumerate(code.inputs):
                their = self.parts[index][member].output.affine
                weight = weight + self.stream @ their.weight @ decode
                prior_bias = prior_bias + self.stream @ their.bias
            prior_weight.append(weight)
        solution = sums.solve(Affine(torch.cat(prior_weight, 1), prior_bias))
        start = 0
        for position, linear in enumerate(outputs):
            size = linear.sizes[1]
            bias = solution.bias if position == 0 else torch.zeros_like(solution.bias)
            linear.set(Affine(solution.weight[:, start : start + size], bias))
            start += size

    def their_end(self, batch: int, parts: Sequence[Part], members: Sequence[int], following: Part | None) -> Tensor:
        """Return the teacher's state after a stage, before a normalization of the sum."""
        last = len(self.blocks) - 1
        their = self.parts[last]
        end_norm = their[members[-1]].end_norm
        if end_norm is not None:
            return self.theirs.rows(batch, self.their_reading(last, batch, [end_norm.path]).inputs[end_norm.path]).double()
        if following is None:
            reading = self.their_reading(last, batch, [])
            return self.theirs.rows(batch, reading.result).double()
        index = next(i for i, part in enumerate(their) if part.stage == their[members[0]].stage + 1)
        part = their[index]
        path = part.norm.path if part.norm is not None else part.inputs[0].path
        return self.theirs.rows(batch, self.their_reading(last, batch, [path]).inputs[path]).double()


def _set_front(student: nn.Module, teacher: nn.Module, own: _Model, theirs: _Model, stream: Tensor, report: Report) -> None:
    """Set what lies before the blocks, by the names of its parameters, and fit its normalizations."""
    def inside(path: str, model: _Model) -> bool:
        return any(path.startswith(f"{block}.") for block in model.paths)

    norms_own = _front_norms(student, own)
    norms_their = _front_norms(teacher, theirs)
    fitted_names = {f"{norm.path}.{kind}" for norm in norms_own for kind in ("weight", "bias")}
    front = _front_parameters(student, own)
    sources = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        if name not in front or name in fitted_names:
            continue
        source = sources.get(name)
        mapped = None if source is None else _mapped(source.detach().double(), parameter.shape, stream)
        if mapped is None:
            report.left.append(f"{name}: no parameter of the teacher that fits")
            continue
        parameter.copy_(mapped)
        report.fitted.append(name)
    for norm, other in zip(norms_own, norms_their, strict=False):
        sums = ChannelMoments()
        for batch in range(len(own.batches)):
            received = read_model(student, own.batches[batch], norm.path)[0]
            target = read_model(teacher, theirs.batches[batch], other.path)[1]
            sums.add(own.rows(batch, norm.plain(received)), theirs.rows(batch, target).double() @ stream.mT)
        norm.set_gain(*sums.gain_and_shift(has_shift=norm.has_shift))
        report.fitted.append(norm.path)


def read_model(module: nn.Module, batch: Mapping[str, Tensor], path: str) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.get_submodule(path).register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        module(**batch)
    finally:
        handle.remove()
    return seen[0]


def _order(module: nn.Module, model: _Model) -> tuple[list[tuple[str, nn.Module, Tensor, Tensor]], int, int]:
    """Return leaf calls of the first batch, outside the blocks, split at first and last block."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    marks: list[int] = []
    with ExitStack() as stack:
        for path, inner in module.named_modules():
            if path in model.paths:
                stack.callback(inner.register_forward_hook(lambda *_: marks.append(len(calls))).remove)
            elif not any(inner.children()) and not any(path.startswith(f"{block}.") for block in model.paths):
                def hook(mod: nn.Module, args: Any, output: Any, path: str = path) -> None:
                    if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                        calls.append((path, mod, args[0], output))
                stack.callback(inner.register_forward_hook(hook).remove)
        module(**model.batches[0])
    return calls, marks[0], marks[-1]


def _front_norms(module: nn.Module, model: _Model) -> list[Norm]:
    calls, first, _ = _order(module, model)
    found = [norm_of(path, inner, received, returned) for path, inner, received, returned in calls[:first]]
    return [norm for norm in found if norm is not None]


def _front_parameters(module: nn.Module, model: _Model) -> set[str]:
    """Return parameters neither in a block nor in a module that runs after the blocks."""
    calls, first, _ = _order(module, model)
    late = {path for path, *_ in calls[first:]} - {path for path, *_ in calls[:first]}
    return {
        name
        for name, _ in module.named_parameters()
        if not any(name.startswith(f"{block}.") for block in model.paths)
        and name.rpartition(".")[0] not in late
    }


def _mapped(source: Tensor, shape: torch.Size, stream: Tensor) -> Tensor | None:
    """Return a teacher's parameter with every axis of the stream mapped; None if it does not fit."""
    if len(shape) != source.ndim:
        return None
    student_width, teacher_width = stream.shape
    mapped = source
    axes = [axis for axis in range(source.ndim) if (shape[axis], source.shape[axis]) == (student_width, teacher_width)]
    # Tables have the stream last, maps into it first.
    others_fit = all(shape[axis] == source.shape[axis] for axis in range(source.ndim) if axis not in axes[-1:])
    if student_width == teacher_width and shape == source.shape:
        return source
    if axes and others_fit:
        axis = axes[-1]
        return (mapped.movedim(axis, -1) @ stream.mT).movedim(-1, axis)
    return mapped if mapped.shape == shape else None


def _fit_tail(own: _Model, theirs: _Model, stream: Tensor, report: Report) -> None:
    """Fit what runs after the blocks: normalizations and the maps to the outputs."""
    calls, _, last = _order(own.module, own)
    other_calls, _, other_last = _order(theirs.module, theirs)
    mine = [entry for entry in calls[last:] if _kind(entry)]
    others = [entry for entry in other_calls[other_last:] if _kind(entry)]
    if [_kind(entry) for entry in mine] != [_kind(entry) for entry in others]:
        report.left.append("the head: other modules than the teacher's")
        return
    tables = {id(parameter) for name, parameter in own.module.named_parameters() if name in _front_parameters(own.module, own)}
    for (path, module, received, returned), (other_path, other, other_received, other_returned) in zip(mine, others, strict=True):
        norm = norm_of(path, module, received, returned)
        twin = norm_of(other_path, other, other_received, other_returned)
        if norm is not None and twin is not None:
            if (norm.width, twin.width) != tuple(stream.shape):
                report.left.append(path)
                continue
            sums = ChannelMoments()
            for batch in range(len(own.batches)):
                own_in = read_model(own.module, own.batches[batch], path)[0]
                target = read_model(theirs.module, theirs.batches[batch], other_path)[1]
                sums.add(own_in_rows(own, batch, norm.plain(own_in)), own_in_rows(theirs, batch, target).double() @ stream.mT)
            norm.set_gain(*sums.gain_and_shift(has_shift=norm.has_shift))
            report.fitted.append(path)
            continue
        linear, their = linear_map(path, module), linear_map(other_path, other)
        assert linear is not None and their is not None
        if id(module.weight) in tables:
            report.left.append(f"{path}: tied to the embeddings")
            continue
        if linear.sizes[0] != their.sizes[0]:
            report.left.append(f"{path}: its outputs have another number than the teacher's")
            continue
        sums = Moments(has_bias=linear.has_bias)
        for batch in range(len(own.batches)):
            own_in = read_model(own.module, own.batches[batch], path)[0]
            target = read_model(theirs.module, theirs.batches[batch], other_path)[0]
            sums.add(own_in_rows(own, batch, own_in), own_in_rows(theirs, batch, target))
        prior = Affine(stream.mT.clone(), stream.new_zeros(stream.shape[1])) if (linear.sizes[1], their.sizes[1]) == tuple(stream.shape) else Affine(torch.zeros(their.sizes[1], linear.sizes[1], dtype=torch.float64), torch.zeros(their.sizes[1], dtype=torch.float64))
        back = sums.solve(prior)
        affine = their.affine
        linear.set(Affine(affine.weight @ back.weight, affine.bias + affine.weight @ back.bias))
        report.fitted.append(path)


def own_in_rows(model: _Model, batch: int, tensor: Tensor) -> Tensor:
    if tensor.shape[:2] == model.states[batch].shape[:2]:
        return model.rows(batch, tensor)
    return tensor.reshape(-1, tensor.shape[-1])


def _kind(entry: tuple[str, nn.Module, Tensor, Tensor]) -> str:
    path, module, received, returned = entry
    if norm_of(path, module, received, returned) is not None:
        return "norm"
    return "map" if linear_map(path, module) is not None else ""
