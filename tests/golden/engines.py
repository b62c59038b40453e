"""Golden cases of the engine: settings, starts, resuming, classrooms and compiled steps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import curricle
from curricle import (
    SGD,
    AdamW,
    Curriculum,
    Duration,
    LabelLoss,
    LayerPair,
    MatchHidden,
    MatchLogits,
    PrincipalStart,
    RandomStart,
    Schedule,
    Stage,
    UntilMetric,
    UntilPlateau,
    extraction,
    from_labels,
    one_shot,
    progressive,
)
from curricle.models.tapped import TappedModel
from curricle.objectives.projections import Learned, Sign
from curricle.objectives.temperature import LearnedTemperature
from curricle.records import Record
from curricle.teachers.live import LiveTeacher
from curricle.teachers.trajectory import TrajectoryWriter
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.evaluation import label_metrics
from curricle.training.loop.run_outputs import Outputs
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.golden.cases import (
    TOTAL,
    Case,
    Run,
    cases,
    distilled,
    engine,
    held_out,
    noisy,
    of,
    only,
    resumed,
    texts,
    weight_files,
)
from tests.golden.curricula import several_objectives, trajectory
from tests.golden.outcomes import Performance
from tests.parts import bound, mlp, parity

PAIR = LayerPair(student=1, teacher=1)
CENTERED = MatchHidden(pair=PAIR, center=True)
EXTRACTION = extraction(total=TOTAL, layer_fraction=0.5)
MOMENTUM = SGD(learning_rate=0.1, momentum=0.9)

SETTINGS: dict[str, Run] = {
    "accumulation": of(distilled, EXTRACTION, settings={"gradient_accumulation_steps": 2}),
    "accumulation in parts of unequal counts": of(
        texts, only(MatchLogits(), CENTERED), settings={"gradient_accumulation_steps": 4}
    ),
    "clipping": of(distilled, EXTRACTION, settings={"max_grad_norm": 0.05}, optimizer=MOMENTUM),
    "clipping and accumulation": of(
        distilled,
        several_objectives(),
        settings={"max_grad_norm": 0.1, "gradient_accumulation_steps": 4},
        optimizer=MOMENTUM,
    ),
    "calibration": of(distilled, only(CENTERED, MatchHidden(pair=PAIR, projection=Sign()))),
    "dropout and batch normalization": of(
        distilled, EXTRACTION, new_student=noisy, optimizer=AdamW(learning_rate=0.01)
    ),
    "dropout and accumulation": of(
        distilled,
        one_shot(total=TOTAL),
        new_student=noisy,
        settings={"gradient_accumulation_steps": 2},
    ),
    "records of every step": of(distilled, EXTRACTION, settings={"log_every": 1, "eval_every": 1}),
    "another seed": of(distilled, EXTRACTION, seed=7),
}
PREFETCH: dict[str, Run] = {
    f"prefetch of {kind} with {name}": of(
        distilled, curriculum, settings={"prefetch": kind}, new_student=student
    )
    for kind in ("batch", "targets")
    for name, curriculum, student in (
        ("extraction", extraction(total=TOTAL), lambda: mlp(5, 4)),
        ("dropout", one_shot(total=TOTAL), noisy),
    )
}
NARROW: dict[str, Run] = {
    "teacher in bfloat16": of(distilled, EXTRACTION, settings={"teacher_precision": "bfloat16"}),
    "student and teacher in bfloat16": of(
        distilled, several_objectives(), settings={"precision": "bfloat16"}, optimizer=MOMENTUM
    ),
    "student in bfloat16": of(
        texts,
        only(MatchLogits(), CENTERED),
        settings={
            "precision": "bfloat16",
            "teacher_precision": "float32",
            "gradient_accumulation_steps": 2,
        },
    ),
    "teacher in bfloat16, logits in chunks": of(
        texts, only(MatchLogits(chunk=2)), settings={"teacher_precision": "bfloat16"}
    ),
}
STARTS: dict[str, Run] = {
    "principal start": of(distilled, one_shot(total=TOTAL, init=PrincipalStart())),
    "random start": of(
        distilled, extraction(total=TOTAL, shared_projection=True, init=RandomStart())
    ),
    "random start by signs": of(
        distilled,
        extraction(
            total=TOTAL,
            shared_projection=True,
            projection=Sign(),
            init=RandomStart(projection=Sign()),
        ),
        settings={"gradient_accumulation_steps": 2},
        seed=3,
    ),
}


def ended_early(folder: Path) -> Performance:
    """Return the performance of a run that ends at its second evaluation, below its budget."""
    del folder
    run = bound(
        extraction(total="30 steps", layer_fraction=0.3),
        settings=plain_settings(),
        student=mlp(5, 4),
    )
    evaluations: list[float] = []

    def is_reached(metrics: Any) -> bool:
        evaluations.append(metrics["nll"])
        return len(evaluations) > 1

    return executed(run, until=is_reached)


def plain_settings(**settings: Any) -> dict[str, Any]:
    """Return the settings of `engine` for `tests.parts.bound`, which sets the device itself."""
    return {"log_every": 3, "eval_every": 6, "threads": 1} | settings


def executed(
    run: BoundRun, folder: Path | None = None, *, until: Any = None, writer: Any = None
) -> Performance:
    """Return the performance of a bound run."""
    seen: list[Record] = []
    evaluate = label_metrics(held_out())
    outputs = Outputs(folder=folder, observers=(seen.append,), trajectory=writer, task="parity")
    execute(run, evaluate, metric="nll", outputs=outputs, until=until)
    files = {} if folder is None else weight_files(folder)
    return Performance(modules={"": run.student.module}, records={"": seen}, files=files)


def taught(folder: Path) -> Performance:
    """Return the performance of a teacher's training from labels, with its trajectory."""
    run = bound(
        from_labels(total="14 steps"),
        student=mlp(16, 12, seed=1),
        teacher=None,
        optimizer=AdamW(learning_rate=0.01),
        settings=plain_settings(save_every=5),
    )
    writer = TrajectoryWriter(folder / "run" / "trajectory", [2, 7, 14])
    performance = executed(run, folder / "run", writer=writer)
    # The manifest holds the losses at the checkpoints.
    manifest = {"manifest": folder / "run" / "trajectory" / "manifest.json"}
    return Performance(
        modules=performance.modules,
        records=performance.records,
        files={**performance.files, **manifest},
    )


