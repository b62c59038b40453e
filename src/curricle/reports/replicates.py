"""Seeds of a strategy that repeat one run, and so measure no noise.

With data in a fixed order, first weights of one module and a curriculum that draws nothing, as a
least-squares start, all seeds train the same student. The spread over such seeds is zero and no
estimate of the noise between runs.

Design: judged by the records. Two trainings that differ in anything differ in the last digit of
some loss; a final accuracy alone may agree, as where all students solve the task.
"""

from collections.abc import Sequence

from curricle.reports.run_folders import Run


def replicates(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs of a strategy that are draws of their own.

    Args:
        runs: All runs of one strategy.

    Returns:
        All runs; the first complete one alone where all complete runs recorded the same losses and
        metrics.
    """
    ends = [run for run in runs if run.end is not None]
    if len(ends) < 2 or any(_numbers(run) != _numbers(ends[0]) for run in ends[1:]):  # noqa: PLR2004
        return tuple(runs)
    return (ends[0],)


def _numbers(run: Run) -> object:
    """Return everything that a run has recorded, but for its seed and its times."""
    losses = [(record.usage.steps, record.loss, record.terms) for record in run.steps]
    metrics = [(point.usage.steps, point.metrics) for point in run.measurements]
    return losses, metrics


def replicates_note(runs: Sequence[Run]) -> list[str]:
    """Return the note on seeds that repeat one run; none where every seed is a draw of its own.

    Args:
        runs: All runs of one strategy.
    """
    if len(replicates(runs)) == len(runs):
        return []
    note = (
        f"all {len(runs)} seeds recorded the same losses and metrics and are no replicates, since "
        f"nothing in the run depends on its seed; they count as one, without an interval"
    )
    return [note]
