"""Closed-form fit of a feed-forward network to its teacher, map by map.

A network without a stream of states is a chain of weighted maps with normalizations, activations
and pooling between them, which run as they are. Each unit of the student stands for a unit of the
teacher, chosen by `unit_selection`; each map is fitted to the values of the chosen units before
their activation, from the student's states by then. The last map is fitted to the outputs of
the teacher's last. Sums are added up batch by batch, so that memory does not grow with their
number.

- Maps are paired in their order, those whose outputs have the same places. A linear map of a
  student may stand for a convolution: its units are then chosen among the channels at all places.
- A normalization gets the statistics of the calibration, and gain and shift of least error to the
  output of the teacher's. Where only the teacher has one, directly behind its map, the student's
  map is fitted to its output.

Axes: row, column, unit (see `chain_maps`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from curricle.colocation import beside
from curricle.least_squares.chain import Chain, Link, Reading, chain, read
from curricle.least_squares.chain_maps import UnitNorm, WeightedMap
from curricle.least_squares.fitting import CalibrationBatch
from curricle.least_squares.flops import StartFlops
from curricle.least_squares.solving import Affine, ChannelMoments, Moments
from curricle.least_squares.unit_selection import UnitSelection
from curricle.models.restoring import modes_kept, weights_kept
from curricle.models.tapped import TappedModel


@final
@dataclass(frozen=True, slots=True, eq=False)
class ChainPair:
    """A link of the student and the teacher's link that it stands for."""

    number: int
    """Number of the student's link."""
    teacher_number: int
    """Number of the teacher's link."""
    link: Link
    twin: Link
    following: Link | None
    """The teacher's next link; None for the last."""

    @property
    def norms(self) -> tuple[tuple[UnitNorm, str], ...]:
        """Return the student's normalizations with the teacher's modules that they are fitted to.

        Left out are those that have no counterpart.
        """
        norms, twins = self.link.norms, self.twin.norms
        if [norm.is_direct for norm in norms] == [norm.is_direct for norm in twins]:
            return tuple(
                (norm, counterpart.path) for norm, counterpart in zip(norms, twins, strict=True)
            )
        direct = [norm for norm in norms if norm.is_direct]
        return tuple((norm, self.twin.direct_path) for norm in direct)

    @property
    def target_path(self) -> str:
        """Return the module of the teacher whose output the student's map is fitted to."""
        has_direct = any(norm.is_direct for norm in self.link.norms)
        return self.twin.map.path if has_direct else self.twin.direct_path

    @property
    def has_placed_units(self) -> bool:
        """Return whether a unit of the teacher is a channel at one place."""
        return self.link.leading != self.twin.leading

    @property
    def num_teacher_units(self) -> int:
        """Return the number of units among which the student's are chosen."""
        places = math.prod(self.twin.leading[1:]) if self.has_placed_units else 1
        return self.twin.num_units * places


