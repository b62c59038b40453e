"""Models, data and runs so small that every number in them can be looked at."""

import importlib.util
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Integer
from torch import Tensor, distributed, nn

from curricle import seeding
from curricle.checksums import CHECK, SEAL, LineChain
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.data.batch import Batch
from curricle.data.synthetic.parity import ParityStream
from curricle.data.text.token_store import TokenStore, Vocabulary
from curricle.errors import LostProcessError
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.manifest import read_manifest
from curricle.teachers.store.shards import open_shard
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.placement import SingleDevice
from curricle.training.setup.settings import TrainingSettings
from curricle.values import fingerprint, plain

INPUTS, CLASSES = 6, 2
GROUPS = itertools.count(1)
"""Numbers of the groups of `single_process`."""
StoredRows = dict[tuple[str, bytes], list[bytes]]
"""Bytes of the rows of stored targets by target set and key of the example."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers that depend on the shape and the seed only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def worker_processes() -> set[int | None]:
    """Return the processes that this one has started by multiprocessing and that still run."""
    return {process.pid for process in active_children()}


def child_processes(pid: int) -> list[int]:
    """Return the processes that a process has started, by their number on the machine."""
    with suppress(FileNotFoundError):
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sorted(map(int, words))
    return []


def kernel_device() -> str:
    """Return where a module's tests of the kernel run; elsewhere the module is skipped.

    Under triton's interpreter (TRITON_INTERPRET=1) it is the CPU, and a lack of triton an error.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        importlib.import_module("triton")
        return "cpu"
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
    return "cuda"


@contextmanager
def single_process(kind: str, store: Path) -> Iterator[dict[str, Any]]:
    """Open a group of this process alone, which reaches no network.

    Args:
        kind: `cpu` or `cuda`.
        store: A new file.

    Yields:
        Settings of runs in it: a timeout of its own, by which no run takes the placement of an
        earlier group.
    """
    backends = "gloo"
    if kind == "cuda":
        backends = "cpu:gloo,cuda:nccl"
        # A mesh warns where no GPU was chosen before.
        torch.cuda.init()
    distributed.init_process_group(backends, init_method=f"file://{store}", rank=0, world_size=1)
    try:
        yield {"timeout": 60.0 + next(GROUPS)}
    finally:
        distributed.destroy_process_group()


def mlp(*widths: int, seed: int = 0, num_classes: int = CLASSES) -> TappedModel:
    """Return a network for the data of `parity`."""
    with seeding.scoped(seed, "model"):
        return MLP(INPUTS, widths, num_classes).tapped()


def parity(seed: int = 0, *, purpose: str = "train") -> ParityStream:
    """Return batches of 8 examples."""
    return ParityStream(num_inputs=INPUTS, degree=2, batch_size=8, seed=seed, purpose=purpose)


def token_store(tokens: Integer[np.ndarray, " token"], vocabulary: Vocabulary) -> TokenStore:
    """Return a store of tokens in memory."""
    return TokenStore(
        tokens=tokens.astype(np.uint16),
        vocabulary=vocabulary,
        fingerprint=fingerprint([tokens.tolist(), plain(vocabulary)]),
    )


def bound(
    curriculum: Curriculum, *, settings: Mapping[str, Any] | None = None, **parts: Any
) -> BoundRun:
    """Return a run of a two-layer student of a two-layer teacher, but for what is given."""
    defaults: dict[str, Any] = {
        "student": mlp(5, 4),
        "teacher": LiveTeacher(mlp(16, 12, seed=1)),
        "stream": parity(),
        "optimizer": SGD(learning_rate=0.1),
        "seed": 0,
    }
    chosen = TrainingSettings(device="cpu", **(settings or {}))
    return bind(curriculum, settings=chosen, **(defaults | parts))


def stored_rows(folder: Path) -> StoredRows:
    """Return the bytes of the rows of each example, once for each time that it is stored."""
    rows: StoredRows = {}
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        tensors = open_shard(folder, shard)
        keys, counts = tensors.pop("keys").numpy(), tensors.pop("counts").tolist()
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        for number, key in enumerate(keys):
            entries = b"".join(
                tensors[name][starts[number] : starts[number + 1]]
                .contiguous()
                .view(torch.uint8)
                .numpy()
                .tobytes()
                for name in sorted(tensors)
            )
            rows.setdefault((shard.section, bytes(key)), []).append(entries)
    return rows


