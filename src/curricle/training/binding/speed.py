"""Checks that the fast paths in the settings of a run can be taken with its models and data.

They run before anything is written, for a run alone and for each student of a shared teacher.
"""

from curricle.curriculum.durations import UntilPlateau
from curricle.data.dataloaders import LoaderStream
from curricle.errors import BindError
from curricle.extras import check_compiler
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.batches import RunBatches
from curricle.training.binding.bound_run import BoundRun
from curricle.training.setup.compatibility import check_compatible


def check_speed(run: BoundRun) -> None:
    """Check that the fast paths in the settings of a run can be taken.

    Args:
        run: The bound run.

    Raises:
        BindError: If models, data or stages exclude a fast path, or there is no compiler.
    """
    settings = run.settings
    # Settings alone were checked when they were made; now models, data and stages are known, too.
    check_compatible(settings.features() | _features(run), BindError)
    # A rule may end the stage at each window, and a compiled block cannot end inside of itself.
    for window in _windows(run):
        if settings.compiled_steps > window:
            raise BindError(
                f"'compiled_steps' must not exceed the {window} steps of a plateau's 'window', at "
                f"which it ends; got {settings.compiled_steps}"
            )
    kind = settings.placement.kind
    if settings.compiled_steps > 1:
        check_compiler(kind, setting="compiled_steps", plain=1)
    # Stored targets leave nothing of a teacher to compile.
    is_teacher_compiled = settings.compiles_teacher and isinstance(run.teacher, LiveTeacher)
    if settings.compiles_student or is_teacher_compiled:
        check_compiler(kind, setting="compile", plain="'none'")


def _windows(run: BoundRun) -> list[int]:
    """Return the steps after which the rules of stages are checked."""
    rules = [stage.span.rule for stage in run.stages]
    return [rule.window for rule in rules if isinstance(rule, UntilPlateau)]


def _features(run: BoundRun) -> dict[str, str]:
    """Return features of the models and data of a run, by the names of the table."""
    # Binding wraps the stream, and only the one inside shows whether it has workers.
    stream = run.stream.stream if isinstance(run.stream, RunBatches) else run.stream
    teacher = run.teacher
    present = {
        "num_workers": isinstance(stream, LoaderStream) and stream.reads_ahead,
        "noise": run.is_noisy,
        "buffers": run.has_buffers,
        "stored targets": any(
            term.stored is not None for stage in run.stages for term in stage.terms
        ),
        # Same name as the feature of settings: a window of one step and an interval of one step
        # have the same effect.
        "every step": 1 in _windows(run),
        "no student blocks": not run.student.depth,
        "no teacher blocks": isinstance(teacher, LiveTeacher) and not teacher.model.depth,
    }
    words = {
        "num_workers": "a loader with 'num_workers'",
        "noise": "a student that draws noise, as dropout does",
        "buffers": "a student that has buffers",
        "stored targets": "stored targets",
        "every step": "a plateau's 'window' of 1 step",
        "no student blocks": "a student without numbered blocks",
        "no teacher blocks": "a teacher without numbered blocks",
    }
    return {name: words[name] for name, is_present in present.items() if is_present}
