"""Arguments of the public calls: their conversion, and sentences about all that is refused."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import overload

from torch import nn
from torch.utils.data import DataLoader, Dataset

from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.data.collation import batch_of, check_first, declared_positions
from curricle.data.dataloaders import LoaderStream, held_out_items, stream
from curricle.data.loader_checks import check_undivided
from curricle.data.streams import Stream, epoch_batches
from curricle.errors import CAUSAL_LOADER, BindError, DataError, loading_hint
from curricle.metrics import METRICS, Direction, Metric
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.protocols import conforms
from curricle.records import Record
from curricle.renamed import RENAMED, Arguments, Returned, known_arguments, name_hint
from curricle.teachers.live import LiveTeacher
from curricle.teachers.stored import StoredTeacher
from curricle.teachers.trajectory import Trajectory
from curricle.training.setup.optimizers import SGD, AdamW
from curricle.training.setup.settings import TrainingSettings

AnyModel = nn.Module | TappedModel
"""A plain module, or one with known taps."""
OwnEvaluation = Callable[[TappedModel], dict[str, float]]
"""Evaluation by a function of the caller."""

# The engine does not know the strategies, so their arguments that are most likely to be passed to
# a public call are listed here.
STRATEGY_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            "total",
            "pairs",
            "init",
            "layer_fraction",
            "durations",
            "projection",
            "shared_projection",
            "normalize",
            "trainable",
            "final_objective",
        ),
        "extraction",
    )
    | dict.fromkeys(("objective", "label_weight"), "one_shot")
    | dict.fromkeys(("select", "refresh", "speed"), "progressive")
)
"""A strategy that takes an argument, by the name of the argument."""


CONTENTS: Mapping[str, str] = MappingProxyType(
    {
        "curriculum": "the result of a strategy, as curricle.auto(total='1000 steps')",
        "data": "a DataLoader or a stream of training batches",
        "evaluation": (
            "held-out data with labels: a DataLoader, a stream or a list of "
            "curricle.Batch(inputs=x, labels=y)"
        ),
    }
)
"""Content of an argument, for the sentence about one that is missing."""


def named_arguments(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Return a function that refuses missing and unknown arguments with a sentence.

    Args:
        function: The function.
    """
    return known_arguments(function, _hint, CONTENTS)


def _hint(name: str, available: Iterable[str]) -> str:
    """Return the end of an error sentence about an unknown argument of a public call."""
    return _place_of(name) or name_hint(name, available)


def _place_of(name: str) -> str:
    """Return where an argument belongs that is none of a public call; empty if nowhere."""
    new = RENAMED.get(name, name)
    for argument, kind in (("settings", TrainingSettings), ("optimizer", AdamW)):
        if new in inspect.signature(kind).parameters:
            return f"it belongs to {argument}=curricle.{kind.__name__}({new}=...)"
    if new in STRATEGY_ARGUMENTS:
        return f"it belongs to the strategy, as curricle.{STRATEGY_ARGUMENTS[new]}(..., {new}=...)"
    return ""


@overload
def as_evaluation(
    evaluation: Sequence[Batch] | Stream | DataLoader[object] | OwnEvaluation,
    data: object,
    *,
    next_token: bool = False,
) -> Sequence[Batch] | OwnEvaluation: ...
@overload
def as_evaluation(evaluation: object, data: object, *, next_token: bool = False) -> object: ...
def as_evaluation(evaluation: object, data: object, *, next_token: bool = False) -> object:
    """Return held-out data as batches if they are a loader or a stream; else unchanged.

    Args:
        evaluation: A loader or a stream, of which an epoch is read once, batches or a function.
        data: Training data; where they are a stream of a loader, its reading of items is used.
        next_token: Reading of the items of a loader where it is not that of the training data.

    Raises:
        BindError: If the loader is empty.
        DataError: If `next_token` is given for data whose labels have their places.
    """
    if next_token:
        _check_shift(evaluation)
    if conforms(evaluation, Stream):
        return epoch_batches(evaluation)
    if not isinstance(evaluation, DataLoader):
        return evaluation
    items = held_out_items(evaluation)
    if not items:
        raise BindError("'evaluation' must give at least one batch; got an empty DataLoader")
    if isinstance(data, LoaderStream):
        return [data.as_batch(item) for item in items]
    positions = declared_positions(items[0], next_token=next_token)
    batches = [batch_of(item, next_token=next_token, positions=positions) for item in items]
    if next_token:
        check_first(items[0], batches[0], next_token=True)
    return batches


