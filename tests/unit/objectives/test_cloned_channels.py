"""Channels of the teacher that projections begin with."""

import pytest
import torch

from curricle.objectives.cloned_channels import head_sizes, selection_matrix
from tests.unit.least_squares.families import model

STATES, NEURONS = (2, 4), (3, 6)
ENERGIES = {
    ("", STATES): torch.tensor([1.0, 3.0, 0.5, 2.0]),
    ("blocks.1", NEURONS): torch.tensor([0.0, 5.0, 4.0, 0.0, 0.0, 6.0]),
}


def channels(*arguments: object) -> list[int]:
    matrix = selection_matrix(*arguments)  # type: ignore[arg-type]
    assert torch.equal(matrix.sum(1), torch.ones(len(matrix)))
    return matrix.argmax(1).tolist()


def test_states_keep_the_channels_of_most_energy_in_every_module() -> None:
    for block in ("", "blocks.1", "blocks.2"):
        assert channels(STATES, ENERGIES, block, None) == [1, 3]


def test_neurons_are_those_of_their_block() -> None:
    assert channels(NEURONS, ENERGIES, "blocks.1", None) == [1, 2, 5]


def test_axes_without_activations_are_spaced_evenly() -> None:
    assert channels(NEURONS, ENERGIES, "blocks.2", None) == [0, 2, 4]


def test_heads_and_channels_of_heads_are_spaced_evenly() -> None:
    # Two of four heads of six channels, each with three.
    expected = [0, 2, 4, 12, 14, 16]
    assert channels((6, 24), {("", (6, 24)): torch.arange(24.0)}, "", (3, 6)) == expected


def test_equal_sizes_are_all_selected() -> None:
    assert torch.equal(selection_matrix((4, 4), {}, "", (2, 2)), torch.eye(4))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama",
            {
                ("self_attn.q_proj", 0),
                ("self_attn.k_proj", 0),
                ("self_attn.v_proj", 0),
                ("self_attn.o_proj", 1),
            },
        ),
        (
            "bert",
            {
                ("attention.self.query", 0),
                ("attention.self.key", 0),
                ("attention.self.value", 0),
                ("attention.output.dense", 1),
            },
        ),
        # Weights of GPT-2 are stored as (input, output).
        ("gpt2", {("attn.c_attn", 1), ("attn.c_proj", 0)}),
    ],
)
def test_inner_axes_of_attention_have_heads(family: str, expected: set[tuple[str, int]]) -> None:
    pytest.importorskip("transformers")
    sizes = head_sizes(model(family))
    assert set(sizes.values()) == {8}
    first = {(path.partition(".0.")[2], axis) for path, axis in sizes if path.partition(".0.")[2]}
    assert first == expected
