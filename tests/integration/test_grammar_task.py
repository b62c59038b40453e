"""Strings of a grammar from a file: planned and trained with encoders and decoders."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from curricle import seeding
from curricle.data.batch import Batch
from curricle.models.huggingface import Head, HuggingFaceSpec
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.base import Sample
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.records import EndRecord, read_records
from curricle.tasks import PcfgTask

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
# Strings of at most 18 tokens, whose rows hold padding.
TASK: dict[str, Any] = {"kind": "pcfg", "start": 13, "batch_size": 4, "evaluation_batches": 1}
SPEC: dict[str, Any] = {
    "output_dir": "run",
    "cache_dir": "cache",
    "strategies": {
        "one_shot": {"curriculum": {"kind": "one_shot"}},
        "extraction": {"curriculum": {"kind": "extraction"}},
    },
    "seeds": [0],
    "budget": "4 steps",
    "optimizer": {"kind": "adamw", "learning_rate": 0.01},
    "engine": {"threads": 1},
}
FAMILIES = [
    ("bert", "masked_lm", {}),
    ("bert", "masked_lm", {"masking_quirk": True}),
    ("modernbert", "masked_lm", {"pad_to": "batch"}),
    ("gpt2", "causal_lm", {"objective": "next_token", "span_level": 1}),
]
EVERY_FAMILY = pytest.mark.parametrize(
    ("family", "head", "fields"), FAMILIES, ids=["bert", "quirk", "modernbert", "gpt2"]
)


def model(family: str, head: str, width: int) -> dict[str, Any]:
    """Return a small transformer of a family."""
    inner = "n_inner" if family == "gpt2" else "intermediate_size"
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": width}
    return {"kind": "hf", "model_type": family, "head": head, "config": config | {inner: width}}


def written(folder: Path, family: str, head: str, fields: dict[str, Any]) -> Path:
    """Return the file of a comparison."""
    spec = copy.deepcopy(SPEC) | {
        "task": TASK | fields,
        "teacher": {"model": model(family, head, 16), "total": "4 steps", "checkpoints": 2},
        "student": model(family, head, 8),
    }
    path = folder / "strings.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


@EVERY_FAMILY
def test_strings_are_planned_without_writing(
    command: Command, tmp_path: Path, family: str, head: str, fields: dict[str, Any]
) -> None:
    code, shown, told = command("plan", written(tmp_path, family, head, fields))
    assert (code, told) == (0, "")
    assert shown.count("whole run") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["strings.yaml"]


@EVERY_FAMILY
def test_strategies_are_compared_on_strings(
    command: Command, tmp_path: Path, family: str, head: str, fields: dict[str, Any]
) -> None:
    code, _, told = command("compare", written(tmp_path, family, head, fields))
    assert (code, told) == (0, "")
    runs = sorted(tmp_path.glob("run/students/*/seed-0/records.jsonl"))
    assert len(runs) == 2
    for run in runs:
        *_, end = read_records(run)
        assert isinstance(end, EndRecord)
        assert 0 <= end.metrics["accuracy"] <= 1


def test_a_network_without_positions_cannot_read_strings(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, "bert", "masked_lm", {})
    code, _, told = command("plan", path, "--set", "student={kind: mlp, widths: [8]}")
    assert code == 2
    assert "'student.kind' must be 'hf' or 'pretrained' for" in " ".join(told.split())


def opened(family: str, head: Head, fields: dict[str, Any], folder: Path) -> tuple[Any, Batch]:
    """Return a model in evaluation mode and a batch with padding."""
    data = PcfgTask(**{name: one for name, one in (TASK | fields).items() if name != "kind"}).open(
        seed=0, cache_dir=folder
    )
    with seeding.scoped(0, "test model"):
        built = HuggingFaceSpec(
            model_type=family, head=head, config=model(family, head, 16)["config"]
        ).build(
            num_inputs=data.num_inputs,
            num_classes=data.num_classes,
            num_positions=data.num_positions,
            padding_token=data.padding_token,
        )
    built.module.eval()
    return built, data.stream.batch(0)


def with_other_padding(batch: Batch) -> Batch:
    assert not isinstance(batch.inputs, torch.Tensor)
    assert batch.valid is not None
    ids = torch.where(batch.valid, batch.inputs["input_ids"], 1)
    assert not torch.equal(ids, batch.inputs["input_ids"])
    return Batch(
        inputs={**batch.inputs, "input_ids": ids},
        labels=batch.labels,
        selected=batch.selected,
        valid=batch.valid,
    )


def shown(built: TappedModel, batch: Batch) -> Activations:
    with torch.no_grad(), built.open_taps([built.place(2)], logits=True) as forward:
        return forward(batch.inputs, batch.selected)


@EVERY_FAMILY
def test_padding_changes_neither_logits_nor_the_loss_of_a_hidden_state(
    family: str, head: Head, fields: dict[str, Any], tmp_path: Path
) -> None:
    built, batch = opened(family, head, fields, tmp_path)
    other = with_other_padding(batch)
    one, changed = shown(built, batch), shown(built, other)
    assert one.logits is not None
    assert changed.logits is not None
    assert torch.equal(one.logits, changed.logits)
    assert not torch.equal(one.hidden[built.place(2)], changed.hidden[built.place(2)])
    declared = MatchHidden(pair=LayerPair(student=2, teacher=2))
    term = declared.bind(
        declared.reads(built, built),
        Sample(student=one, teacher=one, batch=batch, seed=0),
        is_residual=True,
    )
    assert batch.valid is not None
    assert term.count(batch) == int(batch.valid.sum()) < batch.valid.numel()
    losses = [
        term.total(seen, term.target(seen, each), each)
        for seen, each in ((one, batch), (changed, other))
    ]
    assert torch.equal(losses[0], losses[1])
