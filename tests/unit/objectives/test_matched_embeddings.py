"""Objectives on embeddings refuse what they cannot compare, and bind to models of any width."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, CurricleError, DataError
from curricle.objectives.channel_selection import ChannelSelection
from curricle.objectives.matched_embeddings import (
    MatchEmbeddings,
    MatchMargins,
    MatchSimilarities,
)
from curricle.objectives.projections import Learned, Orthogonal
from curricle.teachers.store.codecs import Exact
from tests.parts import drawn

STEPS = 120


class Embedder(nn.Module):
    """Gives an embedding by the name of sentence-transformers."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with seeding.scoped(seed, "embedder"):
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, width)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features["sentence_embedding"] = self.outer(torch.tanh(self.inner(features["x"])))
        return features


class Batches:
    """Batches of vectors under a name."""

    batch_size = tokens_per_batch = 12
    fingerprint = "vectors"

    def __init__(self, group: int = 1, **labels: Tensor) -> None:
        self.fields: dict[str, Any] = {"group": group, **labels}

    def batch(self, step: int) -> Batch:
        return Batch(inputs={"x": drawn(self.batch_size, 4, seed=step)}, **self.fields)


def distill(
    objective: Any,
    *,
    widths: tuple[int, int] = (3, 5),
    data: Batches | None = None,
    **settings: Any,
) -> Any:
    group = objective.texts if isinstance(objective, MatchMargins) else 1
    return curricle.distill(
        Embedder(widths[0], 0),
        Embedder(widths[1], 1),
        curricle.one_shot(total=f"{STEPS} steps", objective=objective),
        data or Batches(group),
        evaluation=[Batches().batch(number) for number in range(1000, 1004)],
        metric="teacher_spearman",
        optimizer=curricle.AdamW(learning_rate=0.02),
        settings=curricle.TrainingSettings(**settings),
    )


@pytest.mark.parametrize(
    "objective",
    [
        MatchSimilarities(),
        MatchSimilarities(divergence="kl", temperature=0.2),
        MatchMargins(negatives=2),
        MatchEmbeddings(projection=Learned()),
        MatchEmbeddings(projection=Orthogonal(), distance="squared_error"),
    ],
    ids=["similarities", "by KL", "margins", "learned map", "fixed map"],
)
def test_a_student_of_another_width_learns_the_similarities_of_its_teacher(objective: Any) -> None:
    before = distill(objective, widths=(3, 5), eval_every=STEPS)
    assert before.metrics["teacher_spearman"] > 0.85


@pytest.mark.parametrize(
    ("objective", "settings", "sentence"),
    [
        (MatchEmbeddings(), {}, r"the same width without a projection; got 3 and 5; MatchSimil"),
        (
            MatchEmbeddings(projection=ChannelSelection()),
            {},
            r"'projection' of embeddings must be 'learned' or drawn, .*; got 'selection'",
        ),
        (
            MatchSimilarities(),
            {"gradient_accumulation_steps": 2},
            r"'gradient_accumulation_steps' must be 1 for MatchSimilarities, .*; got 2",
        ),
        (
            MatchMargins(),
            {"data": Batches()},
            r"must be 3 for MatchMargins \(query, positive and 1 negative\); got 1,.*group=3\)",
        ),
        (
            MatchMargins(),
            {"data": Batches(4)},
            r"'group' of the batches must be 3 for MatchMargins .*; got 4, which are groups of 4;",
        ),
        (
            MatchMargins(negatives=4),
            {"data": Batches(3)},
            r"'group' of the batches must be 6 for .* \(query, positive and 4 negatives\); got 3",
        ),
        (
            curricle.LabelLoss(loss="similarity"),
            {"data": Batches(labels=torch.ones(12, 1))},
            r"'group' .* must be 2 for loss='similarity' \(two texts of a pair\); got 1",
        ),
        (curricle.MatchLogits(), {}, r"student must be scores of classes for forward_kl; got sent"),
        (
            curricle.LabelLoss(),
            {},
            r"student must be scores of classes for cross-entropy; got sentence embeddings",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    objective: Any, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BindError, match=sentence):
        distill(objective, **settings)


@pytest.mark.parametrize(
    ("objective", "data", "steps", "sentence"),
    [
        (MatchMargins(), Batches(3), 3, r"must divide the 4 groups of 3 examples of a batch"),
        (
            curricle.LabelLoss(loss="similarity"),
            Batches(2, labels=torch.ones(12, 1)),
            4,
            r"must divide the 6 groups of 2 examples of a batch",
        ),
    ],
)
def test_accumulation_that_cuts_groups_is_named(
    objective: Any, data: Batches, steps: int, sentence: str
) -> None:
    with pytest.raises(
        DataError, match=rf"^'gradient_accumulation_steps' {sentence}, .*; got {steps}$"
    ):
        distill(objective, data=data, gradient_accumulation_steps=steps)


def test_a_batch_of_a_single_text_has_no_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batches, "batch_size", 1)
    with pytest.raises(BindError, match=r"'batch_size' must be 2 or more .*; got 1"):
        distill(MatchSimilarities())


def test_accumulation_gives_the_same_embeddings_and_margins() -> None:
    for objective in (MatchEmbeddings(projection=Orthogonal()), MatchMargins()):
        whole, parts = (
            distill(objective, gradient_accumulation_steps=number).student.state_dict()
            for number in (1, 2)
        )
        for name, weight in whole.items():
            assert torch.allclose(weight, parts[name], atol=1e-3), objective.kind


def test_outputs_that_are_no_rows_have_no_margins() -> None:
    class Tokens(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            with seeding.scoped(seed, "tokens"):
                self.table = nn.Embedding(9, 3)

        def forward(self, input_ids: Tensor) -> Tensor:
            states: Tensor = self.table(input_ids)
            return states

    class Ids:
        batch_size, tokens_per_batch, fingerprint = 6, 12, "ids"

        def batch(self, step: int) -> Batch:
            return Batch(inputs={"input_ids": torch.arange(12).reshape(6, 2) % 9})

    with pytest.raises(CurricleError, match=r"must be one embedding for each of the 6 texts"):
        curricle.distill(
            Tokens(0),
            Tokens(1),
            curricle.one_shot(total="2 steps", objective=MatchMargins()),
            Ids(),
            evaluation=[Ids().batch(0)],
            metric="teacher_cosine",
        )


def test_targets_are_the_outputs_of_the_teacher_and_may_be_stored(tmp_path: Any) -> None:
    curriculum = curricle.one_shot(total="5 steps", objective=MatchSimilarities())
    curricle.capture_targets(
        Embedder(3, 0),
        Embedder(5, 1),
        curriculum,
        Batches(),
        folder=tmp_path / "targets",
        compression=curricle.TargetCompression(logits=Exact()),
    )
    results = [
        curricle.distill(
            Embedder(3, 0),
            teacher,
            curriculum,
            Batches(),
            evaluation=lambda model: {"zero": 0.0},
            metric="zero",
        ).student.state_dict()
        for teacher in (Embedder(5, 1), curricle.open_targets(tmp_path / "targets"))
    ]
    for name, weight in results[0].items():
        assert torch.allclose(weight, results[1][name], atol=1e-6)
