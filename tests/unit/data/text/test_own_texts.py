"""Texts of a user as next-token batches, for training and evaluation."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.text.tokenizing import train_tokenizer
from curricle.errors import BindError, CurricleError, DataError, SpecError

LINES = ["the cat sat on the mat and the rat sat on the hat\n", "a hat for the cat\n"] * 10
TOKENIZER = train_tokenizer(LINES, 280)
SIZE = TOKENIZER.get_vocab_size()


class Decoder(nn.Module):
    """Logits from the token alone, hence a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(SIZE, SIZE)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        del attention_mask
        logits: Tensor = self.table(input_ids)
        return logits


def decoder(seed: int = 0) -> Decoder:
    with seeding.scoped(seed, "model"):
        return Decoder()


def windows(**options: Any) -> Any:
    return curricle.text_stream(
        options.pop("texts", LINES), TOKENIZER, **{"window": 16, "batch_size": 4, **options}
    )


def tokens() -> list[int]:
    encoded = TOKENIZER.encode_batch(LINES, add_special_tokens=False)
    return [number for text in encoded for number in text.ids]


def loss_by_hand(model: nn.Module, rows: Tensor) -> float:
    with torch.no_grad():
        logits = model(rows)[:, :-1].flatten(0, 1)
    return float(nn.functional.cross_entropy(logits, rows[:, 1:].flatten()))


