"""What is the work that all contenders do alike?

Weights, batches and masks are those of curricle's named streams, so every process makes the very
same ones again. `Lesson` is what a contender gets; `Clock` counts the seconds of this process,
which other jobs disturb less than those of the wall, and stands still while a student is evaluated.
"""

import importlib.util
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.data.text.tokenizing import open_or_build
from curricle.data.text.windows import CausalWindows, MaskedWindows, evaluation_batches
from curricle.models.huggingface import HuggingFaceSpec, PretrainedSpec
from curricle.objectives.projections import Learned

IGNORED = -100
BETAS = (0.9, 0.95)
WITHOUT_DROPOUT = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "modernbert": (),
}


def _declare_vision_operators() -> None:
    """Let torchvision be imported, which torchdistill wants; that of PyPI is built for CUDA.

    Beside a torch for the CPU its import fails, and with it that of transformers' models, unless
    two of its operators are declared. Nothing of it is used.
    """
    if torch.version.cuda is None and importlib.util.find_spec("torchvision"):
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )


_declare_vision_operators()


@dataclass(frozen=True, kw_only=True)
class Work:
    """Models and data."""

    family: str
    """`bert`, `modernbert` (both with masked tokens) or `gpt2` (with next tokens)."""
    layers: int = 4
    wide: int = 256
    narrow: int = 64
    heads: int | None = None
    """Heads of both models; None for heads of 64."""
    expansion: int = 4
    """Width of the feed-forward layers, in widths of the model."""
    vocabulary: int = 8192
    examples: int = 32
    window: int = 128
    corpus: str = "sample"
    cache: str = ""
    teacher: str | None = None
    """Folder of a trained teacher; None leaves the first weights, which cost the same time."""

    @property
    def is_causal(self) -> bool:
        """Return whether next tokens are told."""
        return self.family == "gpt2"

    def windows(self, split: str) -> Stream:
        """Return the batches of a split."""
        store = open_or_build(
            self.corpus, split, vocabulary_size=self.vocabulary, cache_dir=Path(self.cache)
        )
        purpose = "train" if split == "train" else "evaluation"
        kind = CausalWindows if self.is_causal else MaskedWindows
        return kind(store, window=self.window, batch_size=self.examples, seed=0, purpose=purpose)

    def held_out(self, batches: int) -> tuple[Batch, ...]:
        """Return batches that nobody trains on."""
        return evaluation_batches(self.windows("valid"), batches)

    def model(self, role: str) -> nn.Module:
        """Return the teacher, in evaluation mode, or the student."""
        sizes = {
            "num_inputs": self.vocabulary,
            "num_classes": self.vocabulary,
            "num_positions": self.window,
        }
        head = "causal_lm" if self.is_causal else "masked_lm"
        if role == "teacher" and self.teacher is not None:
            spec = PretrainedSpec(path=self.teacher, head=head)
            return spec.build(**sizes).module.eval()
        width = self.wide if role == "teacher" else self.narrow
        config = {
            "num_hidden_layers": self.layers,
            "hidden_size": width,
            "num_attention_heads": self.heads or max(width // 64, 1),
            "n_inner" if self.is_causal else "intermediate_size": self.expansion * width,
            **dict.fromkeys(WITHOUT_DROPOUT[self.family], 0.0),
        }
        with seeding.scoped(0, role):
            spec = HuggingFaceSpec(model_type=self.family, head=head, config=config)
            return spec.build(**sizes).module.train(role == "student")


@dataclass
class Clock:
    """Seconds of this process since it was made, without pauses."""

    started: float = field(default_factory=time.process_time)
    paused: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.process_time() - self.started - self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stand still for a while.

        Yields:
            Nothing.
        """
        begun = time.process_time()
        try:
            yield
        finally:
            self.paused += time.process_time() - begun


class Timed:
    """A stream that notes when each step was asked for the last time."""

    def __init__(self, stream: Stream, clock: Clock) -> None:
        """Take the stream and the clock."""
        self._stream, self._clock = stream, clock
        self.asked: dict[int, float] = {}

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._stream.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch."""
        return self._stream.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of what the batches depend on."""
        return self._stream.fingerprint

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        self.asked[step] = self._clock.seconds
        return self._stream.batch(step)

    def median(self, *, warmup: int, steps: int) -> float:
        """Return the median seconds from one step to the next, the first ones left out."""
        times = [self.asked[step] for step in range(warmup, steps)]
        return statistics.median(later - earlier for earlier, later in pairwise(times))


class Rows(Dataset[dict[str, Tensor]]):
    """The same batches as the collators of transformers make them; labels of -100 are left out."""

    def __init__(self, stream: Stream, steps: int, *, is_causal: bool) -> None:
        """Take a stream; two batches more than steps, as some loaders read ahead."""
        self._stream, self._length, self._is_causal = stream, steps + 2, is_causal

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._length

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step."""
        batch = self._stream.batch(step)
        labels = torch.full(batch.positions, IGNORED)
        # As the models of transformers have it, the label of a next token stands at its own place.
        labels.view(-1)[batch.selected + self._is_causal] = batch.labels
        found = {**batch.inputs, "labels": labels}
        return found | {"attention_mask": torch.ones_like(labels)} if self._is_causal else found


@dataclass(kw_only=True)
class Lesson:
    """What a contender gets."""

    work: Work
    student: nn.Module
    teacher: nn.Module
    stream: Timed
    clock: Clock
    steps: int
    rate: float

    @classmethod
    def of(cls, work: Work, *, steps: int, rate: float) -> "Lesson":
        """Return a lesson with fresh models, on a clock that begins now."""
        clock = Clock()
        return cls(
            work=work,
            student=work.model("student"),
            teacher=work.model("teacher"),
            stream=Timed(work.windows("train"), clock),
            clock=clock,
            steps=steps,
            rate=rate,
        )

    def rows(self) -> Rows:
        """Return the batches as dictionaries."""
        return Rows(self.stream, self.steps, is_causal=self.work.is_causal)

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the batches as dictionaries, in order."""
        return DataLoader(self.rows(), batch_size=None)

    def pairs(self) -> list[curricle.LayerPair]:
        """Return every layer of the student with that of the teacher."""
        return [
            curricle.LayerPair(student=tap, teacher=tap) for tap in range(1, self.work.layers + 1)
        ]

    def maps(self) -> list[nn.Module]:
        """Return trained maps to the teacher's width, with the first values of curricle's own."""
        student, teacher = curricle.tapped(self.student), curricle.tapped(self.teacher)
        return [
            Learned().adapter(
                seed=0,
                name=f"{student.place(pair.student)} <- {teacher.place(pair.teacher)}",
                student_width=self.work.narrow,
                teacher_width=self.work.wide,
            )
            for pair in self.pairs()
        ]

    def optimizer(self, *trained: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer that all contenders use."""
        parameters = [one for module in trained for one in module.parameters()]
        return torch.optim.AdamW(
            parameters, lr=self.rate, betas=BETAS, weight_decay=0.0, fused=True
        )


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL(T || S) over rows of logits, as people write it."""
    return functional.kl_div(
        functional.log_softmax(student, dim=-1),
        functional.log_softmax(teacher, dim=-1),
        log_target=True,
        reduction="batchmean",
    )


def gap(lesson: Lesson, batches: Mapping[str, Tensor]) -> float:
    """Return the KL of the student to its teacher on one batch."""
    chosen = batches["labels"] != IGNORED
    inputs = {"input_ids": batches["input_ids"]}
    with torch.no_grad():
        lesson.student.eval()
        found = [model(**inputs).logits[chosen] for model in (lesson.student, lesson.teacher)]
    return float(kl(*found))
