"""Short runs on data of a DataLoader, and their losses written out in plain torch."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import curricle
from curricle.records import RunRecord, StepRecord

STILL = curricle.SGD(learning_rate=1e-12)
"""An optimizer that moves nothing, so that the first loss of every stage is that of the start."""


def loader(rows: Sequence[Any], batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    """Return a loader of rows in their order."""
    return DataLoader(rows, batch_size=batch_size, **options)  # type: ignore[arg-type]


def records_of(
    student: Any, teacher: Any, data: Any, *objectives: Any, steps: int = 1, **options: Any
) -> tuple[RunRecord, list[StepRecord]]:
    """Return the record of a run with a stage for each objective, and those of its steps."""
    stages = tuple(
        curricle.Stage(name=f"stage {number}", duration=f"{steps} steps", objectives=(objective,))
        for number, objective in enumerate(objectives)
    )
    settings = {"device": "cpu", "log_every": 1} | options.pop("settings", {})
    records: list[Any] = []
    defaults: dict[str, Any] = {
        "evaluation": lambda _: {"accuracy": 0.0},
        "optimizer": STILL,
    }
    curricle.distill(
        student, teacher, curricle.Curriculum(name="case", stages=stages), data,
        settings=curricle.TrainingSettings(**settings), observers=[records.append],
        **(defaults | options),
    )  # fmt: skip
    return records[0], [record for record in records if isinstance(record, StepRecord)]


def losses(student: Any, teacher: Any, data: Any, *objectives: Any, **options: Any) -> list[float]:
    """Return the loss of every step."""
    return [step.loss for step in records_of(student, teacher, data, *objectives, **options)[1]]


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the forward KL of rows of logits, in nats a row."""
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def layer_normalized(state: Tensor) -> Tensor:
    """Return states with mean 0 and variance 1."""
    return functional.layer_norm(state, state.shape[-1:])


def louder(module: nn.Module) -> Any:
    """Return a model whose matrices are large enough for logits that differ."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    return module
