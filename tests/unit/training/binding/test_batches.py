"""Batches as a run reads them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.stages import Stage
from curricle.curriculum.strategies import from_labels, one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError, DataError
from curricle.models.tapped import Activations, TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.base import check_classes
from curricle.objectives.labels import LabelLoss
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.batches import (
    LocatedErrors,
    RunBatches,
    TableLimit,
    TableWatch,
    check_token_lengths,
    excess,
    run_forward,
)
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import Listed, bound, drawn, embedder, parity, texts


@pytest.fixture(autouse=True)
def drawn_weights() -> Iterator[None]:
    """Draw the weights of modules from a stream of their own."""
    with seeding.scoped(0, "model"):
        yield


FOUR_CLASSES = partial(check_classes, num_classes=4, where="")
SHORT = Batch(inputs={"input_ids": torch.zeros(4, 4).long()})
LONG = Batch(inputs={"input_ids": torch.zeros(4, 64).long()})


def staged(duration: str) -> list[Stage]:
    return [Stage(name="a", duration=duration, objectives=(LabelLoss(),))]


def limit(**fields: Any) -> TableLimit:
    defaults: dict[str, Any] = {"owner": "student", "path": "e", "rows": 7, "name": "x"}
    return TableLimit(**(defaults | fields))


class Positioned(nn.Module):
    """Adds a table of positions, from some row on, to that of ids."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.ids, self.places, self.offset = nn.Embedding(11, 3), nn.Embedding(9, 3), offset

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1])[None] + self.offset
        found: Tensor = self.ids(input_ids) + self.places(places)
        return found


