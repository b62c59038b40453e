"""Matching of logits and fitting of labels: declaration, binding and error messages."""

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.data.batch import Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.heads import LinearHead
from curricle.models.hooked import HookedModel
from curricle.models.tapped import Activations
from curricle.objectives.base import BoundObjective, Reads, Sample, pending_calibration
from curricle.objectives.divergences import JSD, ForwardKL, ReverseKL, SquaredError, TotalVariation
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits, temperature_notes


def bind(
    declared: MatchLogits | LabelLoss,
    student: Tensor,
    teacher: Tensor,
    batch: Batch | None = None,
) -> BoundObjective:
    sample = Sample(
        batch=batch or Batch(inputs=torch.zeros(*student.shape[:-1], 2)),
        student=Activations({}, student),
        teacher=Activations({}, teacher),
        seed=0,
    )
    return declared.bind(Reads(), sample, is_residual=False)


def total(declared: MatchLogits, student: Tensor, teacher: Tensor, batch: Batch) -> float:
    term = bind(declared, student, teacher, batch)
    target = term.target(Activations({}, teacher), batch)
    return term.total(Activations({}, student), target, batch).item()


def model() -> HookedModel:
    return HookedModel(nn.Sequential(nn.Identity()))


ONE = Batch(inputs=torch.zeros(1, 2))


def test_the_defaults_are_plain_forward_kl() -> None:
    declared = MatchLogits()
    assert declared.divergence == ForwardKL()
    assert (declared.teacher_temperature, declared.student_temperature) == (1.0, 1.0)
    assert (declared.scale, declared.weight, declared.needs_teacher) == ("none", 1.0, True)


def test_both_logits_are_read_to_match_them() -> None:
    expected = Reads(student_logits=True, teacher_logits=True)
    assert MatchLogits().reads(model(), model()) == expected


def test_in_chunks_what_the_logits_come_from_is_read() -> None:
    expected = Reads(student_head=True, teacher_head=True)
    assert MatchLogits(chunk="auto").reads(model(), model()) == expected
    assert LabelLoss(chunk=3).reads(model(), None) == Reads(student_head=True)


def test_in_chunks_the_head_must_be_shown() -> None:
    with pytest.raises(BindError, match=r"^'head' must be given, since an objective reads it"):
        bind(MatchLogits(chunk=1), torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("chunk", [0, -1, "all"])
def test_a_chunk_is_a_positive_number_or_automatic(chunk: Any) -> None:
    with pytest.raises(SpecError, match=r"chunk"):
        MatchLogits(chunk=chunk)


def test_padded_vocabularies_match_where_it_is_said_how_many_classes_count() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[0.0, 2.0, 5.0, 7.0]])
    actual = total(MatchLogits(num_classes=2), student, teacher, ONE)
    assert actual == total(MatchLogits(), student[:, :2], teacher[:, :2], ONE)


def test_no_more_classes_count_than_there_are() -> None:
    with pytest.raises(
        BindError,
        match=r"^'num_classes' must be at most the 4 and 5 classes of student and teacher; got 5$",
    ):
        bind(MatchLogits(num_classes=5), torch.zeros(2, 4), torch.zeros(2, 5))


@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 1), (2,)], ids=str)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_one_value_is_no_distribution(shape: tuple[int, ...], role: str) -> None:
    tensors = {"student": torch.zeros(2, 4), "teacher": torch.zeros(2, 4)} | {
        role: torch.zeros(shape)
    }
    with pytest.raises(
        BindError,
        match=rf"^'logits' of the {role} must have two classes or more to define probabilities; "
        rf"got shape {re.escape(str(shape))}, a single value each; for regression set 'objective' "
        r"of one_shot, .* to MatchLogits\(divergence={'kind': 'squared_error'}\), .*; for a binary "
        r"logit z return torch.cat",
    ):
        bind(MatchLogits(), tensors["student"], tensors["teacher"], Batch(inputs=torch.zeros(2, 2)))


@pytest.mark.parametrize("chunk", [None, 1])
def test_values_of_a_regression_are_matched_by_their_squared_error(chunk: int | None) -> None:
    declared = MatchLogits(divergence=SquaredError(), chunk=chunk)
    outputs = [torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [5.0]])]
    student, teacher = (
        Activations({}, values, LinearHead(states=values, weight=torch.ones(1, 1)))
        for values in outputs
    )
    batch = Batch(inputs=torch.zeros(2, 2))
    sample = Sample(batch=batch, student=student, teacher=teacher, seed=0)
    term = declared.bind(Reads(), sample, is_residual=False)
    # (3 - 1)^2 + (5 - 4)^2, summed over two examples of a single value.
    assert term.total(student, term.target(teacher, batch), batch).item() == 5.0


