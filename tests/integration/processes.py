"""Runs that one process and several processes of a group train alike.

As a program it trains all of `CASES` in one process of a group:
`python -m tests.integration.processes STORE RANK WORLD_SIZE FOLDER`. The first process writes the
trained weights, metrics and usage to the folder.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

import curricle
from curricle import seeding
from curricle.curriculum.stages import Curriculum
from curricle.objectives.projections import Learned

STEPS, EXAMPLES, INPUTS, CLASSES = 12, 8, 6, 3
TOKENS, LENGTH = 11, 7
OPTIMIZER = curricle.AdamW(learning_rate=0.02)


@dataclass
class Vectors:
    """Stream of float64 vectors with a label each."""

    batch_size: int = EXAMPLES
    tokens_per_batch: int = EXAMPLES
    fingerprint: str = "vectors"
    before: Callable[[int], None] = field(default=lambda _step: None)
    """Called with the number of a step before its batch is made."""

    def batch(self, step: int) -> curricle.Batch:
        self.before(step)
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(EXAMPLES, INPUTS, generator=generator, dtype=torch.float64)
        labels = inputs[:, :CLASSES].argmax(-1)
        return curricle.Batch(inputs=inputs, labels=labels)


@dataclass
class Texts:
    """Stream of padded tokens, whose examples differ in length, with the next token as label."""

    batch_size: int = EXAMPLES
    tokens_per_batch: int = EXAMPLES * LENGTH
    fingerprint: str = "texts"

    def batch(self, step: int) -> curricle.Batch:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(TOKENS, (EXAMPLES, LENGTH), generator=generator)
        # The first half of a batch has about three times as many positions as the second.
        lengths = torch.tensor([7, 7, 6, 7, 2, 3, 2, 2])
        valid = torch.arange(LENGTH) < lengths.unsqueeze(1)
        scored = valid[:, 1:].reshape(-1)
        places = torch.arange(EXAMPLES * LENGTH).view(EXAMPLES, LENGTH)[:, :-1].reshape(-1)[scored]
        return curricle.Batch(
            inputs={"input_ids": ids, "attention_mask": valid.long()},
            labels=ids[:, 1:].reshape(-1)[scored],
            selected=places,
            valid=valid,
        )


def network(width: int, seed: int) -> curricle.MLP:
    with seeding.scoped(seed, "network"):
        return curricle.MLP(INPUTS, (width, width), CLASSES).double()


def decoder(width: int, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    with seeding.scoped(seed, "decoder"):
        return LlamaForCausalLM(config).double()


@dataclass(frozen=True)
class Case:
    """A run: curriculum, settings, models."""

    curriculum: Callable[[], Curriculum]
    settings: dict[str, Any] = field(default_factory=dict)
    reads_text: bool = False
    tolerance: float = 1e-10
    """Largest difference of a weight from that of one process; projections are in float32, where
    rounding depends on the number of rows."""


TOTAL, PROJECTED = f"{STEPS} steps", 1e-6
CASES = {
    "labels": Case(lambda: curricle.from_labels(total=TOTAL)),
    "one-shot": Case(lambda: curricle.one_shot(total=TOTAL)),
    "stages that end early, clipped, in micro-batches": Case(
        lambda: curricle.extraction(
            total=TOTAL, pairs=2, layer_fraction=0.6, optimizer_state="reset", schedule="own"
        ),
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
        tolerance=PROJECTED,
    ),
    "a stage that freezes": Case(
        lambda: curricle.extraction(total=TOTAL, pairs=2, layer_fraction=0.6, trainable="new"),
        tolerance=PROJECTED,
    ),
    "centered targets, made ahead": Case(
        lambda: curricle.extraction(total=TOTAL, pairs=1, center=True),
        {"prefetch": "targets"},
        tolerance=PROJECTED,
    ),
    "a stage that ends by its loss": Case(
        lambda: curricle.extraction(
            total=TOTAL,
            pairs=1,
            durations=(
                curricle.UntilPlateau(at_most="9 steps", window=2, patience=1, min_improvement=0.5),
            ),
        ),
        tolerance=PROJECTED,
    ),
    "a trained projection": Case(
        lambda: curricle.extraction(total=TOTAL, pairs=1, projection=Learned()),
        tolerance=PROJECTED,
    ),
    "a start from the first layer": Case(
        lambda: curricle.one_shot(total=TOTAL, init="random"),
    ),
    "a start by least squares that needs no layers": Case(lambda: curricle.auto(total=TOTAL)),
    "layers where nothing is explained": Case(
        lambda: curricle.auto(total=TOTAL, init=None), tolerance=PROJECTED
    ),
    "padded text, a start from selected channels": Case(
        lambda: curricle.one_shot(total=TOTAL, init="selection"), reads_text=True
    ),
    "padded text": Case(
        lambda: curricle.extraction(total=TOTAL, pairs=1, shared_projection=True),
        reads_text=True,
        tolerance=PROJECTED,
    ),
    "padded text, logits in chunks": Case(
        lambda: curricle.one_shot(total=TOTAL, objective=curricle.MatchLogits(chunk=16)),
        reads_text=True,
    ),
    "padded text, a start by least squares": Case(
        lambda: curricle.one_shot(total=TOTAL, init=curricle.LeastSquaresStart(batches=4)),
        reads_text=True,
        tolerance=1e-8,
    ),
}


def distilled(case: Case, *, parallel: str, **changes: Any) -> dict[str, Any]:
    """Return the weights, metrics and usage of a case."""
    make = decoder if case.reads_text else network
    stream = Texts() if case.reads_text else Vectors()
    student = make(8, 1)
    result = curricle.distill(
        student,
        make(16, 0),
        case.curriculum(),
        stream,
        evaluation=[stream.batch(10**6 + number) for number in range(3)],
        optimizer=OPTIMIZER,
        settings=curricle.TrainingSettings(
            parallel=parallel,  # type: ignore[arg-type] # a literal
            threads=1,
            eval_every=4,
            log_every=2,
            **case.settings,
        ),
        progress=False,
        **changes,
    )
    return {
        "weights": {name: tensor.clone() for name, tensor in student.named_parameters()},
        "metrics": result.metrics,
        "usage": asdict(replace(result.usage, seconds=0.0)),
    }


def killed(folder: Path, *, parallel: str, rank: int) -> None:
    """Begin a run that writes checkpoints, in which the last process gets SIGTERM at step 5."""

    def before(step: int) -> None:
        if step == 5 and rank == distributed.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    student = network(8, 1)
    curricle.distill(
        student,
        network(16, 0),
        curricle.extraction(total=TOTAL, pairs=1, layer_fraction=0.25),
        Vectors(before=before),
        evaluation=[Vectors().batch(10**6)],
        optimizer=OPTIMIZER,
        settings=curricle.TrainingSettings(parallel=parallel, threads=1),  # type: ignore[arg-type]
        output_dir=folder,
        progress=False,
    )


def main() -> None:
    """Train all cases in one process of a group."""
    store, rank, world_size, folder = sys.argv[1], *map(int, sys.argv[2:4]), Path(sys.argv[4])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    results = {name: distilled(case, parallel="ddp") for name, case in CASES.items()}
    if rank == 0:
        write_results(results, folder / "results")
    try:
        killed(folder / "killed", parallel="ddp", rank=rank)
    except SystemExit as error:
        (folder / f"code-{rank}").write_text(str(error.code))
    distributed.destroy_process_group()


def write_results(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write weights, metrics and usage of all cases."""
    folder.mkdir()
    for number, result in enumerate(results.values()):
        save_file(result["weights"], folder / f"{number}.safetensors")
    numbers = [{**result, "weights": None} for result in results.values()]
    (folder / "numbers.json").write_text(json.dumps(numbers))


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `write_results` has written."""
    numbers = json.loads((folder / "numbers.json").read_text())
    return {
        name: {**result, "weights": load_file(folder / f"{number}.safetensors")}
        for number, (name, result) in enumerate(zip(CASES, numbers, strict=True))
    }


if __name__ == "__main__":
    main()
