"""Warnings about students: at chance, below training without a teacher, or with failed steps.

A comparison ranks strategies without regard to their level; the best of four may still be
useless. Each warning is a sentence about a strategy.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from curricle.metrics import ACCURACY, Direction, is_at_chance
from curricle.reports.comparisons import verdict
from curricle.reports.formatting import mean_text
from curricle.reports.replicates import replicates
from curricle.reports.run_folders import Run

WORSE: Final[Mapping[Direction, str]] = {"higher": "less", "lower": "more"}
"""Verdict on a strategy that is worse than another."""


def warnings_on_ends(
    groups: Mapping[str, Sequence[Run]], metric: str, better: Direction | None
) -> dict[str, tuple[str, ...]]:
    """Return the warnings about each strategy's complete runs.

    Args:
        groups: Runs by strategy.
        metric: Name of the metric by which runs are judged.
        better: Which values of it are better; without a direction nothing is below anything.
    """
    baselines = [name for name, runs in groups.items() if not any(map(_has_teacher, runs))]
    return {
        name: (
            *_at_chance(runs, metric),
            *_recoveries(runs),
            *(
                sentence
                for baseline in baselines
                if better is not None and any(map(_has_teacher, runs))
                for sentence in _below(runs, baseline, groups[baseline], (metric, better))
            ),
        )
        for name, runs in groups.items()
    }


def _has_teacher(run: Run) -> bool:
    return run.opening.teacher_parameters > 0


def _at_chance(runs: Sequence[Run], metric: str) -> list[str]:
    """Return a sentence about runs that end where a constant prediction would."""
    if metric != ACCURACY.name:
        return []
    ends = [run for run in runs if run.end is not None and run.opening.chance is not None]
    number = sum(is_at_chance(run.end.metrics, run.opening.chance) for run in ends if run.end)
    if not number:
        return []
    sentence = "accuracy is not measurably above that of the most frequent label"
    return [f"{chance_warning(number, len(ends))}: their {sentence}"]


def _recoveries(runs: Sequence[Run]) -> list[str]:
    """Return a sentence about runs in which steps were skipped or rolled back."""
    ends = [run.end for run in runs if run.end is not None]
    number = sum(end.skipped_steps > 0 or end.roll_backs > 0 for end in ends)
    if not number:
        return []
    skipped, roll_backs = (
        sum(end.skipped_steps for end in ends),
        sum(end.roll_backs for end in ends),
    )
    return [
        (
            f"failed steps in {number} of {len(ends)} students: {skipped:,} skipped, "
            f"{roll_backs:,} rolled back to a checkpoint; their batches are in 'failed-steps' of "
            f"the run folders"
        )
    ]


def chance_warning(number: int, runs: int) -> str:
    """Return the beginning of the warning about students at chance.

    Args:
        number: Students at chance.
        runs: All students of the strategy.
    """
    return f"{number} of {runs} students end at chance or below"


def _below(
    runs: Sequence[Run], name: str, baseline: Sequence[Run], aim: tuple[str, Direction]
) -> list[str]:
    """Return a sentence if a strategy with a teacher ends worse than one without.

    With two seeds or more each the difference has to be outside its 95 % interval.
    """
    metric, better = aim
    values, baseline_values = _finals(runs, metric), _finals(baseline, metric)
    if not values or not baseline_values:
        return []
    judged = verdict(values, baseline_values)
    is_lower = sum(values.values()) / len(values) < sum(baseline_values.values()) / len(
        baseline_values
    )
    is_worse = is_lower == (better == "higher") if judged == "single" else judged == WORSE[better]
    if not is_worse:
        return []
    level, baseline_level = (
        mean_text(metric, [*numbers.values()]) for numbers in (values, baseline_values)
    )
    words = metric.replace("_", " ")
    return [
        f"ends below {name!r}, which has no teacher: {words} {level} against {baseline_level}"
        + (" (one seed)" if judged == "single" else "")
    ]


def _finals(runs: Sequence[Run], metric: str) -> dict[int, float]:
    counted = replicates(runs)
    return {run.seed: run.end.metrics[metric] for run in counted if run.end is not None}
