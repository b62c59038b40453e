"""Reactions to a diverged step as values of the settings."""

import pytest

from curricle.curriculum.strategies import one_shot
from curricle.errors import BindError, SpecError
from curricle.training.loop.staged import StagedLoss
from curricle.training.setup.divergence import RollBack, SkipSteps, StopRun
from curricle.training.setup.settings import TrainingSettings
from curricle.values import parse, plain
from tests.parts import bound


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"kind": "stop", "explosion": 10}, StopRun(explosion=10.0)),
        ({"kind": "skip", "at_most": 4}, SkipSteps(at_most=4)),
        ({"kind": "roll_back", "learning_rate_scale": 0.1}, RollBack(learning_rate_scale=0.1)),
    ],
)
def test_a_reaction_is_read_from_plain_data(data: object, expected: object) -> None:
    settings = parse(TrainingSettings, {"on_divergence": data, "save_every": 5})
    assert settings.on_divergence == expected
    assert parse(TrainingSettings, plain(settings)) == settings


def test_the_plain_stop_is_left_out_of_specs() -> None:
    assert "on_divergence" not in plain(TrainingSettings())


def test_a_return_needs_checkpoints() -> None:
    with pytest.raises(
        SpecError,
        match=r"'save_every' must be set where 'on_divergence' rolls back to a checkpoint; got "
        r"None, which writes none$",
    ):
        TrainingSettings(on_divergence=RollBack())


@pytest.mark.parametrize("wrong", [0.5, 1.0])
def test_an_explosion_is_a_multiple_above_one(wrong: float) -> None:
    with pytest.raises(SpecError, match=r"explosion.*greater than 1"):
        StopRun(explosion=wrong)


@pytest.mark.parametrize("reaction", [SkipSteps(), StopRun(explosion=2.0)])
def test_a_compiled_block_cannot_leave_out_a_step(reaction: SkipSteps | StopRun) -> None:
    with pytest.raises(SpecError, match="the losses of a block are known after its updates"):
        TrainingSettings(on_divergence=reaction, compiled_steps=5)


def test_a_loop_of_the_user_judges_its_own_losses() -> None:
    run = bound(one_shot(total="4 steps"), settings={"on_divergence": SkipSteps()})
    with pytest.raises(BindError, match=r"^'on_divergence' must be 'stop' where a loop of your"):
        StagedLoss(run)
