"""Teacher that several students share, at the cost of one.

A `SharedTeacher` replaces the same `LiveTeacher` in each of their runs. The first student of a
batch runs the teacher, as deep as the deepest of all open taps needs; the others get the same
activations. Those of one step, or of the parts of its batch, are in memory.

Students that follow different checkpoints take turns without weights being loaded at every step.
This costs memory: one teacher for each checkpoint that is read at the same time.

A batch is recognized by its key, which is its step and its examples, so the students must read the
same stream.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import final

from torch import Tensor

from curricle.curriculum.stages import TeacherReference
from curricle.data.batch import BatchKey, Inputs
from curricle.models.inference import Inference
from curricle.models.tapped import Activations, Forward, Place, TappedModel
from curricle.teachers.live import PLAIN, LiveTeacher, TeacherForward

Wanted = tuple[tuple[Place, ...], bool, bool]
"""Places to read, whether to read the logits, and whether to read the output layer."""


@final
class SharedTeacher:
    """Teacher with one forward pass for several students."""

    def __init__(self, teacher: LiveTeacher) -> None:
        """Take the teacher, which must be left alone from now on."""
        self._teacher = teacher
        self._desks: dict[TeacherReference, _Desk] = {}

    @property
    def model(self) -> TappedModel:
        """Return the finished model."""
        return self._teacher.model

    @property
    def digest(self) -> str:
        """Return the digest of the finished weights."""
        return self._teacher.digest

    def check(self, references: Iterable[TeacherReference]) -> None:
        """Check that every checkpoint that stages name is there and fits."""
        self._teacher.check(references)

    def teaching(self, inference: Inference = PLAIN) -> AbstractContextManager[None]:
        """Return a block that does nothing: evaluation mode is held around all students."""
        del inference
        return nullcontext()

    @contextmanager
    def open_taps(
        self,
        reference: TeacherReference,
        places: Iterable[Place],
        *,
        logits: bool,
        head: bool = False,
    ) -> Iterator[TeacherForward]:
        """Open a checkpoint, or the finished teacher, for forward passes; see `LiveTeacher`.

        Args:
            reference: `final`, or the step of a checkpoint.
            places: Places of the hidden states.
            logits: Whether the logits are read, too.
            head: Whether the head is read.

        Yields:
            The forward pass, or the activations of another student's.
        """
        desk = self._desks.get(reference)
        if desk is None:
            desk = self._desks[reference] = _Desk(self._at(reference))
        query = (tuple(places), logits, head)
        desk.join(query)
        try:
            yield lambda inputs, selected, key: desk.show(query, inputs, selected, key)
        finally:
            desk.leave(query)
            if not desk.queries:
                del self._desks[reference]

    def _at(self, reference: TeacherReference) -> TappedModel:
        finished = self._desks.get("final")
        if finished is not None and reference != "final":
            # The finished model is about to be copied, and a copy shall have no hooks.
            finished.close()
        return self._teacher.at(reference)


@final
class _Desk:
    """The open taps of one checkpoint."""

    def __init__(self, model: TappedModel) -> None:
        self._model = model
        self._opened = ExitStack()
        self._reader: Forward | None = None
        self.queries: list[Wanted] = []
        self.shown: dict[BatchKey, Activations] = {}
        self._step: int | None = None

    def join(self, query: Wanted) -> None:
        self.queries.append(query)
        self.close()

    def leave(self, query: Wanted) -> None:
        self.queries.remove(query)
        self.close()

    def show(
        self, query: Wanted, inputs: Inputs, selected: Tensor | None, key: BatchKey | None
    ) -> Activations:
        places, logits, head = query
        if key is None or key[0] != self._step:
            # Activations of earlier steps are not read again.
            self.shown.clear()
            self._step = None if key is None else key[0]
        activations = None if key is None else self.shown.get(key)
        # A stage that was opened since may need more than the earlier pass has given.
        if activations is None or not _suffices(activations, query):
            activations = self._open()(inputs, selected)
            if key is not None:
                self.shown[key] = activations
        hidden = {place: activations.hidden[place] for place in places}
        return Activations(
            hidden,
            activations.logits if logits else None,
            activations.head if head else None,
            activations.positions,
            activations.obscurity,
        )

    def _open(self) -> Forward:
        """Return the forward pass with all taps that are open by now."""
        if self._reader is None:
            places = dict.fromkeys(place for places, *_ in self.queries for place in places)
            logits = any(logits for _, logits, _ in self.queries)
            head = any(head for *_, head in self.queries)
            self._reader = self._opened.enter_context(
                self._model.open_taps(places, logits=logits, head=head)
            )
        return self._reader

    def close(self) -> None:
        self._reader = None
        self._opened.close()


def _suffices(activations: Activations, query: Wanted) -> bool:
    places, logits, head = query
    has_places = all(place in activations.hidden for place in places)
    has_output = (activations.logits is not None or not logits) and (
        activations.head is not None or not head
    )
    return has_places and has_output
