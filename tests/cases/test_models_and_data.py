"""Models and data that were once refused or silently wrong: their right values, by plain torch."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import curricle
from curricle import seeding
from curricle.errors import BindError, DataError
from curricle.objectives.projections import Identity
from tests.cases.steps import (
    divergence,
    layer_normalized,
    loader,
    losses,
    louder,
    records_of,
)
from tests.parts import drawn

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
}
BERT: dict[str, Any] = SIZES | {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 16,
}
SIDES: dict[str, Any] = {
    "vocab_size": 20, "d_model": 8, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "dropout": 0.0,
}  # fmt: skip
WHISPER: dict[str, Any] = SIDES | {
    "num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "begin_suppress_tokens": None, "suppress_tokens": None,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 2,
    "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
SQUARED = curricle.MatchLogits(divergence={"kind": "squared_error"})  # type: ignore[arg-type]


def build(kind: str, config: str, seed: int = 0, **fields: Any) -> Any:
    with seeding.scoped(seed, "test model"):
        return louder(getattr(hf, kind)(getattr(hf, config)(**fields)))


def plain(make: Any, seed: int = 0) -> Any:
    with seeding.scoped(seed, "test model"):
        return make()


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 20, shape, generator=torch.Generator().manual_seed(seed))


def matched(tap: Any, teacher: Any = None, **fields: Any) -> Any:
    pair = curricle.LayerPair(student=tap, teacher=tap if teacher is None else teacher)
    return curricle.MatchHidden(pair=pair, projection=Identity(), **fields)


# Models recognized by attributes that only `getattr` finds


def test_a_model_whose_sizes_have_other_names_is_one_of_numbered_blocks() -> None:
    """GPT-2 calls its sizes `n_layer` and forwards the usual names, whatever Python runs."""
    fields = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    student, teacher = (
        build("GPT2LMHeadModel", "GPT2Config", seed, **fields, **still) for seed in (0, 1)
    )
    model = curricle.tapped(student)
    assert (model.depth, model.is_residual) == (2, True)
    caches: list[Any] = []
    student.transformer.register_forward_hook(
        lambda _, __, output: caches.append(output.past_key_values)
    )
    data = loader([{"input_ids": row, "labels": row} for row in ids(4, 6)])
    with torch.no_grad():
        states = [
            layer_normalized(m(ids(4, 6), output_hidden_states=True).hidden_states[1])
            for m in (student, teacher)
        ]
    caches.clear()
    expected = (states[0] - states[1]).square().mean().item()
    assert losses(
        student, teacher, curricle.stream(data, next_token=True), matched(1), curricle.MatchLogits()
    )[0] == pytest.approx(expected, rel=1e-4)
    assert caches
    assert set(caches) == {None}


# Outputs that are not one distribution on the last axis


def segmenter(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 5, 1))


def test_a_map_is_compared_over_its_classes_and_not_its_columns() -> None:
    """Logits of a segmentation have their classes on axis 1, beside rows and columns of pixels."""
    student, teacher = plain(lambda: segmenter(4)), plain(lambda: segmenter(16), 1)
    images = drawn(4, 3, 6, 8)
    with torch.no_grad():
        logits = [m(images).movedim(1, -1) for m in (student, teacher)]
    models = [curricle.tapped(m, width_axis=1) for m in (student, teacher)]
    found = losses(*models, curricle.stream(loader(list(images))), curricle.MatchLogits())
    assert found == pytest.approx([divergence(*logits).mean().item()], rel=1e-5)


@pytest.mark.parametrize("num_values", [1, 3])
def test_values_are_matched_by_their_squared_error_and_never_by_a_softmax(num_values: int) -> None:
    """One output, as of a regression, has a constant softmax, so its KL would be 0 for ever."""
    student, teacher = (
        build("BertForSequenceClassification", "BertConfig", seed, **BERT,
              num_labels=num_values, problem_type="regression")
        for seed in (0, 1)
    )  # fmt: skip
    data = curricle.stream(loader([{"input_ids": row} for row in ids(4, 6)]))
    with pytest.raises(BindError, match="squared_error"):
        losses(student, teacher, data, curricle.MatchLogits())
    with torch.no_grad():
        error = (student(ids(4, 6)).logits - teacher(ids(4, 6)).logits).square().mean()
    assert losses(student, teacher, data, SQUARED) == pytest.approx([error.item()], rel=1e-5)


def test_both_ends_of_an_answer_are_taught() -> None:
    """Question answering has two rows of logits; the first alone would leave the ends untaught."""
    student, teacher = (
        build("BertForQuestionAnswering", "BertConfig", seed, **BERT) for seed in (0, 1)
    )
    data = curricle.stream(loader([{"input_ids": row} for row in ids(4, 6)]))
    with torch.no_grad():
        outputs = [m(ids(4, 6)) for m in (student, teacher)]
    rows = [
        divergence(*(output[name] for output in outputs)) for name in ("start_logits", "end_logits")
    ]
    expected = torch.stack(rows).mean().item()
    found = losses(student, teacher, data, curricle.MatchLogits())
    assert found == pytest.approx([expected], rel=1e-4)


def test_one_of_several_outputs_is_not_taken_for_the_logits() -> None:
    """A detector's boxes and classes in a dictionary: none of them is the output by itself."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.scores = nn.Linear(6, 4), nn.Linear(6, 3)

        def forward(self, features: Tensor) -> dict[str, Tensor]:
            return {"boxes": self.boxes(features), "scores": self.scores(features)}

    data = curricle.stream(loader([{"features": row} for row in drawn(4, 6)]))
    models = [plain(Detector, seed) for seed in (0, 1)]
    with pytest.raises(BindError, match=r"boxes \(4, 4\), scores \(4, 3\)"):
        losses(*models, data, curricle.MatchLogits())
    with torch.no_grad():
        scores = [m(drawn(4, 6))["scores"] for m in models]
    found = losses(
        *(curricle.tapped(m, head="scores") for m in models), data, curricle.MatchLogits()
    )
    assert found == pytest.approx([divergence(*scores).mean().item()], rel=1e-5)


