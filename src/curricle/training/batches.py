"""Batches as a run reads them: checked on the CPU, and counted.

A wrong label or token id ends on a CPU in torch's own words and on a GPU in an assertion that
leaves the device useless. So each batch is looked at where it is made, before it is moved. The same
reading counts positions: padded batches differ, and what a run has consumed is a sum over those
that it has read.

Axes: example, position (as in `data.streams`).

Units: tokens are positions with padding, since a model computes on padding, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Protocol, final, runtime_checkable

from torch import Tensor, nn

from curricle.curriculum.stages import Stage
from curricle.data.blocks import Joins
from curricle.data.streams import Batch, Stream
from curricle.errors import BindError, DataError
from curricle.objectives.terms import check_classes
from curricle.protocols import conforms

PEEKED = 8
"""Batches whose numbers of positions are compared before a length in tokens becomes steps."""


@runtime_checkable
class CountsTokens(Protocol):
    """A stream that knows how many positions were read."""

    def relative_tokens(self, start: int, stop: int) -> tuple[int, int]:
        """Return the positions of some steps, and those that as many first batches would have."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableLimit:
    """What an embedding can look up of an input."""

    owner: str
    """`student` or `teacher`."""
    path: str
    """Module path of the embedding."""
    rows: int
    """Number of its rows."""
    name: str
    """Name of the input; empty for the only one."""
    offset: int | None = None
    """First row that a position takes, in a table of positions; None in a table of ids."""

    def check(self, inputs: Mapping[str, Tensor], step: int) -> None:
        """Check an input of a batch.

        Raises:
            DataError: If the embedding has no row for it.
        """
        tensor = inputs.get(self.name)
        if tensor is None or not tensor.numel():
            return
        called = self.name or "inputs"
        if self.offset is not None:
            most = self.rows - self.offset
            if tensor.shape[-1] > most:
                raise DataError(
                    f"{called!r} must have at most the {most} positions of the {self.owner}'s "
                    f"table {self.path!r}; got {tensor.shape[-1]} in the batch of step {step}; "
                    f"truncate them in the collate function"
                )
        elif tensor.device.type == "cpu":
            lowest, highest = map(int, tensor.aminmax())
            if lowest < 0 or highest >= self.rows:
                raise DataError(
                    f"{called!r} must lie between 0 and {self.rows - 1}, the last row of the "
                    f"{self.owner}'s table {self.path!r}; got "
                    f"{lowest if lowest < 0 else highest} in the batch of step {step}"
                )


