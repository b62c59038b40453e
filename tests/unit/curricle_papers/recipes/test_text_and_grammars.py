from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import build
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.runs.spec import changed, load_spec
from curricle.runs.train import first_runs, planned_student
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


@pytest.mark.parametrize("recipe", [PCFG_MLM, PCFG_GPT, WIKIPEDIA_MLM], ids=lambda one: one.name)
def test_a_gpu_gets_compiled_models_and_few_micro_batches(recipe: Recipe) -> None:
    for scale in SCALES:
        for comparison in recipe.panels(scale).values():
            engine = comparison.spec.engine
            assert engine.compile == ("both" if scale == "paper" else "none")
            number = 1 if recipe is WIKIPEDIA_MLM or scale != "paper" else 4
            assert engine.gradient_accumulation_steps == number


@pytest.mark.parametrize(("scale", "chunk"), [("smoke", None), ("small", None), ("paper", "auto")])
def test_only_the_large_vocabulary_of_the_paper_scale_is_taken_in_chunks(
    scale: Scale, chunk: Any
) -> None:
    for recipe in (WIKIPEDIA_MLM, PCFG_GPT):
        spec = next(iter(recipe.panels(scale).values())).spec
        for name in ("one_shot", "progressive", "extraction"):
            call = spec.strategies[name].curriculum
            (objective,) = (
                build(call, total=Duration(number=100), trajectory=(10, 100)).stages[-1].objectives
            )
            expected = MatchLogits(chunk=chunk) if recipe is WIKIPEDIA_MLM else MatchLogits()
            assert objective == expected


# Widths and batches are small, all else is that of the scale.
SMALL: dict[str, list[str]] = {
    "pcfg-mlm": ["task.start=16"],
    "pcfg-gpt": ["task.start=16"],
    "wikipedia-mlm": [
        "task.corpus=sample",
        "task.vocabulary_size=300",
        *(
            f"{model}.config.{field}={number}"
            for model, width in (("teacher.model", 24), ("student", 8))
            for field, number in (("hidden_size", width), ("intermediate_size", 4 * width))
        ),
    ],
}


@pytest.mark.parametrize("recipe", [PCFG_MLM, PCFG_GPT, WIKIPEDIA_MLM], ids=lambda one: one.name)
def test_the_paper_scale_binds(recipe: Recipe, tmp_path: Path) -> None:
    fields = ["engine.device=cpu", "engine.precision=float32", "task.batch_size=8"]
    fields += [f"cache_dir={tmp_path}", f"output_dir={tmp_path / 'run'}", *SMALL[recipe.name]]
    spec = changed(next(iter(recipe.panels("paper").values())).spec, fields)
    for run in first_runs(spec):
        # Progressive distillation has one-shot's objective, in many stages.
        if run.name != "progressive":
            bound = planned_student(spec, run)
            assert bound.settings.compiles_student
            assert bound.settings.compiles_teacher
            assert bound.num_steps == spec.budget.number  # type: ignore[union-attr]
