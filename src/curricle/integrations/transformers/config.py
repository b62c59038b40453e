"""Arguments of a `CurriculumTrainer`: those of the Trainer, and the curriculum with its teacher.

Names that trainers of TRL have as well are theirs: `teacher_model_name_or_path`,
`teacher_model_init_kwargs`, `temperature`, `beta`, `disable_dropout`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import final

import transformers

from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import STRATEGIES, build
from curricle.errors import SpecError, near_names
from curricle.objectives.divergences import JSD, Divergence, ForwardKL, ReverseKL
from curricle.objectives.logits import MatchLogits
from curricle.teachers.trajectory import Trajectory, hugging_face_trajectory, open_trajectory
from curricle.values import plain

OBJECTIVES: Mapping[str, str] = MappingProxyType(
    {"extraction": "final_objective", "progressive": "objective", "one_shot": "objective"}
)
"""Argument of each strategy that `temperature` and `beta` stand for."""
UNSUPPORTED: Mapping[str, object] = MappingProxyType(
    {
        "auto_find_batch_size": False,
        "deepspeed": None,
        "fp16": False,
        "label_smoothing_factor": 0.0,
        "torch_compile": False,
        "use_liger_kernel": False,
    }
)
"""Arguments of the Trainer that do not go with a curriculum, with the value that they must have."""


@final
@dataclass
class CurriculumConfig(transformers.TrainingArguments):
    """Arguments of a `CurriculumTrainer`.

    The length of the training is that of a `Curriculum`; a strategy by name lasts `max_steps`
    or `num_train_epochs`.
    """

    # Text comes second: parsers of the command line take it as the type of the argument.
    curriculum: Curriculum | str | dict[str, object] | None = field(
        default="one_shot",
        metadata={
            "help": "A Curriculum, or a strategy: its name, or as in a run spec its 'kind' and "
            "arguments, such as {'kind': 'extraction', 'pairs': 2}."
        },
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher, loaded with the head of the student."}
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher."}
    )
    teacher_model_init_kwargs: dict[str, object] | str | None = field(
        default=None, metadata={"help": "Arguments of the teacher's from_pretrained."}
    )
    teacher_checkpoints: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the teacher's checkpoints for progressive curricula: one with "
            "checkpoint-<step> folders of a Trainer, or a trajectory of curricle."
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of both models in a strategy's loss on logits; None is 1."},
    )
    beta: float | None = field(
        default=None,
        metadata={
            "help": "Divergence in a strategy's loss on logits: 0 is forward KL, 1 reverse KL, "
            "between them generalized JSD; None is 0."
        },
    )
    disable_dropout: bool = field(
        default=False, metadata={"help": "Whether dropout of the student is switched off."}
    )
    next_token: bool | None = field(
        default=None,
        metadata={
            "help": "Whether 'labels' are those of their own position and are shifted by one, as "
            "causal models have it; None takes what the student's own loss does."
        },
    )

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - a list in the class that is extended
        *transformers.TrainingArguments._VALID_DICT_FIELDS,  # noqa: SLF001 - fields read as JSON
        "curriculum",
        "teacher_model_init_kwargs",
    ]

    def __post_init__(self) -> None:
        """Check the arguments that concern the curriculum.

        Raises:
            SpecError: If the curriculum is of no known kind, an argument has no effect, or one of
                the Trainer does not go with a curriculum.
        """
        super().__post_init__()
        for name, value in UNSUPPORTED.items():
            if (got := getattr(self, name)) != value:
                raise SpecError(f"{name!r} must be {value!r} with a curriculum; got {got!r}")
        kind = self._kind
        if kind is not None and kind not in STRATEGIES:
            raise SpecError(
                f"'curriculum' {kind!r} is not a strategy; {near_names(kind, STRATEGIES)}"
            )
        if self._has_objective and OBJECTIVES.get(kind or "") is None:
            name = "temperature" if self.temperature is not None else "beta"
            raise SpecError(
                f"{name!r} must be None for a curriculum whose objectives are declared with it, or "
                f"that compares no logits; got {getattr(self, name)}; MatchLogits has "
                f"'student_temperature', 'teacher_temperature' and 'divergence'"
            )

    @property
    def _kind(self) -> str | None:
        """Return the name of the strategy; None for a curriculum that is declared itself."""
        if isinstance(self.curriculum, Curriculum):
            return None
        call = self.curriculum
        return str(call.get("kind") if isinstance(call, Mapping) else call)

    @property
    def _has_objective(self) -> bool:
        return self.temperature is not None or self.beta is not None

    def to_dict(self) -> dict[str, object]:
        """Return the arguments as plain data, as trackers record them."""
        fields: dict[str, object] = super().to_dict()
        if isinstance(self.curriculum, Curriculum):
            fields["curriculum"] = plain(self.curriculum)
        return fields

    def declared_curriculum(self, num_steps: int, trajectory: Trajectory | None) -> Curriculum:
        """Return the curriculum.

        Args:
            num_steps: Length of the training, for a strategy by name.
            trajectory: The teacher's checkpoints, if there are any.

        Raises:
            SpecError: If an argument of the strategy does not fit.
        """
        if isinstance(self.curriculum, Curriculum):
            return self.curriculum
        kind = str(self._kind)
        call: dict[str, object] = {"kind": kind}
        if isinstance(self.curriculum, Mapping):
            call |= self.curriculum
        if self._has_objective:
            name = OBJECTIVES[kind]
            if name in call:
                raise SpecError(
                    f"{name!r} of 'curriculum' must be left out where 'temperature' or 'beta' are "
                    f"given, which stand for it; got both"
                )
            temperature = 1.0 if self.temperature is None else self.temperature
            call[name] = MatchLogits(
                divergence=_divergence(self.beta or 0.0),
                student_temperature=temperature,
                teacher_temperature=temperature,
            )
        if kind == "progressive" and "trajectory" not in call and trajectory is None:
            raise SpecError(
                "'teacher_checkpoints' must be given for a progressive curriculum; got None"
            )
        return build(call, total=Duration(number=num_steps), trajectory=trajectory)

    def trajectory(self) -> Trajectory | None:
        """Return the teacher's checkpoints; None without any."""
        if self.teacher_checkpoints is None:
            return None
        folder = Path(self.teacher_checkpoints)
        folders = sorted(folder.glob("checkpoint-*"))
        return hugging_face_trajectory(folders) if folders else open_trajectory(folder)


def _divergence(beta: float) -> Divergence:
    """Return the divergence of a `beta` between forward and reverse KL.

    Raises:
        SpecError: If it does not lie between 0 and 1.
    """
    if not 0 <= beta <= 1:
        raise SpecError(f"'beta' must lie between 0 and 1; got {beta}")
    if beta == 0:
        return ForwardKL()
    return ReverseKL() if beta == 1 else JSD(beta=beta)
