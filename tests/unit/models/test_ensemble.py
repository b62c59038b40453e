"""Several teachers as one module."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.errors import BindError, DataError


class Constant(nn.Module):
    """Gives the same logits to every example."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits.expand(len(inputs), -1)


# Probabilities 3/4, 1/4 and 1/2, 1/2.
SURE, UNSURE = Constant(math.log(3.0), 0.0), Constant(0.0, 0.0)
INPUTS = torch.zeros(2, 3)


def test_probabilities_are_averaged_by_weight() -> None:
    mixture = curricle.Ensemble([SURE, UNSURE], weights=[1, 3])(INPUTS).exp()
    # (3/4 + 3 * 1/2) / 4 = 9/16.
    torch.testing.assert_close(mixture, torch.tensor([[9 / 16, 7 / 16]] * 2))


def test_outputs_are_averaged_as_they_are() -> None:
    mean = curricle.Ensemble([SURE, UNSURE], mean="outputs")(INPUTS)
    torch.testing.assert_close(mean, torch.tensor([[math.log(3.0) / 2, 0.0]] * 2))


@pytest.mark.parametrize("mean", ["probabilities", "outputs"])
def test_each_example_can_have_a_teacher_of_its_own(mean: str) -> None:
    ensemble = curricle.Ensemble([SURE, UNSURE], mean=mean)  # type: ignore[arg-type]
    rows = ensemble(INPUTS, member_weights=torch.tensor([[1.0, 0.0], [0.0, 1.0]])).softmax(-1)
    torch.testing.assert_close(rows, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


@given(
    logits=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
)
def test_equal_members_give_their_own_probabilities(
    logits: list[float], weights: list[float]
) -> None:
    member = Constant(*logits)
    mixture = curricle.Ensemble([member] * len(weights), weights=weights)(INPUTS)
    torch.testing.assert_close(mixture.exp(), member(INPUTS).softmax(-1))


def test_members_with_positions_take_weights_of_examples() -> None:
    with seeding.scoped(0, "members"):
        ensemble = curricle.Ensemble([nn.Linear(3, 4), nn.Linear(3, 4)], mean="outputs")
        inputs = torch.randn(2, 5, 3)
    rows = ensemble(inputs, member_weights=torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    torch.testing.assert_close(rows[0], ensemble.members[1](inputs)[0])
    torch.testing.assert_close(rows[1], ensemble.members[0](inputs)[1])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(BindError, match="'weights' must be a number from 0 for each of the 2"):
        curricle.Ensemble([SURE, UNSURE], weights=weights)


def test_no_members_and_other_classes_are_refused() -> None:
    with pytest.raises(BindError, match=r"'members' must be torch.nn.Module; got 'str'; a folder"):
        # The shape checks of the tests would refuse it first.
        inspect.unwrap(curricle.Ensemble.__init__)(nn.Module.__new__(curricle.Ensemble), ["bert"])
    with pytest.raises(BindError, match="at least one teacher"):
        curricle.Ensemble([])
    with pytest.raises(BindError, match=r"equal shape; got \[\(2, 2\), \(2, 3\)\]"):
        curricle.Ensemble([SURE, Constant(0.0, 0.0, 0.0)])(INPUTS)


def test_weights_of_other_examples_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(example, member\), \(2, 2\); got \(3, 2\)"):
        curricle.Ensemble([SURE, UNSURE])(INPUTS, member_weights=torch.ones(3, 2))


@pytest.mark.parametrize("rows", [[[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, -1.0]]])
def test_weights_of_examples_that_are_none_are_refused(rows: list[list[float]]) -> None:
    with pytest.raises(DataError, match="numbers from 0 with a positive sum for each example; got"):
        curricle.Ensemble([SURE, UNSURE])(INPUTS, member_weights=torch.tensor(rows))


def network(seed: int) -> nn.Sequential:
    with seeding.scoped(seed, "network"):
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


class Rows:
    """Batches whose examples have one of two teachers."""

    def __getitem__(self, index: int) -> dict[str, object]:
        signs = torch.randn(6, generator=torch.Generator().manual_seed(index))
        weights = torch.nn.functional.one_hot(torch.tensor(index % 2), 2).float()
        return {
            "input": signs,
            "labels": (signs[0] > 0).long(),
            "teacher_inputs": {"input": signs, "member_weights": weights},
        }

    def __len__(self) -> int:
        return 32


@pytest.mark.parametrize(
    "curriculum",
    [
        curricle.one_shot(total="4 steps"),
        curricle.extraction(
            total="4 steps",
            pairs=(curricle.LayerPair(student="1", teacher="members.1.1"),),
        ),
    ],
    ids=["one_shot", "extraction"],
)
def test_a_student_learns_from_an_ensemble(curriculum: curricle.Curriculum) -> None:
    data = curricle.stream(torch.utils.data.DataLoader(Rows(), batch_size=8))  # type: ignore[arg-type]
    teacher = curricle.Ensemble([network(1), network(2)])
    student = network(3)
    before = [weight.clone() for weight in student.parameters()]
    result = curricle.distill(student, teacher, curriculum, data, evaluation=[data.batch(0)])
    assert result.usage.steps == 4
    moved = zip(before, student.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in moved)
