"""Contract of objectives: a sum over counted positions with gradient to the student only.

Values and gradients are compared with formulas in numpy's float64, gradients by differences.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.stages import Stage
from curricle.data.batch import Batch
from curricle.errors import SpecError
from curricle.models.heads import LinearHead
from curricle.models.tapped import Activations, Place
from curricle.models.wrapping import tapped
from curricle.objectives.adapters import adapter_of
from curricle.objectives.base import (
    BoundObjective,
    Objective,
    Reads,
    Sample,
    compares_examples,
    pending_calibration,
)
from curricle.objectives.catalog import SHIPPED, AnyObjective
from curricle.objectives.channel_selection import ChannelSelection
from curricle.objectives.divergences import JSD, ReverseKL, SquaredError, TotalVariation
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.low_rank_clone import LowRankClone
from curricle.objectives.matched_embeddings import MatchEmbeddings, MatchMargins, MatchSimilarities
from curricle.objectives.matched_geometries import MatchCKA, MatchProcrustes
from curricle.objectives.matched_relations import MatchRelations
from curricle.objectives.paired_logits import MatchPairedLogits
from curricle.objectives.projections import Gaussian, Identity, Learned, Orthogonal, Sign
from curricle.objectives.temperature import LearnedTemperature
from curricle.objectives.vocabulary_groups import GroupedProbabilities, SortedProbabilities
from curricle.values import parse, plain

Array = np.ndarray
Formula = Callable[[Array, Array, Array], float]

STUDENT, TEACHER = Place("student"), Place("teacher")
NUM_EXAMPLES, LENGTH, WIDTH, TEACHER_WIDTH, NUM_CLASSES, SEED = 4, 3, 4, 6, 5, 7
SELECTED = [1, 3, 7, 8, 10]
PADDED = [2, 5, 11]
VALID = [position for position in range(NUM_EXAMPLES * LENGTH) if position not in PADDED]


@dataclass
class World:
    """States and logits of every position, looked up by token id."""

    tables: dict[str, Tensor]
    batch: Batch
    is_pooled: bool = False

    def shown(self, who: str, batch: Batch) -> Activations:
        """Return the activations of a model on a batch; ids are numbers of positions."""
        assert isinstance(batch.inputs, Tensor)
        ids = batch.inputs[:, 0] if self.is_pooled else batch.inputs
        logits = self.tables[f"{who} logits"][ids]
        logits = logits if batch.selected is None else logits.flatten(0, -2)[batch.selected]
        # A head that multiplies by one.
        head = LinearHead(states=logits, weight=torch.eye(logits.shape[-1], dtype=logits.dtype))
        return Activations({Place(who): self.tables[who][batch.inputs]}, logits, head)


def world(case: "Case", *, matched: bool = False, seed: int = 0) -> World:
    generator = torch.Generator().manual_seed(seed)
    teacher_width, num_examples = case.teacher_width, case.num_examples
    shapes = {
        "student": WIDTH,
        "teacher": teacher_width,
        "student logits": NUM_CLASSES,
        "teacher logits": case.teacher_outputs,
    }
    tables = {
        name: torch.randn(num_examples * LENGTH, width, generator=generator, dtype=torch.float64)
        for name, width in shapes.items()
    }
    if matched:
        # Further coordinates are zero, so that similarities are those of narrower embeddings.
        tables["teacher logits"][:, NUM_CLASSES:] = 0
        tables["student logits"] = tables["teacher logits"][:, :NUM_CLASSES].clone()
        tables["student"] = tables["teacher"].clone()
    valid = torch.zeros(num_examples * LENGTH, dtype=torch.bool)
    valid[VALID] = True
    return World(
        tables=tables,
        batch=Batch(
            inputs=torch.arange(num_examples * LENGTH).reshape(num_examples, LENGTH),
            labels=torch.tensor(SELECTED) % NUM_CLASSES if case.selects else None,
            selected=torch.tensor(SELECTED) if case.selects else None,
            valid=valid.reshape(num_examples, LENGTH),
            group=case.group,
        ),
        is_pooled=case.is_pooled,
    )


@dataclass(frozen=True)
class Case:
    """An objective, its formula of (student, teacher, positions), and its place."""

    objective: Any
    formula: Formula
    reads: str = "logits"
    counts: str = "selected"
    teacher_width: int = TEACHER_WIDTH
    tolerance: float = 1e-7
    is_residual: bool = False
    selects: bool = True
    is_zero_at_match: bool = True
    has_formula: bool = True
    teacher_outputs: int = NUM_CLASSES
    num_examples: int = NUM_EXAMPLES
    is_pooled: bool = False
    compares_examples: bool = False
    group: int = 1
    models: Any = None

    @property
    def positions(self) -> list[int]:
        if self.is_pooled:
            return [*range(0, self.num_examples * LENGTH, LENGTH)]
        return SELECTED if self.counts == "selected" else VALID

    def bound(self, seen: World) -> BoundObjective:
        term: BoundObjective = self.objective.bind(
            Reads(student=(STUDENT,), teacher=(TEACHER,), models=self.models),
            Sample(
                batch=seen.batch,
                student=seen.shown("student", seen.batch),
                teacher=seen.shown("teacher", seen.batch),
                seed=SEED,
            ),
            is_residual=self.is_residual,
        )
        needy = pending_calibration(term)
        if needy is not None:
            return needy([(seen.shown("teacher", seen.batch), seen.batch)])
        return term

    def total(self, seen: World, batch: Batch | None = None) -> Tensor:
        batch = seen.batch if batch is None else batch
        term = self.bound(seen)
        target = term.target(seen.shown("teacher", batch), batch)
        return term.total(seen.shown("student", batch), target, batch)

    def student_table(self, seen: World) -> Tensor:
        return seen.tables["student logits" if self.reads == "logits" else "student"]

    def expected(self, student: Array, seen: World) -> float:
        teacher = seen.tables["teacher logits" if self.reads == "logits" else "teacher"].numpy()
        rows = np.array(self.positions)
        return self.formula(student[rows], teacher[rows], rows)


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    powers = np.exp(logits / temperature)
    ratio: Array = powers / powers.sum(-1, keepdims=True)
    return ratio


def unnormalized(states: Array) -> Array:
    return states


def layer(states: Array) -> Array:
    centered = states - states.mean(-1, keepdims=True)
    actual: Array = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return actual


def rms(states: Array) -> Array:
    actual: Array = states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-5)
    return actual


def hidden_case(
    *,
    by: Callable[[Array], Array] = unnormalized,
    name: str = "student <- teacher",
    teacher_width: int = TEACHER_WIDTH,
    is_residual: bool = False,
    **fields: Any,
) -> Case:
    objective = MatchHidden(pair=LayerPair(student=1, teacher=1), **fields)
    assert not isinstance(objective.projection, (Learned, ChannelSelection))
    law = objective.projection.matrix(
        seed=SEED, name=name, student_width=WIDTH, teacher_width=teacher_width
    )

    def formula(student: Array, teacher: Array, _: Array) -> float:
        projected = by(teacher) @ law.numpy().astype(np.float64).T
        mean = projected.mean(0) if objective.center else 0.0
        gaps = by(student) - by(projected - mean)
        return float((gaps**2).sum() / WIDTH)

    return Case(
        objective,
        formula,
        reads="hidden",
        counts="selected" if objective.positions == "selected" else "valid",
        teacher_width=teacher_width,
        # Targets are float32.
        tolerance=1e-5,
        is_residual=is_residual,
        is_zero_at_match=objective.projection == Identity() and not objective.center,
    )


def selected_case() -> Case:
    kept = [0, 2, 3, 5]

    def formula(student: Array, teacher: Array, _: Array) -> float:
        factor = math.sqrt((teacher**2).mean() / (teacher[:, kept] ** 2).mean())
        return float(((student - factor * teacher[:, kept]) ** 2).sum() / WIDTH)

    return Case(
        MatchHidden(
            pair=LayerPair(student=1, teacher=1), projection=ChannelSelection(channels=tuple(kept))
        ),
        formula,
        reads="hidden",
        counts="valid",
        # Energies are float32.
        tolerance=1e-5,
        is_zero_at_match=False,
    )


def learned_case(*, by: Callable[[Array], Array] = unnormalized, **fields: Any) -> Case:
    objective = MatchHidden(pair=LayerPair(student=1, teacher=1), projection=Learned(), **fields)
    first = Learned().adapter(
        seed=SEED, name="student <- teacher", student_width=WIDTH, teacher_width=TEACHER_WIDTH
    )
    matrix = first.weight.detach().numpy().astype(np.float64)

    def formula(student: Array, teacher: Array, _: Array) -> float:
        mean = by(teacher).mean(0) if objective.center else 0.0
        gaps = by(by(student) @ matrix.T) - by(by(teacher) - mean)
        return float((gaps**2).sum() / TEACHER_WIDTH)

    return Case(
        objective,
        formula,
        reads="hidden",
        counts="valid",
        # The map is float32.
        tolerance=1e-5,
        is_zero_at_match=False,
    )


def temperature_case(*, label_weight: float = 0.1, selects: bool = True, **fields: Any) -> Case:
    objective = LearnedTemperature(label_weight=label_weight, **fields)
    temperature = 1 + 20 / (1 + math.exp(-1.0))

    def formula(student: Array, teacher: Array, rows: Array) -> float:
        gaps = forward_kl(softmax(teacher, temperature), softmax(student, temperature))
        divergence = 0.9 * temperature**2 * float(gaps.sum())
        if not label_weight:
            return divergence
        return divergence + label_weight * labels_formula(student, teacher, rows)

    return Case(
        objective,
        formula,
        counts="selected" if selects else "valid",
        selects=selects,
        # The temperature is float32.
        tolerance=1e-5,
        is_zero_at_match=not label_weight,
        # The temperatures of the instances are those of its own test.
        has_formula=objective.variant == "global",
    )


def clone_case() -> Case:
    matrix = Gaussian().matrix(
        seed=SEED, name="clone 0.0 0", student_width=WIDTH, teacher_width=TEACHER_WIDTH
    )

    def formula(student: Array, teacher: Array, _: Array) -> float:
        gaps = student - teacher @ matrix.numpy().astype(np.float64).T
        return float((gaps**2).sum() / WIDTH)

    return Case(
        LowRankClone(start="random"),
        formula,
        reads="hidden",
        counts="valid",
        # The projection is float32.
        tolerance=1e-5,
        is_zero_at_match=False,
        models=tuple(
            tapped(nn.Sequential(nn.Sequential(nn.Linear(3, width))), blocks=["0"])
            for width in (WIDTH, TEACHER_WIDTH)
        ),
    )


def logits_case(
    compare: Callable[[Array, Array], Array],
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    factor: float = 1.0,
    selects: bool = True,
    kind: Callable[..., Any] = MatchLogits,
    **fields: Any,
) -> Case:
    def formula(student: Array, teacher: Array, _: Array) -> float:
        hard = np.eye(NUM_CLASSES)[teacher.argmax(-1)]
        soft = softmax(teacher, teacher_temperature or 1.0)
        likely = soft if teacher_temperature else hard
        return float(factor * compare(likely, softmax(student, student_temperature)).sum())

    return Case(
        kind(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            **fields,
        ),
        formula,
        counts="selected" if selects else "valid",
        selects=selects,
        is_zero_at_match=student_temperature == teacher_temperature,
    )


def forward_kl(t: Array, s: Array) -> Array:
    # Of a one-hot teacher, 0 log 0 counts as 0.
    actual: Array = (t * np.log(np.where(t > 0, t, 1.0) / s)).sum(-1)
    return actual


def jsd(t: Array, s: Array) -> Array:
    mixture = 0.3 * t + 0.7 * s
    return 0.3 * forward_kl(t, mixture) + 0.7 * forward_kl(s, mixture)


def total_variation(t: Array, s: Array) -> Array:
    actual: Array = np.maximum(t - s, 0).sum(-1)
    return actual


def by_rank(t: Array, s: Array) -> Array:
    actual: Array = np.abs(np.sort(t) - np.sort(s)).sum(-1)
    return actual


def by_largest(t: Array, s: Array) -> Array:
    actual: Array = np.abs(np.sort(t)[:, :-3:-1] - np.sort(s)[:, :-3:-1]).sum(-1)
    return actual


STUDENT_GROUPS, TEACHER_GROUPS = (0, 1, 1, 2, 2), (2, 1, 0, 1, 2)


def by_group(t: Array, s: Array) -> Array:
    return forward_kl(t @ np.eye(3)[list(TEACHER_GROUPS)], s @ np.eye(3)[list(STUDENT_GROUPS)])


def labels_formula(student: Array, _: Array, rows: Array) -> float:
    return float(-np.log(softmax(student)[np.arange(len(rows)), rows % NUM_CLASSES]).sum())


def unit(embeddings: Array) -> Array:
    actual: Array = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return actual


def cosine_gaps(student: Array, teacher: Array, _: Array) -> float:
    return float((1 - (unit(student) * unit(teacher)).sum(-1)).sum())


def projected(student: Array, teacher: Array, rows: Array) -> float:
    law = Sign().matrix(
        seed=SEED, name="embeddings", student_width=NUM_CLASSES, teacher_width=teacher.shape[-1]
    )
    return float(((student - teacher @ law.numpy().astype(np.float64).T) ** 2).mean(-1).sum())


def mapped(student: Array, teacher: Array, rows: Array) -> float:
    first = Learned().adapter(
        seed=SEED, name="embeddings", student_width=NUM_CLASSES, teacher_width=teacher.shape[-1]
    )
    matrix = first.weight.detach().numpy().astype(np.float64)
    return cosine_gaps(student @ matrix.T, teacher, rows)


def similarity_gaps(student: Array, teacher: Array, _: Array) -> float:
    gaps = unit(student) @ unit(student).T - unit(teacher) @ unit(teacher).T
    return float((gaps**2).sum() / (len(student) - 1))


def similarity_divergence(student: Array, teacher: Array, _: Array) -> float:
    others = ~np.eye(len(student), dtype=bool)
    rows = [
        [softmax((unit(side) @ unit(side)[row])[others[row]], 0.5) for row in range(len(side))]
        for side in (teacher, student)
    ]
    return sum(float(forward_kl(t, s)) for t, s in zip(*rows, strict=True))


def margin_gaps(by: Callable[[Array], Array], texts: int) -> Formula:
    def differences_of(embeddings: Array) -> Array:
        groups = by(embeddings).reshape(-1, texts, embeddings.shape[-1])
        scores = (groups[:, :1] * groups[:, 1:]).sum(-1)
        actual: Array = scores[:, :1] - scores[:, 1:]
        return actual

    return lambda student, teacher, _: float(
        ((differences_of(student) - differences_of(teacher)) ** 2).mean(-1).sum()
    )


def margins_case(by: Callable[[Array], Array], texts: int = 3, **fields: Any) -> Case:
    return Case(
        MatchMargins(**fields),
        margin_gaps(by, texts),
        selects=False,
        is_pooled=True,
        teacher_outputs=TEACHER_WIDTH,
        num_examples=4 * texts,
        group=texts,
    )


def centered_gram(states: Array) -> Array:
    middle = np.eye(len(states)) - 1 / len(states)
    gram: Array = middle @ states @ states.T @ middle
    return gram


def cka(student: Array, teacher: Array, _: Array) -> float:
    # By kernels of rows, as defined; the implementation multiplies columns.
    first, second = centered_gram(student), centered_gram(teacher)
    norms = np.sqrt((first**2).sum() * (second**2).sum())
    return float(len(student) * (1 - (first * second).sum() / norms))


def procrustes(student: Array, teacher: Array, _: Array) -> float:
    # By the explicit map: the narrower states have zeros as further coordinates.
    width = max(student.shape[1], teacher.shape[1])
    units = []
    for states in (student, teacher):
        centered = states - states.mean(0)
        padded = np.pad(centered, ((0, 0), (0, width - states.shape[1])))
        units.append(padded / np.sqrt((padded**2).sum()))
    left, _values, right = np.linalg.svd(units[0].T @ units[1])
    gaps = units[0] @ (left @ right) - units[1]
    return float(len(student) * (gaps**2).sum())


def relations(
    student: Array,
    teacher: Array,
    rows: Array,
    *,
    heads: int,
    is_causal: bool = False,
    by: Callable[[Array], Array] = unnormalized,
) -> float:
    student, teacher, total = by(student), by(teacher), 0.0
    for head, (place, row) in itertools.product(range(heads), enumerate(rows)):
        related = [
            other
            for other, number in enumerate(rows)
            if number // LENGTH == row // LENGTH and (number <= row or not is_causal)
        ]
        likely = []
        for states in (teacher, student):
            width = states.shape[1] // heads
            part = states[:, head * width : (head + 1) * width]
            likely.append(softmax(part[related] @ part[place] / math.sqrt(width)))
        total += float(forward_kl(*likely))
    return total / heads


def relations_case(*, is_residual: bool = False, **fields: Any) -> Case:
    objective = MatchRelations(pair=LayerPair(student=1, teacher=1), heads=2, **fields)
    return Case(
        objective,
        partial(
            relations,
            heads=2,
            is_causal=objective.causal,
            by=layer if is_residual else unnormalized,
        ),
        reads="hidden",
        counts="valid",
        is_residual=is_residual,
    )


def geometry_case(kind: Callable[..., Any], formula: Formula, **fields: Any) -> Case:
    return Case(
        kind(pair=LayerPair(student=1, teacher=1)),
        formula,
        reads="hidden",
        counts="valid",
        compares_examples=True,
        **fields,
    )


CATALOG: dict[str, Case] = {
    "hidden": hidden_case(),
    "hidden on residual streams": hidden_case(by=layer, is_residual=True),
    "hidden layernorm": hidden_case(by=layer, normalize="layernorm"),
    "hidden rms": hidden_case(by=rms, normalize="rms"),
    "hidden plain on residual streams": hidden_case(normalize="none", is_residual=True),
    "hidden centered": hidden_case(center=True),
    "hidden layernorm centered": hidden_case(by=layer, normalize="layernorm", center=True),
    "hidden shared": hidden_case(shared_projection=True, name="shared"),
    "hidden sign": hidden_case(projection=Sign()),
    "hidden orthogonal": hidden_case(projection=Orthogonal()),
    "hidden orthogonal to a wider student": hidden_case(projection=Orthogonal(), teacher_width=3),
    "hidden identity": hidden_case(projection=Identity(), teacher_width=WIDTH),
    "hidden identity layernorm": hidden_case(
        by=layer, normalize="layernorm", projection=Identity(), teacher_width=WIDTH
    ),
    "hidden identity rms": hidden_case(
        by=rms, normalize="rms", projection=Identity(), teacher_width=WIDTH
    ),
    "hidden selected": hidden_case(positions="selected"),
    "hidden weighted": hidden_case(weight=3.0),
    "forward KL": logits_case(forward_kl),
    "reverse KL": logits_case(lambda t, s: forward_kl(s, t), divergence=ReverseKL()),
    "JSD": logits_case(jsd, divergence=JSD(beta=0.3)),
    "squared error of outputs": Case(
        MatchLogits(divergence=SquaredError()),
        lambda student, teacher, _: float(((student - teacher) ** 2).mean(-1).sum()),
        counts="selected",
        selects=True,
        is_zero_at_match=True,
    ),
    "total variation": logits_case(total_variation, divergence=TotalVariation()),
    "soft teacher": logits_case(forward_kl, teacher_temperature=2.5),
    "both soft": logits_case(forward_kl, student_temperature=2.0, teacher_temperature=2.0),
    "both soft, scaled": logits_case(
        forward_kl,
        student_temperature=2.0,
        teacher_temperature=2.0,
        factor=4.0,
        scale="temperature_squared",
    ),
    "hard teacher": logits_case(forward_kl, teacher_temperature=0.0),
    "hard JSD": logits_case(jsd, divergence=JSD(beta=0.3), teacher_temperature=0.0),
    "forward KL everywhere": logits_case(forward_kl, selects=False),
    "forward KL in chunks": logits_case(forward_kl, chunk=2),
    "forward KL everywhere in chunks": logits_case(forward_kl, selects=False, chunk=4),
    "both soft, scaled, in chunks": logits_case(
        forward_kl,
        student_temperature=2.0,
        teacher_temperature=2.0,
        factor=4.0,
        scale="temperature_squared",
        chunk=2,
    ),
    "labels in chunks": Case(LabelLoss(chunk=2), labels_formula, is_zero_at_match=False),
    "labels": Case(LabelLoss(), labels_formula, is_zero_at_match=False),
    "hidden selected channels": selected_case(),
    "hidden learned": learned_case(),
    "hidden learned layernorm": learned_case(by=layer, normalize="layernorm"),
    "hidden learned rms centered": learned_case(by=rms, normalize="rms", center=True),
    "paired sorted": logits_case(by_rank, kind=MatchPairedLogits),
    "paired sorted softened": logits_case(
        by_rank, kind=MatchPairedLogits, student_temperature=2.0, teacher_temperature=2.0
    ),
    "paired sorted everywhere": logits_case(by_rank, kind=MatchPairedLogits, selects=False),
    "paired sorted with labels": replace(
        logits_case(by_rank, kind=MatchPairedLogits, label_weight=0.5),
        formula=lambda student, teacher, rows: (
            float(by_rank(softmax(teacher), softmax(student)).sum())
            + 0.5 * labels_formula(student, teacher, rows)
        ),
        is_zero_at_match=False,
    ),
    "paired largest": logits_case(
        by_largest, kind=MatchPairedLogits, comparison=SortedProbabilities(num_largest=2)
    ),
    "paired groups": replace(
        logits_case(
            by_group,
            kind=MatchPairedLogits,
            teacher_temperature=0.5,
            comparison=GroupedProbabilities(student=STUDENT_GROUPS, teacher=TEACHER_GROUPS),
        ),
        tolerance=1e-6,
    ),
    "low-rank clone": clone_case(),
    "learned temperature": temperature_case(),
    "learned temperature without labels": temperature_case(label_weight=0.0),
    "learned temperature everywhere": temperature_case(label_weight=0.0, selects=False),
    "learned temperature of instances": temperature_case(variant="instance", hidden=3),
    "learned temperature of instances without labels": temperature_case(
        variant="instance", label_weight=0.0
    ),
    "embeddings": Case(MatchEmbeddings(), cosine_gaps),
    "embeddings of texts": Case(MatchEmbeddings(), cosine_gaps, selects=False, is_pooled=True),
    "embeddings everywhere": Case(MatchEmbeddings(), cosine_gaps, counts="valid", selects=False),
    "embeddings by squared error": Case(
        MatchEmbeddings(distance="squared_error"),
        lambda student, teacher, _: float(((student - teacher) ** 2).mean(-1).sum()),
    ),
    "embeddings projected": Case(
        MatchEmbeddings(distance="squared_error", projection=Sign()),
        projected,
        teacher_outputs=TEACHER_WIDTH,
        tolerance=1e-5,
        is_zero_at_match=False,
    ),
    "embeddings learned": Case(
        MatchEmbeddings(projection=Learned()),
        mapped,
        teacher_outputs=TEACHER_WIDTH,
        tolerance=1e-5,
        is_zero_at_match=False,
    ),
    "similarities": Case(
        MatchSimilarities(),
        similarity_gaps,
        teacher_outputs=TEACHER_WIDTH,
        compares_examples=True,
    ),
    "similarities of texts by KL": Case(
        MatchSimilarities(divergence="kl", temperature=0.5),
        similarity_divergence,
        selects=False,
        is_pooled=True,
        teacher_outputs=TEACHER_WIDTH,
        compares_examples=True,
    ),
    "margins": margins_case(unit),
    "margins of dot products": margins_case(unnormalized, score="dot"),
    "margins of two negatives": margins_case(unit, 4, negatives=2),
    "CKA": geometry_case(MatchCKA, cka),
    "CKA with a narrower teacher": geometry_case(MatchCKA, cka, teacher_width=2),
    "Procrustes": geometry_case(MatchProcrustes, procrustes),
    "Procrustes at equal widths": geometry_case(MatchProcrustes, procrustes, teacher_width=WIDTH),
    "relations": relations_case(),
    "relations on residual streams": relations_case(is_residual=True),
    "causal relations": relations_case(causal=True),
}

every_objective = pytest.mark.parametrize("case", CATALOG.values(), ids=CATALOG.keys())
every_sum_of_examples = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CATALOG.items() if not case.compares_examples],
)
every_formula = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CATALOG.items() if case.has_formula]
)
training_besides = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CATALOG.items() if "learned" in name]
)
matching = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CATALOG.items() if case.is_zero_at_match]
)


@every_objective
def test_it_is_an_objective(case: Case) -> None:
    assert isinstance(case.objective, Objective)


@every_formula
def test_the_value_is_that_of_the_formula(case: Case) -> None:
    seen = world(case)
    expected = case.expected(case.student_table(seen).numpy(), seen)
    assert case.total(seen).item() == pytest.approx(expected, rel=case.tolerance)


@every_formula
def test_the_gradient_is_that_of_the_formula(case: Case) -> None:
    seen = world(case)
    table = case.student_table(seen).requires_grad_()
    (actual,) = torch.autograd.grad(case.total(seen), table)
    expected = differences(lambda student: case.expected(student, seen), table.detach().numpy())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-5)


def differences(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Return the gradient by central differences."""
    actual = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[index] = step
        actual[index] = (function(at + moved) - function(at - moved)) / (2 * step)
    return actual


