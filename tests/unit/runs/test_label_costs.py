"""Cost of a plan beside that of training from labels, and when labels may be cheaper."""

from dataclasses import replace

import pytest

import curricle
from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.runs.label_costs import SINGLE_STUDENT, label_notes
from curricle.runs.planning import plan
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.setup.optimizers import AdamW
from curricle.training.setup.settings import TrainingSettings
from tests.parts import INPUTS, mlp, parity


def bound(
    width: int, curriculum: Curriculum | None = None, *, stream: Stream | None = None
) -> BoundRun:
    """Return a run of a student of 5 neurons with a teacher of some neurons, both of one layer."""
    return bind(
        curriculum or curricle.one_shot(total="100 steps"),
        student=mlp(5),
        teacher=LiveTeacher(mlp(width, seed=1)),
        stream=stream or parity(),
        optimizer=AdamW(learning_rate=0.01),
        settings=TrainingSettings(device="cpu"),
        seed=0,
    )


def flops(width: int, *, learns: bool) -> int:
    """Return the FLOPs of an example: two for each weight, and the same for each gradient.

    The gradient to the inputs is not computed.
    """
    first, second = INPUTS * width, width * 2
    return 2 * (first + second) + (2 * (first + second) + 2 * second if learns else 0)


def test_labels_take_as_many_steps_as_the_flops_pay_for() -> None:
    student, teacher = flops(5, learns=True), flops(10, learns=False)
    share, steps = student / (student + teacher), 100 * (student + teacher) // student
    (note,) = label_notes(bound(10))
    assert note == (
        f"labels: a step from labels costs {share:.2g} of the mean step with this teacher; at "
        f"equal FLOPs labels take {steps:,} steps instead of 100"
    )


def test_a_stage_on_hidden_states_alone_is_no_step_from_labels() -> None:
    """Half of the steps end at tap 1: neither model runs its head.

    The teacher's projection to the student's width is a cost of the teacher.
    """
    run = bound(10, curricle.extraction(total="100 steps", layer_fraction=0.5))
    student, teacher = flops(5, learns=True), flops(10, learns=False)
    early_student = 2 * 2 * INPUTS * 5
    early_teacher = 2 * INPUTS * 10 + 2 * 10 * 5
    steps = 50 * (student + teacher + early_student + early_teacher) // student
    assert f"labels take {steps:,} steps instead of 100" in label_notes(run)[0]


@pytest.mark.parametrize(("width", "is_warned"), [(50, False), (500, True)])
def test_from_six_times_as_many_steps_on_a_comparison_is_advised(
    width: int, *, is_warned: bool
) -> None:
    student, teacher = flops(5, learns=True), flops(width, learns=False)
    assert ((student + teacher) / student >= 6) == is_warned
    notes = label_notes(bound(width))
    assert len(notes) == 1 + is_warned
    if is_warned:
        assert "labels alone may be cheaper; compare 'from_labels' on a budget of" in notes[1]


def test_a_teacher_trained_for_one_student_is_warned_of() -> None:
    assert SINGLE_STUDENT not in label_notes(bound(10))
    assert label_notes(bound(10), trains_teacher=True)[-1] == SINGLE_STUDENT


def test_without_a_teacher_there_is_nothing_to_compare() -> None:
    assert label_notes(bound(10, curricle.from_labels(total="4 steps"))) == ()


def test_data_without_labels_leave_no_choice() -> None:
    class Unlabeled:
        """The inputs of parity."""

        batch_size, tokens_per_batch = parity().batch_size, parity().tokens_per_batch
        fingerprint = "unlabeled"

        def batch(self, step: int) -> Batch:
            return replace(parity().batch(step), labels=None)

    assert label_notes(bound(10, stream=Unlabeled())) == ()


def test_a_plan_in_python_holds_the_notes() -> None:
    found = plan(
        mlp(5).module, mlp(10, seed=1).module, curricle.one_shot(total="100 steps"), parity()
    )
    assert label_notes(bound(10))[0] in found.notes
