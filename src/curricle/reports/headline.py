"""One-line verdict of a comparison.

Each clause begins with a strategy, then has its number and how it compares. The strategy that
reached the goal with the fewest examples leads the line, or that with the fewest FLOPs or seconds
where the budget is of these; those that needed equally many lead it together. A strategy that did
not reach the goal gives a lower bound: its mean would be at least the cost of its runs. A strategy
whose final value is the goal has the cost of its whole runs, unless every seed reached it earlier.
The line mentions another strategy that was cheaper in another unit, the best final metric, the
strategy that closed most of the gap between labels and teacher, and runs that are incomplete or
missing. Where the numbers are not comparable, the line consists of that
caution.

Design: every word of it follows from a `Summary`, so a summary read back from JSON gives it again.
A difference that lies inside its 95 % interval over seeds is no verdict (see `comparisons`); both
means stand there with their intervals instead. A single seed has no interval, which is mentioned.
"""

from collections.abc import Mapping, Sequence

from curricle.reports.comparisons import cost_verdict, verdict
from curricle.reports.directions import remedy
from curricle.reports.formatting import mean, metric_text, short, with_interval
from curricle.reports.gaps import FALLBACK
from curricle.reports.student_warnings import chance_warning
from curricle.reports.summary import MethodSummary, Summary

UNITS = {"examples": "examples", "total_flops": "total FLOPs", "seconds": "seconds"}
"""Costs by which strategies are compared, in words."""
MOST_NAMED = 6
"""Strategies that the line compares with its leader; the table has them all."""
NOISE = "no measurable difference"


def headline(summary: Summary, *, subject: str = "extraction") -> str:
    """Return the verdict of a comparison in one line.

    Where the goal is the final value of a strategy, the line includes the share of that
    strategy's seconds and FLOPs that the leader needed.

    Args:
        summary: The comparison.
        subject: The strategy expected to lead.
    """
    if summary.caution:
        return f"{summary.caution}."
    reached = {
        name: method
        for name, method in summary.methods.items()
        if method.to_goal.examples is not None
    }
    if summary.goal is None or not reached:
        return _without_leader(summary)
    if summary.methods and all(map(_ends_at_chance, summary.methods.values())):
        return (
            "all students end at chance or below, so no strategy is ranked; train longer, or "
            "check the teacher and the learning rate."
        )
    lead = summary.lead
    ranking = sorted(
        reached, key=lambda name: (_cost(reached[name], lead), _flops(reached[name]), name)
    )
    # A subject that is level with the best leads the line: to call that a loss would mislead.
    if subject in reached and _is_level(reached[ranking[0]], reached[subject], lead):
        ranking.sort(key=lambda name: name != subject)
    leaders = _leaders(summary, reached, ranking)
    followers = [name for name in ranking if name not in leaders]
    followers += sorted(set(summary.methods) - set(reached))
    clauses = [_against(summary, leaders[0], name) for name in followers]
    opening = _opening(summary, leaders)
    cheaper = _cheaper(leaders, reached, lead)
    finals = {name: method for name, method in summary.methods.items() if method.finals}
    ends = [_best(summary, finals)] if len(finals) > 1 else []
    ends += _gap(summary)
    return f"{'; '.join([opening, *_shortened(clauses), *cheaper, *ends])}{_seeds(summary)}."


def _ends_at_chance(method: MethodSummary) -> bool:
    """Return whether all runs of a strategy end at chance."""
    count = len(method.seeds)
    return any(note.startswith(chance_warning(count, count)) for note in method.notes)


def _leaders(
    summary: Summary, reached: Mapping[str, MethodSummary], ranking: Sequence[str]
) -> list[str]:
    """Return the strategies that needed the fewest examples, equally many each.

    A single one where shares of another cost follow, which differ between leaders.
    """
    first = reached[ranking[0]]
    if any(_share(summary, ranking[0])) or first.costs_whole_runs:
        return [*ranking[:1]]
    return [
        name
        for name in ranking
        if _is_equal(first, reached[name], summary.lead) and not reached[name].costs_whole_runs
    ]


def _is_equal(first: MethodSummary, second: MethodSummary, cost: str) -> bool:
    return cost_verdict(first.costs(cost), second.costs(cost)) == "equal"


