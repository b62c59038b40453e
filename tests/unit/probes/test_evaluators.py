"""Probes beside the metrics, without influence on the training."""

from functools import partial

import pytest
import torch
from torch import Tensor

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import from_labels
from curricle.data.batch import Batch
from curricle.data.synthetic.parity import ParityStream
from curricle.errors import SpecError
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.probes.correlations import output_correlations
from curricle.probes.evaluators import with_probes
from curricle.probes.forward_passes import Probe
from curricle.probes.representations import linear_probe
from curricle.records import EvaluationRecord
from curricle.training.distill import distill
from curricle.training.loop.evaluation import Evaluator, label_metrics
from curricle.training.loop.run_outputs import Observer
from curricle.training.setup.settings import TrainingSettings

HELD_OUT = ParityStream(num_inputs=6, degree=2, batch_size=64, seed=0, purpose="evaluation").batch(
    0
)
PROBES: dict[str, Probe] = {
    "parity": partial(output_correlations, support=range(2)),
    "taps": linear_probe,
}


def trained(evaluate: Evaluator, observers: tuple[Observer, ...] = ()) -> Tensor:
    with seeding.scoped(0, "model"):
        student = MLP(6, (8,), 2)
    distill(
        student,
        None,
        from_labels(total=Duration(number=10)),
        ParityStream(num_inputs=6, degree=2, batch_size=16, seed=1),
        evaluation=evaluate,
        settings=TrainingSettings(eval_every=5, threads=1),
        observers=observers,
    )
    return student.head.weight.detach()


def test_the_numbers_of_probes_stand_beside_the_metrics() -> None:
    with seeding.scoped(0, "model"):
        model = MLP(6, (8,), 2).tapped()
    evaluate = label_metrics([HELD_OUT])
    # As in the loop, which evaluates without gradients.
    with torch.no_grad():
        actual = with_probes(evaluate, PROBES, HELD_OUT)(model)
        assert evaluate(model).items() <= actual.items()
    expected = output_correlations(model, HELD_OUT, support=range(2))
    assert {f"parity/{name}": number for name, number in expected.items()}.items() <= actual.items()
    assert {"taps/linear_0_accuracy", "taps/linear_1_accuracy"} <= set(actual)


def test_probes_are_recorded_and_change_nothing_in_the_training() -> None:
    evaluate = label_metrics([HELD_OUT])
    seen: list[object] = []
    with_them = trained(with_probes(evaluate, PROBES, HELD_OUT), (seen.append,))
    assert torch.equal(with_them, trained(evaluate))
    recorded = [record for record in seen if isinstance(record, EvaluationRecord)]
    assert len(recorded) >= 2
    assert all("parity/in_2_max" in record.metrics for record in recorded)


def test_what_probes_read_is_the_same_every_time() -> None:
    batches = []

    def listen(model: TappedModel, batch: Batch) -> dict[str, float]:
        batches.append(batch)
        return {}

    with seeding.scoped(0, "model"):
        model = MLP(6, (8,), 2).tapped()
    measure = with_probes(lambda _: {"accuracy": 1.0}, {"ear": listen}, HELD_OUT)
    assert measure(model) == measure(model) == {"accuracy": 1.0}
    assert batches == [HELD_OUT, HELD_OUT]


def test_every_probe_has_a_name() -> None:
    with pytest.raises(SpecError, match=r"^'probes' must each have a name; got \[''\]$"):
        with_probes(lambda _: {}, {"": linear_probe}, HELD_OUT)
