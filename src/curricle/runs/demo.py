"""Specs of the demos.

Two small comparisons that need no file: sparse parity, where a curriculum saves most of the
examples, and masked language modeling on the shipped text. Both are ordinary run specs; the
stage lengths come from the search that the journal records.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from curricle.curriculum.durations import Duration
from curricle.errors import SpecError, near_names
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.mlp import MLPSpec
from curricle.runs.budget import Budget
from curricle.runs.spec import Goal, RunSpec, StrategySpec, TeacherSpec
from curricle.tasks import ParityTask, TextTask
from curricle.training.setup.optimizers import SGD, AdamW
from curricle.training.setup.settings import TrainingSettings


def parity_demo(output_dir: str) -> RunSpec:
    """Return the comparison on (100,4)-parity: teacher 2,000 wide, students 100 wide."""
    return RunSpec(
        output_dir=output_dir,
        task=ParityTask(num_inputs=100, degree=4, batch_size=64),
        teacher=TeacherSpec(
            model=MLPSpec(widths=(2000,)),
            total=Duration(number=12_500),
            checkpoints=25,
        ),
        student=MLPSpec(widths=(100,)),
        strategies={
            "one_shot": StrategySpec(curriculum={"kind": "one_shot"}),
            "from_labels": StrategySpec(curriculum={"kind": "from_labels"}),
            "progressive": StrategySpec(
                curriculum={
                    "kind": "progressive",
                    "trajectory": [11_000, 12_500],
                    "durations": ["1000 steps"],
                }
            ),
            "extraction": StrategySpec(
                curriculum={"kind": "extraction", "durations": ["750 steps"]}
            ),
            "auto": StrategySpec(curriculum={"kind": "auto"}),
        },
        seeds=(0, 1, 2),
        budget=Budget(number=60_000, unit="steps"),
        goal=Goal(number=0.99, ends_run=True),
        optimizer=SGD(learning_rate=0.3),
        engine=TrainingSettings(eval_every=100, log_every=100, threads=1),
    )


def text_demo(output_dir: str) -> RunSpec:
    """Return the comparison on the shipped text: small pre-norm encoders, masked tokens."""
    return RunSpec(
        output_dir=output_dir,
        task=TextTask(vocabulary_size=1024, window=64, batch_size=32),
        teacher=TeacherSpec(
            model=_encoder(layers=3, width=128, heads=4),
            total=Duration(number=600),
            optimizer=AdamW(learning_rate=3e-3),
        ),
        student=_encoder(layers=3, width=48, heads=4),
        strategies={
            "from_labels": StrategySpec(curriculum={"kind": "from_labels"}),
            "one_shot": StrategySpec(curriculum={"kind": "one_shot"}),
            "progressive": StrategySpec(curriculum={"kind": "progressive"}),
            "extraction": StrategySpec(
                curriculum={
                    "kind": "extraction",
                    "pairs": [{"student": tap, "teacher": tap} for tap in (1, 2)],
                    "shared_projection": True,
                    "layer_fraction": 0.3,
                }
            ),
        },
        seeds=(0,),
        budget=Budget(number=600, unit="steps"),
        goal=Goal(final_of="one_shot"),
        optimizer=AdamW(learning_rate=6e-3),
        engine=TrainingSettings(
            precision="bfloat16", max_grad_norm=1.0, eval_every=50, log_every=25, threads=1
        ),
    )


DEMOS: Mapping[str, Callable[[str], RunSpec]] = MappingProxyType(
    {"parity": parity_demo, "text": text_demo}
)
"""The demos by name."""


def demo_spec(name: str, output_dir: str) -> RunSpec:
    """Return the spec of a demo.

    Raises:
        SpecError: If there is no such demo.
    """
    if name not in DEMOS:
        raise SpecError(f"{name!r} is not a demo; {near_names(name, DEMOS)}")
    return DEMOS[name](output_dir)


def _encoder(*, layers: int, width: int, heads: int) -> HuggingFaceSpec:
    return HuggingFaceSpec(
        # Rotary positions: encoders with absolute ones need far more steps than a demo has.
        model_type="modernbert",
        config={
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": 2 * width,
        },
    )