def interruptible(
    new_student: Callable[[], TappedModel], curriculum: Curriculum
) -> Callable[..., nn.Module]:
    """Return what distils with a checkpoint every 4 steps, for `resumed`."""

    def distill(**arguments: Any) -> nn.Module:
        return curricle.distill(
            new_student(),
            mlp(16, 12, seed=1),
            curriculum,
            parity(),
            evaluation=held_out(),
            optimizer=AdamW(learning_rate=0.01, schedule=Schedule(warmup=0.1, decay="cosine")),
            settings=engine(save_every=4),
            **arguments,
        ).student

    return distill


LAYERS_THEN_LOGITS = Curriculum(
    name="layers, then logits",
    stages=(
        Stage(
            name="layer",
            duration="8 steps",
            objectives=(MatchHidden(pair=PAIR, projection=Learned(), center=True),),
        ),
        Stage(
            name="logits",
            duration="10 steps",
            objectives=(MatchLogits(), LearnedTemperature(ramp=0.5)),
            optimizer_state="reset",
            schedule="own",
        ),
    ),
)
WHOLE, WHOLE_NOISY = "uninterrupted", "uninterrupted with dropout"
RESUMED = tuple(
    Case(
        name=name,
        run=partial(resumed, distill=interruptible(student, LAYERS_THEN_LOGITS), stops=stops),
        same_weights=twin,
        same_records=bool(twin),
    )
    for name, student, stops, twin in (
        (WHOLE, lambda: mlp(5, 4), (), ""),
        ("resumed in a layer stage", lambda: mlp(5, 4), (6,), WHOLE),
        ("resumed in the logit stage", lambda: mlp(5, 4), (15,), WHOLE),
        ("resumed at a border and twice", lambda: mlp(5, 4), (9, 15), WHOLE),
        (WHOLE_NOISY, noisy, (), ""),
        ("resumed with dropout", noisy, (6, 15), WHOLE_NOISY),
    )
)

# Windows of 3 steps from step 4 on; the second does not fall by half.
PLATEAU = UntilPlateau(
    at_most="14 steps",
    at_least=Duration(number=5),
    window=3,
    patience=1,
    min_improvement=0.5,
)
LABELS_THEN_PLATEAU = Curriculum(
    name="labels, then layers until a plateau, then logits",
    stages=(
        Stage(name="labels", duration="4 steps", objectives=(LabelLoss(),)),
        Stage(
            name="layer",
            duration=PLATEAU,
            objectives=(MatchHidden(pair=PAIR, projection=Learned(), center=True),),
            schedule="own",
        ),
        Stage(name="logits", duration="6 steps", objectives=(MatchLogits(),)),
    ),
)
NLL = UntilMetric(metric="nll", reaches=0.675, direction="below", at_most="20 steps")
LABELS_UNTIL_METRIC = Curriculum(
    name="labels until a metric, then logits",
    stages=(
        Stage(name="labels", duration=NLL, objectives=(LabelLoss(),)),
        Stage(name="logits", duration="4 steps", objectives=(MatchLogits(),)),
    ),
)
UNREACHED = UntilMetric(metric="accuracy", reaches=1, direction="above", at_most="8 steps")
RULES: dict[str, Run] = {
    # The third evaluation, after 18 steps.
    "stage until a metric": of(distilled, LABELS_UNTIL_METRIC, optimizer=AdamW(learning_rate=0.05)),
    "stage until a metric that is not reached": of(
        distilled, extraction(total="20 steps", durations=(UNREACHED,))
    ),
}
UNTIL_PLATEAU = "stage until a plateau"
RESUMED_RULES = tuple(
    Case(
        name=name,
        run=partial(
            resumed, distill=interruptible(lambda: mlp(5, 4), LABELS_THEN_PLATEAU), stops=stops
        ),
        same_weights=twin,
        same_records=bool(twin),
    )
    for name, stops, twin in (
        (UNTIL_PLATEAU, (), ""),
        ("stage until a plateau, resumed in a window", (9,), UNTIL_PLATEAU),
        ("stage until a plateau, resumed at its first step and after it", (6, 15), UNTIL_PLATEAU),
    )
)


