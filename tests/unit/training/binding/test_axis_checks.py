"""Models whose positions lie where their examples should."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import from_labels, one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.axes import observing
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.axis_checks import check_decoder_inputs, check_orientation
from tests.parts import Forward, Listed, bound, drawn, texts


@pytest.fixture(autouse=True)
def drawn_weights() -> Iterator[None]:
    """Draw the weights of modules from a stream of their own."""
    with seeding.scoped(0, "model"):
        yield


SQUARE = Batch(inputs={"input_ids": torch.arange(16).remainder(11).view(4, 4)})


class SequenceFirst(Forward):
    """Gives positions first, as modules of torch do by default."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids.mT)


class Rows(Forward):
    """Gives the rows of all examples one below the other, in one order or the other."""

    def __init__(self, width: int, *, is_first: bool) -> None:
        super().__init__(width)
        self.is_first = is_first

    def forward(self, input_ids: Tensor) -> Tensor:
        ids = input_ids if self.is_first else input_ids.mT
        return super().forward(ids.flatten())


class FixedSize(SequenceFirst):
    """Takes batches of four alone."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids.view(4, 4))


class Channels(nn.Module):
    """A convolution whose images may be as high as a batch is long."""

    def __init__(self, *, is_wrong: bool) -> None:
        super().__init__()
        self.block, self.is_wrong = nn.Linear(3, 5), is_wrong

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.block(inputs.transpose(0, 1) if self.is_wrong else inputs)
        return found


def model(module: nn.Module) -> TappedModel:
    return tapped(module, blocks=["block"])


def check(module: nn.Module, batch: Batch = SQUARE, *, logits: bool = True) -> None:
    read_model = model(module)
    places = () if logits else (read_model.place(1),)
    with observing(read_model), read_model.open_taps(places, logits=logits) as forward:
        shown = forward(batch.inputs, batch.selected)
    check_orientation("student", read_model, shown, batch)


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "tap"])
def test_positions_on_the_first_axis_are_refused(logits: bool) -> None:
    name = "'logits'" if logits else "tap 'block'"
    with pytest.raises(
        BindError, match=rf"^{name} of the student must have .*\(4, 4\) become \(4, 3"
    ):
        check(SequenceFirst(3), logits=logits)
    check(Forward(3), logits=logits)


def test_selected_logits_are_looked_at_before_they_are_selected() -> None:
    batch = Batch(inputs=SQUARE.inputs, selected=torch.tensor([1, 6, 11]))
    with pytest.raises(BindError, match=r"^'logits' of the student must have the examples on the"):
        check(SequenceFirst(3), batch)
    check(Forward(3), batch)


def test_rows_in_the_order_of_positions_are_refused() -> None:
    batch = Batch(inputs={"input_ids": torch.arange(12).remainder(11).view(4, 3)})
    with pytest.raises(BindError, match=r"^'logits' of the student must have the examples on the"):
        check(Rows(3, is_first=False), batch)
    check(Rows(3, is_first=True), batch)


def test_images_as_high_as_a_batch_is_long_are_told_apart() -> None:
    batch = Batch(inputs=drawn(4, 4, 6, 3))
    with pytest.raises(BindError, match=r"become \(4, 3, 6\) with 3 of 4 examples"):
        check(Channels(is_wrong=True), batch)
    check(Channels(is_wrong=False), batch)


def test_nothing_runs_where_shapes_tell() -> None:
    batch = Batch(inputs={"input_ids": torch.zeros(4, 3).long()})
    module = Forward(3)
    check(module, batch)
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    check(module, batch)
    assert len(calls) == 1


def test_a_model_of_one_batch_size_is_left_alone() -> None:
    check(FixedSize(3))


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(
    "objective",
    [MatchLogits(), MatchHidden(pair=LayerPair(student=1, teacher=1))],
    ids=["logits", "hidden"],
)
def test_a_run_looks_at_both_models(who: str, objective: Any) -> None:
    parts: dict[str, Any] = {"stream": Listed(SQUARE)}
    wrong = model(SequenceFirst(6))
    parts[who] = wrong if who == "student" else LiveTeacher(wrong)
    with pytest.raises(BindError, match=f"of the {who} must have the examples on the first axis"):
        texts(one_shot(total="1 steps", objective=objective), **parts)


def encoder_decoder(**inputs: Tensor) -> Batch:
    return Batch(inputs=inputs, labels=torch.zeros(3).long(), selected=torch.arange(3))


def test_a_decoder_must_have_inputs_where_labels_have_positions() -> None:
    module = Forward(3)
    module.config = SimpleNamespace(is_encoder_decoder=True)  # type: ignore[assignment]
    ids = torch.zeros(2, 5).long()
    with pytest.raises(
        BindError, match=r"^'decoder_input_ids' must be in the batches of Forward, an"
    ):
        check_decoder_inputs(module, encoder_decoder(input_ids=ids))
    check_decoder_inputs(module, encoder_decoder(input_ids=ids, decoder_input_ids=ids))
    check_decoder_inputs(module, Batch(inputs={"input_ids": ids}, labels=torch.zeros(2).long()))
    check_decoder_inputs(Forward(3), encoder_decoder(input_ids=ids))


def test_a_run_refuses_a_decoder_without_inputs() -> None:
    student = tapped(Forward(3), blocks=["block"])
    student.module.config = SimpleNamespace(is_encoder_decoder=True)  # type: ignore[assignment]
    stream = Listed(encoder_decoder(input_ids=torch.zeros(2, 5).long()))
    curriculum: Curriculum = from_labels(total="1 steps")
    with pytest.raises(BindError, match="an encoder-decoder whose labels have positions; got"):
        texts(curriculum, student=student, stream=stream)


class Translator(nn.Module):
    """An encoder beside a decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, self.block = nn.Embedding(11, width), nn.Embedding(11, width)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        found: Tensor = self.block(decoder_input_ids) + self.encoder(input_ids).mean(
            1, keepdim=True
        )
        return found


