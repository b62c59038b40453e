"""Make a small network learn from a large one by giving it a curriculum.

    result = curricle.distill(student, teacher, curriculum, data, evaluation=held_out)

The curriculum comes from a strategy: `extraction`, `progressive`, `one_shot` or `from_labels`.
Models are plain modules or Hugging Face models; `tapped` names the places of any other module.
`stream` makes training data of a `DataLoader`.
"""

from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import (
    extraction,
    from_labels,
    one_shot,
    progressive,
    uniform,
)
from curricle.data.loaders import stream
from curricle.data.parity import ParityStream
from curricle.data.streams import Batch, Stream
from curricle.errors import CurricleError
from curricle.models.adapters import tapped
from curricle.models.mlp import MLP
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.outputs import FitLabels, MatchLogits
from curricle.teachers.trajectory import (
    Trajectory,
    hugging_face_trajectory,
    open_trajectory,
)
from curricle.training.distillation import Result, distill
from curricle.training.optimizers import SGD, AdamW, Schedule
from curricle.training.settings import EngineSettings

__all__ = [
    "MLP",
    "SGD",
    "AdamW",
    "Batch",
    "CurricleError",
    "Curriculum",
    "Duration",
    "EngineSettings",
    "FitLabels",
    "LayerPair",
    "MatchHidden",
    "MatchLogits",
    "ParityStream",
    "Result",
    "Schedule",
    "Stage",
    "Stream",
    "Trajectory",
    "distill",
    "extraction",
    "from_labels",
    "hugging_face_trajectory",
    "one_shot",
    "open_trajectory",
    "progressive",
    "stream",
    "tapped",
    "uniform",
]
