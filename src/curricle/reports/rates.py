"""Learning rates and seeds that follow from a first pass over rates.

The first pass is an ordinary comparison with one seed, in which `method+rate` is the name of a
strategy. It is read from its summary, so that the choice can be made again from the records.

Units: seconds of training, without evaluation.
"""

import math
from collections.abc import Mapping, Sequence

from curricle.metrics import NLL
from curricle.reports.summary import MethodSummary, Summary


def arm(method: str, rate: float) -> str:
    """Return the name of a strategy of the first pass."""
    return f"{method}+{rate:g}"


def best_rates(summary: Summary) -> dict[str, float]:
    """Return the learning rate of each method with the best final metric of the first pass.

    Equal metrics, as of two students that have learned a parity, are ordered by the negative
    log-likelihood if it was measured, then by the smaller rate. A method without a complete run,
    because all have diverged, has none.
    """
    best: dict[str, tuple[tuple[float, float, float], float]] = {}
    sign = 1.0 if summary.better == "lower" else -1.0
    for name, arm_summary in summary.methods.items():
        method, _, text = name.rpartition("+")
        mean = arm_summary.final.mean
        if mean is None or not math.isfinite(mean):
            continue
        rate = float(text)
        likelihood = arm_summary.seeds[0].final.get(NLL.name, math.inf)
        rank = (sign * mean, likelihood, rate)
        if method not in best or rank < best[method][0]:
            best[method] = (rank, rate)
    return {method: rate for method, (_, rate) in best.items()}


def affordable_seeds(
    summary: Summary, rates: Mapping[str, float], seeds: Sequence[int], seconds: float
) -> tuple[int, ...]:
    """Return the first seeds that seconds pay for after the first pass, at least one.

    Args:
        summary: The first pass.
        rates: Chosen rate of each method.
        seeds: All seeds, in order.
        seconds: For the first pass and the seeds.
    """
    spent = math.fsum(map(_seconds, summary.methods.values()))
    seed = math.fsum(_seconds(summary.methods[arm(method, rate)]) for method, rate in rates.items())
    count = len(seeds) if seed <= 0 else math.floor((seconds - spent) / seed)
    return tuple(seeds[: max(1, count)])


def _seconds(method: MethodSummary) -> float:
    return math.fsum(seed.usage["seconds"] for seed in method.seeds)