@pytest.mark.parametrize("length", [3, 4], ids=["more than examples", "as many as examples"])
def test_an_encoder_as_long_as_its_decoder_is_told_apart(length: int) -> None:
    ids = torch.zeros(4, length).long()
    batch = Batch(inputs={"input_ids": ids, "decoder_input_ids": ids})
    read_model = model(Translator(2))
    for path in ("encoder", "block"):
        places = [read_model.place(path)]
        with read_model.open_taps(places, logits=False) as forward:
            shown = forward(batch.inputs)
        if path == "block":
            check_orientation("student", read_model, shown, batch)
            continue
        with pytest.raises(
            BindError, match=r"^tap 'encoder' of the student .* of the decoder, sin"
        ):
            check_orientation("student", read_model, shown, batch)


def test_a_student_without_an_axis_of_classes_gets_a_sentence() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(6, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            values: Tensor = self.last(inputs).squeeze(-1)
            return values

    with seeding.scoped(0, "models"), pytest.raises(BindError, match="must have"):
        bound(
            one_shot(total="1 steps"),
            student=tapped(Squeezed()),
            teacher=LiveTeacher(tapped(Squeezed())),
        )


class Layout(Forward):
    """Gives classes on axis 1, as nn.CrossEntropyLoss reads them, or moves them there and back."""

    def __init__(self, width: int, *, is_back: bool) -> None:
        super().__init__(width)
        self.is_back = is_back

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = super().forward(input_ids).mT
        return logits.mT.clone() if self.is_back else logits


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_run_refuses_classes_on_axis_1(who: str) -> None:
    wrong = tapped(Layout(6, is_back=False))
    parts = {who: wrong if who == "student" else LiveTeacher(wrong)}
    with pytest.raises(BindError, match=r"in which axis 1 counts them; .*width_axis=1\) names"):
        texts(one_shot(total="1 steps", objective=MatchLogits()), **parts)


def test_the_pass_that_shows_the_axes_costs_nothing_in_the_plan() -> None:
    curriculum = one_shot(total="1 steps", objective=MatchLogits())
    costs = [
        texts(curriculum, student=tapped(Layout(6, is_back=True), width_axis=axis)).plans[0]
        for axis in (-1, 2)
    ]
    assert costs[0].student_flops == costs[1].student_flops
    assert costs[0].memory_bytes == costs[1].memory_bytes
