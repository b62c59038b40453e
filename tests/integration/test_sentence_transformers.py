"""Models of sentence-transformers, of their own package: taught, returned, exported and loaded."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import curricle
from curricle import seeding
from curricle.integrations.sentence_transformers import TextCollator
from curricle.models.sentence_encoder import Pooling, SentenceEncoder, SentenceEncoderSpec

pytestmark = [
    pytest.mark.integration,
    # What the package and transformers warn of is no matter of curricle.
    pytest.mark.filterwarnings("default"),
]
WORDS = [f"w{number}" for number in range(40)]
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
TEXTS = [" ".join(WORDS[(number * step) % 40] for step in (1, 3, 7)) for number in range(24)]


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    entries = ["[PAD]", "[UNK]", *words]
    inner = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(entries)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def write(
    folder: Path,
    *,
    width: int,
    layers: int,
    words: list[str] = WORDS,
    pooling: Pooling = "mean",
    output: int | None = None,
) -> Path:
    """Write a small model in the layout of sentence-transformers."""
    with seeding.scoped(width, "encoder"):
        config = BertConfig(
            vocab_size=len(words) + 2,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=16,
        )
        model = SentenceEncoder(BertModel(config), pooling=pooling, width=output, max_length=12)
    model.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


def opened(folder: Path) -> Any:
    package = pytest.importorskip("sentence_transformers")
    # Linear maps draw their first weights before those of the folder are read.
    with seeding.scoped(0, "opened"):
        return package.SentenceTransformer(str(folder), device="cpu")


def agreement(student: Any, teacher: Any) -> float:
    """Return the rank correlation of the similarities of all pairs of texts."""
    places = np.tril_indices(len(TEXTS), -1)
    student_cosines, teacher_cosines = (
        (rows @ rows.T)[places]
        for rows in (model.encode(TEXTS).astype(np.float64) for model in (student, teacher))
    )
    return float(stats.spearmanr(student_cosines, teacher_cosines).statistic)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("output", [None, 6])
def test_a_written_folder_gives_its_embeddings(
    pooling: Pooling, output: int | None, tmp_path: Path
) -> None:
    folder = write(tmp_path, width=8, layers=2, pooling=pooling, output=output)
    expected = opened(folder).encode(TEXTS, convert_to_tensor=True)
    with seeding.scoped(0, "opened"):
        own = SentenceEncoderSpec(path=str(folder)).build(
            num_inputs=42, num_classes=1, num_positions=12
        )
    features = tokenizer(WORDS)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        actual = own.module.eval()(**features)["sentence_embedding"]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("words", [WORDS, [*reversed(WORDS)]], ids=["tokenizer", "two tokenizers"])
def test_a_student_is_returned_closer_to_its_teacher(words: list[str], tmp_path: Path) -> None:
    student = opened(write(tmp_path / "student", width=8, layers=2)).train()
    teacher = opened(write(tmp_path / "teacher", width=12, layers=4, words=words))
    collate = TextCollator(student, teacher=teacher)
    held_out, before = [collate(TEXTS)], agreement(student, teacher)
    data: Any = DataLoader(TEXTS, batch_size=12, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    assert (held_out[0].teacher_inputs is None) == (words is WORDS)
    result = curricle.distill(
        student,
        teacher,
        curricle.extraction(total="240 steps", final_objective=curricle.MatchSimilarities()),
        data,
        evaluation=held_out,
        metric="teacher_spearman",
        optimizer=curricle.AdamW(learning_rate=0.01),
    )
    assert result.student is student
    assert result.metrics["teacher_spearman"] == pytest.approx(agreement(student, teacher))
    assert result.metrics["teacher_spearman"] > max(before, 0.5)
    exported = curricle.export(student, tmp_path / "export", layout="sentence-transformers")
    assert {"modules.json", "README.md", "tokenizer.json"} <= {*exported.files}
    assert "library_name: sentence-transformers" in (exported.folder / "README.md").read_text()
    again = opened(exported.folder).encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(again, cast("Any", student).encode(TEXTS, convert_to_tensor=True))


@pytest.mark.parametrize("name", ["query", None])
def test_texts_are_read_with_the_default_prompt_of_the_model(
    name: str | None, tmp_path: Path
) -> None:
    model = opened(write(tmp_path, width=8, layers=2))
    model.prompts, model.default_prompt_name = {"query": "w5 w6 "}, name
    batch = TextCollator(model)(TEXTS)
    with torch.no_grad():
        actual = model(dict(cast("Any", batch.inputs)))["sentence_embedding"]
    torch.testing.assert_close(actual, model.encode(TEXTS, convert_to_tensor=True))


def test_settings_of_a_folder_survive_the_round_trip(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", width=8, layers=2)
    model = opened(folder)
    model.prompts, model.similarity_fn_name = {"query": "w5 w6 ", "document": ""}, "dot"
    model.save_pretrained(str(folder))
    limits = folder / "sentence_bert_config.json"
    limits.write_text(json.dumps(json.loads(limits.read_text()) | {"do_lower_case": True}))
    with seeding.scoped(0, "opened"):
        own: Any = SentenceEncoderSpec(path=str(folder)).build(
            num_inputs=42, num_classes=1, num_positions=12
        )
    own.module.save_pretrained(tmp_path / "copy")
    tokenizer(WORDS).save_pretrained(tmp_path / "copy")
    copied = opened(tmp_path / "copy")
    assert copied.prompts == {"query": "w5 w6 ", "document": ""}
    assert (copied.similarity_fn_name, copied.default_prompt_name) == ("dot", None)
    assert json.loads((tmp_path / "copy" / limits.name).read_text())["do_lower_case"] is True
    for options in ({}, {"prompt_name": "query"}):
        expected = model.encode(TEXTS, convert_to_tensor=True, **options)
        torch.testing.assert_close(
            copied.encode(TEXTS, convert_to_tensor=True, **options), expected
        )


def test_numbered_taps_are_the_states_of_the_transformer_inside(tmp_path: Path) -> None:
    model = opened(write(tmp_path, width=8, layers=3))
    tapped = curricle.tapped(model)
    inputs = TextCollator(model)(TEXTS[:4]).inputs
    assert isinstance(inputs, dict)
    places = [tapped.place(number) for number in range(4)]
    with torch.no_grad(), tapped.open_taps(places, logits=False) as forward:
        activations = forward(inputs)
        expected = model[0].auto_model(**inputs, output_hidden_states=True).hidden_states
    for place, states in zip(places, expected, strict=True):
        assert torch.equal(activations.hidden[place], states)


def test_the_code_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    write(tmp_path / "path/to/teacher", width=12, layers=4)
    write(tmp_path / "path/to/student", width=8, layers=4)
    section = GUIDE.read_text().split("## Sentence embeddings")[1]
    code = section.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    with seeding.scoped(0, "guide"):
        exec(compile(code.replace("1k steps", "8 steps"), "guide", "exec"), {})
    assert opened(tmp_path / "my-student").encode(["w1"]).shape == (1, 8)
