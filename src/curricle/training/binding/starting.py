"""Warm start: initialization of the student from the teacher before the first step.

Binding finds the weights that a `curriculum.initialization` value reaches and checks that they fit;
`apply` sets them, once, before the first step of a run.

- Language models: the token table, tables of positions and the like that the teacher has with as
  many rows, the bias of the output, and its weight unless that is the token table. Everything
  else, layer normalizations included, stays as it was drawn. Rows are mapped one by one, r -> A r.
  The map of `selection` is made for activations of the teacher on batches of the stream.
- `MLP`: the first linear map becomes the least-squares fit of A h to the inputs, where h is the
  teacher's first hidden layer, over the first `BATCHES` batches of the stream.
- `least_squares`, see `least_squares_start`: all blocks.

Axes: row, student_width, teacher_width, example, input.

Design: a bound start holds weights by reference, since those of the finished teacher are in place
only when the run begins. It is recorded as a `StagePlan` of zero steps, so it appears
wherever stages do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.curriculum.initialization import (
    START,
    ClosedForm,
    LeastSquaresStart,
    Map,
    MappedStart,
    SelectionStart,
)
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.least_squares.flops import StartFlops, passes_of
from curricle.models.embeddings import embedding_tables, matching_tables
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.objectives.base import require
from curricle.records import StagePlan, Usage
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.channel_energies import ChannelEnergies
from curricle.training.binding.least_squares_start import BoundLeastSquares, bind_least_squares
from curricle.training.setup.placement import Placement

BATCHES = 64
"""Batches of the stream that a first linear map is fitted on."""


def apply_start(start: "BoundStart | None", usage: Usage, placement: Placement) -> Usage:
    """Return the usage when training begins or resumes, after a start if it begins.

    A run that goes on has its start behind it: the checkpoint's weights come from there.

    Args:
        start: The start, if there is one.
        usage: Usage so far.
        placement: Placement of the models.
    """
    # Steps that were taken show that the run resumes; applied again, the start would overwrite what
    # was learned.
    if start is None or usage.steps:
        return usage
    begins = placement.now()
    with StartFlops(start.teacher.module) as flops:
        read = start.apply()
    return replace(
        read,
        student_flops=flops.student,
        teacher_flops=flops.teacher,
        seconds=placement.now() - begins,
    )


def start_notes(start: "BoundStart | None") -> tuple[str, ...]:
    """Return the parts that a start leaves as drawn, one sentence each."""
    return start.notes if isinstance(start, BoundLeastSquares) else ()


def bind_start(
    start: ClosedForm | None,
    student: TappedModel,
    teacher: LiveTeacher | None,
    *,
    stream: Stream,
    seed: int,
    placement: Placement,
) -> "BoundStart | None":
    """Return a warm start bound to models and data, or None if there is none.

    Args:
        start: The start as declared.
        student: The model that learns.
        teacher: The model that teaches.
        stream: Training data.
        seed: Seed of the run.
        placement: Placement of the models.

    Raises:
        BindError: If the models have nothing to start from, or do not fit.
    """
    if start is None:
        return None
    network = require(teacher, "teacher").model
    if isinstance(start, LeastSquaresStart):
        return bind_least_squares(start, student, network, stream=stream, placement=placement)
    if isinstance(student.module, MLP) and isinstance(network.module, MLP):
        return _bind_map(start, student.module, network, network.module, stream=stream, seed=seed)
    energies = None
    if isinstance(start, SelectionStart):
        energies = ChannelEnergies(
            teacher=network, stream=stream, placement=placement, batches=start.batches
        )
    return _bind_tables(start, student.module, network, seed=seed, energies=energies)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """One weight of the student and the teacher's that it is set from."""

    label: str
    """Description for people."""
    target: Tensor
    """The student's weight, one row a vector."""
    source: Tensor
    """The teacher's."""
    is_mapped: bool
    """Whether its rows go through the map; a bias is copied."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _TableStart:
    """Embeddings set from embeddings."""

    declared: MappedStart
    map: Map
    teacher: TappedModel
    settings: Sequence[_Setting]
    """The token table first: the map is made for its rows."""
    energies: ChannelEnergies | None
    """Calibration that the map is made for in place of the token table."""

    @property
    def plan(self) -> StagePlan:
        tokens = self.settings[0]
        return _start_plan(
            self.declared,
            taps=", ".join(setting.label for setting in self.settings),
            objective="set from the teacher's",
            widths=(tokens.target.shape[1], tokens.source.shape[1]),
            count=sum(setting.target.numel() for setting in self.settings),
        )

    @torch.no_grad()
    def apply(self) -> Usage:
        tokens = self.settings[0].source
        # One map for all tables: a model adds up their rows, and only under one linear map is the
        # sum of mapped rows the mapped sum.
        energies = self.energies
        rows = tokens if energies is None else energies.roots(tokens.shape[1])
        matrix = beside(self.map(rows), tokens)
        for setting in self.settings:
            # A teacher in bfloat16 is mapped in the map's precision, so that rounding comes once,
            # at the end.
            rows = setting.source.to(matrix.dtype)
            # In place: a tied output and the optimizer hold this very parameter.
            setting.target.copy_(rows @ matrix.mT if setting.is_mapped else rows)
        return Usage() if energies is None else energies.usage


def _bind_tables(
    start: MappedStart,
    student: nn.Module,
    teacher: TappedModel,
    *,
    seed: int,
    energies: ChannelEnergies | None,
) -> "BoundStart":
    """Return a start of language models, bound.

    Raises:
        BindError: If one of them has no token table, the vocabularies differ, or the student's
            tables are frozen.
    """
    student_tables, teacher_tables = (
        embedding_tables(student, "student"),
        embedding_tables(teacher.module, "teacher"),
    )
    # Rows are paired by their index; with another number of entries they stand for other tokens.
    if student_tables.tokens.num_embeddings != teacher_tables.tokens.num_embeddings:
        raise BindError(
            f"'init' must have a student with the teacher's vocabulary; got "
            f"{student_tables.tokens.num_embeddings} and "
            f"{teacher_tables.tokens.num_embeddings} entries"
        )
    tables = [
        (student_tables.path, student_tables.tokens, teacher_tables.tokens),
        *matching_tables(student_tables, teacher_tables),
    ]
    settings = [
        _setting(path.rpartition(".")[2], table.weight, teacher_table.weight)
        for path, table, teacher_table in tables
    ]
    if student_tables.output is not None and teacher_tables.output is not None:
        # A tied output is the token table, which is set already; the output of an untied teacher
        # would overwrite it.
        if not student_tables.is_tied:
            settings.append(
                _setting("output", student_tables.output.weight, teacher_tables.output.weight)
            )
        # Modules without a bias hold None there, whatever their types say.
        biases: tuple[Tensor | None, ...] = (student_tables.output.bias, teacher_tables.output.bias)
        if biases[0] is not None and biases[1] is not None:
            settings.append(_setting("output bias", biases[0], biases[1], is_mapped=False))
    # While binding, although weights are set when the run begins: a frozen one must be named before
    # anything is written.
    _check_trained(student, [setting.target for setting in settings])
    linear = start.map(
        seed=seed,
        student_width=student_tables.tokens.embedding_dim,
        teacher_width=teacher_tables.tokens.embedding_dim,
    )
    return _TableStart(
        declared=start, map=linear, teacher=teacher, settings=settings, energies=energies
    )


def _check_trained(student: nn.Module, targets: Sequence[Tensor]) -> None:
    """Check that a start sets only weights that the run may change.

    The adapter of a PEFT model, for one, is saved without the frozen weights below it.

    Raises:
        BindError: If one is frozen.
    """
    # By identity: tensors compare element by element.
    frozen = {id(weight): name for name, weight in student.named_parameters()}
    for target in targets:
        if not target.requires_grad:
            raise BindError(
                f"'init' must set weights that are trained, since frozen ones would be "
                f"overwritten; got {frozen.get(id(target), 'a buffer')!r} frozen; set its "
                f"requires_grad, or leave 'init' out, as for students with LoRA"
            )


def _setting(label: str, target: Tensor, source: Tensor, *, is_mapped: bool = True) -> _Setting:
    return _Setting(label=label, target=target, source=source, is_mapped=is_mapped)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _MapStart:
    """A first linear map fitted to the projection of the teacher's first layer."""

    declared: MappedStart
    map: Map
    linear: nn.Linear
    teacher: TappedModel
    teacher_width: int
    stream: Stream

    @property
    def plan(self) -> StagePlan:
        return _start_plan(
            self.declared,
            taps="1 <- 1",
            objective="least squares",
            widths=(self.linear.out_features, self.teacher_width),
            count=sum(parameter.numel() for parameter in self.linear.parameters()),
        )

    @torch.no_grad()
    def apply(self) -> Usage:
        inputs, states = self._examples()
        matrix = self.map(states).to(states)
        # The bias is the weight of one more input, which is always 1.
        rows = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        # This driver also takes inputs that depend on each other, or are few.
        fit = torch.linalg.lstsq(rows, states @ matrix.mT, driver="gelsd").solution
        self.linear.weight.copy_(fit[:-1].mT)
        self.linear.bias.copy_(fit[-1])
        stream = self.stream
        return Usage(examples=BATCHES * stream.batch_size, tokens=BATCHES * stream.tokens_per_batch)

    def _examples(
        self,
    ) -> tuple[Float[Tensor, "example input"], Float[Tensor, "example teacher_width"]]:
        """Return the inputs and the teacher's states, in float64 on the CPU."""
        place = self.teacher.place(1)
        inputs, states = [], []
        with self.teacher.open_taps([place], logits=False) as forward:
            for step in range(BATCHES):
                # The placed weights show where the models lie, so that no placement is needed here.
                batch = self.stream.batch(step).map(partial(beside, like=self.linear.weight))
                with passes_of(self.teacher.module):
                    states.append(forward(batch.for_teacher.inputs).hidden[place])
                # The student's own inputs, which the fitted layer will read, even where the teacher
                # has others.
                inputs.append(batch.inputs)
        return _concatenated(inputs), _concatenated(states)


