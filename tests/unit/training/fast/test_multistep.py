"""Steps that go as one compiled call end where single steps would, within rounding.

What is traced is run as it is in most tests: to compile it takes seconds and changes no number.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.durations import Duration, UntilPlateau
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import extraction, from_labels, one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError, DivergenceError
from curricle.extras import COMPILERS
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.records import EvaluationRecord, Record, StageEndRecord, StepRecord
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.fast import multistep as compiling
from curricle.training.fast.multistep import FusedSteps, Traced
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD, AdamW, Schedule
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import Listed, bound, drawn, mlp, parity

TOTAL = Duration(number=24)
WARM = Schedule(warmup=0.2, decay="cosine")
AHEAD = 4
has_compiler = any(map(shutil.which, COMPILERS["cpu"]))


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(3, 6)).square().mean())}


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run graphs as they are; return a list that gets the first step of every block."""
    seen: list[int] = []
    step = FusedSteps.step

    def counting(self: Any, first: int) -> Any:
        found = step(self, first)
        seen.extend([first] if found is not None else [])
        return found

    monkeypatch.setattr(FusedSteps, "step", counting)
    monkeypatch.setattr(compiling, "compiled", lambda traced: traced.graph)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return seen


def run_of(
    curriculum: Callable[..., Curriculum] = one_shot, *, ahead: int = AHEAD, **parts: Any
) -> BoundRun:
    intervals = {"log_every": 6, "eval_every": 12, "compiled_steps": ahead}
    return bound(
        curriculum(total=TOTAL),
        settings=intervals | parts.pop("settings", {}),
        **{"stream": parity()} | parts,
    )


def finished(run: BoundRun, **outputs: Any) -> list[Record]:
    told: list[Record] = []
    execute(run, evaluate, metric="accuracy", outputs=Outputs(observers=(told.append,), **outputs))
    return told


def assert_close(one: BoundRun, other: BoundRun) -> None:
    torch.testing.assert_close(
        dict(one.student.module.named_parameters()),
        dict(other.student.module.named_parameters()),
        rtol=1e-4,
        atol=1e-6,
    )


CURRICULA: dict[str, Callable[..., Curriculum]] = {
    "one shot": one_shot,
    "labels": from_labels,
    "extraction": extraction,
    "own layers": lambda total: extraction(total=total, pairs=2, trainable="new"),
    "centered": lambda total: extraction(total=total, center=True, normalize="layernorm"),
}
OPTIMIZERS = {
    "plain": SGD(learning_rate=0.1),
    "momentum": SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.1, schedule=WARM),
    "adam": AdamW(learning_rate=0.01, weight_decay=0.1),
}


@given(
    curriculum=st.sampled_from(sorted(CURRICULA)),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    ahead=st.integers(2, 7),
    every=st.integers(7, 13),
)
@example(curriculum="own layers", optimizer="adam", ahead=2, every=2)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_ends_where_single_steps_would_and_records_the_same(
    curriculum: str, optimizer: str, ahead: int, every: int
) -> None:
    def run(number: int) -> BoundRun:
        return run_of(
            CURRICULA[curriculum],
            ahead=number,
            optimizer=OPTIMIZERS[optimizer],
            settings={"log_every": every},
        )

    plain, compiled = run(1), run(ahead)
    told, again = finished(plain), finished(compiled)
    assert_close(compiled, plain)
    assert [type(one) for one in told] == [type(one) for one in again]
    for one, other in zip(told, again, strict=True):
        if isinstance(one, StepRecord) and isinstance(other, StepRecord):
            assert (one.learning_rate, one.usage.steps) == (other.learning_rate, other.usage.steps)
            assert other.loss == pytest.approx(one.loss, rel=1e-3)
        if isinstance(one, EvaluationRecord) and isinstance(other, EvaluationRecord):
            assert other.metrics == pytest.approx(one.metrics, rel=1e-3)


@pytest.mark.parametrize("name", sorted(CURRICULA))
def test_what_is_compiled_belongs_to_no_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    graphs: dict[str, Any] = {}
    # As in a process: who comes second with an equal graph gets that of the first.
    monkeypatch.setattr(
        compiling, "compiled", lambda traced: graphs.setdefault(traced.key, traced.graph)
    )
    sizes = []
    for seed in (0, 1):
        plain, ahead = (
            run_of(CURRICULA[name], ahead=number, student=mlp(5, 4, seed=seed)) for number in (1, 4)
        )
        finished(plain)
        finished(ahead)
        assert_close(ahead, plain)
        sizes.append(len(graphs))
    assert sizes[0] == sizes[1] > 0


def test_blocks_lie_between_what_is_written(blocks: list[int]) -> None:
    finished(run_of())
    # Records at every 6th step: a block of 4 and two single steps.
    assert blocks == [0, 6, 12, 18]


def test_an_optimizer_with_moments_begins_with_a_single_step(blocks: list[int]) -> None:
    finished(run_of(optimizer=AdamW(learning_rate=0.01)))
    assert blocks == [1, 6, 12, 18]


