"""Sizes are counted, and times are medians of alternating passes."""

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import SpecError
from curricle.runs import model_costs
from curricle.runs.model_costs import first_examples, measure_costs


class Counting(nn.Module):
    """Writes the number of rows of every pass down."""

    def __init__(self, log: list[tuple[str, int]], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name
        with seeding.scoped(0, name):
            self.linear = nn.Linear(3, 2)
        self.tied = self.linear
        self.register_buffer("table", torch.zeros(5, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.log.append((self.name, len(inputs)))
        result: Tensor = self.linear(inputs)
        return result


def test_shared_weights_count_once_and_buffers_have_their_own_type() -> None:
    (cost,) = measure_costs([Counting([], "a")], [torch.zeros(4, 3)], repetitions=1)
    assert cost.parameters == 3 * 2 + 2
    assert cost.num_bytes == 4 * 8 + 8 * 5


def test_models_take_turns_and_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    models = [Counting(log, "a"), Counting(log, "b").train()]
    # Two warm-up passes take long, and one of three timed passes was interrupted.
    times = iter([90.0, 90.0, 90.0, 90.0, 8.0, 4.0, 50.0, 4.0, 12.0, 4.0] + 10 * [3.0])
    measured = model_costs._time_pass

    def time_pass(module: nn.Module, inputs: Tensor) -> float:
        measured(module, inputs)
        return next(times)

    monkeypatch.setattr(model_costs, "_time_pass", time_pass)
    first, second = measure_costs(models, [torch.zeros(4, 3)] * 2, repetitions=3)
    assert log == [("a", 4), ("b", 4)] * 5 + [("a", 1), ("b", 1)] * 5
    assert (first.milliseconds, second.milliseconds) == (12.0 / 4, 4.0 / 4)
    assert first.milliseconds_alone == 3.0
    assert models[1].training


def test_a_pass_takes_time() -> None:
    assert model_costs._time_pass(nn.Identity(), torch.zeros(256, 64)) > 0


def test_named_inputs_are_cut_row_by_row() -> None:
    rows = first_examples({"a": torch.arange(4), "b": torch.zeros(4, 2)}, 3)
    assert isinstance(rows, dict)
    assert {name: len(tensor) for name, tensor in rows.items()} == {"a": 3, "b": 3}


def test_no_repetition_is_refused() -> None:
    with pytest.raises(SpecError, match="'repetitions' must be at least 1; got 0"):
        measure_costs([], [], repetitions=0)
