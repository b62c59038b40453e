"""Golden cases of the tasks of run specs, with networks and transformers, and of comparisons."""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from curricle import (
    AdamW,
    LabelLoss,
    LayerPair,
    MatchHidden,
    MatchLogits,
    PrincipalStart,
    RandomStart,
    extraction,
    one_shot,
    seeding,
)
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.mlp import MLPSpec
from curricle.models.tapped import TappedModel
from curricle.records import read_records
from curricle.runs.pool import compare
from curricle.runs.spec import RunSpec
from curricle.runs.train import teach
from curricle.task_data import TaskData
from curricle.tasks import ParityTask, PcfgTask, TextTask
from curricle.values import parse
from tests.golden.cases import RECORDS, Case, Run, cases, distilled, of, only, weight_files
from tests.golden.outcomes import Performance
from tests.runs import tiny_comparison

TINY = "8 steps"
OPTIMIZER = AdamW(learning_rate=0.01)
CAUSAL = ("gpt2", "llama")
Task = ParityTask | TextTask | PcfgTask


@cache
def shelf() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for tokenized text, which takes seconds to make, for this process."""
    return tempfile.TemporaryDirectory(prefix="golden-text-")


def transformer(family: str, width: int, data: TaskData, *, seed: int) -> TappedModel:
    """Return a two-block transformer for a task."""
    config: dict[str, object] = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    if family != "gpt2":
        config["intermediate_size"] = 2 * width
    head: Literal["causal_lm", "masked_lm"] = "causal_lm" if family in CAUSAL else "masked_lm"
    return _built(HuggingFaceSpec(model_type=family, head=head, config=config), data, seed=seed)


def perceptron(width: int, data: TaskData, *, seed: int) -> TappedModel:
    """Return a two-layer network for a task."""
    return _built(MLPSpec(widths=(width, width)), data, seed=seed)


def _built(spec: HuggingFaceSpec | MLPSpec, data: TaskData, *, seed: int) -> TappedModel:
    with seeding.scoped(seed, "golden"):
        return spec.build(
            num_inputs=data.num_inputs,
            num_classes=data.num_classes,
            num_positions=data.num_positions,
            padding_token=data.padding_token,
        )


def solved(
    folder: Path,
    task: Task,
    model: Callable[..., TappedModel],
    *,
    curriculum: Any = extraction(total=TINY, layer_fraction=0.5),  # noqa: B008 - a frozen value
    **arguments: Any,
) -> Performance:
    """Return the performance of a distillation on a task from a teacher of twice the width."""
    data = task.open(seed=0, cache_dir=Path(shelf().name))
    return distilled(
        folder,
        curriculum,
        student=model(8, data, seed=0),
        teacher=model(16, data, seed=1),
        data=data.stream,
        evaluation=data.evaluation,
        **{"optimizer": OPTIMIZER} | arguments,
    )


SMALL: dict[str, Any] = {"batch_size": 4, "evaluation_batches": 2}
MASKED = TextTask(vocabulary_size=300, window=8, **SMALL)
NEXT = TextTask(vocabulary_size=300, window=8, objective="next_token", **SMALL)
STRINGS = PcfgTask(start=14, **SMALL)
NEXT_STRINGS = PcfgTask(start=14, objective="next_token", span_level=1, pad_to="batch", **SMALL)
BITS: dict[str, Any] = {"num_inputs": 6, "degree": 2, "batch_size": 8, "evaluation_examples": 32}
bert, modernbert, gpt2, llama = (
    partial(transformer, family) for family in ("bert", "modernbert", "gpt2", "llama")
)
FINE = only(
    MatchHidden(pair=LayerPair(student=1, teacher=2), center=True, normalize="rms"),
    MatchLogits(weight=0.5, chunk=3),
    LabelLoss(weight=0.5),
    duration=TINY,
)
TASKS: dict[str, Run] = {
    "parity of a tree": of(solved, ParityTask(**BITS | {"num_inputs": 9}, depth=2), perceptron),
    "parity of tokens": of(solved, ParityTask(**BITS, encoding="tokens"), bert),
    "parity of tokens with a decoder": of(solved, ParityTask(**BITS, encoding="tokens"), llama),
    "masked strings of a grammar": of(solved, STRINGS, modernbert),
    "masked strings with hidden attention": of(
        solved, PcfgTask(start=14, masking_quirk=True, pad_to="batch", **SMALL), bert
    ),
    "next tokens of a grammar": of(solved, NEXT_STRINGS, llama),
    "next tokens of a grammar in parts": of(
        solved, NEXT_STRINGS, gpt2, settings={"gradient_accumulation_steps": 2}
    ),
    "several objectives of a decoder": of(solved, NEXT_STRINGS, llama, curriculum=FINE),
    "random start of an encoder": of(
        solved,
        STRINGS,
        bert,
        curriculum=extraction(total=TINY, shared_projection=True, init=RandomStart()),
    ),
    "principal start of a decoder": of(
        solved, NEXT_STRINGS, gpt2, curriculum=one_shot(total=TINY, init=PrincipalStart())
    ),
}
TEXTS: dict[str, Run] = {
    "masked tokens of a text": of(solved, MASKED, bert),
    "masked tokens of a text with several objectives": of(
        solved, MASKED, modernbert, curriculum=FINE, settings={"gradient_accumulation_steps": 2}
    ),
    "next tokens of a text": of(solved, NEXT, gpt2, curriculum=one_shot(total="250 tokens")),
    "next tokens of a text with Llama": of(
        solved, NEXT, llama, curriculum=one_shot(total=TINY, objective=MatchLogits(chunk=4))
    ),
}


def compared(folder: Path, **fields: Any) -> Performance:
    """Return the performance of a comparison from a run spec, with its teacher."""
    places = {"output_dir": str(folder / "run"), "cache_dir": str(folder / "cache")}
    spec = parse(RunSpec, tiny_comparison() | places | fields)
    teach(spec)
    compare(spec, watch=lambda _student, _record: None)
    paths = sorted((folder / "run").rglob(RECORDS))
    return Performance(
        records={
            str(path.parent.relative_to(folder / "run")): list(read_records(path)) for path in paths
        },
        files=weight_files(folder / "run"),
    )


COMPARISONS: dict[str, Run] = {
    "comparison": compared,
    "comparison with a shared teacher": of(compared, share_teacher=True, data_seed=5),
    "comparison of batched students": of(compared, batch_students=True, data_seed=5),
}
CASES: tuple[Case, ...] = (
    *cases(TASKS),
    *cases(TEXTS | COMPARISONS, is_slow=True),
)
