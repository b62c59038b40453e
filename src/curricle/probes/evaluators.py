"""Evaluators that record probes during training.

The training loop calls an evaluator, a function from a model to named metrics. `with_probes`
extends an evaluator by the numbers of probes:

    evaluate = with_probes(
        label_metrics(held_out),
        {"parity": partial(output_correlations, support=range(6))},
        batch,
    )
    curricle.distill(student, teacher, curriculum, data, evaluation=evaluate)

The numbers appear in the run's records beside the metrics, as `<probe>/<number>`. Neither the loop
nor the training changes: evaluations do not count as training time, and probes use separate random
streams.
"""

from collections.abc import Callable, Mapping

from curricle.data.batch import Batch
from curricle.errors import SpecError
from curricle.models.tapped import TappedModel
from curricle.probes.forward_passes import Probe

Measure = Callable[[TappedModel], dict[str, float]]
"""An evaluator of the training loop."""


def with_probes(evaluate: Measure, probes: Mapping[str, Probe], batch: Batch) -> Measure:
    """Return an evaluator of the metrics of another evaluator and the numbers of probes.

    Args:
        evaluate: Evaluator of the run's metrics.
        probes: Probes by name, the prefix of their numbers.
        batch: Input of the probes, the same in every evaluation.

    Raises:
        SpecError: If a probe has no name.
    """
    if "" in probes:
        raise SpecError(f"'probes' must each have a name; got {list(probes)}")

    def measure(model: TappedModel) -> dict[str, float]:
        numbers = dict(evaluate(model))
        for name, probe in probes.items():
            for key, number in probe(model, batch).items():
                numbers[f"{name}/{key}"] = number
        return numbers

    return measure
