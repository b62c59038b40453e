"""Fused loss and gradient of logits on a GPU, for the losses in chunks.

A `FusedLoss` computes the loss of some rows and overwrites the products of the student's head with
the gradient, in one kernel. Between the matrix products each logit is then read two or three times
and written once, where a loss by operations of torch reads and writes it about twenty times.

Axes: row (counted positions), class.

Design: the kernel needs triton, a GPU it supports and a C compiler. It is tried once per device;
where it fails, `fused_loss` returns None, and the loss takes the operations of torch. A lack of
memory is raised instead, and the next loss tries the kernel again. Logits are computed in float32
from the product, including soft caps, while all logits at once round every step to the precision of
the model. Teacher temperature 0, float64, and tensors that are traced or distributed take the
operations of torch as well.

Budget of 8,192 positions, 131,072 classes, width 4,096, bfloat16, on a GPU of 750 TFLOP/s and
3 TB/s: four products of 8.8 TFLOP each take 47 ms. The kernel reads 4 GiB of logits in each of two
passes and writes 2 GiB, 3.6 ms (three passes of `jsd`: 5.0 ms). Memory: 2.1 GiB of weights and
states, 1 GiB for the weight gradient, `STUDENT_BYTES` and `TEACHER_BYTES` of logits.
"""

import importlib
import math
import warnings
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from curricle.colocation import processor_kind
from curricle.models.heads import LinearHead
from curricle.objectives.divergences import (
    JSD,
    Divergence,
    ForwardKL,
    ReverseKL,
    SquaredError,
    TotalVariation,
)

PROCESSORS = ("cuda",)
"""Kinds of processors the kernel is used on."""
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""Precisions of products the kernel reads."""
STUDENT_BYTES = 2**29
"""Bytes of the student's products in an `auto` chunk. A chunk is also a summand of the weight
gradient, so few large chunks save traffic and, for a sum in bfloat16, rounding."""
TEACHER_BYTES = 2**28
"""Bytes of the teacher's products; several pieces may follow each other within a chunk."""
PADDING = 64
"""Multiple of classes to which rows are padded: whole cache lines, for the kernel and products."""
LOG2_E = math.log2(math.e)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Shape of the kernel's programs."""

    lanes: int = 1024
    """Vectors of 16 bytes in a block of classes."""
    num_warps: int = 16
    """Warps of a program, which computes a row."""
    num_stages: int = 1
    """Depth of software pipelining; 1 for none."""


TILING = Tiling()
"""Shape for vocabularies of any size; small ones use fewer lanes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLoss:
    """Loss of rows whose kernel overwrites the student's products with its gradient."""

    student: LinearHead
    """The student's head, flat and without gradient."""
    teacher: LinearHead | None
    """The teacher's head at the same rows; None for labels only."""
    divergence: Divergence | None = None
    """Divergence from the teacher; None without one."""
    student_temperature: float = 1.0
    """Softening of the student; dimensionless, positive."""
    teacher_temperature: float = 1.0
    """Softening of the teacher; dimensionless, positive."""
    labels: Int[Tensor, " row"] | None = None
    """The correct class of each row; None adds no cross-entropy."""
    label_weight: float = 1.0
    """Factor of the cross-entropy."""
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def chunk_rows(self) -> int:
        """Return the number of rows of an `auto` chunk."""
        return _rows(STUDENT_BYTES, self.student)

    def product(self, rows: slice) -> Float[Tensor, "row class"]:
        """Return products of the student's head, valid until the next call."""
        return self._product("student", self.student.at(rows), self.student)

    def overwrite(self, product: Float[Tensor, "row class"], rows: slice) -> Float[Tensor, ""]:
        """Return the loss summed over rows, after replacing their products by its gradient.

        Args:
            product: Result of `product` for the rows.
            rows: The rows.
        """
        if self.labels is not None:
            labels = self.labels[rows]
            is_class = (labels >= 0) & (labels < self.student.num_classes)
            # On the device, like the check in `cross_entropy` of torch; nothing waits for it.
            torch._assert_async(is_class.all(), "a label is outside the classes")  # noqa: SLF001
        number, totals = len(product), []
        size = number if self.teacher is None else _rows(TEACHER_BYTES, self.teacher)
        for start in range(0, number, size):
            piece = slice(start, min(start + size, number))
            at = slice(rows.start + piece.start, rows.start + piece.stop)
            target = product
            if self.teacher is not None:
                target = self._product("teacher", self.teacher.at(at), self.teacher)
            totals.append(_launch(self, product[piece], target, at).sum())
        return torch.stack(totals).sum()

    def _product(self, role: str, head: LinearHead, full: LinearHead) -> Float[Tensor, "row class"]:
        rows, classes = len(head.states), head.num_classes
        buffer = self._buffers.get(role)
        if buffer is None or len(buffer) < rows:
            self._buffers.pop(role, None)
            buffer = full.states.new_empty(rows, math.ceil(classes / PADDING) * PADDING)
            self._buffers[role] = buffer
        return head.product(buffer[:rows, :classes])


def fused_loss(
    student: LinearHead,
    teacher: LinearHead | None,
    divergence: Divergence | None = None,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    labels: Int[Tensor, " row"] | None = None,
    label_weight: float = 1.0,
) -> FusedLoss | None:
    """Return a loss by the kernel; None where the operations of torch have to compute it.

    Args:
        student: The student's head, flat.
        teacher: The teacher's head at the same rows; None for labels only.
        divergence: Divergence from the teacher; None without one.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.
        labels: The correct class of each row; None adds no cross-entropy.
        label_weight: Factor of the cross-entropy.
    """
    states = student.states
    heads = [student] if teacher is None else [student, teacher]
    is_covered = (
        processor_kind(states) in PROCESSORS
        and len(states) > 0
        and all(map(_is_covered, heads))
        and not isinstance(divergence, SquaredError)
        and teacher_temperature > 0
        and _runs_on(states.device)
    )
    if not is_covered:
        return None
    if divergence is not None:
        divergence.check(
            student_temperature=student_temperature, teacher_temperature=teacher_temperature
        )
    return FusedLoss(
        student=student.detached,
        teacher=None if teacher is None else teacher.detached,
        divergence=divergence,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        labels=labels,
        label_weight=label_weight,
    )


