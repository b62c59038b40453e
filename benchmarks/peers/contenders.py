"""How is the same step taken with each library, as its own documentation has it?

A contender takes the steps of a lesson and returns the loss of the first one. Packages are imported
where they are used, so that curricle and the Trainer need no peer.

Accommodations, none of which makes a peer slower: every one reads ready batches, so that all see
the same masks. None passes the labels to the models, which would compute a cross-entropy that
nobody reads. TextBrewer's soft cross-entropy has the gradient of the KL; the teacher's entropy is
taken off the loss that is told, and the maps are its own but for the bias. GKD's default of
recomputing activations is switched off. torchdistill imports torchvision, see `work`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import SequentialSampler
from work import BETAS, IGNORED, Lesson, kl

import curricle
from curricle.data.text.tokenizing import open_tokenizer
from curricle.objectives.projections import Learned
from curricle.records import Record, StepRecord

Contender = Callable[[Lesson], float]


def with_curricle(lesson: Lesson) -> float:
    """Return the first loss of curricle: hidden states and logits in one stage of one's own."""
    hidden = [
        curricle.MatchHidden(pair=pair, projection=Learned(), normalize="none")
        for pair in lesson.pairs()
    ]
    return _staged(lesson, *hidden, curricle.MatchLogits())


def with_curricle_logits(lesson: Lesson) -> float:
    """Return the first loss of curricle, on logits only."""
    return _staged(lesson, curricle.MatchLogits())


def with_curricle_chunks(lesson: Lesson) -> float:
    """Return the first loss of curricle, on logits only and in chunks."""
    return _staged(lesson, curricle.MatchLogits(chunk=512))


def _staged(lesson: Lesson, *objectives: curricle.MatchHidden | curricle.MatchLogits) -> float:
    stage = curricle.Stage(name="all", duration=f"{lesson.steps} steps", objectives=objectives)
    losses: list[float] = []

    def note(record: Record) -> None:
        if isinstance(record, StepRecord):
            losses.append(record.loss)

    curricle.distill(
        lesson.student,
        lesson.teacher,
        curricle.Curriculum(name="joint", stages=(stage,)),
        lesson.stream,
        evaluation=lambda _model: {"none": 0.0},
        metric="none",
        optimizer=curricle.AdamW(learning_rate=lesson.rate, schedule=curricle.Schedule()),
        settings=curricle.TrainingSettings(device="cpu", log_every=1, threads=1),
        observers=[note],
    )
    return losses[0]


def with_trainer(lesson: Lesson) -> float:
    """Return the first loss of a Trainer of transformers."""
    from hf_trainer import with_trainer as taken  # noqa: PLC0415

    return taken(lesson)


def with_textbrewer(lesson: Lesson) -> float:
    """Return the first loss of TextBrewer."""
    import textbrewer  # noqa: PLC0415
    from textbrewer.presets import PROJ_MAP  # noqa: PLC0415

    maps, chosen, losses = iter(lesson.maps()), [], []
    entropy = _entropy(lesson)
    PROJ_MAP["given"] = lambda _inputs, _outputs: next(maps)

    def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen[:] = [batch.pop("labels") != IGNORED]
        return batch

    def shown(_batch: object, outputs: Any) -> dict[str, Any]:  # noqa: ANN401
        return {
            "logits": outputs.logits,
            "logits_mask": chosen[0],
            "hidden": outputs.hidden_states,
        }

    matches = [
        {
            "layer_T": pair.teacher,
            "layer_S": pair.student,
            "feature": "hidden",
            "loss": "hidden_mse",
            "weight": 1,
            "proj": ["given", lesson.work.narrow, lesson.work.wide],
        }
        for pair in lesson.pairs()
    ]
    with tempfile.TemporaryDirectory() as folder:
        distiller = textbrewer.GeneralDistiller(
            textbrewer.TrainingConfig(device="cpu", output_dir=folder, ckpt_steps=10**9),
            textbrewer.DistillationConfig(
                temperature=1, kd_loss_type="ce", intermediate_matches=matches
            ),
            lesson.teacher,
            lesson.student,
            shown,
            shown,
        )
        distiller.tb_writer = SimpleNamespace(
            add_scalar=lambda name, loss, _step: losses.append(loss) if "total" in name else None
        )
        with distiller:
            distiller.train(
                lesson.optimizer(lesson.student),
                lesson.loader(),
                num_steps=lesson.steps,
                batch_postprocessor=without_labels,
                output_hidden_states=True,
            )
    return losses[0] - entropy


def _entropy(lesson: Lesson) -> float:
    """Return the mean entropy of the teacher's predictions in the first batch."""
    first = lesson.rows()[0]
    chosen = first.pop("labels") != IGNORED
    with torch.no_grad():
        logs = functional.log_softmax(lesson.teacher(**first).logits[chosen], dim=-1)
    return float(-(logs.exp() * logs).sum(-1).mean())