def _check_shift(evaluation: object) -> None:
    """Check that held-out data are a loader, whose labels can be shifted.

    Raises:
        DataError: If they are a stream or batches.
    """
    remedy = "curricle.stream(loader, next_token=True) shifts those of a loader"
    if conforms(evaluation, Stream):
        raise DataError(
            f"'next_token' has no effect on a stream, whose labels have their places; got "
            f"{type(evaluation).__name__!r}; leave it out, or {remedy}"
        )
    if isinstance(evaluation, Sequence) and any(type(item) is Batch for item in evaluation):
        raise DataError(
            f"'next_token' has no effect on a `Batch`, whose labels have their places; leave it "
            f"out, or {remedy}"
        )


def as_teacher(
    teacher: AnyModel | StoredTeacher | None, trajectory: Trajectory | None
) -> LiveTeacher | StoredTeacher | None:
    """Return the teacher of a run: a live one of a model, a stored one as it is.

    Args:
        teacher: A model or stored targets, if there is a teacher.
        trajectory: Checkpoints of the model.
    """
    if teacher is None or isinstance(teacher, StoredTeacher):
        return teacher
    return LiveTeacher(tapped(teacher), trajectory)


def as_stream(data: object, seed: int) -> Stream:
    """Return training data as a stream.

    Args:
        data: A stream, or a loader, which is read by `curricle.stream(data, seed=seed)`.
        seed: Seed of the order of a loader.

    Raises:
        BindError: If they are neither a stream nor a loader.
        DataError: If a sampler of the loader gives each process a share of its own.
    """
    if isinstance(data, DataLoader):
        check_undivided(data, "data")
        return stream(data, seed=seed)
    # `isinstance` with a protocol misses methods that a wrapper forwards.
    if not conforms(data, Stream):
        raise BindError(
            f"'data' must be a stream or a DataLoader; got {type(data).__name__!r}"
            f"{wrapping_hint(data)}"
        )
    return data


def wrapping_hint(data: object) -> str:
    """Return the end of an error sentence on examples without a loader; empty for anything else.

    Args:
        data: What was given as training data.
    """
    is_text = isinstance(data, str | bytes)
    has_rows = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not is_text
    if not has_rows and not isinstance(data, Dataset):
        return ""
    return "; a loader makes batches of it: DataLoader(dataset, batch_size=64)"


def require_curriculum(curriculum: object) -> None:
    """Check that an argument is a curriculum.

    Args:
        curriculum: The argument.

    Raises:
        BindError: If it is something else.
    """
    if not isinstance(curriculum, Curriculum):
        raise BindError(
            f"'curriculum' must be the result of a strategy, as curricle.extraction("
            f"total='10k steps'); got {_describe(curriculum)}"
        )


def require_parts(optimizer: object, evaluation: object) -> None:
    """Check that optimizer and evaluation are of the kinds that `distill` takes.

    Args:
        optimizer: `AdamW` or `SGD` of this package.
        evaluation: Batches or a function.

    Raises:
        BindError: If they are something else; the sentence names the right class.
    """
    # Torch's classes have the same names, and are what a newcomer passes.
    if not isinstance(optimizer, (AdamW, SGD)):
        raise BindError(
            f"'optimizer' must be curricle.AdamW(learning_rate=...) or curricle.SGD("
            f"learning_rate=...); got {_describe(optimizer)}"
        )
    # What it returns is checked when the run opens, before the first step.
    if callable(evaluation):
        return
    if not isinstance(evaluation, Sequence):
        raise BindError(
            f"'evaluation' must be a sequence of curricle.Batch, a DataLoader, a stream or a "
            f"function; got {_describe(evaluation)}"
        )
    # A loader's pairs of tensors are sequences, too, and would fail in the middle of the run.
    wrong = [item for item in evaluation if type(item) is not Batch]
    if wrong:
        raise BindError(
            f"'evaluation' must hold batches, written curricle.Batch(inputs=x, labels=y); "
            f"got {_describe(wrong[0])}"
        )


