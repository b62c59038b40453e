"""Features of a run that exclude each other, with the reason, in one table.

A feature is a setting that differs from its default, or a property of models and data. Settings,
specs, runs and students of a shared teacher collect the features that they know and pass them to
`check_compatible`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from curricle.errors import CurricleError

_ORDER = "students of one teacher read the same batch in turns"
_FUSED = "compiled blocks of steps"
_NO_ACCUMULATION = "do not support gradient accumulation"
_BATCHED = "batched students, which take their steps as one model,"
_SECONDS = "students that share a teacher share the machine, so seconds of one are not comparable"
_ONE_PROCESS = "students of one teacher train in one process"
_BLOCK_LOSSES = "the losses of a block are known after its updates"
_TURNS = "students of one teacher are at one step, and one cannot return to an earlier one alone"
_COST = "FLOPs and seconds depend on whether the teacher runs"

INCOMPATIBLE: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        # A block is one graph of equal steps: all that differs from step to step must be a tensor
        # that goes in, and nothing may look at values on the way.
        ("compiled_steps", "max_grad_norm"): f"{_FUSED} do not support gradient clipping",
        ("compiled_steps", "gradient_accumulation_steps"): f"{_FUSED} {_NO_ACCUMULATION}",
        ("compiled_steps", "prefetch"): f"{_FUSED} read all their batches at once",
        ("compiled_steps", "compile student"): f"{_FUSED} compile the student already",
        ("compiled_steps", "share_teacher"): "students of one teacher wait for each other at "
        "every step, unless 'batch_students' joins them",
        ("compiled_steps", "parallel"): f"{_FUSED} do not add up gradients of several processes",
        (
            "fsdp2",
            "compile student",
        ): "hooks of each block gather its weights, which a compiled block would not run",
        (
            "teacher_parallel",
            "compile teacher",
        ): "hooks of each block gather its weights, which a compiled block would not run",
        ("teacher_parallel", "prefetch targets"): "a second thread would gather weights in another "
        "order in each process",
        ("parallel", "share_teacher"): _ONE_PROCESS,
        ("parallel", "batch_students"): _ONE_PROCESS,
        ("compiled_steps", "noise"): f"{_FUSED} cannot draw the noise of single steps",
        ("compiled_steps", "buffers"): f"{_FUSED} do not update buffers",
        ("compiled_steps", "stored targets"): f"{_FUSED} cannot look up stored targets",
        # The second thread prepares a step only if nothing is due before it, so that recorded
        # weights and seconds are those of the steps taken; an interval of 1 leaves it no step.
        ("prefetch", "every step"): "nothing is prepared before a step at which weights are "
        "recorded, evaluated or saved, or a plateau is checked",
        ("prefetch", "num_workers"): "forking workers beside the prefetch thread can deadlock, and "
        "the workers read ahead already",
        ("prefetch", "share_teacher"): _ORDER,
        ("prefetch", "batch_students"): _ORDER,
        # Weights of all students lie in stacked tensors: their norm would clip the update of one
        # student by the gradients of another.
        ("batch_students", "max_grad_norm"): f"{_BATCHED} do not support gradient clipping",
        ("batch_students", "gradient_accumulation_steps"): f"{_BATCHED} {_NO_ACCUMULATION}",
        ("batch_students", "compile student"): f"{_BATCHED} do not support compiled blocks",
        # Reactions to a failed step: the update of a single student must be left out or undone.
        ("compiled_steps", "skip"): _BLOCK_LOSSES,
        ("compiled_steps", "explosion"): _BLOCK_LOSSES,
        ("batch_students", "skip"): f"{_BATCHED} cannot leave out the update of one of them",
        ("batch_students", "explosion"): f"{_BATCHED} are judged together",
        ("batch_students", "roll_back"): _TURNS,
        ("share_teacher", "roll_back"): _TURNS,
        # Micro-batches are halved between the passes of a single student.
        ("compiled_steps", "halve"): f"{_FUSED} {_NO_ACCUMULATION}",
        ("batch_students", "halve"): f"{_BATCHED} {_NO_ACCUMULATION}",
        ("share_teacher", "halve"): "students of one teacher read the same micro-batches",
        ("prefetch", "halve"): "steps that are prepared ahead have the micro-batches of before",
        ("parallel", "halve"): "one process alone may lack memory while others wait for it",
        # A budget in a unit that sharing or storing distorts would stop runs at points that cannot
        # be compared.
        ("share_teacher", "seconds"): _SECONDS,
        ("batch_students", "seconds"): _SECONDS,
        ("parallel", "seconds"): "each process would measure other seconds, hence another length",
        ("stored targets", "seconds"): _COST,
        ("stored targets", "flops"): _COST,
        ("compile student", "no student blocks"): "the blocks are compiled, one by one",
        ("compile teacher", "no teacher blocks"): "the blocks are compiled, one by one",
    }
)
"""Reason for each pair of features that cannot be used together."""


def check_compatible(features: Mapping[str, str], error: type[CurricleError]) -> None:
    """Check that no two features exclude each other.

    Args:
        features: Features that are on, by their name in the table, with the text for the user.
        error: Kind of the error.

    Raises:
        CurricleError: If two exclude each other; the sentence names both and the reason.
    """
    # Each pair stands once, and membership of both is tested, so the order within a pair is only
    # that of the sentence.
    for (first, second), why in INCOMPATIBLE.items():
        if first in features and second in features:
            raise error(
                f"{features[first]} cannot be used with {features[second]}: {why}; remove one of "
                f"them"
            )