@final
@dataclass(frozen=True, slots=True, eq=False)
class ChainPlan:
    """Maps that a fit of chains sets, and those that it leaves as drawn."""

    pairs: tuple[ChainPair, ...]
    unfitted: tuple[str, ...]
    """Maps that stay as drawn, with the reasons."""
    flops: tuple[int, int] = (0, 0)
    """FLOPs of student and teacher by which this plan was made."""

    @property
    def numbers(self) -> list[tuple[int, int]]:
        """Return the numbers, from 1, of the maps of student and teacher that are paired."""
        return [(pair.number + 1, pair.teacher_number + 1) for pair in self.pairs]

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Return the numbers of units of student and teacher in each pair."""
        return [(pair.link.num_units, pair.num_teacher_units) for pair in self.pairs]

    @property
    def is_fit(self) -> bool:
        """Return whether a map is set besides the last.

        Of a head behind blocks as drawn there is nothing to start from.
        """
        return any(pair.following is not None for pair in self.pairs)


def inspect_chain(student: TappedModel, teacher: TappedModel, batch: CalibrationBatch) -> ChainPlan:
    """Return the maps that `fit_chain` would set, without changing a weight.

    Args:
        student: The student.
        teacher: The teacher.
        batch: A batch of at least two different examples that both can read.
    """
    with _evaluated(student, teacher), StartFlops(teacher.module) as flops:
        plan = _plan(chain(student, batch.student), chain(teacher, batch.teacher))
    return replace(plan, flops=(flops.student, flops.teacher))


def planned_chain_flops(
    plan: ChainPlan,
    student: TappedModel,
    teacher: TappedModel,
    batch: CalibrationBatch,
    *,
    number: int,
) -> tuple[int, int]:
    """Return the FLOPs of `fit_chain`, of the student and of the teacher.

    The maps of the plan are fitted to one batch and to two, without the operations that are
    counted. The result is exact if all batches have the shapes of this one, with as many positions
    that count, and no layer between two maps mixes units so that they are chosen by energy.

    Args:
        plan: The plan by `inspect_chain`, which `fit_chain` makes once more.
        student: The student; its weights are the same afterwards.
        teacher: The teacher.
        batch: A batch of the calibration.
        number: Number of batches.
    """
    counts = list[tuple[int, int]]()
    with _evaluated(student, teacher), weights_kept(student.module):
        for batches in ([batch], [batch, batch]):
            with StartFlops(teacher.module, computes=False) as flops:
                _fit_pairs(plan.pairs, student, teacher, batches)
            counts.append((flops.student, flops.teacher))
    student_flops, teacher_flops = (
        of_plan + one + (number - 1) * (two - one)
        for of_plan, one, two in zip(plan.flops, *counts, strict=True)
    )
    return student_flops, teacher_flops


def fit_chain(
    student: TappedModel, teacher: TappedModel, batches: Sequence[CalibrationBatch]
) -> tuple[str, ...]:
    """Fit a student to its teacher.

    Args:
        student: The student; its weights are set.
        teacher: The teacher.
        batches: Calibration batches; more rows than the widest map has columns.

    Returns:
        Maps that were left as drawn, with the reasons.
    """
    with _evaluated(student, teacher):
        first = batches[0]
        plan = _plan(chain(student, first.student), chain(teacher, first.teacher))
        _fit_pairs(plan.pairs, student, teacher, batches)
        return plan.unfitted


def _fit_pairs(
    pairs: Sequence[ChainPair],
    student: TappedModel,
    teacher: TappedModel,
    batches: Sequence[CalibrationBatch],
) -> None:
    previous: tuple[ChainPair, Tensor] | None = None
    for pair in pairs:
        fit = _PairFit(student, teacher, batches, pair)
        units = fit.chosen()
        fit.fit_map(units, previous)
        fit.fit_norms(units)
        previous = pair, units


@contextmanager
def _evaluated(*models: TappedModel) -> Iterator[None]:
    """Set models to evaluation mode.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(modes_kept(model.module))
            model.module.eval()
        yield


def _plan(student: Chain, teacher: Chain) -> ChainPlan:
    unfitted, pairs = dict(student.unfitted), list[ChainPair]()
    for number, place in enumerate(_places(student.links, teacher.links)):
        link = student.links[number]
        reason = ""
        if place is None:
            reason = "the teacher has no map for it whose outputs have the same places"
        else:
            following = teacher.links[place + 1] if place + 1 < len(teacher.links) else None
            pair = ChainPair(number, place, link, teacher.links[place], following)
            reason = _obstacle(pair)
            if not reason:
                pairs.append(pair)
        fitted = set() if reason else {norm.path for norm, _ in pair.norms}
        if reason:
            unfitted[link.map.path] = reason
        for norm in link.norms:
            if norm.path not in fitted:
                unfitted[norm.path] = reason or "the teacher has no such normalization"
    return ChainPlan(
        tuple(pairs),
        tuple(
            f"{repr(path) if path else 'the model itself'}: {reason}"
            for path, reason in unfitted.items()
        ),
    )


def _obstacle(pair: ChainPair) -> str:
    """Return the reason why a pair cannot be fitted; empty if there is none."""
    outputs, teacher_outputs = pair.link.num_units, pair.num_teacher_units
    if pair.following is None and outputs != teacher_outputs:
        return f"it has {outputs} outputs, the teacher's last map {teacher_outputs}"
    if outputs > teacher_outputs:
        return f"it is wider than the teacher's map, with {outputs} and {teacher_outputs} outputs"
    return ""


def _places(links: Sequence[Link], teacher_links: Sequence[Link]) -> list[int | None]:
    """Return the number of the teacher's link for each link of a student; None if there is none.

    The last stands for the last. Each other one stands for the first that follows those of the
    links before and whose outputs have the same places: the fewer activations lie before a map, the
    nearer a linear fit comes to it.
    """
    if not links or not teacher_links:
        return [None] * len(links)
    places, begin, last = list[int | None](), 0, len(teacher_links) - 1
    for link in links[:-1]:
        candidates = (
            place
            for place in range(begin, last)
            if link.leading in (teacher_links[place].leading, teacher_links[place].leading[:1])
        )
        place = next(candidates, None)
        places.append(place)
        begin = begin if place is None else place + 1
    is_alike = links[-1].leading == teacher_links[-1].leading
    return [*places, last if is_alike else None]


