"""Facts and first batches of several processes."""

from collections.abc import Callable

import pytest
import torch

from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.training.loop.alike import batch_digest, check_alike
from curricle.training.setup.placement import SingleDevice

FACTS = {"seed": 0, "teacher": "a", "optimizer": {"learning_rate": 0.1}}
BATCH = Batch(inputs=torch.arange(6.0).view(2, 3), labels=torch.tensor([0, 1]))


MakeGroup = Callable[..., SingleDevice]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> MakeGroup:
    """Return a function from facts and batches of other processes to the placement of the first."""

    def make(*others: tuple[dict[str, object], Batch]) -> SingleDevice:
        digests = [(facts, batch_digest(batch)) for facts, batch in others]
        monkeypatch.setattr(SingleDevice, "num_processes", 1 + len(others))
        monkeypatch.setattr(SingleDevice, "gathered", lambda _, items: [*items, *digests])
        return SingleDevice("cpu")

    return make


def changed(**changes: object) -> Batch:
    fields: dict[str, object] = {"inputs": BATCH.inputs, "labels": BATCH.labels}
    return Batch(**(fields | changes))  # type: ignore[arg-type]


def test_processes_with_equal_facts_and_batches_pass(group: MakeGroup) -> None:
    check_alike(group((dict(FACTS), changed()), (dict(FACTS), changed())), FACTS, BATCH)


@pytest.mark.parametrize(
    ("facts", "batch", "words"),
    [
        (FACTS | {"teacher": "b"}, BATCH, "the teacher has other weights or adapters;"),
        (FACTS | {"seed": 1}, BATCH, "'seed' was 0 and is 1;"),
        (
            FACTS | {"optimizer": {"learning_rate": 0.2}},
            BATCH,
            "'optimizer.learning_rate' was 0.1 and is 0.2;",
        ),
        (FACTS, changed(labels=torch.tensor([1, 1])), "the batch of step 0 has other numbers;"),
        (FACTS, changed(inputs=torch.ones(2, 3)), "the batch of step 0 has other numbers;"),
    ],
)
def test_the_first_process_that_differs_is_named(
    facts: dict[str, object], batch: Batch, words: str, group: MakeGroup
) -> None:
    placement = group((dict(FACTS), changed()), (facts, batch), ({}, batch))
    with pytest.raises(BindError, match=f"in process 2, counted from 0, {words}"):
        check_alike(placement, FACTS, BATCH)


def test_a_batch_of_other_shapes_or_types_has_another_digest() -> None:
    batches = [
        BATCH,
        changed(inputs=torch.arange(6.0).view(2, 3).double()),
        changed(inputs=torch.arange(6.0).view(2, 3, 1)),
        changed(inputs={"a": torch.arange(6.0).view(2, 3)}),
        changed(inputs={"b": torch.arange(6.0).view(2, 3)}),
    ]
    assert len(set(map(batch_digest, batches))) == len(batches)
