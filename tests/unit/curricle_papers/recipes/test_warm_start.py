import pytest

from curricle.curriculum.durations import Duration
from curricle.curriculum.initialization import PrincipalStart, RandomStart
from curricle.curriculum.strategies import build
from curricle.runs.spec import RunSpec
from curricle_papers.recipes.recipe import SCALES, Scale
from curricle_papers.recipes.text_and_grammars import WIKIPEDIA
from curricle_papers.recipes.warm_start import STARTS, WARM_START

PANELS = ("text", "grammar", "parity", "transformer")


def spec_at(scale: Scale, panel: str = "text") -> RunSpec:
    return WARM_START.panels(scale)[panel].spec


@pytest.mark.parametrize("scale", SCALES)
def test_methods_are_compared_with_and_without_a_start(scale: Scale) -> None:
    assert set(spec_at(scale).strategies) == {"one_shot", "extraction", *STARTS}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("panel", PANELS)
def test_an_arm_differs_from_its_method_in_the_start_only(scale: Scale, panel: str) -> None:
    strategies = spec_at(scale, panel).strategies
    started = [name for name in strategies if "+" in name]
    assert {"one_shot+random", "extraction+random"} <= set(started) <= set(STARTS)
    for name in started:
        call = dict(strategies[name].curriculum)
        assert call.pop("init")["kind"] == name.partition("+")[2]
        method = strategies[name.partition("+")[0]]
        assert (call, strategies[name].optimizer) == (method.curriculum, method.optimizer)


def test_the_starts_are_what_their_names_say() -> None:
    made = {
        name: build(arm.curriculum, total=Duration(number=800), trajectory=None).init
        for name, arm in spec_at("small").strategies.items()
    }
    assert made == {
        "one_shot": None,
        "extraction": None,
        "one_shot+random": RandomStart(),
        "one_shot+principal": PrincipalStart(),
        "extraction+random": RandomStart(),
    }


@pytest.mark.parametrize(("scale", "corpus"), [("smoke", "sample"), ("paper", WIKIPEDIA)])
def test_the_text_is_that_of_the_scale(scale: Scale, corpus: str) -> None:
    task = spec_at(scale).task
    assert task.kind == "text"
    assert task.corpus == corpus
