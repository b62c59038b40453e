"""Promises of every task on labeled examples: from a spec to students of every kind of stage."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.errors import SpecError
from curricle.example_tasks import ExamplesTask
from curricle.metrics import METRICS
from curricle.models.huggingface import wrapped_tokenizer
from curricle.models.tapped import TappedModel
from curricle.records import StepRecord
from curricle.runs.assemble import build_model
from curricle.runs.spec import RunSpec
from curricle.runs.train import rehearse, student_runs, teach, train_student
from curricle.task_data import TaskData
from curricle.training.distill import distill
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from curricle.values import parse
from tests.parts import Listed, drawn

NUM_ROWS = 60
WORDS = ("red", "green", "blue", "loud", "soft", "old", "new", "warm")
TINY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
T5: dict[str, Any] = {
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_heads": 2,
    "num_layers": 2,
    "dropout_rate": 0.0,
}
LLAMA: dict[str, Any] = TINY | {"num_key_value_heads": 2}


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in (1, 3, 5))


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def tensors(path: Path, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    save_file({"inputs": inputs, "labels": labels}, path)


def bert(head: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "hf", "model_type": "bert", "head": head, "config": TINY | fields}


ENCODER: dict[str, Any] = {"kind": "sentence_encoder", "model_type": "bert", "config": TINY}


def causal(family: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "hf", "model_type": family, "head": "causal_lm", "config": fields}


def passage(number: int) -> str:
    return " ".join(sentence(number + step) for step in range(40))


SIDES = {"source": "translation.de", "target": "translation.en"}
MLP = {"kind": "mlp", "widths": [8, 8]}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A task with its data and a model."""

    task: Mapping[str, Any]
    model: Mapping[str, Any]
    file: str = "data.jsonl"
    rows: Callable[[int], Mapping[str, Any]] | None = None
    content: Sequence[Callable[[], torch.Tensor]] = ()
    metrics: Sequence[str] = ("accuracy", "nll")
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Any]:
        """Return the task after writing its data."""
        task = {"batch_size": 8, "evaluation_batches": 2, **self.task}
        if task["kind"] != "tensors":
            task = {"window": 12, "vocabulary_size": 300, **task}
        if task.get("data") == "digits":
            return task
        if "tokenizer" in task:
            chat_tokenizer(folder / "tokenizer")
            task |= {"tokenizer": str(folder / "tokenizer")}
        path = folder / self.file
        if self.rows is not None:
            write = table if path.suffix == ".csv" else jsonl
            write(path, [self.rows(number) for number in range(NUM_ROWS)])
        else:
            tensors(path, *(make() for make in self.content))
        return task | {"corpus" if task["kind"] == "text" else "data": str(path)}


def chat_tokenizer(folder: Path) -> None:
    """Write a tokenizer of words with a chat template."""
    ids = {word: number for number, word in enumerate(("[pad]", "[unk]", "[end]", *WORDS))}
    model = Tokenizer(WordLevel(ids, unk_token="[unk]"))
    model.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "[pad]", "unk_token": "[unk]", "eos_token": "[end]"}
    tokenizer: Any = wrapped_tokenizer(model, special=special)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %} [end]{% endif %} {% endfor %}"
    )
    tokenizer.save_pretrained(folder)


