"""Golden cases as values, and the small distillation that most of them vary.

The default is a dozen steps of a two-layer student of a two-layer teacher on parities of 6 bits,
with a record every 3 steps and an evaluation every 6.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import curricle
from curricle import SGD, Batch, Curriculum, Stage, TrainingSettings, seeding
from curricle.models.tapped import TappedModel
from curricle.records import Record, StepRecord, read_records
from tests.golden.outcomes import Performance
from tests.parts import INPUTS, Listed, embedder, mlp, parity, tokens

TOTAL = "12 steps"
RECORDS = "records.jsonl"
Run = Callable[[Path], Performance]
"""Performs a case; its files go into an empty folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run with a recorded outcome."""

    name: str
    run: Run
    precision: Literal["float32", "bfloat16"] = "float32"
    """Lowest precision in which something is computed; it sets the tolerance."""
    is_compiled: bool = False
    """Whether the case compiles its steps, for which it needs a C++ compiler and many seconds."""
    is_slow: bool = False
    """Whether it takes more than a second."""
    same_weights: str = ""
    """Another case with the same weights and losses by construction."""
    same_records: bool = False
    """Whether the records of the other case are the same as well."""


def distilled(
    folder: Path,
    curriculum: Curriculum,
    *,
    student: Any = None,
    teacher: Any = None,
    data: Any = None,
    settings: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Performance:
    """Return the performance of a distillation that differs from the default as stated.

    Args:
        folder: Not used; the run writes no files.
        curriculum: The curriculum.
        student: The student; by default an MLP of widths 5 and 4.
        teacher: The teacher; by default an MLP of widths 16 and 12.
        data: Training batches.
        settings: Engine settings besides intervals, device and threads.
        **arguments: Further arguments of `curricle.distill`.
    """
    del folder
    seen: list[Record] = []
    defaults: dict[str, Any] = {"evaluation": held_out(), "optimizer": SGD(learning_rate=0.1)}
    result = curricle.distill(
        mlp(5, 4) if student is None else student,
        mlp(16, 12, seed=1) if teacher is None else teacher,
        curriculum,
        parity() if data is None else data,
        settings=engine(**settings or {}),
        observers=[seen.append],
        **defaults | arguments,
    )
    return Performance(modules={"": result.student}, records={"": seen})


def engine(**settings: Any) -> TrainingSettings:
    """Return engine settings for one thread of a CPU with intervals that fit a dozen steps."""
    defaults: dict[str, Any] = {"device": "cpu", "threads": 1}
    intervals = {"log_every": 3, "eval_every": 6}
    return TrainingSettings(**defaults | intervals | settings)


def held_out() -> list[Batch]:
    """Return 32 held-out examples of the parity data."""
    stream = parity(purpose="evaluation")
    return [stream.batch(step) for step in range(4)]


def words(*, selects: bool = True) -> Listed:
    """Return batches of padded texts, with labels at the selected positions if there are any."""
    batches = tokens(selects=selects).batches
    if not selects:
        return Listed(*batches)
    generator = torch.Generator().manual_seed(5)
    return Listed(
        *(
            replace(batch, labels=torch.randint(11, (batch.num_selected,), generator=generator))
            for batch in batches
        )
    )


def mean_logit(model: TappedModel) -> dict[str, float]:
    """Return a metric of a model that reads the data of `words`."""
    inputs: Any = words().batch(0).inputs
    return {"mean square logit": float(model.module(**inputs).square().mean())}


def texts(folder: Path, curriculum: Curriculum, **arguments: Any) -> Performance:
    """Return the performance of a distillation on the data of `words`."""
    defaults: dict[str, Any] = {
        "student": embedder(4, 5),
        "teacher": embedder(6, 9),
        "data": words(),
        "evaluation": mean_logit,
        "metric": "mean square logit",
        "better": "lower",
    }
    return distilled(folder, curriculum, **defaults | arguments)


def only(*objectives: Any, **fields: Any) -> Curriculum:
    """Return a curriculum of a single stage."""
    stage = Stage(name="only", objectives=objectives, **{"duration": TOTAL} | fields)
    return Curriculum(name="own", stages=(stage,))


class Noisy(nn.Module):
    """Two blocks the first with dropout, the second with a running mean in a buffer, under a head.

    A bias before the batch normalization would have a gradient of rounding errors alone, which
    AdamW makes as large as any other, so that losses would differ between machines.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(INPUTS, 5), nn.Dropout(0.3), nn.Tanh()),
                nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh()),
            ]
        )
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        state = inputs
        for block in self.blocks:
            state = block(state)
        logits: torch.Tensor = self.head(state)
        return logits


def noisy(seed: int = 0) -> TappedModel:
    """Return a student with dropout and batch normalization."""
    with seeding.scoped(seed, "student"):
        return curricle.tapped(Noisy(), blocks=["blocks.0", "blocks.1"], head="head")


class Stopped(Exception):  # noqa: N818 - no error, a stop on purpose
    """Raised by an observer to end a run."""


def stop_at(step: int) -> Callable[[Record], None]:
    """Return an observer that ends a run when a step is recorded."""

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == step:
            raise Stopped

    return observe


def resumed(
    folder: Path, distill: Callable[..., nn.Module], *, stops: Sequence[int] = ()
) -> Performance:
    """Return the performance of a run with a folder that was ended and resumed.

    Args:
        folder: Where the run folder is made.
        distill: Distils a fresh student with the arguments `output_dir`, `observers` and `resume`.
        stops: Steps at whose records the run is ended; none for an uninterrupted run.
    """
    run_folder = folder / "run"
    for number, step in enumerate(stops):
        try:
            distill(output_dir=run_folder, observers=[stop_at(step)], resume=number > 0)
        except Stopped:
            continue
        raise ValueError(f"the run must be ended at step {step}; it came to its end")
    student = distill(output_dir=run_folder, observers=(), resume=bool(stops))
    return Performance(
        modules={"": student},
        records={"": list(read_records(run_folder / RECORDS))},
        files=weight_files(run_folder),
    )


def weight_files(folder: Path) -> dict[str, Path]:
    """Return the safetensors files below a folder by their path there."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.safetensors"))}


def cases(runs: Mapping[str, Run], **fields: Any) -> tuple[Case, ...]:
    """Return cases by name that share all other fields."""
    return tuple(Case(name=name, run=run, **fields) for name, run in runs.items())


def of(perform: Callable[..., Performance], *positional: Any, **arguments: Any) -> Run:
    """Return the run that calls a function with a folder and then the arguments.

    Arguments that are functions named `new_...` are replaced by what they return when the run is
    performed, under the name without `new_`, since a trained student serves no second run.
    """

    def run(folder: Path) -> Performance:
        built = {
            name.removeprefix("new_"): value() if name.startswith("new_") else value
            for name, value in arguments.items()
        }
        return perform(folder, *positional, **built)

    return run
