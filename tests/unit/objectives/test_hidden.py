"""Matching of hidden states: declaration, binding, calibration and error messages."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP
from curricle.models.tapped import Activations, Place
from curricle.objectives.adapters import LinearMap, adapter_of
from curricle.objectives.base import BoundObjective, Reads, Sample, pending_calibration
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.projections import Gaussian, Identity, Learned, Orthogonal
from tests.parts import drawn

STUDENT, TEACHER = Place("s", tap="1"), Place("t", tap="3")
READS = Reads(student=(STUDENT,), teacher=(TEACHER,))


def objective(**fields: Any) -> MatchHidden:
    return MatchHidden(pair=LayerPair(student=1, teacher=3), **fields)


def bind(
    declared: MatchHidden,
    student: Tensor,
    teacher: Tensor,
    *,
    seed: int = 0,
    is_residual: bool = False,
    reads: Reads = READS,
    batch: Batch | None = None,
) -> BoundObjective:
    sample = Sample(
        batch=batch or Batch(inputs=torch.zeros(*student.shape[:-1], 2)),
        student=Activations({reads.student[0]: student}),
        teacher=Activations({reads.teacher[0]: teacher}),
        seed=seed,
    )
    return declared.bind(reads, sample, is_residual=is_residual)


def mean(term: BoundObjective, student: Tensor, teacher: Tensor, batch: Batch) -> float:
    target = term.target(Activations({TEACHER: teacher}), batch)
    return term.total(Activations({STUDENT: student}), target, batch).item() / term.count(batch)


def features(num_examples: int = 5) -> Batch:
    return Batch(inputs=torch.zeros(num_examples, 2))


def test_the_defaults_are_a_plain_gaussian_projection_of_all_positions() -> None:
    declared = objective()
    assert declared.projection == Gaussian()
    assert (declared.normalize, declared.positions, declared.weight) == ("auto", "all", 1.0)
    assert (declared.center, declared.shared_projection) == (False, False)
    assert declared.needs_teacher


def test_it_reads_the_two_taps() -> None:
    with seeding.scoped(0, "test model"):
        student, teacher = MLP(2, (3, 3), 2).tapped(), MLP(2, (4, 4, 4, 4), 2).tapped()
    declared = MatchHidden(pair=LayerPair(student=1, teacher=0.75))
    assert declared.reads(student, teacher) == Reads(
        student=(Place("blocks.0"),), teacher=(Place("blocks.2"),)
    )


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_tap_that_is_not_there_is_told_with_its_owner(role: str) -> None:
    pair = LayerPair(student=1, teacher=9) if role == "teacher" else LayerPair(student=9, teacher=1)
    with seeding.scoped(0, "test model"):
        model = MLP(2, (3, 3), 2).tapped()
    with pytest.raises(BindError, match=rf"^{role}'s tap 9 must lie between 0 and the model's"):
        MatchHidden(pair=pair).reads(model, model)


def test_a_module_without_numbers_is_told_how_to_get_them() -> None:
    declared = MatchHidden(pair=LayerPair(student=1, teacher=1))
    module = nn.Sequential(nn.Identity())
    plain, numbered = curricle.tapped(module), curricle.tapped(module, blocks=["0"])
    remedy = r"; curricle\.tapped\(model, blocks=\[\.\.\.\]\) numbers its blocks$"
    with pytest.raises(BindError, match=rf"^student's tap 1 needs a model with .*{remedy}"):
        declared.reads(plain, numbered)
    assert declared.reads(numbered, numbered).student == (Place("0"),)


def test_it_needs_a_teacher() -> None:
    student = HookedModel(nn.Sequential(nn.Identity()), blocks=["0"])
    with pytest.raises(BindError, match=r"^'teacher' must be given, since an objective reads it"):
        objective().reads(student, None)


def test_it_needs_the_state_of_a_teacher_to_be_bound() -> None:
    activations = Activations({STUDENT: drawn(2, 3)})
    sample = Sample(batch=features(2), student=activations, teacher=None, seed=0)
    with pytest.raises(BindError, match=r"^'teacher' must be given, since an objective reads it"):
        objective().bind(READS, sample, is_residual=False)


@pytest.mark.parametrize(
    ("is_residual", "normalize", "expected"),
    [
        (False, "auto", "1 x MSE"),
        (True, "auto", "1 x MSE layernorm"),
        (True, "none", "1 x MSE"),
        (False, "rms", "1 x MSE rms"),
    ],
)
def test_residual_streams_are_normalized_unless_it_is_said_otherwise(
    is_residual: bool, normalize: str, expected: str
) -> None:
    term = bind(objective(normalize=normalize), drawn(5, 3), drawn(5, 4), is_residual=is_residual)
    assert term.describe()[1] == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ("1 <- 3", "1 x MSE", "gaussian 3x4", "3 <- 4")),
        (
            {"weight": 0.5, "center": True, "positions": "selected", "normalize": "rms"},
            ("1 <- 3", "0.5 x MSE rms centered selected", "gaussian 3x4", "3 <- 4"),
        ),
        (
            {"projection": Orthogonal(), "shared_projection": True},
            ("1 <- 3", "1 x MSE", "orthogonal shared 3x4", "3 <- 4"),
        ),
    ],
)
def test_it_says_in_words_what_it_does(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    assert bind(objective(**fields), drawn(5, 3), drawn(5, 4)).describe() == words


def test_the_loss_of_layer_normalized_states_lies_between_equal_and_opposite() -> None:
    states = drawn(5, 64)
    term = bind(objective(normalize="layernorm", projection=Identity()), states, states)
    assert mean(term, states, states, features()) == pytest.approx(0, abs=1e-6)
    assert mean(term, -states, states, features()) == pytest.approx(4, rel=1e-3)


def test_the_loss_of_unrelated_layer_normalized_states_is_two() -> None:
    student, teacher = drawn(2_000, 32, seed=1), drawn(2_000, 48, seed=2)
    term = bind(objective(normalize="layernorm"), student, teacher)
    assert mean(term, student, teacher, features(2_000)) == pytest.approx(2, rel=0.02)


def test_the_projection_follows_the_seed_and_the_pair() -> None:
    def target(seed: int = 0, teacher: Place = TEACHER, **fields: Any) -> Tensor:
        reads = Reads(student=(STUDENT,), teacher=(teacher,))
        term = bind(objective(**fields), drawn(5, 3), drawn(5, 4), seed=seed, reads=reads)
        actual: Tensor = term.target(Activations({teacher: drawn(5, 4)}), features())
        return actual

    assert torch.equal(target(), target())
    assert not torch.equal(target(), target(seed=1))
    assert not torch.equal(target(), target(teacher=Place("u")))
    shared = target(shared_projection=True)
    assert torch.equal(shared, target(teacher=Place("u"), shared_projection=True))


def test_the_projection_does_not_depend_on_how_a_tap_is_named() -> None:
    named = Reads(student=(Place("s"),), teacher=(Place("t"),))
    one = bind(objective(), drawn(5, 3), drawn(5, 4))
    other = bind(objective(), drawn(5, 3), drawn(5, 4), reads=named)
    activations = Activations({TEACHER: drawn(5, 4)})
    assert torch.equal(one.target(activations, features()), other.target(activations, features()))


def test_the_target_is_float32_whatever_the_teacher_is() -> None:
    term = bind(objective(), drawn(5, 3), drawn(5, 4).to(torch.bfloat16))
    activations = Activations({TEACHER: drawn(5, 4).to(torch.bfloat16)})
    assert term.target(activations, features()).dtype == torch.float32


def calibrated(
    term: BoundObjective, activations: list[tuple[Activations, Batch]]
) -> BoundObjective:
    calibrates = pending_calibration(term)
    assert calibrates is not None
    return calibrates(activations)


def test_centering_subtracts_the_mean_over_all_batches_given() -> None:
    declared = objective(center=True, projection=Identity())
    term = bind(declared, drawn(5, 3), drawn(5, 3))
    small, large = torch.full((1, 3), 1.0), torch.full((3, 3), 5.0)
    activations = [
        (Activations({TEACHER: small}), features(1)),
        (Activations({TEACHER: large}), features(3)),
    ]
    actual = calibrated(term, activations).target(Activations({TEACHER: small}), features(1))
    assert actual.tolist() == [[-3.0, -3.0, -3.0]]


def test_calibration_leaves_the_first_term_as_it_is() -> None:
    term = bind(objective(center=True, projection=Identity()), drawn(5, 3), drawn(5, 3))
    activations = Activations({TEACHER: drawn(5, 3)})
    before = term.target(activations, features())
    calibrated(term, [(activations, features())])
    assert torch.equal(term.target(activations, features()), before)


def test_calibration_without_any_position_changes_nothing() -> None:
    term = bind(objective(center=True, projection=Identity()), drawn(5, 3), drawn(5, 3))
    nothing = (Activations({TEACHER: drawn(0, 3)}), features(0))
    actual = calibrated(term, [nothing]).target(Activations({TEACHER: drawn(5, 3)}), features())
    assert torch.equal(actual, drawn(5, 3))


def test_nothing_is_calibrated_unless_it_is_asked_for() -> None:
    assert pending_calibration(bind(objective(), drawn(5, 3), drawn(5, 4))) is None


def test_the_mean_is_over_the_positions_of_an_image_as_the_layer_has_them() -> None:
    # 2 images of 3 channels and 8 x 8 pixels, with 5 x 7 positions in the layer.
    student, teacher = torch.zeros(2, 5, 7, 4), torch.full((2, 5, 7, 4), 3.0)
    batch = Batch(inputs=torch.zeros(2, 3, 8, 8))
    term = bind(objective(projection=Identity()), student, teacher, batch=batch)
    assert term.count(batch) == 70
    assert mean(term, student, teacher, batch) == pytest.approx(9)


def test_all_positions_with_data_count_where_the_data_select_none() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    student, teacher = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 3.0)
    declared = objective(projection=Identity(), positions="selected")
    batch = Batch(inputs=tokens, valid=valid)
    term = bind(declared, student, teacher, batch=batch)
    assert term.count(batch) == 5
    assert mean(term, student, teacher, batch) == pytest.approx(9)


@pytest.mark.parametrize("valid", [None, torch.ones(8, 10, dtype=torch.bool)], ids=["", "padded"])
def test_the_mean_is_over_examples_after_pooling(valid: Tensor | None) -> None:
    student, teacher = torch.zeros(8, 4), torch.full((8, 4), 3.0)
    batch = Batch(inputs=torch.zeros(8, 10, dtype=torch.int64), valid=valid)
    term = bind(objective(projection=Identity()), student, teacher, batch=batch)
    assert term.count(batch) == 8
    assert mean(term, student, teacher, batch) == pytest.approx(9)


def test_states_must_have_the_positions_that_are_selected() -> None:
    tokens, selected = torch.zeros(8, 10, dtype=torch.int64), torch.tensor([1, 7])
    batch = Batch(inputs=tokens, selected=selected)
    bind(objective(), drawn(8, 3), drawn(8, 4), batch=batch)
    with pytest.raises(
        BindError,
        match=r"^taps 's <- t' must have the positions \(8, 10\) of the data, because the "
        r"data select some of them; got \(8,\)$",
    ):
        bind(objective(positions="selected"), drawn(8, 3), drawn(8, 4), batch=batch)


ENCODED = Reads(
    student=(Place("s", tap="encoder:1", stack="encoder"),),
    teacher=(Place("t", tap="encoder:3", stack="encoder"),),
)


def translation(**fields: Any) -> Batch:
    inputs = {
        "input_ids": torch.zeros(2, 4).long(),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "decoder_input_ids": torch.zeros(2, 3).long(),
    }
    return Batch(inputs=inputs, **fields)


def test_states_of_an_encoder_are_counted_by_its_own_mask() -> None:
    batch = translation(selected=torch.tensor([1, 4]))
    student, teacher = torch.zeros(2, 4, 4), torch.full((2, 4, 4), 3.0)
    teacher[1, 2:] = 100.0
    term = bind(objective(projection=Identity()), student, teacher, reads=ENCODED, batch=batch)
    assert term.count(batch) == 6
    target = term.target(Activations({ENCODED.teacher[0]: teacher}), batch)
    loss = term.total(Activations({ENCODED.student[0]: student}), target, batch)
    assert loss.item() / 6 == pytest.approx(9)


@pytest.mark.parametrize(
    ("reads", "fields", "problem"),
    [
        (Reads(student=ENCODED.student, teacher=(TEACHER,)), {}, "one of a decoder"),
        (ENCODED, {"alignment": torch.zeros(2, 3).long()}, "'alignment'"),
        (ENCODED, {"selected": torch.tensor([1])}, "selected positions"),
    ],
)
def test_states_of_an_encoder_are_compared_at_all_of_its_positions(
    reads: Reads, fields: dict[str, Any], problem: str
) -> None:
    states, batch = drawn(2, 4, 4), translation(**fields)
    with pytest.raises(
        BindError, match=rf"^taps 's <- t' must both be of an encoder, .*; got {problem}$"
    ):
        bind(objective(positions="selected"), states, states, reads=reads, batch=batch)


def test_states_without_examples_are_refused() -> None:
    batch = Batch(inputs=torch.zeros(8, 10, dtype=torch.int64))
    with pytest.raises(BindError, match=r"^taps 's <- t' must have the 8 examples on its first"):
        bind(objective(), drawn(10, 8, 3), drawn(10, 8, 4), batch=batch)


def test_states_of_different_shape_are_refused() -> None:
    with pytest.raises(
        BindError,
        match=r"^taps 's <- t' must have the same examples and positions; got \(2, 5\) and "
        r"\(2, 6\); LayerPair\(reading='pooled'\) compares the means over positions, ",
    ):
        bind(objective(), drawn(2, 5, 3), drawn(2, 6, 3))


def test_the_identity_refuses_unequal_widths() -> None:
    with pytest.raises(
        BindError, match=r"^'s <- t' with projection 'identity' must pair equal widths; got student"
    ):
        bind(objective(projection=Identity()), drawn(5, 3), drawn(5, 4))


# --- learned projections --------------------------------------------------------------------------


def learned(**fields: Any) -> BoundObjective:
    declared = objective(projection=Learned(), **fields)
    return bind(declared, drawn(5, 3), drawn(5, 4, seed=1), seed=6)


def own_map(term: BoundObjective) -> LinearMap:
    actual = adapter_of(term)
    assert isinstance(actual, LinearMap)
    return actual


def test_a_learned_projection_starts_from_the_draw_of_its_pair() -> None:
    first = Learned().adapter(seed=6, name="s <- t", student_width=3, teacher_width=4)
    assert torch.equal(own_map(learned()).weight, first.weight)


def test_a_fixed_projection_trains_nothing() -> None:
    assert adapter_of(bind(objective(), drawn(5, 3), drawn(5, 4))) is None


@pytest.mark.parametrize("normalize", ["none", "layernorm", "rms"])
def test_the_gradient_to_a_learned_projection_is_that_of_differences(normalize: str) -> None:
    term, student, teacher = learned(normalize=normalize), drawn(5, 3), drawn(5, 4, seed=1)
    weight = own_map(term).double().weight
    target = term.target(Activations({TEACHER: teacher.double()}), features())

    def total() -> Tensor:
        return term.total(Activations({STUDENT: student.double()}), target, features())

    (actual,) = torch.autograd.grad(total(), weight)
    expected = torch.zeros_like(weight)
    with torch.no_grad():
        for entry in range(weight.numel()):
            weight.view(-1)[entry] += 1e-6
            above = total()
            weight.view(-1)[entry] -= 2e-6
            expected.view(-1)[entry] = (above - total()) / 2e-6
            weight.view(-1)[entry] += 1e-6
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_a_learned_projection_is_said_with_its_shape() -> None:
    assert learned().describe() == ("1 <- 3", "1 x MSE", "learned 4x3", "3 <- 4")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"weight": 0.0}, r"^'MatchHidden.weight' must be greater than 0; got 0.0$"),
        ({"normalize": "batch"}, r"^'MatchHidden.normalize' must be 'auto', 'none', "),
        ({"positions": "some"}, r"^'MatchHidden.positions' must be 'all' or 'selected'"),
        ({"projection": {"kind": "drawn"}}, r"^'MatchHidden.projection': 'drawn' is not a kind; "),
        (
            {"shared_projection": True, "projection": Learned()},
            r"^'MatchHidden': 'shared_projection' has no effect with projection .*True\)$",
        ),
        ({"centered": True}, r"'centered' is not a field; did you mean 'center'\?"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_wrong_fields_are_told(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        objective(**fields)