def values(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: drawn(NUM_ROWS, *shape)


def classes(*shape: int) -> Callable[[], torch.Tensor]:
    return values(*shape)().sign().add(1).long


CASES = {
    "classification": Case(
        task={"kind": "classification"}, model=bert("sequence_classification"), file="data.csv",
        rows=lambda n: {"text": sentence(n), "label": ["no", "yes", "so"][n % 3]},
    ),
    "two texts": Case(
        task={"kind": "classification"}, model=bert("sequence_classification"),
        rows=lambda n: {"premise": sentence(n), "hypothesis": sentence(n + 1), "label": n % 3},
    ),
    "several labels": Case(
        task={"kind": "several_labels", "columns": {"label": ["a", "b"]}}, file="data.csv",
        model=bert("sequence_classification"), metrics=("mean_squared_error", "average_precision"),
        rows=lambda n: {"text": sentence(n), "a": n // 20 % 2, "b": n // 5 % 2},
    ),
    "regression": Case(
        task={"kind": "regression"}, model=bert("sequence_classification"),
        rows=lambda n: {"sentence1": sentence(n), "sentence2": sentence(n * 3), "score": n / 10},
        metrics=("mean_squared_error",),
    ),
    "embedding": Case(
        task={"kind": "embedding"}, model=bert("sequence_classification"),
        rows=lambda n: {"text": sentence(n), "embedding": [n % 3, 1.0, -0.5]},
        metrics=("mean_squared_error", "cosine_similarity"),
    ),
    "embedding of an encoder": Case(
        task={"kind": "embedding"}, model=ENCODER | {"width": 3},
        rows=lambda n: {"text": sentence(n), "embedding": [n % 3, 1.0, -0.5]},
        metrics=("mean_squared_error", "cosine_similarity"),
    ),
    "similarity": Case(
        task={"kind": "similarity", "largest_score": 5}, model=ENCODER | {"pooling": "cls"},
        rows=lambda n: {"sentence1": sentence(n), "sentence2": sentence(n * 3), "score": n % 6},
        metrics=("similarity_spearman",),
    ),
    "token classification": Case(
        task={"kind": "token_classification"}, model=bert("token_classification"),
        rows=lambda n: {"tokens": sentence(n).split(), "ner_tags": ["O", "B", "O"]},
        metrics=("accuracy", "nll", "f1_macro"),
    ),
    "question answering": Case(
        task={"kind": "question_answering"}, model=bert("question_answering"),
        rows=lambda n: {
            "question": WORDS[n % 8], "context": sentence(n),
            "answers": {"text": [sentence(n).split()[1]],
                        "answer_start": [len(sentence(n).split()[0]) + 1]},
        },
    ),
    "translation": Case(
        task={"kind": "seq2seq", "columns": SIDES},
        model={"kind": "hf", "model_type": "t5", "head": "seq2seq_lm", "config": T5},
        rows=lambda n: {"translation": {"de": sentence(n), "en": sentence(n + 2)}},
    ),
    "instructions": Case(
        task={"kind": "instructions"},
        model=causal("llama", LLAMA),
        rows=lambda n: {"prompt": sentence(n), "completion": WORDS[n % 8]},
    ),
    "chat": Case(
        task={"kind": "instructions", "tokenizer": "chat"}, model=causal("llama", LLAMA),
        rows=lambda n: {"messages": [{"role": "user", "content": sentence(n)},
                                     {"role": "assistant", "content": sentence(n + 3)}]},
    ),
    "masked tokens": Case(
        task={"kind": "text"}, model=bert("masked_lm"), rows=lambda n: {"text": passage(n)}
    ),
    "next tokens": Case(
        task={"kind": "text", "objective": "next_token"}, model=causal("llama", LLAMA),
        rows=lambda n: {"text": passage(n)},
    ),
    "digits": Case(task={"kind": "tensors", "data": "digits"}, model=MLP),
    "images": Case(
        task={"kind": "tensors", "data": "digits", "encoding": "image"},
        model={"kind": "hf", "model_type": "vit", "head": "image_classification",
               "config": TINY | {"patch_size": 4}},
    ),
    "digits of a cnn": Case(
        task={"kind": "tensors", "data": "digits", "encoding": "image"},
        model={"kind": "cnn", "channels": [4, 4], "stride": 2},
    ),
    "signals": Case(
        task={"kind": "tensors", "encoding": "image"}, file="data.safetensors",
        model={"kind": "cnn", "channels": [4, 4], "axes": 1},
        content=(values(2, 12), classes()),
    ),
    "classes of pixels": Case(
        task={"kind": "tensors", "encoding": "image"}, file="data.safetensors",
        model={"kind": "cnn", "channels": [4, 4], "output": "positions"},
        content=(values(2, 5, 4), classes(5, 4)),
    ),
    "classes along a signal": Case(
        task={"kind": "tensors", "encoding": "image"}, file="data.safetensors",
        model={"kind": "cnn", "channels": [4, 4], "axes": 1, "output": "positions"},
        content=(values(2, 12), classes(12)),
    ),
    "tensors to tensors": Case(
        task={"kind": "tensors", "labels": "values"}, model=MLP, file="data.safetensors",
        content=(values(2, 3), values(4)), metrics=("mean_squared_error",),
    ),
    "dense classes": Case(
        task={"kind": "tensors", "encoding": "positions"}, model=MLP, file="data.safetensors",
        content=(values(5, 3), classes(5)),
    ),
    "dense values": Case(
        task={"kind": "tensors", "encoding": "positions", "labels": "values"}, model=MLP,
        file="data.safetensors", content=(values(5, 3), values(5, 2)),
        metrics=("mean_squared_error",),
    ),
}  # fmt: skip
every_task = pytest.mark.parametrize("name", CASES)


def spec_of(name: str, folder: Path, **fields: Any) -> RunSpec:
    case = CASES[name]
    data = {
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "task": case.write(folder),
        "teacher": {"model": case.model, "total": "4 steps", "checkpoints": 2},
        "student": case.model,
        "strategies": {
            "extraction": {"curriculum": {"kind": "extraction", "layer_fraction": 0.5}},
            "progressive": {"curriculum": {"kind": "progressive"}},
        },
        "seeds": [0],
        "budget": "3 steps",
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        **fields,
    }
    spec: RunSpec = parse(RunSpec, data)
    return spec


@every_task
def test_every_kind_of_stage_trains_and_is_judged_by_the_metrics_of_the_task(
    name: str, tmp_path: Path
) -> None:
    spec = spec_of(name, tmp_path)
    # The teacher learns from labels, students from hidden states, checkpoints and outputs.
    teach(spec)
    for run in student_runs(spec):
        metrics = train_student(spec, run).metrics
        assert tuple(metrics) == tuple(CASES[name].metrics)
        assert all(
            METRICS[key].least <= number <= METRICS[key].most for key, number in metrics.items()
        )


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.view_as(student)).square().mean(-1)


LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "binary": functional.binary_cross_entropy_with_logits,
    "squared_error": lambda outputs, labels: squared(outputs, labels).mean(),
    "cosine": lambda outputs, labels: 1 - functional.cosine_similarity(outputs, labels).mean(),
    "similarity": lambda outputs, labels: squared(
        functional.cosine_similarity(outputs[::2], outputs[1::2])[:, None], labels.flatten()[::2]
    ).mean(),
}