def together(
    folder: Path,
    runs: Callable[[Path, LiveTeacher], list[BoundRun]],
    *,
    batch_students: bool = False,
) -> Performance:
    """Return the performance of students of one teacher."""
    teacher = LiveTeacher(mlp(16, 12, seed=1), trajectory(folder))
    students = runs(folder, teacher)
    evaluate = label_metrics(held_out())
    seen: list[list[Record]] = [[] for _ in students]
    seats = [
        SharedRun(run=run, evaluate=evaluate, outputs=Outputs(observers=(records.append,)))
        for run, records in zip(students, seen, strict=True)
    ]
    execute_shared(seats, metric="accuracy", batch_students=batch_students)
    return Performance(
        modules={str(number): run.student.module for number, run in enumerate(students)},
        records={f"student {number}": records for number, records in enumerate(seen)},
    )


def different_students(folder: Path, teacher: LiveTeacher) -> list[BoundRun]:
    """Return students of other widths, curricula, optimizers and lengths."""
    del folder
    checkpoints = (20, 50, 80)
    curricula: list[dict[str, Any]] = [
        {"curriculum": one_shot(total=TOTAL)},
        {"curriculum": extraction(total=TOTAL, pairs=2), "student": mlp(9, 7, seed=4)},
        {
            "curriculum": extraction(total=TOTAL, trainable="new", center=True),
            "optimizer": AdamW(learning_rate=0.01),
        },
        {"curriculum": progressive(total=TOTAL, trajectory=checkpoints)},
        {"curriculum": one_shot(total="7 steps", teacher=20), "seed": 3},
        {"curriculum": one_shot(total=TOTAL, init=RandomStart())},
        {"curriculum": from_labels(total=TOTAL), "student": noisy(5)},
    ]
    return [
        bound(
            arguments.pop("curriculum"),
            settings=plain_settings(),
            **{"student": mlp(5, 4), "teacher": teacher, "stream": parity()} | arguments,
        )
        for arguments in curricula
    ]


def equal_students(
    folder: Path, teacher: LiveTeacher, *, curriculum: Curriculum = EXTRACTION, **arguments: Any
) -> list[BoundRun]:
    """Return three students that differ in their seeds."""
    del folder
    return [
        bound(
            curriculum,
            student=mlp(5, 4, seed=seed),
            teacher=teacher,
            stream=parity(),
            seed=seed,
            settings=plain_settings(),
            **arguments,
        )
        for seed in range(3)
    ]


CLASSES: dict[str, Run] = {
    "classroom of different students": of(together, different_students),
    "classroom of batched students": of(together, equal_students, batch_students=True),
    "classroom of batched students with momentum": of(
        together,
        partial(equal_students, curriculum=several_objectives(), optimizer=MOMENTUM),
        batch_students=True,
    ),
    "classroom of batched students with AdamW": of(
        together, partial(equal_students, optimizer=AdamW(learning_rate=0.01)), batch_students=True
    ),
}
CASES = (
    *cases(SETTINGS | STARTS | RULES),
    *(
        Case(
            name=name,
            run=run,
            same_weights="one shot with dropout" if "dropout" in name else "extraction",
            same_records=True,
        )
        for name, run in PREFETCH.items()
    ),
    Case(
        name="one shot with dropout",
        run=of(distilled, one_shot(total=TOTAL), new_student=noisy),
    ),
    *cases(NARROW, precision="bfloat16"),
    Case(name="target reached", run=ended_early),
    Case(name="teacher with a trajectory", run=taught),
    *RESUMED,
    *RESUMED_RULES,
    *cases(CLASSES, is_slow=True),
    Case(
        name="steps in compiled blocks",
        run=of(
            distilled,
            one_shot(total=TOTAL),
            settings={"compiled_steps": 3, "log_every": 6},
            optimizer=AdamW(learning_rate=0.01),
        ),
        is_compiled=True,
        is_slow=True,
    ),
)
