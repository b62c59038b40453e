"""Golden cases of stored targets: every codec, trajectories, classes, targets of other programs."""

import json
from pathlib import Path
from typing import Any

import torch

from curricle import (
    Batch,
    Curriculum,
    LayerPair,
    MatchHidden,
    MatchLogits,
    Stage,
    TargetCompression,
    capture_targets,
    one_shot,
    open_targets,
    progressive,
)
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import BFloat16, Exact, Int8, Sampled, TopK
from curricle.teachers.store.importing import import_targets
from curricle.training.targets.verification import agreement
from tests.golden.cases import (
    TOTAL,
    Case,
    Run,
    cases,
    distilled,
    engine,
    of,
    only,
    texts,
    weight_files,
    words,
)
from tests.golden.curricula import trajectory
from tests.golden.engines import EXTRACTION, equal_students, plain_settings, together
from tests.golden.outcomes import Performance
from tests.parts import Listed, bound, embedder, mlp, parity

PAIR = LayerPair(student=1, teacher=1)
READ_STORED = Curriculum(
    name="layer, then logits",
    stages=(
        Stage(name="layer", duration="5 steps", objectives=(MatchHidden(pair=PAIR),)),
        Stage(
            name="logits",
            duration="7 steps",
            objectives=(MatchLogits(weight=0.8), MatchHidden(pair=PAIR, positions="selected")),
        ),
    ),
)


def stored(
    folder: Path,
    compression: TargetCompression,
    *,
    curriculum: Curriculum = READ_STORED,
    prefetch: str = "none",
) -> Performance:
    """Return the performance of a distillation from targets that were captured before."""
    capture_targets(
        embedder(4, 5),
        embedder(6, 9),
        curriculum,
        words(),
        folder=folder / "targets",
        compression=compression,
        settings=engine(),
    )
    teacher = open_targets(folder / "targets")
    performance = texts(folder, curriculum, teacher=teacher, settings={"prefetch": prefetch})
    run = bound(
        curriculum,
        student=embedder(4, 5),
        teacher=LiveTeacher(embedder(6, 9)),
        stream=words(),
        settings=plain_settings(),
    )
    shares = [section.share for section in agreement([run], teacher, steps=2)]
    return Performance(
        modules=performance.modules,
        records=performance.records,
        files=weight_files(folder / "targets"),
        numbers={"share that agrees": shares},
    )


def stored_trajectory(folder: Path) -> Performance:
    """Return the performance of a progressive distillation from stored targets."""
    checkpoints = trajectory(folder)
    curriculum = progressive(total=TOTAL, trajectory=checkpoints, select=(20, 50, 80))
    capture_targets(
        mlp(5, 4),
        mlp(16, 12, seed=1),
        curriculum,
        parity(),
        folder=folder / "targets",
        trajectory=checkpoints,
        settings=engine(teacher_precision="bfloat16", gradient_accumulation_steps=2),
    )
    performance = distilled(
        folder,
        curriculum,
        teacher=open_targets(folder / "targets"),
        settings={"teacher_precision": "bfloat16", "gradient_accumulation_steps": 2},
    )
    return Performance(
        modules=performance.modules,
        records=performance.records,
        files=weight_files(folder / "targets"),
    )


def stored_class(folder: Path) -> Performance:
    """Return the performance of batched students that are taught by stored targets."""
    capture_targets(
        mlp(5, 4),
        mlp(16, 12, seed=1),
        EXTRACTION,
        parity(),
        folder=folder / "targets",
        compression=EXACT,
        settings=engine(),
    )
    teacher: Any = open_targets(folder / "targets")
    return together(
        folder,
        lambda place, _live: equal_students(place, teacher),
        batch_students=True,
    )


def imported(folder: Path) -> Performance:
    """Return the performance of a distillation from log-probabilities of another program."""
    ids = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(3))
    source = folder / "answers.jsonl"
    lines = [
        {"input_ids": row, "logprobs": [_likely(token) for token in row]} for row in ids.tolist()
    ]
    lines = [line | {"logprobs": [None, *line["logprobs"][:-1]]} for line in lines]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    import_targets(source, folder / "targets", num_classes=11)
    selected = torch.tensor([0, 2, 5, 8])
    batches = [
        Batch(
            inputs={"input_ids": rows},
            selected=selected,
            labels=rows.roll(-1, dims=1).flatten()[selected],
        )
        for rows in ids.split(2)
    ]
    performance = texts(
        folder,
        one_shot(total=TOTAL),
        teacher=open_targets(folder / "targets"),
        data=Listed(*batches),
    )
    return Performance(
        modules=performance.modules,
        records=performance.records,
        files=weight_files(folder / "targets"),
    )


def _likely(token: int) -> list[dict[str, Any]]:
    """Return the log-probabilities of two classes that depend on a token."""
    classes = (((token + 1) % 11, -0.5), ((3 * token + 5) % 11, -1.5))
    return [{"token": f"token_id:{number}", "logprob": logarithm} for number, logarithm in classes]


EXACT = TargetCompression(hidden=Exact(), logits=Exact())
CODECS: dict[str, TargetCompression] = {
    "bfloat16": TargetCompression(hidden=BFloat16(), logits=BFloat16()),
    "int8": TargetCompression(hidden=Int8(), logits=Int8(), shard_bytes=500),
    "top k": TargetCompression(logits=TopK(k=4)),
    "samples": TargetCompression(logits=Sampled(num_samples=6)),
}
CHUNKED = only(MatchLogits(chunk=2))
STORED: dict[str, Run] = {
    f"stored targets as {name}": of(stored, compression) for name, compression in CODECS.items()
} | {
    "stored top k for logits in chunks": of(stored, CODECS["top k"], curriculum=CHUNKED),
    "stored samples for logits in chunks": of(stored, CODECS["samples"], curriculum=CHUNKED),
    "stored targets for batched students": stored_class,
    "stored targets of another program": imported,
}
CASES: tuple[Case, ...] = (
    Case(name="layer, then logits of words", run=of(texts, READ_STORED)),
    Case(
        name="stored targets as float32",
        run=of(stored, EXACT),
        same_weights="layer, then logits of words",
    ),
    Case(
        name="prefetch of stored targets",
        run=of(stored, EXACT, prefetch="targets"),
        same_weights="stored targets as float32",
        same_records=True,
    ),
    *cases(STORED),
    Case(name="stored targets of a trajectory", run=stored_trajectory, precision="bfloat16"),
)
