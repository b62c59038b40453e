"""Checks of the statements about random projections of a hidden layer.

`correlation-gap` looks at a network trained by gradient descent along its training, and beside it
at the closed form of the analysis; `theorem-check` runs the two-stage training of the theorem.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from curricle.figure_points import Chart, Point
from curricle.models.mlp import MLP, MLPSpec
from curricle.runs.assemble import TRAJECTORY
from curricle.runs.folder import TEACHER
from curricle.runs.train import teach
from curricle.seeding import numpy_generator, scoped
from curricle.teachers.trajectory import open_trajectory
from curricle_papers.recipes.recipe import Recipe, Scale
from curricle_papers.recipes.sparse_parity import parity_size
from curricle_papers.theorem import (
    CorrelationGap,
    TheoremSpec,
    correlation_gap,
    theorem_check,
    trained_teacher,
)
from curricle_papers.theory.networks import draw_inputs

NUM_EXAMPLES: dict[Scale, int] = {"smoke": 500, "small": 20_000, "paper": 20_000}
NUM_PROJECTIONS: dict[Scale, int] = {"smoke": 10, "small": 200, "paper": 200}
NUM_CHECKPOINTS = 6
"""Places along the teacher's training that are shown."""
EXACT = "closed form"


def _gaps(scale: Scale, folder: Path) -> Iterator[Point]:
    spec = replace(parity_size(scale), output_dir=str(folder / "teacher-run"))
    teach(spec)
    task, model = spec.task, spec.teacher.model
    assert task.kind == "parity"  # noqa: S101 - for the type checker, as `parity_size` makes it
    assert isinstance(model, MLPSpec)  # noqa: S101 - as above
    inputs = draw_inputs(NUM_EXAMPLES[scale], task.num_inputs, numpy_generator(0, "recipe/inputs"))
    with scoped(0, "recipe/network"):
        network = MLP(task.num_inputs, model.widths, 2)
    trajectory = open_trajectory(spec.folder / TEACHER / TRAJECTORY)
    checkpoints = np.linspace(0, len(trajectory.steps) - 1, NUM_CHECKPOINTS).round().astype(int)
    for step in dict.fromkeys(trajectory.steps[place] for place in checkpoints):
        trajectory.load(network, step)
        with torch.no_grad():
            hidden = network.blocks[0](torch.from_numpy(inputs).float()).double().numpy()
        yield from _points(f"step {step}", hidden, inputs, degree=task.degree, scale=scale)
    if scale == "smoke":
        return
    exact = TheoremSpec(num_inputs=task.num_inputs, degree=task.degree, teacher_width=1024)
    teacher = trained_teacher(exact, seed=0)
    yield from _points(EXACT, teacher.hidden(inputs), inputs, degree=task.degree, scale=scale)


def _points(
    place: str,
    hidden: Float[np.ndarray, "example neuron"],
    inputs: Float[np.ndarray, "example input"],
    *,
    degree: int,
    scale: Scale,
) -> Iterator[Point]:
    gap = correlation_gap(
        hidden=hidden,
        inputs=inputs,
        support_size=degree,
        num_projections=NUM_PROJECTIONS[scale],
        seed=0,
    )
    for series, values in _parts(gap, degree).items():
        for number, number_ in enumerate(values):
            yield Point(series=series, x=place, y=number_, seed=number)


def _parts(gap: CorrelationGap, degree: int) -> dict[str, list[float]]:
    """Return the correlations with the support, and with as many other coordinates."""
    off_support = gap.off_support[:, :degree]
    return {
        "in support": gap.in_support.ravel().tolist(),
        "off support": off_support.ravel().tolist(),
    }


CORRELATION_GAP = Recipe(
    name="correlation-gap",
    title="Random projections of the teacher's hidden layer correlate with the support",
    source="2503.17494 Fig 2, Lemma 4.4",
    known=(
        "(100,6), two-layer network: over projections the correlations spread clearly more on the "
        "support than off it"
    ),
    costs={"smoke": "seconds", "small": "2 min", "paper": "one GPU, half an hour"},
    chart=Chart(
        kind="spread",
        x="teacher's training",
        y="correlation E[(A h)(x) x_j]",
    ),
    measure=_gaps,
)


def _checks(scale: Scale, folder: Path) -> Iterator[Point]:
    del folder
    spec, seeds = {
        "smoke": (
            TheoremSpec(num_examples=(500,), readout_examples=2000, test_examples=1000),
            (0,),
        ),
        "small": (
            TheoremSpec(
                num_examples=(500, 2000, 8000, 20_000),
                methods=(
                    "vector",
                    "vector_uncentered",
                    "scalar",
                    "scalar_uncentered",
                    "one_shot",
                ),
            ),
            (0, 1, 2, 3, 4),
        ),
        "paper": (
            TheoremSpec(
                num_inputs=100,
                degree=6,
                teacher_width=1024,
                student_width=512,
                num_examples=(2000, 20_000),
            ),
            (0, 1, 2, 3, 4),
        ),
    }[scale]
    for row in theorem_check(spec, seeds=seeds):
        numbers = {
            "accuracy": row.accuracy,
            "gradient in / off support": row.gradient_ratio,
            "finds the support": float(row.finds_support),
        }
        for panel, number in numbers.items():
            yield Point(
                panel=panel,
                series=row.method,
                x=float(row.num_examples),
                y=number,
                seed=row.seed,
            )


THEOREM_CHECK = Recipe(
    name="theorem-check",
    title="One gradient step on random projections finds the support; one on labels does not",
    source="2503.17494 Theorem 4.3, Algorithms 1 and 2",
    known=(
        "extraction needs 2^O(k) poly(d) examples, one-shot d^Omega(k); the numbers at (50,4) that "
        "docs/theory.md lists are our own"
    ),
    costs={"smoke": "seconds", "small": "2 min", "paper": "5 min on a CPU"},
    chart=Chart(kind="lines", x="examples of the student's first step", y="", log_x=True),
    measure=_checks,
)

RECIPES = (CORRELATION_GAP, THEOREM_CHECK)
