"""The losses of one small run, held to literal numbers, so that no refactor changes them unseen.

The numbers were written down from a first run; what they mean is tested elsewhere. Layer 1 is
fitted for 6 steps and the logits for 18. Change them only with a changelog line that says why
training differs.
"""

import pytest
import torch

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import extraction
from curricle.data.synthetic.parity import ParityStream
from curricle.models.mlp import MLP
from curricle.records import EndRecord, StepRecord
from curricle.training.distill import distill
from curricle.training.setup.optimizers import AdamW
from curricle.training.setup.settings import TrainingSettings

LOSSES = [
    0.53384972,
    0.4810333,
    0.0088787405,
    0.018777,
    0.0056599197,
    0.0056785485,
    0.0052439515,
    0.0074598417,
]
RATES = [
    0.00998480441178,
    0.00939806623075,
    0.00805484316712,
    0.00618617492978,
    0.00411347988716,
    0.0021932698296,
    0.000755828523577,
    4.84015903653e-05,
]
METRICS = {"accuracy": 0.609375, "nll": 0.66881931}


@pytest.fixture(scope="module")
def records() -> list[object]:
    """Return what a run of 24 steps tells."""
    torch.set_num_threads(1)
    with seeding.scoped(7, "golden"):
        teacher, student = MLP(10, (32,), 2), MLP(10, (8,), 2)
    seen: list[object] = []
    distill(
        student,
        teacher,
        extraction(total=Duration(number=24)),
        ParityStream(num_inputs=10, degree=3, batch_size=16, seed=7),
        evaluation=[
            ParityStream(
                num_inputs=10, degree=3, batch_size=64, seed=7, purpose="evaluation"
            ).batch(0)
        ],
        optimizer=AdamW(learning_rate=0.01, weight_decay=0.1),
        settings=TrainingSettings(device="cpu", log_every=3),
        seed=7,
        observers=[seen.append],
    )
    return seen


def test_the_losses_have_not_changed(records: list[object]) -> None:
    losses = [record.loss for record in records if isinstance(record, StepRecord)]
    assert losses == pytest.approx(LOSSES, rel=1e-5)


def test_the_learning_rates_have_not_changed(records: list[object]) -> None:
    rates = [record.learning_rate for record in records if isinstance(record, StepRecord)]
    assert rates == pytest.approx(RATES, rel=1e-9)


def test_the_metrics_have_not_changed(records: list[object]) -> None:
    (end,) = (record for record in records if isinstance(record, EndRecord))
    assert end.metrics == pytest.approx(METRICS, rel=1e-5)
