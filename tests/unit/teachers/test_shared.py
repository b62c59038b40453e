"""One teacher for several readings: what each is shown, and how often the teacher runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.models.tapped import Activations, Forward, Inputs, TappedModel
from curricle.models.wrapping import tapped
from curricle.teachers.live import LiveTeacher, TeacherForward
from curricle.teachers.shared import SharedTeacher
from curricle.teachers.trajectory import Trajectory, TrajectoryWriter, open_trajectory

KEY, FIRST, SECOND = (0, 0, 4), (0, 0, 2), (0, 2, 2)
"""Keys of a batch and of its halves."""
INPUTS = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])


def mlp(seed: int = 0) -> TappedModel:
    with seeding.scoped(seed, "teacher"):
        return MLP(3, (4, 5), 2).tapped()


@pytest.fixture
def trajectory(tmp_path: Path) -> Trajectory:
    """Return two checkpoints; checkpoint n holds the weights of seed n."""
    writer = TrajectoryWriter(tmp_path, [10, 20])
    for step in (10, 20):
        writer.save(mlp(step).module, step)
    return open_trajectory(tmp_path)


@pytest.fixture
def shared(trajectory: Trajectory) -> SharedTeacher:
    return SharedTeacher(LiveTeacher(mlp(), trajectory))


def passes(shared: SharedTeacher, path: str = "blocks.0") -> list[int]:
    """Return a list that grows with each pass of the finished teacher through a layer."""
    counted: list[int] = []
    layer = shared.model.module.get_submodule(path)
    layer.register_forward_hook(lambda *_: counted.append(1))
    return counted


def logits(model: TappedModel) -> Tensor:
    shown: Tensor = model.module(INPUTS)
    return shown


def test_two_readings_of_a_batch_cost_one_pass(shared: SharedTeacher) -> None:
    counted = passes(shared)
    with (
        shared.open_taps("final", (), logits=True) as one,
        shared.open_taps("final", (), logits=True) as other,
    ):
        first, second = one(INPUTS, None, KEY), other(INPUTS, None, KEY)
    assert len(counted) == 1
    assert first.logits is second.logits
    torch.testing.assert_close(first.logits, logits(mlp()), rtol=0, atol=0)


def test_each_reading_is_shown_only_what_it_asked_for(shared: SharedTeacher) -> None:
    first, second = (shared.model.place(tap) for tap in (1, 2))
    with (
        shared.open_taps("final", (first,), logits=False) as one,
        shared.open_taps("final", (second,), logits=True) as other,
    ):
        shown, more = one(INPUTS, None, KEY), other(INPUTS, None, KEY)
    assert (list(shown.hidden), shown.logits) == ([first], None)
    assert list(more.hidden) == [second]
    assert more.logits is not None


def test_a_pass_is_as_deep_as_the_deepest_open_reading(shared: SharedTeacher) -> None:
    place = shared.model.place(1)
    shallow, deep = passes(shared), passes(shared, "blocks.1")
    with shared.open_taps("final", (place,), logits=False) as one:
        one(INPUTS, None, KEY)
        assert (len(shallow), len(deep)) == (1, 0)
        with shared.open_taps("final", (), logits=True) as other:
            # What was shown of this batch does not suffice any more.
            other(INPUTS, None, KEY)
            one(INPUTS, None, KEY)
        assert (len(shallow), len(deep)) == (2, 1)
        one(INPUTS, None, (1, 0, 4))
    assert (len(shallow), len(deep)) == (3, 1)


def test_parts_of_a_batch_are_told_apart_and_kept(shared: SharedTeacher) -> None:
    counted = passes(shared)
    with shared.open_taps("final", (), logits=True) as one:
        halves = [one(INPUTS[:2], None, FIRST).logits, one(INPUTS[2:], None, SECOND).logits]
        again = [one(INPUTS[:2], None, FIRST).logits, one(INPUTS[2:], None, SECOND).logits]
    assert len(counted) == 2
    assert all(left is right for left, right in zip(halves, again, strict=True))
    assert halves[0] is not halves[1]
    torch.testing.assert_close(halves[1], logits(mlp())[2:])


def test_a_batch_without_a_step_and_one_of_another_step_are_read_anew(
    shared: SharedTeacher,
) -> None:
    counted = passes(shared)
    with shared.open_taps("final", (), logits=True) as one:
        for key in (KEY, (1, 0, 4), KEY, None, None):
            one(INPUTS, None, key)
    assert len(counted) == 5


def test_readings_of_several_checkpoints_are_open_at_once(shared: SharedTeacher) -> None:
    with ExitStack() as stack:
        readers = [
            stack.enter_context(shared.open_taps(step, (), logits=True))
            for step in (10, "final", 20)
        ]
        shown = [reader(INPUTS, None, KEY).logits for reader in (*readers, *readers)]
    wanted = [logits(mlp(seed)) for seed in (10, 0, 20, 10, 0, 20)]
    for one, other in zip(shown, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_copy_is_made_while_the_finished_teacher_is_read(shared: SharedTeacher) -> None:
    with shared.open_taps("final", (), logits=True) as one:
        one(INPUTS, None, KEY)
        with shared.open_taps(10, (), logits=True) as other:
            torch.testing.assert_close(
                other(INPUTS, None, KEY).logits, logits(mlp(10)), rtol=0, atol=0
            )
        torch.testing.assert_close(one(INPUTS, None, KEY).logits, logits(mlp()), rtol=0, atol=0)
    assert not any(module._forward_hooks for module in shared.model.module.modules())


def test_readings_stay_open_when_another_teacher_is_read_but_for_that_of_which_a_copy_is_made(
    shared: SharedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[TappedModel] = []
    passed: list[TappedModel] = []
    kind = type(shared.model)
    original = kind.open_taps

    @contextmanager
    def open_taps(self: TappedModel, *given: Any, **named: Any) -> Iterator[Forward]:
        opened.append(self)
        with original(self, *given, **named) as forward:

            def counted(inputs: Inputs, selected: Tensor | None = None) -> Activations:
                passed.append(self)
                return forward(inputs, selected)

            yield counted

    monkeypatch.setattr(kind, "open_taps", open_taps)
    with ExitStack() as stack:

        def forward(*known: TeacherForward) -> tuple[int, int]:
            for one in known:
                one(INPUTS, None, (len(passed), 0, 4))
            return len(opened), len(passed)

        ten = stack.enter_context(shared.open_taps(10, (), logits=True))
        assert forward(ten) == (1, 1)
        final = stack.enter_context(shared.open_taps("final", (), logits=True))
        assert forward(ten, final) == (2, 3)
        twenty = stack.enter_context(shared.open_taps(20, (), logits=True))
        # That of 20, and anew that of the finished teacher.
        assert forward(ten, final, twenty) == (4, 6)


def test_a_checkpoint_that_is_not_there_is_refused(shared: SharedTeacher) -> None:
    with (
        pytest.raises(BindError, match=r"^'teacher' checkpoint must be one of \[10, 20\]; got 15$"),
        shared.open_taps(15, (), logits=True),
    ):
        pass
    with pytest.raises(BindError, match="got 15"):
        shared.check([10, 15])


def test_one_student_may_read_logits_and_another_what_they_come_from() -> None:
    with seeding.scoped(0, "model"):
        module = nn.Sequential(nn.Linear(INPUTS.shape[-1], 5), nn.Linear(5, 3))
    shared = SharedTeacher(LiveTeacher(tapped(module, head="1")))
    with (
        shared.open_taps("final", (), logits=True) as one,
        shared.open_taps("final", (), logits=False, head=True) as other,
    ):
        first, second = one(INPUTS, None, KEY), other(INPUTS, None, KEY)
    assert first.head is None
    assert second.logits is None
    assert second.head is not None
    torch.testing.assert_close(second.head.logits(), first.logits)
