"""Embeddings and heads are set from the teacher's, tied or not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.least_squares.calibrated import CalibratedModel
from curricle.least_squares.stream_map import stream_map
from curricle.least_squares.surroundings import Pair, fit_front, fit_tail
from curricle.models.wrapping import tapped
from tests.unit.least_squares.families import inputs, model

pytest.importorskip("transformers")


def pair(family: str, **fields: Any) -> Pair:
    batches = [inputs(family, number) for number in range(6)]
    student, teacher = (
        CalibratedModel(tapped(module), batches, [None] * 6)
        for module in (model(family, seed=1, **fields), model(family))
    )
    rows = torch.cat([teacher.rows(batch, state) for batch, state in enumerate(teacher.states)])
    keeps_mean = family != "llama"
    return Pair(
        student, teacher, stream_map([rows.mT @ rows], student.width, keeps_mean=keeps_mean)
    )


def states(model: CalibratedModel) -> Tensor:
    model.restart()
    return torch.cat([model.rows(batch, state) for batch, state in enumerate(model.states)])


@pytest.mark.parametrize(
    ("family", "fields", "bound"),
    [
        ("llama", {"hidden_size": 8, "intermediate_size": 16}, 1e-6),
        ("gpt2", {"n_embd": 8}, 1e-6),
        ("vit", {"hidden_size": 8, "intermediate_size": 16}, 1e-6),
        # With a normalization, whose statistics are those of fewer channels.
        ("bert", {"hidden_size": 8, "intermediate_size": 16}, 0.3),
    ],
)
def test_first_states_are_the_mapped_ones(
    family: str, fields: dict[str, Any], bound: float
) -> None:
    models = pair(family, **fields)
    assert fit_front(models) == []
    target = states(models.teacher) @ models.stream.mT
    error = (states(models.student) - target).square().sum() / target.square().sum()
    assert error < bound


def test_names_with_one_end_are_paired() -> None:
    class Outer(nn.Module):
        """A model under another name."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model("gpt2", seed=1)

        def forward(self, input_ids: Tensor) -> object:
            return self.inner(input_ids=input_ids).logits

    student = tapped(Outer().eval(), blocks=["inner.transformer.h.0", "inner.transformer.h.1"])
    batches = [inputs("gpt2", 0)]
    models = Pair(
        CalibratedModel(student, batches, [None]),
        CalibratedModel(tapped(model("gpt2")), batches, [None]),
        torch.eye(16).double(),
    )
    assert fit_front(models) == []
    torch.testing.assert_close(states(models.student), states(models.teacher))


def test_a_parameter_without_a_counterpart_is_left() -> None:
    models = pair("bert", type_vocab_size=3)
    left = fit_front(models)
    assert left == [
        "'bert.embeddings.token_type_embeddings.weight': the teacher has no parameter that fits"
    ]


def test_a_head_of_another_size_is_left() -> None:
    models = pair("bert_classifier", num_labels=5)
    assert fit_tail(models) == ["'classifier': its outputs are not those of the teacher's"]


def test_a_pooler_takes_the_neurons_that_count() -> None:
    models = pair("bert_classifier", hidden_size=8, intermediate_size=16)
    assert fit_tail(models) == []
    # The student's blocks are as drawn, so only the best map of them can be reached.
    module = models.student.module
    weight = module.get_submodule("classifier").get_parameter("weight")
    assert bool(weight.isfinite().all())
    assert not torch.equal(
        weight,
        model("bert_classifier", seed=1, hidden_size=8, intermediate_size=16).get_parameter(
            "classifier.weight"
        ),
    )


def test_a_tied_output_keeps_its_table_and_takes_the_bias() -> None:
    models = pair("bert", hidden_size=8, intermediate_size=16)
    fit_front(models)
    own, other = models.student.module, models.teacher.module
    table = own.get_parameter("bert.embeddings.word_embeddings.weight").detach().clone()
    assert fit_tail(models) == []
    decoder = own.get_submodule("cls.predictions.decoder")
    assert torch.equal(decoder.get_parameter("weight"), table)
    assert torch.equal(
        decoder.get_parameter("bias"), other.get_parameter("cls.predictions.decoder.bias")
    )