@every_objective
def test_the_total_is_a_number_and_not_negative(case: Case) -> None:
    totals = torch.stack([case.total(world(case, seed=seed)) for seed in range(10)])
    assert totals.shape == (10,)
    assert (totals >= 0).all()


@matching
def test_the_total_is_zero_at_a_match(case: Case) -> None:
    assert case.total(world(case, matched=True)).item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_objective_of_the_catalog_keeps_the_promises(kind: type) -> None:
    assert any(type(case.objective) is kind for case in CATALOG.values())


@every_objective
def test_it_declares_whether_it_compares_examples(case: Case) -> None:
    assert compares_examples(case.bound(world(case))) is case.compares_examples


@every_sum_of_examples
@pytest.mark.parametrize("parts", [2, 4])
def test_totals_and_counts_of_the_parts_add_up(case: Case, parts: int) -> None:
    seen = world(case)
    pieces = seen.batch.split(parts)
    totals = torch.stack([case.total(seen, piece) for piece in pieces])
    assert totals.sum().item() == pytest.approx(case.total(seen).item(), rel=case.tolerance)
    term = case.bound(seen)
    assert sum(term.count(piece) for piece in pieces) == term.count(seen.batch)


@every_objective
def test_the_count_is_the_number_of_positions_that_matter(case: Case) -> None:
    seen = world(case)
    table = case.student_table(seen).requires_grad_()
    (gradient,) = torch.autograd.grad(case.total(seen), table)
    matters = gradient.abs().sum(-1).nonzero().flatten().tolist()
    assert matters == case.positions
    assert case.bound(seen).count(seen.batch) * case.group == len(matters)


