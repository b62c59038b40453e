"""Fit of one block of a student to the blocks of its teacher that it stands for.

Within a block the order is that of its pass, so that each map reads the student's states by
then, errors included: normalizations before a sublayer, the maps that read, the map that writes,
the normalization after it.

- The gain and shift of a normalization are those of least error to the mapped output of the
  teacher's.
- The maps that read are fitted to the targets of `sublayer_targets`.
- The map that writes is fitted to the mapped next state of the teacher less the state of the
  student. Where a block stands for several, the state after attention is the one before them plus
  all that their attention writes.

Axes: row, width, column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from curricle.least_squares.calibrated import CalibratedModel, Understood
from curricle.least_squares.flops import passes_of
from curricle.least_squares.maps import LinearMap, Norm
from curricle.least_squares.solving import Affine, ChannelMoments, Moments
from curricle.least_squares.sublayer_targets import Encoding, Survey, encoding
from curricle.least_squares.sublayers import Reading, Sublayer, read


@final
@dataclass(frozen=True, slots=True, eq=False)
class TeacherBlock:
    """A block of the teacher, and all that it computes in each batch."""

    understood: Understood
    states: Sequence[Tensor]
    """Its input in each batch."""
    readings: Sequence[Reading]
    """Tensors of its maps and normalizations."""

    @property
    def sublayers(self) -> Sequence[Sublayer]:
        """Return its sublayers."""
        return self.understood.sublayers


def teacher_block(model: CalibratedModel, number: int) -> TeacherBlock:
    """Return a block of a teacher, and advance the teacher behind it."""
    understood, states = model.understood(number), model.states
    paths = [
        module.path
        for sublayer in understood.sublayers
        for module in (*sublayer.inputs, sublayer.output, sublayer.norm, sublayer.end_norm)
        if module is not None
    ]
    calls = (calls[number] for calls in model.calls)
    with passes_of(model.module):
        readings = [
            read(model.blocks[number], call, state, paths)
            for call, state in zip(calls, states, strict=True)
        ]
    model.hand_on(reading.outputs[""] for reading in readings)
    return TeacherBlock(understood, states, readings)


def obstacle(student: Understood, teachers: Sequence[Understood]) -> str:
    """Return the reason why a block cannot be fitted; empty if there is none."""
    if student.reason:
        return student.reason
    for teacher in teachers:
        if teacher.reason:
            return f"of the teacher's, {teacher.reason}"
        if [sublayer.form for sublayer in teacher.sublayers] != [
            sublayer.form for sublayer in student.sublayers
        ]:
            return "the teacher's has other sublayers"
    return ""


def mismatches(student: Understood, teachers: Sequence[Understood]) -> dict[int, str]:
    """Return the sublayers whose maps that read have no targets, with the reasons.

    Args:
        student: A block of the student whose `obstacle` is empty.
        teachers: The teacher's blocks that it stands for.

    Returns:
        Reason by the number of the sublayer.
    """
    reason_by_member = dict[int, str]()
    for member in range(len(student.sublayers)):
        reasons = [_mismatch(student, teacher, member) for teacher in teachers]
        if any(reasons):
            reason_by_member[member] = next(filter(None, reasons))
    return reason_by_member


def _mismatch(student: Understood, teacher: Understood, member: int) -> str:
    """Return the reason why a sublayer has no counterpart; empty if it has."""
    role, teacher_role = student.roles[member], teacher.roles[member]
    if role.reason or teacher_role.reason:
        return role.reason or teacher_role.reason
    if bool(role.heads) != bool(teacher_role.heads):
        return "the teacher's is of another kind"
    if role.neurons is not None and teacher_role.neurons is not None:
        gates = role.neurons.multiplied, teacher_role.neurons.multiplied
        if (gates[0] is None) != (gates[1] is None):
            return "one of both has gates"
    widths = [
        [norm.width for norm in block.sublayers[member].inner_norms] for block in (student, teacher)
    ]
    if widths[0] != widths[1]:
        return "normalizations inside it have other widths than the teacher's"
    return ""


@torch.no_grad()
def _computed(module: Norm | LinearMap, received: Tensor) -> Tensor:
    """Return the output of a map or normalization."""
    output: Tensor = module.module(received)
    return output


def _zeros(size: int) -> Tensor:
    return torch.zeros(size, size, dtype=torch.float64)


def _add_block(moments: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add the moments among some columns of the rows."""
    block = rows[:, columns]
    moments[columns[:, None], columns] += block.mT @ block