def test_a_run_may_end_at_its_target() -> None:
    plain, compiled = run_of(ahead=1), run_of()
    ends = [
        execute(run, evaluate, metric="accuracy", outputs=Outputs(), until=bool)
        for run in (plain, compiled)
    ]
    assert [end.usage.steps for end in ends] == [12, 12]
    assert_close(compiled, plain)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_interrupted_run_ends_bit_equal(tmp_path: Path, optimizer: Any) -> None:
    class CutError(Exception):
        pass

    def cut(metrics: Mapping[str, float]) -> bool:
        raise CutError

    def run() -> BoundRun:
        return run_of(extraction, optimizer=optimizer, settings={"save_every": 6})

    whole, first, second = run(), run(), run()
    finished(whole)
    outputs = Outputs(folder=tmp_path)
    with pytest.raises(CutError):
        execute(first, evaluate, metric="accuracy", outputs=outputs, until=cut)
    execute(second, evaluate, metric="accuracy", outputs=outputs, resume=True)
    for one, other in zip(
        whole.student.module.parameters(), second.student.module.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_weights_before_it() -> None:
    batches = [parity().batch(step) for step in range(24)]
    batches[7] = Batch(inputs=torch.full((8, 6), torch.inf), labels=batches[7].labels)
    plain = run_of(stream=Listed(*batches), ahead=1)
    compiled = run_of(stream=Listed(*batches))
    for run in (plain, compiled):
        with pytest.raises(DivergenceError, match=r"^'loss' must be finite.* at step 7 with seed"):
            finished(run)
    assert_close(compiled, plain)


def test_batches_of_several_shapes_take_single_steps(blocks: list[int]) -> None:
    rows = [8 if step % 3 else 4 for step in range(24)]
    batches = [
        Batch(inputs=drawn(number, 6, seed=step), labels=torch.zeros(number).long())
        for step, number in enumerate(rows)
    ]
    plain = run_of(stream=Listed(*batches), ahead=1)
    compiled = run_of(stream=Listed(*batches))
    finished(plain)
    finished(compiled)
    assert blocks == []
    assert_close(compiled, plain)


class Picky(nn.Module):
    """A model whose way depends on what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs if inputs.sum() > 0 else -inputs)
        return found


def made(module: Callable[[], nn.Module], block: str) -> TappedModel:
    with seeding.scoped(0, "model"):
        return tapped(module(), blocks=[block])


def test_a_student_that_cannot_be_traced_is_refused_with_the_stage() -> None:
    run = run_of(from_labels, student=made(Picky, "layer"))
    sentence = r"^'compiled_steps' must be 1 in stage .*, whose steps torch cannot compile; got 4: "
    with pytest.raises(BindError, match=sentence):
        finished(run)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5)), "draws noise"),
        (lambda: nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)), "has buffers"),
    ],
)
def test_a_student_of_single_steps_is_refused(module: Callable[[], nn.Module], what: str) -> None:
    run = run_of(from_labels, student=made(module, "0"))
    with pytest.raises(
        BindError, match=rf"^'compiled_steps=4' cannot be used with a student that {what}"
    ):
        finished(run)


def test_without_a_compiler_steps_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    sentence = r"^'compiled_steps' must be 1 on a machine without a compiler; .*g\+\+"
    with pytest.raises(BindError, match=sentence):
        finished(run_of())


def seats(ahead: int, optimizer: str) -> list[BoundRun]:
    teacher = LiveTeacher(mlp(16, 12, seed=1))
    return [
        run_of(
            extraction,
            ahead=ahead,
            student=mlp(5, 4, seed=seed),
            teacher=teacher,
            seed=seed,
            optimizer=OPTIMIZERS[optimizer],
        )
        for seed in range(3)
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_students_of_a_stacked_class_take_steps_ahead_together(
    blocks: list[int], optimizer: str
) -> None:
    apart, stacked = seats(1, optimizer), seats(AHEAD, optimizer)
    for run in apart:
        finished(run)
    chairs = [SharedRun(run=run, evaluate=evaluate, outputs=Outputs()) for run in stacked]
    execute_shared(chairs, metric="accuracy", batch_students=True)
    # One block for all three, and not one for each.
    assert blocks == sorted(set(blocks))
    assert len(blocks) == 4
    for one, other in zip(stacked, apart, strict=True):
        assert_close(one, other)


def test_a_class_that_is_not_stacked_takes_no_steps_ahead() -> None:
    chairs = [
        SharedRun(run=run, evaluate=evaluate, outputs=Outputs()) for run in seats(AHEAD, "plain")
    ]
    with pytest.raises(BindError, match=r"^'compiled_steps=\d+' cannot .* with 'share_teacher': "):
        execute_shared(chairs, metric="accuracy")


def test_equal_graphs_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def noting(traced: Traced) -> Any:
        keys.append(traced.key)
        return traced.graph

    monkeypatch.setattr(compiling, "compiled", noting)
    for seed in (0, 1):
        finished(run_of(extraction, student=mlp(5, 4, seed=seed), seed=seed))
    hidden, logits = keys[:2]
    assert keys == [hidden, logits, hidden, logits]
    assert hidden != logits


@pytest.mark.integration
@pytest.mark.skipif(not has_compiler, reason="needs a C++ compiler, which is not installed here")
# What torch's compiler imports warns of itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_graph_gives_the_numbers_of_single_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    parts: dict[str, Any] = {"optimizer": OPTIMIZERS["adam"], "settings": {"log_every": 12}}
    plain, compiled = run_of(ahead=1, **parts), run_of(ahead=2, **parts)
    finished(plain)
    finished(compiled)
    assert_close(compiled, plain)


def test_blocks_end_where_a_plateau_is_checked(blocks: list[int]) -> None:
    def until_plateau(total: Duration) -> Curriculum:
        rule = UntilPlateau(at_most="16 steps", window=5, patience=1, min_improvement=0.9)
        return extraction(total=total, durations=(rule,))

    compiled, single = run_of(until_plateau), run_of(until_plateau, ahead=1)
    ends = [
        [(one.done, one.why) for one in finished(run) if isinstance(one, StageEndRecord)]
        for run in (compiled, single)
    ]
    assert ends == [[(10, "plateau")]] * 2
    assert_close(compiled, single)
    # Windows end after 5 and 10 steps, and with these the layer stage; records come every 6.
    assert blocks == [0, 6, 12]
