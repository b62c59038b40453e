"""Verdicts of reports over random runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from curricle.records import EndRecord, EvaluationRecord, RunRecord, Usage
from curricle.reports.formatting import mean
from curricle.reports.headline import headline
from curricle.reports.page import page_text
from curricle.reports.run_folders import Run
from curricle.reports.summary import summarize

Finals = Mapping[str, Sequence[tuple[float, int]]]
"""Final metric and steps to it of each seed of each strategy."""
SEEDS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1_000)), min_size=1, max_size=4)
COMPARISONS = st.dictionaries(st.sampled_from("abcde"), SEEDS, min_size=1)
METRICS = st.sampled_from(["accuracy", "error_rate", "nll", "f1", "xyz"])
LOWER = ("error_rate", "nll")


def runs_of(finals: Finals, metric: str, scale: int = 1) -> list[Run]:
    return [
        run(method, seed, metric, number, steps * scale)
        for method, seeds in finals.items()
        for seed, (number, steps) in enumerate(seeds)
    ]


def run(method: str, seed: int, metric: str, number: float, steps: int) -> Run:
    usage = Usage(
        steps=steps, examples=steps, student_flops=3 * steps, teacher_flops=steps, seconds=steps / 2
    )
    return Run(
        path=Path(f"{method}-{seed}"),
        method=method,
        opening=RunRecord(
            method=method,
            seed=seed,
            task="parity",
            metric=metric,
            batch_size=1,
            stages=(),
            student_parameters=1,
            teacher_parameters=1,
            versions={},
            device="cpu",
        ),
        evaluations=(EvaluationRecord(stage="s", metrics={metric: number}, usage=usage),),
        end=EndRecord(metrics={metric: number}, usage=usage),
    )


@given(COMPARISONS, METRICS)
def test_what_is_called_best_has_the_best_mean(finals: Finals, metric: str) -> None:
    line = headline(summarize(runs_of(finals, metric)))
    found = re.search(r"(\w)(?:(?:, \w)* and \w)? ha(?:s|ve) the best final ", line)
    if found:
        means = {name: mean([number for number, _ in seeds]) for name, seeds in finals.items()}
        best = min(means.values()) if metric in LOWER else max(means.values())
        assert abs(means[found[1]] - best) <= 1e-12
        assert metric != "xyz"
        assert len(finals) > 1


@given(COMPARISONS, METRICS, st.data())
def test_the_order_of_folders_does_not_change_the_verdict(
    finals: Finals, metric: str, data: st.DataObject
) -> None:
    runs = runs_of(finals, metric)
    goal = None if metric == "xyz" else 0.5
    shuffled = data.draw(st.permutations(runs))
    assert headline(summarize(shuffled, goal=goal)) == headline(summarize(runs, goal=goal))


@given(COMPARISONS, st.integers(2, 1_000))
def test_the_unit_of_costs_does_not_change_the_verdict(finals: Finals, scale: int) -> None:
    small, large = (
        headline(summarize(runs_of(finals, "nll", factor), goal=1.0)) for factor in (1, scale)
    )
    assert without_amounts(small) == without_amounts(large)


def without_amounts(line: str) -> str:
    """Return a verdict without the amounts, whose digits depend on their unit."""
    return re.sub(r"\d[\d.]*(e[+-]\d+)?[kMG]?", "#", line)


@given(COMPARISONS)
def test_equal_runs_are_never_told_apart(finals: Finals) -> None:
    alike = dict.fromkeys(finals, next(iter(finals.values())))
    for goal in (None, 1.0):
        line = headline(summarize(runs_of(alike, "nll"), goal=goal))
        assert "best" not in line
        assert "fewer" not in line
        assert "times as many" not in line


@settings(max_examples=8)
@given(COMPARISONS, st.integers(0, 4))
def test_runs_that_stopped_anywhere_give_a_page(finals: Finals, stopped: int) -> None:
    runs = runs_of(finals, "nll")
    cut = [
        replace(each, end=None, evaluations=()) if number % 5 == stopped else each
        for number, each in enumerate(runs)
    ]
    assert "<h1>t</h1>" in page_text(cut, summarize(cut, goal=0.5), title="t")