@final
class BlockFit:
    """A block of the student, and the teacher's blocks that it stands for."""

    def __init__(
        self,
        student: CalibratedModel,
        number: int,
        teacher: CalibratedModel,
        *,
        stream: Tensor,
        understood: Understood,
        teachers: Sequence[TeacherBlock],
    ) -> None:
        """Take a pair whose `obstacle` is empty.

        Args:
            student: The student; its states are the inputs of the block. The fit hands on those
                behind it.
            number: Number of the block.
            teacher: The teacher.
            stream: Map from the teacher's states to the student's.
            understood: Sublayers of the student's block.
            teachers: The teacher's blocks, in order.
        """
        self._student, self._number, self._teacher = student, number, teacher
        self._stream, self._teachers = stream, teachers
        self._sublayers, self._roles = understood.sublayers, understood.roles
        self._mismatches = mismatches(understood, [teacher.understood for teacher in teachers])
        self._surveys = [self._survey(block) for block in teachers]
        self._states = list(student.states)
        """The state that the next sublayers read, in each batch."""

    def fit(self) -> dict[str, str]:
        """Set the weights of the block.

        Returns:
            Reasons by the first map of each sublayer whose maps that read are left as drawn.
        """
        stages = [sublayer.stage for sublayer in self._sublayers]
        for stage in dict.fromkeys(stages):
            members = [index for index, number in enumerate(stages) if number == stage]
            self._fit_stage(members)
        self._student.hand_on(self._states)
        return {
            self._sublayers[member].inputs[0].path: reason
            for member, reason in self._mismatches.items()
        }

    def _fit_stage(self, members: Sequence[int]) -> None:
        """Fit the sublayers that read one state."""
        first = self._sublayers[members[0]].stage == 0
        fitted = dict[int, Encoding]()
        for member in members:
            sublayer = self._sublayers[member]
            # The state is that before the first of the teacher's blocks, or within the last.
            source = 0 if first else len(self._teachers) - 1
            if sublayer.norm is not None:
                self._fit_norm(sublayer.norm, member, source)
            if member in self._mismatches:
                continue
            self._copy_inner_norms(member)
            surveys = [survey[member] for survey in self._surveys]
            fitted[member] = encoding(self._roles[member], sublayer, surveys, self._stream)
            self._fit_readers(member, fitted[member])
        self._fit_writers(members, fitted)
        last = len(self._teachers) - 1
        for member in members:
            end_norm = self._sublayers[member].end_norm
            if end_norm is not None:
                self._fit_norm(end_norm, member, last, is_end=True)
                self._states = [_computed(end_norm, state) for state in self._states]

    def _copy_inner_norms(self, member: int) -> None:
        teacher_norms = self._teachers[-1].sublayers[member].inner_norms
        for norm, teacher_norm in zip(
            self._sublayers[member].inner_norms, teacher_norms, strict=True
        ):
            norm.copy(teacher_norm)

    def _batches(self) -> range:
        return range(len(self._student.states))

    def _survey(self, block: TeacherBlock) -> list[Survey]:
        """Return the second moments of each sublayer of a teacher's block."""
        surveys = [
            Survey(
                sublayer, role, _zeros(sum(sublayer.widths) + 1), _zeros(sublayer.output.sizes[1])
            )
            for sublayer, role in zip(block.sublayers, block.understood.roles, strict=True)
        ]
        for survey in surveys:
            for batch in self._batches():
                self._add_to(survey, block.readings[batch], batch)
        return surveys

    def _add_to(self, survey: Survey, reading: Reading, batch: int) -> None:
        """Add the moments of a batch that targets depend on."""
        inputs = self._teacher.rows(batch, reading.inputs[survey.sublayer.output.path])
        if survey.roles.neurons is not None:
            survey.inputs.add_(inputs.mT @ inputs)
        if not survey.roles.heads:
            return
        columns = self._columns(survey.sublayer, reading, batch)
        columns = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
        last, sums = columns.shape[1] - 1, columns.sum(0)
        survey.columns[last] += sums
        survey.columns[:last, last] += sums[:last]
        for group in {tuple(head.keys.tolist()): head.keys for head in survey.roles.heads}.values():
            _add_block(survey.columns, columns, group)
        for head in survey.roles.heads:
            _add_block(survey.columns, columns, head.queries)
            _add_block(survey.inputs, inputs, head.outputs)

    def _columns(self, sublayer: Sublayer, reading: Reading, batch: int) -> Tensor:
        rows = [
            self._teacher.rows(batch, reading.outputs[linear.path]) for linear in sublayer.inputs
        ]
        return torch.cat(rows, dim=1)

    def _fit_norm(self, norm: Norm, member: int, index: int, *, is_end: bool = False) -> None:
        """Fit a normalization before a sublayer, or that of the sum behind it."""
        sublayer, sums = self._teachers[index].sublayers[member], ChannelMoments()
        teacher_norm = sublayer.end_norm if is_end else sublayer.norm
        # A teacher's sublayer may read its state as it is, as the first of ModernBERT does.
        path = sublayer.state_path if teacher_norm is None else teacher_norm.path
        for batch in self._batches():
            reading = self._teachers[index].readings[batch]
            target = reading.inputs[path] if teacher_norm is None else reading.outputs[path]
            sums.add(
                self._student.rows(batch, norm.plain(self._states[batch])),
                self._teacher.rows(batch, target) @ self._stream.mT,
            )
        norm.set_gain(*sums.gain_and_shift(has_shift=norm.has_shift))

    def _fit_readers(self, member: int, code: Encoding) -> None:
        sublayer = self._sublayers[member]
        teacher_sublayers = [teacher.sublayers[member] for teacher in self._teachers]
        sums = {
            has_bias: Moments(has_bias=has_bias)
            for has_bias in {linear.has_bias for linear in sublayer.inputs}
        }
        for batch in self._batches():
            state = self._states[batch]
            read_state = state if sublayer.norm is None else _computed(sublayer.norm, state)
            received = self._student.rows(batch, read_state)
            # Targets are linear in all columns of the teacher, so that sums over these suffice.
            columns = [
                self._columns(teacher.sublayers[member], teacher.readings[batch], batch)
                for teacher in self._teachers
            ]
            for moments in sums.values():
                moments.add(received, torch.cat(columns, dim=1))
        matrix, starts = torch.cat(code.columns, dim=1), accumulate(sublayer.widths, initial=0)
        for linear, start in zip(sublayer.inputs, starts, strict=False):
            place = slice(start, start + linear.sizes[0])
            moments = sums[linear.has_bias].mapped(matrix[place])
            solution = moments.solve(self._reader_prior(teacher_sublayers, code, place))
            drawn, is_set = linear.affine, code.is_set[place]
            linear.set(
                Affine(
                    torch.where(is_set[:, None], solution.weight, drawn.weight),
                    torch.where(is_set, solution.bias, drawn.bias),
                )
            )

    def _reader_prior(
        self, teacher_sublayers: Sequence[Sublayer], code: Encoding, columns: slice
    ) -> Affine:
        """Return the teacher's maps as the student would have them."""
        weight = torch.zeros(columns.stop - columns.start, len(self._stream), dtype=torch.float64)
        bias = torch.zeros(len(weight), dtype=torch.float64)
        for teacher_sublayer, matrix in zip(teacher_sublayers, code.columns, strict=True):
            maps = [linear.affine for linear in teacher_sublayer.inputs]
            weights = torch.cat([entry.weight for entry in maps])
            weight += matrix[columns] @ weights @ self._stream.mT
            bias += matrix[columns] @ torch.cat([entry.bias for entry in maps])
        return Affine(weight, bias)

    def _fit_writers(self, members: Sequence[int], fitted: dict[int, Encoding]) -> None:
        sublayers = [self._sublayers[member] for member in members]
        paths = [sublayer.output.path for sublayer in sublayers]
        model, sums = self._student, Moments(has_bias=sublayers[0].output.has_bias)
        block, readings = model.blocks[self._number], list[Reading]()
        # All maps of a stage write one sum; the last of them ends the pass.
        for batch, state in enumerate(model.states):
            call = model.calls[batch][self._number]
            readings.append(read(block, call, state, paths, stop_at=paths[-1]))
            received = [model.rows(batch, readings[batch].inputs[path]) for path in paths]
            target = self._next_state(batch, members) @ self._stream.mT
            sums.add(torch.cat(received, dim=1), target - model.rows(batch, self._states[batch]))
        solution = sums.solve(self._writer_prior(members, fitted))
        sizes = [sublayer.output.sizes[1] for sublayer in sublayers]
        # A single bias stands for all.
        biases = [solution.bias, *(torch.zeros_like(solution.bias) for _ in sublayers[1:])]
        for sublayer, weight, bias in zip(
            sublayers, solution.weight.split(sizes, dim=1), biases, strict=True
        ):
            sublayer.output.set(Affine(weight, bias))
        for batch, reading in enumerate(readings):
            for sublayer in sublayers:
                change = _computed(sublayer.output, reading.inputs[sublayer.output.path])
                state = self._states[batch]
                self._states[batch] = state + change.reshape(state.shape)

    def _writer_prior(self, members: Sequence[int], fitted: dict[int, Encoding]) -> Affine:
        """Return the teacher's maps that write, as the student would have them."""
        weights, bias = list[Tensor](), torch.zeros(len(self._stream), dtype=torch.float64)
        for member in members:
            weight = torch.zeros(*self._sublayers[member].output.sizes, dtype=torch.float64)
            if member in fitted:
                for teacher, decode in zip(self._teachers, fitted[member].inputs, strict=True):
                    affine = teacher.sublayers[member].output.affine
                    weight += self._stream @ affine.weight @ decode
                    bias += self._stream @ affine.bias
            weights.append(weight)
        return Affine(torch.cat(weights, dim=1), bias)

    def _next_state(self, batch: int, members: Sequence[int]) -> Tensor:
        """Return the teacher's state after a stage, before a normalization of the sum."""
        last, stage = len(self._teachers) - 1, self._sublayers[members[0]].stage
        end_norm = self._teachers[last].sublayers[members[-1]].end_norm
        if end_norm is not None:
            reading = self._teachers[last].readings[batch]
            return self._teacher.rows(batch, reading.inputs[end_norm.path])
        if stage == self._sublayers[-1].stage:
            return self._teacher.rows(batch, self._teachers[last].readings[batch].outputs[""])
        total = self._teacher.rows(batch, self._teachers[0].states[batch])
        for teacher in self._teachers:
            before, after = (
                next(
                    sublayer.state_path
                    for sublayer in teacher.sublayers
                    if sublayer.stage == number
                )
                for number in (stage, stage + 1)
            )
            reading = teacher.readings[batch]
            rows = [self._teacher.rows(batch, reading.inputs[path]) for path in (before, after)]
            total = total + rows[1] - rows[0]
        return total
