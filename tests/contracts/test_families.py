"""Promises of tapped models of every family: states, heads, gradients, files and the first loss."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.axes import observing
from curricle.models.families import tapped
from curricle.models.tapped import Place, TappedModel
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Identity, Learned
from curricle.records import StepRecord
from curricle.training.distill import distill
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from tests.parts import Listed, drawn

NUM_IDS = 20
TINY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOKENS: dict[str, Any] = TINY | {"vocab_size": NUM_IDS, "max_position_embeddings": 16}
PATCHES: dict[str, Any] = TINY | {"image_size": 16, "patch_size": 8}
T5: dict[str, Any] = {
    "vocab_size": NUM_IDS, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 3,
    "num_decoder_layers": 2, "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
SIDES: dict[str, Any] = {
    "vocab_size": NUM_IDS, "d_model": 8, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "dropout": 0.0,
}  # fmt: skip
BART: dict[str, Any] = SIDES | {"max_position_embeddings": 16}
WHISPER: dict[str, Any] = SIDES | {
    "num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "begin_suppress_tokens": None, "suppress_tokens": None,
}  # fmt: skip
WAV2VEC2: dict[str, Any] = TINY | {
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0,
    "mask_time_prob": 0.0, "classifier_proj_size": 8, "hidden_dropout": 0.0,
    "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "activation_dropout": 0.0,
    "final_dropout": 0.0,
}  # fmt: skip


def tokens(length: int = 6, *, first: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(first, NUM_IDS, (3, length), generator=generator)


def mask(length: int = 6) -> Tensor:
    valid = torch.ones(3, length, dtype=torch.int64)
    valid[-1, 4:] = 0
    return valid


def text() -> Batch:
    """Return texts, the last of which ends in padding."""
    inputs = {"input_ids": tokens(), "attention_mask": mask()}
    return Batch(inputs=inputs, valid=mask().bool(), selected=torch.tensor([1, 3, 8, 13]))


def whole_text() -> Batch:
    """Return texts that are scored as a whole, and end in the token at which BART reads."""
    ends = torch.full((3, 1), 2)
    return Batch(inputs={"input_ids": torch.cat([tokens(), ends], 1)})


def translation() -> Batch:
    inputs = {
        "input_ids": tokens(),
        "attention_mask": mask(),
        "decoder_input_ids": tokens(5),
        "decoder_attention_mask": mask(5),
    }
    return Batch(inputs=inputs, valid=mask(5).bool(), selected=torch.tensor([0, 4, 7, 11]))


def images(size: int = 16) -> Batch:
    return Batch(inputs={"pixel_values": drawn(3, 3, size, size)})


def speech() -> Batch:
    inputs = {"input_features": drawn(3, 4, 20), "decoder_input_ids": tokens(5)}
    return Batch(inputs=inputs, selected=torch.tensor([0, 4, 7, 11]))


def sound() -> Batch:
    return Batch(inputs={"input_values": drawn(3, 200)})


def pairs_of_text_and_image() -> Batch:
    return Batch(inputs={"input_ids": tokens(), "pixel_values": drawn(3, 3, 16, 16)})


def illustrated_text() -> Batch:
    ids = torch.cat([torch.full((3, 4), 3), tokens()], 1)
    inputs = {"input_ids": ids, "pixel_values": drawn(3, 3, 16, 16)}
    return Batch(inputs=inputs, selected=torch.tensor([5, 13, 29]))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tiny model, its data and its stacks of blocks."""

    model: str
    config: str
    fields: Mapping[str, Any]
    batch: Callable[[], Batch] = text
    stacks: Mapping[str, str] = field(default_factory=lambda: {"": "hidden_states"})
    """Name of the states in the output of transformers for each prefix of taps."""
    has_logits: bool = True
    parts: Mapping[str, str] = field(default_factory=dict)
    """Classes of the configurations inside that of a composite."""

    def build(self, seed: int = 0) -> Any:
        inner = {name: getattr(hf, kind)(**self.fields[name]) for name, kind in self.parts.items()}
        config = getattr(hf, self.config)(**(dict(self.fields) | inner))
        with seeding.scoped(seed, "test model"):
            module = getattr(hf, self.model)(config)
        return module.eval()