def _together(names: Sequence[str]) -> str:
    """Return names as one subject; the last of many are counted."""
    *first_names, last = _shortened(names)
    return f"{', '.join(first_names)} and {last.removeprefix('and ')}" if first_names else last


def _opening(summary: Summary, leaders: Sequence[str]) -> str:
    """Return the result of the leaders."""
    first = summary.methods[leaders[0]]
    share, noise = _share(summary, leaders[0])
    amount = _amount(first, summary.lead)
    if first.costs_whole_runs:
        # Equal costs of others are clauses of their own: they may have reached the goal itself.
        number, count = first.reached.split("/")
        runs = f"(whole runs; {number} of {count} seeds reached it)"
        return f"{leaders[0]} ended at {_goal(summary)} after {amount} {runs}{share}{noise}"
    each = " each" if len(leaders) > 1 else ""
    reached = f"{_together(leaders)} reached {summary.goal_words} after {amount}{each}"
    return f"{reached}{share}{noise}"


def _goal(summary: Summary) -> str:
    """Return the value of the goal with the name of the metric."""
    value = metric_text(summary.metric, summary.goal)
    words = summary.metric.replace("_", " ")
    return f"{value} {words}" if value.endswith("%") else f"{words} {value}"


def _amount(method: MethodSummary, cost: str) -> str:
    """Return the mean cost of a strategy to the goal, with its interval and unit."""
    numbers = (getattr(method.to_goal, cost), getattr(method.to_goal_ci95, cost))
    return f"{'at most ' * method.is_bound}{with_interval(*numbers)} {UNITS[cost]}"


def _shortened(clauses: Sequence[str]) -> list[str]:
    """Return the first clauses, and how many are left out."""
    num_hidden = len(clauses) - MOST_NAMED
    return [
        *clauses[:MOST_NAMED],
        *([f"and {num_hidden} more in the table"] if num_hidden > 0 else []),
    ]


def _share(summary: Summary, leader: str) -> tuple[str, str]:
    """Return the leader's share of the cost of the strategy that set the goal.

    Returns:
        The measurable parts, and after them the costs whose difference is inside the noise.
    """
    source = summary.goal_of
    if source in (None, leader):
        return "", ""
    cheapest, reference = (summary.methods[name] for name in (leader, source or leader))
    measurable, unclear = [], []
    for cost in ("seconds", "total_flops", "examples"):
        # The clauses of the line compare its leading unit.
        if cost == summary.lead:
            continue
        words = UNITS[cost]
        numbers, reference_numbers = cheapest.costs(cost), reference.costs(cost)
        if cost_verdict(numbers, reference_numbers) == "unclear":
            unclear.append(f"{NOISE} in {words} ({_both(cheapest, reference, cost)})")
        else:
            ratio = mean([*numbers.values()]) / (mean([*reference_numbers.values()]) or 1.0)
            measurable.append(_relative(ratio, words))
    share = f", with {' and '.join(measurable)} of {source}" if measurable else ""
    return share, "".join(f", {clause}" for clause in unclear)


def _relative(ratio: float, words: str) -> str:
    """Return a cost relative to that of the strategy that set the goal."""
    if f"{ratio:.2g}" == "1":
        return f"the same {words}"
    return f"{ratio:.2g} of the {words}" if ratio < 1 else f"{_times(ratio)} times the {words}"


def _both(first: MethodSummary, second: MethodSummary, cost: str) -> str:
    """Return the mean costs of two strategies with their intervals."""
    return " against ".join(
        with_interval(getattr(method.to_goal, cost), getattr(method.to_goal_ci95, cost))
        for method in (first, second)
    )


def _without_leader(summary: Summary) -> str:
    """Return the line for a comparison without a goal, or one that nobody reached."""
    goal = summary.goal_words
    finals = {name: method for name, method in summary.methods.items() if method.finals}
    if not finals:
        result = "no run is complete"
    elif summary.better is None and len(finals) > 1:
        result = f"no strategy is called best: {remedy(summary.metric)}"
    else:
        result = "; ".join([_best(summary, finals), *_gap(summary)])
    missed = f"no strategy reached {goal} on every seed; " if goal else ""
    without = "" if goal else "; no goal was set, so costs are not compared"
    return f"{missed}{result}{without}{_seeds(summary)}."


