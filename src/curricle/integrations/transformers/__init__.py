"""Distillation in the Trainer of transformers: `CurriculumTrainer` and `CurriculumConfig`."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.integrations.transformers.config import CurriculumConfig as CurriculumConfig
    from curricle.integrations.transformers.trainer import CurriculumTrainer as CurriculumTrainer
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__, {"config": ("CurriculumConfig",), "trainer": ("CurriculumTrainer",)}
    )
