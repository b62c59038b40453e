"""Weights of a student as trained projections of its teacher's weights.

A weight of the student is the teacher's weight of the paired module with each axis of another size
multiplied by a trained matrix: W_student = A W_teacher B^T for a linear map. The matrices train
beside the student as an adapter: before an update the gradient of each weight is passed back to its
matrices, and after it the product is written into the weight. So the student is an ordinary module
with merged weights at every step.

Axes: student_size, teacher_size (of one axis of a weight).

Design: no module is replaced or parametrized, so taps, evaluations, checkpoints and exports need no
case for it.

Source:
    Hao et al. 2025, Low-Rank Clone (arXiv 2505.12781). Deviations: see `LowRankClone`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from curricle.colocation import beside
from curricle.errors import BindError
from curricle.models.stacks import block_ends
from curricle.models.tapped import TappedModel

Axis = tuple[str, int]
"""Axis of a weight of the student: the path of its module, or the name of a parameter that is not
called weight, and the number of the axis. The bias of a map lies on the axis of its outputs."""
Sizes = tuple[int, int]
"""Sizes of an axis in student and teacher."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class WeightPair:
    """A parameter of the student and the teacher's that it is computed from."""

    name: str
    """The student's parameter."""
    source: str
    """The teacher's parameter."""
    axes: tuple[Axis | None, ...]
    """Projected axis for each axis of the parameter; None where both sizes are equal."""
    sizes: tuple[Sizes, ...]
    """Sizes of each axis."""
    is_product: bool
    """Whether it is a product at every step; otherwise it is set once and trains itself."""

    @property
    def projections(self) -> dict[Axis, Sizes]:
        """Return the sizes of the projected axes."""
        pairs = zip(self.axes, self.sizes, strict=True)
        return {axis: sizes for axis, sizes in pairs if axis is not None}


def paired_path(path: str, student: TappedModel, teacher: TappedModel) -> str:
    """Return the teacher's path for a path of the student, with evenly spaced blocks.

    Args:
        path: Path of a module or parameter of the student.
        student: The student.
        teacher: The teacher.
    """
    ends = block_ends(student.depth, teacher.depth) if teacher.depth else ()
    for number, end in enumerate(ends, start=1):
        block = student.place(number).path
        if path == block or path.startswith(f"{block}."):
            return teacher.place(end).path + path.removeprefix(block)
    return path


def output_axis(module: nn.Module) -> int:
    """Return the axis of the outputs in a module's weight: 1 in transformers' `Conv1D`, else 0."""
    return int(hasattr(module, "nf"))


def weight_pairs(student: TappedModel, teacher: TappedModel) -> tuple[WeightPair, ...]:
    """Return the student's parameters with the teacher's.

    Args:
        student: The student.
        teacher: The teacher, with modules of the same names in each block.

    Raises:
        BindError: If the teacher lacks a parameter, has it smaller, with other axes, quantized or
            offloaded, tables have other rows, or a parameter of the student is frozen.
    """
    sources = dict(teacher.module.named_parameters(remove_duplicate=False))
    pairs = []
    for name, weight in student.module.named_parameters():
        source = paired_path(name, student, teacher)
        if source not in sources or sources[source].ndim != weight.ndim:
            raise BindError(
                f"a low-rank clone needs a student of the teacher's architecture; the teacher has "
                f"no parameter {source!r} with {weight.ndim} axes for {name!r} of the student; "
                f"init='least_squares' needs no equal names"
            )
        if not sources[source].is_floating_point() or sources[source].is_meta:
            raise BindError(
                f"a low-rank clone needs a teacher with floating-point weights in memory; "
                f"{source!r} is quantized or offloaded; load the teacher without either"
            )
        sizes = tuple(zip(weight.shape, sources[source].shape, strict=True))
        path, _, entry = name.rpartition(".")
        module = student.module.get_submodule(path)
        is_table = isinstance(module, nn.Embedding) and sizes[0][0] != sizes[0][1]
        if is_table or any(size > teacher_size for size, teacher_size in sizes):
            rule = "tables with as many rows as its teacher" if is_table else "no larger weights"
            raise BindError(
                f"a low-rank clone needs a student with {rule}; got {name!r} with shape "
                f"{tuple(weight.shape)} and the teacher's {tuple(sources[source].shape)}"
            )
        if not weight.requires_grad:
            raise BindError(
                f"a low-rank clone sets all weights of the student; got {name!r} frozen; set its "
                f"requires_grad"
            )
        is_bias = entry == "bias" and getattr(module, "weight", weight).ndim > 1
        start = output_axis(module) if is_bias else 0
        # A module may have several weights with axes of their own, as recurrent ones.
        owner = path if entry in {"weight", "bias"} else name
        axes = tuple(
            None if size == teacher_size else (owner, start + axis)
            for axis, (size, teacher_size) in enumerate(sizes)
        )
        is_product = any(axes) and (is_bias or weight.ndim > 1)
        pairs.append(WeightPair(name, source, axes, sizes, is_product))
    return tuple(pairs)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Modules:
    """Both models by reference: a copy of the projections refers to the same models."""

    student: nn.Module
    teacher: nn.Module

    def __deepcopy__(self, _: object) -> "_Modules":
        return self