@final
@dataclass(frozen=True, slots=True, eq=False)
class _PairFit:
    """Fit of one pair."""

    student: TappedModel
    teacher: TappedModel
    batches: Sequence[CalibrationBatch]
    pair: ChainPair

    def chosen(self) -> Int[Tensor, " chosen"]:
        """Return the units of the teacher that the student's stand for."""
        pair, number = self.pair, self.pair.link.num_units
        if number == pair.num_teacher_units or pair.following is None:
            return torch.arange(pair.num_teacher_units)
        if pair.has_placed_units:
            return self._chosen_among_places(number)
        following = pair.following.map
        columns = _columns_of_units(self.teacher, self.batches[0], pair.twin, following)
        if columns is None:
            return self._chosen_by_energy(number)
        selection = UnitSelection(columns)
        for batch in self.batches:
            reading = read(self.teacher, batch.teacher, [following.path])
            inputs = following.columns(reading.inputs[following.path])
            outputs = reading.outputs[following.path]
            selection.add(
                _rows(inputs, -1, batch.counted),
                _rows(outputs, following.unit_axis, batch.counted),
            )
        return selection.chosen(number, following.affine.weight)

    def _chosen_among_places(self, number: int) -> Tensor:
        """Return channels at single places, whose values before the activation explain logits.

        Modules that follow, as pooling, may not keep places apart.
        """
        num_units = self.pair.num_teacher_units
        selection = UnitSelection(torch.arange(num_units)[:, None])
        for batch in self.batches:
            reading = self._teacher_reading(batch)
            assert reading.logits is not None  # noqa: S101 - checked by `chain`
            selection.add(self._teacher_rows(reading, batch, None), _flat(reading.logits))
        return selection.chosen(number, torch.ones(1, num_units))

    def _chosen_by_energy(self, number: int) -> Tensor:
        """Return the units whose values before the activation vary most."""
        sums = ChannelMoments()
        for batch in self.batches:
            values = self._teacher_rows(self._teacher_reading(batch), batch, None)
            sums.add(values, values)
        return sums.statistics[1].topk(number).indices.sort().values

    def fit_map(self, units: Tensor, previous: tuple[ChainPair, Tensor] | None) -> None:
        """Set the student's map.

        Args:
            units: Units of the teacher that the student's stand for.
            previous: The pair before, with the units chosen there.
        """
        linear = self.pair.link.map
        moments = Moments(has_bias=linear.has_bias)
        for batch in self.batches:
            received = read(self.student, batch.student, (), stop_at=linear.path)
            columns = linear.columns(received.inputs[linear.path])
            reading = self._teacher_reading(batch)
            moments.add(
                _rows(columns, -1, batch.counted), self._teacher_rows(reading, batch, units)
            )
        linear.set(moments.solve(self._prior(units, previous)))

    def _prior(self, units: Tensor, previous: tuple[ChainPair, Tensor] | None) -> Affine:
        """Return the teacher's map of the chosen units, or zero where it reads others."""
        pair, drawn = self.pair, self.pair.link.map.affine
        zero = Affine(torch.zeros_like(drawn.weight), torch.zeros_like(drawn.bias))
        if pair.has_placed_units or self.pair.target_path != pair.twin.map.path:
            return zero
        affine = pair.twin.map.affine
        weight, bias = affine.weight[units], affine.bias[units]
        if previous is None:
            if pair.number == pair.teacher_number == 0 and weight.shape == drawn.weight.shape:
                return Affine(weight, bias)
            return zero
        before, units = previous
        size, rest = divmod(weight.shape[1], before.twin.num_units)
        follows = (
            pair.number == before.number + 1 and pair.teacher_number == before.teacher_number + 1
        )
        if (
            not follows
            or before.has_placed_units
            or rest
            or drawn.weight.shape[1] != (size * len(units))
        ):
            return zero
        columns = (units[:, None] * size + torch.arange(size)).flatten()
        return Affine(weight[:, columns], bias)

    def _teacher_reading(self, batch: CalibrationBatch) -> Reading:
        twin = self.pair.twin
        return read(
            self.teacher, batch.teacher, [twin.map.path, *(norm.path for norm in twin.norms)]
        )

    def _teacher_rows(
        self,
        reading: Reading,
        batch: CalibrationBatch,
        units: Tensor | None,
        path: str = "",
    ) -> Tensor:
        """Return the output of a module of the teacher at chosen units; at all for None."""
        output = reading.outputs[path or self.pair.target_path]
        if self.pair.has_placed_units:
            rows = _flat(output)
        else:
            rows = _rows(output, self.pair.twin.map.unit_axis, batch.counted)
        return rows if units is None else rows[:, units]

    def fit_norms(self, units: Tensor) -> None:
        """Set the normalizations behind the student's map.

        Args:
            units: Units of the teacher that the student's stand for.
        """
        for norm, path in self.pair.norms:
            if norm.statistics is not None and norm.has_gain:
                norm.set_statistics(*self._norm_sums(norm, path, units).statistics)
            sums = self._norm_sums(norm, path, units, is_plain=norm.has_gain)
            if norm.has_gain:
                norm.set_gain(*sums.gain_and_shift(has_shift=norm.has_shift))
            else:
                norm.set_gain_by_statistics(*sums.gain_and_shift(has_shift=True))

    def _norm_sums(
        self, norm: UnitNorm, path: str, units: Tensor, *, is_plain: bool = False
    ) -> ChannelMoments:
        """Return sums over inputs, or plain outputs, of a normalization and over its targets."""
        sums = ChannelMoments()
        for batch in self.batches:
            received = read(self.student, batch.student, (), stop_at=norm.path).inputs[norm.path]
            values = norm.plain(received) if is_plain else received
            targets = self._teacher_rows(self._teacher_reading(batch), batch, units, path)
            sums.add(_rows(values, norm.unit_axis, batch.counted), targets)
        return sums