def require_model(name: str, model: object) -> None:
    """Check that an argument is a model.

    Args:
        name: Name of the argument.
        model: The argument.

    Raises:
        BindError: If it is something else.
    """
    if not isinstance(model, nn.Module) and not conforms(model, TappedModel):
        stored = ", and curricle.open_targets opens a folder of stored targets as a teacher"
        is_name = name == "teacher" and isinstance(model, str | Path)
        raise BindError(
            f"{name!r} must be a torch.nn.Module, or one that curricle.tapped describes; got "
            f"{_describe(model)}{loading_hint(model, CAUSAL_LOADER)}{stored if is_name else ''}"
        )


def require_resumable(resume: object, output_dir: object) -> None:
    """Check that a call that goes on has a folder to go on from.

    Args:
        resume: Whether it goes on.
        output_dir: The run folder; None without one.

    Raises:
        BindError: If there is none.
    """
    if resume and output_dir is None:
        raise BindError(
            f"'resume' must be False without 'output_dir', the folder with the checkpoints to go "
            f"on from; got {resume!r}"
        )


def unsaved_notes(settings: TrainingSettings, output_dir: object) -> tuple[str, ...]:
    """Return a note on settings of checkpoints without a folder to write them to.

    Args:
        settings: Settings of the run.
        output_dir: The run folder; None without one.
    """
    if settings.save_every is None or output_dir is not None:
        return ()
    number = settings.save_every
    return (f"'save_every' {number} has no effect without 'output_dir': no checkpoint is written",)


def as_observers(observers: object) -> tuple[Callable[[Record], None], ...]:
    """Return observers as a tuple of functions.

    Args:
        observers: The observers.

    Raises:
        BindError: If they are something else, such as a single function.
    """
    if not isinstance(observers, Iterable):
        raise BindError(
            f"'observers' must be a sequence of functions that take a record, as "
            f"observers=[print]; got {_describe(observers)}"
        )
    functions = tuple(observers)
    for observer in functions:
        if not callable(observer):
            raise BindError(
                f"'observers' must hold functions that take a record; got {_describe(observer)}"
            )
    return functions


def require_direction(better: object) -> None:
    """Check the direction of a metric.

    Args:
        better: The direction.

    Raises:
        BindError: If it is none.
    """
    if better not in (None, "higher", "lower"):
        raise BindError(f"'better' must be 'higher', 'lower' or None; got {better!r}")


def judged_by(metric: str | Metric, better: Direction | None) -> tuple[str, Direction | None]:
    """Return the name of a metric and the direction that records declare.

    Args:
        metric: A metric or its name.
        better: The direction, if it is declared beside the metric.

    Raises:
        BindError: If the direction is none, or another than that of the metric.
    """
    require_direction(better)
    if isinstance(metric, str):
        return metric, better
    # Two directions would rank the same run differently in records and in reports.
    if better not in (None, metric.better):
        raise BindError(
            f"'better' must be {metric.better!r} or None for the metric {metric.name!r}; got "
            f"{better!r}"
        )
    # Reports have the direction of built-in metrics themselves.
    is_built_in = METRICS.get(metric.name) is metric
    return metric.name, better if is_built_in else metric.better


def require_kind(name: str, argument: object, kind: type, example: str) -> None:
    """Check that an argument is a value of this package and not, for example, a dictionary.

    Args:
        name: Name of the argument.
        argument: The argument.
        kind: Its class.
        example: Arguments of the class, for the error.

    Raises:
        BindError: If it is not.
    """
    if not isinstance(argument, kind):
        raise BindError(
            f"{name!r} must be curricle.{kind.__name__}(...), as curricle.{kind.__name__}"
            f"({example}); got {_describe(argument)}"
        )


def _describe(argument: object) -> str:
    """Return the description of a wrong argument, for people."""
    if argument is None or isinstance(argument, str):
        return repr(argument)
    # A class in the place of its instance, such as torch.optim.AdamW.
    if isinstance(argument, type):
        return f"the class {f'{argument.__module__}.{argument.__qualname__}'!r}"
    if inspect.isfunction(argument):
        return f"the function {argument.__name__!r}"
    # With its module, since torch has an AdamW of its own.
    name = f"{type(argument).__module__}.{type(argument).__qualname__}"
    return repr(name.removeprefix("builtins."))
