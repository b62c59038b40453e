"""Models and data of the steps that `benchmarks/gpu.py` measures.

Weights and tokens are drawn at random, which changes nothing about the time of a step. BERT reads
padded sequences, whose last quarter is partly padding, and 15 % of its tokens have labels; the
others read whole windows.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

from curricle import seeding
from curricle.data.batch import Batch

IGNORED = -100
MASKED_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class Task:
    """A teacher, a student and their data; lengths are in layers, widths in features."""

    family: str
    """`bert`, `llama` or `modernbert`."""
    teacher: tuple[int, int]
    """Layers and width of the teacher."""
    student: tuple[int, int]
    """Layers and width of the student."""
    vocabulary: int
    batch: int
    length: int
    pairs: tuple[tuple[int, int], tuple[int, int]]
    """Taps of student and teacher of the early and of the late layer stage."""

    def small(self) -> "Task":
        """Return the task with the same layers in sizes that a CPU runs at once."""
        return replace(
            self,
            teacher=(self.teacher[0], 32),
            student=(self.student[0], 16),
            vocabulary=512,
            batch=4,
            length=32,
        )

    def model(self, role: str, device: str) -> PreTrainedModel:
        """Return the teacher, in evaluation mode, or the student, in training mode."""
        layers, width = self.teacher if role == "teacher" else self.student
        sizes = {
            "vocab_size": self.vocabulary,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(width // 64, 1),
            "max_position_embeddings": max(self.length, 16),
        }
        # On the device itself: drawing the weights of a large model on a CPU takes seconds.
        with seeding.scoped(0, role), torch.device(device):
            model = _MAKERS[self.family](sizes, width)
        return model.train(role == "student")

    def body(self, model: PreTrainedModel) -> nn.Module:
        """Return the model without its head."""
        return model.base_model

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """Return the blocks of a model."""
        body = self.body(model)
        return body.encoder.layer if self.family == "bert" else body.layers

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """Return the logits of some rows of the last states."""
        if self.family == "bert":
            return model.cls(states)
        return (
            model.lm_head(states) if self.family == "llama" else model.decoder(model.head(states))
        )

    @cached_property
    def stream(self) -> "RandomTokens":
        """Return the data."""
        return RandomTokens(self)


def _bert(sizes: dict[str, int], width: int) -> PreTrainedModel:
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(**sizes, **without_dropout, intermediate_size=4 * width))


def _llama(sizes: dict[str, int], width: int) -> PreTrainedModel:
    config = LlamaConfig(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"],
        intermediate_size=width * 8 // 3,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _modernbert(sizes: dict[str, int], width: int) -> PreTrainedModel:
    # The numbers of special tokens must lie inside of the vocabulary.
    tokens = dict.fromkeys(("pad", "bos", "eos", "cls", "sep"), 0)
    special = {f"{name}_token_id": number for name, number in tokens.items()}
    return ModernBertForMaskedLM(
        ModernBertConfig(**sizes, **special, intermediate_size=width * 3 // 2)
    )


_MAKERS = {"bert": _bert, "llama": _llama, "modernbert": _modernbert}

BERT = Task(
    family="bert",
    teacher=(12, 768),
    student=(12, 256),
    vocabulary=30_522,
    batch=64,
    length=128,
    pairs=((3, 3), (9, 9)),
)
LLAMA = Task(
    family="llama",
    teacher=(12, 768),
    student=(6, 512),
    vocabulary=32_000,
    batch=8,
    length=1024,
    pairs=((2, 4), (5, 10)),
)
TASKS = {
    "bert": BERT,
    "llama": LLAMA,
    "modernbert": Task(
        family="modernbert",
        teacher=(6, 512),
        student=(6, 128),
        vocabulary=8192,
        batch=64,
        length=128,
        pairs=((2, 2), (5, 5)),
    ),
    "bert-512": replace(BERT, batch=16, length=512),
    # Of 65,536 tokens a step, where the launches of a step weigh less.
    "bert-large-batch": replace(BERT, batch=512),
    "llama-large-batch": replace(LLAMA, batch=64),
}


class RandomTokens:
    """Stream of random tokens, with masked tokens or next tokens as labels."""

    def __init__(self, task: Task) -> None:
        """Take the sizes of a task."""
        self._task = task
        self.batch_size = task.batch
        self.tokens_per_batch = task.batch * task.length
        self.fingerprint = f"random tokens of {task}"

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        task, generator = self._task, seeding.generator(0, "benchmark", step)
        shape = (task.batch, task.length)
        # Neither 0, the padding, nor 1, the mask.
        ids = torch.randint(2, task.vocabulary, shape, generator=generator)
        if task.family == "llama":
            places = torch.ones(shape, dtype=torch.bool)
            places[:, -1] = False
            selected = places.flatten().nonzero().squeeze(1)
            return Batch(
                inputs={"input_ids": ids}, labels=ids.flatten()[selected + 1], selected=selected
            )
        masked = torch.rand(shape, generator=generator) < MASKED_SHARE
        inputs, valid = {"input_ids": ids.masked_fill(masked, 1)}, None
        if task.family == "bert":
            lengths = torch.randint(
                task.length * 3 // 4, task.length + 1, (task.batch,), generator=generator
            )
            valid = torch.arange(task.length) < lengths[:, None]
            masked &= valid
            inputs = {
                "input_ids": inputs["input_ids"].masked_fill(~valid, 0),
                "attention_mask": valid.long(),
            }
        selected = masked.flatten().nonzero().squeeze(1)
        return Batch(inputs=inputs, labels=ids.flatten()[selected], selected=selected, valid=valid)

    def row(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step as collators of transformers make it, with labels of -100."""
        batch = self.batch(step)
        labels = torch.full(batch.positions, IGNORED)
        labels.view(-1)[batch.selected + (self._task.family == "llama")] = batch.labels
        return {**batch.inputs, "labels": labels}
