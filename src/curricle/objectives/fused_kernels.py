"""Triton kernel of `objectives.fused`: loss and gradient of rows of logits.

This is the only module that imports triton, which is imported where the kernel is launched.

Axes: lane (vectors of a block), vector (neighboring classes that a thread loads at once).

Design: each program reads a row two or three times. The first pass sums exponentials relative to a
running maximum of each lane, so that no thread waits for others inside a pass. The last pass
computes the loss and overwrites the student's products with the gradient. `jsd` and
`total_variation` need a pass between them, for the expectation that their gradient subtracts;
`reverse_kl` sums its expectation in the first pass. Successive passes run in opposite directions,
because the end of a pass is still in the L2 cache.
Exponentials and logarithms have base 2, as in hardware.
"""

import triton
import triton.language as tl

LEAST = tl.constexpr(-1e38)
"""First maximum of a lane; finite, so that the difference to an absent class is no NaN."""
TINY = tl.constexpr(2.0**-126)
"""Least mixture, as in `losses.generalized_jsd`."""
# Kinds of losses; those from JSD on need a pass for the mean that their gradient subtracts.
NO_TEACHER = tl.constexpr(0)
FORWARD_KL = tl.constexpr(1)
REVERSE_KL = tl.constexpr(2)
JSD = tl.constexpr(3)
TOTAL_VARIATION = tl.constexpr(4)


@triton.jit
def _squash(product, inner, HAS_CAP: tl.constexpr):
    """Return the argument of the softmax up to a factor: the product, or its bounded form."""
    value = product.to(tl.float32)
    if HAS_CAP:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), where `inner` holds the factors of the exponent.
        value = 1.0 - 2.0 / (tl.exp2(value * inner) + 1.0)
    return value


