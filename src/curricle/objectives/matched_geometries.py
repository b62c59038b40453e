"""Matching of the geometry of hidden states, without a projection: CKA and Procrustes.

Each objective compares all counted rows of a batch with each other, so that a batch must not be
divided by gradient accumulation or among processes.

Axes: row (counted positions of a batch), width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.base import MOST_WEIGHT, Reads, Sample, Target, require
from curricle.objectives.geometries import FEWEST_ROWS, cka_distance, procrustes_distance
from curricle.objectives.hidden import LayerPair, NamedPair
from curricle.objectives.paired_states import PairedStates
from curricle.objectives.readings import Reading
from curricle.values import Plain, value

Distance = Callable[[Tensor, Tensor], Tensor]
"""Distance of the rows of student and teacher, times their number."""


class _Geometry(ABC):
    """Match of two hidden states by a distance of their rows."""

    pair: LayerPair
    weight: float

    @property
    @abstractmethod
    def _distance(self) -> tuple[str, Distance]:
        """Return the distance in words and as a function."""

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's state."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the places of both taps."""
        return self.pair.reads(student, teacher)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundGeometry":
        """Return the term after checking that there are rows to compare.

        Raises:
            BindError: If the states have different positions, or a batch has a single one.
        """
        del is_residual
        states = _states(self.pair.reading, reads, sample)
        words, distance = self._distance
        return BoundGeometry(label=f"{self.weight:g} x {words}", states=states, loss=distance)


@final
@value
class MatchCKA(_Geometry):
    """Bring the linear centered kernel alignment (CKA) of two hidden states close to 1.

    loss = 1 - |S' T|^2 / (|S' S| |T' T|) over the counted rows of a batch, with centered columns.
    The alignment ignores rotations and scales, so that it needs no projection; it weighs directions
    by the squares of their variances.

    Source:
        Saha et al. 2022 (BMVC), with the linear kernel of Kornblith et al. 2019 (arXiv 1905.00414).
        Deviation: over positions and not over examples, where states have positions.
    """

    kind: Literal["cka"] = "cka"
    pair: NamedPair
    """Taps of both models."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def _distance(self) -> tuple[str, Distance]:
        return "1 - CKA", cka_distance


@final
@value
class MatchProcrustes(_Geometry):
    """Bring two hidden states close to each other after the best orthogonal map between them.

    loss = min over Q of |S Q - T|^2 = 2 - 2 |S' T|_* over the counted rows of a batch, with
    centered columns and Frobenius norm 1; |.|_* is the sum of singular values. For different widths
    Q maps the narrower states isometrically into the wider space. Each step has a singular value
    decomposition of the size of both widths.

    Source:
        arXiv 2509.25253, with the distance of Williams et al. 2021 (arXiv 2110.14739). Deviation:
        scaled states, so that the loss lies between 0 and 2 at every scale of the teacher.
    """

    kind: Literal["procrustes"] = "procrustes"
    pair: NamedPair
    """Taps of both models."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def _distance(self) -> tuple[str, Distance]:
        return "Procrustes", procrustes_distance


def _states(reading: Reading, reads: Reads, sample: Sample) -> PairedStates:
    """Return the states of both models at a layer pair.

    Raises:
        BindError: If the first batch has fewer than two rows.
    """
    states = PairedStates.of(reading, reads, sample)
    if states.count(sample.batch) < FEWEST_ROWS:
        raise BindError(
            f"taps {states.names!r} must have {FEWEST_ROWS} or more rows in a batch to compare "
            f"their geometry; got {states.count(sample.batch)}"
        )
    return states


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGeometry:
    """A distance of geometries with the places of both states."""

    label: str
    """Weight and distance in words."""
    states: PairedStates
    loss: Distance
    """Distance of the rows of student and teacher, times their number."""

    @property
    def compares_examples(self) -> bool:
        """Return True: the loss of a row depends on the others of its batch."""
        return True

    @property
    def target_facts(self) -> Plain:
        """Return the dependencies of the target besides the teacher and the data."""
        reading = self.states.reading
        reading.check_stored()
        return {
            "kind": "hidden",
            "place": str(self.states.teacher),
            "normalize": "none",
            "teacher_width": self.states.widths[1],
            "width": self.states.widths[1],
            **({"reading": reading.kind} if reading.label else {}),
        }

    @property
    def reads_selected(self) -> bool:
        """Return False: all positions with data count."""
        return self.states.selects

    @property
    def sparse_temperature(self) -> float | None:
        """Return None: hidden states have no classes."""
        return None

    def count(self, batch: Batch) -> int:
        """Return the number of compared rows."""
        return self.states.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row width"]:
        """Return the rows of the teacher's state."""
        return self.states.teacher_rows(teacher, batch)

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the distance times the number of rows."""
        return self.loss(self.states.student_rows(student, batch), require(target, "target"))

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        taps, widths = self.states.describe()
        return taps, " ".join(filter(None, [self.label, self.states.reading.label])), "-", widths
