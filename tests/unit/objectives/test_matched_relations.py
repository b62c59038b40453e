"""Relations between positions; values and gradients are promises of the contract."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.tapped import Activations, Place
from curricle.objectives.base import Reads, Sample
from curricle.objectives.hidden import LayerPair
from curricle.objectives.matched_relations import BoundRelations, MatchRelations
from tests.parts import drawn

PAIR = LayerPair(student=1, teacher=1)
STUDENT, TEACHER = Place("student"), Place("teacher")
HEADS = 2
LONG = 5
seeds = st.integers(0, 1000)


def batch(examples: int = 3, length: int = LONG, **fields: Any) -> Batch:
    return Batch(inputs={"input_ids": torch.zeros(examples, length, dtype=torch.long)}, **fields)


def bound(
    student: Tensor, teacher: Tensor, data: Batch, *, is_residual: bool = False, **fields: Any
) -> BoundRelations:
    return MatchRelations(pair=PAIR, **{"heads": HEADS} | fields).bind(
        Reads(student=(STUDENT,), teacher=(TEACHER,)),
        Sample(
            batch=data,
            student=Activations({STUDENT: student}, None),
            teacher=Activations({TEACHER: teacher}, None),
            seed=0,
        ),
        is_residual=is_residual,
    )


def total(student: Tensor, teacher: Tensor, data: Batch | None = None, **fields: Any) -> Tensor:
    data = batch(len(student), student.shape[1]) if data is None else data
    term = bound(student, teacher, data, **fields)
    target = term.target(Activations({TEACHER: teacher}, None), data)
    return term.total(Activations({STUDENT: student}, None), target, data)


def states(width: int, seed: int) -> Tensor:
    return drawn(3, LONG, width, seed=seed).double()


def rotated(sequences: Tensor, seed: int) -> Tensor:
    """Return states with each head turned by itself."""
    width = sequences.shape[-1] // HEADS
    turns = [
        torch.linalg.qr(drawn(width, width, seed=seed + head).double()).Q for head in range(HEADS)
    ]
    turned: Tensor = sequences @ torch.block_diag(*turns)
    return turned


@given(seed=seeds)
def test_rotations_within_a_head_do_not_matter(seed: int) -> None:
    student, teacher = states(4, seed), states(6, seed + 1)
    expected = total(student, teacher)
    assert torch.allclose(total(rotated(student, seed + 2), teacher), expected, rtol=1e-9)
    assert torch.allclose(total(student, rotated(teacher, seed + 3)), expected, rtol=1e-9)


@given(seed=seeds)
def test_equal_states_have_equal_relations(seed: int) -> None:
    sequences = states(4, seed)
    assert total(sequences, sequences).item() == pytest.approx(0, abs=1e-12)


def test_the_number_of_heads_matters() -> None:
    student, teacher = states(4, 0), states(8, 1)
    assert len({total(student, teacher, heads=heads).item() for heads in (1, 2, 4)}) == 3


def test_a_relation_by_hand() -> None:
    # Scores of the student are all 0, those of the teacher 0 and log 3: KL((3, 1) / 4 || 1/2) at
    # the first position, 0 at the second, whose state is 0.
    student = torch.zeros(1, 2, 1, dtype=torch.float64)
    teacher = torch.tensor([[[3.0], [0.0]]], dtype=torch.float64).log1p()
    teacher[0, 0, 0] = torch.tensor(3.0).log().sqrt()
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert total(student, teacher, heads=1).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_causal_first_position_is_related_to_itself_alone() -> None:
    # Hence only the second of two positions adds something, and that as without the mask.
    student, teacher = states(4, 0)[:, :2], states(6, 1)[:, :2]
    turned = student.flip(1), teacher.flip(1)
    causal = total(student, teacher, causal=True) + total(*turned, causal=True)
    assert torch.allclose(causal, total(student, teacher))


def test_relations_do_not_leave_their_example() -> None:
    student, teacher = states(4, 0), states(6, 1)
    each = [total(student[[row]], teacher[[row]]) for row in range(3)]
    assert torch.allclose(total(student, teacher), torch.stack(each).sum())


def test_an_example_without_any_position_has_a_finite_gradient() -> None:
    valid = torch.ones(3, LONG, dtype=torch.bool)
    valid[1] = False
    student = states(4, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(total(student, states(6, 1), batch(valid=valid)), student)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def test_residual_streams_are_normalized_unless_told_otherwise() -> None:
    student, teacher = states(4, 0), states(6, 1)
    scaled = total(9.0 * student, teacher, is_residual=True)
    assert torch.allclose(scaled, total(student, teacher, is_residual=True), rtol=1e-3)
    plain = total(student, teacher, is_residual=True, normalize="none")
    assert torch.equal(plain, total(student, teacher))


def test_patches_of_images_have_relations() -> None:
    images = Batch(inputs={"pixel_values": drawn(3, 3, 8, 8)})
    student, teacher = states(4, 0), states(6, 1)
    assert torch.equal(total(student, teacher, images), total(student, teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "heads", "sentence"),
    [
        (
            states(4, 0),
            states(6, 1),
            4,
            r"^'heads' must divide the widths 4 and 6 of taps .*, such as 2; got 4$",
        ),
        (
            drawn(3, 4),
            drawn(3, 6),
            2,
            r"must have 2 or more positions an example to have relations; got 1; MatchCKA and ",
        ),
    ],
    ids=["heads", "positions"],
)
def test_states_without_relations_are_refused(
    student: Tensor, teacher: Tensor, heads: int, sentence: str
) -> None:
    flat = Batch(inputs=drawn(3, 7))
    with pytest.raises(BindError, match=sentence):
        bound(student, teacher, batch() if student.ndim > 2 else flat, heads=heads)


@pytest.mark.parametrize("reading", ["pooled", "channels"])
def test_a_reading_without_positions_has_no_relations(reading: Any) -> None:
    with pytest.raises(SpecError, match=rf"'positions' or 'grid' .*; got '{reading}'"):
        MatchRelations(pair=LayerPair(student=1, teacher=1, reading=reading))


def test_a_plan_names_heads_mask_and_normalization() -> None:
    term = bound(states(4, 0), states(6, 1), batch(), causal=True, is_residual=True, weight=2.0)
    assert term.describe()[1:] == ("2 x relations of 2 heads causal layernorm", "-", "4 <- 6")