@triton.jit
def _load(
    row, start, inner,
    HAS_CAP: tl.constexpr, CLASSES: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Return a block of a row, minus infinity behind the last class."""
    lanes = start + tl.arange(0, LANES)[:, None] * VECTOR
    columns = lanes + tl.arange(0, VECTOR)[None, :]
    if CLASSES % (LANES * VECTOR) == 0:
        value = _squash(tl.load(row + columns), inner, HAS_CAP)
    else:
        # Rows are padded to whole vectors, which keeps the mask constant within a vector.
        value = _squash(tl.load(row + columns, mask=lanes < CLASSES, other=0.0), inner, HAS_CAP)
        value = tl.where(columns < CLASSES, value, float("-inf"))
    return value


@triton.jit
def _exponentials(value, top, factor):
    return tl.exp2((value - top[:, None]) * factor)


@triton.jit
def _over_lanes(top, total, factor):
    """Return the maximum of all lanes, and the sum relative to it."""
    maximum = tl.max(top, 0)
    return maximum, tl.sum(total * tl.exp2((top - maximum) * factor), 0)


@triton.jit
def _gap(log_student, log_teacher, probability):
    """Return the difference of two logarithms, 0 where the probability is 0."""
    return tl.where(probability == 0.0, 0.0, log_student - log_teacher)


@triton.jit
def overwrite_rows(
    students, teachers, labels, losses,
    student_stride, teacher_stride,
    student_factor, teacher_factor, label_factor, student_inner, teacher_inner,
    slope, label_slope, unit, beta, label_weight,
    KIND: tl.constexpr, HAS_LABELS: tl.constexpr, HAS_LABEL_SUM: tl.constexpr,
    STUDENT_CAP: tl.constexpr, TEACHER_CAP: tl.constexpr,
    CLASSES: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store the loss of each row, and overwrite the student's products with the gradient.

    Args:
        students: Products of the student's head, padded to whole vectors.
        teachers: Products of the teacher's head, padded likewise.
        labels: Class of each row.
        losses: Loss of each row, float32.
        student_stride: Elements from a row of the student to the next.
        teacher_stride: Elements from a row of the teacher to the next.
        student_factor: Binary logarithm of an unnormalized probability per unit of the student's
            value.
        teacher_factor: The same of the teacher.
        label_factor: The same of the student at temperature 1.
        student_inner: Factor on the product inside the exponential of a soft cap.
        teacher_inner: The same of the teacher.
        slope: Factor of the gradient of the divergence.
        label_slope: Factor of the gradient of the cross-entropy.
        unit: Nats, or probability, per unit of the computed divergence.
        beta: Weight of the teacher in the mixture of `JSD`.
        label_weight: Nats of the loss per bit of the cross-entropy.
        KIND: Divergence, as numbered above.
        HAS_LABELS: Whether a cross-entropy is added.
        HAS_LABEL_SUM: Whether it needs a sum of exponentials of its own, for its temperature.
        STUDENT_CAP: Whether the student has a soft cap.
        TEACHER_CAP: Whether the teacher has one.
        CLASSES: Number of classes, for which the kernel is compiled.
        LANES: Vectors of a block.
        VECTOR: Classes of a vector.
        STAGES: Depth of software pipelining.
    """
    BLOCK: tl.constexpr = LANES * VECTOR
    index = tl.program_id(0).to(tl.int64)
    student_row = students + index * student_stride
    teacher_row = teachers + index * teacher_stride
    NEEDS_MEAN: tl.constexpr = KIND >= JSD
    LAST: tl.constexpr = ((CLASSES + BLOCK - 1) // BLOCK - 1) * BLOCK
    if HAS_LABELS:
        label = tl.load(labels + index)
        is_class = (label >= 0) & (label < CLASSES)
        # Loaded before the row is overwritten.
        label_product = tl.load(student_row + label, mask=is_class, other=float("nan"))
        label_value = _squash(label_product, student_inner, STUDENT_CAP)

    top = tl.full([LANES], LEAST, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    label_total = tl.zeros([LANES], tl.float32)
    cross = tl.zeros([LANES], tl.float32)
    teacher_top = tl.full([LANES], LEAST, tl.float32)
    teacher_total = tl.zeros([LANES], tl.float32)
    for start in tl.range(0, CLASSES, BLOCK, num_stages=STAGES):
        student = _load(student_row, start, student_inner, STUDENT_CAP, CLASSES, LANES, VECTOR)
        previous = top
        top = tl.maximum(previous, tl.max(student, 1))
        decay = tl.exp2((previous - top) * student_factor)
        exponentials = _exponentials(student, top, student_factor)
        total = total * decay + tl.sum(exponentials, 1)
        if HAS_LABEL_SUM:
            label_decay = tl.exp2((previous - top) * label_factor)
            label_exponentials = _exponentials(student, top, label_factor)
            label_total = label_total * label_decay + tl.sum(label_exponentials, 1)
        if KIND != NO_TEACHER:
            teacher = _load(teacher_row, start, teacher_inner, TEACHER_CAP, CLASSES, LANES, VECTOR)
            teacher_previous = teacher_top
            teacher_top = tl.maximum(teacher_previous, tl.max(teacher, 1))
            teacher_decay = tl.exp2((teacher_previous - teacher_top) * teacher_factor)
            teacher_exponentials = _exponentials(teacher, teacher_top, teacher_factor)
            teacher_total = teacher_total * teacher_decay + tl.sum(teacher_exponentials, 1)
            if KIND == REVERSE_KL:
                difference = _gap(student * student_factor, teacher * teacher_factor, exponentials)
                cross = cross * decay + tl.sum(exponentials * difference, 1)

    maximum, normalizer = _over_lanes(top, total, student_factor)
    log_normalizer = tl.log2(normalizer)
    if HAS_LABEL_SUM:
        _, label_normalizer = _over_lanes(top, label_total, label_factor)
        label_log_normalizer = tl.log2(label_normalizer)
    else:
        label_log_normalizer = log_normalizer
    mean = 0.0
    if KIND != NO_TEACHER:
        teacher_maximum, teacher_normalizer = _over_lanes(
            teacher_top, teacher_total, teacher_factor
        )
        teacher_log_normalizer = tl.log2(teacher_normalizer)
        if KIND == REVERSE_KL:
            _, cross_sum = _over_lanes(top, cross, student_factor)
            offset = maximum * student_factor - teacher_maximum * teacher_factor
            mean = cross_sum / normalizer - offset - log_normalizer + teacher_log_normalizer

    value = tl.zeros([LANES], tl.float32)
    if NEEDS_MEAN:
        means = tl.zeros([LANES], tl.float32)
        for back in tl.range(0, CLASSES, BLOCK, num_stages=STAGES):
            student = _load(
                student_row, LAST - back, student_inner,
                STUDENT_CAP, CLASSES, LANES, VECTOR,
            )  # fmt: skip
            teacher = _load(
                teacher_row, LAST - back, teacher_inner,
                TEACHER_CAP, CLASSES, LANES, VECTOR,
            )  # fmt: skip
            log_student = (student - maximum) * student_factor - log_normalizer
            log_teacher = (teacher - teacher_maximum) * teacher_factor - teacher_log_normalizer
            probability = tl.exp2(log_student)
            target = tl.exp2(log_teacher)
            if KIND == JSD:
                mixture = beta * target + (1.0 - beta) * probability
                log_mixture = tl.log2(tl.maximum(mixture, TINY))
                means += tl.sum(probability * _gap(log_student, log_mixture, probability), 1)
                value += tl.sum(target * _gap(log_teacher, log_mixture, target), 1)
            else:
                sign = tl.where(
                    probability > target, 1.0, tl.where(probability < target, -1.0, 0.0)
                )
                means += tl.sum(probability * sign, 1)
                value += tl.sum(tl.abs(probability - target), 1)
        mean = tl.sum(means, 0)
        if KIND == JSD:
            value = beta * value + (1.0 - beta) * means

    for step in tl.range(0, CLASSES, BLOCK, num_stages=STAGES):
        start = step if NEEDS_MEAN else LAST - step
        student = _load(student_row, start, student_inner, STUDENT_CAP, CLASSES, LANES, VECTOR)
        log_student = (student - maximum) * student_factor - log_normalizer
        probability = tl.exp2(log_student)
        if KIND == NO_TEACHER:
            gradient = tl.zeros([LANES, VECTOR], tl.float32)
        else:
            teacher = _load(teacher_row, start, teacher_inner, TEACHER_CAP, CLASSES, LANES, VECTOR)
            log_teacher = (teacher - teacher_maximum) * teacher_factor - teacher_log_normalizer
            target = tl.exp2(log_teacher)
            if KIND == FORWARD_KL:
                value += tl.sum(target * _gap(log_teacher, log_student, target), 1)
                gradient = probability - target
            elif KIND == REVERSE_KL:
                gap = _gap(log_student, log_teacher, probability)
                value += tl.sum(probability * gap, 1)
                gradient = probability * (gap - mean)
            elif KIND == JSD:
                mixture = beta * target + (1.0 - beta) * probability
                log_mixture = tl.log2(tl.maximum(mixture, TINY))
                gap = _gap(log_student, log_mixture, probability)
                gradient = probability * (gap - mean)
            else:
                sign = tl.where(
                    probability > target, 1.0, tl.where(probability < target, -1.0, 0.0)
                )
                gradient = probability * (sign - mean)
        gradient = gradient * slope
        lanes = start + tl.arange(0, LANES)[:, None] * VECTOR
        columns = lanes + tl.arange(0, VECTOR)[None, :]
        if HAS_LABELS:
            if HAS_LABEL_SUM:
                probability = tl.exp2((student - maximum) * label_factor - label_log_normalizer)
            is_label = tl.where(columns == label, 1.0, 0.0)
            gradient += (probability - is_label) * label_slope
        if STUDENT_CAP:
            bounded = tl.where(columns < CLASSES, student, 0.0)
            gradient = gradient * (1.0 - bounded * bounded)
        if CLASSES % BLOCK == 0:
            tl.store(student_row + columns, gradient)
        else:
            tl.store(student_row + columns, gradient, mask=lanes < CLASSES)

    loss = tl.sum(value, 0) * unit
    if HAS_LABELS:
        loss += (label_log_normalizer - (label_value - maximum) * label_factor) * label_weight
    tl.store(losses + index, loss)
