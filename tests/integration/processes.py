"""Runs that one process and several processes of a group train alike.

As a program it trains all of `CASES`, and some of them sharded, in one process of a group:
`python -m tests.integration.processes STORE RANK WORLD_SIZE FOLDER`. The first process writes the
trained weights, metrics and usage to the folder.
"""

import hashlib
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed.tensor.debug import CommDebugMode
from transformers import LlamaConfig, LlamaForCausalLM

import curricle
from curricle import seeding
from curricle.curriculum.stages import Curriculum
from curricle.objectives.channel_selection import ChannelSelection
from curricle.objectives.projections import Learned
from curricle.teachers.store.codecs import Exact
from curricle.teachers.trajectory import Trajectory, TrajectoryWriter, open_trajectory
from curricle.training.setup.divergence import RollBack, SkipSteps

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


@dataclass
class FaultyVectors(Vectors):
    """Vectors, the last of which at step 5 is infinite, each time or when it is first read.

    It belongs to the last process alone.
    """

    is_once: bool = False
    num_read: int = 0

    def batch(self, step: int) -> curricle.Batch:
        batch = super().batch(step)
        if step == 5:
            self.num_read += 1
            if self.num_read == 1 or not self.is_once:
                assert isinstance(batch.inputs, torch.Tensor)
                batch.inputs[-1] = torch.inf
        return batch


def run_folder() -> Path:
    """Return a new folder, the same in all processes of a group."""
    folders = [tempfile.mkdtemp()]
    if distributed.is_initialized():
        distributed.broadcast_object_list(folders)
    return Path(folders[0])


def network(width: int, seed: int) -> curricle.MLP:
    with seeding.scoped(seed, "network"):
        return curricle.MLP(INPUTS, (width, width), CLASSES).double()


def checkpoints() -> Trajectory:
    """Return two checkpoints of a teacher, in a new folder of this process."""
    folder = Path(tempfile.mkdtemp())
    writer = TrajectoryWriter(folder, [1, 2])
    for step in (1, 2):
        writer.save(network(16, 10 + step), step)
    return open_trajectory(folder)


def accuracy(model: Any) -> dict[str, float]:
    """Return the accuracy of a model that is called as the module is."""
    batch = Vectors().batch(10**6)
    return {"accuracy": float((model(batch.inputs).argmax(-1) == batch.labels).double().mean())}


@cache
def stored_targets() -> Any:
    """Return stored targets of the teacher; made before the group, since one process captures."""
    folder = tempfile.mkdtemp()
    curricle.capture_targets(
        network(8, 1),
        network(16, 0),
        stored_curriculum(),
        Vectors(),
        folder=folder,
        compression=curricle.TargetCompression(hidden=Exact(), logits=Exact()),
    )
    return curricle.open_targets(folder)


def stored_curriculum() -> Curriculum:
    return curricle.extraction(total=TOTAL, pairs=2, layer_fraction=0.6)


def with_adapters(student: Any) -> nn.Module:
    """Return a model whose queries and values have adapters of rank 2, which alone are trained."""
    # Its import takes seconds, which other programs of these cases would wait for.
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with seeding.scoped(2, "adapters"), warnings.catch_warnings():
        # PEFT reads an attribute of transformers by its former name.
        warnings.simplefilter("ignore", FutureWarning)
        tuned: nn.Module = peft.get_peft_model(student, config).double()
    return tuned


def with_dropout(student: Any) -> nn.Module:
    """Return a model of texts that drops some attention weights while it is trained."""
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = 0.2
    tuned: nn.Module = student
    return tuned


