"""Links are the maps on which alone the output depends."""

import torch
from torch import Tensor, nn

from curricle.least_squares.chain import chain, read
from curricle.models.wrapping import tapped
from tests.unit.least_squares.networks import convolutional, images, perceptron, vectors


class Skipping(nn.Module):
    """A map, a map with a skip connection, and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.beside, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.first(inputs).relu()
        logits: Tensor = self.last(state + self.scale * self.beside(state).relu())
        return logits


class Twice(nn.Module):
    """A map that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.map(self.map(inputs).relu()).relu())
        return logits


def paths(network: nn.Module, batch: Tensor) -> list[str]:
    return [link.map.path for link in chain(tapped(network.eval()), batch).links]


def test_all_maps_of_a_plain_network_are_links() -> None:
    assert paths(perceptron(5, 4), vectors(0)) == ["0", "2", "4"]
    assert paths(convolutional(5, 4), images(0)) == ["0", "4", "8"]


def test_normalizations_belong_to_the_map_before_them() -> None:
    links = chain(tapped(convolutional(5, 4)), images(0)).links
    assert [[norm.path for norm in link.norms] for link in links] == [["1"], ["5"], []]
    assert all(norm.is_direct for link in links for norm in link.norms)
    assert [link.direct_path for link in links] == ["1", "5", "8"]
    assert [link.leading for link in links] == [(8, 6, 6), (8, 3, 3), (8,)]


def test_a_normalization_behind_an_activation_is_not_direct() -> None:
    network = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3))
    first, _ = chain(tapped(network), vectors(0)).links
    assert [norm.is_direct for norm in first.norms] == [False]
    assert first.direct_path == "0"


def test_maps_beside_a_skip_connection_are_no_links() -> None:
    found = chain(tapped(Skipping()), vectors(0))
    assert [link.map.path for link in found.links] == ["first", "last"]
    assert found.unfitted == {
        "beside": "the output does not depend on it alone, as beside a skip connection",
        "": "a pass does not call it as a module",
    }


def test_a_map_that_runs_twice_is_no_link() -> None:
    found = chain(tapped(Twice()), vectors(0))
    assert [link.map.path for link in found.links] == ["head"]
    assert found.unfitted == {"map": "its weights are used several times in a pass"}


def test_maps_that_share_weights_are_no_links() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    network[2].weight = network[0].weight
    assert paths(network, vectors(0)) == ["3"]


def test_examples_that_are_alike_show_nothing() -> None:
    found = chain(tapped(perceptron(5)), torch.ones(4, 8))
    assert found.unfitted == {"": "its logits are equal for all examples of the first batch"}


def test_an_output_without_logits_is_a_reason() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"states": self.map(inputs), "more": inputs}

    assert chain(tapped(Pair()), vectors(0)).unfitted == {"": "its output has no logits"}


def test_other_weights_are_named() -> None:
    network = nn.Sequential(nn.Linear(8, 5), nn.PReLU(5), nn.Linear(5, 3))
    reason = "it is no linear map, convolution or normalization"
    assert chain(tapped(network), vectors(0)).unfitted == {"1": reason}


def test_a_pass_ends_before_a_module() -> None:
    network = perceptron(5, 4)
    reading = read(tapped(network), vectors(0), ["0", "4"], stop_at="2")
    assert set(reading.inputs) == {"0", "2"}
    assert set(reading.outputs) == {"0"}
    assert reading.logits is None
    assert torch.equal(reading.inputs["2"], nn.functional.gelu(network[0](vectors(0))))  # type: ignore[index]


def test_replaced_outputs_are_handed_on() -> None:
    network = perceptron(5)
    zeros = torch.zeros(16, 5)
    reading = read(tapped(network), vectors(0), ["2"], replaced={"0": zeros})
    assert reading.logits is not None
    assert torch.equal(reading.logits[0], network[2].bias)  # type: ignore[index]