BOTH = {"": "decoder_hidden_states", "encoder:": "encoder_hidden_states"}
FAMILIES = {
    "bert": Family(model="BertForMaskedLM", config="BertConfig", fields=TOKENS | STILL),
    "albert": Family(
        model="AlbertForMaskedLM", config="AlbertConfig",
        fields=TOKENS | STILL | {"embedding_size": 8, "num_hidden_layers": 3},
    ),
    "albert classifier": Family(
        model="AlbertForSequenceClassification", config="AlbertConfig", batch=whole_text,
        fields=TOKENS | STILL | {"embedding_size": 8, "classifier_dropout_prob": 0.0,
                                 "num_hidden_groups": 2},
    ),
    "t5": Family(
        model="T5ForConditionalGeneration", config="T5Config", fields=T5, batch=translation,
        stacks=BOTH,
    ),
    "t5 encoder": Family(
        model="T5EncoderModel", config="T5Config", fields=T5, has_logits=False
    ),
    "bart": Family(
        model="BartForConditionalGeneration", config="BartConfig", fields=BART, batch=translation,
        stacks=BOTH,
    ),
    "bart classifier": Family(
        model="BartForSequenceClassification", config="BartConfig", fields=BART, batch=whole_text,
        stacks=BOTH,
    ),
    "vit": Family(
        model="ViTForImageClassification", config="ViTConfig", fields=PATCHES | STILL, batch=images
    ),
    "deit": Family(
        model="DeiTForImageClassificationWithTeacher", config="DeiTConfig", batch=images,
        fields=PATCHES | STILL,
    ),
    "swin": Family(
        model="SwinForImageClassification", config="SwinConfig", batch=images,
        fields=STILL | {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2],
                "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.0},
    ),
    "convnext": Family(
        model="ConvNextForImageClassification", config="ConvNextConfig", batch=lambda: images(32),
        fields={"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    ),
    "resnet": Family(
        model="ResNetForImageClassification", config="ResNetConfig", batch=lambda: images(32),
        fields={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    ),
    "clip": Family(
        model="CLIPModel", config="CLIPConfig", batch=pairs_of_text_and_image, has_logits=False,
        fields={"text_config": TOKENS | {"projection_dim": 8, "eos_token_id": 19},
                "vision_config": PATCHES, "projection_dim": 8},
        stacks={"text:": "text_model_output", "vision:": "vision_model_output"},
    ),
    "clip vision": Family(
        model="CLIPVisionModel", config="CLIPVisionConfig", fields=PATCHES, batch=images,
        has_logits=False,
    ),
    "clip classifier": Family(
        model="CLIPForImageClassification", config="CLIPConfig", batch=images,
        fields={"text_config": TOKENS, "vision_config": PATCHES},
    ),
    "whisper": Family(
        model="WhisperForConditionalGeneration", config="WhisperConfig", fields=WHISPER,
        batch=speech, stacks=BOTH,
    ),
    "wav2vec2": Family(
        model="Wav2Vec2ForSequenceClassification", config="Wav2Vec2Config", fields=WAV2VEC2,
        batch=sound,
    ),
    "sentence encoder": Family(
        model="BertModel", config="BertConfig", fields=TOKENS | STILL, has_logits=False
    ),
    "xlnet": Family(
        model="XLNetLMHeadModel", config="XLNetConfig",
        fields={"vocab_size": NUM_IDS, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 16,
                "dropout": 0.0},
    ),
    "llava": Family(
        model="LlavaForConditionalGeneration", config="LlavaConfig", batch=illustrated_text,
        fields={"text_config": TOKENS | {"num_key_value_heads": 2}, "vision_config": PATCHES,
                "image_token_index": 3, "vision_feature_layer": -1},
        parts={"text_config": "LlamaConfig", "vision_config": "CLIPVisionConfig"},
    ),
}  # fmt: skip
every_family = pytest.mark.parametrize("name", FAMILIES)
with_logits = pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if family.has_logits]
)
every_tap = pytest.mark.parametrize(
    ("name", "prefix"),
    [(name, prefix) for name, family in FAMILIES.items() for prefix in family.stacks],
)


@cache
def built_once(name: str, seed: int) -> Any:
    return FAMILIES[name].build(seed)


def build(name: str, seed: int = 0) -> TappedModel:
    """Return a fresh model with the same weights each time."""
    return tapped(copy.deepcopy(built_once(name, seed)))


def full(model: TappedModel, name: str, **options: Any) -> Any:
    """Return the output of the module itself."""
    inputs = FAMILIES[name].batch().inputs
    assert not isinstance(inputs, Tensor)
    return model.module(**inputs, **options)


def states(model: TappedModel, name: str, prefix: str) -> tuple[Tensor, ...]:
    """Return the hidden states of transformers, with features last."""
    output = full(model, name, output_hidden_states=True)[FAMILIES[name].stacks[prefix]]
    found: tuple[Tensor, ...] = output if isinstance(output, tuple) else output.hidden_states
    return tuple(state.movedim(1, -1) if state.ndim == 4 else state for state in found)


def numbered(prefix: str, number: int) -> Any:
    return f"{prefix}{number}" if prefix else number


def early(model: TappedModel, name: str, place: Place) -> Tensor:
    with model.open_taps([place], logits=False) as forward:
        return forward(FAMILIES[name].batch().inputs).hidden[place]


def gradients(model: TappedModel, state: Tensor) -> list[Tensor | None]:
    loss = (state * torch.linspace(-1, 1, state.numel()).view_as(state)).sum()
    weights = [weight for weight in model.module.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(loss, weights, allow_unused=True))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


@every_tap
def test_taps_are_the_hidden_states_of_transformers(name: str, prefix: str) -> None:
    # Its last state is often normalized once more, which a tap is not.
    model = build(name)
    expected = states(model, name, prefix)
    for number, state in enumerate(expected[:-1]):
        place = model.place(numbered(prefix, number))
        assert torch.equal(early(model, name, place), state)
    with pytest.raises(BindError, match=r"^tap .* must lie between 0 and the model's depth "):
        model.place(numbered(prefix, len(expected)))


@every_tap
def test_early_exit_has_exactly_the_gradients_of_the_full_pass(name: str, prefix: str) -> None:
    model = build(name)
    expected = states(model, name, prefix)[1]
    found = early(model, name, model.place(numbered(prefix, 1)))
    pairs = zip(gradients(model, found), gradients(model, expected), strict=True)
    assert all(same(*pair) for pair in pairs)


@every_tap
def test_the_last_tap_is_the_output_of_the_last_block(name: str, prefix: str) -> None:
    model = build(name)
    depth = len(states(model, name, prefix)) - 1
    place = model.place(numbered(prefix, depth))
    outputs: list[Any] = []
    block = model.module.get_submodule(place.path)
    with torch.no_grad():
        state = early(model, name, place)
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
        full(model, name)
    output = outputs[place.call]
    expected = output if isinstance(output, Tensor) else output[0]
    assert torch.equal(state, expected.permute(place.order) if place.order else expected)


@with_logits
def test_logits_are_exactly_those_of_the_full_pass(name: str) -> None:
    model = build(name)
    with observing(model), model.open_taps([], logits=True) as forward:
        logits = forward(FAMILIES[name].batch().inputs).logits
    assert logits is not None
    expected = full(model, name).logits
    assert torch.equal(logits, expected)
    pairs = zip(gradients(model, logits), gradients(model, expected), strict=True)
    assert all(same(*pair) for pair in pairs)


@with_logits
def test_logits_at_selected_positions_are_rows_of_the_full_logits(name: str) -> None:
    batch, model = FAMILIES[name].batch(), build(name)
    if batch.selected is None:
        return
    with observing(model), model.open_taps([], logits=True) as forward:
        logits = forward(batch.inputs, batch.selected).logits
    expected = full(model, name).logits.flatten(0, 1)[batch.selected]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@every_family
def test_a_model_that_was_read_is_saved_as_a_plain_one(name: str, tmp_path: Path) -> None:
    model = build(name)
    module: Any = model.module
    prefix = next(iter(FAMILIES[name].stacks))
    expected = states(model, name, prefix)
    early(model, name, model.place(numbered(prefix, 1)))
    module.save_pretrained(tmp_path)
    # Some families draw weights before they load them.
    with seeding.scoped(0, "test model"):
        loaded = tapped(type(module).from_pretrained(tmp_path).eval())
    assert list(loaded.module.state_dict()) == list(module.state_dict())
    pairs = zip(states(loaded, name, prefix), expected, strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def both(name: str) -> tuple[TappedModel, TappedModel]:
    """Return student and teacher in the modes of a step."""
    student, teacher = build(name), build(name, seed=1)
    student.module.train()
    return student, teacher


def labeled(name: str) -> tuple[Batch, Tensor]:
    """Return the batch of a family with labels, and the rows of the logits that have one."""
    batch = FAMILIES[name].batch()
    with torch.no_grad():
        logits = full(build(name), name).logits
    count = math.prod(logits.shape[:-1])
    rows = torch.arange(count) if batch.selected is None else batch.selected
    if batch.selected is None and logits.ndim == 3:
        batch = replace(batch, selected=rows)
    labels = torch.arange(len(rows)) % logits.shape[-1]
    return replace(batch, labels=labels), rows


def first_losses(name: str, *objectives: Any, batch: Batch | None = None) -> list[float]:
    """Return the losses of the first step of each stage in a run that moves nothing."""
    student, teacher = build(name), build(name, seed=1)
    stages = tuple(
        Stage(name=f"stage {number}", duration=Duration(number=1), objectives=(objective,))
        for number, objective in enumerate(objectives)
    )
    records: list[Any] = []
    distill(
        student, teacher, Curriculum(name="families", stages=stages),
        Listed(batch or FAMILIES[name].batch()), evaluation=lambda _: {"accuracy": 0.0},
        optimizer=SGD(learning_rate=1e-12),
        settings=TrainingSettings(device="cpu", log_every=1), observers=[records.append],
    )  # fmt: skip
    return [record.loss for record in records if isinstance(record, StepRecord)]


@every_tap
def test_the_first_loss_of_a_tap_is_the_error_at_positions_with_data(
    name: str, prefix: str
) -> None:
    pair = LayerPair(student=numbered(prefix, 1), teacher=numbered(prefix, 1))
    objective = MatchHidden(pair=pair, projection=Identity(), normalize="none")
    # Normalization of batches distinguishes the modes, of which a student is in the other.
    student, teacher = (states(model, name, prefix)[1] for model in both(name))
    error = (student - teacher).square().mean(-1)
    inputs: Any = FAMILIES[name].batch().inputs
    is_decoder = FAMILIES[name].stacks[prefix].startswith("decoder")
    data = inputs.get("decoder_attention_mask" if is_decoder else "attention_mask")
    if data is not None:
        error = error[data.bool()]
    assert first_losses(name, objective) == pytest.approx([error.mean().item()], rel=1e-5)


@with_logits
def test_the_first_loss_of_the_logits_is_their_divergence_at_selected_positions(name: str) -> None:
    batch = FAMILIES[name].batch()
    student, teacher = (
        full(model, name).logits.log_softmax(-1).flatten(0, -2) for model in both(name)
    )
    rows = torch.arange(len(student)) if batch.selected is None else batch.selected
    divergence = (teacher.exp() * (teacher - student)).sum(-1)[rows].mean()
    assert first_losses(name, MatchLogits()) == pytest.approx([divergence.item()], rel=1e-4)


@with_logits
def test_the_first_loss_of_labels_is_their_cross_entropy_and_every_kind_follows(
    name: str,
) -> None:
    batch, rows = labeled(name)
    student, _ = both(name)
    logits = full(student, name).logits.flatten(0, -2)[rows]
    assert batch.labels is not None
    expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    tap = numbered(next(iter(FAMILIES[name].stacks)), 1)
    pair = LayerPair(student=tap, teacher=tap)
    kinds = [MatchHidden(pair=pair), MatchHidden(pair=pair, projection=Learned()), MatchLogits()]
    found = first_losses(name, LabelLoss(), *kinds, batch=batch)
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert min(found) > 0


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_states_of_an_encoder_are_compared_with_such_only(name: str) -> None:
    objective = MatchHidden(pair=LayerPair(student="encoder:1", teacher="decoder:1"))
    with pytest.raises(BindError, match=r"must both be of an encoder, .*; got one of a decoder$"):
        first_losses(name, objective)