def test_values_need_an_axis_of_their_own() -> None:
    with pytest.raises(
        BindError, match=r"^outputs of the student must have their values on the last axis; got "
    ):
        bind(MatchLogits(divergence=SquaredError()), torch.zeros(3), torch.zeros(3, 1))


@pytest.mark.parametrize("declared", [LabelLoss(), MatchLogits(), MatchLogits(chunk="auto")])
def test_one_value_has_no_labels_and_no_divergence(declared: MatchLogits | LabelLoss) -> None:
    head = LinearHead(states=torch.zeros(2, 3), weight=torch.zeros(1, 3))
    activations = Activations({}, torch.zeros(2, 1), head)
    sample = Sample(
        batch=Batch(inputs=torch.zeros(2, 2)), student=activations, teacher=activations, seed=0
    )
    with pytest.raises(BindError, match=r"^'logits' of the student must have two classes or more"):
        declared.bind(Reads(), sample, is_residual=False)


@pytest.mark.parametrize("declared", [LabelLoss(), MatchLogits()])
def test_an_output_without_logits_is_said_where_they_are_read(
    declared: MatchLogits | LabelLoss,
) -> None:
    activations = Activations({}, obscurity="'logits' must be named")
    sample = Sample(batch=ONE, student=activations, teacher=activations, seed=0)
    with pytest.raises(BindError, match=r"^'logits' must be named$"):
        declared.bind(Reads(), sample, is_residual=False)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_heads_of_independent_labels_are_refused(role: str) -> None:
    module = nn.Sequential(nn.Identity())
    vars(module)["config"] = SimpleNamespace(problem_type="multi_label_classification")
    models = {"student": model(), "teacher": model()} | {role: HookedModel(module)}
    with pytest.raises(BindError, match=rf"^'problem_type' of the {role} must be 'single_label_"):
        MatchLogits().reads(models["student"], models["teacher"])


def test_labels_of_a_regression_are_refused() -> None:
    module = nn.Sequential(nn.Identity())
    vars(module)["config"] = SimpleNamespace(problem_type="regression")
    with pytest.raises(BindError, match=r"^'problem_type' of the student .*; got 'regression'"):
        LabelLoss().reads(HookedModel(module), None)


def test_matching_logits_needs_a_teacher() -> None:
    with pytest.raises(BindError, match=r"^'teacher' must be given, since an objective reads it"):
        MatchLogits().reads(model(), None)


def test_labels_need_no_teacher() -> None:
    assert not LabelLoss().needs_teacher
    assert LabelLoss().reads(model(), None) == Reads(student_logits=True)


def test_forward_kl_of_a_coin_is_that_of_the_closed_form() -> None:
    # KL((3/4, 1/4) || (1/2, 1/2)) = log 2 - H(1/4).
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert total(MatchLogits(), student, teacher, ONE) == pytest.approx(expected, rel=1e-6)


def test_a_hard_teacher_asks_for_its_most_likely_class() -> None:
    teacher, student = torch.tensor([[0.1, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    actual = total(MatchLogits(teacher_temperature=0), student, teacher, ONE)
    assert actual == pytest.approx(math.log(4), rel=1e-6)


def test_the_scale_is_the_square_of_the_temperature_of_the_student() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    fields: dict[str, Any] = {"student_temperature": 3.0, "teacher_temperature": 2.0}
    plain = total(MatchLogits(**fields), student, teacher, ONE)
    scaled = total(MatchLogits(**fields, scale="temperature_squared"), student, teacher, ONE)
    assert scaled == pytest.approx(9 * plain, rel=1e-6)


def test_the_weight_is_left_to_the_stage() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert total(MatchLogits(weight=5), student, teacher, ONE) == total(
        MatchLogits(), student, teacher, ONE
    )


def test_padded_classes_of_both_sides_add_nothing() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    absent = torch.full((1, 3), -torch.inf)
    actual = total(
        MatchLogits(), torch.cat([student, absent], 1), torch.cat([teacher, absent], 1), ONE
    )
    assert actual == pytest.approx(total(MatchLogits(), student, teacher, ONE), rel=1e-6)


def test_logits_everywhere_are_counted_where_there_are_data() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    student, teacher = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    teacher[..., 0] = math.log(3)
    teacher[~valid] = 1e4
    batch = Batch(inputs=tokens, valid=valid)
    each = total(MatchLogits(), student[:1, 0], teacher[:1, 0], ONE)
    assert bind(MatchLogits(), student, teacher, batch).count(batch) == 3
    assert total(MatchLogits(), student, teacher, batch) == pytest.approx(3 * each, rel=1e-6)


def test_logits_of_examples_are_counted_by_example() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(inputs=tokens, valid=torch.ones(2, 3, dtype=torch.bool))
    student, teacher = torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0]] * 2)
    each = total(MatchLogits(), student[:1], teacher[:1], ONE)
    assert bind(MatchLogits(), student, teacher, batch).count(batch) == 2
    assert total(MatchLogits(), student, teacher, batch) == pytest.approx(2 * each, rel=1e-6)


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(
        BindError,
        match=r"^'logits' of student and teacher must have the same classes, or values, to be "
        r"matched; got 4 and 5; if the larger vocabulary is padded at its end, 'num_classes' of "
        r"MatchLogits is the number of real classes, which curricle.common_vocabulary returns for "
        r"two tokenizers$",
    ):
        bind(MatchLogits(), torch.zeros(2, 4), torch.zeros(2, 5))


