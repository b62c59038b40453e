"""Objectives on embeddings: their values, their similarities in a batch, and margins of triplets.

| objective | compares | widths |
|---|---|---|
| `MatchEmbeddings` | an embedding with that of the teacher | equal, or a projection |
| `MatchSimilarities` | the cosine similarities of all pairs of a batch | any |
| `MatchMargins` | scores of a positive minus those of negatives, for a query | any |

Embeddings are the outputs of both models: one a text, or one at each selected position.

Axes: row (counted embeddings), width (of an embedding), group (a query with its texts), text.

Design: every target is the teacher's embedding itself, so stored targets serve both objectives of
rows, and matrices of similarities are computed with the loss. Micro-batches would compare fewer
pairs than their batch, so the similarities of a batch are refused with gradient accumulation.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.colocation import beside
from curricle.data.batch import Batch, Rows, check_positions
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.adapters import LinearMap
from curricle.objectives.base import (
    MOST_WEIGHT,
    Reads,
    Sample,
    Target,
    check_group,
    logits_of,
    require,
)
from curricle.objectives.channel_selection import ChannelSelection
from curricle.objectives.logits import LOGIT_AXES
from curricle.objectives.losses import cosine_distance, squared_error
from curricle.objectives.projections import Learned, Projection
from curricle.objectives.similarities import Score, margin_error, similarity_error, similarity_kl
from curricle.values import Plain, value

NAME = "embeddings"
"""Name of the projection of outputs."""
FEWEST_ROWS = 2
"""Embeddings of a batch with a similarity."""
QUERY_AND_POSITIVE = 2
"""Texts of a group beside its negatives."""


@final
@value
class MatchEmbeddings:
    """Bring each embedding of the student close to the teacher's; mean over embeddings.

    Different widths need a projection: a fixed random map of the teacher's embedding to the
    student's width, or a `learned` map of the student's, which is trained with it and dropped.
    """

    kind: Literal["embeddings"] = "embeddings"
    distance: Literal["cosine", "squared_error"] = "cosine"
    """`cosine` distance (1 - cosine similarity) or `squared_error`, mean over the width."""
    projection: Projection | None = None
    """Map between embeddings of different widths; None compares equal widths as they are."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's embedding."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both outputs."""
        return _both(student, teacher)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundEmbeddings":
        """Return the term with its projection, if there is one.

        Raises:
            BindError: If widths differ without a projection, it is a selection, or embeddings are
                not those of the same texts or positions.
        """
        del reads, is_residual
        shape, teacher_shape = _shapes(sample)
        width, teacher_width = shape[-1], teacher_shape[-1]
        law, matrix, adapter = self.projection, None, None
        if law is None and width != teacher_width:
            raise BindError(
                f"embeddings of student and teacher must have the same width without a projection; "
                f"got {width} and {teacher_width}; MatchSimilarities compares embeddings of any "
                f"widths, projection={{'kind': 'gaussian'}} maps the teacher's to the student's "
                f"width, and 'width' of a SentenceEncoder ends in the teacher's"
            )
        logits = logits_of(sample.student)
        if isinstance(law, ChannelSelection):
            raise BindError(
                f"'projection' of embeddings must be 'learned' or drawn, such as 'gaussian', since "
                f"a selection is taken from states; got {law.kind!r}"
            )
        if isinstance(law, Learned):
            learned = law.adapter(
                seed=sample.seed, name=NAME, student_width=width, teacher_width=teacher_width
            )
            adapter = beside(learned, logits)
        elif law is not None:
            fixed = law.matrix(
                seed=sample.seed, name=NAME, student_width=width, teacher_width=teacher_width
            )
            matrix = beside(fixed, logits)
        return BoundEmbeddings(
            declared=self,
            outputs=_Outputs.of(shape, sample.batch, teacher_width),
            width=width,
            matrix=matrix,
            adapter=adapter,
        )


@final
@value
class MatchSimilarities:
    """Bring the cosine similarities of all pairs of a batch close to the teacher's.

    Mean over embeddings: with `squared_error` of the mean squared error over the others, with `kl`
    of the divergence of a softmax over the others, in nats.
    """

    kind: Literal["similarities"] = "similarities"
    divergence: Literal["squared_error", "kl"] = "squared_error"
    """`squared_error` of similarities, or `kl` of their softmax over the batch."""
    temperature: float = Field(default=0.05, gt=0)
    """Divisor of the similarities in the softmax, on both sides; for `kl` only."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def needs_teacher(self) -> bool:
        """Return True: targets are the teacher's embeddings."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both outputs."""
        return _both(student, teacher)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundSimilarities":
        """Return the term after checking that there are pairs.

        Raises:
            BindError: If a batch has a single embedding, or embeddings are not those of the same
                texts or positions.
        """
        del reads, is_residual
        shape, teacher_shape = _shapes(sample)
        outputs = _Outputs.of(shape, sample.batch, teacher_shape[-1])
        if outputs.count(sample.batch) < FEWEST_ROWS:
            raise BindError(
                f"'batch_size' must be {FEWEST_ROWS} or more to compare the similarities of a "
                f"batch; got {outputs.count(sample.batch)}"
            )
        return BoundSimilarities(declared=self, outputs=outputs, width=shape[-1])