# Encoders, decoders and the positions that count


def translation() -> tuple[Any, Tensor, Tensor]:
    """Return sources and targets of one padded length, with fewer sources than targets."""
    source, mask, target = ids(4, 10), torch.ones(4, 10, dtype=torch.int64), ids(4, 10, seed=1)
    mask[:, 4:] = 0
    target[:, 8:] = -100
    shown = torch.cat([torch.zeros(4, 1, dtype=torch.int64), target[:, :-1].clamp_min(0)], 1)
    rows = [
        {"input_ids": a, "attention_mask": b, "decoder_input_ids": c, "labels": d}
        for a, b, c, d in zip(source, mask, shown, target, strict=True)
    ]
    # A generator of its own, so that reading the loader leaves torch's alone.
    return loader(rows, generator=torch.Generator()), mask, target


def test_the_mask_of_an_encoder_says_nothing_about_the_labels_of_its_decoder() -> None:
    """Both sides are padded to ten tokens, of which four and eight count."""
    student, teacher = (
        build("T5ForConditionalGeneration", "T5Config", seed, **T5) for seed in (0, 1)
    )
    data, mask, target = translation()
    inputs = next(iter(data))
    del inputs["labels"]
    with torch.no_grad():
        outputs = [m(**inputs, output_hidden_states=True) for m in (student, teacher)]
    nll = functional.cross_entropy(outputs[0].logits.flatten(0, 1), target.flatten())
    kl = divergence(*(output.logits for output in outputs))[target != -100].mean()
    encoded = [output.encoder_hidden_states[1] for output in outputs]
    encoder = (encoded[0] - encoded[1]).square().mean(-1)[mask.bool()].mean()
    found = losses(
        student, teacher, curricle.stream(data), curricle.LabelLoss(), curricle.MatchLogits(),
        matched("encoder:1", normalize="none"),
    )  # fmt: skip
    assert found == pytest.approx([nll.item(), kl.item(), encoder.item()], rel=1e-4)