@pytest.mark.parametrize("missing", ["student", "teacher"])
def test_logits_must_be_shown(missing: str) -> None:
    activations = Activations({}, torch.zeros(2, 4))
    parts = {"student": activations, "teacher": activations} | {missing: Activations({})}
    with pytest.raises(BindError, match=r"^'logits' must be given, since an objective reads it"):
        MatchLogits().bind(
            Reads(), Sample(batch=ONE, **parts, seed=0, num_steps=1), is_residual=False
        )


def test_the_state_of_a_teacher_is_needed_to_match_logits() -> None:
    activations = Activations({}, torch.zeros(1, 4))
    sample = Sample(batch=ONE, student=activations, teacher=None, seed=0)
    with pytest.raises(BindError, match=r"^'teacher' must be given, since an objective reads it"):
        MatchLogits().bind(Reads(), sample, is_residual=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"weight": -1.0}, r"^'MatchLogits.weight' must be greater than 0; got -1.0$"),
        ({"student_temperature": 0.0}, r"^'MatchLogits.student_temperature' must be gr"),
        ({"teacher_temperature": -1.0}, r"^'MatchLogits.teacher_temperature' must be gr"),
        (
            {"divergence": ReverseKL(), "teacher_temperature": 0.0},
            r"'teacher_temperature' must be positive for 'reverse_kl', which is infinite for ",
        ),
        ({"student_temperature": 1e-40}, r"'student_temperature' must be finite and at least "),
        ({"scale": "squared"}, r"^'MatchLogits.scale' must be 'none' or 'temperature_sq"),
        ({"divergence": {"kind": "hinge"}}, r"^'MatchLogits.divergence': 'hinge' is not a kind; "),
    ],
    ids=["weight", "cold student", "cold teacher", "infinite", "tiny", "scale", "divergence"],
)
def test_wrong_fields_are_told(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        MatchLogits(**fields)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (MatchLogits(), "1 x forward_kl T=1"),
        (MatchLogits(teacher_temperature=4, student_temperature=4), "1 x forward_kl T=4"),
        (MatchLogits(teacher_temperature=4), "1 x forward_kl T=4/1"),
        (MatchLogits(divergence=JSD(), teacher_temperature=0, weight=0.25), "0.25 x jsd T=0/1"),
        (MatchLogits(divergence=TotalVariation(), teacher_temperature=2.5), "1 x total_variation "),
    ],
    ids=["forward_kl", "equal", "different", "jsd", "total_variation"],
)
def test_matching_logits_says_in_words_what_it_does(declared: MatchLogits, words: str) -> None:
    taps, actual, *rest = bind(declared, torch.zeros(2, 4), torch.zeros(2, 4)).describe()
    assert (taps, rest) == ("logits", ["-", "-"])
    assert actual.startswith(words)


def fit(weight: float = 1.0) -> BoundObjective:
    return bind(LabelLoss(weight=weight), torch.zeros(2, 4), torch.zeros(2, 4))


def test_a_note_says_that_temperatures_differ() -> None:
    hard = MatchLogits(teacher_temperature=0)
    both = MatchLogits(teacher_temperature=4, student_temperature=4)
    assert temperature_notes([MatchLogits(), hard, both, LabelLoss()]) == ()
    softer = MatchLogits(teacher_temperature=4)
    (note,) = temperature_notes([softer, both, softer])
    assert note == (
        "temperatures of MatchLogits differ, 4 of the teacher and 1 of the student, so that equal "
        "logits are no optimum; the loss of Hinton et al. (2015) has both alike, with "
        "scale='temperature_squared'"
    )


