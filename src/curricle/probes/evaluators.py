"""How are a probe's numbers recorded while a student trains?

The loop is told what to measure by an evaluator, a function from a model to named metrics.
`with_probes` returns one that gives an evaluator's metrics and the numbers of probes:

    evaluate = with_probes(
        label_metrics(held_out, device),
        {"parity": partial(output_correlations, support=range(6))},
        batch,
    )
    curricle.distill(student, teacher, curriculum, data, evaluation=evaluate)

They land in the run's records beside the metrics, named `<probe>/<number>`. Neither the loop nor
the training changes: evaluations take no training time, and probes draw from streams of their own.
"""

from collections.abc import Callable, Mapping

from curricle.data.streams import Batch
from curricle.errors import SpecError
from curricle.models.tapped import TappedModel
from curricle.probes.readings import Probe

Measure = Callable[[TappedModel], dict[str, float]]
"""What the loop calls an evaluator."""


def with_probes(evaluate: Measure, probes: Mapping[str, Probe], batch: Batch) -> Measure:
    """Return an evaluator that gives the metrics of another one and the numbers of probes.

    Args:
        evaluate: Gives the metrics by which the run is judged.
        probes: Probes by the name that their numbers shall carry.
        batch: What the probes read, the same every time.

    Raises:
        SpecError: If a probe has no name.
    """
    if "" in probes:
        raise SpecError(f"'probes' must each have a name; got {list(probes)}")

    def measure(model: TappedModel) -> dict[str, float]:
        numbers = dict(evaluate(model))
        for name, probe in probes.items():
            numbers |= {f"{name}/{part}": one for part, one in probe(model, batch).items()}
        return numbers

    return measure
