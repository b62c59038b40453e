"""How do people distil with the Trainer of transformers?

They override its loss: both models compute all logits, and those at masked positions are compared.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments
from work import BETAS, IGNORED, Lesson, kl


class Distilling(Trainer):
    """The Trainer of transformers with a loss of one's own, as people write it."""

    def __init__(self, lesson: Lesson, maps: list[nn.Module], **keywords: Any) -> None:  # noqa: ANN401
        """Take what is taught; `maps` may be empty."""
        self.lesson, self.maps = lesson, maps
        self.first: float | None = None
        super().__init__(model=lesson.student, train_dataset=lesson.rows(), **keywords)

    def get_train_dataloader(self) -> Any:  # noqa: ANN401
        """Return ready batches."""
        return self.lesson.loader()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002
        num_items_in_batch: Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the divergence at the masked positions, and the errors of the hidden states."""
        del num_items_in_batch
        chosen = inputs.pop("labels") != IGNORED
        wanted = {"output_hidden_states": bool(self.maps)}
        student = model(**inputs, **wanted)
        with torch.no_grad():
            teacher = self.lesson.teacher(**inputs, **wanted)
        loss = kl(student.logits[chosen], teacher.logits[chosen])
        for layer, mapped in enumerate(self.maps, start=1):
            states = mapped(student.hidden_states[layer])
            loss = loss + functional.mse_loss(states, teacher.hidden_states[layer])
        if self.first is None:
            self.first = float(loss.detach())
        return (loss, student) if return_outputs else loss


def arguments(folder: str, **given: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return arguments of a Trainer that writes nothing and runs on the CPU."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "weight_decay": 0.0,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        **given,
    }


def constant(lesson: Lesson) -> dict[str, Any]:
    """Return arguments for a constant rate without clipping."""
    return {
        "max_steps": lesson.steps,
        "learning_rate": lesson.rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }


def with_trainer(lesson: Lesson) -> float:
    """Return the first loss of a Trainer."""
    maps = lesson.maps()
    optimizer = lesson.optimizer(lesson.student, *maps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Distilling(
            lesson,
            maps,
            args=TrainingArguments(**arguments(folder, **constant(lesson))),
            optimizers=(optimizer, None),
        )
        trainer.train()
    assert trainer.first is not None
    return trainer.first


class Watching(TrainerCallback):
    """Tells a function of every step that is done."""

    def __init__(self, done: Callable[[int], None]) -> None:
        """Take the function."""
        self._done = done

    def on_step_end(self, _args: object, state: Any, _control: object, **_more: object) -> None:  # noqa: ANN401
        """Tell the number of steps."""
        self._done(state.global_step)
