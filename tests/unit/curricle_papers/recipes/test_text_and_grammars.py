from dataclasses import replace
from pathlib import Path

import pytest

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import build
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.runs.spec import load_spec
from curricle.tasks import PcfgTask, TextTask
from curricle.values import plain
from curricle_papers.recipes.recipe import SCALES, Recipe, Scale
from curricle_papers.recipes.text_and_grammars import PCFG_GPT, PCFG_MLM, WIKIPEDIA_MLM, encoder

KINDS = {"from_labels", "one_shot", "progressive", "extraction"}


@pytest.mark.parametrize("recipe", [PCFG_MLM, PCFG_GPT, WIKIPEDIA_MLM], ids=lambda one: one.name)
@pytest.mark.parametrize("scale", SCALES)
def test_every_strategy_is_compared(recipe: Recipe, scale: Scale) -> None:
    comparison = next(iter(recipe.panels(scale).values()))
    assert {one.curriculum["kind"] for one in comparison.spec.strategies.values()} == KINDS


def test_the_paper_scale_has_the_papers_budgets_and_stages() -> None:
    panels = PCFG_MLM.panels("paper")
    for total, pairs in ((4000, 1), (6000, 2), (8000, 3)):
        spec = panels[f"steps-{total}"].spec
        assert spec.budget is not None
        assert spec.budget.number == total
        # A stage for each pair, and the logits.
        assert len(spec.strategies["extraction"].curriculum["pairs"]) == pairs
    three = panels["layers"].spec.strategies["extraction-3-layers"].curriculum
    assert three["layer_fraction"] * 6000 == pytest.approx(2700)


def test_the_paper_scale_has_the_papers_models() -> None:
    spec = PCFG_MLM.panels("paper")["layers"].spec
    assert spec.teacher.model == encoder(layers=4, heads=32, width=256)
    assert spec.student == encoder(layers=4, heads=8, width=64)
    assert spec.task == PcfgTask(start=22, batch_size=512, evaluation_batches=4)


def test_the_published_code_has_a_panel_of_its_own() -> None:
    panels = PCFG_MLM.panels("paper")
    own, published = panels["steps-8000"].spec, panels["official"].spec
    assert published.budget == own.budget
    assert isinstance(own.task, PcfgTask)
    assert published.task == replace(own.task, grammar="cfg3b-p2", masking_quirk=True)
    stages = {
        name: build(one.curriculum, total=Duration(number=8000), trajectory=(1000, 8000)).stages
        for name, one in published.strategies.items()
    }
    assert stages["from_labels"][-1].objectives == (LabelLoss(),)
    for name in ("one_shot", "progressive", "extraction"):
        assert stages[name][-1].objectives == (MatchLogits(teacher_temperature=0.0),)


def test_panels_of_one_grammar_share_their_teacher() -> None:
    teachers = {str(one.spec.teacher) for one in PCFG_MLM.panels("small").values()}
    assert len(teachers) == 1


def test_the_text_needs_no_file() -> None:
    assert WIKIPEDIA_MLM.panels("small")["text"].spec.task.corpus == "sample"  # type: ignore[union-attr]


def test_the_small_text_is_the_comparison_in_the_recipes_folder() -> None:
    written = load_spec(Path("recipes/text-mlm.yaml"))
    (panel,) = WIKIPEDIA_MLM.panels("small").values()
    assert isinstance(panel.spec.task, TextTask)
    assert isinstance(written.task, TextTask)
    task = replace(panel.spec.task, corpus=written.task.corpus)
    found = replace(panel.spec, output_dir=written.output_dir, task=task)
    assert plain(found) == plain(written)
