"""Hidden-state matching between a student and a teacher of another width.

A fixed random projection maps the teacher's state to the student's width, and the student is
fitted to it by mean squared error. A *learned* projection works in the other direction: a trained
map takes the student's state to the teacher's width. Both belong to the bound objective, never to
the student, so an exported student contains no projection.

Axes: leading (example, position), row (counted positions), selected, width, compared_width (the
student's, or the teacher's with a learned projection).

Unit: squared units of the (normalized) compared state, mean over its width. With layer
normalization the value lies between 0 (equal) and 4 (opposite), 2 for unrelated states.

Source:
    Gupta and Karmalkar 2025 (arXiv 2503.17494), Figure 1. Learned: Romero et al. 2014, FitNets
    (arXiv 1412.6550).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Literal, final

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from curricle.colocation import beside
from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.skipping import check_always_runs
from curricle.models.tapped import Activations, Place, Tap, TappedModel, tap_number
from curricle.objectives.adapters import LinearMap
from curricle.objectives.base import MOST_WEIGHT, BoundObjective, Reads, Sample, require
from curricle.objectives.channel_selection import ChannelSelection, largest_channels
from curricle.objectives.frames import frame_counter
from curricle.objectives.losses import layer_normalize, rms_normalize, squared_error
from curricle.objectives.output_gradients import output_gradient
from curricle.objectives.paired_states import PairedStates, Positions
from curricle.objectives.projections import SHARED, Gaussian, Identity, Learned, Projection
from curricle.objectives.readings import Reading
from curricle.values import Plain, plain, value

Normalize = Literal["auto", "none", "layernorm", "rms"]
NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda states: states,
    "layernorm": layer_normalize,
    "rms": rms_normalize,
}


def normalizer_name(rule: Normalize, *, is_residual: bool) -> str:
    """Return the normalization of states that a rule means.

    Args:
        rule: The rule; `auto` is `layernorm` for residual streams and `none` otherwise.
        is_residual: Whether both models are residual streams.
    """
    if rule != "auto":
        return rule
    return "layernorm" if is_residual else "none"


def _is_default(reading: object) -> bool:
    """Return whether a reading is left out of specs and digests, which are older than readings."""
    return reading == "positions"


@final
@value
class LayerPair:
    """A student tap and the teacher tap for comparison.

    Equal fractions select blocks of equal relative depth: block k of the n blocks of the student,
    and the block of the teacher nearest to k / n of its depth. On 3 and 6 blocks, 0.5 selects
    blocks 2 and 4.
    """

    student: Tap
    """Tap of the student: a number, a fraction of its depth, or a module path."""
    teacher: Tap
    """Tap of the teacher: a number, a fraction of its depth, or a module path."""
    reading: Reading = Field(default="positions", exclude_if=_is_default)
    """Compared rows of both states: `positions`, all of them; `grid`, positions after adaptive
    averages of the larger map over the cells of the smaller; `pooled`, the mean over positions, as
    between a convolutional network and a vision transformer; or `channels`, one row a channel with
    the map as its features, for models with as many channels."""

    def teacher_tap(self, student: TappedModel, teacher: TappedModel) -> Tap:
        """Return the teacher's tap, as a number where both are one fraction.

        Args:
            student: The student.
            teacher: The teacher.
        """
        if self.student != self.teacher or not isinstance(self.student, float):
            return self.teacher
        if not student.depth or not teacher.depth:
            return self.teacher
        depth = Fraction(tap_number(self.student, student.depth), student.depth)
        return max(1, math.floor(depth * teacher.depth + Fraction(1, 2)))

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the places of both taps, for an objective that compares their states.

        Args:
            student: The student.
            teacher: The teacher.
        """
        place = _place("student", student, self.student)
        check_always_runs(student, place)
        model = require(teacher, "teacher")
        tap = self.teacher_tap(student, model)
        return Reads(
            student=(place,),
            teacher=(_place("teacher", model, tap),),
            student_frames=frame_counter(student),
            teacher_frames=frame_counter(model),
        )


