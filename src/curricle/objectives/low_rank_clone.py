"""Low-Rank Clone: a student whose weights are trained projections of its teacher's.

The objective compares the outputs of all linear maps inside paired blocks, the teacher's projected
by the matrices that also project the weights, and holds these matrices as its adapter
(`cloned_weights`).

Axes: row (counted positions), width.

Source:
    Hao et al. 2025 (arXiv 2505.12781); He et al. 2026, RED (arXiv 2605.29327), for `selection`.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from curricle.data.batch import Batch, Rows
from curricle.errors import BindError
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.objectives.base import MOST_WEIGHT, BoundObjective, Reads, Sample, require
from curricle.objectives.cloned_channels import head_sizes, is_map, selection_matrix
from curricle.objectives.cloned_weights import (
    Axis,
    ClonedWeights,
    Sizes,
    WeightPair,
    output_axis,
    paired_path,
    weight_pairs,
)
from curricle.objectives.losses import squared_error
from curricle.objectives.projections import Gaussian
from curricle.values import value


@final
@value
class LowRankClone:
    """Clone the teacher's weights and activations by trained projections.

    W_student = A W_teacher B^T, with matrices A and B of each map; loss = sum over the linear maps
    of paired blocks of the mean over positions and width of (h_student - A h_teacher)^2.

    Source:
        Hao et al. 2025 (arXiv 2505.12781). Deviations: the student has its own numbers of heads and
        neurons, so that outputs of a map inside a sublayer are projected, too (in the paper A is
        the identity there); biases are projected with the outputs of their map; weights of the
        teacher's size and normalizations train themselves, the former from the teacher's values;
        outputs of attention are compared after their projection and not before;
        with fewer blocks each is paired with the last of those that it stands for; the finished
        teacher's weights are projected also where a checkpoint teaches.
    """

    kind: Literal["low_rank_clone"] = "low_rank_clone"
    start: Literal["selection", "random"] = "selection"
    """Initial projections: `selection` of channels by activations on the first batch, as in RED, or
    `random`, independent normal numbers of variance 1 / (size of the teacher's axis)."""
    weight: float = Field(default=0.2, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million; the paper's 0.2."""

    @property
    def needs_teacher(self) -> bool:
        """Return True: weights and activations are the teacher's."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the places of the maps inside the blocks, and of the teacher's blocks.

        Raises:
            BindError: If a model has no weights, as stored targets have none, or the models are of
                different architectures.
        """
        model = require(teacher, "teacher")
        if not any(True for _ in model.module.parameters()):
            raise BindError("a low-rank clone needs a teacher with weights; got stored targets")
        weight_pairs(student, model)
        blocks = tuple(_blocks(student))
        maps = [path for path, _ in _maps(student)]
        if not maps:
            raise BindError(
                f"a low-rank clone needs a student with linear maps in numbered blocks; got "
                f"{type(student.module).__name__}; curricle.tapped(model, blocks=[...]) names them"
            )
        states = [model.place(paired_path(path, student, model)) for path in blocks]
        return Reads(
            student=tuple(student.place(path) for path in (*maps, *blocks)),
            teacher=(
                *(model.place(paired_path(path, student, model)) for path in maps),
                *states,
            ),
            models=(student, model),
            student_weights=True,
        )

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term with initial projections.

        Raises:
            BindError: If the data pair two tokenizers, or the outputs of a map have other positions
                than those of the first.
        """
        del is_residual
        if sample.batch.alignment is not None:
            raise BindError(
                "a low-rank clone needs models that read the same tokens; the data pair two "
                "tokenizers"
            )
        student, teacher = require(reads.models, "models")
        activations = require(sample.teacher, "teacher")
        maps = _maps(student)
        places = list(zip(reads.student, reads.teacher, strict=True))[: len(maps)]
        rows = [
            Rows.of(str(place), sample.student.hidden[place].shape[:-1], sample.batch)
            for place, _ in places
        ]
        for place, teacher_place in places:
            shapes = [
                tuple(states.shape[:-1])
                for states in (sample.student.hidden[place], activations.hidden[teacher_place])
            ]
            if shapes[0] != shapes[1] or set(rows) != {rows[0]}:
                raise BindError(
                    f"a low-rank clone needs outputs of all maps at the same positions of both "
                    f"models; got {shapes[0]} and {shapes[1]} at {str(place)!r}"
                )
        pairs = weight_pairs(student, teacher)
        return _BoundClone(
            declared=self,
            places=tuple(places),
            outputs=tuple((path, output_axis(module)) for path, module in maps),
            rows=rows[0],
            adapter=ClonedWeights(
                student.module,
                teacher.module,
                pairs,
                self._matrices(pairs, reads, sample, rows[0]),
            ),
        )

    def _matrices(
        self, pairs: tuple[WeightPair, ...], reads: Reads, sample: Sample, rows: Rows
    ) -> dict[Axis, Tensor]:
        """Return the initial projections; random ones of the weights that are products alone."""
        student, teacher = require(reads.models, "models")
        is_random = self.start == "random"
        axes = {
            axis: sizes
            for pair in pairs
            if pair.is_product or not is_random
            for axis, sizes in pair.projections.items()
        }
        if is_random:
            return {
                axis: Gaussian().matrix(
                    seed=sample.seed,
                    name=f"clone {axis[0]} {axis[1]}",
                    student_width=sizes[0],
                    teacher_width=sizes[1],
                )
                for axis, sizes in axes.items()
            }
        energies = _energies(student, reads, sample, rows)
        heads = head_sizes(student.module), head_sizes(teacher.module)
        matrices = {}
        for axis, sizes in axes.items():
            twin = (paired_path(axis[0], student, teacher), axis[1])
            widths = (
                (heads[0][axis], heads[1][twin]) if axis in heads[0] and twin in heads[1] else None
            )
            matrices[axis] = selection_matrix(sizes, energies, _block(student, axis[0]), widths)
        return matrices


def _blocks(model: TappedModel) -> list[str]:
    return [model.place(number).path for number in range(1, model.depth + 1)]


def _block(model: TappedModel, path: str) -> str:
    return next((block for block in _blocks(model) if path.startswith(f"{block}.")), "")


def _maps(model: TappedModel) -> list[tuple[str, nn.Module]]:
    """Return the linear maps inside the blocks."""
    return [
        (path, module)
        for path, module in model.module.named_modules()
        if is_map(module) and _block(model, path)
    ]


@torch.no_grad()
def _energies(
    student: TappedModel, reads: Reads, sample: Sample, rows: Rows
) -> dict[tuple[str, Sizes], Tensor]:
    """Return the energy of the teacher's channels, each state and map weighed alike."""
    hidden = require(sample.teacher, "teacher").hidden
    energies: dict[tuple[str, Sizes], Tensor] = defaultdict(lambda: torch.zeros(()))
    num_maps = len(_maps(student))
    for number, (place, teacher_place) in enumerate(zip(reads.student, reads.teacher, strict=True)):
        states = hidden[teacher_place]
        sizes = (sample.student.hidden[place].shape[-1], states.shape[-1])
        energy = rows.take(states, sample.batch).double().square().sum(0).cpu()
        block = _block(student, place.path) if number < num_maps else ""
        energies[block, sizes] = energies[block, sizes] + energy / energy.sum().clamp_min(1e-30)
    return dict(energies)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundClone:
    """`LowRankClone` with its places and projections."""

    declared: LowRankClone
    places: tuple[tuple[Place, Place], ...]
    """Outputs of the maps in student and teacher."""
    outputs: tuple[Axis, ...]
    """Axis of the outputs in the weight of each map."""
    rows: Rows
    adapter: ClonedWeights

    def count(self, batch: Batch) -> int:
        """Return the number of positions in the mean."""
        return self.rows.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> list[Tensor]:
        """Return the teacher's outputs of each map at the counted positions."""
        return [self.rows.take(teacher.hidden[place], batch) for _, place in self.places]

    def total(
        self, student: Activations, target: list[Tensor] | None, batch: Batch
    ) -> Float[Tensor, ""]:
        """Return the squared errors, each the mean over its width, summed over positions."""
        losses = []
        for (place, _), axis, states in zip(
            self.places, self.outputs, require(target, "target"), strict=True
        ):
            outputs = self.rows.take(student.hidden[place], batch)
            # With gradient to the projection, as in the authors' code.
            error = outputs - self.adapter.projected(states, axis)
            losses.append(squared_error(error, torch.zeros_like(error)))
        return torch.stack(losses).sum()

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        count = sum(math.prod(matrix.shape) for matrix in self.adapter.projections)
        return (
            f"{len(self.places)} maps",
            f"{self.declared.weight:g} x MSE, weights projected from the teacher's",
            f"trained from {self.declared.start}, {count:,} entries",
            "-",
        )
