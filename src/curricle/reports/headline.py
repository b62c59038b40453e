"""How is a comparison told in one line?

The strategy that reached the target with the fewest examples leads the line. A strategy that did
not reach it gives a lower bound: its mean would be at least what its runs have consumed. The line
says so when the subject did not lead, when the seeds of two strategies overlap, when another
strategy needed fewer FLOPs or seconds, and when runs are incomplete or missing. Where the numbers
may not be compared at all, the line says that and nothing else.

Design: every word of it follows from a `Summary`, so a summary read back from JSON gives it again.
"""

from collections.abc import Mapping

from curricle.reports.quantities import is_lower_better, mean, metric_text, short
from curricle.reports.summary import MethodSummary, Summary


def headline(summary: Summary, *, subject: str = "extraction") -> str:
    """Return in one line what the comparison found.

    Where the target is the final value of a strategy, the line also says which share of that
    strategy's seconds and FLOPs the leader needed.

    Args:
        summary: The comparison.
        subject: The strategy that one expects to lead.
    """
    if summary.caution:
        return f"{summary.caution}."
    reached = {
        name: method
        for name, method in summary.methods.items()
        if method.to_target.examples is not None
    }
    if summary.target is None or not reached:
        return _without_leader(summary)
    ranking = sorted(reached, key=lambda name: (_examples(reached[name]), _flops(reached[name])))
    # A subject that is level with the best leads the line: to call that a loss would mislead.
    if subject in reached and _is_level(reached[ranking[0]], reached[subject]):
        ranking.sort(key=lambda name: name != subject)
    leader = ranking[0]
    first = reached[leader]
    lost = f"{subject} did not win: " if subject in summary.methods and leader != subject else ""
    others = [_against(first, name, reached[name]) for name in ranking[1:]] + [
        _bound(first, name, method)
        for name, method in summary.methods.items()
        if name not in reached
    ]
    amount = f"{_share(summary, leader)}with {short(_examples(first))} examples"
    opening = f"{lost}{leader} reached {summary.goal} {amount}"
    return ", ".join([opening, *others]) + _cheaper(leader, reached) + _seeds(summary) + "."


def _share(summary: Summary, leader: str) -> str:
    """Return which part of the cost of the strategy that set the target the leader needed."""
    if summary.target_of in (None, leader):
        return ""
    least, whole = (summary.methods[name].to_target for name in (leader, summary.target_of))
    told = [
        f"{ratio:.2g} of its {words}" if ratio < 1 else f"{_times(ratio)} times its {words}"
        for ratio, words in (
            ((least.seconds or 0.0) / (whole.seconds or 1.0), "seconds"),
            ((least.total_flops or 0.0) / (whole.total_flops or 1.0), "total FLOPs"),
        )
    ]
    return f"in {' and '.join(told)}, "


def _without_leader(summary: Summary) -> str:
    """Return the line for a comparison without a target, or one that nobody reached."""
    sign = -1.0 if is_lower_better(summary.metric) else 1.0
    finals = {
        name: method.final
        for name, method in summary.methods.items()
        if method.final.mean is not None
    }
    goal = summary.goal
    missed = f"no strategy reached {goal} on every seed" if goal else "no target was set"
    if not finals:
        return f"{missed}, and no run is complete{_seeds(summary)}."
    best = max(finals, key=lambda name: sign * (finals[name].mean or 0.0))
    told = metric_text(summary.metric, finals[best].mean, finals[best].ci95)
    return f"{missed}; best final {summary.metric} {told} ({best}){_seeds(summary)}."


def _examples(method: MethodSummary) -> float:
    return method.to_target.examples or 0.0


def _flops(method: MethodSummary) -> float:
    return method.to_target.total_flops or 0.0


def _against(first: MethodSummary, name: str, other: MethodSummary) -> str:
    """Return how many times fewer examples the leader needed than another that got there."""
    ratio = _examples(other) / max(_examples(first), 1.0)
    told = short(_examples(other))
    has_seeds = len(first.examples) > 1 and len(other.examples) > 1
    overlap = "; seeds overlap" if has_seeds and _overlap(first, other) else ""
    if _is_level(first, other):
        return f"about as many as {name} ({told}{overlap})"
    return f"{_times(ratio)} times fewer than {name} ({told}{overlap})"


LEVEL = 1.1
"""Ratio of examples up to which two strategies count as level."""


def _is_level(first: MethodSummary, other: MethodSummary) -> bool:
    """Return whether two needed about as much: a tenth apart at most, and their seeds overlap."""
    ratio = _examples(other) / max(_examples(first), 1.0)
    return _overlap(first, other) and _overlap(other, first) and 1 / LEVEL <= ratio <= LEVEL


def _overlap(first: MethodSummary, other: MethodSummary) -> bool:
    """Return whether some seed of the other needed no more than the worst of the first."""
    return max(first.examples) >= min(other.examples)


def _bound(first: MethodSummary, name: str, other: MethodSummary) -> str:
    """Return by how much at least the leader was ahead of one that did not get there."""
    floor = mean(other.examples)
    ratio = floor / max(_examples(first), 1.0)
    so_far = "" if all(seed.complete for seed in other.seeds) else " so far"
    if other.reached.startswith("0/"):
        told = f"{name} (not reached in {short(floor)}{so_far})"
    else:
        told = f"{name} (reached by {other.reached} seeds, {short(floor)}{so_far} on average)"
    if ratio <= 1.0:
        return f"undecided against {told}"
    return f"at least {_times(ratio, down=True)} times fewer than {told}"


def _times(ratio: float, *, down: bool = False) -> str:
    """Return a ratio with one digit after the point below ten, none above."""
    scale = 10 if ratio < 10 else 1  # noqa: PLR2004 - one digit more below ten
    # A lower bound must not be rounded up.
    whole = int(ratio * scale) if down else round(ratio * scale)
    return f"{whole / scale:g}" if whole < 1000 * scale else short(whole / scale)


def _cheaper(leader: str, reached: Mapping[str, MethodSummary]) -> str:
    """Return which other strategy needed fewer FLOPs or seconds, if one did."""
    told = []
    for cost, words in (("total_flops", "total FLOPs"), ("seconds", "seconds")):
        amounts = {name: getattr(method.to_target, cost) for name, method in reached.items()}
        least = min(amounts, key=lambda name: amounts[name])
        if amounts[least] < amounts[leader]:
            told.append(
                f"fewer {words} by {least} ({short(amounts[least])} against "
                f"{short(amounts[leader])})"
            )
    return f"; but {' and '.join(told)}" if told else ""


def _seeds(summary: Summary) -> str:
    """Return over how many seeds the line speaks, and how many runs are not whole."""
    counts = sorted({len(method.seeds) for method in summary.methods.values()})
    seeds = [seed for method in summary.methods.values() for seed in method.seeds]
    unfinished = sum(not seed.complete for seed in seeds)
    most = counts[-1] if counts else 0
    span = str(most) if len(counts) <= 1 else f"{counts[0]} to {most}"
    notes = [f"{span} seed{'' if most == 1 else 's'} each"]
    if unfinished:
        notes.append(f"{unfinished} of {len(seeds)} runs incomplete")
    if summary.missing:
        missing = len(summary.missing)
        notes.append(f"{missing} of {missing + len(seeds)} runs missing")
    return f"; {', '.join(notes)}"
