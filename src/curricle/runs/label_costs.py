"""Cost of a planned run beside that of training from labels alone.

A step with a teacher pays for the teacher's forward pass; from labels the same FLOPs are more steps
of the student. `label_notes` gives the exchange rate of a bound run, and notes where labels alone
may be cheaper.

Rules, each for a note of its own:

- The teacher is trained for a single student: labels are generally preferable (Busbridge et al.).
- At equal FLOPs labels take `MANY_STEPS` times as many steps or more. On masked tokens of the
  grammar cfg3b, at 6.3 times as many, labels passed one-shot's final accuracy on 2 of 3 seeds
  with 75G and 94G FLOPs, extraction with 269G to 337G (docs/reproduction.md, "Masked tokens of a
  grammar"). This is one measurement, so the note advises a comparison.

Source:
    Busbridge et al. 2025, "Distillation Scaling Laws" (arXiv 2502.08606): with a teacher that
    exists, or serves many students, distillation is better than supervised training up to a level
    of compute that grows with the student; if a teacher is to be trained for one student,
    supervised training is generally preferable. Deviation: the law's level of compute is not
    predicted, because its coefficients are those of one family of language models and one corpus.
"""

from typing import Final

from curricle.reports.formatting import short
from curricle.training.binding.bound_run import BoundRun

MANY_STEPS: Final = 6.0
"""Ratio of steps from labels to planned steps from which on labels may be cheaper."""
SINGLE_STUDENT = (
    "labels: the teacher is trained for this student alone; at equal FLOPs, those of its training "
    "included, training from labels is generally preferable (arXiv 2502.08606)"
)
"""Note about a teacher that is trained for a single student."""


def label_notes(run: BoundRun, *, trains_teacher: bool = False) -> tuple[str, ...]:
    """Return the price of a run in steps from labels, and why labels alone may be cheaper.

    The cost of a step from labels is that of the student in the dearest stage that reads its
    logits. There are no notes for runs in which no teacher runs, as from stored targets, for data
    without labels, and for curricula that do not read the student's logits.

    Args:
        run: The bound run.
        trains_teacher: Whether the teacher is trained for this run alone.
    """
    stages = [stage.plan for stage in run.stages]
    label_flops = max((plan.student_flops for plan in stages if plan.reads_logits), default=0)
    total = sum(plan.steps * (plan.student_flops + plan.teacher_flops) for plan in stages)
    if run.warm_start is not None:
        total += run.warm_start.plan.student_flops + run.warm_start.plan.teacher_flops
    has_labels = run.stream.batch(0).labels is not None
    if not label_flops or not has_labels or not any(plan.teacher_flops for plan in stages):
        return ()
    steps = total // label_flops
    share = label_flops * run.num_steps / total
    price = (
        f"labels: a step from labels costs {share:.2g} of the mean step with this teacher; at "
        f"equal FLOPs labels take {steps:,} steps instead of {run.num_steps:,}"
    )
    notes = [price]
    if steps >= MANY_STEPS * run.num_steps:
        notes.append(
            f"labels: with {steps / run.num_steps:.2g} times as many steps labels alone may be "
            f"cheaper; compare 'from_labels' on a budget of {short(total)} flops"
        )
    return (*notes, *((SINGLE_STUDENT,) if trains_teacher else ()))
