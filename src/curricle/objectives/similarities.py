"""Losses on the similarities of embeddings, as sums over rows.

Each compares similarities within the student with those within the teacher, so that the two may
have embeddings of different widths. The rules of `losses` hold: sums over rows, float32 for low
precision, gradient to the student only.

Axes: row (embeddings of a batch), other (all rows again), width (of an embedding), group (a query
with its texts), text (a query, a positive and negatives).

References:
    [T19] Tung and Mori 2019, Similarity-preserving knowledge distillation, arXiv 1907.09682.
    [F21] Fang et al. 2021, SEED, arXiv 2101.04731: softmax over similarities at a temperature.
    [H20] Hofstätter et al. 2020, arXiv 2010.02666: margins of a query's scores.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from curricle.colocation import count_beside
from curricle.objectives.losses import forward_kl

Score = Literal["cosine", "dot"]
"""Score of a text for a query: cosine or inner product of their embeddings."""


def cosines(embeddings: Float[Tensor, "row width"]) -> Float[Tensor, "row other"]:
    """Return the cosine similarities of all pairs of rows.

    Args:
        embeddings: Embeddings of any length; a zero vector has similarity 0 to all.
    """
    unit = _normalized(embeddings)
    return unit @ unit.mT


def similarity_error(
    student: Float[Tensor, "row student_width"], teacher: Float[Tensor, "row teacher_width"]
) -> Float[Tensor, ""]:
    """Return the squared error of cosine similarities.

    Args:
        student: The student's embeddings.
        teacher: The teacher's, of the same texts.

    Returns:
        Sum over rows of the mean over the other rows; dimensionless, at most 4 a row.

    Source:
        [T19]. Deviation: cosines instead of products normalized by row, and without the diagonal,
        which is 1 on both sides.
    """
    gaps = cosines(student) - cosines(teacher.detach())
    return gaps.square().sum() / max(len(student) - 1, 1)


def similarity_kl(
    student: Float[Tensor, "row student_width"],
    teacher: Float[Tensor, "row teacher_width"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return KL(T || S) of the distributions of each row over the others.

    A row's distribution is the softmax of its cosine similarities to the other rows, divided by the
    temperature.

    Args:
        student: The student's embeddings.
        teacher: The teacher's, of the same texts.
        temperature: Softening of both sides; dimensionless, positive.

    Returns:
        Sum over rows, in nats, not multiplied by the temperature.

    Source:
        [F21]. Deviation: over the batch instead of a queue.
    """
    if len(student) < 2:  # noqa: PLR2004 - a row and another
        return student.sum() * 0.0
    places = count_beside(student, len(student))
    # Classes that are absent on both sides count for nothing.
    itself = places.unsqueeze(0) == places.unsqueeze(1)
    return forward_kl(
        cosines(student).masked_fill(itself, -torch.inf),
        cosines(teacher.detach()).masked_fill(itself, -torch.inf),
        student_temperature=temperature,
        teacher_temperature=temperature,
    )


def pair_error(
    student: Float[Tensor, "row width"], similarities: Float[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Return the squared error of the cosine similarities of consecutive rows.

    Args:
        student: Embeddings; rows 2 i and 2 i + 1 are a pair.
        similarities: Similarity to match of the pair of each row.

    Returns:
        Sum over rows, each with the error of its pair.
    """
    unit = _normalized(student)
    gaps = (unit[0::2] * unit[1::2]).sum(-1) - similarities[0::2]
    return 2.0 * gaps.square().sum()


def margins(
    embeddings: Float[Tensor, "group text width"], score: Score
) -> Float[Tensor, "group negative"]:
    """Return the scores of the positive minus those of the negatives.

    Args:
        embeddings: Embeddings of query, positive and negatives, in this order.
        score: Score of a text for a query.
    """
    wide = _normalized(embeddings) if score == "cosine" else _widened(embeddings)
    scores = (wide[:, :1] * wide[:, 1:]).sum(-1)
    return scores[:, :1] - scores[:, 1:]


def margin_error(
    student: Float[Tensor, "group text student_width"],
    teacher: Float[Tensor, "group text teacher_width"],
    *,
    score: Score,
) -> Float[Tensor, ""]:
    """Return the squared error of margins (MarginMSE).

    Args:
        student: The student's embeddings of query, positive and negatives.
        teacher: The teacher's, of the same texts.
        score: Score of a text for a query.

    Returns:
        Sum over groups of the mean over negatives, in squared units of the score.

    Source:
        [H20].
    """
    gaps = margins(student, score) - margins(teacher.detach(), score)
    return gaps.square().mean(-1).sum()


def _normalized(embeddings: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return functional.normalize(_widened(embeddings), dim=-1)


def _widened(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