@final
class ClonedWeights(nn.Module):
    """Trained projections of the teacher's weights, and their products in the student."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Sequence[WeightPair],
        matrices: Mapping[Axis, Float[Tensor, "student_size teacher_size"]],
    ) -> None:
        """Set the initial projections; the student is not changed before `begin`.

        Args:
            student: The student.
            teacher: The teacher.
            pairs: Result of `weight_pairs`.
            matrices: Initial projections. A parameter that is no product keeps its value if one of
                its axes has none.
        """
        super().__init__()
        self._modules_by_role = _Modules(student, teacher)
        self._products = [pair for pair in pairs if pair.is_product]
        self._first = [
            (pair, {axis: matrices[axis] for axis in pair.projections})
            for pair in pairs
            if not pair.is_product and all(axis in matrices for axis in pair.projections)
        ]
        axes = dict.fromkeys(axis for pair in self._products for axis in pair.projections)
        self._numbers = {axis: number for number, axis in enumerate(axes)}
        like = next(student.parameters())
        self.projections = nn.ParameterList(
            nn.Parameter(beside(matrices[axis], like).to(like.dtype)) for axis in axes
        )

    def projected(
        self, states: Float[Tensor, "row teacher_size"], axis: Axis
    ) -> Float[Tensor, "row student_size"]:
        """Return teacher states projected as an axis of the weights is; equal sizes as they are."""
        if axis not in self._numbers:
            return states.detach()
        matrix: Tensor = self.projections[self._numbers[axis]]
        return states.detach().to(matrix.dtype) @ matrix.mT

    @torch.no_grad()
    def begin(self) -> None:
        """Set all weights of the student for the first step of a stage."""
        for pair, matrices in self._first:
            self._set(pair, self._product(pair, matrices))
        self.advance()

    def prepare(self) -> None:
        """Pass the gradients of the weights back to the projections, before an update."""
        for pair in self._products:
            weight = self._modules_by_role.student.get_parameter(pair.name)
            if weight.grad is not None:
                gradient, weight.grad = weight.grad, None
                # Without a gradient the optimizer skips the weight, which is written instead.
                with torch.enable_grad():
                    product = self._product(pair, self.matrices)
                torch.autograd.backward(product, gradient.to(product.dtype))

    @torch.no_grad()
    def advance(self) -> None:
        """Write the products into the student, after an update."""
        for pair in self._products:
            self._set(pair, self._product(pair, self.matrices))

    @property
    def update_flops(self) -> int:
        """Return the FLOPs of `prepare` and `advance`, counted while they run on copies."""
        matrices = {axis: matrix.detach().clone() for axis, matrix in self.matrices.items()}
        for matrix in matrices.values():
            matrix.requires_grad_()
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            for pair in self._products:
                self._product(pair, matrices).sum().backward()
        forward = FlopCounterMode(display=False)
        with torch.no_grad(), forward:
            for pair in self._products:
                self._product(pair, matrices)
        return int(counter.get_total_flops() + forward.get_total_flops())

    @property
    def matrices(self) -> dict[Axis, Tensor]:
        """Return the projections by the axis that they project."""
        return {axis: self.projections[number] for axis, number in self._numbers.items()}

    def _product(self, pair: WeightPair, matrices: Mapping[Axis, Tensor]) -> Tensor:
        weight = self._modules_by_role.teacher.get_parameter(pair.source).detach()
        for number, axis in enumerate(pair.axes):
            if axis is not None:
                # In the precision of the projections, so that a teacher in 16 bits rounds once.
                matrix = matrices[axis]
                columns = beside(weight, matrix).to(matrix.dtype).movedim(number, -1)
                weight = (columns @ matrix.mT).movedim(-1, number)
        product: Tensor = weight
        return product

    def _set(self, pair: WeightPair, weight: Tensor) -> None:
        # In place: tied parameters and the optimizer hold this very tensor.
        self._modules_by_role.student.get_parameter(pair.name).copy_(weight)