@pytest.mark.parametrize("parts", [1, 2])
def test_positions_are_those_of_the_labels_whatever_input_comes_first(parts: int) -> None:
    """Sound comes first and has twenty frames; the six labels of a text are cut by their own."""
    student, teacher = (
        build("WhisperForConditionalGeneration", "WhisperConfig", seed, **WHISPER)
        for seed in (0, 1)
    )
    sound, labels = drawn(4, 4, 20), ids(4, 6)
    labels[1, 4:] = -100
    shown = torch.cat([torch.ones(4, 1, dtype=torch.int64), labels[:, :-1].clamp_min(0)], 1)
    rows = [
        {"input_features": a, "decoder_input_ids": b, "labels": c}
        for a, b, c in zip(sound, shown, labels, strict=True)
    ]
    with torch.no_grad():
        logits = [m(sound, decoder_input_ids=shown).logits for m in (student, teacher)]
    nll = functional.cross_entropy(logits[0].flatten(0, 1), labels.flatten())
    kl = divergence(*logits)[labels != -100].mean()
    found = losses(
        student, teacher, curricle.stream(loader(rows)), curricle.LabelLoss(),
        curricle.MatchLogits(), settings={"gradient_accumulation_steps": parts},
    )  # fmt: skip
    assert found == pytest.approx([nll.item(), kl.item()], rel=1e-4)


