"""Taps of a student that layer dropout may skip."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from curricle.errors import BindError
from curricle.models.skipping import check_always_runs
from curricle.models.wrapping import tapped
from curricle.objectives.hidden import LayerPair, MatchHidden


class Stack(nn.Module):
    """Blocks under a layer dropout that the module holds, as in BART."""

    def __init__(self, layerdrop: float) -> None:
        super().__init__()
        self.layers, self.layerdrop = nn.ModuleList([nn.Identity()]), layerdrop


class Net(nn.Module):
    def __init__(self, *, encoder: nn.Module | None = None, **config: Any) -> None:
        super().__init__()
        self.encoder = encoder or nn.Sequential(nn.Identity())
        self.head, self.config = nn.Identity(), SimpleNamespace(**config)


@pytest.mark.parametrize(
    ("module", "path", "setting"),
    [
        (Net(layerdrop=0.1), "encoder.0", "config.layerdrop"),
        (Net(encoder_layerdrop=0.1), "encoder.0", "config.encoder_layerdrop"),
        (Net(encoder=Stack(0.1)), "encoder.layers.0", "encoder.layerdrop"),
    ],
    ids=["wav2vec2", "one of two stacks", "module"],
)
def test_a_tap_of_the_student_that_may_be_skipped_is_refused(
    module: nn.Module, path: str, setting: str
) -> None:
    model = tapped(module)
    with pytest.raises(
        BindError,
        match=rf"^tap '{path}' must run in every training step; got '{path}' below layer dropout "
        rf"with {setting} = 0.1; set student.{setting} = 0$",
    ):
        MatchHidden(pair=LayerPair(student=path, teacher=path)).reads(model, model)


@pytest.mark.parametrize(
    ("module", "path"),
    [
        (Net(layerdrop=0.0), "encoder.0"),
        (Net(layerdrop=None), "encoder.0"),
        (Net(encoder=Stack(0.1)), "head"),
        # The module has read its configuration when it was built.
        (Net(encoder=Stack(0.0), encoder_layerdrop=0.1), "encoder.layers.0"),
        (nn.Sequential(nn.Identity()), "0"),
    ],
)
def test_a_tap_that_always_runs_is_accepted(module: nn.Module, path: str) -> None:
    model = tapped(module)
    check_always_runs(model, model.place(path))


def test_a_teacher_is_in_evaluation_mode_where_nothing_is_skipped() -> None:
    student, teacher = tapped(Net()), tapped(Net(layerdrop=0.5))
    MatchHidden(pair=LayerPair(student="encoder.0", teacher="encoder.0")).reads(student, teacher)
