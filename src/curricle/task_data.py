"""Opened tasks, and their common parts.

A task is a value; to open it gives a `TaskData`: the stream and held-out batches of a seed, and
the sizes that a model must have.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import final

from curricle.data.batch import Batch
from curricle.data.streams import Stream, examples_per_epoch
from curricle.metrics import ACCURACY
from curricle.objectives.labels import LabelLossName
from curricle.values import Plain

EVALUATION_SEED = 0
"""Seed of the held-out data of every task."""
LANGUAGE_MODELS = ("hf", "pretrained")
"""Kinds of models that read tokens."""
SHOWN_CLASSES = 6
"""Number of names of classes in a plan."""
SENTENCE_MODELS = ("sentence_encoder",)
"""Kinds of models that give an embedding of each text."""
ARGUMENTS = {"one_shot": "objective", "progressive": "objective", "extraction": "final_objective"}
"""Argument of the objective on outputs, by kind of curriculum."""

OF_VALUES: Mapping[str, object] = MappingProxyType(
    {"kind": "logits", "divergence": {"kind": "squared_error"}}
)
"""Objective on outputs that are values, not scores of classes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """An opened task."""

    stream: Stream
    """Training data."""
    evaluation: tuple[Batch, ...]
    """Held-out batches."""
    num_inputs: int
    """Features an example, size of the vocabulary, or channels of an image."""
    num_classes: int
    """Number of classes or values."""
    num_positions: int
    """Length of the sequences, or of the edge of an image; 1 for a task without positions."""
    name: str
    """The task in a few words."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by number; empty if the labels have none."""
    padding_token: int | None = 0
    """Id after the end of a sequence, which an embedding may ignore; None if every id is data."""
    mask_token: int | None = None
    """Id that stands for a hidden token; None where none is hidden."""
    teacher_num_inputs: int | None = None
    """Size of the teacher's vocabulary; None for that of the student."""
    teacher_num_positions: int | None = None
    """Length of the teacher's sequences; None for that of the student's."""

    @property
    def facts(self) -> str:
        """Return the numbers of rows and classes as a sentence for a plan."""
        rows = examples_per_epoch(self.stream)
        training = "new examples at every step" if rows is None else f"{rows:,} examples"
        held_out = sum(batch.num_examples for batch in self.evaluation)
        return f"data: {training} to train on and {held_out:,} held out, {self._outputs}"

    @property
    def _outputs(self) -> str:
        """Return the number of classes, values or tokens, in words."""
        labels = self.evaluation[0].labels if self.evaluation else None
        if labels is not None and labels.is_floating_point():
            return f"{self.num_classes:,} values each"
        if self.num_classes == self.num_inputs:
            return f"a vocabulary of {self.num_classes:,} tokens"
        more = len(self.class_names) - SHOWN_CLASSES
        listed = ", ".join(self.class_names[:SHOWN_CLASSES]) + (
            f", {more} more" if more > 0 else ""
        )
        return f"{self.num_classes:,} classes" + (f" ({listed})" if listed else "")

    @property
    def for_teacher(self) -> "TaskData":
        """Return the task with the sizes that a teacher must have."""
        if self.teacher_num_inputs is None or self.teacher_num_positions is None:
            return self
        return replace(
            self,
            num_inputs=self.teacher_num_inputs,
            num_classes=self.teacher_num_inputs,
            num_positions=self.teacher_num_positions,
        )


class BaseTask(ABC):
    """Facts of every task; the defaults are those of tasks that predict tokens."""

    __slots__ = ()

    @property
    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """Return the kinds of models that can read the data."""

    @property
    @abstractmethod
    def tokens_per_batch(self) -> int:
        """Return the positions a step, padding included."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the heads of Hugging Face models that give the task's outputs."""
        return ("masked_lm", "causal_lm")

    @property
    def metric(self) -> str:
        """Return the name of the metric by which the task is judged if the spec names none."""
        return ACCURACY.name

    @property
    def label_loss(self) -> LabelLossName:
        """Return the loss that fits the task's labels."""
        return "cross_entropy"

    @property
    def matching(self) -> Plain:
        """Return the objective on outputs that are values, not scores of classes."""
        return dict(OF_VALUES)

    @property
    def is_labeled(self) -> bool:
        """Return whether the data have labels."""
        return True


def with_objectives(call: Plain, task: BaseTask) -> Plain:
    """Return a call of a curriculum with objectives that suit the labels, where it names none.

    Outputs that are values, not scores of classes, are matched by the objective of the task.

    Args:
        call: Kind of the curriculum, and its arguments.
        task: The task.
    """
    kind = str(call.get("kind"))
    if task.label_loss == "cross_entropy":
        return call
    if kind == "from_labels":
        return {"loss": task.label_loss, **call}
    if kind == "auto":
        # Its rule reads the explained share, which objectives on logits alone have.
        is_shown = task.matching["kind"] == "logits"
        objective = {"objective": task.matching} if is_shown else {}
        return {**objective, "labels": {"loss": task.label_loss}, **call}
    if kind in ARGUMENTS:
        labels = {"label_loss": task.label_loss} if "label_weight" in call else {}
        return {ARGUMENTS[kind]: task.matching, **labels, **call}
    return call
