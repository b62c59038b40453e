import pytest

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import build
from curricle.models.mlp import MLPSpec
from curricle.tasks import ParityTask
from curricle_papers.recipes.recipe import SCALES, Recipe, Scale
from curricle_papers.recipes.sparse_parity import (
    PARITY_BATCH_SIZE,
    PARITY_HIERARCHICAL,
    PARITY_MLP,
    PARITY_TRANSFORMER,
    PARITY_TWO_SHOT,
    SAMPLE_COMPLEXITY,
    parity_size,
)


def test_the_paper_scale_has_the_papers_sizes() -> None:
    spec = parity_size("paper")
    assert isinstance(spec.task, ParityTask)
    assert (spec.task.num_inputs, spec.task.degree) == (100, 6)
    assert spec.teacher.model == MLPSpec(widths=(50_000,))
    assert spec.student == MLPSpec(widths=(100,))
    assert spec.budget is not None
    assert spec.budget.number * spec.task.batch_size == 20_000_000


def test_every_strategy_is_compared() -> None:
    for recipe in (PARITY_MLP, PARITY_TRANSFORMER, PARITY_HIERARCHICAL):
        for comparison in recipe.panels("small").values():
            kinds = {one.curriculum["kind"] for one in comparison.spec.strategies.values()}
            assert kinds == {"from_labels", "one_shot", "progressive", "extraction"}


@pytest.mark.parametrize("scale", SCALES)
def test_the_teacher_changes_as_often_as_it_kept_a_checkpoint(scale: Scale) -> None:
    (comparison,) = PARITY_MLP.panels(scale).values()
    spec, kept = comparison.spec, comparison.spec.trajectory_steps()
    assert spec.budget is not None
    curriculum = build(
        spec.strategies["progressive"].curriculum,
        total=Duration(number=int(spec.budget.number)),
        trajectory=kept,
    )
    assert [stage.teacher for stage in curriculum.stages] == list(kept)[: len(curriculum.stages)]
    lengths = [stage.duration.at_most.number for stage in curriculum.stages[:-1]]
    assert max(lengths) <= -(-kept[-1] // len(kept))


def test_two_shots_differ_in_the_first_checkpoint_only() -> None:
    (comparison,) = PARITY_TWO_SHOT.panels("small").values()
    calls = [
        dict(one.curriculum)
        for one in comparison.spec.strategies.values()
        if one.curriculum["kind"] == "progressive"
    ]
    (found,) = [call for call in calls if call.pop("select", "") == "transition"]
    calls.remove(found)
    firsts = [call.pop("trajectory")[0] for call in calls]
    assert len(set(firsts)) == len(firsts) == 3
    assert all(call == found for call in calls)
    # Every one is kept by the teacher's training.
    assert set(firsts) <= set(comparison.spec.trajectory_steps())


def test_sizes_stand_on_the_axis_with_stages_in_proportion() -> None:
    panels = SAMPLE_COMPLEXITY.panels("small")
    assert [comparison.x for comparison in panels.values()] == [25, 35, 50, 70, 100]
    extraction = panels["d-100"].spec.strategies["extraction"].curriculum
    assert extraction["durations"] == ["750 steps"]


def test_the_learning_rate_goes_with_the_batch_size() -> None:
    rates = {
        comparison.x: comparison.spec.optimizer.learning_rate
        for comparison in PARITY_BATCH_SIZE.panels("small").values()
    }
    assert rates[64] == 0.3
    assert {size: rate / 0.3 * 64 for size, rate in rates.items()} == {size: size for size in rates}
    for comparison in PARITY_BATCH_SIZE.panels("small").values():
        task = comparison.spec.task
        assert isinstance(task, ParityTask)
        assert task.batch_size == comparison.x


def test_wide_teachers_whose_checkpoints_nobody_reads_keep_one() -> None:
    for comparison in SAMPLE_COMPLEXITY.panels("paper").values():
        assert comparison.spec.trajectory_steps() == (312_500,)
        assert comparison.spec.engine.device == "cuda"


MLP_RECIPES = (
    PARITY_MLP,
    PARITY_TWO_SHOT,
    PARITY_HIERARCHICAL,
    SAMPLE_COMPLEXITY,
    PARITY_BATCH_SIZE,
)


@pytest.mark.parametrize("recipe", MLP_RECIPES, ids=lambda recipe: recipe.name)
def test_small_students_take_compiled_steps_at_the_papers_scale_alone(recipe: Recipe) -> None:
    for scale in SCALES:
        for comparison in recipe.panels(scale).values():
            engine = comparison.spec.engine
            assert (engine.compiled_steps > 1) == (scale == "paper")
            # Steps that do not fill a block are taken singly.
            assert engine.eval_every % engine.compiled_steps == 0
            assert engine.log_every % engine.compiled_steps == 0


def test_transformers_share_the_passes_of_their_teacher_at_the_papers_scale_alone() -> None:
    shares = {
        scale: [comparison.spec.share_teacher for comparison in panels.values()]
        for scale in SCALES
        if (panels := PARITY_TRANSFORMER.panels(scale))
    }
    assert shares == {"smoke": [False], "small": [False], "paper": [True]}
