"""Knowledge distillation with a curriculum, for PyTorch and Hugging Face models.

    result = curricle.distill(student, teacher, curriculum, data, evaluation=held_out)

A curriculum comes from a strategy: `extraction`, `progressive`, `one_shot` or `from_labels`.
Models are plain modules or Hugging Face models; `tapped` names the layers of any other module.
`stream` makes training data of a `DataLoader`.

Design: public names are imported on first use (PEP 562), so that reports, records and the help of
the command line work without torch.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from curricle.renamed import RENAMED

_HOMES = MappingProxyType(
    {
        "AdamW": "curricle.training.setup.optimizers",
        "Batch": "curricle.data.streams",
        "Comparison": "curricle.runs.compare",
        "CurricleError": "curricle.errors",
        "Curriculum": "curricle.curriculum.stages",
        "Duration": "curricle.curriculum.durations",
        "TrainingSettings": "curricle.training.setup.settings",
        "LabelLoss": "curricle.objectives.labels",
        "LayerPair": "curricle.objectives.hidden",
        "MLP": "curricle.models.mlp",
        "Metric": "curricle.metrics",
        "MatchHidden": "curricle.objectives.hidden",
        "MatchLogits": "curricle.objectives.logits",
        "ParityStream": "curricle.data.synthetic.parity",
        "PrincipalStart": "curricle.curriculum.initialization",
        "RandomStart": "curricle.curriculum.initialization",
        "Result": "curricle.training.distill",
        "SGD": "curricle.training.setup.optimizers",
        "Schedule": "curricle.training.setup.optimizers",
        "Stage": "curricle.curriculum.stages",
        "Stream": "curricle.data.streams",
        "TargetCompression": "curricle.training.targets.capture",
        "Trajectory": "curricle.teachers.trajectory",
        "UntilMetric": "curricle.curriculum.durations",
        "UntilPlateau": "curricle.curriculum.durations",
        "capture_targets": "curricle.training.distill",
        "compare": "curricle.runs.compare",
        "distill": "curricle.training.distill",
        "extraction": "curricle.curriculum.strategies",
        "from_labels": "curricle.curriculum.strategies",
        "hugging_face_trajectory": "curricle.teachers.trajectory",
        "one_shot": "curricle.curriculum.strategies",
        "open_targets": "curricle.teachers.stored",
        "open_trajectory": "curricle.teachers.trajectory",
        "progressive": "curricle.curriculum.strategies",
        "stream": "curricle.data.dataloaders",
        "tapped": "curricle.models.families",
        "evenly_spaced_pairs": "curricle.curriculum.strategies",
    }
)
"""The module that each public name comes from."""
__all__ = sorted(_HOMES)  # noqa: PLE0605

if TYPE_CHECKING:
    from curricle.curriculum.durations import Duration as Duration
    from curricle.curriculum.durations import UntilMetric as UntilMetric
    from curricle.curriculum.durations import UntilPlateau as UntilPlateau
    from curricle.curriculum.initialization import PrincipalStart as PrincipalStart
    from curricle.curriculum.initialization import RandomStart as RandomStart
    from curricle.curriculum.stages import Curriculum as Curriculum
    from curricle.curriculum.stages import Stage as Stage
    from curricle.curriculum.strategies import evenly_spaced_pairs as evenly_spaced_pairs
    from curricle.curriculum.strategies import extraction as extraction
    from curricle.curriculum.strategies import from_labels as from_labels
    from curricle.curriculum.strategies import one_shot as one_shot
    from curricle.curriculum.strategies import progressive as progressive
    from curricle.data.dataloaders import stream as stream
    from curricle.data.streams import Batch as Batch
    from curricle.data.streams import Stream as Stream
    from curricle.data.synthetic.parity import ParityStream as ParityStream
    from curricle.errors import CurricleError as CurricleError
    from curricle.metrics import Metric as Metric
    from curricle.models.families import tapped as tapped
    from curricle.models.mlp import MLP as MLP
    from curricle.objectives.hidden import LayerPair as LayerPair
    from curricle.objectives.hidden import MatchHidden as MatchHidden
    from curricle.objectives.labels import LabelLoss as LabelLoss
    from curricle.objectives.logits import MatchLogits as MatchLogits
    from curricle.runs.compare import Comparison as Comparison
    from curricle.runs.compare import compare as compare
    from curricle.teachers.stored import open_targets as open_targets
    from curricle.teachers.trajectory import Trajectory as Trajectory
    from curricle.teachers.trajectory import hugging_face_trajectory as hugging_face_trajectory
    from curricle.teachers.trajectory import open_trajectory as open_trajectory
    from curricle.training.distill import Result as Result
    from curricle.training.distill import capture_targets as capture_targets
    from curricle.training.distill import distill as distill
    from curricle.training.setup.optimizers import SGD as SGD
    from curricle.training.setup.optimizers import AdamW as AdamW
    from curricle.training.setup.optimizers import Schedule as Schedule
    from curricle.training.setup.settings import TrainingSettings as TrainingSettings
    from curricle.training.targets.capture import TargetCompression as TargetCompression

else:

    def __getattr__(name: str) -> object:
        """Return a public name, imported on first use.

        Raises:
            AttributeError: If there is no such name.
        """
        if name not in _HOMES:
            new = RENAMED.get(name)
            hint = f"; it is now named {new!r}" if new in _HOMES else ""
            raise AttributeError(f"module 'curricle' has no attribute {name!r}{hint}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
