"""Memory that student and teacher share is found, whatever it is called in either."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.aliasing import check_apart


@pytest.fixture(autouse=True)
def drawn_apart() -> Iterator[None]:
    """Let layers draw their weights from a generator that is put back."""
    with seeding.scoped(0, "models"):
        yield


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3))


class Adapted(nn.Module):
    """Low-rank weights around a base that they are made in, as PEFT does."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.low = nn.Linear(4, 3)


def with_view(teacher: nn.Sequential) -> nn.Module:
    student = nn.Linear(4, 2)
    student.weight = nn.Parameter(teacher.get_parameter("0.weight").detach()[1:3])
    return student


def with_buffer(teacher: nn.Sequential) -> nn.Module:
    student = nn.BatchNorm1d(4)
    student.register_buffer("running_mean", teacher.get_buffer("2.running_mean"))
    return student


def check(student: nn.Module, teacher: nn.Module) -> None:
    check_apart(student, teacher, names=("student", "teacher"))


@pytest.mark.parametrize(
    ("build", "theirs", "ours"),
    [
        (
            lambda teacher: nn.Sequential(teacher[0], nn.ReLU(), nn.Linear(4, 3)),
            "0.weight",
            "0.weight",
        ),
        (nn.Sequential, "0.weight", "0.0.weight"),
        (Adapted, "2.running_mean", "base.2.running_mean"),
        (with_view, "0.weight", "weight"),
        (with_buffer, "2.running_mean", "running_mean"),
    ],
    ids=["layer", "wrapper", "adapter", "view", "buffer"],
)
def test_shared_memory_is_refused_with_both_names(
    build: Callable[[nn.Sequential], nn.Module], theirs: str, ours: str
) -> None:
    teacher = network()
    sentence = (
        f"'student' and 'teacher' must not share memory, .*; '{ours}' of the student is "
        f"'{theirs}' of the teacher; build one of them on copy.deepcopy of the other, "
        f"or freeze shared weights in both"
    )
    with pytest.raises(BindError, match=sentence):
        check(build(teacher), teacher)


def test_a_dropout_of_both_is_refused() -> None:
    dropout = nn.Dropout(0.5)
    one, other = nn.Sequential(nn.Linear(2, 2), dropout), nn.Sequential(dropout, nn.Linear(2, 2))
    with pytest.raises(BindError, match="'1' of the student is '0' of the teacher"):
        check(one, other)


def test_an_activation_function_of_both_does_no_harm() -> None:
    relu = nn.ReLU()
    check(nn.Sequential(nn.Linear(2, 2), relu), nn.Sequential(nn.Linear(2, 2), relu))


def test_a_copy_shares_nothing() -> None:
    teacher = network()
    check(copy.deepcopy(teacher), teacher)


def test_tied_weights_inside_of_one_model_are_its_own_business() -> None:
    student = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    student[1].weight = student.get_parameter("0.weight")
    check(student, network())


def test_parts_of_one_storage_that_do_not_overlap_are_apart() -> None:
    storage = torch.zeros(2, 3)

    class Row(nn.Module):
        def __init__(self, row: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(row)

    check(Row(storage[0]), Row(storage[1]))
    with pytest.raises(BindError, match="must not share memory"):
        check(Row(storage[0]), Row(storage.flatten()[2:5]))


def test_weights_without_memory_are_left_out() -> None:
    with torch.device("meta"):
        one, other = network(), network()
    check(one, other)
    check(nn.Embedding(0, 3), nn.Embedding(0, 3))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_weights_of_both_may_be_shared_only_where_they_are_frozen(is_frozen: bool) -> None:
    front = nn.Linear(4, 4).requires_grad_(not is_frozen)
    student, teacher = (nn.Sequential(front, nn.Linear(4, 2)) for _ in range(2))
    if is_frozen:
        check_apart(student, teacher, names=("student", "teacher"))
        return
    with pytest.raises(BindError, match=r"'0.weight' of the student is '0.weight' of the teacher"):
        check_apart(student, teacher, names=("student", "teacher"))


def test_a_buffer_of_both_is_refused_for_either_may_write_it() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count: Tensor
            self.register_buffer("count", torch.zeros(1))

        def forward(self, state: Tensor) -> Tensor:
            self.count += 1
            return state

    shared = Counting()
    with pytest.raises(BindError, match=r"'0.count' of the student is '0.count' of the teacher"):
        check_apart(nn.Sequential(shared), nn.Sequential(shared), names=("student", "teacher"))
