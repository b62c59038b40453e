"""Texts in the tokens of two tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch, named
from curricle.data.example_keys import example_keys
from curricle.data.streams import epoch_batches
from curricle.data.text.paired import PairedTexts, Spans
from curricle.data.text.tokenizing import train_tokenizer
from curricle.errors import BindError, DataError, SpecError
from curricle.objectives.vocabulary_groups import SortedProbabilities

LINES = ["the cat sat on the mat and the rat sat on the hat\n", "a hat for the cat\n"] * 20
FINE, COARSE = train_tokenizer(LINES, 268), train_tokenizer(LINES, 300)


class TokenNet(nn.Module):
    """A table of tokens, and a head."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        self.head = nn.Linear(width, size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        del attention_mask
        logits: Tensor = self.head(self.table(input_ids).tanh())
        return logits


def spans(*stops: int, starts: list[int] | None = None) -> Spans:
    begins = [0, *stops[:-1]] if starts is None else starts
    return Spans(
        ids=np.arange(len(stops)),
        starts=np.array(begins),
        ends=np.array(stops),
        special=np.array([], dtype=np.int64),
    )


def data(**changes: Any) -> PairedTexts:
    fields: dict[str, Any] = {"window": 8, "batch_size": 4}
    return curricle.paired_texts(LINES, COARSE, FINE, **fields | changes)


def test_the_note_has_the_share_of_aligned_positions() -> None:
    stream = curricle.paired_texts(LINES, FINE, COARSE, window=8, batch_size=4)
    shares = [float(stream.batch(step).matched.float().mean()) for step in range(20)]  # type: ignore[union-attr]
    assert stream.matched_share == pytest.approx(np.mean(shares), abs=0.1)
    assert stream.matched_share < 0.9
    assert f"{stream.matched_share:.1%} of the student's tokens end at the same" in stream.note
    # Five words of two letters in two tokens of the teacher each, and windows of two words.
    halves = PairedTexts(
        spans(2, 4, 6, 8, 10), spans(*range(1, 11)), window=2, batch_size=2, seed=0
    )
    assert halves.note.endswith("for 2 tokens of the student the teacher reads 4.0 on average")


def test_a_blank_that_only_the_teacher_reads_belongs_to_its_next_token() -> None:
    # aa bb cc dd ee: the student's tokens leave the blanks out, the teacher's begin with them.
    student = spans(2, 5, 8, 11, 14, starts=[0, 3, 6, 9, 12])
    teacher = spans(2, 5, 8, 11, 14)
    batch = PairedTexts(student, teacher, window=2, batch_size=2, seed=0).batch(0)
    expected = named(batch.inputs)["input_ids"]
    assert sorted(expected.tolist()) == [[0, 1], [2, 3]]
    assert torch.equal(named(batch.teacher_inputs)["input_ids"], expected)


def test_padding_of_the_teacher_is_masked() -> None:
    stream = data()
    inputs = named(stream.batch(0).teacher_inputs)
    assert inputs["input_ids"].shape == (4, stream.teacher_window)
    assert not inputs["attention_mask"].all()
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 0).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"window": 1}, SpecError, r"^'window' must be at least 2; got 1$"),
        ({"batch_size": 0}, SpecError, r"^'batch_size' must be at least 1; got 0$"),
        ({"window": 10_000}, DataError, r"^'texts' must hold at least one window of 10000 tokens"),
    ],
)
def test_wrong_sizes_are_refused(
    changes: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        data(**changes)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(
        BindError, match=r"^'teacher_tokenizer' must be a fast tok.*'str'; a folder"
    ):
        curricle.paired_texts(LINES, COARSE, "gpt2", window=8, batch_size=4)


def test_tokenizers_are_not_changed_and_add_nothing() -> None:
    from tokenizers.processors import TemplateProcessing

    adding = train_tokenizer(LINES, 300)
    adding.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 3)])
    adding.enable_truncation(2)
    before = adding.to_str()
    stream = curricle.paired_texts(LINES, adding, FINE, window=8, batch_size=4)
    assert torch.equal(named(stream.batch(0).inputs)["input_ids"], tokens_of(data()))
    assert adding.to_str() == before


