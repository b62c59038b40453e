"""Tasks of the LM Evaluation Harness are run on a model's folder, and what fails is a sentence."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from curricle import seeding
from curricle.errors import BindError, SpecError
from curricle.runs import harness
from curricle.runs.harness import HarnessScores, harness_scores

RESULTS = {
    "copa": {"alias": "copa", "acc,none": 0.75, "acc_stderr,none": 0.05, "sample_len": 4},
    "gsm": {"exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"},
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the calls of a package that stands for lm_eval."""
    found: list[dict[str, Any]] = []

    def evaluate(**arguments: Any) -> dict[str, Any]:
        found.append(arguments)
        if "lost" in arguments["tasks"]:
            raise KeyError("no task 'lost'")
        return {"results": RESULTS}

    package, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
    package.__dict__.update(simple_evaluate=evaluate, __version__="0.4.9")
    tasks.__dict__.update(TaskManager=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setattr(harness, "language_head", lambda _: "causal_lm")
    return found


def test_names_and_files_are_passed_on_and_numbers_come_back(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("# mine\ntask: own_task\ndataset_path: json\n", encoding="utf-8")
    scores = harness_scores(tmp_path / "model", ["copa", str(file)], limit=5)
    (call,) = calls
    assert call["model"] == "hf"
    assert call["model_args"] == {"pretrained": str(tmp_path / "model"), "device": "cpu"}
    assert (call["tasks"], call["limit"]) == (["copa", "own_task"], 5)
    assert call["task_manager"].include_path == [str(tmp_path)]
    assert scores.plain() == {
        "lm_eval": "0.4.9",
        "tasks": {
            "copa": {"acc": 0.75, "acc_stderr": 0.05},
            "gsm": {"exact_match,strict": 0.5},
        },
    }
    assert scores.grid().rows == (
        ("copa", "acc", "0.7500", "0.0500"),
        ("gsm", "exact_match,strict", "0.5000", "–"),
    )
    assert "| copa | acc | 0.7500 | 0.0500 |" in str(scores)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("lost", None, r"'--lm-eval' must name tasks that lm_eval can evaluate; got lost: KeyErr"),
        ("own.yaml", None, "got '.*own.yaml', no file"),
        ("own.yaml", "group: many", "must have a line 'task: NAME'"),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence(
    calls: list[dict[str, Any]], tmp_path: Path, name: str, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    task = name if name == "lost" else str(tmp_path / name)
    with pytest.raises(SpecError, match=sentence):
        harness_scores(tmp_path, [task])
    assert len(calls) == (name == "lost")


def test_a_model_of_hidden_tokens_is_refused(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness, "language_head", lambda _: "masked_lm")
    with pytest.raises(BindError, match="of a model that predicts next tokens; got one with head"):
        harness_scores(tmp_path, ["copa"])
    assert not calls


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BindError, match=r"pip install 'curricle\[lm-eval\]'"):
        harness_scores(tmp_path, ["copa"])


OWN = """\
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
"""


@pytest.mark.filterwarnings("ignore")
def test_the_package_itself_evaluates_a_local_task(
    tmp_path: Path, decoder_folder: Callable[[Path], Path]
) -> None:
    pytest.importorskip("lm_eval")
    data = tmp_path / "rows.jsonl"
    rows = [f'{{"text": "a b", "choices": ["a", "b"], "label": {i % 2}}}' for i in range(6)]
    data.write_text("\n".join(rows), encoding="utf-8")
    file = tmp_path / "letters.yaml"
    file.write_text(OWN.format(data=data), encoding="utf-8")
    scores = harness_scores(decoder_folder(tmp_path / "model"), [str(file)])
    # The same choice is taken for every row, and is right for every other.
    assert scores.by_task["letters"]["acc"] == 0.5
    assert isinstance(scores, HarnessScores)


@pytest.fixture
def decoder_folder() -> Callable[[Path], Path]:
    """Return a function that writes a tiny decoder with a tokenizer of letters."""

    def write(folder: Path) -> Path:
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = {"<s>": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
        ).save_pretrained(folder)
        config = transformers.GPT2Config(
            vocab_size=8, n_positions=32, n_embd=8, n_layer=1, n_head=1, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        with seeding.scoped(0, "model"):
            transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        return folder

    return write