def with_torchdistill(lesson: Lesson) -> float:
    """Return the first loss of torchdistill."""
    from torchdistill.core.distillation import get_distillation_box  # noqa: PLC0415
    from torchdistill.models.wrapper import AuxiliaryModelWrapper  # noqa: PLC0415

    taps = curricle.tapped(lesson.student), curricle.tapped(lesson.teacher)
    places = [
        (taps[0].place(pair.student).path, taps[1].place(pair.teacher).path)
        for pair in lesson.pairs()
    ]

    class Mapped(AuxiliaryModelWrapper):  # type: ignore[misc]
        """The student with maps of its hidden states beside it."""

        def __init__(self) -> None:
            """Take the models."""
            super().__init__()
            self.student, self.maps = lesson.student, nn.ModuleList(lesson.maps())

        def forward(self, **inputs: Tensor) -> Any:  # noqa: ANN401
            """Return what the student returns."""
            return self.student(**inputs)

        def secondary_forward(self, shown: dict[str, dict[str, Tensor]]) -> None:
            """Map the hidden states."""
            for one, (student, _) in zip(self.maps, places, strict=True):
                one(shown[f"student.{student}"]["output"])

    terms: dict[str, Any] = {
        f"hidden {number}": {
            "criterion": {"key": "MSELoss", "kwargs": {}},
            "criterion_wrapper": {
                "key": "SimpleLossWrapper",
                "kwargs": {
                    "input": {
                        "is_from_teacher": False,
                        "module_path": f"maps.{number}",
                        "io": "output",
                    },
                    "target": {"is_from_teacher": True, "module_path": teacher, "io": "output"},
                },
            },
            "weight": 1.0,
        }
        for number, (_, teacher) in enumerate(places)
    }
    terms["logits"] = {"criterion": SelectedKL(), "weight": 1.0}
    hooked = [f"student.{student}" for student, _ in places]
    hooked += [f"maps.{number}" for number in range(len(places))]
    box = get_distillation_box(
        lesson.teacher,
        Mapped(),
        {"train": Labeled(lesson)},
        {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": SequentialSampler},
                "kwargs": {"batch_size": None},
            },
            "teacher": {
                "forward_proc": "forward_batch_only_as_kwargs",
                "requires_grad": False,
                "forward_hook": {"output": [teacher for _, teacher in places]},
            },
            "student": {
                "forward_proc": "forward_batch_only_as_kwargs",
                "forward_hook": {"output": hooked},
            },
            "optimizer": {
                "key": "AdamW",
                "kwargs": {"lr": lesson.rate, "betas": BETAS, "weight_decay": 0.0, "fused": True},
            },
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
        },
        torch.device("cpu"),
        device_ids=None,
        distributed=False,
        lr_factor=1,
    )
    losses: list[float] = []
    box.pre_epoch_process(epoch=0)
    loader = iter(box.train_data_loader)
    for _ in range(lesson.steps):
        inputs, labels, more = next(loader)
        loss = box.forward_process(inputs, labels, more)
        box.post_forward_process(loss)
        losses.append(float(loss.detach()))
    return losses[0]


class Labeled(torch.utils.data.Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Ready batches with their labels apart."""

    def __init__(self, lesson: Lesson) -> None:
        """Take the lesson."""
        self._rows = lesson.rows()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._rows)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs and labels."""
        inputs = self._rows[step]
        return inputs, inputs.pop("labels")


class SelectedKL(nn.Module):
    """A loss of torchdistill: the divergence at the masked positions."""

    def forward(self, student: dict[str, Any], teacher: dict[str, Any], labels: Tensor) -> Tensor:
        """Return the mean over these positions."""
        chosen = labels != IGNORED
        return kl(student["."]["output"].logits[chosen], teacher["."]["output"].logits[chosen])


def with_trl(lesson: Lesson) -> float:
    """Return the first loss of TRL's GKD on given texts, by forward KL."""
    from datasets import Dataset  # noqa: PLC0415
    from hf_trainer import arguments, constant  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # noqa: PLC0415

    class Ready(GKDTrainer):  # type: ignore[misc]
        """GKD on ready batches."""

        first: float | None = None

        def get_train_dataloader(self) -> Any:  # noqa: ANN401
            """Return ready batches."""
            return lesson.loader()

        def compute_loss(self, *given: Any, **keywords: Any) -> Any:  # noqa: ANN401
            """Return the loss of GKD and note the first."""
            loss = super().compute_loss(*given, **keywords)
            if self.first is None:
                self.first = float(loss.detach())
            return loss

    work = lesson.work
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=open_tokenizer(
            work.corpus, vocabulary_size=work.vocabulary, cache_dir=Path(work.cache)
        ),
        pad_token="<pad>",
        eos_token="<bos>",
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(
            folder,
            **constant(lesson),
            lmbda=0.0,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = Ready(
            model=lesson.student,
            teacher_model=lesson.teacher,
            args=GKDConfig(**settings),
            # Not read, but its kind is looked at.
            train_dataset=Dataset.from_dict({"input_ids": [[0]]}),
            processing_class=tokenizer,
            optimizers=(lesson.optimizer(lesson.student), None),
        )
        trainer.train()
    assert trainer.first is not None
    return trainer.first


MASKED: dict[str, Contender] = {
    "curricle": with_curricle,
    "Trainer": with_trainer,
    "TextBrewer": with_textbrewer,
    "torchdistill": with_torchdistill,
}
CAUSAL: dict[str, Contender] = {
    "curricle": with_curricle_logits,
    "curricle, chunks": with_curricle_chunks,
    "TRL GKD": with_trl,
}
NEEDS = {
    "Trainer": "accelerate",
    "TextBrewer": "textbrewer",
    "torchdistill": "torchdistill",
    "TRL GKD": "trl",
}
"""The package that a contender needs."""
