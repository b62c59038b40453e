"""Objective on logits: matching those of a teacher.

Logits are read at the selected positions only, so a masked language model computes its head at
masked tokens and nowhere else. If the data select no positions, all positions with logits
and data count; for models of padded sound, as those trained by CTC, these are frames.

Axes: leading (example, position), row (counted positions), class.

Unit: nats a counted position; with `SquaredError` the squared unit of the outputs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.data.batch import Batch, Rows, check_positions
from curricle.errors import BindError, SpecError
from curricle.models.heads import LinearHead
from curricle.models.model_notes import check_problem_type
from curricle.models.tapped import OUTPUT, Activations, Place, TappedModel
from curricle.models.vocabularies import common_classes
from curricle.objectives.base import (
    MOST_WEIGHT,
    Reads,
    Sample,
    Target,
    logits_of,
    refuse_embeddings,
    require,
)
from curricle.objectives.chunked import (
    Chunk,
    RowLoss,
    chunked_divergence,
    chunked_total,
)
from curricle.objectives.divergences import Divergence, ForwardKL, SquaredError
from curricle.objectives.explained_share import explained_share, sampled_rows
from curricle.objectives.frames import FrameCounter, counter_of_states, frame_counter
from curricle.objectives.sparse import SparseTarget, sparse_forward_kl
from curricle.values import Plain, value

LOGIT_AXES = 2
"""Minimum number of axes of logits: rows and classes."""
FEWEST_CLASSES = 2
"""Minimum number of classes; a distribution over a single class is constant."""


def is_none(name: object) -> bool:
    """Return whether a name is left out of specs and digests, which are older than it."""
    return name is None


@final
@value
class MatchLogits:
    """Bring the student's output distribution close to the teacher's.

    Mean over selected positions, in nats, times `student_temperature**2` with `scale`
    `temperature_squared`.

    Source:
        Hinton et al. 2015 (arXiv 1503.02531) for the temperature; both papers of the curricula use
        student temperature 1 and no squared factor. Deviation: KL instead of soft cross-entropy
        (same gradient), so that the value is zero at a match.
    """

    kind: Literal["logits"] = "logits"
    divergence: Divergence = ForwardKL()
    """Divergence of the two distributions, or the squared error of the outputs as they are."""
    teacher_temperature: float = Field(default=1.0, ge=0)
    """Softening of the teacher; dimensionless; 0 uses its arg-max as a label."""
    student_temperature: float = Field(default=1.0, gt=0)
    """Softening of the student; dimensionless, positive."""
    scale: Literal["none", "temperature_squared"] = "none"
    """`temperature_squared` multiplies by the squared student temperature, which keeps the
    gradient's size if both temperatures are equal."""
    num_classes: int | None = Field(default=None, gt=0)
    """Number of leading classes to compare, for vocabularies padded to different sizes, as from
    `curricle.common_vocabulary`. None: if both models come from folders with tokenizers, the common
    leading token ids; otherwise all classes, of which both models must have the same number."""
    chunk: Chunk | None = None
    """Number of positions with logits in memory at one time, for large vocabularies: a number,
    `auto` for 256 MiB of a model's logits (on a CPU at most 512 positions; on a GPU with triton for
    512 MiB in the model's precision), None for all. Heads must end in a linear map."""
    output: str | None = Field(default=None, exclude_if=is_none)
    """Name of the matched entry of both models' outputs, as one head of several; None for the
    logits."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that the divergence is defined at the temperatures, and `chunk` for the output.

        Raises:
            SpecError: If `chunk` comes with a named output.
        """
        if self.output is not None and self.chunk is not None:
            raise SpecError(
                f"'chunk' has no effect with 'output', whose head is unknown; remove it (got "
                f"{self.chunk})"
            )
        self.divergence.check(
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's distribution."""
        return True

    @property
    def _needs_classes(self) -> bool:
        return not isinstance(self.divergence, SquaredError)

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both logits, or both heads with `chunk`."""
        common = None
        if self.output is not None:
            tap = f"{OUTPUT}:{self.output}"
            teacher = require(teacher, "teacher")
            return Reads(
                student=(student.place(tap),),
                teacher=(teacher.place(tap),),
                student_frames=frame_counter(student),
            )
        if self._needs_classes:
            check_problem_type(student, "student")
            check_problem_type(require(teacher, "teacher"), "teacher")
            common = common_classes(student, require(teacher, "teacher"))
        frames = frame_counter(student)
        if self.chunk is None:
            return Reads(
                student_logits=True,
                teacher_logits=True,
                common_classes=common,
                student_frames=frames,
            )
        return Reads(
            student_head=True, teacher_head=True, common_classes=common, student_frames=frames
        )

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundLogits":
        """Return the term after checking the vocabularies.

        Raises:
            BindError: If the numbers of classes differ without `num_classes`, there are fewer than
                two classes, or the positions of the logits are not those of the data.
        """
        if self.num_classes is None and reads.common_classes is not None:
            # Logits behind the common vocabulary are padding, or tokens that one side lacks.
            limited = replace(self, num_classes=reads.common_classes)
            return limited.bind(reads, sample, is_residual=is_residual)
        if sample.batch.matched is not None:
            raise BindError(
                "'data' must have a counterpart of the teacher at every position to match logits "
                "by class; got 'matched' positions, as of two tokenizers; MatchPairedLogits "
                "compares vocabularies of two tokenizers"
            )
        teacher_activations = require(sample.teacher, "teacher")
        # Taps of other objectives are no outputs of this one.
        reads = reads if self.output else replace(reads, student=(), teacher=())
        sides = {
            "student": at_output(sample.student, reads.student, sample.batch),
            "teacher": at_output(teacher_activations, reads.teacher, sample.batch),
        }
        shapes = {owner: logits_shape(self.chunk, side) for owner, side in sides.items()}
        if self._needs_classes:
            refuse_embeddings("student", sample.student, self.divergence.kind)
            refuse_embeddings("teacher", teacher_activations, self.divergence.kind)
        self._check_shapes(shapes)
        *leading, student = shapes["student"]
        *teacher_leading, teacher = shapes["teacher"]
        self._check_classes(student, teacher)
        for owner, side in sides.items():
            name = f"'logits' of the {owner}"
            check_positions(name, side.positions, sample.batch, kind=BindError)
        if leading != teacher_leading:
            raise BindError(
                f"'logits' of student and teacher must have the same positions; "
                f"got {tuple(leading)} and {tuple(teacher_leading)}"
            )
        selects_none = sample.batch.selected is None
        frames = counter_of_states(reads.student_frames, leading, sample.batch)
        counted = sample.batch if frames is None else frames.batch(sample.batch)
        rows = Rows.of("'logits'", leading, counted) if selects_none else None
        return BoundLogits(
            declared=self,
            reads=reads,
            rows=rows,
            frames=frames if selects_none else None,
            num_classes=self.num_classes or teacher,
        )

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that outputs define distributions, or have values on their last axis.

        Raises:
            BindError: If not.
        """
        for role, shape in shapes.items():
            if self._needs_classes:
                check_scores(role, shape)
            elif len(shape) < LOGIT_AXES:
                raise BindError(
                    f"outputs of the {role} must have their values on the last axis; got shape "
                    f"{shape}; for a single value return (examples, 1), without squeeze(-1)"
                )

    def _check_classes(self, student: int, teacher: int) -> None:
        """Check that both models have the compared classes.

        Raises:
            BindError: If not.
        """
        if self.num_classes is None and student != teacher:
            raise BindError(
                f"'logits' of student and teacher must have the same classes, or values, to be "
                f"matched; got {student} and {teacher}; if the larger vocabulary is padded at its "
                f"end, 'num_classes' of MatchLogits is the number of real classes, "
                f"which curricle.common_vocabulary returns for two tokenizers"
            )
        if self.num_classes is not None and self.num_classes > min(student, teacher):
            raise BindError(
                f"'num_classes' must be at most the {student} and {teacher} classes of student and "
                f"teacher; got {self.num_classes}"
            )


def check_scores(role: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of logits after checking that they define a distribution.

    Args:
        role: `student` or `teacher`.
        shape: Their shape; classes on the last axis.

    Raises:
        BindError: If there is only a single value per example or position.
    """
    if len(shape) < LOGIT_AXES or shape[-1] < FEWEST_CLASSES:
        raise BindError(
            f"'logits' of the {role} must have two classes or more to define probabilities; got "
            f"shape {shape}, a single value each; for regression set 'objective' of one_shot, "
            f"or 'final_objective' of other strategies, to MatchLogits(divergence="
            f"{{'kind': 'squared_error'}}), or fit labels by loss='squared_error'; for a binary "
            f"logit z return torch.cat([torch.zeros_like(z), z], dim=-1)"
        )
    return shape


def logits_shape(chunk: Chunk | None, activations: Activations) -> tuple[int, ...]:
    """Return the shape of logits; with `chunk` from the head, without computing them."""
    if chunk is None:
        return tuple(logits_of(activations).shape)
    head = require(activations.head, "head")
    return (*head.states.shape[:-1], head.num_classes)


def at_output(activations: Activations, places: tuple[Place, ...], batch: Batch) -> Activations:
    """Return activations with a named output, if one is read, in the place of the logits.

    Args:
        activations: Activations of a pass.
        places: The place of the output; empty if none is read.
        batch: The batch of the pass.

    Raises:
        DataError: If the output has other positions than the data, which select some.
    """
    if not places:
        return activations
    output = activations.hidden[places[0]]
    if batch.selected is None:
        return replace(activations, logits=output)
    examples, *space = output.shape[:-1]
    positions = (examples, math.prod(space)) if space else (examples,)
    check_positions(f"{str(places[0])!r}", positions, batch)
    return replace(activations, logits=output.flatten(0, -2)[batch.selected], positions=positions)


def softening_words(teacher: float, student: float) -> str:
    """Return the temperatures of two models in words: one number if they are equal.

    Args:
        teacher: Temperature of the teacher.
        student: Temperature of the student.
    """
    return f"T={teacher:g}" if teacher == student else f"T={teacher:g}/{student:g}"


def matched_output(objectives: Iterable[object]) -> str:
    """Return the name of the output that all objectives on logits match; empty if none is common.

    Args:
        objectives: Objectives of a curriculum.
    """
    names = {item.output for item in objectives if isinstance(item, MatchLogits)}
    return next(iter(names)) or "" if len(names) == 1 else ""


def output_notes(objectives: Sequence[object], student: TappedModel) -> tuple[str, ...]:
    """Return a note on the output that is compared with labels, if objectives match named outputs.

    Args:
        objectives: Objectives of a curriculum.
        student: The student.
    """
    matched = {item.output for item in objectives if isinstance(item, MatchLogits)} - {None}
    declared: str = getattr(getattr(student, "axes", None), "output", "")
    if not matched or matched == {declared}:
        return ()
    names = ", ".join(sorted(map(repr, matched)))
    common = matched_output(objectives)
    if declared:
        compared = f"output {declared!r} of the student, as curricle.tapped declares"
    elif common:
        compared = f"the logits of the student, in 'evaluation' with {common!r} if it has none"
    else:
        compared = "the logits of the student"
    return (f"labels are compared with {compared}; the teacher is matched at {names}",)


def temperature_notes(objectives: Sequence[object]) -> tuple[str, ...]:
    """Return a note on objectives whose temperatures differ; none for arg-max targets.

    Args:
        objectives: Objectives of a curriculum.
    """
    pairs = {
        (item.teacher_temperature, item.student_temperature)
        for item in objectives
        if isinstance(item, MatchLogits)
    }
    return tuple(
        f"temperatures of MatchLogits differ, {teacher:g} of the teacher and {student:g} of the "
        f"student, so that equal logits are no optimum; the loss of Hinton et al. (2015) has both "
        f"alike, with scale='temperature_squared'"
        for teacher, student in sorted(pairs)
        if teacher not in (0, student)
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLogits:
    """`MatchLogits` with equal vocabularies."""

    declared: MatchLogits
    reads: Reads
    rows: Rows | None
    """Rows with counted logits; None for the selected positions."""
    frames: FrameCounter | None
    """Counter of the frames of padded samples, if the logits have frames."""
    num_classes: int
    """Number of classes to compare."""

    @property
    def target_facts(self) -> Plain:
        """Return the dependencies of the target besides the teacher and the data.

        Raises:
            BindError: If the output has a name.
        """
        if self.declared.output is not None:
            raise BindError(
                f"'output' must be None for stored targets, which hold logits and hidden states; "
                f"got {self.declared.output!r}"
            )
        return {"kind": "logits", "num_classes": self.num_classes}

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        return self.rows is None

    @property
    def sparse_temperature(self) -> float | None:
        """Return the teacher's temperature; None for a divergence that needs all classes."""
        declared = self.declared
        return declared.teacher_temperature if isinstance(declared.divergence, ForwardKL) else None

    def count(self, batch: Batch) -> int:
        """Return the number of selected positions; without selection, of all with data."""
        return batch.num_selected if self.rows is None else self.rows.count(self._counted(batch))

    def _counted(self, batch: Batch) -> Batch:
        """Return a batch with the positions of the logits."""
        return batch if self.frames is None else self.frames.batch(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row class"] | LinearHead:
        """Return the teacher's logits, or its head with `chunk`."""
        if self.declared.chunk is None:
            return self.logits(at_output(teacher, self.reads.teacher, batch), batch)
        return self._head(teacher, batch).detached

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the divergence summed over selected positions, in nats."""
        declared = self.declared
        target = require(target, "target")
        if not isinstance(target, LinearHead):
            total = self._divergence(student, target, batch)
        else:
            total = chunked_divergence(
                self._head(student, batch),
                target,
                declared.divergence,
                student_temperature=declared.student_temperature,
                teacher_temperature=declared.teacher_temperature,
                chunk=declared.chunk or "auto",
            )
        squared = declared.student_temperature**2
        return total * squared if declared.scale == "temperature_squared" else total

    def explained_rows(
        self, student: Activations, target: Target, batch: Batch
    ) -> tuple[Float[Tensor, "row class"], Float[Tensor, "row class"]] | None:
        """Return some rows of the student's logits and of a target; None for a sparse one."""
        if isinstance(target, SparseTarget):
            return None
        if self.declared.chunk is None:
            logits = self.logits(at_output(student, self.reads.student, batch), batch)
            return sampled_rows(logits), sampled_rows(target)
        return sampled_rows(self._head(student, batch).detached), sampled_rows(target)

    def explained_share(
        self, pairs: Sequence[tuple[Float[Tensor, "row class"], Float[Tensor, "row class"]]]
    ) -> float | None:
        """Return the share of the teacher's outputs that the student explains in such rows."""
        declared = self.declared
        return explained_share(
            pairs,
            declared.divergence,
            student_temperature=declared.student_temperature,
            teacher_temperature=declared.teacher_temperature,
        )

    def _divergence(
        self, student: Activations, target: Tensor | SparseTarget, batch: Batch
    ) -> Float[Tensor, ""]:
        """Return the divergence from computed logits or a sparse target."""
        chunk, compare = self.declared.chunk, self._comparison(target)
        if chunk is not None:
            return chunked_total(self._head(student, batch), compare, chunk=chunk)
        named = at_output(student, self.reads.student, batch)
        return compare(self.logits(named, batch), slice(None))

    def _comparison(self, target: Tensor | SparseTarget) -> RowLoss:
        declared = self.declared
        if isinstance(target, Tensor):
            return lambda logits, rows: declared.divergence(
                logits,
                target[rows],
                student_temperature=declared.student_temperature,
                teacher_temperature=declared.teacher_temperature,
            )
        if target.temperature != declared.teacher_temperature:
            raise BindError(
                f"'teacher_temperature' must be {target.temperature:g}, the temperature of the "
                f"stored targets; got {declared.teacher_temperature:g}"
            )
        return lambda logits, rows: sparse_forward_kl(
            logits, target.at(rows), student_temperature=declared.student_temperature
        )

    def logits(self, activations: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        """Return the counted logits of either model."""
        logits = logits_of(activations)
        check_positions("'logits'", activations.positions, batch)
        if self.declared.num_classes is not None:
            logits = logits[..., : self.declared.num_classes]
        return logits if self.rows is None else self.rows.take(logits, self._counted(batch))

    def _head(self, activations: Activations, batch: Batch) -> LinearHead:
        check_positions("'logits'", activations.positions, batch)
        head = require(activations.head, "head").first(self.declared.num_classes)
        if self.rows is None:
            return head
        return replace(head, states=self.rows.take(head.states, self._counted(batch)))

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        softening = softening_words(declared.teacher_temperature, declared.student_temperature)
        tap = "logits" if declared.output is None else f"{OUTPUT}:{declared.output}"
        return tap, f"{declared.weight:g} x {declared.divergence.kind} {softening}", "-", "-"