def _concatenated(tensors: Sequence[object]) -> Float[Tensor, "example width"]:
    # On the CPU, where torch has the driver, and in float64: the fit is made once, and its error
    # would stay in every later step.
    return torch.cat([torch.as_tensor(tensor) for tensor in tensors]).to("cpu", torch.float64)


def _bind_map(
    start: MappedStart,
    student: MLP,
    teacher: TappedModel,
    network: MLP,
    *,
    stream: Stream,
    seed: int,
) -> "BoundStart":
    """Return a start of fully connected networks, bound.

    Raises:
        BindError: If their inputs differ, or the student's first layer is frozen.
    """
    student_layer, teacher_layer = (_first(model) for model in (student, network))
    if student_layer.in_features != teacher_layer.in_features:
        raise BindError(
            f"'init' must have a student with the teacher's inputs; got "
            f"{student_layer.in_features} and {teacher_layer.in_features}"
        )
    _check_trained(student, list(student_layer.parameters()))
    linear = start.map(
        seed=seed,
        student_width=student_layer.out_features,
        teacher_width=teacher_layer.out_features,
    )
    return _MapStart(
        declared=start,
        map=linear,
        linear=student_layer,
        teacher=teacher,
        teacher_width=teacher_layer.out_features,
        stream=stream,
    )


def _first(network: MLP) -> nn.Linear:
    """Return the first linear map of a network."""
    return next(module for module in network.modules() if isinstance(module, nn.Linear))


def _start_plan(
    start: MappedStart,
    *,
    taps: str,
    objective: str,
    widths: tuple[int, int],
    count: int,
) -> StagePlan:
    student, teacher = widths
    return StagePlan(
        name=START,
        teacher="final",
        taps=taps,
        objective=objective,
        projection=f"{start.law} {student}x{teacher}",
        widths=f"{student} <- {teacher}",
        steps=0,
        student_flops=0,
        teacher_flops=0,
        trained_parameters=count,
        memory_bytes=0,
    )


BoundStart = _TableStart | _MapStart | BoundLeastSquares
"""A warm start bound to its models."""
