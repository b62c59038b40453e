"""Lists of blocks, and which of them numbers count."""

from types import SimpleNamespace

import pytest
from torch import nn

from curricle import seeding
from curricle.models.stacks import (
    Numbering,
    Stack,
    numbered_blocks,
    stack_lengths,
    traced_numbering,
)
from curricle.models.tapped import Place


class Block(nn.Module):
    """Two linear maps, and experts that are a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in "ab")


class Net(nn.Module):
    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(2, 2, 1) for _ in range(3))
        for name, length in lengths.items():
            self.add_module(name, nn.ModuleList(Block() for _ in range(length)))


def build(**lengths: int) -> Net:
    with seeding.scoped(0, "test model"):
        return Net(**lengths)


def test_stacks_are_the_outermost_lists_of_blocks_with_linear_maps() -> None:
    assert stack_lengths(build(encoder=2, decoder=4)) == {"encoder": 2, "decoder": 4}


def test_the_only_stack_has_numbers_without_a_note() -> None:
    numbering = numbered_blocks(build(layers=2), SimpleNamespace(num_hidden_layers=2))
    assert (numbering.paths, numbering.notes) == (("layers.0", "layers.1"), ())


def test_the_choice_among_several_stacks_is_noted() -> None:
    numbering = numbered_blocks(build(text=2, vision=4), SimpleNamespace(num_hidden_layers=2))
    assert numbering.paths == ("text.0", "text.1")
    assert numbering.notes == ("numbered taps are the 2 blocks of 'text', not those of 'vision'",)


@pytest.mark.parametrize(
    ("lengths", "config", "rule"),
    [
        ({"encoder": 4, "decoder": 2}, {"num_hidden_layers": 4, "is_encoder_decoder": True},
         "numbers could mean its encoder or its decoder"),
        ({"encoder": 2, "decoder": 2}, {"num_hidden_layers": 2},
         "one list of 2 modules is expected; got ['encoder', 'decoder']"),
        ({"vision": 2, "text": 4}, {}, "its configuration has no 'num_hidden_layers'"),
        ({"groups": 1}, {"num_hidden_layers": 5}, "one list of 5 modules is expected; got []"),
    ],
    ids=["T5 with unequal stacks", "equal stacks", "a composite", "a shared block"],
)  # fmt: skip
def test_ambiguous_blocks_have_no_numbers(
    lengths: dict[str, int], config: dict[str, object], rule: str
) -> None:
    numbering = numbered_blocks(build(**lengths), SimpleNamespace(**config))
    listed = ", ".join(f"'{path}' with {length}" for path, length in lengths.items())
    assert numbering.paths == ()
    assert numbering.reason == (
        f"'blocks' must be given for Net: {rule}; lists of blocks: {listed}; "
        f"curricle.tapped(model, blocks=[...]) names those that count, or taps are module paths"
    )


def test_an_encoder_alone_has_numbers_whatever_the_family() -> None:
    config = SimpleNamespace(num_hidden_layers=2, is_encoder_decoder=True)
    assert numbered_blocks(build(encoder=2), config).paths == ("encoder.0", "encoder.1")


def stack(name: str, path: str, depth: int) -> Stack:
    prefix = f"{name}:" if name else ""
    places = [Place(f"{path}.0", side="input", tap=f"{prefix}0")]
    places += [Place(f"{path}.{number}", tap=f"{prefix}{number + 1}") for number in range(depth)]
    return Stack(name=name, places=tuple(places))


UNKNOWN = Numbering(reason="unknown")


def test_without_a_pass_the_configuration_decides() -> None:
    assert traced_numbering(build(layers=2), (), UNKNOWN) is UNKNOWN


def test_numbers_are_the_blocks_of_the_decoder() -> None:
    stacks = (stack("encoder", "encoder", 3), stack("decoder", "decoder", 2))
    numbering = traced_numbering(build(encoder=3, decoder=2), stacks, UNKNOWN)
    assert numbering.main is not None
    assert numbering.paths == ("decoder.0", "decoder.1")
    assert [place.tap for place in numbering.main.places] == ["0", "1", "2"]
    assert (numbering.reason, numbering.stacks) == ("", stacks)
    (note,) = numbering.notes
    assert note == (
        "numbered taps are the 2 blocks of 'decoder', not those of 'encoder', whose taps are "
        "'encoder:0' to 'encoder:3'"
    )


def test_lists_that_a_pass_has_not_run_are_noted() -> None:
    stacks = (stack("", "text", 2),)
    numbering = traced_numbering(build(text=2, vision=2), stacks, UNKNOWN)
    assert numbering.notes == ("numbered taps are the 2 blocks of 'text', not those of 'vision'",)
    assert traced_numbering(build(text=2), stacks, UNKNOWN).notes == ()


def test_equal_parts_have_no_numbers() -> None:
    stacks = (stack("text", "text", 2), stack("vision", "vision", 2))
    numbering = traced_numbering(build(text=2, vision=2), stacks, UNKNOWN)
    assert (numbering.main, numbering.paths) == (None, ())
    assert numbering.reason == (
        "tap must name one of the stacks of blocks in Net, as in 'text:1' or 'vision:1'; "
        "curricle.tapped(model, blocks=[...]) gives numbers to other blocks"
    )