def decoder(width: int, seed: int, *, is_tied: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=is_tied,
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
    is_tied: bool = False
    """Whether embedding and head of models of texts are one matrix."""
    stream: Callable[[], Vectors] | None = None
    """Returns the data; None for those of the models."""
    teacher: Callable[[], Any] | None = None
    """Returns the teacher; None for a network of its own."""
    changed: Callable[[Any], nn.Module] | None = None
    """Returns a student with changes; None changes nothing."""
    is_noisy: bool = False
    """Whether the masks of dropout differ between processes, hence from one process."""
    arguments: Callable[[], dict[str, Any]] = dict
    """Returns further arguments of the call."""
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
    "a stage in float64 that ends early": Case(
        lambda: curricle.extraction(
            total=TOTAL, pairs=2, layer_fraction=0.6, projection=ChannelSelection()
        )
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
    "checkpoints of the teacher in turns": Case(
        lambda: curricle.progressive(total=TOTAL, trajectory=[1, 2]),
        arguments=lambda: {"trajectory": checkpoints()},
    ),
    "judged by the teacher": Case(
        lambda: curricle.one_shot(total=TOTAL), arguments=lambda: {"metric": "kl"}
    ),
    "stored targets": Case(stored_curriculum, teacher=stored_targets),
    "padded text, dropout": Case(
        lambda: curricle.one_shot(total=TOTAL),
        reads_text=True,
        changed=with_dropout,
        is_noisy=True,
    ),
    "a skipped step": Case(
        lambda: curricle.one_shot(total=TOTAL),
        {"on_divergence": SkipSteps()},
        stream=FaultyVectors,
    ),
    "a return to a checkpoint": Case(
        lambda: curricle.extraction(total=TOTAL, pairs=2, layer_fraction=0.5),
        {"on_divergence": RollBack(), "save_every": 2, "async_save": True},
        stream=lambda: FaultyVectors(is_once=True),
        arguments=lambda: {"output_dir": run_folder()},
        tolerance=PROJECTED,
    ),
    "the best weights by a function": Case(
        lambda: curricle.one_shot(total=TOTAL),
        {"keep_best": True},
        arguments=lambda: {"evaluation": accuracy},
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
    "padded text, the embedding, tied to a head in chunks": Case(
        lambda: curricle.extraction(
            total=TOTAL,
            pairs=(curricle.LayerPair(student=0, teacher=0),),
            final_objective=curricle.MatchLogits(chunk=16),
        ),
        reads_text=True,
        is_tied=True,
        tolerance=PROJECTED,
    ),
    "padded text, a start by least squares": Case(
        lambda: curricle.one_shot(total=TOTAL, init=curricle.LeastSquaresStart(batches=4)),
        reads_text=True,
        tolerance=1e-8,
    ),
    "padded text, adapters": Case(
        lambda: curricle.extraction(total=TOTAL, pairs=1),
        reads_text=True,
        changed=with_adapters,
        tolerance=PROJECTED,
    ),
}


SHARDED = (
    "stages that end early, clipped, in micro-batches",
    "checkpoints of the teacher in turns",
    "a trained projection",
    "padded text, the embedding, tied to a head in chunks",
    "a stage in float64 that ends early",
    "centered targets, made ahead",
    "a start by least squares that needs no layers",
    "stored targets",
    "a return to a checkpoint",
)
"""Cases that four processes run in shares; two run all."""
REPLICATED = (
    "stages that end early, clipped, in micro-batches",
    "checkpoints of the teacher in turns",
    "a stage in float64 that ends early",
    "a start by least squares that needs no layers",
    "stored targets",
    "a skipped step",
)
"""Cases that four processes run in two replicas."""
TAUGHT = (
    "stages that end early, clipped, in micro-batches",
    "a stage in float64 that ends early",
    "checkpoints of the teacher in turns",
    "padded text, the embedding, tied to a head in chunks",
    "one-shot",
    "judged by the teacher",
    "layers where nothing is explained",
    "padded text",
)
"""Cases that processes run with a teacher in shares; four run the first four."""


def runs(number: int) -> list[tuple[str, str]]:
    """Return the placements and cases that a group of processes runs."""
    sharded = CASES if number == 2 else SHARDED
    replicated = () if number == 2 else REPLICATED
    taught = TAUGHT if number == 2 else TAUGHT[:4]
    return [
        *(("ddp", name) for name in CASES),
        *(("fsdp2", name) for name in sharded),
        *(("fsdp2, two replicas", name) for name in replicated),
        *(("fsdp2, teacher in shares", name) for name in taught),
        *(("fsdp2, two replicas, teacher in shares", name) for name in replicated[:1]),
    ]


def distilled(case: Case, *, parallel: str, **changes: Any) -> dict[str, Any]:
    """Return the weights, metrics and usage of a case."""
    make = partial(decoder, is_tied=case.is_tied) if case.reads_text else network
    held_out = Texts() if case.reads_text else Vectors()
    stream = held_out if case.stream is None else case.stream()
    student: nn.Module = make(8, 1)
    if case.changed is not None:
        student = case.changed(student)
    result = curricle.distill(
        student,
        make(16, 0) if case.teacher is None else case.teacher(),
        case.curriculum(),
        stream,
        optimizer=OPTIMIZER,
        settings=curricle.TrainingSettings(
            parallel=parallel.partition(",")[0],  # type: ignore[arg-type] # a literal
            replicas=2 if "replicas" in parallel else 1,
            teacher_parallel="fsdp2" if "teacher" in parallel else "whole",
            threads=1,
            eval_every=4,
            log_every=2,
            **case.settings,
        ),
        progress=False,
        **{
            "evaluation": [held_out.batch(10**6 + number) for number in range(3)],
            **case.arguments(),
            **changes,
        },
    )
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in student.named_parameters()},
        "metrics": result.metrics,
        "usage": asdict(replace(result.usage, seconds=0.0)),
    }