def passes(model: TappedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return outputs of scored places, and states of tap 1 in rows of positions with data."""
    place = model.place(1)
    modes = model.module.eval()
    with torch.no_grad(), model.open_taps([place], logits=True) as forward:
        shown = forward(batch.inputs, batch.selected)
    modes.train()
    assert shown.logits is not None
    state = shown.hidden[place]
    data = batch.valid if batch.valid is not None and state.ndim == 3 else None
    return shown.logits.flatten(0, -2), state.flatten(0, -2) if data is None else state[data]


@every_task
def test_the_first_loss_of_each_kind_of_stage_is_that_of_the_formula(
    name: str, tmp_path: Path
) -> None:
    spec = spec_of(name, tmp_path)
    loss, data = spec.task.label_loss, spec.task.open(seed=0, cache_dir=tmp_path / "cache")
    student, teacher = (build_still(spec, data, seed) for seed in (0, 1))
    batch = data.stream.batch(0)
    assert batch.labels is not None
    (outputs, states), (targets, aims) = passes(student, batch), passes(teacher, batch)
    compare = kl if loss == "cross_entropy" else squared
    output, fit = compare(outputs, targets).mean(), LABEL_LOSSES[loss](outputs, batch.labels)
    expected = {
        "hidden": squared(states, aims).mean(),
        "output": output,
        "labels": fit,
        "both": output + 0.5 * fit,
    }
    values = {"divergence": {"kind": "squared_error"}} if compare is squared else {}
    match, labels = {"kind": "logits", **values}, {"kind": "labels", "loss": loss}
    pair = {"student": 1, "teacher": 1}
    hidden = {"kind": "hidden", "pair": pair, "projection": {"kind": "identity"}}
    objectives = {
        "hidden": [hidden | {"normalize": "none"}],
        "output": [match],
        "labels": [labels],
        "both": [match, labels | {"weight": 0.5}],
    }
    stages = [
        {"name": stage, "duration": "1 steps", "objectives": terms}
        for stage, terms in objectives.items()
    ]
    records: list[Any] = []
    distill(
        student, teacher, parse(Curriculum, {"name": "kinds", "stages": stages}), Listed(batch),
        evaluation=lambda _: {"accuracy": 0.0}, observers=[records.append],
        optimizer=SGD(learning_rate=1e-12), settings=TrainingSettings(device="cpu", log_every=1),
    )  # fmt: skip
    found = [record.loss for record in records if isinstance(record, StepRecord)]
    assert found == pytest.approx([float(value) for value in expected.values()], rel=1e-4)


def build_still(spec: RunSpec, data: TaskData, seed: int) -> TappedModel:
    """Return a model without dropout, whose outputs differ from those of another seed."""
    assert spec.student is not None
    model = build_model(spec.student, data, seed, "student")
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for number, parameter in enumerate(model.module.parameters()):
        if parameter.ndim > 1:
            parameter.data += 0.3 * drawn(*parameter.shape, seed=100 * seed + number)
    return model


def test_what_a_spec_leaves_out_is_the_metric_loss_and_objective_of_the_task(
    tmp_path: Path,
) -> None:
    spec = spec_of("regression", tmp_path)
    assert spec.goal.metric == "mean_squared_error"
    calls = {run.name: run.curriculum for run in student_runs(spec)}
    squared = {"kind": "logits", "divergence": {"kind": "squared_error"}}
    assert calls["extraction"]["final_objective"] == squared
    assert calls["progressive"]["objective"] == squared
    stated = {"kind": "from_labels", "loss": "cosine"}
    for call, expected in (
        (stated, stated),
        ({"kind": "from_labels"}, {"kind": "from_labels", "loss": "squared_error"}),
    ):
        spec = spec_of("regression", tmp_path, strategies={"a": {"curriculum": call}})
        assert student_runs(spec)[0].curriculum == expected
    rehearse(spec_of("digits", tmp_path), student_runs(spec_of("digits", tmp_path)))


def test_the_loss_of_question_answering_is_that_of_transformers(tmp_path: Path) -> None:
    spec = spec_of("question answering", tmp_path)
    data = spec.task.open(seed=0, cache_dir=tmp_path / "cache")
    batch = data.stream.batch(0)
    assert batch.labels is not None
    assert not isinstance(batch.inputs, torch.Tensor)
    model = build_model(spec.teacher.model, data, 0, "teacher")
    model.module.eval()
    with model.open_taps((), logits=True) as forward:
        logits = forward(batch.inputs, batch.selected).logits
    assert logits is not None
    loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    starts, ends = batch.labels.view(-1, 2).unbind(1)
    expected = model.module(**batch.inputs, start_positions=starts, end_positions=ends).loss
    torch.testing.assert_close(loss, expected)
    with model.open_taps((), logits=True) as forward:
        whole = forward(batch.inputs).logits
    assert whole is not None
    assert torch.equal(whole.flatten(0, 1), logits)
    # Two halves of a batch have the rows of the whole.
    halves = [half.labels for half in batch.split(2)]
    assert torch.equal(torch.cat([half for half in halves if half is not None]), batch.labels)


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        (
            "regression",
            {"goal": {"metric": "nll"}},
            "'goal.metric' must be 'mean_squared_error' or .* task 'regression'; got 'nll'",
        ),
        (
            "classification",
            {"student": bert("masked_lm")},
            "'student.head' must be 'sequence_classification' for the task .*; got 'masked_lm'",
        ),
        ("digits", {"student": bert("masked_lm")}, "'student.kind' must be 'mlp' for the task"),
    ],
)
def test_a_metric_or_head_of_another_task_is_refused(
    name: str, fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=sentence):
        spec_of(name, tmp_path, **fields)


def test_a_trained_tokenizer_is_written_as_transformers_reads_it(tmp_path: Path) -> None:
    spec = spec_of("two texts", tmp_path)
    assert isinstance(spec.task, ExamplesTask)
    data = spec.task.open(seed=0, cache_dir=tmp_path / "cache")
    spec.task.write_tokenizer(tmp_path / "model", cache_dir=tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    # Every twentieth row is held out, so the first held-out one is number 19.
    expected = tokenizer(sentence(19), sentence(20), padding="max_length", max_length=12)
    inputs = data.evaluation[0].inputs
    assert not isinstance(inputs, torch.Tensor)
    assert inputs["input_ids"][0].tolist() == expected["input_ids"]
    assert inputs["attention_mask"][0].tolist() == expected["attention_mask"]
    assert tokenizer.decode(expected["input_ids"][:1]) == "<bos>"
    pretrained = replace(spec.task, tokenizer=str(tmp_path / "model"))
    again = pretrained.open(seed=0, cache_dir=tmp_path / "cache")
    assert again.stream.fingerprint == data.stream.fingerprint
    assert data.num_classes == 3
    digests = [task.tokenizer_digest(tmp_path / "cache") for task in (spec.task, pretrained)]
    assert digests[0] == digests[1]
