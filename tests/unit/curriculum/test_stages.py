"""Validation and properties of stages and curricula."""

import dataclasses
from typing import Any

import pytest

from curricle.curriculum.durations import Duration
from curricle.curriculum.initialization import PrincipalStart, RandomStart
from curricle.curriculum.stages import Curriculum, Stage
from curricle.errors import SpecError
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Sign
from curricle.values import parse, plain


def stage(name: str, /, **fields: Any) -> Stage:
    return Stage(**{"name": name, "duration": "5 steps", "objectives": (MatchLogits(),)} | fields)


def test_a_duration_may_be_written_as_text() -> None:
    assert stage("a", duration="2k examples").duration == Duration(number=2000, unit="examples")


def test_a_stage_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage("a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "wrong", "sentence"),
    [
        ("name", "", "'Stage.name' must have at least 1 character; got ''"),
        ("objectives", (), r"'Stage.objectives' must have at least 1 item .*; got \(\)"),
        ("learning_rate_scale", 0, "'Stage.learning_rate_scale' .* greater than 0; got 0"),
        ("trainable", "some", "'Stage.trainable' .* 'reached', 'new' or 'all'; got 'some'"),
        ("optimizer_state", "drop", "'Stage.optimizer_state' .*; got 'drop'"),
        ("schedule", "mine", "'Stage.schedule' .*; got 'mine'"),
        ("teacher", "best", "'Stage.teacher' .*; got 'best'"),
        ("durations", 1, "'durations' is not a field; did you mean 'duration'"),
    ],
)
def test_a_wrong_field_is_named(field: str, wrong: object, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        stage("a", **{field: wrong})


def test_a_curriculum_needs_a_stage() -> None:
    with pytest.raises(SpecError, match=r"'Curriculum.stages' .*at least 1 item"):
        Curriculum(name="empty", stages=())


def test_stage_names_are_unique() -> None:
    with pytest.raises(SpecError, match=r"'stages' must have different names; got 'a' twice$"):
        Curriculum(name="doubled", stages=(stage("b"), stage("a"), stage("a")))


def test_a_start_reads_the_finished_teacher_first() -> None:
    stages = (stage("a", teacher=300), stage("b"))
    assert Curriculum(name="x", stages=stages, init=PrincipalStart()).teachers == ("final", 300)
    labels = stage("labels", objectives=(LabelLoss(),))
    assert Curriculum(name="x", stages=(labels,), init=RandomStart()).teachers == ("final",)


def test_no_stage_is_named_like_a_start() -> None:
    stages = (stage("warm start"),)
    assert Curriculum(name="x", stages=stages).stages == stages
    with pytest.raises(SpecError, match=r"must have different names; got 'warm start' twice$"):
        Curriculum(name="x", stages=stages, init=PrincipalStart())


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_random_start_has_the_projection_that_layers_share(is_shared: bool) -> None:
    layer = MatchHidden(
        pair=LayerPair(student=1, teacher=1), projection=Sign(), shared_projection=is_shared
    )
    stages = (stage("layer", objectives=(layer,)), stage("logits"))
    for start in (None, PrincipalStart(), RandomStart(projection=Sign())):
        assert Curriculum(name="x", stages=stages, init=start).init == start
    if not is_shared:
        assert Curriculum(name="x", stages=stages, init=RandomStart()).init == RandomStart()
        return
    with pytest.raises(
        SpecError,
        match=r"'init' must have the projection shared by the layers, 'sign'; got 'gaussian'$",
    ):
        Curriculum(name="x", stages=stages, init=RandomStart())


def test_teachers_come_once_and_in_the_order_of_their_use() -> None:
    read = [300, "final", 300, 100]
    stages = tuple(stage(str(place), teacher=one) for place, one in enumerate(read))
    assert Curriculum(name="many", stages=stages).teachers == (300, "final", 100)


def test_a_stage_without_a_teacher_objective_reads_no_teacher() -> None:
    stages = (stage("labels", objectives=(LabelLoss(),), teacher=100),)
    assert Curriculum(name="labels", stages=stages).teachers == ()


def test_one_teacher_objective_among_others_is_enough() -> None:
    stages = (stage("both", objectives=(LabelLoss(), MatchLogits())),)
    assert Curriculum(name="both", stages=stages).teachers == ("final",)


def test_a_curriculum_survives_plain_data() -> None:
    hidden = MatchHidden(pair=LayerPair(student=0.5, teacher="blocks.1"), center=True)
    written = Curriculum(
        name="own",
        stages=(
            stage("a", objectives=(hidden, LabelLoss(weight=0.1)), trainable="new", teacher=7),
            stage("b", optimizer_state="reset", schedule="own", learning_rate_scale=0.5),
        ),
    )
    assert parse(Curriculum, plain(written)) == written


@pytest.mark.parametrize("name", ["\x1b[2Jlogits", "a\nb", "a" * 101, ""])
def test_names_are_one_short_line(name: str) -> None:
    stage = Stage(name="logits", duration=Duration(number=5), objectives=(MatchLogits(),))
    with pytest.raises(SpecError, match="name'"):
        dataclasses.replace(stage, name=name)
    with pytest.raises(SpecError, match="name'"):
        Curriculum(name=name, stages=(stage,))
