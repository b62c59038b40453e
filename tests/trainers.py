"""Tiny models, data and trainings for tests of other training loops than the library's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.curriculum import Curriculum
from curricle.integrations.transformers import CurriculumConfig, CurriculumTrainer
from curricle.records import Record, StepRecord

NUM_IDS, LENGTH, EXAMPLES, SIZE = 24, 10, 24, 4


def model(kind: str, width: int, seed: int) -> Any:
    """Return a tiny model without dropout."""
    common: dict[str, Any] = {"vocab_size": NUM_IDS, "num_labels": 3}
    no_dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with seeding.scoped(seed, "trainer model"):
        if kind == "next_token":
            gpt = transformers.GPT2Config(
                n_embd=width, n_layer=2, n_head=2, n_positions=LENGTH, **common,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            return transformers.GPT2LMHeadModel(gpt)
        bert = transformers.BertConfig(
            hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=LENGTH, **common, **no_dropout,
        )  # fmt: skip
        if kind == "masked":
            return transformers.BertForMaskedLM(bert)
        return transformers.BertForSequenceClassification(bert)


def examples(kind: str, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return examples of unequal numbers of labels and of padding."""
    generator = seeding.generator(seed, "trainer data")
    items: list[dict[str, Tensor]] = []
    for number in range(EXAMPLES):
        ids = torch.randint(2, NUM_IDS, (LENGTH,), generator=generator)
        mask = torch.ones(LENGTH, dtype=torch.long)
        mask[LENGTH - number % 4 :] = 0
        if kind == "classes":
            labels = ids[0] % 3
        else:
            labels = ids.masked_fill(mask == 0, -100)
            labels[: 1 + number % 3] = -100
        if kind == "masked":
            hidden = torch.rand(LENGTH, generator=generator) < 0.4
            labels = labels.masked_fill(~hidden, -100)
            labels[5] = ids[5]
            ids = ids.masked_fill(labels != -100, 1)
        items.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return items


def config(folder: Path, **fields: Any) -> CurriculumConfig:
    """Return arguments that keep the order of the data, and log every step."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": SIZE,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return CurriculumConfig(**(defaults | fields))


def trained(
    kind: str, folder: Path, *, teacher: Any = None, optimizer: Any = None, **fields: Any
) -> CurriculumTrainer:
    """Return a Trainer after its training."""
    student = model(kind, 8, 0)
    trainer = CurriculumTrainer(
        student,
        model(kind, 16, 1) if teacher is None else teacher,
        config(folder, **fields),
        examples(kind),
        examples(kind, seed=1),
    )
    if optimizer is not None:
        trainer.optimizer = optimizer(student.parameters())
    trainer.train()
    return trainer


def losses(trainer: CurriculumTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def student_of(trainer: CurriculumTrainer) -> nn.Module:
    assert trainer.model is not None
    return trainer.model


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def engine(
    kind: str,
    curriculum: Curriculum,
    *,
    optimizer: Any,
    batch_size: int = SIZE,
    trajectory: Any = None,
    **settings: Any,
) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses and weights of the library's own loop on the same batches."""
    student, records = model(kind, 8, 0), list[Record]()
    data = curricle.stream(
        DataLoader(examples(kind), batch_size=batch_size),  # type: ignore[arg-type]
        next_token=kind == "next_token",
    )
    curricle.distill(
        student,
        model(kind, 16, 1),
        curriculum,
        data,
        evaluation=lambda _: {"score": 0.0},
        metric="score",
        optimizer=optimizer,
        trajectory=trajectory,
        # The clipping of the Trainer.
        settings=curricle.TrainingSettings(
            device="cpu", log_every=1, max_grad_norm=1.0, **settings
        ),
        seed=42,
        observers=[records.append],
    )
    return [record.loss for record in records if isinstance(record, StepRecord)], weights(student)


def same_as_engine(
    trainer: CurriculumTrainer, expected: tuple[list[float], dict[str, Tensor]]
) -> None:
    assert losses(trainer) == pytest.approx(expected[0], rel=2e-6)
    assert len(expected[0]) == trainer.state.global_step
    for name, weight in weights(student_of(trainer)).items():
        assert torch.allclose(weight, expected[1][name], rtol=1e-5, atol=2e-7), name
