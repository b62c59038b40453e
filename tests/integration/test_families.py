"""Families of transformers that are distilled as they are, or refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.initialization import PrincipalStart
from curricle.curriculum.strategies import extraction, one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.wrapping import tapped
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.records import RunRecord
from curricle.training.distill import distill
from curricle.training.setup.settings import TrainingSettings
from tests.parts import Listed, drawn

pytestmark = pytest.mark.integration
TINY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ENCODER = TINY | {"vocab_size": 20, "max_position_embeddings": 16}
T5: dict[str, Any] = {
    "vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2,
    "num_layers": 3, "num_decoder_layers": 2, "decoder_start_token_id": 0,
}  # fmt: skip
CONVNEXT: dict[str, Any] = {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "num_labels": 3}
WAV2VEC2: dict[str, Any] = TINY | {
    "conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.1,
    "mask_time_prob": 0.0, "classifier_proj_size": 8, "num_labels": 3,
}  # fmt: skip
CLIP: dict[str, Any] = TINY | {"image_size": 8, "patch_size": 4}


def ids(**others: Tensor) -> Listed:
    tokens = torch.randint(4, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    return Listed(Batch(inputs={"input_ids": tokens, **others}))


def translation() -> Listed:
    return ids(decoder_input_ids=torch.arange(4, 24).view(4, 5) % 20)


def images(height: int = 32, width: int = 32) -> Listed:
    return Listed(Batch(inputs={"pixel_values": drawn(4, 3, height, width)}))


def learn(make: Callable[[], Any], curriculum: Any, data: Listed, **options: Any) -> RunRecord:
    """Teach a model by another of the same kind for a step and return what the run says."""
    with seeding.scoped(0, "test model"):
        student, teacher = make(), make()
    records: list[Any] = []
    distill(
        student, teacher, curriculum, data,
        evaluation=lambda model: {"accuracy": 0.0},
        settings=TrainingSettings(device="cpu"), observers=[records.append], **options,
    )  # fmt: skip
    run: RunRecord = records[0]
    return run


def albert() -> nn.Module:
    return hf.AlbertForMaskedLM(hf.AlbertConfig(**ENCODER, embedding_size=8))


def t5() -> nn.Module:
    return hf.T5ForConditionalGeneration(hf.T5Config(**T5))


def convnext() -> nn.Module:
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(**CONVNEXT))


def clip_classifier() -> nn.Module:
    fields: dict[str, Any] = {"vision_config": CLIP, "text_config": ENCODER, "num_labels": 3}
    config = hf.CLIPConfig(**fields)
    return hf.CLIPForImageClassification(config)


def bert(kind: str, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, kind)(hf.BertConfig(**ENCODER, **fields))


WHOLE = one_shot(total="1 steps")


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (albert, ids()),
        (t5, ids(decoder_input_ids=torch.ones(4, 6, dtype=torch.int64))),
        (convnext, images()),
        (clip_classifier, images(8, 8)),
        (bert("BertForMaskedLM", return_dict=False), ids()),
    ],
    ids=["shared block", "two stacks", "stages", "composite", "tuples"],
)
def test_a_curriculum_that_reads_no_block_needs_none(
    make: Callable[[], nn.Module], data: Listed
) -> None:
    assert learn(make, WHOLE, data).stages[0].taps == "logits"


@pytest.mark.parametrize(
    ("make", "data", "taps", "widths"),
    [
        (albert, ids(), "1 <- 1", "8 <- 8"),
        (t5, translation(), "1 <- 1", "8 <- 8"),
        (clip_classifier, images(8, 8), "1 <- 1", "8 <- 8"),
        (convnext, images(32, 64), "2 <- 2", "8 <- 8"),
    ],
    ids=["shared block", "two stacks", "composite", "stages"],
)
def test_numbers_refer_to_what_a_pass_has_shown(
    make: Callable[[], nn.Module], data: Listed, taps: str, widths: str
) -> None:
    run = learn(make, extraction(total="2 steps", pairs=1), data)
    assert (run.stages[0].taps, run.stages[0].widths) == (taps, widths)


def test_the_stack_of_numbers_is_noted() -> None:
    run = learn(t5, extraction(total="2 steps", pairs=1), translation())
    note = (
        "numbered taps are the 2 blocks of 'decoder.block', not those of 'encoder.block', whose "
        "taps are 'encoder:0' to 'encoder:3'"
    )
    assert run.notes == (f"student: {note}", f"teacher: {note}")


def test_stages_of_an_encoder_and_a_decoder_train_in_turn() -> None:
    pairs = tuple(
        LayerPair(student=tap, teacher=tap) for tap in ("encoder:1", "encoder:1.0", "decoder:0.5")
    )
    with pytest.raises(BindError, match=r"tap 1.0 as a fraction must lie strictly between 0"):
        learn(t5, extraction(total="4 steps", pairs=pairs), translation())
    run = learn(t5, extraction(total="4 steps", pairs=(pairs[0], pairs[2])), translation())
    assert [stage.taps for stage in run.stages] == [
        "encoder:1 <- encoder:1", "decoder:1 <- decoder:1", "logits",
    ]  # fmt: skip


def test_numbers_of_equal_parts_are_refused() -> None:
    fields: dict[str, Any] = {"vision_config": CLIP, "text_config": ENCODER, "projection_dim": 8}
    make = lambda: hf.CLIPModel(hf.CLIPConfig(**fields))  # noqa: E731
    data = ids(pixel_values=drawn(4, 3, 8, 8))
    with pytest.raises(
        BindError, match=r"student's tap must name one of .* as in 'text:1' or 'vision:1'; curri"
    ):
        learn(make, extraction(total="2 steps", pairs=1), data)
    for tap in ("text:1", "vision:0.5"):
        objective = MatchHidden(pair=LayerPair(student=tap, teacher=tap))
        assert learn(make, one_shot(total="1 steps", objective=objective), data).stages[0].taps


def test_stages_have_numbers_where_the_axis_is_named() -> None:
    with seeding.scoped(0, "test model"):
        student, teacher = (tapped(convnext(), width_axis=1) for _ in range(2))
    pair = LayerPair(student=2, teacher=2)
    records: list[Any] = []
    distill(
        student, teacher, extraction(total="2 steps", pairs=(pair,)), images(32, 64),
        evaluation=lambda model: {"accuracy": 0.0}, observers=[records.append],
        settings=TrainingSettings(device="cpu"),
    )  # fmt: skip
    assert records[0].stages[0].widths == "8 <- 8"


@pytest.mark.parametrize(
    ("make", "data", "sentence"),
    [
        (bert("BertModel"), ids(),
         (r"'logits' must be the only output of BertModel or have that name; got "
         r"last_hidden_state \(4, 6, 8\), pooler_output \(4, 8\); wrap the model in")),
        (lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**CLIP, projection_dim=8)),
         images(8, 8), r"got image_embeds \(4, 8\), last_hidden_state \(4, 5, 8\)"),
        (bert("BertForSequenceClassification", num_labels=1), ids(),
         r"'logits' of the student must have two classes or more .* got shape \(4, 1\)"),
        (bert("BertForSequenceClassification", num_labels=3,
              problem_type="multi_label_classification"), ids(),
         r"'problem_type' of the student must be 'single_label_classification' or unset"),
    ],
    ids=["bare encoder", "embeddings", "regression", "several labels"],
)  # fmt: skip
def test_heads_without_one_distribution_are_refused(
    make: Callable[[], nn.Module], data: Listed, sentence: str
) -> None:
    with pytest.raises(BindError, match=rf"^stage 'logits': .*{sentence}"):
        learn(make, WHOLE, data)


def test_a_bare_encoder_learns_hidden_states() -> None:
    objective = MatchHidden(pair=LayerPair(student=1, teacher=2))
    run = learn(bert("BertModel"), one_shot(total="1 steps", objective=objective), ids())
    assert run.stages[0].taps == "1 <- 2"


@pytest.mark.parametrize("make", [convnext, clip_classifier])
def test_a_start_needs_tokens(make: Callable[[], nn.Module]) -> None:
    data = images() if make is convnext else images(8, 8)
    with pytest.raises(
        BindError, match=r"^'student' must have token embeddings in an nn.Embedding"
    ):
        learn(make, one_shot(total="1 steps", init=PrincipalStart()), data)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**WAV2VEC2)),
         "config.layerdrop"),
        (lambda: hf.BartForCausalLM(hf.BartConfig(
            vocab_size=20, d_model=8, encoder_layers=2, decoder_layers=2, decoder_layerdrop=0.1,
            decoder_attention_heads=2, decoder_ffn_dim=8, max_position_embeddings=16)),
         "model.decoder.layerdrop"),
    ],
    ids=["wav2vec2", "bart"],
)  # fmt: skip
def test_layer_dropout_is_known_before_the_first_step(
    make: Callable[[], nn.Module], setting: str
) -> None:
    audio = Listed(Batch(inputs={"input_values": drawn(4, 100)}))
    data = audio if "config" in setting else ids()
    with pytest.raises(
        BindError, match=rf"tap '1' must run in every .*; set student.{setting} = 0"
    ):
        learn(make, extraction(total="2 steps", pairs=1), data)


def test_what_was_decided_is_in_the_notes() -> None:
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[0, :2] = 0
    make = lambda: hf.GPT2DoubleHeadsModel(  # noqa: E731
        hf.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    )
    assert learn(make, WHOLE, ids(attention_mask=mask)).notes == (
        "student: only 'logits' are taught, 'mc_logits' is left out",
        (
            "student: padding on the left shifts its positions, which 'transformer.wpe' numbers "
            "from 0; pad on the right or give 'position_ids'"
        ),
        "teacher: only 'logits' are taught, 'mc_logits' is left out",
        (
            "teacher: padding on the left shifts its positions, which 'transformer.wpe' numbers "
            "from 0; pad on the right or give 'position_ids'"
        ),
    )


def test_an_output_that_no_objective_reads_is_not_noted() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"scores": self.out(self.block(inputs))}

    data = Listed(Batch(inputs=drawn(4, 4)))
    objective = MatchHidden(pair=LayerPair(student="block", teacher="block"))
    assert learn(Pair, one_shot(total="1 steps", objective=objective), data).notes == ()
    (note, _) = learn(Pair, WHOLE, data).notes
    assert note == (
        "student: 'scores' of the output is taken for the logits, since nothing has that name"
    )


def test_labels_in_another_order_are_refused() -> None:
    def make(*labels: str) -> nn.Module:
        names = dict(enumerate(labels))
        with seeding.scoped(0, "test model"):
            return bert("BertForSequenceClassification", id2label=names)()

    with pytest.raises(
        BindError, match=r"'id2label' of student and teacher must agree .*; id 0 is"
    ):
        distill(
            make("no", "yes"),
            make("yes", "no"),
            WHOLE,
            ids(),
            evaluation=lambda model: {"accuracy": 0.0},
        )