def _best(summary: Summary, methods: Mapping[str, MethodSummary]) -> str:
    """Return which strategy has the best final metric, as far as the noise allows."""
    sign = 1.0 if summary.better == "lower" else -1.0
    ranking = sorted(methods, key=lambda name: (sign * (methods[name].final.mean or 0.0), name))
    best = ranking[0]
    final, number = f"final {summary.metric.replace('_', ' ')}", methods[best].final_text
    if len(methods) == 1:
        return f"{best} has a {final} of {number}"
    verdicts = {name: verdict(methods[best].finals, methods[name].finals) for name in ranking[1:]}
    equal = [name for name in ranking[1:] if verdicts[name] == "equal"]
    unclear = [
        f"{name} {methods[name].final_text}" for name, kind in verdicts.items() if kind == "unclear"
    ]
    leaders = _together([best, *equal])
    each = " each" if equal else ""
    if len(equal) == len(verdicts):
        return f"{leaders} have the same {final}, {number}"
    level = ", ".join(_shortened(unclear))
    if len(equal) + len(unclear) == len(verdicts):
        return f"{NOISE} in {final}: {leaders} {number}{each}, {level}"
    result = f"{leaders} {'have' if equal else 'has'} the best {final}, {number}"
    if unclear:
        return f"{result}; {NOISE} from {level}"
    return result if "single" in verdicts.values() else f"{result}, a measurable difference"


def _gap(summary: Summary) -> list[str]:
    """Return which strategy closed most of the gap between labels and teacher, if any did.

    A gap from another base than labels is in the table alone.
    """
    base = summary.gap_base
    gaps = {
        name: method.gap_closed.mean
        for name, method in summary.methods.items()
        if method.gap_closed is not None and name != base
    }
    best = max(gaps, key=lambda name: (gaps[name], name), default="")
    if base in (None, FALLBACK) or not best or gaps[best] <= 0:
        return []
    teacher = metric_text(summary.metric, summary.teacher_final)
    share = summary.methods[best].gap_closed
    return [f"{best} closed {share} of the gap between {base} and the teacher ({teacher})"]


def _cost(method: MethodSummary, cost: str) -> float:
    return getattr(method.to_goal, cost) or 0.0


def _flops(method: MethodSummary) -> float:
    return method.to_goal.total_flops or 0.0


def _against(summary: Summary, leader: str, name: str) -> str:
    """Return how many times the leader's cost another strategy needed."""
    first, second, lead = summary.methods[leader], summary.methods[name], summary.lead
    if second.to_goal.examples is None:
        return _bound(first, name, second, lead)
    whole = second.costs_whole_runs
    needed = f"{name} ended there after" if whole else f"{name} needed"
    runs = " (whole runs)" if whole else ""
    amount = _amount(second, lead)
    if _is_equal(first, second, lead):
        return f"{needed} as many{runs}"
    if cost_verdict(first.costs(lead), second.costs(lead)) == "unclear":
        return f"{needed} {_both(second, first, lead)} {UNITS[lead]}{runs}, {NOISE}"
    ratio = _cost(second, lead) / max(_cost(first, lead), _least(lead))
    has_seeds = len(first.seeds) > 1 and len(second.seeds) > 1
    overlap = " (single seeds overlap)" if has_seeds and _overlap(first, second, lead) else ""
    is_level = _is_level(first, second, lead) or _times(ratio) == "1"
    times = "about as many" if is_level else f"{_times(ratio)} times as many"
    return f"{needed} {amount}{runs}, {times}{overlap}"


LEVEL = 1.1
"""Ratio of costs up to which two strategies count as level."""


def _least(cost: str) -> float:
    """Return the least cost by which is divided."""
    return 1e-9 if cost == "seconds" else 1.0


def _is_level(first: MethodSummary, second: MethodSummary, cost: str) -> bool:
    """Return whether two needed about as much: a tenth apart at most, and their seeds overlap."""
    ratio = _cost(second, cost) / max(_cost(first, cost), _least(cost))
    is_mixed = _overlap(first, second, cost) and _overlap(second, first, cost)
    return is_mixed and 1 / LEVEL <= ratio <= LEVEL