def _is_covered(head: LinearHead) -> bool:
    """Return whether the kernel can read products of a head: no traced or distributed tensors."""
    tensors = (head.states, head.weight)
    return (
        head.states.dtype in PRECISIONS
        and head.scale > 0
        and all(type(tensor) in {Tensor, nn.Parameter} for tensor in tensors)
    )


def _rows(size: int, head: LinearHead) -> int:
    """Return the number of rows whose products take a number of bytes, even for large tiles."""
    padded = math.ceil(head.num_classes / PADDING) * PADDING
    rows = max(1, size // (padded * head.states.element_size()))
    # Whole tiles of the matrix products.
    return rows - rows % 128 if rows >= 128 else rows  # noqa: PLR2004 - rows of a tile


def _kernels() -> ModuleType:
    # Imported at its first use: triton takes a second, and most runs have no GPU.
    return importlib.import_module("curricle.objectives.fused_kernels")


@cache
def _runs_on(device: torch.device) -> bool:
    """Return whether the kernel runs on a device; tried with two classes.

    Raises:
        RuntimeError: If the device has no memory for the trial; nothing is cached then.
    """
    try:
        _kernels()
    except ImportError:
        return False
    states = torch.ones(1, 1, device=device)
    head = LinearHead(states=states, weight=torch.ones(2, 1, device=device))
    loss = FusedLoss(student=head, teacher=head, divergence=ForwardKL())
    try:
        loss.overwrite(loss.product(slice(0, 1)), slice(0, 1))
    except Exception as error:
        # Memory may be free at the next trial; other errors return. Of a lack of memory the loader
        # of triton raises a plain RuntimeError.
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            raise
        warnings.warn(
            f"losses in chunks use operations of torch on {device}, which are slower and take more "
            f"memory, because triton does not run there: {error}",
            stacklevel=2,
        )
        return False
    return True


@final
@dataclass(frozen=True, slots=True)
class _Side:
    """Constants of one model: value = squash(product), logit = its factor times the value."""

    logit: float
    inner: float
    has_cap: bool

    @classmethod
    def of(cls, head: LinearHead) -> "_Side":
        """Return the constants of a head."""
        if head.soft_cap is None:
            return cls(head.scale, 0.0, has_cap=False)
        return cls(head.soft_cap, 2 * LOG2_E * head.scale / head.soft_cap, has_cap=True)


def _units(divergence: Divergence | None) -> tuple[str, float, float, float]:
    """Return the kernel's name of a divergence, the units of gradient and value, and its beta."""
    nats = 1.0 / LOG2_E
    if isinstance(divergence, JSD):
        return "JSD", (1.0 - divergence.beta) * nats, nats, divergence.beta
    units: dict[type | None, tuple[str, float, float, float]] = {
        None: ("NO_TEACHER", 0.0, 0.0, 0.0),
        ForwardKL: ("FORWARD_KL", 1.0, nats, 0.0),
        ReverseKL: ("REVERSE_KL", nats, nats, 0.0),
        TotalVariation: ("TOTAL_VARIATION", 0.5, 0.5, 0.0),
    }
    return units[None if divergence is None else type(divergence)]


def _launch(loss: FusedLoss, product: Tensor, target: Tensor, rows: slice) -> Float[Tensor, " row"]:
    """Return the loss of each row, after the kernel has run.

    Args:
        loss: Constants of the loss.
        product: The student's products, overwritten with the gradient.
        target: The teacher's products.
        rows: The rows of labels.
    """
    kernels = _kernels()
    number, classes = product.shape
    labels = loss.labels
    kind, gradient_unit, unit, beta = _units(loss.divergence)
    student, teacher = _Side.of(loss.student), _Side.of(loss.teacher or loss.student)
    vector = 16 // max(product.element_size(), target.element_size())
    lanes = min(TILING.lanes, 2 ** math.ceil(math.log2(math.ceil(classes / vector))))
    # Fewer threads than lanes of a small vocabulary would compute it several times.
    num_warps = max(1, min(TILING.num_warps, lanes // 32))
    losses = product.new_empty(number, dtype=torch.float32)
    with torch.cuda.device_of(product):
        kernels.overwrite_rows[(number,)](
            product,
            target,
            product if labels is None else labels[rows],
            losses,
            product.stride(0),
            target.stride(0),
            LOG2_E * student.logit / loss.student_temperature,
            LOG2_E * teacher.logit / loss.teacher_temperature,
            LOG2_E * student.logit,
            student.inner,
            teacher.inner,
            gradient_unit * loss.student.scale / loss.student_temperature,
            loss.label_weight * loss.student.scale,
            unit,
            beta,
            loss.label_weight / LOG2_E,
            KIND=getattr(kernels, kind),
            HAS_LABELS=labels is not None,
            HAS_LABEL_SUM=labels is not None and loss.student_temperature != 1,
            STUDENT_CAP=student.has_cap,
            TEACHER_CAP=teacher.has_cap,
            CLASSES=classes,
            LANES=lanes,
            VECTOR=vector,
            STAGES=TILING.num_stages,
            num_warps=num_warps,
        )
    return losses
