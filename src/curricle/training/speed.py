"""Can a run be made as fast as its settings ask for?

Asked before anything is written, of a run alone and of each in a classroom. What can be seen of the
settings themselves is checked where they are declared.
"""

from curricle.curriculum.durations import UntilPlateau
from curricle.data.loaders import LoaderStream
from curricle.errors import BindError
from curricle.extras import check_compiler
from curricle.teachers.live import LiveTeacher
from curricle.training.batches import RunBatches
from curricle.training.binding import BoundRun


def check_speed(run: BoundRun) -> None:
    """Check that a run can be made as fast as its settings ask for.

    Raises:
        BindError: If not.
    """
    _check_prefetch(run)
    _check_windows(run)
    if run.settings.compiled_teacher and isinstance(run.teacher, LiveTeacher):
        _check_compiled_teacher(run, run.teacher)
    if run.settings.compiled_steps > 1:
        _check_compiled_steps(run)


def _check_prefetch(run: BoundRun) -> None:
    prefetch = run.settings.prefetch
    stream = run.stream.stream if isinstance(run.stream, RunBatches) else run.stream
    if prefetch != "none" and isinstance(stream, LoaderStream) and stream.reads_ahead:
        raise BindError(
            f"'prefetch' must be 'none' for a loader with 'num_workers', which reads ahead already "
            f"and must not be forked beside a second thread; got {prefetch!r}"
        )


def _check_windows(run: BoundRun) -> None:
    """Check that steps can be taken or prefetched between two checks of a plateau.

    Raises:
        BindError: If not.
    """
    prefetch, steps = run.settings.prefetch, run.settings.compiled_steps
    for stage in run.stages:
        duration = stage.declared.duration
        if not isinstance(duration, UntilPlateau):
            continue
        window = f"the window of {duration.window} steps of stage {stage.declared.name!r}"
        if steps > duration.window:
            raise BindError(
                f"'compiled_steps' must not exceed {window}, after which a compiled call ends; got "
                f"{steps}"
            )
        if prefetch != "none" and duration.window == 1:
            raise BindError(
                f"'prefetch' must be 'none' for {window}, before whose end nothing is prefetched; "
                f"got {prefetch!r}"
            )


def _check_compiled_teacher(run: BoundRun, teacher: LiveTeacher) -> None:
    check_compiler(run.settings.torch_device().type, setting="compiled_teacher", plain="false")
    if not teacher.model.depth:
        raise BindError(
            "'compiled_teacher' must be false for a teacher without numbered 'blocks', which are "
            "what is compiled; got true"
        )


def _check_compiled_steps(run: BoundRun) -> None:
    steps = run.settings.compiled_steps
    draws_noise = run.draws_noise or run.draws_foreign_noise
    if draws_noise or any(True for _ in run.student.module.buffers()):
        what = "draws noise" if draws_noise else "has buffers"
        raise BindError(
            f"'compiled_steps' must be 1 for a student that {what}, whose steps are taken one by "
            f"one; got {steps}"
        )
    if any(term.stored is not None for stage in run.stages for term in stage.terms):
        raise BindError(
            f"'compiled_steps' must be 1 where targets are stored, which are looked up step by "
            f"step; got {steps}"
        )
    check_compiler(run.settings.torch_device().type, setting="compiled_steps", plain=1)