@every_objective
def test_positions_that_do_not_count_do_not_change_the_total(case: Case) -> None:
    seen, changed = world(case), world(case)
    others = [row for row in range(case.num_examples * LENGTH) if row not in case.positions]
    for table in changed.tables.values():
        table[others] += 1e3
    assert torch.equal(case.total(changed), case.total(seen))


@every_objective
def test_only_the_student_gets_a_gradient(case: Case) -> None:
    seen = world(case)
    for table in seen.tables.values():
        table.requires_grad_()
    case.total(seen).backward()
    with_gradient = {name for name, table in seen.tables.items() if table.grad is not None}
    assert with_gradient == {"student logits" if case.reads == "logits" else "student"}


def adapter_state(term: BoundObjective) -> dict[str, Tensor]:
    adapter = adapter_of(term)
    return {} if adapter is None else copy.deepcopy(adapter.state_dict())


@every_objective
def test_binding_again_draws_nothing_and_gives_the_same_adapter(case: Case) -> None:
    seen = world(case)
    before = seeding.global_state()
    one, other = (adapter_state(case.bound(seen)) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert seeding.global_state() == before


@training_besides
def test_looking_at_the_loss_changes_no_adapter(case: Case) -> None:
    seen = world(case)
    term = case.bound(seen)
    before = adapter_state(term)
    target = term.target(seen.shown("teacher", seen.batch), seen.batch)
    term.total(seen.shown("student", seen.batch), target, seen.batch).backward()
    torch.testing.assert_close(adapter_state(term), before, rtol=0, atol=0)


@training_besides
def test_every_parameter_of_an_adapter_gets_a_gradient(case: Case) -> None:
    seen = world(case)
    term = case.bound(seen)
    adapter = adapter_of(term)
    assert adapter is not None
    target = term.target(seen.shown("teacher", seen.batch), seen.batch)
    term.total(seen.shown("student", seen.batch), target, seen.batch).backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@every_objective
def test_a_copy_has_an_adapter_of_its_own(case: Case) -> None:
    term = case.bound(world(case))
    own, copied = adapter_of(term), adapter_of(copy.deepcopy(term))
    assert (own is None) == (copied is None)
    for one, other in zip(
        *(list(each.parameters()) if each else [] for each in (own, copied)), strict=True
    ):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CATALOG.items() if not case.is_pooled]
)
def test_a_part_without_any_position_adds_nothing(case: Case) -> None:
    seen = world(case)
    table = case.student_table(seen).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Batch(
        inputs=seen.batch.inputs[:2] if isinstance(seen.batch.inputs, Tensor) else {},
        labels=nothing if case.selects else None,
        selected=nothing if case.selects else None,
        valid=torch.zeros(2, LENGTH, dtype=torch.bool),
    )
    total = case.total(seen, empty)
    assert total.item() == 0
    assert case.bound(seen).count(empty) == 0
    (gradient,) = torch.autograd.grad(total, table)
    assert not gradient.any()


@every_objective
def test_it_survives_plain_data(case: Case) -> None:
    data = plain(case.objective)
    assert parse(type(case.objective), data) == case.objective
    assert parse(AnyObjective, data) == case.objective


@every_objective
def test_it_survives_plain_data_inside_a_stage(case: Case) -> None:
    stage = Stage(name="stage", duration="3 steps", objectives=(case.objective,))
    assert parse(Stage, plain(stage)) == stage


@every_objective
@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_its_weight_is_positive(case: Case, weight: float) -> None:
    kind = type(case.objective)
    with pytest.raises(
        SpecError, match=rf"'{kind.__name__}.weight' must be greater than 0; got {weight}"
    ):
        kind(**plain(case.objective) | {"weight": weight})
