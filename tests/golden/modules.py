"""Golden cases of loaders, plain modules and transformers as users have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import (
    AdamW,
    Batch,
    LayerPair,
    MatchHidden,
    MatchLogits,
    extraction,
    hugging_face_trajectory,
    one_shot,
    progressive,
    seeding,
)
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.base import Reads, Sample
from curricle.task_data import TaskData
from tests.golden.cases import Run, cases, distilled, of, only
from tests.golden.outcomes import Performance
from tests.golden.tasks import transformer
from tests.parts import Shared, drawn

TINY = "8 steps"
OPTIMIZER = AdamW(learning_rate=0.01)


def padded_rows(rows: list[tuple[Tensor]]) -> dict[str, Tensor]:
    """Return a batch of token ids of several lengths, padded with zeros."""
    texts = [row[0][row[0] > 0] for row in rows]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": ids.masked_fill(ids == 0, -100),
    }


def loaded(folder: Path, *, next_token: bool, family: str) -> Performance:
    """Return the performance of a distillation on a user's loader with padding."""
    ids = torch.randint(1, 20, (18, 7), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(18)[:, None] % 5 + 3
    ids = ids.masked_fill(torch.arange(7) >= lengths, 0)
    streams = [
        curricle.stream(
            DataLoader(TensorDataset(ids), batch_size=4, shuffle=True, collate_fn=hide),
            seed=seed,
            next_token=next_token,
        )
        for seed, hide in enumerate([padded_rows if next_token else masked_rows] * 2)
    ]
    shape = TaskData(
        stream=streams[0],
        evaluation=(),
        num_inputs=20,
        num_classes=20,
        num_positions=7,
        name="loader",
    )
    return distilled(
        folder,
        extraction(total=TINY, layer_fraction=0.5),
        student=transformer(family, 8, shape, seed=0),
        teacher=transformer(family, 16, shape, seed=1),
        data=streams[0],
        evaluation=[streams[1].batch(step) for step in range(2)],
        optimizer=OPTIMIZER,
    )


def masked_rows(rows: list[tuple[Tensor]]) -> dict[str, Tensor]:
    """Return a padded batch in which every third token is hidden, drawn from torch's generator."""
    batch = padded_rows(rows)
    is_hidden = (torch.rand(batch["input_ids"].shape) < 0.4) & (batch["labels"] != -100)
    is_hidden[:, 0] = True
    batch["labels"] = batch["labels"].masked_fill(~is_hidden, -100)
    batch["input_ids"] = batch["input_ids"].masked_fill(is_hidden, 19)
    return batch


def classified(
    folder: Path,
    model: Callable[[int, int], nn.Module | TappedModel],
    *,
    shape: tuple[int, ...] = (6,),
    classes: int = 3,
    **arguments: Any,
) -> Performance:
    """Return the performance of a distillation of classifiers on a loader of pairs.

    Args:
        folder: Not used.
        model: Makes a classifier of a width and a seed.
        shape: Shape of an example.
        classes: Number of classes.
        **arguments: Further arguments of `distilled`.
    """
    inputs = drawn(26, *shape, seed=4)
    labels = (inputs.flatten(1)[:, :classes]).argmax(1)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=6, shuffle=True)
    data = curricle.stream(loader, seed=2)
    return distilled(
        folder,
        student=model(4, 0),
        teacher=model(8, 1),
        data=data,
        evaluation=[Batch(inputs=inputs, labels=labels)],
        **arguments,
    )


def sequential(width: int, seed: int) -> nn.Module:
    """Return a plain module that nothing describes."""
    with seeding.scoped(seed, "golden"):
        return nn.Sequential(
            nn.Linear(6, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3)
        )


def frozen(width: int, seed: int) -> nn.Module:
    """Return a plain module whose first layer does not train."""
    module = sequential(width, seed)
    next(module.children()).requires_grad_(False)
    return module


def convolution(width: int, seed: int) -> TappedModel:
    """Return a convolutional network with batch normalization."""
    with seeding.scoped(seed, "golden"):
        # Without a bias, see `tests.golden.cases.Noisy`.
        normalized = nn.Conv2d(1, width, 3, padding=1, bias=False)
        module = nn.Sequential(
            nn.Sequential(normalized, nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)),
        )
    return curricle.tapped(module, blocks=["0", "1"], width_axis=1)


def repeated(width: int, seed: int) -> TappedModel:
    """Return a network whose block is called three times."""
    del width
    with seeding.scoped(seed, "golden"):
        return curricle.tapped(Shared(), blocks=["block"], head="head")


