"""Facts, settings and batches of several processes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from curricle.curriculum.strategies import one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.training.binding.facts import run_facts
from curricle.training.loop.alike import batch_digest, check_alike, compare
from curricle.training.loop.evaluation import Evaluator, label_metrics
from curricle.training.setup.placement import SingleDevice
from tests.parts import bound, parity

FACTS: dict[str, object] = {"seed": 0, "teacher": "a", "optimizer": {"learning_rate": 0.1}}
BATCH = Batch(inputs=torch.arange(6.0).view(2, 3), labels=torch.tensor([0, 1]))


def changed(**changes: Any) -> Batch:
    fields: dict[str, Any] = {"inputs": BATCH.inputs, "labels": BATCH.labels}
    return Batch(**(fields | changes))


def test_processes_with_equal_facts_pass() -> None:
    compare([FACTS, dict(FACTS), dict(FACTS)])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"teacher": "b"}, "the teacher has other weights or adapters;"),
        ({"seed": 1}, "'seed' is 1, in process 0 0;"),
        (
            {"optimizer": {"learning_rate": 0.2}},
            "'optimizer.learning_rate' is 0.2, in process 0 0.1;",
        ),
        ({"batch": "c"}, "the batch of step 0 has other numbers;"),
        ({"held_out": [1, "d"]}, "held-out data differ;"),
        ({"output_dir": "run"}, "'output_dir' is 'run', in process 0 not there;"),
    ],
)
def test_the_first_process_that_differs_is_named(facts: dict[str, object], words: str) -> None:
    with pytest.raises(BindError, match=f"in process 2, counted from 0, {words} pass the same"):
        compare([FACTS, dict(FACTS), FACTS | facts, {}])


Compared = Callable[..., dict[str, Any]]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """Return a function from a run to the facts of it that processes exchange."""

    def facts_of(evaluate: Evaluator, **settings: Any) -> dict[str, Any]:
        exchanged: list[Any] = []

        def gathered(_: SingleDevice, items: list[Any]) -> list[Any]:
            exchanged.extend(items)
            return [*items, *items]

        monkeypatch.setattr(SingleDevice, "num_processes", 2)
        monkeypatch.setattr(SingleDevice, "gathered", gathered)
        run = bound(one_shot(total="4 steps"), settings=settings)
        check_alike(run, evaluate, run_facts(run))
        facts: dict[str, Any] = exchanged[-1]
        return facts

    return facts_of


def test_settings_that_decide_about_exchanges_are_compared(compared: Compared) -> None:
    evaluate = label_metrics([parity().batch(0)])
    facts = compared(evaluate)
    for settings in ({"eval_every": 3}, {"save_every": 2}, {"keep_best": True}):
        with pytest.raises(BindError, match=f"'engine.{next(iter(settings))}' is "):
            compare([facts, compared(evaluate, **settings)])
    # These may differ.
    compare([facts, compared(evaluate, threads=2, timeout=7.0)])


def test_held_out_batches_are_compared(compared: Compared) -> None:
    batches = [parity(purpose="evaluation").batch(step) for step in range(3)]
    facts = compared(label_metrics(batches))
    for others in (batches[:2], [*batches[:2], parity().batch(9)]):
        with pytest.raises(BindError, match="held-out data differ"):
            compare([facts, compared(label_metrics(others))])
    compare([facts, compared(label_metrics(batches))])


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(_: object, items: object) -> None:
        raise AssertionError(items)

    run = bound(one_shot(total="4 steps"))
    monkeypatch.setattr(SingleDevice, "gathered", gathered)
    check_alike(run, label_metrics([parity().batch(0)]), {})


def test_a_batch_of_other_shapes_or_types_has_another_digest() -> None:
    batches = [
        BATCH,
        changed(labels=torch.tensor([1, 1])),
        changed(inputs=torch.ones(2, 3)),
        changed(inputs=torch.arange(6.0).view(2, 3).double()),
        changed(inputs=torch.arange(6.0).view(2, 3, 1)),
        changed(inputs={"a": torch.arange(6.0).view(2, 3)}),
        changed(inputs={"b": torch.arange(6.0).view(2, 3)}),
    ]
    assert len(set(map(batch_digest, batches))) == len(batches)


def test_the_order_of_named_inputs_is_no_difference() -> None:
    inputs = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}
    backwards = dict(reversed(inputs.items()))
    assert batch_digest(changed(inputs=inputs)) == batch_digest(changed(inputs=backwards))
