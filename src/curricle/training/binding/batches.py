"""Batches as a run reads them: checked on the CPU, and counted.

A wrong label or token id ends on a CPU in torch's own words and on a GPU in an assertion that
leaves the GPU useless. So each batch is looked at where it is made, before it is moved. The same
reading counts positions: padded batches differ, and the cost of a run is a sum over those
that it has read.

Axes: example, position (as in `data.streams`).

Units: tokens are positions with padding, since a model computes on padding, too.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from inspect import signature
from types import TracebackType
from typing import final

from torch import Tensor, nn

from curricle.colocation import synchronize
from curricle.curriculum.stages import Stage
from curricle.data.batch import Batch, Inputs, named
from curricle.data.blocks import concatenated
from curricle.data.loader_workers import end_workers
from curricle.data.streams import Stream, examples_per_epoch
from curricle.errors import BindError, CurricleError, DataError
from curricle.memory import is_out_of_memory
from curricle.models.tapped import REFUSALS, Activations

PEEKED = 8
"""Batches with compared numbers of positions before a length in tokens becomes steps."""


def relative_tokens(stream: Stream, start: int, stop: int) -> tuple[int, int]:
    """Return the positions of steps, and those of as many first batches.

    The two are equal unless the stream has a method of this name, with batches of different
    lengths.

    Args:
        stream: The stream.
        start: The first step.
        stop: The step after the last.
    """
    # Streams of users need not have it: their batches have the length that they declare.
    count: Callable[[int, int], tuple[int, int]] | None = getattr(stream, "relative_tokens", None)
    if count is not None:
        return count(start, stop)
    tokens = (stop - start) * stream.tokens_per_batch
    return tokens, tokens


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableLimit:
    """Range of indexes of an embedding in an input."""

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

    def check(self, batch: Batch) -> None:
        """Check the ids of a batch that a table of ids looks up.

        Raises:
            DataError: If the embedding has no row for one.
        """
        tensor = named(side_of(batch, self.owner).inputs).get(self.name)
        # Values on a GPU are not looked at, which would wait for it at every step.
        if tensor is not None and tensor.is_cpu and (fault := self.fault(batch)):
            raise DataError(fault)

    def fault(self, batch: Batch) -> str:
        """Return the sentence about an id without a row; empty if there is none.

        Args:
            batch: A batch on any device.
        """
        tensor = named(side_of(batch, self.owner).inputs).get(self.name)
        # A table of positions is not looked up by ids, so their size has no meaning for it.
        if self.offset is not None or tensor is None or not tensor.numel():
            return ""
        lowest, highest = map(int, tensor.aminmax())
        if lowest >= 0 and highest < self.rows:
            return ""
        return (
            f"{self.name or 'inputs'!r} must lie between 0 and {self.rows - 1}, the last row of "
            f"the {self.owner}'s table {self.path!r}; got {lowest if lowest < 0 else highest}"
        )

    def excess(self, inputs: Inputs) -> str:
        """Return the words for an input with more positions than rows; empty if it has not.

        One batch does not show whether a model counts positions without end: they may be clamped,
        or the table may hold queries, as many as positions by chance. So the words explain a pass
        that has failed, and refuse nothing themselves.
        """
        tensor = named(inputs).get(self.name)
        if self.offset is None or tensor is None or tensor.shape[-1] <= self.rows - self.offset:
            return ""
        return (
            f"{self.name or 'inputs'!r} must have at most the {self.rows - self.offset} positions "
            f"of the {self.owner}'s table {self.path!r}; got {tensor.shape[-1]}; truncate them in "
            f"the collate function"
        )


def excess(tables: Iterable[TableLimit], owner: str, inputs: Inputs) -> str:
    """Return the words for a table of a model with too few positions; empty if none has.

    Args:
        tables: Those of all models.
        owner: `student` or `teacher`.
        inputs: Inputs of the model.
    """
    words = (table.excess(inputs) for table in tables if table.owner == owner)
    return next(filter(None, words), "")


def side_of(batch: Batch, owner: str) -> Batch:
    """Return the batch as a model reads it.

    Args:
        batch: The batch.
        owner: `student` or `teacher`.
    """
    return batch.for_teacher if owner == "teacher" else batch


def run_forward(
    forward: Callable[[], Activations], inputs: Inputs, owner: str, tables: Sequence[TableLimit]
) -> Activations:
    """Return the activations of a training step; a failing pass becomes an error of the data.

    Args:
        forward: The forward pass.
        inputs: Its inputs.
        owner: `student` or `teacher`.
        tables: Limits of the embeddings of all models.

    Raises:
        CurricleError: If the pass raises one.
        DataError: If the pass fails, which it did not for the first batch; its error is quoted.
        REFUSALS: If memory runs out, which is no fault of the data.
    """
    # Shapes alone, so it costs a passing step nothing; only the pass of a suspect batch is waited
    # for, to catch its failure here and not at a later call.
    words = excess(tables, owner, inputs) if tables else ""
    try:
        activations = forward()
        if words:
            _wait(inputs)
    except CurricleError:
        raise
    except REFUSALS as error:
        # No other batch would mend the memory.
        if is_out_of_memory(error):
            raise
        rule = words or f"{owner!r} must take every batch of the stream"
        raise DataError(f"{rule}; its forward pass failed with: {error}") from error
    return activations


def _wait(inputs: Inputs) -> None:
    """Wait for the pass on a GPU, where a failed look-up shows only at the next synchronization."""
    tensor = next(iter(named(inputs).values()))
    synchronize(tensor)


@final
class RunBatches:
    """The stream of a run; batches are checked and counted as they are read."""

    def __init__(
        self,
        stream: Stream,
        first: Batch,
        *,
        tables: Sequence[TableLimit] = (),
        labels: Sequence[tuple[int, int, Callable[[Tensor], None]]] = (),
        is_uniform: bool = False,
    ) -> None:
        """Take the stream.

        Args:
            stream: Where batches are read.
            first: Its first batch, the one with measured FLOPs.
            tables: Index ranges of embeddings of ids.
            labels: First step, step after the last, and check, where labels are read.
            is_uniform: Whether a length in tokens relies on batches of equally many positions.
        """
        self.stream = stream
        # Costs are measured on this batch, so positions are counted as differences from it.
        self._first = first.num_read_tokens
        self._tables, self._labels = tuple(tables), tuple(labels)
        self._is_uniform = is_uniform
        # Entry i is the number of positions of the steps before i, minus i times the positions of
        # the first batch. The last entry applies to all later steps, so batches of equal length
        # take no memory. The excess of an interval is the difference of two entries.
        self._excess = array("q", [0])

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self.stream.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions that the stream gives for every batch."""
        return self.stream.tokens_per_batch

    @property
    def examples_per_epoch(self) -> int | None:
        """Return the number of examples after which the data repeat; None if they do not."""
        return examples_per_epoch(self.stream)

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything the batches depend on."""
        return self.stream.fingerprint

    def batch(self, step: int) -> Batch:
        """Return the batch of a step.

        Raises:
            DataError: If a label is no class of the student, or an embedding has no row for an id,
                or positions are not those on which a length in tokens relies; it has the step.
        """
        batch = self.stream.batch(step)
        # A teacher of several students recognizes a batch by its step, which streams of users do
        # not set.
        if batch.step != step:
            batch = replace(batch, step=step)
        try:
            self._look(batch, step, batch.num_read_tokens)
        except DataError as error:
            # With prefetching the batch is read during an earlier step, which would be named
            # otherwise.
            error.step = step
            raise
        return batch

    def end_workers(self) -> None:
        """End the workers of the stream, if it has any."""
        end_workers(self.stream)

    def concatenated(self, step: int, number: int) -> Batch | None:
        """Return the batches of some steps one below the other, if the stream joins them.

        Raises:
            DataError: As in `batch`.
        """
        block = concatenated(self.stream, step, number)
        if block is not None:
            try:
                self._look(block, step, block.num_read_tokens // number, number=number)
            except DataError:
                # Read one by one, they show which of them is at fault.
                for number_ in range(step, step + number):
                    self.batch(number_)
                raise
        return block

    def relative_tokens(self, start: int, stop: int) -> tuple[int, int]:
        """Return the positions of some steps, and those that as many first batches would have.

        Args:
            start: The first step.
            stop: The step after the last; all of them have been read.
        """
        expected = self._first * (stop - start)
        return expected + self._excess_before(stop) - self._excess_before(start), expected

    def _excess_before(self, step: int) -> int:
        return self._excess[min(step, len(self._excess) - 1)]

    def _count(self, step: int, tokens: int) -> None:
        """Add the positions of a batch to the running sums."""
        excess = tokens - self._first
        if step + 1 >= len(self._excess):
            if excess:
                missing = step + 1 - len(self._excess)
                self._excess.extend([self._excess[-1]] * missing)
                self._excess.append(self._excess[-1] + excess)
            return
        change = excess - (self._excess[step + 1] - self._excess[step])
        # Zero for a batch that is read again, which must not count twice.
        if change:
            # A step before others that were read already, as after a calibration further on.
            for later in range(step + 1, len(self._excess)):
                self._excess[later] += change

    def _look(self, batch: Batch, step: int, tokens: int, *, number: int = 1) -> None:
        if self._is_uniform and tokens != self._first:
            raise DataError(_unequal(self._first, tokens, "this one"))
        for read in range(step, step + number):
            self._count(read, tokens)
        for table in self._tables:
            table.check(batch)
        # A look at values would wait for a GPU; batches are made on the CPU.
        if batch.labels is None or not batch.labels.is_cpu:
            return
        for start, stop, check in self._labels:
            # The first step stands for a block, which never crosses the end of a stage.
            if start <= step < stop:
                check(batch.labels)


def _unequal(first: int, second: int, where: str) -> str:
    return (
        f"'duration' must be in steps or examples where batches differ in their number of "
        f"positions, since a length in tokens is then no number of steps; got {first} in the first "
        f"batch and {second} in {where}"
    )


def has_token_lengths(stages: Sequence[Stage]) -> bool:
    """Return whether the length of a stage is declared in tokens."""
    return any(stage.duration.at_most.unit == "tokens" for stage in stages)


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
    # Batches and not declarations are compared, since a stream of a user may declare any number.
    first = stream.batch(0)
    if not first.has_positions:
        raise BindError(
            f"'duration' must be in steps or examples for data without positions, of which tokens "
            f"are not defined; got inputs of shape {tuple(first.leading.shape)}; positions='token' "
            f"of curricle.stream, or 'length' of a curricle.Batch, declares positions"
        )
    if stream.tokens_per_batch != first.num_read_tokens:
        raise BindError(_unequal(first.num_read_tokens, stream.tokens_per_batch, "that of step 1"))
    # A length that differs from the start shows here, before training; a rare one shows only when
    # it is read.
    for step in range(1, PEEKED):
        tokens = stream.batch(step).num_read_tokens
        if tokens != first.num_read_tokens:
            raise BindError(_unequal(first.num_read_tokens, tokens, f"that of step {step}"))


def _epochs(stages: Sequence[Stage]) -> Fraction:
    """Return the sum of the lengths that are declared in epochs."""
    lengths = [stage.duration.at_most for stage in stages]
    return sum((length.length for length in lengths if length.unit == "epochs"), Fraction(0))


def check_epochs(stages: Sequence[Stage], stream: Stream) -> None:
    """Check that lengths in epochs can become numbers of steps.

    Args:
        stages: The stages as declared.
        stream: Training data.

    Raises:
        BindError: If the data have no known length.
    """
    epochs = _epochs(stages)
    if epochs and examples_per_epoch(stream) is None:
        raise BindError(
            f"'duration' must be in steps, examples or tokens for data that do not repeat after a "
            f"known number of examples; got {float(epochs):g} epochs of "
            f"{type(stream).__name__!r}; a stream of your own states the number by a property "
            f"'examples_per_epoch'"
        )


def epoch_notes(stages: Sequence[Stage], stream: Stream, num_steps: int) -> tuple[str, ...]:
    """Return the number of steps that lengths in epochs became, as a sentence for a plan.

    Args:
        stages: The stages as declared.
        stream: Training data.
        num_steps: Steps of the run.
    """
    epochs, count = _epochs(stages), examples_per_epoch(stream)
    if not epochs or count is None:
        return ()
    size = f"{count:,} examples in batches of {stream.batch_size}"
    return (f"length: {float(epochs):g} epochs of {size} are {num_steps:,} steps",)


def position_notes(stream: Stream, first: Batch) -> tuple[str, ...]:
    """Return the decisions on positions, and a note on batches that differ in length."""
    # A stream of a user may have none.
    note = str(getattr(stream, "note", ""))
    decided = (note,) if note else ()
    # Read only where it may differ: without positions all batches have one number of examples.
    second = stream.batch(1).num_read_tokens if first.has_positions else first.num_read_tokens
    if second == first.num_read_tokens:
        return decided
    note = (
        f"batches differ in their number of positions ({first.num_read_tokens} and {second} in the "
        f"first two): tokens are counted as they are read, and FLOPs are those of the first batch "
        f"in proportion to tokens"
    )
    return (*decided, note)


@final
class LocatedErrors:
    """Context that adds to an error of the data where in the run it has come up."""

    def __init__(self, stage: str, step: int, seed: int) -> None:
        """Hold the location.

        Args:
            stage: Name of the stage.
            step: The step, unless the error has it, as of batches that are read ahead.
            seed: Seed of the run.
        """
        self._stage, self._step, self._seed = stage, step, seed

    def __enter__(self) -> None:
        """Do nothing; a class, since a generator would cost each step of a small model time."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Add the location.

        Raises:
            DataError: If the block has raised one.
        """
        if isinstance(error, DataError):
            # Step 0 is a step, so the comparison is with None.
            fault = self._step if error.step is None else error.step
            where = f"stage {self._stage!r}, step {fault}, seed {self._seed}"
            raise DataError(f"{where}: {error}") from error


@final
class TableWatch:
    """Finds the embeddings that read inputs or positions, in passes that run anyway."""

    def __init__(self) -> None:
        """Start with none."""
        self._limits: dict[tuple[str, str, str], TableLimit] = {}

    @property
    def limits(self) -> tuple[TableLimit, ...]:
        """Return the limits of the embeddings that were watched."""
        return tuple(self._limits.values())

    @contextmanager
    def watching(self, owner: str, module: nn.Module, batch: Batch) -> Iterator[None]:
        """Watch the embeddings of a model.

        Args:
            owner: Owner of the model.
            module: The model.
            batch: The batch of the passes in the block.

        A block that fails because an embedding has no row for an id or a position of the batch
        ends in a `DataError`.
        """
        inputs = named(side_of(batch, owner).inputs)
        # A mask or token types have the shape of ids, and are looked up in tables of their own.
        read: list[str] = []

        def look(path: str, embedding: nn.Embedding, argument: object) -> None:
            # Features are no ids, and torch says so.
            if not isinstance(argument, Tensor) or argument.is_floating_point():
                return
            if not argument.numel():
                return
            # By memory and not by values: a mask of ones and token types of zeros may equal ids of
            # a short batch.
            name = next((name for name, ids in inputs.items() if _is_same(ids, argument)), None)
            if name is not None:
                read.append(name)
                self._add(TableLimit(owner=owner, path=path, rows=_rows(embedding), name=name))
            # Positions are counted along the ids that were read before; with two inputs of ids it
            # would be a guess which of them.
            elif len(set(read)) == 1 and (offset := _offset(argument, inputs[read[0]])) is not None:
                rows = _rows(embedding)
                self._add(
                    TableLimit(owner=owner, path=path, rows=rows, name=read[0], offset=offset)
                )

        with ExitStack() as stack:
            for path, submodule in module.named_modules():
                # Tables of positions as in BART are given ids, too, with more arguments.
                if (
                    isinstance(submodule, nn.Embedding)
                    and len(signature(submodule.forward).parameters) == 1
                ):
                    # A function makes the hook: one that is defined in the loop would see the path
                    # of the last table.
                    hook = _hook(look, path)
                    stack.callback(submodule.register_forward_pre_hook(hook).remove)
            # The hooks have run by then, so the table of a look-up that has failed is known.
            stack.push(partial(self._explain, owner, batch))
            yield

    def _explain(
        self, owner: str, batch: Batch, _: object, error: BaseException | None, __: object
    ) -> None:
        """Explain the failure of a pass by an id or a position without a row, if there is one.

        Raises:
            DataError: If an embedding of the model has no row for an id or a position of the batch.
        """
        for limit in self.limits if isinstance(error, REFUSALS) else ():
            try:
                if limit.owner == owner:
                    limit.check(batch)
            except DataError as fault:
                raise DataError(
                    f"{fault}; the table holds {limit.rows:,} ids, so the data must come from the "
                    f"tokenizer of this model"
                ) from error
        if isinstance(error, REFUSALS) and (
            words := excess(self.limits, owner, side_of(batch, owner).inputs)
        ):
            # Binding quotes the error of a pass in one of its own.
            cause = error.__cause__ or error
            raise DataError(f"{words}; its forward pass failed with: {cause}") from cause

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


def _is_same(tensor: Tensor, argument: Tensor) -> bool:
    """Return whether a tensor is an input, perhaps seen in another shape."""
    # The address survives a reshape before the look-up, and a first part of the tensor has fewer
    # numbers.
    return tensor.numel() == argument.numel() and tensor.data_ptr() == argument.data_ptr()


def _offset(argument: Tensor, ids: Tensor) -> int | None:
    """Return the first row that positions take if a tensor counts them; None if it does not."""
    length = ids.shape[-1]
    if argument.shape[-1] != length or argument.is_floating_point() or length <= 1:
        return None
    # Values are read, which waits for a GPU, but only while binding.
    steps = argument.reshape(-1, length)[0].diff()
    return int(argument.min()) if bool((steps == 1).all()) else None