def _overlap(first: MethodSummary, second: MethodSummary, cost: str) -> bool:
    """Return whether some seed of the second needed no more than the worst of the first."""
    return max(first.spent(cost).values()) >= min(second.spent(cost).values())


def _bound(first: MethodSummary, name: str, second: MethodSummary, cost: str) -> str:
    """Return by how much at least the leader was ahead of one that did not get there."""
    floors = second.spent(cost)
    floor = mean([*floors.values()])
    ratio = floor / max(_cost(first, cost), _least(cost))
    so_far = "" if all(seed.complete for seed in second.seeds) else " so far"
    if second.reached.startswith("0/"):
        phrase = f"{name} did not reach it in {short(floor)} {UNITS[cost]}{so_far}"
    else:
        number, count = second.reached.split("/")
        seeds = f"{number} of {count} seeds"
        phrase = f"{name} reached it with {seeds}, {short(floor)} {UNITS[cost]}{so_far} on average"
    if ratio <= 1.0:
        return f"{phrase}, too few to compare"
    if cost_verdict(first.costs(cost), floors) == "unclear":
        return f"{phrase}, {NOISE}"
    return f"{phrase}, at least {_times(ratio, down=True)} times as many"


def _times(ratio: float, *, down: bool = False) -> str:
    """Return a ratio with one digit after the point below ten, none above."""
    scale = 10 if ratio < 10 else 1  # noqa: PLR2004 - one digit more below ten
    # A lower bound must not be rounded up.
    rounded = int(ratio * scale) if down else round(ratio * scale)
    return f"{rounded / scale:g}" if rounded < 1000 * scale else short(rounded / scale)


def _cheaper(leaders: Sequence[str], reached: Mapping[str, MethodSummary], lead: str) -> list[str]:
    """Return which strategies were cheaper than a leader in another unit, if some were."""
    clauses = []
    for cost in ("total_flops", "seconds", "examples"):
        if cost == lead:
            continue
        words = UNITS[cost]
        amounts = {name: getattr(method.to_goal, cost) for name, method in reached.items()}
        leader = max(leaders, key=lambda name: amounts[name])
        first = reached[leader]
        cheaper = {
            name: cost_verdict(reached[name].costs(cost), first.costs(cost))
            for name in sorted(amounts, key=lambda name: (amounts[name], name))
            if amounts[name] < amounts[leader]
        }
        sure = [name for name, kind in cheaper.items() if kind in ("less", "single")]
        if sure:
            cheapest = reached[sure[0]]
            names = _together([name for name in sure if _is_equal(cheapest, reached[name], cost)])
            clauses.append(f"{names} needed fewer {words}, {_both(cheapest, first, cost)}")
        elif "unclear" in cheaper.values():
            name = next(name for name, kind in cheaper.items() if kind == "unclear")
            both = _both(first, reached[name], cost)
            clauses.append(f"{NOISE} in {words} between {leader} and {name}, {both}")
    return clauses


def _seeds(summary: Summary) -> str:
    """Return the number of seeds behind the line, and of incomplete runs."""
    counts = sorted({len(method.seeds) for method in summary.methods.values()})
    seeds = [seed for method in summary.methods.values() for seed in method.seeds]
    unfinished = sum(not seed.complete for seed in seeds)
    largest = counts[-1] if counts else 0
    span = str(largest) if len(counts) <= 1 else f"{counts[0]} to {largest}"
    notes = [f"{span} seed{'' if largest == 1 else 's'} each"]
    if counts[:1] == [1] and len(summary.methods) > 1:
        notes.append("too few to measure noise" if largest == 1 else "one too few to measure noise")
    repeated = [name for name, method in summary.methods.items() if not method.are_replicates]
    if repeated:
        notes.append(f"those of {_together(repeated)} repeat one run and measure no noise")
    if unfinished:
        notes.append(f"{unfinished} of {len(seeds)} runs incomplete")
    if summary.missing:
        missing = len(summary.missing)
        notes.append(f"{missing} of {missing + len(seeds)} runs missing")
    return f"; {', '.join(notes)}"