def _named_taps(pair: object) -> object:
    """Return a layer pair, or its fields for validation by pydantic.

    Raises:
        SpecError: If it is neither; a list, for example, leaves open which tap is the student's.
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
    """Taps of both models."""
    projection: Projection = Gaussian()
    """Law of the fixed random map from teacher width to student width; `learned`, a map from
    student width to teacher width, trained from its initial values in each stage; or `selection` of
    the teacher's most important channels."""
    shared_projection: bool = False
    """Whether all taps use the same projection, which suits taps on one residual stream."""
    normalize: Normalize = "auto"
    """Normalization of both states: `layernorm` or `rms` without weights, or `none`. `auto` is
    `layernorm` if both models are residual streams and `none` otherwise."""
    center: bool = False
    """Whether the mean of the projected teacher state over some batches is subtracted."""
    positions: Positions = "all"
    """Counted positions: all with data, or only the selected positions, if the data select any."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that a shared projection is a fixed one.

        Raises:
            SpecError: If a learned projection or a selection is to be shared, or positions are
                selected that the reading of the pair does not have.
        """
        if self.positions == "selected" and self.pair.reading != "positions":
            raise SpecError(
                f"'positions' must be 'all' with reading {self.pair.reading!r}, which has no "
                f"position of the data; got 'selected'"
            )
        if self.shared_projection and isinstance(self.projection, Learned):
            raise SpecError(
                f"'shared_projection' has no effect with projection 'learned', which is trained "
                f"anew in each stage; remove it (got {self.shared_projection})"
            )
        if self.shared_projection and isinstance(self.projection, ChannelSelection):
            raise SpecError(
                f"'shared_projection' must be false with projection 'selection', which selects the "
                f"channels of each tap; got {self.shared_projection}"
            )

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's state."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the places of both taps, and the models if channels are ranked by gradients.

        Raises:
            BindError: If channels are ranked by gradients of stored targets, which have none.
        """
        reads = self.pair.reads(student, teacher)
        if not isinstance(self.projection, ChannelSelection) or self.projection.by == "energy":
            return reads
        model = require(teacher, "teacher")
        if not any(True for _ in model.module.parameters()):
            raise BindError(
                "a selection by 'gradients' needs a teacher with weights; got stored targets"
            )
        return replace(reads, models=(student, model))

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term with a sampled projection, or a learned one with sampled initial values.

        Raises:
            BindError: If the two states differ in any axis but their width, or lack the positions
                selected by the data.
        """
        states = PairedStates.of(
            self.pair.reading, reads, sample, takes_selected=self.positions == "selected"
        )
        matrix, adapter = self._project(states, sample)
        return _BoundHidden(
            declared=self._ranked(states, reads, sample),
            draw_facts={"projection_name": states.names, "projection_seed": sample.seed},
            states=states,
            rule=normalizer_name(self.normalize, is_residual=is_residual),
            matrix=matrix,
            adapter=adapter,
            mean=None,
        )

    def _ranked(self, states: PairedStates, reads: Reads, sample: Sample) -> "MatchHidden":
        """Return the objective with the channels that it ranks by gradients, if it does.

        Raises:
            BindError: If the data pair two tokenizers.
        """
        law = self.projection
        if reads.models is None or not isinstance(law, ChannelSelection):
            return self
        if sample.batch.alignment is not None:
            raise BindError(
                "a selection by 'gradients' needs models that read the same tokens; the data pair "
                "two tokenizers"
            )
        gradient = output_gradient(reads.models[1], states.teacher, sample.batch)
        rows = states.teacher_rows(Activations({states.teacher: gradient}, None), sample.batch)
        channels = largest_channels(rows.float().square().sum(0), states.widths[0])
        return replace(self, projection=ChannelSelection(channels=channels))

    def _project(
        self, states: PairedStates, sample: Sample
    ) -> tuple[Tensor | None, LinearMap | None]:
        """Return the sampled matrix, or the trained map, between the widths of two states.

        Args:
            states: The states; their names number the draw.
            sample: Activations beside which the projection lies, and the seed of the run.
        """
        student_width, teacher_width = states.widths
        place = sample.student.hidden[states.student]
        if isinstance(self.projection, Learned):
            adapter = self.projection.adapter(
                seed=sample.seed,
                name=states.names,
                student_width=student_width,
                teacher_width=teacher_width,
            )
            return None, beside(adapter, place)
        if isinstance(self.projection, ChannelSelection):
            self.projection.check(
                states.names, student_width=student_width, teacher_width=teacher_width
            )
            # Of equal energies until the calibration.
            return self.projection.matrix(
                place.new_ones(teacher_width).float(), student_width
            ), None
        matrix = self.projection.matrix(
            seed=sample.seed,
            name=SHARED if self.shared_projection else states.names,
            student_width=student_width,
            teacher_width=teacher_width,
        )
        return beside(matrix, place), None


