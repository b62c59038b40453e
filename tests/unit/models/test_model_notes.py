"""Choices about a model: notes of the plan, and what is refused instead."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.families import tapped
from curricle.models.model_notes import (
    Role,
    check_pair,
    check_problem_type,
    model_notes,
    probability_note,
)
from curricle.models.tapped import TappedModel
from tests.parts import drawn


class Net(nn.Module):
    """A table of positions and a head under a configuration."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        with seeding.scoped(0, "test model"):
            self.wpe, self.out = nn.Embedding(8, 4), nn.Linear(4, 3)


def notes(module: nn.Module, who: Role = "student", **inputs: Tensor) -> tuple[str, ...]:
    return model_notes(tapped(module), who, {"inputs": drawn(2, 5, 4), **inputs})


def test_a_model_with_one_output_needs_no_note() -> None:
    assert notes(Net()) == ()
    assert model_notes(tapped(Net()), "teacher", drawn(2, 4)) == ()


def test_the_part_that_is_taken_for_the_logits_is_noted() -> None:
    found = model_notes(tapped(Net()), "teacher", drawn(2, 4), "'out' is taken for the logits")
    assert found == ("teacher: 'out' is taken for the logits",)


@pytest.mark.parametrize(
    "config",
    [{"router_aux_loss_coef": 0.02}, {"text_config": SimpleNamespace(aux_loss_alpha=0.02)}],
    ids=["mixture", "text model inside"],
)
def test_router_losses_of_a_student_stay_out(config: dict[str, Any]) -> None:
    (note,) = notes(Net(**config))
    assert "= 0.02) stays out of the loss" in note
    assert notes(Net(**config), "teacher") == ()
    assert notes(Net(router_aux_loss_coef=0.0)) == ()


LEFT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def test_padding_on_the_left_shifts_absolute_positions() -> None:
    (note,) = notes(Net(max_position_embeddings=8), attention_mask=LEFT)
    assert note == (
        "student: padding on the left shifts its positions, which 'wpe' numbers from 0; pad on "
        "the right or give 'position_ids'"
    )


@pytest.mark.parametrize(
    ("length", "mask"),
    [(8, LEFT.flip(1)), (8, torch.ones(2, 5, dtype=torch.int64)), (9, LEFT)],
    ids=["right", "none", "no table of positions"],
)
def test_other_padding_shifts_nothing(length: int, mask: Tensor) -> None:
    assert notes(Net(max_position_embeddings=length), attention_mask=mask) == ()


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_outputs_that_are_no_distribution_are_refused(problem: str, who: Role) -> None:
    with pytest.raises(
        BindError,
        match=rf"^'problem_type' of the {who} must be 'single_label_classification' or unset .*; "
        rf"got '{problem}', whose outputs are independent of each other; "
        rf"MatchLogits\(divergence=\{{'kind': 'squared_error'\}}\) matches such outputs",
    ):
        check_problem_type(tapped(Net(problem_type=problem)), who)


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_classes_are_accepted(problem: str | None) -> None:
    check_problem_type(tapped(Net(problem_type=problem)), "student")
    check_problem_type(tapped(nn.Identity()), "student")


def pair(student: dict[str, Any], teacher: dict[str, Any]) -> tuple[TappedModel, TappedModel]:
    return tapped(Net(**student)), tapped(Net(**teacher))


ORDERED = {0: "negative", 1: "neutral", 2: "positive"}


@pytest.mark.parametrize(
    ("other", "place", "name", "theirs"),
    [
        ({0: "positive", 1: "neutral", 2: "negative"}, 0, "negative", 2),
        ({0: "NEGATIVE", 1: "POSITIVE", 2: "other"}, 2, "positive", 1),
        ({"0": "neutral", "1": "mixed"}, 1, "neutral", 0),
    ],
    ids=["turned round", "other case, part of them", "ids as strings, fewer"],
)
def test_labels_in_another_order_are_refused(
    other: dict[Any, str], place: int, name: str, theirs: int
) -> None:
    with pytest.raises(
        BindError,
        match=rf"^'id2label' of student and teacher must agree to compare their logits; id "
        rf"{place} is '{name}' for the student, and the teacher's id {theirs} has that name; ",
    ):
        check_pair(*pair({"id2label": ORDERED}, {"id2label": other}))


@pytest.mark.parametrize(
    "other",
    [ORDERED, {0: "Negative", 1: "Neutral", 2: "Positive"}, {0: "LABEL_0", 1: "LABEL_1"}, None],
)
def test_labels_in_the_same_order_and_placeholders_need_no_word(other: object) -> None:
    assert check_pair(*pair({"id2label": ORDERED}, {"id2label": other})) == ()
    assert check_pair(*pair({"id2label": other}, {"id2label": ORDERED})) == ()


def test_other_names_are_noted() -> None:
    (note,) = check_pair(*pair({"id2label": {0: "neg"}}, {"id2label": {0: "negative"}}))
    assert note == (
        "labels have other names: id 0 is 'neg' for the student and 'negative' for the teacher; "
        "they are compared by id"
    )


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_another_vocabulary_of_the_same_size_is_noted(name: str) -> None:
    (note,) = check_pair(*pair({name: 0, "vocab_size": 9}, {name: 1, "vocab_size": 9}))
    assert note.startswith(f"'{name}' is 0 for the student and 1 for the teacher, so their")
    assert check_pair(*pair({name: 0}, {name: 0})) == ()
    assert check_pair(*pair({name: 0}, {name: None})) == ()


@pytest.mark.parametrize(
    ("logits", "is_noted"),
    [
        (drawn(4, 3).softmax(-1), True),
        (drawn(2, 5, 3).softmax(-1), True),
        (drawn(4, 3), False),
        (drawn(4, 3).sigmoid(), False),
        (drawn(4, 3).log_softmax(-1), False),
        (torch.ones(4, 1), False),
    ],
    ids=["softmax", "softmax of positions", "logits", "sigmoid", "log softmax", "one value"],
)
def test_logits_that_are_probabilities_are_noted(logits: Tensor, is_noted: bool) -> None:
    assert bool(probability_note(logits)) == is_noted


def test_a_name_of_several_classes_says_nothing_about_their_order() -> None:
    labels = {0: "crane", 1: "dog", 2: "crane"}
    other = {0: "crane", 1: "dog", 2: "cat"}
    assert check_pair(*pair({"id2label": labels}, {"id2label": labels})) == ()
    notes = check_pair(*pair({"id2label": labels}, {"id2label": other}))
    assert notes[0].startswith("labels have other names: id 2 is 'crane'")


def test_ranks_that_no_step_changes_are_noted() -> None:
    class Allocating(Net):
        def update_and_allocate(self) -> None:
            raise AssertionError

    (note,) = notes(Allocating())
    assert note.startswith("student: its adapters (AdaLoRA) keep the ranks that they begin with")
    assert notes(Allocating(), "teacher") == ()