@final
@value
class MatchMargins:
    """Bring the margins of a query's scores close to the teacher's (MarginMSE); mean over groups.

    A batch holds groups of consecutive texts: query, positive and negatives. The margin of a
    negative is the score of the positive minus its own.

    Source:
        Hofstätter et al. 2020 (arXiv 2010.02666).
    """

    kind: Literal["margins"] = "margins"
    score: Score = "cosine"
    """Score of a text for a query: `cosine` or `dot`, the inner product."""
    negatives: int = Field(default=1, gt=0)
    """Negatives of a query."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def needs_teacher(self) -> bool:
        """Return True: targets are the teacher's embeddings."""
        return True

    @property
    def texts(self) -> int:
        """Return the number of texts of a group."""
        return QUERY_AND_POSITIVE + self.negatives

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both outputs."""
        return _both(student, teacher)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundMargins":
        """Return the term after checking the first batch.

        Raises:
            BindError: If outputs are not one a text, or the batch does not consist of groups.
        """
        del reads, is_residual
        shape, teacher_shape = _shapes(sample)
        if shape[:-1] != (sample.batch.num_examples,):
            raise BindError(
                f"outputs must be one embedding for each of the {sample.batch.num_examples} texts "
                f"to have margins; got shape {shape}"
            )
        self.check_groups(sample.batch, kind=BindError)
        return BoundMargins(declared=self, widths=(shape[-1], teacher_shape[-1]))

    def check_groups(self, batch: Batch, *, kind: type[CurricleError] = DataError) -> None:
        """Check that a batch consists of groups of query, positive and negatives.

        Args:
            batch: The batch.
            kind: Class of the error: `BindError` while binding.
        """
        plural = "" if self.negatives == 1 else "s"
        members = f"query, positive and {self.negatives} negative{plural}"
        check_group(batch, self.texts, f"MatchMargins ({members})", kind=kind)


def _both(_student: TappedModel, teacher: TappedModel | None) -> Reads:
    require(teacher, "teacher")
    return Reads(student_logits=True, teacher_logits=True)


def _shapes(sample: Sample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of both outputs.

    Raises:
        BindError: If they are not embeddings of the same texts or positions.
    """
    teacher = require(sample.teacher, "teacher")
    shapes = tuple(logits_of(sample.student).shape), tuple(logits_of(teacher).shape)
    for owner, activations in (("student", sample.student), ("teacher", teacher)):
        check_positions(
            f"'logits' of the {owner}", activations.positions, sample.batch, kind=BindError
        )
    if shapes[0][:-1] != shapes[1][:-1] or len(shapes[0]) < LOGIT_AXES:
        raise BindError(
            f"outputs of student and teacher must be embeddings of the same texts, one a row; got "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    return shapes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs:
    """Counted rows of the outputs, and the form of the teacher's."""

    rows: Rows | None
    """Rows of outputs; None for those at selected positions."""
    teacher_width: int

    @classmethod
    def of(cls, shape: Sequence[int], batch: Batch, teacher_width: int) -> "_Outputs":
        """Return the rows of the outputs of a first batch."""
        rows = Rows.of("'logits'", shape[:-1], batch) if batch.selected is None else None
        return cls(rows=rows, teacher_width=teacher_width)

    @property
    def target_facts(self) -> Plain:
        """Return the dependencies of the target, which are those of logits as they are."""
        return {"kind": "logits", "num_classes": self.teacher_width}

    def count(self, batch: Batch) -> int:
        """Return the number of embeddings."""
        return batch.num_selected if self.rows is None else self.rows.count(batch)

    def take(self, activations: Activations, batch: Batch) -> Float[Tensor, "row width"]:
        """Return the counted embeddings of either model."""
        outputs = logits_of(activations)
        check_positions("'logits'", activations.positions, batch)
        return outputs.flatten(0, -2) if self.rows is None else self.rows.take(outputs, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundOutputs(ABC):
    """Part of a bound objective whose target is the teacher's embeddings."""

    outputs: _Outputs
    width: int
    """Width of the student."""

    @property
    def target_facts(self) -> Plain:
        """Return the dependencies of the target besides the teacher and the data."""
        return self.outputs.target_facts

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        return self.outputs.rows is None

    @property
    def sparse_temperature(self) -> float | None:
        """Return None: embeddings have no classes."""
        return None

    def count(self, batch: Batch) -> int:
        """Return the number of embeddings."""
        return self.outputs.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row teacher_width"]:
        """Return the teacher's embeddings."""
        return self.outputs.take(teacher, batch)

    @abstractmethod
    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss summed over embeddings."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundEmbeddings(_BoundOutputs):
    """`MatchEmbeddings` with its projection."""

    declared: MatchEmbeddings
    matrix: Float[Tensor, "student_width teacher_width"] | None
    """Fixed map of the teacher's embeddings; None without one."""
    adapter: LinearMap | None
    """Trained map of the student's embeddings; None without one."""

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the distance summed over embeddings."""
        target, embeddings = require(target, "target"), self.outputs.take(student, batch)
        if self.adapter is not None:
            embeddings = self.adapter(embeddings)
        if self.matrix is not None:
            target = target.to(self.matrix.dtype) @ self.matrix.mT
        if self.declared.distance == "cosine":
            return cosine_distance(embeddings, target)
        return squared_error(embeddings, target)

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        distance = declared.distance.replace("_", " ")
        law = "-" if declared.projection is None else declared.projection.kind
        widths = f"{self.width} <- {self.outputs.teacher_width}"
        return "embeddings", f"{declared.weight:g} x {distance}", law, widths


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSimilarities(_BoundOutputs):
    """`MatchSimilarities` with its rows."""

    declared: MatchSimilarities

    @property
    def compares_examples(self) -> bool:
        """Return True: the loss of an embedding depends on the others of its batch."""
        return True

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of similarities summed over embeddings."""
        embeddings, target = self.outputs.take(student, batch), require(target, "target")
        if self.declared.divergence == "kl":
            return similarity_kl(embeddings, target, temperature=self.declared.temperature)
        return similarity_error(embeddings, target)

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        form = "squared error"
        if declared.divergence == "kl":
            form = f"kl T={declared.temperature:g}"
        widths = f"{self.width} <- {self.outputs.teacher_width}"
        return "similarities", f"{declared.weight:g} x {form}", "-", widths


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundMargins:
    """`MatchMargins` with widths."""

    declared: MatchMargins
    widths: tuple[int, int]
    """Of student and teacher."""

    def count(self, batch: Batch) -> int:
        """Return the number of groups."""
        self.declared.check_groups(batch)
        return batch.num_examples // self.declared.texts

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "group text width"]:
        """Return the teacher's embeddings by group."""
        del batch
        return self._groups(teacher)

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the squared error of margins summed over groups."""
        del batch
        groups = self._groups(student)
        return margin_error(groups, require(target, "target"), score=self.declared.score)

    def _groups(self, activations: Activations) -> Float[Tensor, "group text width"]:
        # Batches are checked where they are counted: a compiled step has their tensors alone.
        embeddings = logits_of(activations)
        return embeddings.reshape(-1, self.declared.texts, embeddings.shape[-1])

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        form = f"{declared.weight:g} x MSE of {declared.score} margins"
        return "margins", form, "-", f"{self.widths[0]} <- {self.widths[1]}"