def by_path(student: str, teacher: str) -> Any:
    """Return a stage that matches two module paths and logits."""
    pair = LayerPair(student=student, teacher=teacher)
    return only(MatchHidden(pair=pair), MatchLogits(weight=0.5))


class Whitened:
    """Bound objective of a user: the squared distance of normalized logits to 1."""

    def __init__(self) -> None:
        self.adapter = nn.BatchNorm1d(3)

    def count(self, batch: Batch) -> int:
        return batch.num_examples

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        raise NotImplementedError

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Tensor:
        assert student.logits is not None
        states: Tensor = self.adapter(student.logits)
        return (states - 1).square().sum()

    def describe(self) -> tuple[str, str, str, str]:
        return "logits", "whitened", "-", "-"


class Whiten:
    """Objective of a user that trains and counts something beside the student."""

    weight = 0.5
    needs_teacher = False

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        return Reads(student_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> Whitened:
        return Whitened()


ENCODER: dict[str, Any] = {
    "vocab_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def checkpointed(width: int, seed: int) -> nn.Module:
    """Return a classifier of texts that computes its blocks anew in the backward pass."""
    fields: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_labels": 3,
        "use_cache": False,
    }
    with seeding.scoped(seed, "golden"):
        module = transformers.BertForSequenceClassification(
            transformers.BertConfig(**ENCODER, **fields)
        )
    module.activation_checkpointing_enable()
    return module


def translator(width: int, seed: int) -> nn.Module:
    """Return a transformer with an encoder and a decoder."""
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 2 * width, "num_layers": 1, "num_heads": 2}
    fields: dict[str, Any] = {**sizes, "vocab_size": 20, "decoder_start_token_id": 0}
    with seeding.scoped(seed, "golden"):
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**fields))


def read(folder: Path, model: Callable[[int, int], nn.Module], **arguments: Any) -> Performance:
    """Return the performance of a distillation of models that read texts of 6 tokens.

    Args:
        folder: Not used.
        model: Makes a model of a width and a seed.
        **arguments: Further arguments of `distilled`.
    """
    ids = torch.randint(1, 20, (16, 6), generator=torch.Generator().manual_seed(1))
    columns: dict[str, Tensor] = {"input_ids": ids, "labels": ids[:, 0] % 3}
    if model is translator:
        later = ids.flip(1)
        ends = torch.arange(6) > torch.arange(16)[:, None] % 4 + 2
        columns["decoder_input_ids"] = later.roll(1, 1).index_fill(1, torch.tensor([0]), 0)
        columns["labels"] = later.masked_fill(ends, -100)
    items = [{name: column[row] for name, column in columns.items()} for row in range(16)]
    loader: DataLoader[Any] = DataLoader(items, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    data = curricle.stream(loader, seed=1)
    return distilled(
        folder,
        student=model(8, 0),
        teacher=model(16, 1),
        data=data,
        evaluation=[data.batch(step) for step in range(4)],
        optimizer=OPTIMIZER,
        **arguments,
    )


def saved(folder: Path) -> Performance:
    """Return the performance of a progressive distillation from folders of transformers."""
    folders = [folder / f"checkpoint-{step}" for step in (10, 20)]
    for place in folders:
        seed = int(place.name.partition("-")[2])
        checkpointed(16, seed).save_pretrained(place)  # type: ignore[operator]
    checkpoints = hugging_face_trajectory(folders)
    curriculum = progressive(total=TINY, trajectory=checkpoints)
    return read(folder, checkpointed, curriculum=curriculum, trajectory=checkpoints)


MODULES: dict[str, Run] = {
    "plain module by paths": of(classified, sequential, curriculum=by_path("1", "3")),
    "plain module with a frozen layer": of(classified, frozen, curriculum=by_path("3", "1")),
    "convolutions": of(
        classified,
        convolution,
        shape=(1, 5, 5),
        curriculum=extraction(total="8 steps", pairs=1, layer_fraction=0.5),
        optimizer=OPTIMIZER,
    ),
    "block called several times": of(
        classified, repeated, shape=(4,), curriculum=one_shot(total="8 steps")
    ),
    "objective of a user": of(
        classified, sequential, curriculum=only(Whiten(), MatchLogits()), optimizer=OPTIMIZER
    ),
    "classifier of texts with recomputed activations": of(
        read, checkpointed, curriculum=extraction(total=TINY, layer_fraction=0.5)
    ),
    "encoder and decoder": of(read, translator, curriculum=one_shot(total=TINY)),
    "progressive over folders of transformers": saved,
    "loader with padding": of(loaded, next_token=False, family="modernbert"),
    "loader of next tokens": of(loaded, next_token=True, family="llama"),
}


CASES = cases(MODULES)
