"""Learning rates and updates, in numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from curricle.errors import SpecError
from curricle.training.setup.optimizers import (
    SGD,
    AdamW,
    Moments,
    Optimizer,
    Schedule,
    decay_groups,
)
from tests.parts import drawn


def parameter(*values: float) -> nn.Parameter:
    """Return a matrix of one row."""
    return nn.Parameter(torch.tensor([values]))


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_learning_rate_is_a_number_in_float32(kind: type[SGD] | type[AdamW]) -> None:
    # The largest one is (2 - 2 ** -23) * 2 ** 127, about 3.4e38.
    assert kind(learning_rate=3.4e38).learning_rate == 3.4e38
    with pytest.raises(
        SpecError, match=r"learning_rate' .* less than or equal to 34028.*; got 1e\+40"
    ):
        kind(learning_rate=1e40)


# --- schedules ------------------------------------------------------------------------------------


def test_a_constant_rate_is_the_peak_all_along() -> None:
    assert [Schedule().factor(step, 10) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]


def test_the_warm_up_rises_linearly_to_the_peak() -> None:
    # 20 % of 20 steps: 1/5, 2/5, 3/5, 4/5, then the peak.
    warm = Schedule(warmup=0.2)
    assert [warm.factor(step, 20) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def test_the_linear_decay_falls_by_equal_steps() -> None:
    falling = Schedule(decay="linear")
    assert [falling.factor(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_the_decay_ends_at_the_floor() -> None:
    falling = Schedule(decay="linear", floor=0.2)
    # 1 - 0.8 * 3 / 4 = 0.4; at the end, which no step reaches, 0.2.
    assert falling.factor(3, 4) == pytest.approx(0.4)
    assert falling.factor(4, 4) == pytest.approx(0.2)


def test_the_cosine_decay_follows_half_a_wave() -> None:
    wave = Schedule(decay="cosine", floor=0.1)
    # 0.1 + 0.9 (1 + cos(pi s / 6)) / 2 at s = 0, 2, 3, 4.
    wanted = [1.0, 0.1 + 0.9 * 0.75, 0.55, 0.1 + 0.9 * 0.25]
    assert [wave.factor(step, 6) for step in (0, 2, 3, 4)] == pytest.approx(wanted)


def test_the_decay_begins_after_the_warm_up() -> None:
    both = Schedule(warmup=0.5, decay="cosine")
    # 4 steps up (1/5 to 4/5), then 4 steps of half a wave.
    wanted = [0.2, 0.4, 0.6, 0.8] + [(1 + math.cos(math.pi * part / 4)) / 2 for part in range(4)]
    assert [both.factor(step, 8) for step in range(8)] == pytest.approx(wanted)


def test_a_stretch_of_one_step_has_a_positive_rate() -> None:
    every = [Schedule(warmup=0.9, decay=decay) for decay in ("constant", "cosine", "linear")]
    assert all(0 < schedule.factor(0, 1) <= 1 for schedule in every)


def test_a_floor_is_where_a_decay_ends() -> None:
    with pytest.raises(
        SpecError, match=r"'floor' has no effect with .*; choose 'cosine' or .*\(got 0\.1\)$"
    ):
        Schedule(warmup=0.5, floor=0.1)


@pytest.mark.parametrize(("field", "wrong"), [("warmup", 1.0), ("warmup", -0.1), ("floor", 1.5)])
def test_a_schedule_stays_in_its_range(field: str, wrong: float) -> None:
    with pytest.raises(SpecError, match=rf"^'Schedule\.{field}' .*; got {wrong}$"):
        Schedule(**{field: wrong})  # type: ignore[arg-type]


# --- optimizers -----------------------------------------------------------------------------------


def test_momentum_adds_up_gradients() -> None:
    weight = parameter(1.0)
    optimizer = SGD(learning_rate=0.1, momentum=0.5).build([weight])
    for _ in range(2):
        weight.grad = torch.ones(1, 1)
        optimizer.step()
    # Velocities 1 and 1.5: 1 - 0.1 - 0.15.
    assert weight.item() == pytest.approx(0.75)


def test_the_penalty_of_descent_is_part_of_the_gradient() -> None:
    weight = parameter(2.0)
    weight.grad = torch.ones(1, 1)
    SGD(learning_rate=0.1, weight_decay=0.5).build([weight]).step()
    # 2 - 0.1 (1 + 0.5 * 2).
    assert weight.item() == pytest.approx(1.8)


def test_the_first_step_of_adam_is_the_learning_rate_and_decay_is_decoupled() -> None:
    weight = parameter(2.0, -2.0)
    weight.grad = torch.tensor([[1e-3, 5.0]])
    AdamW(learning_rate=0.1, weight_decay=0.5).build([weight]).step()
    # w (1 - 0.1 * 0.5) - 0.1 sign(g), whatever the size of g.
    assert weight[0].tolist() == pytest.approx([1.8, -2.0], abs=1e-5)


def test_adam_has_the_betas_of_the_paper() -> None:
    weight = parameter(0.0)
    optimizer = AdamW(learning_rate=1.0).build([weight])
    for gradient in (1.0, -1.0):
        weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    # Moments after two steps: m = 0.9 * 0.1 - 0.1 = -0.01, divided by 1 - 0.81; v is 1 throughout.
    assert weight.item() == pytest.approx(-1 + 0.01 / 0.19, abs=1e-5)
    assert optimizer.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(learning_rate=0.1, weight_decay=0.5), AdamW(learning_rate=0.1, weight_decay=0.5)],
)
def test_only_matrices_decay(optimizer: Optimizer) -> None:
    matrix, bias = parameter(1.0), nn.Parameter(torch.ones(1))
    matrix.grad, bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.build([matrix, bias]).step()
    assert matrix.item() == pytest.approx(0.95)
    assert bias.item() == 1.0


@pytest.mark.parametrize(
    "optimizer", [SGD(learning_rate=0.1, momentum=0.9), AdamW(learning_rate=0.1)]
)
def test_a_parameter_without_a_gradient_gets_neither_update_nor_state(
    optimizer: Optimizer,
) -> None:
    used, unused = parameter(1.0), parameter(1.0)
    used.grad = torch.ones(1, 1)
    built = optimizer.build([used, unused])
    built.step()
    assert unused.item() == 1.0
    assert unused not in built.state
    assert used in built.state


def test_groups_hold_every_parameter_once() -> None:
    module = nn.Sequential(nn.Embedding(3, 2, _weight=torch.zeros(3, 2)), nn.LayerNorm(2))
    groups = decay_groups(module.parameters(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    held = [one for group in groups for one in group["params"]]  # type: ignore[attr-defined]
    assert {id(one) for one in held} == {id(one) for one in module.parameters()}
    assert len(held) == 3


def test_without_decay_one_group_is_enough() -> None:
    matrix, bias = parameter(1.0), nn.Parameter(torch.ones(1))
    assert decay_groups([matrix, bias], 0.0) == [{"params": [matrix, bias], "weight_decay": 0.0}]


def test_an_empty_group_is_left_out() -> None:
    assert len(decay_groups([parameter(1.0)], 0.1)) == 1


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_the_learning_rate_is_positive(kind: type[SGD] | type[AdamW]) -> None:
    with pytest.raises(SpecError, match=r"learning_rate' .* greater than 0; got 0$"):
        kind(learning_rate=0)


@given(
    optimizer=st.sampled_from(
        [
            SGD(learning_rate=0.1),
            SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.2),
            AdamW(learning_rate=0.05, weight_decay=0.2),
            AdamW(learning_rate=0.05, betas=(0.5, 0.7), epsilon=1e-3),
        ]
    ),
    seed=st.integers(0, 99),
    steps=st.integers(2, 5),
)
def test_a_weight_moves_as_the_torch_optimizer_moves_it(
    optimizer: SGD | AdamW, seed: int, steps: int
) -> None:
    parameters = [nn.Parameter(drawn(3, 2, seed=seed)), nn.Parameter(drawn(4, seed=seed + 1))]
    built = optimizer.build(parameters)

    def step(rate: float, number: int) -> None:
        for place, parameter in enumerate(parameters):
            parameter.grad = drawn(*parameter.shape, seed=seed + 10 * number + place)
        for group in built.param_groups:
            group["lr"] = rate
        built.step()

    step(0.1, 0)
    rates = [0.1 / (number + 1) for number in range(steps)]
    counts = torch.arange(2.0, steps + 2)
    factors = optimizer.factors(torch.tensor(rates), counts)
    found: list[tuple[Tensor, Moments]] = [
        (parameter.detach().clone(), {key: kept.clone() for key, kept in state.items()})
        for parameter, state in ((one, built.state[one]) for one in parameters)
    ]
    for number in range(steps):
        step(rates[number], number + 1)
        for place, (weight, moments) in enumerate(found):
            found[place] = optimizer.moved(
                weight,
                drawn(*weight.shape, seed=seed + 10 * (number + 1) + place),
                moments,
                decay=optimizer.weight_decay if weight.ndim > 1 else 0.0,
                factors=factors[number],
            )
    for parameter, (weight, moments) in zip(parameters, found, strict=True):
        torch.testing.assert_close(weight, parameter.detach(), rtol=1e-4, atol=1e-6)
        for key, kept in moments.items():
            torch.testing.assert_close(kept, built.state[parameter][key], rtol=1e-4, atol=1e-6)
