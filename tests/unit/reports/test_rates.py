import pytest

from curricle.metrics import Direction
from curricle.reports.rates import affordable_seeds, arm, best_rates
from curricle.reports.summary import Costs, Final, MethodSummary, SeedSummary, Summary


def method(accuracy: float | None, nll: float = 1.0, seconds: float = 2.0) -> MethodSummary:
    """Return the numbers of a method with one run; None is a run without an end."""
    final = {} if accuracy is None else {"accuracy": accuracy, "nll": nll}
    seed = SeedSummary(
        seed=100,
        final=final,
        to_goal=None,
        usage={"seconds": seconds},
        complete=accuracy is not None,
    )
    return MethodSummary(
        final=Final(metric="accuracy", mean=accuracy, ci95=None),
        to_goal=Costs(),
        to_goal_ci95=Costs(),
        reached="0/1",
        seeds=(seed,),
    )


def summary_of(methods: dict[str, MethodSummary], *, better: Direction = "higher") -> Summary:
    return Summary(
        task="parity", metric="accuracy", goal=None, budget={}, methods=methods, better=better
    )


PASS = {
    "a+0.1": method(0.5, seconds=1.0),
    "a+0.3": method(0.7, seconds=2.0),
    "a+1e-05": method(0.6, seconds=3.0),
    "b+0.1": method(0.9, seconds=4.0),
    "b+0.3": method(None, seconds=5.0),
}


def test_each_method_has_the_rate_with_the_best_end() -> None:
    assert best_rates(summary_of(PASS)) == {"a": 0.3, "b": 0.1}
    assert best_rates(summary_of(PASS, better="lower"))["a"] == 0.1


def test_equal_ends_are_ordered_by_the_likelihood_then_by_the_smaller_rate() -> None:
    ends = {"a+0.1": method(1.0, nll=0.2), "a+0.3": method(1.0, nll=0.1)}
    assert best_rates(summary_of(ends)) == {"a": 0.3}
    same = {"a+0.3": method(1.0), "a+0.1": method(1.0)}
    assert best_rates(summary_of(same)) == {"a": 0.1}


def test_a_method_that_has_always_diverged_has_no_rate() -> None:
    assert best_rates(summary_of({"a+0.1": method(None)})) == {}


@pytest.mark.parametrize("rate", [0.1, 1e-05, 3.0])
def test_the_name_of_an_arm_holds_its_rate(rate: float) -> None:
    name = arm("one+shot", rate)
    assert name.rpartition("+")[0] == "one+shot"
    assert float(name.rpartition("+")[2]) == rate


@pytest.mark.parametrize(
    ("seconds", "count"),
    # The first pass took 15 seconds, and a seed at the chosen rates takes 2 + 4.
    [(0, 1), (26.9, 1), (27, 2), (33, 3), (1000, 3)],
)
def test_seeds_are_as_many_as_seconds_pay_for(seconds: float, count: int) -> None:
    summary = summary_of(PASS)
    seeds = affordable_seeds(summary, {"a": 0.3, "b": 0.1}, (5, 6, 7), seconds)
    assert seeds == (5, 6, 7)[:count]
