"""A card states what the records hold, in Markdown and metadata that others can read."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from curricle.extras import package_version
from curricle.records import EndRecord, Record, RunRecord, StagePlan, StageRecord, Usage
from curricle.runs.card import Card, model_card, stage_lengths


def plan(name: str, steps: int) -> StagePlan:
    return StagePlan(
        name=name, teacher="final", taps="1 <- 2", objective="MSE", projection="-", widths="4, 8",
        steps=steps, student_flops=10, teacher_flops=20, trained_parameters=3, memory_bytes=1,
    )  # fmt: skip


def run(**fields: Any) -> RunRecord:
    defaults: dict[str, Any] = {
        "method": "extraction", "seed": 5, "task": "(8,2)-parity", "metric": "accuracy",
        "batch_size": 16, "stages": (plan("hidden", 10), plan("logits", 20)),
        "student_parameters": 1234, "teacher_parameters": 56789,
        "versions": {"curricle": "0.1.0", "torch": "2.13.0"}, "device": "cpu float32",
    }  # fmt: skip
    return RunRecord(**(defaults | fields))


def records(opening: RunRecord, steps: int = 30) -> tuple[Record, ...]:
    end = Usage(
        steps=steps, examples=16 * steps, tokens=16 * steps, student_flops=1_234_000,
        teacher_flops=5_678_000, seconds=2.5,
    )  # fmt: skip
    return (
        opening,
        StageRecord(stage="hidden", usage=Usage()),
        StageRecord(stage="logits", usage=Usage(steps=7)),
        EndRecord(metrics={"accuracy": 0.75, "nll": 0.5}, usage=end),
    )


def card(**fields: Any) -> Card:
    defaults: dict[str, Any] = {
        "title": "a run",
        "class_name": "BertForMaskedLM",
        "library": "transformers",
        "loading": "model = load()",
        "records": records(run()),
    }
    return Card(**(defaults | fields))


def metadata(text: str) -> dict[str, Any]:
    before, head, _ = text.split("---\n", 2)
    assert not before
    document: dict[str, Any] = yaml.safe_load(head)
    return document


def row(text: str, name: str) -> list[str]:
    """Return the cells of the first table row that begins with a name."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_metadata_name_library_task_and_origin() -> None:
    text = model_card(card(base_model="owner/model", datasets=("wikitext",), onnx="it agrees"))
    assert metadata(text) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "base_model": "owner/model",
        "datasets": ["wikitext"],
        "metrics": ["accuracy", "nll"],
        "tags": [
            "curricle", "knowledge-distillation", "curriculum-learning", "onnx", "extraction",
        ],
    }  # fmt: skip


def test_what_is_unknown_is_left_out() -> None:
    text = model_card(card(records=(), class_name="MLP", library="pytorch"))
    assert metadata(text).keys() == {"library_name", "tags"}
    assert "## Results" not in text
    assert "None" not in text


def test_the_lengths_of_stages_are_those_that_were_taken() -> None:
    text = model_card(card())
    assert row(text, "hidden")[-2:] == ["7 of 10", str(7 * 16)]
    assert row(text, "logits")[-2:] == ["23 of 20", str(23 * 16)]


def test_a_stage_that_a_goal_left_out_has_no_steps() -> None:
    opening, first, _, end = records(run(), steps=4)
    assert isinstance(end, EndRecord)
    assert stage_lengths((opening, first, end), end) == {"hidden": 4}
    text = model_card(card(records=(opening, first, end)))
    assert row(text, "logits")[-2:] == ["0 of 20", "0"]


def test_usage_seeds_and_metrics_are_stated() -> None:
    text = model_card(card(seeds={"teacher": 3}, teacher="a large one", student="a small one"))
    assert row(text, "model") == ["model", "a small one", "a large one"]
    assert row(text, "parameters") == ["parameters", "1,234", "56,789"]
    assert row(text, "training FLOPs") == ["training FLOPs", "1.234e+06", "5.678e+06"]
    assert row(text, "examples")[1] == "480, 16 in each of 30 steps"
    assert row(text, "seeds")[1] == "run 5, teacher 3"
    assert row(text, "`accuracy`")[1] == "0.75"
    # Models without positions count an example as a token.
    assert "| tokens |" not in text


def test_tokens_are_stated_where_they_are_not_the_examples() -> None:
    *before, end = records(run())
    assert isinstance(end, EndRecord)
    longer = replace(end, usage=replace(end.usage, tokens=9_600))
    assert row(model_card(card(records=(*before, longer))), "tokens")[1] == "9,600"


@pytest.mark.parametrize(
    ("method", "teacher", "papers"),
    [
        ("extraction", 9, {"gupta2025curriculum"}),
        ("progressive", 9, {"panigrahi2025progressive"}),
        ("one_shot", 9, {"hinton2015distilling"}),
        ("my own", 9, {"gupta2025curriculum", "panigrahi2025progressive"}),
        ("from_labels", 0, set()),
    ],
)
def test_the_papers_of_the_method_are_cited(method: str, teacher: int, papers: set[str]) -> None:
    text = model_card(card(records=records(run(method=method, teacher_parameters=teacher))))
    known = {"gupta2025curriculum", "panigrahi2025progressive", "hinton2015distilling"}
    assert {key for key in known if f"{{{key}," in text} == papers
    assert "@software{curricle," in text
    assert "version={0.1.0}" in text


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ({"records": ()}, f"version={{{package_version()}}}"),
        ({"records": records(run(versions={}))}, None),
        ({"records": records(run(versions={"curricle": "unknown"}))}, None),
    ],
)
def test_a_version_is_cited_only_if_it_is_known(fields: Any, entry: str | None) -> None:
    text = model_card(card(**fields))
    assert "@software{curricle," in text
    assert ("version={" in text) == (entry is not None)
    assert entry is None or entry in text


def test_a_student_without_teacher_is_not_called_distilled() -> None:
    text = model_card(card(records=records(run(method="from_labels", teacher_parameters=0))))
    assert "1,234 parameters, trained from labels" in text


def test_texts_of_users_are_no_markup() -> None:
    text = model_card(
        card(title="a\n# b <script> | *c*", command="curricle distill 'a\x1b.yaml'",
             records=records(run(method="x`y", notes=("first [link](x)", "second")))),
    )  # fmt: skip
    assert "# a \\# b &lt;script> \\| \\*c\\*\n" in text
    assert "\x1b" not in text
    assert "`xy`" in text
    assert "- first \\[link\\](x)\n- second" in text