def layers(*taps: tuple[Any, Any], **fields: Any) -> Curriculum:
    """Return one stage of 10 steps for each pair of taps."""
    stages = tuple(
        Stage(
            name=f"layer {number}",
            duration=Duration(number=10),
            objectives=(MatchHidden(pair=LayerPair(student=student, teacher=teacher)),),
            **fields,
        )
        for number, (student, teacher) in enumerate(taps, start=1)
    )
    return Curriculum(name="layers", stages=stages)


def edit_records(path: Path, text: str) -> None:
    """Write edited lines of records with new checks, as if a run had written them so."""
    chain = LineChain()
    documents = [json.loads(line) for line in text.splitlines()]
    for document in documents:
        document.pop(CHECK, None)
    path.write_bytes(b"".join(map(chain.line, documents)))
    # It counts the lines that were there before.
    (path.parent / SEAL).unlink(missing_ok=True)


class Listed:
    """Gives the batches of a list in turn, and remembers the steps."""

    fingerprint = "listed"

    def __init__(self, *batches: Batch) -> None:
        self.batches = batches
        self.read: list[int] = []

    @property
    def batch_size(self) -> int:
        return self.batches[0].num_examples

    @property
    def tokens_per_batch(self) -> int:
        return self.batches[0].num_tokens

    def batch(self, step: int) -> Batch:
        self.read.append(step)
        return self.batches[step % len(self.batches)]


def stored_target(run: BoundRun, batch: Batch, number: int = 0) -> Any:
    """Return the stored target of an objective of the first stage of a run."""
    term = run.stages[0].terms[number]
    assert term.stored is not None
    return term.stored.target(batch, term.objective.count(batch))


class Shared(nn.Module):
    """One block that is called three times, under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs
        for _ in range(3):
            state = self.block(state).tanh()
        found: Tensor = self.head(state)
        return found


class Forward(nn.Module):
    """Reads tokens: an embedding, one block and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, 11)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.block(self.embedding(input_ids)).tanh())
        return found


class Tuned(nn.Module):
    """Maps beside a layer, several by name, with the attributes that PEFT's layers have."""

    def __init__(self, base: nn.Linear, *names: str, seed: int = 0) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.low = nn.ParameterDict()
        for number, name in enumerate(names):
            self.low[name] = drawn(base.out_features, base.in_features, seed=seed + number)
        self.active_adapters, self.merged_adapters = [*names[:1]], list[str]()
        self.disable_adapters = False
        self.scaling = dict.fromkeys(names, 2.0)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.base_layer(inputs)
        for name in () if self.disable_adapters else self.active_adapters:
            found = found + self.scaling[name] * inputs @ self.low[name].mT
        return found


def embedder(width: int, seed: int) -> TappedModel:
    """Return a network that reads the data of `tokens`."""
    with seeding.scoped(0, "model"):
        module = Forward(width)
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=seed + number) / width**0.5
    return tapped(module, blocks=["block"], head="head")


def tokens(*, selects: bool, seed: int = 0) -> Listed:
    """Return batches of texts of several lengths, in which some positions may be selected."""
    generator = torch.Generator().manual_seed(seed)

    def one() -> Batch:
        ids = torch.randint(11, (4, 5), generator=generator)
        valid = torch.arange(5) < torch.tensor([[5], [2], [4], [3]])
        selected = torch.tensor([0, 3, 6, 10, 15, 17]) if selects else None
        return Batch(inputs={"input_ids": ids}, valid=valid, selected=selected)

    return Listed(one(), one(), one())


def texts(curriculum: Curriculum, **parts: Any) -> BoundRun:
    """Return a run on `tokens`, but for what is given."""
    defaults: dict[str, Any] = {
        "student": embedder(4, 5),
        "teacher": LiveTeacher(embedder(6, 9)),
        "stream": tokens(selects=True),
    }
    return bound(curriculum, **(defaults | parts))


def name_lost_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a single process report a failed exchange as the placement of several processes does."""

    @contextmanager
    def lost_process_errors(_: SingleDevice) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError("process 1 of 2 must answer") from error

    monkeypatch.setattr(SingleDevice, "lost_process_errors", lost_process_errors)