def rows_of_text() -> Tensor:
    ids = torch.tensor(tokens())
    return ids[: len(ids) // 16 * 16].reshape(-1, 16)


def test_windows_hold_the_tokens_of_all_texts_in_order() -> None:
    batches = windows().held_out()
    ids = torch.cat([batch.leading for batch in batches])
    assert torch.equal(ids, rows_of_text())
    # The last batch is smaller, and no window is left out.
    assert [batch.num_examples for batch in batches[:-1]] == [4] * (len(batches) - 1)
    assert 0 < batches[-1].num_examples < 4
    assert all(batch.predicts_tokens for batch in batches)


def test_the_order_follows_the_seed_and_settings_of_the_tokenizer_have_no_effect() -> None:
    cut = type(TOKENIZER).from_str(TOKENIZER.to_str())
    cut.enable_truncation(3)
    cut.enable_padding(length=64)
    again = curricle.text_stream(iter(LINES), cut, window=16, batch_size=4)
    assert again.fingerprint == windows().fingerprint
    assert torch.equal(again.batch(2).leading, windows().batch(2).leading)
    assert not torch.equal(windows(seed=1).batch(0).leading, windows().batch(0).leading)
    assert cut.truncation is not None


def test_special_tokens_of_the_texts_are_predicted_as_by_a_loader_of_the_windows() -> None:
    stream = windows(texts=["the cat <mask> sat on the mat<pad>\n" * 16])
    batches = stream.held_out()
    special = [TOKENIZER.token_to_id(name) for name in ("<mask>", "<pad>")]
    for number in special:
        assert any(bool((batch.labels == number).any()) for batch in batches)
    rows = [row for batch in batches for row in batch.leading]
    loader: DataLoader[Any] = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    again = curricle.stream(loader, next_token=True).held_out()
    for batch, other in zip(batches, again, strict=True):
        assert batch.labels is not None
        assert other.labels is not None
        assert torch.equal(batch.labels, other.labels)
        assert batch.selected is not None
        assert other.selected is not None
        assert torch.equal(batch.selected, other.selected)


def test_a_text_is_evaluated_like_the_mean_over_its_next_tokens() -> None:
    model = decoder()
    evaluation = curricle.evaluate(model, windows(), repetitions=1)
    wanted = loss_by_hand(model, rows_of_text())
    numbers = evaluation.student.metrics
    assert set(numbers) == {"accuracy", "nll", "perplexity"}
    assert numbers["nll"] == pytest.approx(wanted)
    assert numbers["perplexity"] == pytest.approx(math.exp(wanted))
    assert evaluation.num_examples == len(rows_of_text())


ITEMS: dict[str, Callable[[Tensor], object]] = {
    "labels": lambda row: {"input_ids": row, "labels": row},
    "ids alone": lambda row: {"input_ids": row},
    "a mask": lambda row: {"input_ids": row, "attention_mask": torch.ones_like(row)},
    "no name": lambda row: row,
}


@pytest.mark.parametrize("form", ITEMS)
def test_a_loader_of_a_decoder_is_evaluated_on_its_next_tokens(form: str) -> None:
    items: list[Any] = [ITEMS[form](row) for row in rows_of_text()]
    loader: DataLoader[Any] = DataLoader(items, batch_size=4)  # type: ignore[arg-type]
    model = decoder()
    evaluation = curricle.evaluate(model, loader, next_token=True, repetitions=1)
    assert evaluation.student.metrics["nll"] == pytest.approx(loss_by_hand(model, rows_of_text()))
    # The same as held-out data of a run.
    streamed = curricle.evaluate(model, curricle.stream(loader, next_token=True), repetitions=1)
    assert streamed.student.metrics == evaluation.student.metrics


def test_padding_of_ids_alone_is_left_out_by_the_mask() -> None:
    rows, mask = rows_of_text()[:4].clone(), torch.ones(4, 16, dtype=torch.long)
    rows[:, 10:], mask[:, 10:] = 0, 0
    items: list[Any] = [
        {"input_ids": row, "attention_mask": places} for row, places in zip(rows, mask, strict=True)
    ]
    loader: DataLoader[Any] = DataLoader(items, batch_size=2)  # type: ignore[arg-type]
    model = decoder()
    evaluation = curricle.evaluate(model, loader, next_token=True, repetitions=1)
    assert evaluation.student.metrics["nll"] == pytest.approx(loss_by_hand(model, rows[:, :10]))


def test_a_stream_is_training_and_held_out_data_of_a_run() -> None:
    data, held_out = windows(), windows(texts=LINES[:6], purpose="evaluation")
    model = decoder()
    result = curricle.distill(
        model,
        decoder(1),
        curricle.one_shot(total="0.5 epochs", label_weight=1.0),
        data,
        evaluation=held_out,
        metric="perplexity",
    )
    ids = torch.cat([batch.leading for batch in held_out.held_out()])
    assert result.metrics["nll"] == pytest.approx(loss_by_hand(model, ids))


def test_a_stream_without_a_reading_of_its_own_gives_its_whole_batches() -> None:
    class Rows:
        batch_size, tokens_per_batch, fingerprint, examples_per_epoch = 2, 2, "rows", 5

        def batch(self, step: int) -> Batch:
            ids = rows_of_text()[2 * step : 2 * step + 2]
            return Batch(inputs=ids, labels=ids[:, 0])

    with seeding.scoped(0, "model"):
        model = nn.Sequential(nn.Embedding(SIZE, 4), nn.Flatten(), nn.Linear(64, SIZE))
    assert curricle.evaluate(model, Rows(), repetitions=1).num_examples == 4


def endless() -> Any:
    return curricle.ParityStream(num_inputs=4, degree=2, batch_size=2, seed=0)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: windows(texts="abc"), DataError, r"^'texts' must be an iterable .* as \[text\]"),
        (
            lambda: inspect.unwrap(curricle.text_stream)(
                [b"abc"], TOKENIZER, window=8, batch_size=2
            ),
            DataError,
            "^'texts' must be strings; got 'bytes'$",
        ),
        (lambda: windows(texts=["abc"]), DataError, "at least one window of 16 tokens; got 3"),
        (lambda: windows(window=1), SpecError, "^'window' must be at least 2"),
        (
            lambda: curricle.text_stream(LINES, len, window=8, batch_size=2),
            BindError,
            "^'tokenizer' must be a fast tokenizer of transformers or .*; got 'builtin_",
        ),
        (
            lambda: curricle.evaluate(decoder(), endless()),
            BindError,
            "^'evaluation' must be a stream of a known length, .*; got 'ParityStream' without one",
        ),
        (
            lambda: inspect.unwrap(curricle.evaluate)(decoder(), LINES),
            BindError,
            r"got texts, which curricle.text_stream\(texts, tokenizer, window=.* reads$",
        ),
    ],
)
def test_other_texts_and_held_out_data_are_refused(
    call: Callable[[], object], kind: type[CurricleError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        call()


def test_labels_that_repeat_the_ids_name_the_argument_of_evaluate() -> None:
    items: list[Any] = [ITEMS["labels"](row) for row in rows_of_text()]
    loader: DataLoader[Any] = DataLoader(items, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"as curricle.evaluate\(..., next_token=True\) does$"):
        curricle.evaluate(decoder(), loader)
    shifted: list[Any] = [{"input_ids": row[:-1], "labels": row[1:]} for row in rows_of_text()]
    loader = DataLoader(shifted, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"all \d+ compared labels .* are the token after it"):
        curricle.evaluate(decoder(), loader, next_token=True)
