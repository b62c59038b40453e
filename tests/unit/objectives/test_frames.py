"""Frames of padded samples: counts of transformers, rows of the loss, and models without any."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch, named
from curricle.models.mlp import MLP
from curricle.models.tapped import Activations
from curricle.objectives.base import Sample
from curricle.objectives.frames import FrameCounter, counter_of_states, frame_counter
from curricle.objectives.projections import Identity
from curricle.records import StepRecord
from curricle.training.setup.placement import SingleDevice
from tests.contracts.test_families import WAV2VEC2
from tests.parts import Listed, drawn

LENGTHS = (200, 140, 60)


def sound() -> Batch:
    mask = torch.stack([(torch.arange(200) < length).long() for length in LENGTHS])
    values = drawn(3, 200) * mask
    return Batch(inputs={"input_values": values, "attention_mask": mask}, valid=mask.bool())


def wav2vec2(seed: int) -> Any:
    config = hf.Wav2Vec2Config(**WAV2VEC2, feat_extract_norm="layer")
    with seeding.scoped(seed, "test model"):
        return hf.Wav2Vec2Model(config).eval()


def counter(model: Any) -> FrameCounter:
    found = frame_counter(curricle.tapped(model))
    assert found is not None
    return found


def test_the_mask_of_frames_is_that_of_the_model() -> None:
    model, batch = wav2vec2(0), sound()
    mask = batch.inputs["attention_mask"]  # type: ignore[index]
    frames = int(model._get_feat_extract_output_lengths(200))
    expected = model._get_feature_vector_attention_mask(frames, mask)
    valid = counter(model).batch(batch).valid
    assert valid is not None
    assert torch.equal(valid, expected)
    assert 0 < int(valid.sum()) < valid.numel()


def test_frames_of_a_batch_that_was_moved_are_counted_on_the_cpu() -> None:
    batch, frames = sound(), counter(wav2vec2(0))
    expected, found = frames.batch(batch), frames.batch(SingleDevice("meta").part_of(batch))
    assert found.valid is not None
    assert found.valid.is_meta
    assert found.positions == expected.positions
    assert found.num_tokens == expected.num_tokens


@pytest.mark.parametrize("reading", ["positions", "pooled"])
def test_frames_of_padding_do_not_count_in_the_loss(reading: Any) -> None:
    student, teacher, batch = wav2vec2(0), wav2vec2(1), sound()
    student.train()
    states = [
        model(**named(batch.inputs), output_hidden_states=True).hidden_states[1]
        for model in (student, teacher)
    ]
    valid = counter(student).batch(batch).valid
    assert valid is not None
    if reading == "pooled":
        rows = [
            torch.stack([row[mask].mean(0) for row, mask in zip(state, valid, strict=True)])
            for state in states
        ]
    else:
        rows = [state[valid] for state in states]
    expected = (rows[0] - rows[1]).square().mean().item()
    pair = curricle.LayerPair(student=1, teacher=1, reading=reading)
    objective = curricle.MatchHidden(pair=pair, projection=Identity(), normalize="none")
    records: list[Any] = []
    curricle.distill(
        student, teacher, curricle.one_shot(total="1 steps", objective=objective),
        Listed(batch), evaluation=lambda _: {"accuracy": 0.0}, observers=[records.append],
        settings=curricle.TrainingSettings(
            device="cpu", log_every=1, gradient_accumulation_steps=3
        ),
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(expected, rel=1e-4)


def recognizer(seed: int) -> Any:
    config = hf.Wav2Vec2Config(**WAV2VEC2, feat_extract_norm="layer")
    with seeding.scoped(seed, "test model"):
        return hf.Wav2Vec2ForCTC(config).eval()


@pytest.mark.parametrize("fields", [{}, {"chunk": 4}, {"output": "logits"}], ids=str)
@pytest.mark.parametrize("parts", [1, 3])
def test_logits_of_ctc_are_matched_at_the_frames_with_sound(
    fields: dict[str, Any], parts: int
) -> None:
    student, teacher, batch = recognizer(0), recognizer(1), sound()
    with torch.no_grad():
        logs = [
            model(**named(batch.inputs)).logits.log_softmax(-1)
            for model in (student.train(), teacher)
        ]
    valid = counter(student).batch(batch).valid
    assert valid is not None
    assert logs[0].shape[:2] == valid.shape
    divergence = (logs[1].exp() * (logs[1] - logs[0])).sum(-1)
    expected = divergence[valid].mean().item()
    head = "lm_head" if "chunk" in fields else None
    # Frames of padding have another mean.
    assert expected != pytest.approx(divergence.mean().item(), rel=1e-3)
    records: list[Any] = []
    curricle.distill(
        curricle.tapped(student, head=head), curricle.tapped(teacher, head=head),
        curricle.one_shot(total="1 steps", objective=curricle.MatchLogits(**fields)),
        Listed(batch), evaluation=lambda _: {"accuracy": 0.0}, observers=[records.append],
        settings=curricle.TrainingSettings(
            device="cpu", log_every=1, gradient_accumulation_steps=parts
        ),
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(expected, rel=1e-4)


class Strided(nn.Module):
    """A model of sound with one frame for a number of samples."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.convolution = stride, nn.Conv1d(1, 4, stride, stride)
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def _get_feat_extract_output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths // self.stride

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Any:
        del attention_mask
        return self.head(self.block(self.convolution(input_values.unsqueeze(1)).mT).mean(1))