def recorded(
    folder: Path | None,
    *,
    parallel: str = "none",
    is_killed: bool = False,
    resume: bool = False,
) -> curricle.MLP:
    """Return the student of a run that keeps its best weights and can be resumed.

    Args:
        folder: Run folder.
        parallel: Placement.
        is_killed: Whether this process gets SIGTERM in the last stage, at step 5.
        resume: Whether the run goes on.
    """

    def before(step: int) -> None:
        if step == 5 and is_killed:
            os.kill(os.getpid(), signal.SIGTERM)

    student = network(8, 1)
    curricle.distill(
        student,
        network(16, 0),
        curricle.extraction(total=TOTAL, pairs=1, layer_fraction=0.25),
        Vectors(before=before),
        evaluation=[Vectors().batch(10**6)],
        optimizer=OPTIMIZER,
        settings=curricle.TrainingSettings(
            parallel=parallel,  # type: ignore[arg-type] # a literal
            threads=1,
            eval_every=2,
            keep_best="nll",
        ),
        output_dir=folder,
        resume=resume,
        progress=False,
    )
    return student


def count_collectives() -> list[dict[str, int]]:
    """Return the collectives of a step that ends at each of four taps, and of a whole step."""
    with seeding.scoped(0, "four blocks"):
        module = curricle.MLP(INPUTS, (8, 8, 8, 8), CLASSES)
    placement = curricle.TrainingSettings(parallel="fsdp2").placement
    counts = []
    with placement.sharded(curricle.tapped(module)) as model:
        for tap in (1, 2, 3, 4, None):
            places = [] if tap is None else [model.place(tap)]
            opened = model.open_taps(places, logits=tap is None)
            with opened as forward, CommDebugMode() as counter:
                states = forward(torch.ones(2, INPUTS))
                output = states.logits if tap is None else states.hidden[places[0]]
                assert output is not None
                output.sum().backward()
            collectives = counter.get_comm_counts().items()
            counts.append({str(kind).partition(".")[2]: number for kind, number in collectives})
    return counts


def main() -> None:
    """Train all cases in one process of a group."""
    store, rank, world_size, folder = sys.argv[1], *map(int, sys.argv[2:4]), Path(sys.argv[4])
    torch.set_num_threads(1)
    stored_targets()
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    # The notes of each run would be printed by each process.
    logging.disable()
    results = [distilled(CASES[name], parallel=parallel) for parallel, name in runs(world_size)]
    if rank == 0:
        write_results(results, folder / "results")
    weights = [weights_of(result["weights"]) for result in results]
    (folder / f"weights-{rank}.json").write_text(json.dumps(weights))
    (folder / f"collectives-{rank}.json").write_text(json.dumps(count_collectives()))
    for parallel in ("ddp", "fsdp2"):
        try:
            recorded(folder / parallel, parallel=parallel, is_killed=rank == world_size - 1)
        except SystemExit as error:
            (folder / f"code-{parallel}-{rank}").write_text(str(error.code))
    recorded(folder / "begun", parallel="fsdp2", resume=True)
    distributed.barrier()
    distributed.destroy_process_group()
    # All results are written. One exit of an interpreter in some tens was seen to abort in a thread
    # of gloo ("terminate called without an active exception"), after the last line of Python.
    sys.stdout.flush()
    os._exit(0)


def weights_of(tensors: dict[str, torch.Tensor]) -> str:
    """Return a digest of weights."""
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write_results(results: list[dict[str, Any]], folder: Path) -> None:
    """Write weights, metrics and usage of all runs."""
    folder.mkdir()
    for number, result in enumerate(results):
        save_file(result["weights"], folder / f"{number}.safetensors")
    numbers = [{**result, "weights": None} for result in results]
    (folder / "numbers.json").write_text(json.dumps(numbers))


def read_results(folder: Path, world_size: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what a group of processes has written, by placement and case."""
    numbers = json.loads((folder / "numbers.json").read_text())
    return {
        run: {**result, "weights": load_file(folder / f"{number}.safetensors")}
        for number, (run, result) in enumerate(zip(runs(world_size), numbers, strict=True))
    }


if __name__ == "__main__":
    main()