class Prompted(nn.Module):
    """A reader of tokens that puts three vectors of its own before them."""

    def __init__(self, width: int, prompts: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, width), nn.Linear(width, 20)
        self.prompts = nn.Parameter(torch.randn(prompts, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        prompts = self.prompts.expand(len(input_ids), -1, -1)
        logits: Tensor = self.head(torch.cat([prompts, self.table(input_ids)], 1))
        return logits


@pytest.mark.parametrize("selects", [True, False])
def test_logits_with_more_positions_than_the_ids_are_refused(selects: bool) -> None:
    """Rows at the positions of the data would be those of other tokens."""
    student, teacher = plain(lambda: Prompted(4, 3)), plain(lambda: Prompted(4, 0), 1)
    rows = [{"input_ids": row} | ({"labels": row} if selects else {}) for row in ids(4, 6)]
    data = curricle.stream(loader(rows), next_token=selects)
    with pytest.raises(BindError, match=r"\(4, 9\)"):
        losses(student, teacher, data, curricle.MatchLogits())


class Encoder(nn.Module):
    """Reads texts by torch's encoder, which wants the sequence first unless told otherwise."""

    def __init__(self, width: int, *, batch_first: bool, nested: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.table, self.head = nn.Embedding(20, width), nn.Linear(width, 20)
        layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.table(input_ids)
        states = states if self.batch_first else states.transpose(0, 1)
        states = self.encoder(states, src_key_padding_mask=attention_mask == 0)
        logits: Tensor = self.head(states if self.batch_first else states.transpose(0, 1))
        return logits


def padded(num_examples: int) -> tuple[Any, Tensor, Tensor]:
    """Return texts of six tokens, every second of which ends in padding."""
    tokens, mask = ids(num_examples, 6), torch.ones(num_examples, 6, dtype=torch.int64)
    mask[1::2, 4:] = 0
    rows = [{"input_ids": a, "attention_mask": b} for a, b in zip(tokens, mask, strict=True)]
    return curricle.stream(loader(rows, num_examples)), tokens, mask


def encoder_error(models: list[Any], tokens: Tensor, mask: Tensor) -> float:
    """Return the error of the second layer at tokens, by hooks of torch."""
    states: list[Tensor] = []
    for model in models:
        layer = model.encoder.layers[1]
        handle = layer.register_forward_hook(lambda _, __, output: states.append(output))
        with torch.no_grad():
            model(tokens, mask)
        handle.remove()
    sides = [s if s.shape[0] == len(tokens) and m.batch_first else s.transpose(0, 1)
             for s, m in zip(states, models, strict=True)]  # fmt: skip
    return (sides[0] - sides[1]).square().mean(-1)[mask.bool()].mean().item()


@pytest.mark.parametrize("num_examples", [4, 6], ids=["more positions", "as many positions"])
@pytest.mark.parametrize("student_is_first", [True, False])
def test_layers_with_the_sequence_first_are_declared_and_otherwise_refused(
    num_examples: int, student_is_first: bool
) -> None:
    """With as many examples as positions a transposed mask would select other rows unnoticed."""
    data, tokens, mask = padded(num_examples)
    models = [
        plain(lambda: Encoder(8, batch_first=student_is_first)).train(),
        plain(lambda: Encoder(8, batch_first=False), 1).train(),
    ]
    path = "encoder.layers.1"
    objective = matched(path, normalize="none")
    with pytest.raises(BindError, match=r"curricle.tapped\(model, batch_axis=1\)"):
        losses(*models, data, objective)
    tapped = [curricle.tapped(m, batch_axis=0 if m.batch_first else 1) for m in models]
    expected = encoder_error(models, tokens, mask)
    assert losses(*tapped, data, objective) == pytest.approx([expected], rel=1e-4)


def test_numbered_taps_of_sequence_first_layers_have_the_examples_first() -> None:
    model = plain(lambda: Encoder(8, batch_first=False)).eval()
    _, tokens, mask = padded(4)
    blocks = [f"encoder.layers.{number}" for number in range(2)]
    tapped = curricle.tapped(model, blocks=blocks, batch_axis=1)
    places = [tapped.place(tap) for tap in (0, 1, 2, 0.5)]
    with torch.no_grad(), tapped.open_taps(places, logits=False) as forward:
        states = forward({"input_ids": tokens, "attention_mask": mask}).hidden
        assert torch.equal(states[places[0]], model.table(tokens))
    assert {tuple(state.shape) for state in states.values()} == {(4, 6, 8)}
    assert places[1] == places[3]
    # Behind the transpose back the examples are first already.
    stream = padded(4)[0]
    with pytest.raises(BindError, match=r"tap 'head' must have its positions on the first axis"):
        losses(tapped, curricle.tapped(copy.deepcopy(model)), stream, matched("head"))
    with pytest.raises(BindError, match="'batch_axis' must be 0 beside 'width_axis'"):
        curricle.tapped(model, batch_axis=1, width_axis=1)
    with pytest.raises(BindError, match="must not be tapped already"):
        curricle.tapped(tapped, batch_axis=1)


def test_an_encoder_that_packs_padded_texts_is_read_at_its_tokens() -> None:
    """In evaluation mode torch's encoder computes on nested tensors where a mask is given."""
    data, tokens, mask = padded(4)
    models = [
        plain(lambda: Encoder(8, batch_first=True, nested=True), seed).train() for seed in (0, 1)
    ]
    expected = encoder_error(models, tokens, mask)
    found = losses(*models, data, matched("encoder.layers.1", normalize="none"))
    assert found == pytest.approx([expected], rel=1e-4)


# Students and teachers that share, skip, compile or quantize


def classifier(width: int, front: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(front or nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def features(num_examples: int = 4) -> Any:
    return curricle.stream(loader(list(drawn(num_examples, 6))))


def test_a_part_of_both_models_is_refused() -> None:
    """A layer that the teacher also has would be trained, or put into another mode, for both."""
    front = plain(lambda: nn.Linear(6, 8))
    models = [plain(lambda: classifier(8, front), seed) for seed in (0, 1)]
    with pytest.raises(BindError, match=r"'0.weight'.*copy.deepcopy"):
        losses(*models, features(), curricle.MatchLogits())
    with pytest.raises(BindError, match="'student' and 'teacher' must be different modules"):
        losses(models[0], models[0], features(), curricle.MatchLogits())


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
)
def test_a_dynamically_quantized_teacher_teaches_as_it_is(tmp_path: Path) -> None:
    """Packed weights are no tensors of a state; a digest of the teacher covers them all the same.

    A run folder is bound to its teacher, so another one is refused there.
    """
    quantized = [
        torch.ao.quantization.quantize_dynamic(plain(lambda: classifier(8), seed), {nn.Linear})
        for seed in (1, 2)
    ]
    student = plain(lambda: classifier(4))
    with torch.no_grad():
        expected = divergence(student(drawn(4, 6)), quantized[0](drawn(4, 6))).mean().item()
    objectives = curricle.MatchLogits(), matched("1", normalize="none")
    assert losses(plain(lambda: classifier(8)), quantized[0], features(), objectives[1])[0] > 0
    found = losses(student, quantized[0], features(), objectives[0], output_dir=tmp_path / "run")
    assert found == pytest.approx([expected], rel=1e-5)
    with pytest.raises(curricle.CurricleError, match="teacher"):
        losses(
            student,
            quantized[1],
            features(),
            objectives[0],
            output_dir=tmp_path / "run",
            resume=True,
        )


WAV2VEC2: dict[str, Any] = SIZES | {
    "conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
    "classifier_proj_size": 8, "num_labels": 3, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0, "activation_dropout": 0.0, "final_dropout": 0.0,
}  # fmt: skip


def test_a_layer_that_training_may_skip_is_known_before_the_first_step() -> None:
    """Half of the blocks are skipped at random; a tap on one would end a run after any step."""
    data = curricle.stream(loader([{"input_values": row} for row in drawn(4, 100)]))
    student, teacher = (
        build("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", seed, **WAV2VEC2,
              layerdrop=0.5)
        for seed in (0, 1)
    )  # fmt: skip
    with pytest.raises(BindError, match=r"set student.config.layerdrop = 0"):
        losses(student, teacher, data, matched(1))
    student.config.layerdrop = 0
    with torch.no_grad():
        states = [
            m.eval()(drawn(4, 100), output_hidden_states=True).hidden_states[1]
            for m in (student, teacher)
        ]
    expected = (states[0] - states[1]).square().mean().item()
    found = losses(student, teacher, data, matched(1, normalize="none"))
    assert found == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_weights_of_a_student_that_would_round_away_are_refused(precision: torch.dtype) -> None:
    """A step of 1e-5 is lost in bfloat16: `from_pretrained` keeps the precision of its files."""
    student, teacher = plain(lambda: classifier(4)), plain(lambda: classifier(8), 1)
    with pytest.raises(BindError, match=r"pass student.float\(\)"):
        losses(student.to(precision), teacher, features(), curricle.MatchLogits())
    before = [copy.deepcopy(parameter) for parameter in student.float().parameters()]
    losses(
        student, teacher.to(precision), features(), curricle.MatchLogits(),
        optimizer=curricle.AdamW(learning_rate=1e-5), settings={"precision": "bfloat16"},
    )  # fmt: skip
    moved = [
        (old != new).float().mean()
        for old, new in zip(before, student.parameters(), strict=True)
        if old.ndim > 1
    ]
    assert min(moved) > 0.9


def test_a_compiled_student_trains_as_the_plain_one() -> None:
    """`torch.compile` puts a wrapper around a model, whose paths and weights have other names."""
    found = [
        losses(
            prepare(plain(lambda: classifier(4))), plain(lambda: classifier(8), 1), features(),
            curricle.MatchHidden(pair=curricle.LayerPair(student="1", teacher="1")),
            curricle.MatchLogits(), steps=2,
            optimizer=curricle.SGD(learning_rate=0.1),
        )
        for prepare in (lambda module: module, lambda m: torch.compile(m, backend="eager"))
    ]  # fmt: skip
    assert found[0] == found[1]


# Stacks of composite models, and data


def test_sides_of_other_depth_are_named_and_the_choice_is_noted() -> None:
    """Whisper with three encoder and two decoder blocks: number 1 is the decoder's, and said so."""
    student, teacher = (
        build("WhisperForConditionalGeneration", "WhisperConfig", seed, **WHISPER)
        for seed in (0, 1)
    )
    sound, shown = drawn(4, 4, 20), ids(4, 6)
    rows = [
        {"input_features": a, "decoder_input_ids": b} for a, b in zip(sound, shown, strict=True)
    ]
    with torch.no_grad():
        outputs = [
            m(sound, decoder_input_ids=shown, output_hidden_states=True) for m in (student, teacher)
        ]
    expected = [
        (outputs[0][name][number] - outputs[1][name][number]).square().mean().item()
        for name, number in (("decoder_hidden_states", 1), ("encoder_hidden_states", 2))
    ]
    run, steps = records_of(
        student, teacher, curricle.stream(loader(rows)), matched(1, normalize="none"),
        matched("encoder:2", normalize="none"),
    )  # fmt: skip
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-4)
    assert any("numbered taps are the 2 blocks of" in note for note in run.notes)


class Counted(Dataset[Any]):
    """A long data set of a map, which counts its reads."""

    def __init__(self, length: int) -> None:
        self.length, self.reads = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> Tensor:
        self.reads += 1
        return torch.full((6,), float(place % 7))


def test_a_long_data_set_is_neither_read_nor_listed_before_the_first_step() -> None:
    """An order of millions is one tensor, not a list of Python numbers; few examples are read."""
    examples = Counted(2_000_000)
    data = curricle.stream(DataLoader(examples, batch_size=4, shuffle=True))
    data.batch(0)
    assert examples.reads <= 16


def test_a_mask_in_the_place_of_labels_is_refused() -> None:
    """`TensorDataset(ids, mask)` is a pair, whose second part would be taken for labels."""
    pairs = TensorDataset(ids(8, 6), torch.ones(8, 6, dtype=torch.int64))
    with pytest.raises(DataError, match="mask"):
        curricle.stream(DataLoader(pairs, batch_size=4))


# Notes and refusals where shapes agree but meanings do not


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (({0: "no", 1: "yes"}, {0: "yes", 1: "no"}), "'id2label' of student and teacher"),
        (({0: "no", 1: "yes"}, {0: "no", 1: "yes"}), ""),
    ],
)
def test_classes_are_compared_by_name(labels: Any, sentence: str) -> None:
    models = [
        build("BertForSequenceClassification", "BertConfig", seed, **BERT, id2label=names)
        for seed, names in enumerate(labels)
    ]
    data = curricle.stream(loader([{"input_ids": row} for row in ids(4, 6)]))
    if sentence:
        with pytest.raises(BindError, match=sentence):
            losses(*models, data, curricle.MatchLogits())
    else:
        assert losses(*models, data, curricle.MatchLogits())[0] > 0


def test_losses_and_positions_that_a_run_leaves_alone_are_noted() -> None:
    """A router's own loss never enters, and padding on the left shifts absolute positions."""
    fields = SIZES | {"num_local_experts": 2, "num_key_value_heads": 2}
    sparse = [
        build("MixtralForCausalLM", "MixtralConfig", seed, **fields, router_aux_loss_coef=0.1)
        for seed in (0, 1)
    ]
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[0, :2] = 0
    rows = [{"input_ids": a, "attention_mask": b} for a, b in zip(ids(4, 6), mask, strict=True)]
    data = curricle.stream(loader(rows))
    run, _ = records_of(*sparse, data, curricle.MatchLogits())
    assert any("router" in note for note in run.notes)
    fields = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    numbered = [build("GPT2LMHeadModel", "GPT2Config", seed, **fields) for seed in (0, 1)]
    run, _ = records_of(*numbered, data, curricle.MatchLogits())
    assert sum("padding on the left shifts its positions" in note for note in run.notes) == 2
