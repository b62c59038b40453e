"""A network of the teacher's size becomes the teacher; a smaller one comes near to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curricle.least_squares.chain_fit import fit_chain, inspect_chain
from tests.unit.least_squares.networks import (
    EDGE,
    calibration,
    convolutional,
    error,
    images,
    open_networks,
    perceptron,
    vectors,
)


def fitted(student: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> tuple[str, ...]:
    return fit_chain(*open_networks(student, teacher), calibration(batches))


def assert_equal(student: nn.Module, teacher: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(student(batch), teacher(batch), rtol=0, atol=1e-4)


# --- equal sizes ----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.lists(st.integers(3, 12), min_size=1, max_size=3), st.integers(0, 99))
def test_a_perceptron_as_large_as_its_teacher_becomes_its_teacher(
    widths: list[int], seed: int
) -> None:
    teacher, student = perceptron(*widths, seed=seed), perceptron(*widths, seed=seed + 1)
    assert fitted(student, teacher, [vectors(seed)]) == ()
    assert_equal(student, teacher, vectors(seed + 1))


@settings(max_examples=8)
@given(st.lists(st.integers(3, 6), min_size=1, max_size=3), st.integers(0, 99))
def test_a_convolutional_network_as_large_as_its_teacher_becomes_its_teacher(
    channels: list[int], seed: int
) -> None:
    teacher, student = convolutional(*channels, seed=seed), convolutional(*channels, seed=seed + 1)
    assert fitted(student, teacher, [images(seed)]) == ()
    assert_equal(student, teacher, images(seed + 1))


@pytest.mark.parametrize(
    "middle",
    [
        (nn.LayerNorm(6), nn.ReLU()),
        (nn.ReLU(), nn.LayerNorm(6)),
        (nn.BatchNorm1d(6, affine=False), nn.Tanh()),
        (nn.ReLU(), nn.BatchNorm1d(6)),
    ],
    ids=lambda modules: "-".join(type(module).__name__ for module in modules),
)
def test_other_places_of_normalizations_are_fitted(middle: tuple[nn.Module, ...]) -> None:
    networks = [nn.Sequential(nn.Linear(8, 6), *middle, nn.Linear(6, 3)) for _ in range(2)]
    student, teacher = (network.eval() for network in networks)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm1d) and isinstance(module.running_mean, Tensor):
            module.running_mean += 0.3
    assert fitted(student, teacher, [vectors(seed) for seed in range(4)]) == ()
    assert_equal(student, teacher, vectors(9))


def test_a_normalization_that_only_the_teacher_has_is_folded_into_the_map() -> None:
    teacher = convolutional(4)
    student = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    assert fitted(student, teacher, [images(seed) for seed in range(8)]) == ()
    # A ridge pulls to zero, since the teacher has no such map.
    assert error(student, teacher, images(9)) < 1e-4


def test_a_normalization_that_only_the_student_has_gives_back_what_it_takes() -> None:
    teacher = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    student = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    assert fitted(student, teacher, [vectors(seed) for seed in range(4)]) == ()
    assert_equal(student, teacher, vectors(9))


# --- smaller students -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "drawn"),
    [
        (convolutional(8, 6), convolutional(4, 3, seed=1), images),
        (convolutional(8, 6, 6), convolutional(4, 3, seed=1), images),
        (convolutional(8, 6), convolutional(6, 4, seed=1, kernel=5), images),
        (perceptron(24, 16), perceptron(12, 8, seed=1), vectors),
        (perceptron(24, 16), perceptron(12, seed=1), vectors),
    ],
    ids=["cnn", "cnn-shallow", "cnn-kernel", "mlp", "mlp-shallow"],
)
def test_a_smaller_student_comes_near_to_its_teacher(
    teacher: nn.Module, student: nn.Module, drawn: object
) -> None:
    assert callable(drawn)
    batch, batches = drawn(99), [drawn(seed, 64) for seed in range(4)]
    before = error(student, teacher, batch)
    assert fitted(student, teacher, batches) == ()
    # The error of the mean of the teacher's logits is 1.
    assert error(student, teacher, batch) < min(0.7, 0.6 * before)


def test_each_map_is_the_least_squares_fit_to_the_chosen_units() -> None:
    teacher, student = perceptron(6), perceptron(4, seed=1)
    batches = [vectors(seed) for seed in range(4)]
    fitted(student, teacher, batches)
    weights, teachers = student[0].weight, teacher[0].weight  # type: ignore[index]
    assert isinstance(weights, Tensor)
    assert isinstance(teachers, Tensor)
    # Both read the inputs: the chosen units are there as they are.
    distances = torch.cdist(weights, teachers)
    assert (distances.min(1).values < 1e-5).all()
    assert len(set(distances.argmin(1).tolist())) == 4
    inputs = torch.cat(batches)
    with torch.no_grad():
        hidden = student[:2](inputs)  # type: ignore[index]
        residual = (student(inputs) - teacher(inputs)).double()
    # What is left of a least-squares fit is orthogonal to what was read, up to the ridge.
    products = hidden.double().mT @ residual / len(inputs)
    assert products.abs().max() < 1e-3 * hidden.square().mean()


def test_statistics_are_those_of_the_calibration() -> None:
    teacher, student = convolutional(6), convolutional(3, seed=1)
    batches = [images(seed) for seed in range(4)]
    fitted(student, teacher, batches)
    with torch.no_grad():
        received = student[0](torch.cat(batches)).movedim(1, -1).flatten(0, -2)  # type: ignore[index]
    torch.testing.assert_close(student[1].running_mean, received.mean(0))  # type: ignore[index]
    variance = received.var(0, correction=0)
    torch.testing.assert_close(student[1].running_var, variance)  # type: ignore[index]


def test_a_linear_map_may_stand_for_a_convolution() -> None:
    teacher = convolutional(6)
    student = nn.Sequential(nn.Flatten(), perceptron(40, num_inputs=2 * EDGE**2)).eval()
    batches = [images(seed, 64) for seed in range(6)]
    before = error(student, teacher, images(99))
    assert fitted(student, teacher, batches) == ()
    assert error(student, teacher, images(99)) < min(0.7, 0.7 * before)


def test_positions_that_do_not_count_change_nothing() -> None:
    teacher = perceptron(6)
    networks = []
    for filling in (0.0, 50.0):
        batch = torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(0))
        counted = torch.ones(8, 5, dtype=torch.bool)
        counted[:, 3:] = False
        batch[:, 3:] = filling
        (entry,) = calibration([batch])
        student = perceptron(3, seed=1)
        masked = type(entry)(student=batch, teacher=batch, counted=counted)
        assert fit_chain(*open_networks(student, teacher), [masked]) == ()
        networks.append(student)
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_modes_are_those_from_before() -> None:
    teacher, student = convolutional(4), convolutional(3, seed=1).train()
    fitted(student, teacher, [images(0)])
    assert student.training
    assert not teacher.training


# --- what is left as drawn ------------------------------------------------------------------------


class Residual(nn.Module):
    """A convolution, a block with a skip connection, and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        )
        self.head = nn.Linear(channels, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.stem(inputs).relu()
        logits: Tensor = self.head((state + self.block(state)).relu().mean((2, 3)))
        return logits


def test_a_block_with_a_skip_connection_is_left_and_named() -> None:
    teacher, student = Residual(6).eval(), Residual(4).eval()
    before = [weight.clone() for weight in student.block.parameters()]
    expected = (
        "'block.0': the output does not depend on it alone, as beside a skip connection",
        "'block.1': it does not follow a map that is fitted",
    )
    batches = [images(seed) for seed in range(12)]
    models = open_networks(student, teacher)
    assert inspect_chain(*models, calibration(batches)[0]).unfitted == expected
    first = error(student, teacher, images(99))
    assert fitted(student, teacher, batches) == expected
    after = student.block.parameters()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert error(student, teacher, images(99)) < 0.5 * first


@pytest.mark.parametrize(
    ("student", "teacher", "reason"),
    [
        (
            perceptron(9),
            perceptron(8),
            "'0': it is wider than the teacher's map, with 9 and 8 outputs",
        ),
        (
            perceptron(4, 4, 4),
            perceptron(8, 8),
            "'4': the teacher has no map for it whose outputs have the same places",
        ),
        (
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 3)),
            perceptron(8),
            "'2': the teacher has no such normalization",
        ),
        (
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)),
            perceptron(8),
            "'2': it has 2 outputs, the teacher's last map 3",
        ),
    ],
    ids=["wider", "deeper", "normalization", "classes"],
)
def test_what_has_no_counterpart_is_left_and_named(
    student: nn.Module, teacher: nn.Module, reason: str
) -> None:
    assert fitted(student.eval(), teacher, [vectors(seed) for seed in range(3)]) == (reason,)


def test_a_convolution_has_no_counterpart_in_a_perceptron() -> None:
    teacher = nn.Sequential(nn.Flatten(), perceptron(20, num_inputs=2 * EDGE**2)).eval()
    models = open_networks(convolutional(4, seed=1), teacher)
    plan = inspect_chain(*models, calibration([images(0)])[0])
    assert plan.numbers == [(2, 2)]
    assert not plan.is_fit
    reason = "the teacher has no map for it whose outputs have the same places"
    assert plan.unfitted == (f"'0': {reason}", f"'1': {reason}")


def test_an_inspection_changes_no_weight() -> None:
    teacher, student = convolutional(6, 5), convolutional(3, 2, seed=1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    plan = inspect_chain(*open_networks(student, teacher), calibration([images(0)])[0])
    assert plan.numbers == [(1, 1), (2, 2), (3, 3)]
    assert plan.widths == [(3, 6), (2, 5), (3, 3)]
    assert plan.is_fit
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