def test_cross_entropy_of_equal_chances_is_the_logarithm_of_the_classes() -> None:
    batch = Batch(inputs=torch.zeros(3, 2), labels=torch.tensor([0, 3, 1]))
    actual = fit().total(Activations({}, torch.zeros(3, 4)), None, batch)
    assert actual.item() == pytest.approx(3 * math.log(4))
    assert fit().count(batch) == 3


def test_labels_are_counted_where_they_are_selected() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    batch = Batch(inputs=tokens, labels=torch.tensor([1, 2]), selected=torch.tensor([0, 7]))
    assert fit().count(batch) == 2


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(
        BindError,
        match=r"^'labels' must be in the data for LabelLoss, under that name; got batches without "
        r"labels$",
    ):
        fit().count(Batch(inputs=torch.zeros(3, 2)))


def test_labels_are_their_own_target() -> None:
    batch = Batch(inputs=torch.zeros(1, 2), labels=torch.tensor([3]))
    assert fit().target(Activations({}), batch).tolist() == [3]


def test_fitting_labels_says_in_words_what_it_does() -> None:
    assert fit(weight=0.5).describe() == ("labels", "0.5 x cross-entropy", "-", "-")


def test_nothing_is_calibrated() -> None:
    match = bind(MatchLogits(), torch.zeros(2, 4), torch.zeros(2, 4))
    assert pending_calibration(match) is pending_calibration(fit()) is None


# --- positions of logits --------------------------------------------------------------------------

TOKENS = torch.arange(12).view(3, 4)
SCORED = Batch(inputs=TOKENS, selected=torch.tensor([1, 6]), labels=torch.tensor([0, 3]))


def selected_logits(positions: tuple[int, ...]) -> Activations:
    return Activations({}, torch.zeros(2, 4), positions=positions)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("positions", [(3, 7), (3,), (4, 3)], ids=str)
def test_logits_with_other_positions_than_the_data_are_refused(
    role: str, positions: tuple[int, ...]
) -> None:
    right, wrong = selected_logits((3, 4)), selected_logits(positions)
    is_student = role == "student"
    sample = Sample(
        batch=SCORED,
        student=wrong if is_student else right,
        teacher=right if is_student else wrong,
        seed=0,
    )
    sentence = rf"^'logits' of the {role} must have the positions \(3, 4\) of the data; got"
    with pytest.raises(BindError, match=sentence):
        MatchLogits().bind(Reads(), sample, is_residual=False)
    if role == "student":
        with pytest.raises(BindError, match=sentence):
            LabelLoss().bind(Reads(), sample, is_residual=False)


@pytest.mark.parametrize("declared", [MatchLogits(), LabelLoss()], ids=["match", "fit"])
def test_positions_are_compared_in_each_pass(declared: MatchLogits | LabelLoss) -> None:
    right, wrong = selected_logits((3, 4)), selected_logits((3, 7))
    sample = Sample(batch=SCORED, student=right, teacher=right, seed=0)
    term = declared.bind(Reads(), sample, is_residual=False)
    assert term.total(right, torch.zeros(2, 4), SCORED).isfinite()
    with pytest.raises(
        DataError, match=r"^'logits' must have the positions \(3, 4\) of the data; "
    ):
        term.total(wrong, torch.zeros(2, 4), SCORED)
    if isinstance(declared, MatchLogits):
        with pytest.raises(
            DataError, match=r"^'logits' must have the positions \(3, 4\) of the da"
        ):
            term.target(wrong, SCORED)


def test_logits_of_both_models_must_have_the_same_positions() -> None:
    with pytest.raises(BindError, match=r"the same positions; got \(3, 5\) and \(3, 4\)$"):
        bind(MatchLogits(), torch.zeros(3, 5, 2), torch.zeros(3, 4, 2), Batch(inputs=TOKENS))


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 2)], ids=["a position", "too few"])
def test_labels_without_logits_are_refused(shape: tuple[int, ...]) -> None:
    batch = Batch(inputs=torch.zeros(3, 5), labels=torch.tensor([0, 1, 0]))
    with pytest.raises(
        BindError, match=r"^'logits' must have one row for each label, for 3 examples; g"
    ):
        bind(LabelLoss(), torch.zeros(shape), torch.zeros(shape), batch)


def test_a_first_label_that_is_no_class_is_refused() -> None:
    batch = Batch(inputs=torch.zeros(3, 5), labels=torch.tensor([0, 2, 0]))
    with pytest.raises(
        DataError, match=r"^'labels' must lie between 0 and 1, .*; got 2 in the first"
    ):
        bind(LabelLoss(), torch.zeros(3, 2), torch.zeros(3, 2), batch)
