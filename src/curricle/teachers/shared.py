"""One teacher forward pass for several students.

A `SharedTeacher` replaces the `LiveTeacher` of several runs. The first student that reads a batch
triggers the forward pass, up to the deepest place that any student reads; the other students get
the cached activations. The cache holds one batch, or its micro-batches.

Students that follow different checkpoints take turns without reloading weights at every step. The
price is memory: one teacher per checkpoint in use.

A batch is identified by the memory addresses of its inputs, so the students must share the same
tensors, or the same slices of them; `training.sharing.shared_runs` ensures that.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import final

from torch import Tensor

from curricle.models.inference import Inference
from curricle.models.tapped import Activations, Inputs, Place, Reader, TappedModel
from curricle.teachers.live import PLAIN, LiveTeacher, Reference

Wanted = tuple[tuple[Place, ...], bool, bool]
"""Places to read, whether to read the logits, and whether to read the output layer."""


@final
class SharedTeacher:
    """Teacher with one forward pass for several students."""

    def __init__(self, teacher: LiveTeacher) -> None:
        """Wrap a teacher, which must not be used directly from here on."""
        self._teacher = teacher
        self._desks: dict[Reference, _Desk] = {}

    @property
    def model(self) -> TappedModel:
        """Return the finished model."""
        return self._teacher.model

    @property
    def digest(self) -> str:
        """Return the digest of the finished weights."""
        return self._teacher.digest

    def check(self, references: Iterable[Reference]) -> None:
        """Check that every checkpoint named by a stage exists and fits the model."""
        self._teacher.check(references)

    def teaching(self, inference: Inference = PLAIN) -> AbstractContextManager[None]:
        """Return an empty context: evaluation mode is set once around all students."""
        del inference
        return nullcontext()

    def forget(self) -> None:
        """Clear the cached activations before the next batch."""
        for desk in self._desks.values():
            desk.shown.clear()

    @contextmanager
    def reading(
        self,
        reference: Reference,
        places: Iterable[Place],
        *,
        logits: bool,
        head: bool = False,
    ) -> Iterator[Reader]:
        """Open a forward function of a checkpoint, or of the finished teacher.

        Args:
            reference: `final`, or the step of a checkpoint.
            places: Places of the hidden states to return.
            logits: Whether the logits are returned.
            head: Whether the input and the weight of the output layer are returned.

        Yields:
            The forward function; it returns cached activations where another student has run it.
        """
        desk = self._desks.get(reference)
        if desk is None:
            desk = self._desks[reference] = _Desk(self._at(reference))
        query = (tuple(places), logits, head)
        desk.join(query)
        try:
            yield lambda inputs, selected=None: desk.show(query, inputs, selected)
        finally:
            desk.leave(query)
            if not desk.readings:
                del self._desks[reference]

    def _at(self, reference: Reference) -> TappedModel:
        finished = self._desks.get("final")
        if finished is not None and reference != "final":
            # The finished model is about to be copied, and its hooks must not be copied with it.
            finished.close()
        return self._teacher.at(reference)


@final
class _Desk:
    """The open forward functions of one checkpoint."""

    def __init__(self, model: TappedModel) -> None:
        self._model = model
        self._opened = ExitStack()
        self._reader: Reader | None = None
        self.readings: list[Wanted] = []
        self.shown: dict[object, Activations] = {}

    def join(self, query: Wanted) -> None:
        self.readings.append(query)
        self.close()

    def leave(self, query: Wanted) -> None:
        self.readings.remove(query)
        self.close()

    def show(self, query: Wanted, inputs: Inputs, selected: Tensor | None) -> Activations:
        places, logits, head = query
        batch = _whereabouts(inputs)
        activations = self.shown.get(batch)
        # A stage that started after this forward pass may read more than it returned.
        if activations is None or not _suffices(activations, query):
            activations = self.shown[batch] = self._open()(inputs, selected)
        hidden = {place: activations.hidden[place] for place in places}
        return Activations(
            hidden,
            activations.logits if logits else None,
            activations.head if head else None,
            activations.positions,
            activations.obscurity,
        )

    def _open(self) -> Reader:
        """Return the forward function that serves all current queries."""
        if self._reader is None:
            places = dict.fromkeys(place for places, *_ in self.readings for place in places)
            logits = any(logits for _, logits, _ in self.readings)
            head = any(head for *_, head in self.readings)
            self._reader = self._opened.enter_context(
                self._model.reading(places, logits=logits, head=head)
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


def _whereabouts(inputs: Inputs) -> object:
    """Return a key of the inputs of a batch or micro-batch, valid as long as they are alive."""
    named: Mapping[str, Tensor] = {"": inputs} if isinstance(inputs, Tensor) else inputs
    return tuple(
        (name, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        for name, tensor in named.items()
    )