@final
class RunBatches:
    """The stream of a run, whose batches are checked and counted as they are read."""

    def __init__(
        self,
        stream: Stream,
        first: Batch,
        *,
        tables: Sequence[TableLimit] = (),
        labels: Sequence[tuple[int, int, int]] = (),
        is_uniform: bool = False,
    ) -> None:
        """Take the stream.

        Args:
            stream: Where batches are read.
            first: Its first batch, whose FLOPs were measured.
            tables: What embeddings can look up.
            labels: First step, step after the last, and number of classes, where labels are read.
            is_uniform: Whether a length in tokens relies on batches of equally many positions.
        """
        self.stream = stream
        self._first = first.num_read_tokens
        self._tables, self._labels = tuple(tables), tuple(labels)
        self._is_uniform = is_uniform
        self._others: dict[int, int] = {}
        self._sum = 0, 0, 0

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self.stream.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions that the stream gives for every batch."""
        return self.stream.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything the batches depend on."""
        return self.stream.fingerprint

    def batch(self, step: int) -> Batch:
        """Return the batch of a step.

        Raises:
            DataError: If a label is no class of the student, or an embedding has no row for an
                input, or positions are not those on which a length in tokens relies.
        """
        batch = self.stream.batch(step)
        self._look(batch, step, batch.num_read_tokens)
        return batch

    def joined(self, step: int, number: int) -> Batch | None:
        """Return the batches of some steps one below the other, if the stream joins them."""
        whole = self.stream.joined(step, number) if conforms(self.stream, Joins) else None
        if whole is not None:
            self._look(whole, step, whole.num_read_tokens // number, number=number)
        return whole

    def tokens_between(self, start: int, stop: int) -> int:
        """Return the positions in the batches of some steps, which have been read."""
        from_step, to_step, total = self._sum
        if start != from_step or not start <= to_step <= stop:
            to_step, total = start, 0
        # Records come often, and a stage may be long: what was added up stays so.
        total += sum(self._others.get(step, self._first) for step in range(to_step, stop))
        self._sum = start, stop, total
        return total

    def relative_tokens(self, start: int, stop: int) -> tuple[int, int]:
        """Return the positions of some steps, and those that as many first batches would have.

        Args:
            start: The first step.
            stop: The step after the last; all of them have been read.
        """
        from_step, to_step, total = self._sum
        if start != from_step or not start <= to_step <= stop:
            to_step, total = start, 0
        # Records come often, and a stage may be long: what was added up stays so.
        total += sum(self._others.get(step, self._first) for step in range(to_step, stop))
        self._sum = start, stop, total
        return total, self._first * (stop - start)

    def _look(self, batch: Batch, step: int, tokens: int, *, number: int = 1) -> None:
        if tokens != self._first:
            if self._is_uniform:
                raise DataError(_unequal(self._first, tokens, step))
            self._others |= dict.fromkeys(range(step, step + number), tokens)
        inputs = {"": batch.inputs} if isinstance(batch.inputs, Tensor) else batch.inputs
        for table in self._tables:
            table.check(inputs, step)
        # A look at values would wait for a GPU; batches are made on the CPU.
        if batch.labels is None or batch.labels.device.type != "cpu":
            return
        for start, stop, classes in self._labels:
            if start <= step < stop:
                check_classes(batch.labels, classes, f"the batch of step {step}")


def _unequal(first: int, other: int, step: int) -> str:
    return (
        f"'duration' must be in steps or examples for batches of unequal numbers of positions, of "
        f"which tokens make no number of steps; got {first} in the first batch and {other} in that "
        f"of step {step}"
    )


def has_token_lengths(stages: Sequence[Stage]) -> bool:
    """Return whether the length of a stage is declared in tokens."""
    return any(stage.duration.unit == "tokens" for stage in stages)


def check_token_lengths(stages: Sequence[Stage], stream: Stream) -> None:
    """Check that lengths in tokens can become numbers of steps.

    Later batches are checked when they are read, by `RunBatches`.

    Args:
        stages: The stages as declared.
        stream: Training data.

    Raises:
        BindError: If the data have no positions, or the first batches unequal numbers of them.
    """
    if not has_token_lengths(stages):
        return
    first = stream.batch(0)
    if not first.has_tokens:
        raise BindError(
            f"'duration' must be in steps or examples for data without positions, of which tokens "
            f"are not defined; got inputs of shape {tuple(first.leading.shape)} and type "
            f"{first.leading.dtype}"
        )
    if stream.tokens_per_batch != first.num_read_tokens:
        raise BindError(_unequal(first.num_read_tokens, stream.tokens_per_batch, 1))
    for step in range(1, PEEKED):
        tokens = stream.batch(step).num_read_tokens
        if tokens != first.num_read_tokens:
            raise BindError(_unequal(first.num_read_tokens, tokens, step))


def length_notes(stream: Stream, first: Batch) -> tuple[str, ...]:
    """Return what to know of the numbers of a run whose batches differ in length."""
    other = stream.batch(1).num_read_tokens if first.has_tokens else first.num_read_tokens
    if other == first.num_read_tokens:
        return ()
    note = (
        f"batches differ in their number of positions ({first.num_read_tokens} and {other} in the "
        f"first two): tokens are counted as they are read, and FLOPs are those of the first batch "
        f"in proportion to tokens"
    )
    return (note,)


@contextmanager
def located(stage: str, step: int, seed: int) -> Iterator[None]:
    """Add to an error of the data where in the run it has come up.

    Args:
        stage: Name of the stage.
        step: The step.
        seed: Seed of the run.

    Raises:
        DataError: If the block raises one.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"stage {stage!r}, step {step}, seed {seed}: {error}") from error


@final
class TableWatch:
    """Finds the embeddings that read inputs or positions, in passes that run anyway."""

    def __init__(self) -> None:
        """Start with none."""
        self._limits: dict[tuple[str, str, str], TableLimit] = {}

    @property
    def limits(self) -> tuple[TableLimit, ...]:
        """Return what was found."""
        return tuple(self._limits.values())

    @contextmanager
    def watching(self, owner: str, module: nn.Module, batch: Batch) -> Iterator[None]:
        """Watch the embeddings of a model.

        Args:
            owner: Whose model it is.
            module: The model.
            batch: What it reads in the block.
        """
        inputs = {"": batch.inputs} if isinstance(batch.inputs, Tensor) else dict(batch.inputs)
        # A mask or token types have the shape of ids, and are looked up in tables of their own.
        read: list[str] = []

        def look(path: str, embedding: nn.Embedding, given: object) -> None:
            if not isinstance(given, Tensor) or not given.numel():
                return
            name = next((name for name, one in inputs.items() if _is_same(one, given)), None)
            if name is not None:
                read.append(name)
                self._add(TableLimit(owner=owner, path=path, rows=_rows(embedding), name=name))
            elif len(set(read)) == 1 and (offset := _offset(given, inputs[read[0]])) is not None:
                rows = _rows(embedding)
                self._add(
                    TableLimit(owner=owner, path=path, rows=rows, name=read[0], offset=offset)
                )

        with ExitStack() as stack:
            for path, part in module.named_modules():
                # Tables of positions as in BART are given ids, too, with more arguments.
                if isinstance(part, nn.Embedding) and len(signature(part.forward).parameters) == 1:
                    hook = _hook(look, path)
                    stack.callback(part.register_forward_pre_hook(hook).remove)
            yield

    def _add(self, limit: TableLimit) -> None:
        self._limits[limit.owner, limit.path, limit.name] = limit


def _hook(
    look: Callable[[str, nn.Embedding, object], None], path: str
) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def before(module: nn.Module, args: tuple[object, ...]) -> None:
        if args and isinstance(module, nn.Embedding):
            look(path, module, args[0])

    return before


def _rows(embedding: nn.Embedding) -> int:
    return embedding.weight.shape[0]


def _is_same(tensor: Tensor, given: Tensor) -> bool:
    """Return whether a tensor is an input, perhaps seen in another shape."""
    return tensor.numel() == given.numel() and tensor.data_ptr() == given.data_ptr()


def _offset(given: Tensor, ids: Tensor) -> int | None:
    """Return the first row that positions take if a tensor counts them; None if it does not."""
    length = ids.shape[-1]
    if given.shape[-1] != length or given.is_floating_point() or length < 2:  # noqa: PLR2004
        return None
    steps = given.reshape(-1, length)[0].diff()
    return int(given.min()) if bool((steps == 1).all()) else None
