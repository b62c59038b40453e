"""FLOPs and saved bytes of single operations, worked out by hand."""

import torch

from curricle.training.setup.costs import Meter


def test_a_matrix_product_costs_two_flops_for_each_product() -> None:
    meter = Meter()
    with meter.running():
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert meter.flops == 2 * 3 * 4 * 5


def test_several_blocks_add_up() -> None:
    weight = torch.ones(4, 5, requires_grad=True)
    meter = Meter()
    with meter.running():
        product = torch.ones(3, 4) @ weight
    torch.ones(9, 9) @ torch.ones(9, 9)
    with meter.running():
        torch.autograd.grad(product.sum(), weight)
    # Forward, and backward to the weight only.
    assert meter.flops == 2 * (2 * 3 * 4 * 5)


def test_what_is_known_later_is_not_kept_either() -> None:
    weight = torch.ones(4, 5, requires_grad=True)
    meter = Meter()
    meter.exclude([weight])
    with meter.running():
        torch.ones(3, 4, requires_grad=True) @ weight
    assert meter.saved_bytes == 4 * 3 * 4


def test_what_autograd_keeps_is_counted_once() -> None:
    meter = Meter()
    with meter.running():
        state = torch.ones(3, 4, requires_grad=True).exp()
        _kept = state.square() + state.square()
    # The result of exp, 12 numbers of 4 bytes, is all that three operations need.
    assert meter.saved_bytes == 48


def test_weights_and_data_are_no_activations() -> None:
    weight, data = torch.ones(4, 5, requires_grad=True), torch.ones(30, 4)[10:13]
    meter = Meter([weight, data])
    with meter.running():
        _product = data @ weight
    assert meter.saved_bytes == 0


def test_nothing_is_kept_without_gradient() -> None:
    meter = Meter()
    with meter.running(), torch.no_grad():
        torch.ones(3, 4, requires_grad=True).exp()
    assert meter.saved_bytes == 0


def test_work_for_the_sake_of_another_counts_there() -> None:
    one, other = Meter(), Meter()
    with one.running():
        torch.ones(3, 4) @ torch.ones(4, 5)
    one.move_flops(20, other)
    assert (one.flops, other.flops) == (100, 20)