class Ids(nn.Module):
    """Adds a table of four positions to one of ids, which is read by one block and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(11, width), nn.Embedding(4, width)
        self.block, self.head = nn.Linear(width, width), nn.Linear(width, 11)

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.ids(input_ids) + self.places(self.rows(input_ids.shape[1])).mean(0)
        logits: Tensor = self.head(self.block(states).tanh())
        return logits

    def rows(self, length: int) -> Tensor:
        return torch.arange(length)


def test_positions_are_those_of_the_batches_that_were_read() -> None:
    batches = RunBatches(Listed(SHORT, LONG), SHORT)
    for step in range(3):
        batches.batch(step)
    assert batches.relative_tokens(0, 2) == (16 + 256, 32)
    assert batches.relative_tokens(0, 3) == (16 + 256 + 16, 48)
    assert batches.relative_tokens(1, 3) == (256 + 16, 32)


def test_positions_may_be_read_in_any_order() -> None:
    batches = RunBatches(Listed(SHORT, LONG, LONG), SHORT)
    for step in (4, 1, 4, 0, 2):
        batches.batch(step)
    # Step 3, which nobody has read, counts as the first.
    assert [batches.relative_tokens(step, step + 1)[0] for step in range(6)] == [
        16,
        256,
        256,
        16,
        256,
        16,
    ]
    assert batches.relative_tokens(0, 5) == (3 * 256 + 2 * 16, 80)


def test_an_interval_costs_the_same_whatever_its_length() -> None:
    batches = RunBatches(Listed(SHORT, LONG), SHORT)
    batches.batch(1)
    # Adding up a step at a time would take hours.
    assert batches.relative_tokens(0, 10**12) == (16 * 10**12 + 240, 16 * 10**12)
    assert batches.relative_tokens(2, 10**12) == (16 * (10**12 - 2),) * 2


def test_joined_batches_are_counted_each() -> None:
    stream = parity()
    batches = RunBatches(stream, stream.batch(0))
    whole = batches.concatenated(0, 3)
    assert whole is not None
    assert batches.relative_tokens(0, 3) == (24, 24)
    assert RunBatches(Listed(SHORT), SHORT).concatenated(0, 2) is None


@pytest.mark.parametrize(
    "batch",
    [
        Batch(inputs=torch.zeros(4, 3)),
        Batch(inputs=torch.zeros(4, 3, 8, 8, dtype=torch.uint8)),
        Batch(inputs=torch.zeros(4, 9, dtype=torch.bool)),
    ],
    ids=["features", "pixels", "flags"],
)
def test_tokens_are_no_length_of_data_without_positions(batch: Batch) -> None:
    with pytest.raises(BindError, match=r"^'duration' must be in steps or examples for data with"):
        check_token_lengths(staged("99 tokens"), Listed(batch))
    check_token_lengths(staged("99 examples"), Listed(batch))


def test_tokens_are_no_length_of_batches_of_unequal_length() -> None:
    with pytest.raises(BindError, match=r"in the first batch and 256 in that of step 1$"):
        check_token_lengths(staged("272 tokens"), Listed(SHORT, LONG))
    late = RunBatches(Listed(*[SHORT] * 9, LONG), SHORT, is_uniform=True)
    with pytest.raises(DataError, match=r"16 in the first batch and 256 in this one$") as caught:
        late.batch(9)
    assert caught.value.step == 9


@pytest.mark.parametrize(("label", "step"), [(-1, 1), (7, 2)])
def test_a_label_in_a_later_batch_that_is_no_class_is_refused(label: int, step: int) -> None:
    def labeled(number: int) -> Batch:
        return Batch(inputs=torch.zeros(2, 3), labels=torch.tensor([0, number]))

    stream = Listed(*[labeled(1)] * step, labeled(label))
    batches = RunBatches(stream, labeled(1), labels=[(0, 9, FOUR_CLASSES)])
    sentence = rf"^'labels' must lie between 0 and 3, .*; got {label}; mark positions without"
    with pytest.raises(DataError, match=sentence) as caught:
        batches.batch(step)
    assert caught.value.step == step
    assert RunBatches(stream, labeled(1), labels=[(9, 99, FOUR_CLASSES)]).batch(step) is not None


@pytest.mark.parametrize("wrong", [7, 60, -100])
def test_ids_without_a_row_are_refused(wrong: int) -> None:
    sentence = rf"^'x' must lie between 0 and 6, .* student's table 'e'; got {wrong}$"
    with pytest.raises(DataError, match=sentence):
        limit().check(Batch(inputs={"x": torch.tensor([[0, 6], [wrong, 2]])}))
    limit().check(Batch(inputs={"x": torch.tensor([[0, 6]]), "y": torch.tensor([99])}))


def test_more_positions_than_rows_are_named() -> None:
    words = "'x' must have at most the 5 positions of the student's table 'e'; got 6; truncate them"
    tables = [limit(owner="teacher"), limit(rows=99, offset=0), limit(offset=2)]
    assert excess(tables, "student", {"x": torch.zeros(1, 6)}).startswith(words)
    assert not excess(tables, "student", {"x": torch.zeros(1, 5)})
    assert not excess(tables, "teacher", {"x": torch.zeros(1, 6)})
    assert not excess(tables, "student", {"y": torch.zeros(1, 6)})


@pytest.mark.parametrize("offset", [0, 2])
def test_a_batch_is_not_refused_for_its_positions(offset: int) -> None:
    limit(offset=offset).check(Batch(inputs={"x": torch.full((1, 60), 99)}))


@pytest.mark.parametrize("offset", [0, 2])
def test_tables_of_ids_and_positions_are_found(offset: int) -> None:
    watch, module = TableWatch(), Positioned(offset)
    batch = Batch(inputs={"input_ids": torch.tensor([[3, 1, 4], [1, 5, 9]])})
    with watch.watching("teacher", module, batch):
        module(**dict(batch.inputs))
    assert watch.limits == (
        TableLimit(owner="teacher", path="ids", rows=11, name="input_ids"),
        TableLimit(owner="teacher", path="places", rows=9, name="input_ids", offset=offset),
    )
    assert not module.ids._forward_pre_hooks


class Numbering(nn.Embedding):
    """A table of positions that is given the ids, as in BART."""

    def forward(self, input_ids: Tensor, past: int = 0) -> Tensor:
        return super().forward(torch.arange(input_ids.shape[1]) + past)


def test_a_table_of_positions_that_is_given_ids_has_no_row_for_each() -> None:
    watch, module = TableWatch(), nn.ModuleList([nn.Embedding(11, 3), Numbering(6, 3)])
    ids = torch.tensor([[9, 3, 5]])
    with watch.watching("student", module, Batch(inputs=ids)):
        for table in module:
            table(ids)
    assert [(found.path, found.rows) for found in watch.limits] == [("0", 11)]


def test_an_error_of_the_data_is_located() -> None:
    sentence = r"^stage 'a', step 3, seed 5: too long$"
    with pytest.raises(DataError, match=sentence), LocatedErrors("a", 3, 5):
        raise DataError("too long")
    with pytest.raises(KeyError), LocatedErrors("a", 3, 5):
        raise KeyError("other")


class Joining(Listed):
    """Gives the batches of several steps at once."""

    def concatenated(self, step: int, number: int) -> Batch:
        each = [self.batch(step + one) for one in range(number)]
        labels = torch.cat([one.labels for one in each if one.labels is not None])
        return Batch(inputs=torch.cat([one.leading for one in each]), labels=labels)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_of_joined_batches_the_one_at_fault_is_known(step: int) -> None:
    good, bad = (Batch(inputs=torch.zeros(2, 3), labels=torch.tensor([0, one])) for one in (1, 9))
    stream = Joining(*(bad if number >= step else good for number in range(4)))
    with pytest.raises(
        DataError, match=r"^'labels' must lie between 0 and 3, .*; got 9;"
    ) as caught:
        RunBatches(stream, good, labels=[(0, 9, FOUR_CLASSES)]).concatenated(0, 4)
    assert caught.value.step == step


@pytest.mark.parametrize("step", [0, 4, 17])
def test_an_error_that_knows_its_step_is_located_there(step: int) -> None:
    error = DataError("too long")
    error.step = step
    with pytest.raises(DataError, match=rf"^stage 'a', step {step}, seed 5: too long$"):  # noqa: SIM117
        with LocatedErrors("a", 3, 5):
            raise error


@pytest.mark.parametrize(
    "settings", [{}, {"prefetch": "batch"}, {"gradient_accumulation_steps": 2}], ids=str
)
@pytest.mark.parametrize("fault", ["label", "id"])
def test_where_a_batch_is_at_fault_is_said_once(settings: dict[str, Any], fault: str) -> None:
    ids = torch.arange(8).view(4, 2)
    good, bad = (
        Batch(
            inputs={"input_ids": ids + (20 if fault == "id" else 0) * wrong},
            labels=torch.tensor([0, 1, 2, 3 + 20 * wrong]),
            selected=torch.tensor([0, 2, 4, 6]),
        )
        for wrong in (0, 1)
    )
    run = texts(from_labels(total="3 steps"), stream=Listed(good, good, bad), settings=settings)
    with pytest.raises(DataError) as caught:
        execute(run, lambda _: {"none": 0.0}, metric="none", outputs=Outputs())
    sentence = str(caught.value)
    assert sentence.startswith("stage 'labels', step 2, seed 0: '")
    assert [sentence.count(word) for word in ("stage", "step", "seed", "batch")] == [1, 1, 1, 0]


def test_a_run_checks_the_labels_and_ids_that_its_models_read() -> None:
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    wrong = Batch(inputs={"input_ids": ids + 2})
    run = texts(one_shot(total="2 steps"), stream=Listed(Batch(inputs={"input_ids": ids}), wrong))
    with pytest.raises(DataError, match=r"'input_ids' must lie between 0 and 10, .*; got 11$"):
        run.stream.batch(1)
    first, second = (Batch(inputs=drawn(2, 6), labels=torch.tensor([0, label])) for label in (1, 2))
    run = bound(from_labels(total="2 steps"), teacher=None, stream=Listed(first, second))
    with pytest.raises(DataError, match=r"'labels' must lie between 0 and 1, .*; got 2; mark"):
        run.stream.batch(1)


def test_a_run_over_batches_of_unequal_length_says_so() -> None:
    run = texts(one_shot(total="2 steps"), stream=Listed(SHORT, LONG))
    assert (
        "batches differ in their number of positions (16 and 256 in the first two)" in run.notes[-1]
    )
    assert not texts(one_shot(total="2 steps"), stream=Listed(SHORT)).notes


def test_labels_that_no_objective_reads_are_left_alone() -> None:
    batch = Batch(inputs=drawn(2, 6), labels=torch.tensor([0, 99]))
    run = bound(one_shot(total="2 steps"), stream=Listed(batch))
    assert run.stream.batch(0).labels is batch.labels


def test_ids_are_checked_for_the_teacher_too() -> None:
    run = texts(
        one_shot(total="1 steps"),
        student=embedder(4, 5),
        teacher=LiveTeacher(embedder(6, 9)),
        stream=Listed(SHORT),
    )
    assert isinstance(run.stream, RunBatches)
    assert {table.owner for table in run.stream._tables} == {"student", "teacher"}


class Clamped(Ids):
    """A reader of ids whose last row serves all further positions."""

    def rows(self, length: int) -> Tensor:
        return torch.arange(length).clamp(max=3)


class Cyclic(Ids):
    """A reader of ids that begins its table of positions again at its end."""

    def rows(self, length: int) -> Tensor:
        return torch.arange(length) % 4


class Queried(Ids):
    """A reader of ids with four queries; the first batch has as many positions by chance."""

    def rows(self, length: int) -> Tensor:
        return torch.arange(4)


def positioned(kind: type[Ids]) -> TappedModel:
    return tapped(kind(4), blocks=["block"], head="head")


EIGHT = Batch(inputs={"input_ids": torch.zeros(4, 8).long()})


@pytest.mark.parametrize("kind", [Clamped, Cyclic, Queried])
def test_models_that_read_longer_batches_rightly_are_taught(kind: type[Ids]) -> None:
    run = texts(
        one_shot(total="2 steps"),
        student=positioned(kind),
        teacher=LiveTeacher(positioned(kind)),
        stream=Listed(SHORT, EIGHT),
    )
    assert any(table.offset == 0 for table in run.tables)
    end = execute(run, lambda _: {"accuracy": 0.5}, metric="accuracy", outputs=Outputs())
    assert end.usage.tokens == 16 + 32


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_a_first_batch_with_too_many_positions_is_explained(owner: str) -> None:
    kinds = {"student": Clamped, "teacher": Clamped, owner: Ids}
    sentence = (
        rf"^'input_ids' must have at most the 4 positions of the {owner}'s table 'places'; got 8; "
        rf"truncate them in the collate function; its forward pass failed with: index out of range"
    )
    with pytest.raises(DataError, match=sentence):
        texts(
            one_shot(total="2 steps"),
            student=positioned(kinds["student"]),
            teacher=LiveTeacher(positioned(kinds["teacher"])),
            stream=Listed(EIGHT),
        )


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_a_pass_that_fails_for_too_many_positions_is_explained(owner: str) -> None:
    kinds = {"student": Clamped, "teacher": Clamped, owner: Ids}
    run = texts(
        one_shot(total="2 steps"),
        student=positioned(kinds["student"]),
        teacher=LiveTeacher(positioned(kinds["teacher"])),
        stream=Listed(SHORT, EIGHT),
    )
    sentence = (
        rf"step 1, seed 0: 'input_ids' must have at most the 4 positions of the {owner}'s table "
        rf"'places'; got 8; truncate them in the collate function; its forward pass failed "
        r"with: index"
    )
    with pytest.raises(DataError, match=sentence):
        execute(run, lambda _: {"accuracy": 0.5}, metric="accuracy", outputs=Outputs())


def test_students_stepped_as_one_model_are_explained_too() -> None:
    teacher, stream = LiveTeacher(positioned(Clamped)), Listed(*[SHORT] * 3, EIGHT)
    runs = [
        texts(one_shot(total="4 steps"), student=positioned(Ids), teacher=teacher, stream=stream)
        for _ in range(2)
    ]
    seats = [
        SharedRun(run=run, evaluate=lambda _: {"accuracy": 0.5}, outputs=Outputs()) for run in runs
    ]
    with pytest.raises(DataError, match=r"at most the 4 positions of the student's table 'places'"):
        execute_shared(seats, metric="accuracy", batch_students=True)


# --- forward passes -------------------------------------------------------------------------------


def failing(error: BaseException) -> Activations:
    raise error


@pytest.mark.parametrize("error", [IndexError("out of range"), RuntimeError("sizes"), TypeError()])
def test_a_later_forward_pass_that_fails_is_an_error_of_the_data(error: Exception) -> None:
    with pytest.raises(
        DataError, match=rf"^'student' must take every batch .* failed with: {error}$"
    ):
        run_forward(lambda: failing(error), torch.zeros(1), "student", ())


def test_a_limit_that_inputs_exceed_explains_a_pass_that_fails_and_no_other() -> None:
    ids, tables = torch.zeros(1, 6), [limit(name="", offset=0, rows=5)]
    with pytest.raises(
        DataError, match=r"^'inputs' must have at most the 5 .*; its for.*: index 7"
    ):
        run_forward(lambda: failing(IndexError("index 7")), ids, "student", tables)
    activations = Activations(hidden={})
    assert run_forward(lambda: activations, ids, "student", tables) is activations


@pytest.mark.parametrize(
    "error", [BindError("ours"), torch.OutOfMemoryError("full"), KeyboardInterrupt()]
)
def test_errors_that_no_data_can_mend_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_forward(lambda: failing(error), torch.zeros(1), "student", ())


# --- steps and the inputs of the teacher ----------------------------------------------------------


def test_every_batch_of_a_run_carries_its_step() -> None:
    batches = RunBatches(Listed(SHORT, SHORT), SHORT)
    assert [batches.batch(step).key for step in (0, 1, 5)] == [(0, 0, 4), (1, 0, 4), (5, 0, 4)]


def test_ids_of_the_teacher_are_looked_up_in_its_own_table() -> None:
    batch = Batch(inputs={"x": torch.tensor([[9]])}, teacher_inputs={"x": torch.tensor([[7]])})
    limit(rows=10).check(batch)
    with pytest.raises(DataError, match=r"the teacher's table 'e'; got 7$"):
        limit(owner="teacher").check(batch)


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_a_first_batch_with_an_id_beyond_the_vocabulary_names_both_numbers(owner: str) -> None:
    """The pass itself fails, in torch's words, before batches are checked."""
    rows = {"student": 9, "teacher": 9} | {owner: 7}
    models = {name: _spelling(number) for name, number in rows.items()}
    ids = torch.tensor([[0, 1, 8], [2, 3, 4]])
    with pytest.raises(
        DataError,
        match=rf"^'inputs' must lie between 0 and 6, the last row of the {owner}'s table '0'; "
        r"got 8; the table holds 7 ids, so the data must come from the tokenizer of this model$",
    ):
        bound(
            one_shot(total="1 steps"),
            student=models["student"],
            teacher=LiveTeacher(models["teacher"]),
            stream=Listed(Batch(inputs=ids, length=3)),
        )


def _spelling(num_ids: int) -> TappedModel:
    """Return a model with a table of some ids and a head of two classes."""
    with seeding.scoped(0, "model"):
        module = nn.Sequential(nn.Embedding(num_ids, 4), nn.Linear(4, 2))
    return tapped(module)
