"""Arguments of the public calls: the accepted kinds, and a sentence for each wrong one."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import curricle
from curricle import seeding
from curricle.curriculum.strategies import STRATEGIES
from curricle.data.dataloaders import stream
from curricle.errors import BindError, DataError
from curricle.metrics import METRICS
from curricle.models.mlp import MLP
from curricle.teachers.live import LiveTeacher
from curricle.training.setup.arguments import (
    STRATEGY_ARGUMENTS,
    as_evaluation,
    as_stream,
    as_teacher,
    judged_by,
    require_direction,
    require_model,
    wrapping_hint,
)
from tests.parts import CLASSES, INPUTS, drawn, parity


def test_a_stream_is_used_as_it_is_and_a_loader_becomes_one() -> None:
    stream = parity()
    assert as_stream(stream, 0) is stream
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(drawn(8, INPUTS), torch.arange(8) % CLASSES), batch_size=4
    )
    assert as_stream(loader, 0).batch(0).num_examples == 4


@pytest.mark.parametrize("data", [[1], TensorDataset(torch.zeros(2, 1))])
def test_examples_without_a_loader_are_refused_with_the_way_to_one(data: Any) -> None:
    with pytest.raises(BindError) as error:
        as_stream(data, 0)
    assert str(error.value) == (
        f"'data' must be a stream or a DataLoader; got {type(data).__name__!r}; a loader makes "
        f"batches of it: DataLoader(dataset, batch_size=64)"
    )
    assert wrapping_hint("examples.csv") == wrapping_hint(3) == ""


@pytest.mark.parametrize("kind", ["loader", "sampler", "stream"])
def test_held_out_loaders_leave_generators_alone_and_give_the_same_batches(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = TensorDataset(drawn(32, INPUTS), torch.arange(32) % CLASSES)

    def collate(items: Any) -> Any:
        inputs, labels = torch.utils.data.default_collate(items)
        # As masks are drawn.
        return inputs + torch.rand(1) * 1e-3, labels

    options: dict[str, Any] = {"batch_size": 8, "collate_fn": collate}
    if kind == "sampler":
        options["sampler"] = RandomSampler(rows, generator=generator)
    else:
        options |= {"shuffle": True, "generator": generator}
    loader: DataLoader[Any] = DataLoader(rows, **options)
    held_out = stream(loader) if kind == "stream" else loader
    states = generator.get_state(), torch.get_rng_state()
    passes: list[Any] = [as_evaluation(held_out, None) for _ in range(2)]
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    first, second = (torch.cat([batch.leading for batch in batches]) for batches in passes)
    assert torch.equal(first, second)
    assert first.shape == (32, INPUTS)


def test_next_token_is_refused_where_labels_have_their_places() -> None:
    held_out = parity()
    remedy = r"leave it out, or curricle.stream\(loader, next_token=True\) shifts"
    sentence = rf"no effect on a stream, .*; got 'ParityStream'; {remedy}"
    with pytest.raises(DataError, match=sentence):
        as_evaluation(held_out, None, next_token=True)
    with seeding.scoped(0, "model"):
        model = MLP(INPUTS, (4,), CLASSES)
    with pytest.raises(DataError, match=rf"no effect on a `Batch`, whose .*; {remedy}"):
        curricle.evaluate(model, [held_out.batch(0)], next_token=True)


def test_a_model_becomes_a_live_teacher() -> None:
    with seeding.scoped(0, "model"):
        model = MLP(INPUTS, (4,), CLASSES)
    teacher = as_teacher(model, None)
    assert isinstance(teacher, LiveTeacher)
    assert teacher.model.module is model
    assert as_teacher(None, None) is None


def test_the_sentence_about_a_teacher_names_stored_targets() -> None:
    require_model("student", nn.Identity())
    with pytest.raises(BindError, match=r"'teacher' must be .*open_targets opens.*") as error:
        require_model("teacher", "runs/targets")
    assert "got 'runs/targets'" in str(error.value)
    with pytest.raises(BindError) as error:
        require_model("student", "runs/targets")
    assert "open_targets" not in str(error.value)


def test_a_direction_of_another_name_is_refused() -> None:
    with pytest.raises(BindError, match="'better' must be 'higher', 'lower' or None; got 'up'"):
        require_direction("up")


def test_the_direction_of_a_metric_is_declared_unless_reports_have_it() -> None:
    assert judged_by(METRICS["accuracy"], None) == ("accuracy", None)
    assert judged_by("xyz", "lower") == ("xyz", "lower")
    with pytest.raises(BindError, match="'better' must be 'higher' or None for the metric 'accu"):
        judged_by(METRICS["accuracy"], "lower")


@pytest.mark.parametrize(("argument", "strategy"), STRATEGY_ARGUMENTS.items())
def test_listed_arguments_of_strategies_exist(argument: str, strategy: str) -> None:
    assert argument in inspect.signature(STRATEGIES[strategy]).parameters