def test_pooled_means_of_each_model_are_over_its_own_frames() -> None:
    with seeding.scoped(0, "test model"):
        student, teacher = (curricle.tapped(Strided(n), blocks=["block"]) for n in (5, 10))
    mask = (torch.arange(40) < torch.tensor([[40], [20], [10]])).long()
    inputs = {"input_values": drawn(3, 40), "attention_mask": mask}
    pair = curricle.LayerPair(student=1, teacher=1, reading="pooled")
    declared = curricle.MatchHidden(pair=pair, projection=Identity(), normalize="none")
    reads = declared.reads(student, teacher)

    def target(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = Batch(inputs={**inputs, "input_values": values}, valid=mask.bool())
        activations: list[Activations] = []
        for model, places in ((student, reads.student), (teacher, reads.teacher)):
            with model.open_taps(places, logits=False) as forward, torch.no_grad():
                activations.append(forward(batch.inputs))
        sample = Sample(batch=batch, student=activations[0], teacher=activations[1], seed=0)
        term = declared.bind(reads, sample, is_residual=False)
        return term.target(activations[1], batch), activations[1].hidden[reads.teacher[0]]

    actual, states = target(inputs["input_values"])
    expected = torch.stack([row[:n].mean(0) for row, n in zip(states, (4, 2, 1), strict=True)])
    torch.testing.assert_close(actual, expected)
    padded, _ = target(inputs["input_values"].masked_fill(mask == 0, 7.0))
    torch.testing.assert_close(padded, actual)


def test_frames_are_those_of_the_blocks_and_not_of_an_adapter() -> None:
    class Adapted(nn.Module):
        def _get_feat_extract_output_lengths(
            self, lengths: torch.Tensor, add_adapter: bool = True
        ) -> torch.Tensor:
            return lengths // (4 if add_adapter else 2)

    assert FrameCounter(Adapted()).counts(torch.tensor([8, 6])).tolist() == [4, 3]


def test_states_with_the_positions_of_the_data_or_none_have_no_frames() -> None:
    found, batch = counter(wav2vec2(0)), sound()
    frames = int(found.counts(torch.tensor([200])))
    assert counter_of_states(found, (3, frames), batch) is found
    assert counter_of_states(found, (3, 200), batch) is None
    assert counter_of_states(found, (3,), batch) is None
    assert counter_of_states(found, (3, frames + 1), batch) is None
    assert counter_of_states(None, (3, frames), batch) is None
    assert counter_of_states(found, (3, frames), Batch(inputs=batch.inputs)) is None


def test_a_batch_without_a_mask_stays_as_it_is() -> None:
    batch = Batch(inputs={"input_values": drawn(3, 200)})
    assert counter(wav2vec2(0)).batch(batch) is batch


def test_models_without_the_method_have_no_counter() -> None:
    with seeding.scoped(0, "test model"):
        assert frame_counter(MLP(2, (3,), 2).tapped()) is None


def test_a_copy_of_an_objective_does_not_copy_the_model() -> None:
    found = counter(wav2vec2(0))
    assert copy.deepcopy(found) is found


def test_the_encoder_of_whisper_has_frames_of_its_own_mask() -> None:
    config = hf.WhisperConfig(
        vocab_size=20, d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=4,
        max_source_positions=10, max_target_positions=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    with seeding.scoped(0, "test model"):
        student, teacher = (hf.WhisperForConditionalGeneration(config).eval() for _ in range(2))
    mask = torch.stack([(torch.arange(20) < length).long() for length in (20, 11)])
    inputs = {
        "input_features": drawn(2, 4, 20),
        "attention_mask": mask,
        "decoder_input_ids": torch.full((2, 5), 4),
    }
    states = [
        model(**inputs, output_hidden_states=True).encoder_hidden_states[1]
        for model in (student, teacher)
    ]
    error = (states[0] - states[1]).square().mean(-1)
    # 20 and 11 columns of the spectrogram are 10 and 6 frames.
    expected = (error[0].sum() + error[1, :6].sum()).item() / 16
    pair = curricle.LayerPair(student="encoder:1", teacher="encoder:1")
    objective = curricle.MatchHidden(pair=pair, projection=Identity(), normalize="none")
    records: list[Any] = []
    curricle.distill(
        student, teacher, curricle.one_shot(total="1 steps", objective=objective),
        Listed(Batch(inputs=inputs)), evaluation=lambda _: {"accuracy": 0.0},
        observers=[records.append], settings=curricle.TrainingSettings(device="cpu", log_every=1),
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(expected, rel=1e-4)