def _place(role: str, model: TappedModel, tap: Tap) -> Place:
    """Return the place of a tap.

    Raises:
        BindError: If there is no such tap. The message names the model, and the remedy for a model
            without numbered blocks.
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
    """`MatchHidden` with resolved places, projection and normalization."""

    declared: MatchHidden
    draw_facts: Plain
    """Name and seed of the projection; they identify one draw."""
    states: PairedStates
    rule: str
    matrix: Float[Tensor, "student_width teacher_width"] | None
    """The fixed projection; None with a learned one."""
    adapter: LinearMap | None
    """The learned projection; None with a fixed one."""
    mean: Float[Tensor, " compared_width"] | None

    @property
    def target_facts(self) -> Plain:
        """Return the dependencies of the target besides the teacher and the data."""
        law, (student_width, teacher_width) = self.declared.projection, self.states.widths
        shared = {"projection_name": SHARED} if self.declared.shared_projection else {}
        reading = self.states.reading
        reading.check_stored()
        return {
            "kind": "hidden",
            "place": str(self.states.teacher),
            "normalize": self.rule,
            "center": self.declared.center,
            "teacher_width": teacher_width,
            "width": teacher_width if self.matrix is None else student_width,
            "law": plain(law),
            # Left out for the plain reading, so that older targets keep their key.
            **({"reading": reading.kind} if reading.label else {}),
            # These projections do not depend on the seed.
            **(
                {}
                if isinstance(law, (Learned, Identity, ChannelSelection))
                else self.draw_facts | shared
            ),
        }

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        return self.states.selects

    @property
    def sparse_temperature(self) -> float | None:
        """Return None: hidden states have no classes."""
        return None

    def count(self, batch: Batch) -> int:
        """Return the number of positions in the mean."""
        return self.states.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row compared_width"]:
        """Return the normalized (projected) state of the teacher, in float32 or autocast's type."""
        projected = self._project(teacher, batch)
        centered = projected if self.mean is None else projected - self.mean
        return NORMALIZERS[self.rule](centered)

    def _normalized(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row width"]:
        return NORMALIZERS[self.rule](self.states.teacher_rows(teacher, batch))

    def _project(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row compared_width"]:
        normalized = self._normalized(teacher, batch)
        if self.matrix is None:
            return normalized
        return normalized.to(self.matrix.dtype) @ self.matrix.mT

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the squared error, mean over the width, summed over positions."""
        compared = NORMALIZERS[self.rule](self.states.student_rows(student, batch))
        if self.adapter is not None:
            compared = NORMALIZERS[self.rule](self.adapter(compared))
        return squared_error(compared, require(target, "target"))

    @property
    def wants_calibration(self) -> bool:
        """Return whether the target is centered, or its channels are selected."""
        return self.declared.center or isinstance(self.declared.projection, ChannelSelection)

    def calibrated(self, teachers: Iterable[tuple[Activations, Batch]]) -> BoundObjective:
        """Return the term with its selection, and the mean of the projected state if centered."""
        batches, term, law = list(teachers), self, self.declared.projection
        if isinstance(law, ChannelSelection):
            rows = [self._normalized(*pair).float() for pair in batches]
            total = torch.stack([states.square().sum(0) for states in rows]).sum(0)
            energies = total / max(sum(map(len, rows)), 1)
            term = replace(self, matrix=law.matrix(energies, self.states.widths[0]))
        return replace(term, mean=term.mean_target(batches)) if self.declared.center else term

    def mean_target(
        self, teachers: Iterable[tuple[Activations, Batch]]
    ) -> Float[Tensor, " compared_width"]:
        """Return the mean of the projected state over some batches."""
        total, count = torch.zeros(1, dtype=torch.float32), 0
        for activations, batch in teachers:
            projected = self._project(activations, batch)
            total = beside(total, projected) + projected.sum(0)
            count += projected.shape[0]
        return total / max(count, 1)

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        student_width, teacher_width = self.states.widths
        terms = [f"{self.declared.weight:g} x MSE", self.rule if self.rule != "none" else ""]
        terms += ["centered" if self.declared.center else ""]
        terms += ["selected" if self.declared.positions == "selected" else ""]
        terms += [self.states.reading.label]
        law = self.declared.projection.kind + (" shared" if self.declared.shared_projection else "")
        shape = f"{student_width}x{teacher_width}"
        if self.adapter is not None:
            shape = f"{teacher_width}x{student_width}"
        taps, widths = self.states.describe()
        return taps, " ".join(filter(None, terms)), f"{law} {shape}", widths
