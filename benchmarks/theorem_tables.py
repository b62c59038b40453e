"""The tables of docs/theory.md, made again: coefficients, spreads, and one step of a student.

    python benchmarks/theorem_tables.py

takes about a minute on one core and prints Markdown. Columns that are closed forms do not change;
the others are means over seeds 0, 1 and 2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from curricle.objectives.projections import Gaussian, Sign
from curricle.seeding import numpy_generator
from curricle_papers.theorem import (
    TheoremRow,
    TheoremSpec,
    correlation_gap,
    theorem_check,
    trained_teacher,
)
from curricle_papers.theory.fourier import (
    bias_grid,
    off_support_factor,
    root_mean_square,
    threshold_coefficient,
    unit_coefficient,
)
from curricle_papers.theory.gradient_correlations import (
    extraction_examples,
    label_examples,
    predicted_gradient_ratio,
    predicted_spread,
)
from curricle_papers.theory.networks import draw_inputs

SEEDS = (0, 1, 2)
LARGE = TheoremSpec(
    methods=("vector", "vector_uncentered", "scalar", "scalar_uncentered", "one_shot")
)
LARGER = replace(LARGE, num_inputs=100, degree=6, student_width=512, num_examples=(2000, 20_000))
SAMPLED = replace(
    LARGE,
    num_inputs=20,
    degree=3,
    num_examples=(500, 2000, 8000),
    methods=("vector", "one_shot"),
    teacher_width=256,
    teacher_examples=500_000,
)


def show(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table."""
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def show_coefficients() -> None:
    """Print the closed forms."""
    gates = [float(threshold_coefficient(100, order, bias=0.5)) for order in (0, 1, 3, 5, 7)]
    units = [float(unit_coefficient(6, bias=bias)) for bias in bias_grid(6)]
    print("xi_0, xi_1, xi_3, xi_5, xi_7 at d = 100:", *(f"{gate:.4g}" for gate in gates))
    print("phi_b at k = 6, b = -5/6 ... 5/6:", *(f"{unit:.4f}" for unit in units))
    show(
        "Closed forms",
        ("(d,k)", "off / on, weights", "rms(phi)", "1 / xi^2", "d / rms(phi)^2"),
        (
            (
                (d, k),
                f"{float(off_support_factor(d, k)):.3f}",
                f"{root_mean_square(k):.4f}",
                f"{label_examples(d, k):.2g}",
                f"{extraction_examples(d, k):.2g}",
            )
            for d, k in ((20, 3), (30, 4), (50, 4), (100, 4), (100, 6))
        ),
    )


def show_spreads() -> None:
    """Print spreads over projections, measured and predicted."""
    rows = []
    for spec in (LARGE, replace(LARGER, teacher_width=1024)):
        teacher = trained_teacher(replace(spec, readout_examples=1), seed=0)
        inputs = draw_inputs(100_000, spec.num_inputs, numpy_generator(0, "tables"))
        hidden = teacher.hidden(inputs)
        wanted = predicted_spread(spec.num_inputs, spec.degree, biases=teacher.biases.tolist())
        for law in (Gaussian(), Sign()):
            gap = correlation_gap(
                hidden=hidden,
                inputs=inputs,
                support_size=spec.degree,
                num_projections=400,
                seed=0,
                projection=law,
            )
            found = (gap.in_spread, wanted.in_support, gap.off_spread, wanted.off_support)
            numbers = [f"{number:.4f}" for number in found]
            rows.append(((spec.num_inputs, spec.degree), law.kind, *numbers))
    heads = ("(d,k)", "rows", "on", "predicted", "off", "predicted")
    show("Spread over 400 projections", heads, rows)


def show_steps(title: str, spec: TheoremSpec) -> None:
    """Print what the students' first steps gave."""
    found = theorem_check(spec, seeds=SEEDS)
    groups: dict[tuple[int, str], list[TheoremRow]] = {}
    for row in found:
        groups.setdefault((row.num_examples, row.method), []).append(row)
    heads = ("examples", "method", "on / off", "predicted", "support found", "accuracy, by seed")
    show(title, heads, (summed(rows) for rows in groups.values()))
    print("teacher:", *(row.teacher_accuracy for row in found[:: len(groups)]))


def summed(rows: list[TheoremRow]) -> tuple[object, ...]:
    """Return one line for the seeds of one method and number of examples."""
    first = rows[0]
    centered = not first.method.endswith("uncentered")
    ratio = predicted_gradient_ratio(
        first.num_inputs, first.degree, first.num_examples, centered=centered
    )
    return (
        first.num_examples,
        first.method,
        f"{np.mean([row.gradient_ratio for row in rows]):.1f}",
        f"{ratio:.1f}" if first.method.startswith("vector") else "",
        f"{sum(row.finds_support for row in rows)} of {len(rows)}",
        ", ".join(f"{row.accuracy:.3f}" for row in rows),
    )


if __name__ == "__main__":
    show_coefficients()
    show_spreads()
    show_steps("(50,4)", LARGE)
    show_steps("(50,4), signs", replace(LARGE, methods=("vector",), projection=Sign()))
    show_steps("(50,4), hinge loss", replace(LARGE, methods=("vector",), readout="hinge"))
    show_steps("(100,6)", LARGER)
    show_steps("(20,3), sampled teacher", SAMPLED)