def tokens_of(stream: PairedTexts) -> Tensor:
    return named(stream.batch(0).inputs)["input_ids"]


def distilled(objectives: tuple[Any, ...], stream: PairedTexts, **fields: Any) -> Any:
    with seeding.scoped(0, "models"):
        student, teacher = TokenNet(8, 300), TokenNet(12, 268)
    stage: dict[str, Any] = {"duration": curricle.Duration(number=4, unit="steps")}
    curriculum = curricle.Curriculum(
        name="two tokenizers",
        stages=(
            curricle.Stage(
                name="hidden",
                objectives=(
                    curricle.MatchHidden(pair=curricle.LayerPair(student="table", teacher="table")),
                ),
                **stage,
            ),
            curricle.Stage(name="logits", objectives=objectives, **stage),
        ),
    )
    return curricle.distill(
        student, teacher, curriculum, stream, evaluation=[data().batch(90)], **fields
    )


@pytest.mark.parametrize("comparison", ["sorted", "grouped"])
def test_both_kinds_of_stages_train_and_resume_bit_by_bit(comparison: str, tmp_path: Path) -> None:
    chosen = (
        SortedProbabilities() if comparison == "sorted" else curricle.token_groups(COARSE, FINE)
    )
    objectives = curricle.LabelLoss(), curricle.MatchPairedLogits(comparison=chosen)
    whole = distilled(objectives, data())
    settings = curricle.TrainingSettings(save_every=3)

    class Breaking:
        """A stream that fails at a step."""

        def __init__(self, stream: PairedTexts) -> None:
            self._stream = stream
            self.batch_size, self.tokens_per_batch = stream.batch_size, stream.tokens_per_batch
            self.fingerprint, self.is_armed = stream.fingerprint, True

        def batch(self, step: int) -> Batch:
            if step == 6 and self.is_armed:
                raise KeyboardInterrupt
            return self._stream.batch(step)

    with pytest.raises(KeyboardInterrupt):
        distilled(objectives, Breaking(data()), settings=settings, output_dir=tmp_path)  # type: ignore[arg-type]
    again = distilled(objectives, data(), settings=settings, output_dir=tmp_path, resume=True)
    assert any("% of the student's tokens end at the same" in note for note in whole.notes)
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, again.student.state_dict()[name])


def test_matching_by_class_is_refused() -> None:
    message = r"^stage 'logits': 'data' must have a counterpart .* by class; got 'matched' pos"
    with pytest.raises(BindError, match=message):
        distilled((curricle.MatchLogits(),), data())


def test_targets_of_paired_texts_are_not_stored() -> None:
    with pytest.raises(BindError, match=r"^'targets' cannot be stored or read for data with 'mat"):
        example_keys(data().batch(0), selected=False)


def test_matched_positions_come_with_an_alignment() -> None:
    inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.int64)}
    matched = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(DataError, match=r"^'matched' must come with an 'alignment'"):
        Batch(inputs=inputs, matched=matched)


@pytest.mark.parametrize("batch_size", [4, 7, 1000])
def test_held_out_windows_are_read_once_in_the_order_of_the_text(batch_size: int) -> None:
    stream = data(batch_size=batch_size)
    batches = stream.held_out()
    assert sum(batch.num_examples for batch in batches) == stream.num_windows
    assert {batch.num_examples for batch in batches[:-1]} <= {batch_size}
    rows = torch.cat([batch.leading for batch in batches])
    # The same windows as those of an epoch of training, one of each.
    single = data(batch_size=1)
    epoch = [single.batch(step).leading for step in range(single.num_windows)]
    assert sorted(rows.tolist()) == sorted(torch.cat(epoch).tolist())
    text = [number for line in COARSE.encode_batch(LINES) for number in line.ids]
    assert rows[0].tolist() == text[:8]
    assert len(epoch_batches(stream)) == len(batches)