def _columns_of_units(
    teacher: TappedModel, batch: CalibrationBatch, link: Link, following: WeightedMap
) -> Int[Tensor, "unit entry"] | None:
    """Return the columns of the teacher's next map that each unit determines.

    Units are numbered in binary. For each digit, the units with a one there are redrawn, then those
    with a zero: a value that depends on a single unit changes in one of both passes. Where
    normalizations mix all units, inputs of the next map count as those of the unit in their order.

    Returns:
        Numbers of the columns; None if modules between mix units in other numbers.
    """
    path, num_units = link.map.path, link.num_units
    output = read(teacher, batch.teacher, [path]).outputs[path]
    generator = torch.Generator().manual_seed(0)
    draws = [
        3 * output.std() * beside(torch.randn(output.shape, generator=generator), output)
        for _ in range(2)
    ]
    numbers = torch.arange(num_units)
    if link.map.unit_axis == 1:
        numbers = numbers.view(-1, *(1 for _ in output.shape[2:]))

    def received(mask: Tensor) -> Tensor:
        values = torch.where(beside(mask, output), draws[1], draws[0]).to(output.dtype)
        reading = read(teacher, batch.teacher, (), stop_at=following.path, replaced={path: values})
        return _rows(reading.inputs[following.path], following.unit_axis, None)

    base = received(torch.zeros_like(numbers, dtype=torch.bool))
    owners = torch.zeros(base.shape[1], dtype=torch.int64)
    is_mixed = False
    for digit in range((num_units - 1).bit_length()):
        ones = (numbers >> digit & 1).bool()
        changes = [(received(mask) != base).any(0) for mask in (ones, ~ones)]
        is_mixed = is_mixed or bool((changes[0] == changes[1]).any())
        owners += changes[0] << digit
    if is_mixed:
        if len(owners) % num_units:
            return None
        owners = torch.arange(len(owners)) // (len(owners) // num_units)
    counts = owners.bincount(minlength=num_units)
    if len(counts) > num_units or (counts != counts[0]).any():
        return None
    features = owners.argsort(stable=True).view(num_units, -1)
    size = following.affine.weight.shape[1] // len(owners)
    # The entries of a patch belong to its channels, one channel after the other.
    return (features[:, :, None] * size + torch.arange(size)).flatten(1)


def _flat(tensor: Tensor) -> Tensor:
    """Return one row an example, in float64 on the CPU."""
    return tensor.flatten(1).to("cpu", torch.float64)


def _rows(
    tensor: Tensor, unit_axis: int, counted: Bool[Tensor, "example position"] | None
) -> Tensor:
    """Return one row an example and place, in float64 on the CPU."""
    moved = tensor.movedim(unit_axis, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    if counted is not None and len(rows) == counted.numel():
        rows = rows[beside(counted.flatten(), rows)]
    return rows.to("cpu", torch.float64)
