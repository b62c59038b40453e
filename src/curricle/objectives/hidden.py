"""How is a student's hidden state brought close to a teacher's of another width?

The teacher's state goes through a fixed random projection to the student's width; the student is
fitted to it by mean squared error. With a *learned* projection it is the other way round: a trained
map takes the student's state to the teacher's width. Either is part of the bound objective, never
of the student, so an exported student holds nothing but itself.

Axes: leading (example, position), row (counted positions), selected, width, compared_width (the
student's, or the teacher's with a learned projection).

Unit: squared units of the (normalized) compared state, mean over its width. With layer
normalization the value lies between 0 (equal) and 4 (opposite), 2 for unrelated states.

Source:
    Gupta and Karmalkar 2025 (arXiv 2503.17494), Figure 1. Learned: Romero et al. 2014, FitNets
    (arXiv 1412.6550).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import BeforeValidator, Field
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import BindError, SpecError
from curricle.models.skipping import check_always_runs
from curricle.models.tapped import Activations, Place, Tap, TappedModel
from curricle.objectives.adapters import LinearMap
from curricle.objectives.losses import layer_normalize, rms_normalize, squared_error
from curricle.objectives.projections import SHARED, Gaussian, Identity, Learned, Projection
from curricle.objectives.terms import (
    MOST_WEIGHT,
    BoundObjective,
    Reads,
    Rows,
    Sample,
    check_positions,
    required,
)
from curricle.specs import Plain, plain, value

Positions = Literal["all", "selected"]
Normalize = Literal["auto", "none", "layernorm", "rms"]
NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda states: states,
    "layernorm": layer_normalize,
    "rms": rms_normalize,
}


@final
@value
class LayerPair:
    """A student tap and the teacher tap it is compared with."""

    student: Tap
    """Tap of the student: a number, a fraction of its depth, or a module path."""
    teacher: Tap
    """Tap of the teacher: a number, a fraction of its depth, or a module path."""


def _named_taps(pair: object) -> object:
    """Return a layer pair, or its fields for pydantic to judge.

    Raises:
        SpecError: If it is neither, as a list is, in which either tap could be the student's.
    """
    if not isinstance(pair, (LayerPair, Mapping)):
        raise SpecError(
            f"a layer pair must name its taps, as curricle.LayerPair(student=1, teacher=2), or "
            f"{{student: 1, teacher: 2}} in a file; got {pair!r}"
        )
    return pair


NamedPair = Annotated[LayerPair, BeforeValidator(_named_taps)]
"""Field type that takes a `LayerPair` or its fields."""


@final
@value
class MatchHidden:
    """Bring a hidden state of the student close to a projection of the teacher's.

    loss = mean over positions and student width of (N(s) - N(A N(t) - c))^2, where N is the
    normalization, A the projection and c the calibrated mean (if centered).

    With a learned projection W it is the mean over positions and teacher width of
    (N(W N(s)) - N(N(t) - c))^2, and W is trained together with the student.

    Source:
        Gupta and Karmalkar 2025 (arXiv 2503.17494), Figure 1: mean squared error to a random
        projection. Deviation: normalization, not mentioned there; it decides the outcome on
        residual streams, whose scale grows with depth. `normalize="none"` is the plain form.
    """

    kind: Literal["hidden"] = "hidden"
    pair: NamedPair
    """Where both models are read."""
    projection: Projection = Gaussian()
    """Law of the fixed random map from teacher width to student width, or `learned`, a map from
    student width to teacher width that each stage trains anew."""
    shared_projection: bool = False
    """Whether all taps use one projection, as taps of one residual stream may."""
    normalize: Normalize = "auto"
    """Normalization of both states: `layernorm` or `rms` without weights, or `none`. `auto` is
    `layernorm` if both models are residual streams and `none` otherwise."""
    center: bool = False
    """Whether the mean of the projected teacher state over some batches is subtracted."""
    positions: Positions = "all"
    """Positions that count: all that hold data, or only the selected ones, if the data select."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that only what is fixed is shared.

        Raises:
            SpecError: If a learned projection is to be shared.
        """
        if self.shared_projection and isinstance(self.projection, Learned):
            raise SpecError(
                f"'shared_projection' must be left out with projection 'learned', which each "
                f"stage trains anew; got {self.shared_projection}"
            )

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's state."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the two places."""
        place = _place("student", student, self.pair.student)
        check_always_runs(student, place)
        return Reads(
            student=(place,),
            teacher=(_place("teacher", required(teacher, "teacher"), self.pair.teacher),),
        )

    def chosen(self, batch: Batch) -> Int[Tensor, " selected"] | None:
        """Return the only positions of a batch that count, or None if all with data do."""
        return batch.selected if self.positions == "selected" else None

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term with its projection, or the first values of a learned one, drawn.

        Raises:
            BindError: If the two states differ in anything but their width, or have not the
                positions that the data select.
        """
        student = sample.student.hidden[reads.student[0]]
        teacher = required(sample.teacher, "teacher").hidden[reads.teacher[0]]
        names = f"{reads.student[0]} <- {reads.teacher[0]}"
        if student.shape[:-1] != teacher.shape[:-1]:
            raise BindError(
                f"taps {names!r} must agree in examples and positions; "
                f"got {tuple(student.shape[:-1])} and {tuple(teacher.shape[:-1])}"
            )
        rows = Rows.of(f"taps {names!r}", student.shape[:-1], sample.batch)
        if self.chosen(sample.batch) is not None and rows.per_example is not None:
            raise BindError(
                f"taps {names!r} must have the positions {sample.batch.positions} of the data, "
                f"of which some are selected; got {tuple(student.shape[:-1])}"
            )
        law, device = self.projection, student.device
        ours, theirs = student.shape[-1], teacher.shape[-1]
        matrix: Tensor | None = None
        adapter: LinearMap | None = None
        if isinstance(law, Learned):
            adapter = law.adapter(
                seed=sample.seed, name=names, student_width=ours, teacher_width=theirs
            ).to(device)
        else:
            matrix = law.matrix(
                seed=sample.seed,
                name=SHARED if self.shared_projection else names,
                student_width=ours,
                teacher_width=theirs,
            ).to(device)
        rule = self.normalize
        if rule == "auto":
            rule = "layernorm" if is_residual else "none"
        return _BoundHidden(
            declared=self,
            drawn={"projection_name": names, "projection_seed": sample.seed},
            reads=reads,
            rule=rule,
            rows=rows,
            widths=(ours, theirs),
            matrix=matrix,
            adapter=adapter,
            mean=None,
            selects=self.chosen(sample.batch) is not None,
        )


def _place(role: str, model: TappedModel, tap: Tap) -> Place:
    """Return the place of a tap.

    Raises:
        BindError: If there is none; it says whose tap it is, and how taps get numbers.
    """
    try:
        return model.place(tap)
    except BindError as error:
        is_unnumbered = (
            not model.depth and not isinstance(tap, str) and "blocks=[...]" not in str(error)
        )
        remedy = (
            "; curricle.tapped(model, blocks=[...]) numbers its blocks" if is_unnumbered else ""
        )
        raise BindError(f"{role}'s {error}{remedy}") from None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundHidden:
    """`MatchHidden` with places, projection and normalization known."""

    declared: MatchHidden
    drawn: Plain
    """What tells a draw of the projection from others."""
    reads: Reads
    rule: str
    rows: Rows
    widths: tuple[int, int]
    """Of student and teacher."""
    matrix: Float[Tensor, "student_width teacher_width"] | None
    """The fixed projection; None with a learned one."""
    adapter: LinearMap | None
    """The learned projection; None with a fixed one."""
    mean: Float[Tensor, " compared_width"] | None
    selects: bool
    """Whether the data select positions, and only these count."""

    @property
    def target_facts(self) -> Plain:
        """Return what the target depends on besides the teacher and the data."""
        law, (ours, theirs) = self.declared.projection, self.widths
        shared = {"projection_name": SHARED} if self.declared.shared_projection else {}
        return {
            "kind": "hidden",
            "place": str(self.reads.teacher[0]),
            "normalize": self.rule,
            "center": self.declared.center,
            "teacher_width": theirs,
            "width": theirs if self.matrix is None else ours,
            "law": plain(law),
            # Without a draw nothing is to be told apart.
            **({} if isinstance(law, (Learned, Identity)) else self.drawn | shared),
        }

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        return self.selects

    @property
    def sparse_temperature(self) -> float | None:
        """Return None: a state has no classes."""
        return None

    def count(self, batch: Batch) -> int:
        """Return the number of positions the mean is over."""
        selected = self.declared.chosen(batch)
        return self.rows.count(batch) if selected is None else selected.numel()

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row compared_width"]:
        """Return the normalized (projected) state of the teacher, in float32 or autocast's."""
        projected = self._project(teacher, batch)
        centered = projected if self.mean is None else projected - self.mean
        return NORMALIZERS[self.rule](centered)

    def _project(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row compared_width"]:
        states = self._rows(teacher.hidden[self.reads.teacher[0]], batch)
        normalized = NORMALIZERS[self.rule](states)
        if self.matrix is None:
            return normalized
        return normalized.to(self.matrix.dtype) @ self.matrix.mT

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the squared error, mean over the width, summed over positions."""
        states = self._rows(student.hidden[self.reads.student[0]], batch)
        compared = NORMALIZERS[self.rule](states)
        if self.adapter is not None:
            compared = NORMALIZERS[self.rule](self.adapter(compared))
        return squared_error(compared, required(target, "target"))

    def _rows(
        self, states: Float[Tensor, "*leading width"], batch: Batch
    ) -> Float[Tensor, "row width"]:
        selected = self.declared.chosen(batch)
        if selected is None:
            return self.rows.take(states, batch)
        check_positions("a state", states.shape[:-1], batch)
        return states.flatten(0, -2)[selected]

    @property
    def wants_calibration(self) -> bool:
        """Return whether a mean is to be subtracted."""
        return self.declared.center

    def calibrated(self, teachers: Iterable[tuple[Activations, Batch]]) -> BoundObjective:
        """Return the term with the mean of the projected state over the given batches."""
        total, count = torch.zeros(1, dtype=torch.float32), 0
        for activations, batch in teachers:
            projected = self._project(activations, batch)
            total = total.to(projected.device) + projected.sum(0)
            count += projected.shape[0]
        return replace(self, mean=total / max(count, 1))

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        ours, theirs = self.widths
        terms = [f"{self.declared.weight:g} x MSE", self.rule if self.rule != "none" else ""]
        terms += ["centered" if self.declared.center else ""]
        terms += ["selected" if self.declared.positions == "selected" else ""]
        law = self.declared.projection.kind + (" shared" if self.declared.shared_projection else "")
        shape = f"{ours}x{theirs}" if self.adapter is None else f"{theirs}x{ours}"
        taps = f"{self.reads.student[0].label} <- {self.reads.teacher[0].label}"
        return taps, " ".join(filter(None, terms)), f"{law} {shape}", f"{ours} <- {theirs}"
