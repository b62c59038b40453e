"""Captured targets: a student trained from them is the one that the teacher would have taught."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.durations import UntilPlateau
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, one_shot, progressive
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError, DataError
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.divergences import ReverseKL
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Learned
from curricle.objectives.temperature import LearnedTemperature
from curricle.records import Record, StageEndRecord, StepRecord
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import BFloat16, Exact, Int8, Sampled, TopK
from curricle.teachers.store.manifest import DataFacts
from curricle.teachers.stored import open_targets
from curricle.teachers.trajectory import TrajectoryWriter, open_trajectory
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from curricle.training.targets.capture import TargetCompression, capture
from curricle.training.targets.verification import agreement
from tests.parts import Listed, bound, drawn, embedder, mlp, parity, stored_target, texts, tokens

EXACT = TargetCompression(hidden=Exact(), logits=Exact())
EXTRACTION = extraction(total="12 steps")


def judge(_model: object) -> dict[str, float]:
    return {"none": 0.0}


def trained(run: BoundRun) -> Tensor:
    execute(run, judge, metric="none", outputs=Outputs())
    return weights(run)


def weights(run: BoundRun) -> Tensor:
    parameters = run.student.module.parameters()
    return torch.cat([one.detach().flatten() for one in parameters])


def staged(*objectives: Any, steps: int = 6) -> Curriculum:
    stage = Stage(name="only", duration=f"{steps} steps", objectives=objectives)
    return Curriculum(name="own", stages=(stage,))


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2}, {"teacher_precision": "bfloat16"}]
)
def test_with_an_exact_codec_the_student_is_bit_equal(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    live = trained(bound(EXTRACTION, settings=settings))
    capture([bound(EXTRACTION, settings=settings)], tmp_path, compression=EXACT)
    stored = bound(EXTRACTION, settings=settings, teacher=open_targets(tmp_path))
    assert torch.equal(trained(stored), live)
    assert stored.stages[0].plan.teacher_flops == 0


HIDDEN = MatchHidden(pair=LayerPair(student=1, teacher=1))
OBJECTIVES = [
    HIDDEN,
    replace(HIDDEN, positions="selected", normalize="layernorm"),
    replace(HIDDEN, center=True, shared_projection=True),
    replace(HIDDEN, projection=Learned()),
    MatchLogits(),
    MatchLogits(num_classes=7, chunk=2),
    MatchLogits(teacher_temperature=2.0),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(len(OBJECTIVES)))
@pytest.mark.parametrize("selects", [True, False])
def test_every_objective_reads_what_it_would_compare_with(
    tmp_path: Path, objective: Any, selects: bool
) -> None:
    chosen, stream = staged(objective), tokens(selects=selects)
    live = trained(texts(chosen, stream=stream))
    capture([texts(chosen, stream=stream)], tmp_path, compression=EXACT)
    found = trained(texts(chosen, stream=stream, teacher=open_targets(tmp_path)))
    torch.testing.assert_close(found, live)


@pytest.mark.parametrize("codec", [BFloat16(), Int8()])
def test_rounded_targets_are_within_the_stated_error(tmp_path: Path, codec: Any) -> None:
    chosen, live = staged(HIDDEN), texts(staged(HIDDEN))
    capture([live], tmp_path, compression=TargetCompression(hidden=codec))
    stored = texts(chosen, teacher=open_targets(tmp_path))
    batch = live.stream.batch(1)
    with LiveTeacher(embedder(6, 9)).open_taps(
        "final", live.stages[0].reads.teacher, logits=False
    ) as r:
        wanted = live.stages[0].terms[0].objective.target(r(batch.inputs, None, None), batch)
    found = stored_target(stored, batch)
    assert ((found - wanted).abs() <= codec.bound(wanted)).all()
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(trained(stored), trained(texts(chosen)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("codec", [Sampled(num_samples=4000), TopK(k=11), TopK(k=10)])
@pytest.mark.parametrize("chunk", [None, 2])
def test_sparse_targets_teach_what_all_classes_teach(
    tmp_path: Path, codec: Any, chunk: int | None
) -> None:
    chosen = staged(MatchLogits(chunk=chunk))
    capture([texts(chosen)], tmp_path, compression=TargetCompression(logits=codec))
    found = trained(texts(chosen, teacher=open_targets(tmp_path)))
    torch.testing.assert_close(found, trained(texts(chosen)), rtol=0, atol=3e-3)


def test_readers_of_another_order_batch_size_and_seed_find_their_targets(tmp_path: Path) -> None:
    stream, chosen = tokens(selects=False), staged(HIDDEN)
    capture([texts(chosen, stream=stream)], tmp_path, compression=EXACT)
    whole = texts(chosen, stream=stream)
    parts = [part for batch in reversed(stream.batches) for part in batch.chunks(3)]
    run = texts(chosen, stream=Listed(*parts), teacher=open_targets(tmp_path), seed=7)
    with LiveTeacher(embedder(6, 9)).open_taps(
        "final", whole.stages[0].reads.teacher, logits=False
    ) as r:
        for part in parts:
            wanted = whole.stages[0].terms[0].objective.target(r(part.inputs, None, None), part)
            found = stored_target(run, part)
            torch.testing.assert_close(found, wanted)


class Pooled(nn.Module):
    """Classifies texts by the mean over the positions that hold data."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.block = nn.Linear(width, width)
        self.pooled = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None]
        states = self.block(self.embedding(input_ids)).tanh() * mask
        found: Tensor = self.head(self.pooled(states.sum(1) / mask.sum(1)).tanh())
        return found


class Patches(nn.Module):
    """Classifies images by the mean over nine patches, which no input has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(1, width, 2, stride=2)
        self.states = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.states(self.block(pixels).flatten(2).mT).tanh()
        found: Tensor = self.head(states.mean(1))
        return found


def classifier(kind: type[Pooled] | type[Patches], width: int, *, seed: int) -> TappedModel:
    with seeding.scoped(seed, "model"):
        return tapped(kind(width), blocks=["block"], head="head")


def labeled(kind: type[Pooled] | type[Patches]) -> Listed:
    """Return batches with one label an example: padded texts, or images."""
    classes = torch.arange(4) % 3
    if kind is Patches:
        return Listed(
            *(Batch(inputs=drawn(4, 1, 6, 6, seed=one), labels=classes) for one in (1, 2))
        )
    batches = []
    for lengths in ([5, 2, 4, 3], [1, 5, 5, 1], [1, 1, 1, 1]):
        mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
        ids = torch.arange(20).view(4, 5) * len(lengths) % (5 + lengths[0]) * mask
        inputs = {"input_ids": ids, "attention_mask": mask}
        batches.append(Batch(inputs=inputs, labels=classes, valid=mask.bool()))
    return Listed(*batches)


@pytest.mark.parametrize("codec", [Exact(), BFloat16(), Sampled()], ids=lambda one: one.kind)
@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        (Pooled, MatchLogits()),
        (Pooled, MatchHidden(pair=LayerPair(student="pooled", teacher="pooled"))),
        (Pooled, MatchHidden(pair=LayerPair(student="block", teacher="block"))),
        (Patches, MatchLogits()),
        (Patches, MatchHidden(pair=LayerPair(student="states", teacher="states"))),
    ],
    ids=["texts, logits", "texts, pooled", "texts, tokens", "images, logits", "images, patches"],
)
def test_targets_of_data_with_one_label_an_example_are_read_back(
    tmp_path: Path, kind: type[Any], objective: Any, codec: Any
) -> None:
    def run(teacher: Any) -> BoundRun:
        student, data = classifier(kind, 4, seed=1), labeled(kind)
        return bound(staged(objective), student=student, teacher=teacher, stream=data)

    live = LiveTeacher(classifier(kind, 6, seed=2))
    hidden = Exact() if isinstance(codec, Sampled) else codec
    capture([run(live)], tmp_path, compression=TargetCompression(hidden=hidden, logits=codec))
    stored = trained(run(open_targets(tmp_path)))
    if codec == Exact() or hidden == codec:
        wanted = trained(run(live))
        assert torch.allclose(stored, wanted, atol=0.0 if codec == Exact() else 0.01)
    assert all(one.holds for one in agreement([run(live)], open_targets(tmp_path), steps=3))


def test_checkpoints_of_the_teacher_are_told_apart(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path / "steps", [1, 2])
    for step in (1, 2):
        writer.save(mlp(16, 12, seed=step + 4).module, step)
    trajectory = open_trajectory(tmp_path / "steps")

    def teacher() -> LiveTeacher:
        return LiveTeacher(mlp(16, 12, seed=6), trajectory)

    chosen = progressive(total="6 steps", trajectory=trajectory)
    capture([bound(chosen, teacher=teacher())], tmp_path / "store", compression=EXACT)
    stored = open_targets(tmp_path / "store")
    assert {"1", "2"} & set(stored.store.manifest.teacher.weights)
    found = trained(bound(chosen, teacher=stored))
    assert torch.equal(found, trained(bound(chosen, teacher=teacher())))


CENTERED = staged(replace(HIDDEN, center=True), steps=9)


@pytest.mark.parametrize("seed", [0, 1])
def test_centered_targets_of_two_streams_are_kept_apart(tmp_path: Path, seed: int) -> None:
    streams = [parity(0), parity(1)]
    # Bits repeat between the streams, so rows of one could stand for those of the other.
    capture([bound(CENTERED, stream=one) for one in streams], tmp_path, compression=EXACT)
    stored = open_targets(tmp_path)
    told = [one.facts["calibrated_on"] for one in stored.store.manifest.sections]
    assert told == [one.fingerprint for one in streams]
    live = trained(bound(CENTERED, stream=parity(seed)))
    assert torch.equal(trained(bound(CENTERED, stream=parity(seed), teacher=stored)), live)


def test_one_mean_serves_readers_of_other_streams_but_two_do_not(tmp_path: Path) -> None:
    capture([bound(CENTERED)], tmp_path)
    bound(CENTERED, stream=parity(1), teacher=open_targets(tmp_path), seed=3)
    capture([bound(CENTERED, stream=parity(1))], tmp_path)
    stored = open_targets(tmp_path)
    bound(CENTERED, stream=parity(1), teacher=stored, seed=3)
    with pytest.raises(BindError, match="and be one; there are 2"):
        bound(CENTERED, stream=parity(2), teacher=stored)


def counted(run: BoundRun) -> tuple[BoundRun, list[int]]:
    """Return a run whose teacher notes every pass."""
    passes: list[int] = []
    assert isinstance(run.teacher, LiveTeacher)
    found = run.teacher.model.module.modules()
    first = next(one for one in found if isinstance(one, nn.Linear))
    first.register_forward_hook(lambda *_: passes.append(1))
    return run, passes


def test_a_second_epoch_asks_the_teacher_nothing(tmp_path: Path) -> None:
    run, passes = counted(texts(staged(HIDDEN, steps=9)))
    capture([run], tmp_path, compression=EXACT)
    assert len(passes) == 3
    assert sum(shard.examples for shard in open_targets(tmp_path).store.manifest.shards) == 12


def test_a_capture_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    compression = replace(EXACT, shard_bytes=1)
    whole = capture([bound(EXTRACTION)], tmp_path / "whole", compression=compression)
    with pytest.raises(KeyboardInterrupt):
        capture(
            [bound(EXTRACTION)], tmp_path / "killed", compression=compression, watch=kill_after(5)
        )
    with pytest.raises(CheckpointError, match="must hold a finished capture"):
        open_targets(tmp_path / "killed")
    again, passes = counted(bound(EXTRACTION))
    resumed = capture([again], tmp_path / "killed", compression=compression)
    assert len(passes) == 12 - 5
    assert resumed == whole


def kill_after(steps: int) -> Callable[[int, int], None]:
    """Return what stops a capture after so many steps."""

    def watch(done: int, total: int) -> None:
        if done == steps:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("first_ends", [True, False])
def test_a_second_capture_that_is_killed_leaves_the_first_readable(
    tmp_path: Path, first_ends: bool
) -> None:
    first, second = staged(HIDDEN), staged(MatchLogits())
    compression = replace(EXACT, shard_bytes=1)
    live = trained(bound(first))
    watch = None if first_ends else kill_after(2)
    with nullcontext() if first_ends else pytest.raises(KeyboardInterrupt):
        capture([bound(first)], tmp_path, compression=compression, watch=watch)
    with pytest.raises(KeyboardInterrupt):
        capture([bound(second)], tmp_path, compression=compression, watch=kill_after(3))
    if not first_ends:
        capture([bound(first)], tmp_path, compression=compression)
    stored = open_targets(tmp_path)
    assert torch.equal(trained(bound(first, teacher=stored)), live)
    rule = "stored: hidden of final, .*; not captured to the end, capture again: logits"
    with pytest.raises(BindError, match=rule):
        bound(second, teacher=stored)
    assert capture([bound(second)], tmp_path, compression=compression).is_complete
    wanted = trained(bound(second))
    assert torch.equal(trained(bound(second, teacher=open_targets(tmp_path))), wanted)


def test_more_data_of_a_capture_that_is_killed_leave_the_first_readable(tmp_path: Path) -> None:
    chosen, compression = staged(HIDDEN, steps=2), replace(EXACT, shard_bytes=1)
    live = trained(texts(chosen))
    capture([texts(chosen)], tmp_path, compression=compression)

    def more(**parts: Any) -> BoundRun:
        return texts(chosen, stream=tokens(selects=True, seed=1), **parts)

    with pytest.raises(KeyboardInterrupt):
        capture([more()], tmp_path, compression=compression, watch=kill_after(1))
    stored = open_targets(tmp_path)
    assert torch.equal(trained(texts(chosen, teacher=stored)), live)
    with pytest.raises(
        DataError, match="their capture was stopped; run `curricle targets capture`"
    ):
        trained(more(teacher=stored))
    capture([more()], tmp_path, compression=compression)
    trained(more(teacher=open_targets(tmp_path)))


def test_a_capture_of_some_does_not_end_what_another_has_begun(tmp_path: Path) -> None:
    compression = replace(EXACT, shard_bytes=1)
    with pytest.raises(KeyboardInterrupt):
        capture([bound(staged(HIDDEN))], tmp_path, compression=compression, watch=kill_after(2))
    manifest = capture([bound(staged(MatchLogits()))], tmp_path, compression=compression)
    assert not manifest.is_complete
    with pytest.raises(BindError, match="capture again: hidden of final"):
        bound(staged(HIDDEN), teacher=open_targets(tmp_path))


def test_a_capture_with_nothing_to_add_leaves_a_whole_store_whole(tmp_path: Path) -> None:
    whole = capture([bound(EXTRACTION)], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        capture([bound(EXTRACTION)], tmp_path, watch=kill_after(1))
    assert open_targets(tmp_path).store.manifest == whole


def test_two_captures_do_not_write_into_one_folder(tmp_path: Path) -> None:
    def another(done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match="must have one writer at a time"):
            capture([bound(EXTRACTION)], tmp_path)

    assert capture([bound(EXTRACTION)], tmp_path, watch=another).is_complete


def test_a_folder_takes_more_targets_of_the_same_teacher(tmp_path: Path) -> None:
    capture([texts(staged(HIDDEN))], tmp_path)
    manifest = capture([texts(staged(MatchLogits()))], tmp_path)
    assert [section.facts["kind"] for section in manifest.sections] == ["hidden", "logits"]
    texts(staged(HIDDEN, MatchLogits()), teacher=open_targets(tmp_path))


def test_a_folder_of_other_targets_is_refused(tmp_path: Path) -> None:
    capture([texts(staged(HIDDEN))], tmp_path)
    with pytest.raises(CheckpointError, match="must hold targets of this teacher 'final'"):
        capture([texts(staged(HIDDEN), teacher=LiveTeacher(embedder(6, 1)))], tmp_path)
    with pytest.raises(CheckpointError, match="must hold targets packed as"):
        capture([texts(staged(HIDDEN))], tmp_path, compression=EXACT)
    other = texts(staged(HIDDEN), settings={"precision": "bfloat16"})
    with pytest.raises(CheckpointError, match="must hold targets of a teacher in 'bfloat16'"):
        capture([other], tmp_path)


@pytest.mark.parametrize(
    ("objective", "codec", "rule"),
    [
        (MatchLogits(teacher_temperature=2.0), Sampled(), "'teacher_temperature' must be 1"),
        (MatchLogits(), TopK(temperature=2.0), "'teacher_temperature' must be 2"),
        (MatchLogits(divergence=ReverseKL()), Sampled(), "with divergence 'forward_kl'"),
        (LearnedTemperature(label_weight=0.0), TopK(), "with divergence 'forward_kl'"),
    ],
)
def test_what_could_not_be_read_is_refused_before_the_teacher_is_asked(
    tmp_path: Path, objective: Any, codec: Any, rule: str
) -> None:
    # The first objective asks for the same targets and can read them.
    first = MatchLogits(teacher_temperature=codec.temperature)
    run, passes = counted(texts(staged(first, objective)))
    with pytest.raises(BindError, match=f"stage 'only': .*{rule}.*'compression.logits' sets"):
        capture([run], tmp_path / "store", compression=TargetCompression(logits=codec))
    assert not passes
    assert not (tmp_path / "store").exists()
    capture([run], tmp_path / "store", compression=EXACT)


def test_stored_targets_are_not_captured(tmp_path: Path) -> None:
    capture([texts(staged(HIDDEN))], tmp_path)
    stored = texts(staged(HIDDEN), teacher=open_targets(tmp_path))
    with pytest.raises(BindError, match="must be a model to capture its targets"):
        capture([stored], tmp_path / "other")


def test_a_capture_says_what_it_is(tmp_path: Path) -> None:
    run = bound(EXTRACTION)
    told = capture([run], tmp_path, data=DataFacts(name="parity", tokenizer="ab"))
    assert told.data == DataFacts(name="parity", tokenizer="ab", fingerprint=run.stream.fingerprint)
    assert told.teacher.parameters == sum(one.numel() for one in mlp(16, 12).module.parameters())
    assert told.teacher.precision == "float32"
    facts = told.sections[0].facts
    assert (facts["projection_seed"], facts["law"]["kind"]) == (0, "gaussian")
    assert len(told.teacher.weights["final"]) == 64


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("codec", [Exact(), Sampled()])
def test_a_class_is_taught_from_stored_targets(tmp_path: Path, stacked: bool, codec: Any) -> None:
    chosen = one_shot(total="8 steps")
    capture([bound(chosen)], tmp_path, compression=TargetCompression(logits=codec))
    stored = open_targets(tmp_path)
    apart = [trained(bound(chosen, teacher=stored, student=mlp(5, 4, seed=s))) for s in (2, 3)]
    together = [bound(chosen, teacher=stored, student=mlp(5, 4, seed=s)) for s in (2, 3)]
    seats = [SharedRun(run=run, evaluate=judge, outputs=Outputs()) for run in together]
    execute_shared(seats, metric="none", batch_students=stacked)
    for run, alone in zip(together, apart, strict=True):
        torch.testing.assert_close(weights(run), alone)


def test_runs_from_a_store_resume(tmp_path: Path) -> None:
    capture([bound(EXTRACTION)], tmp_path / "store", compression=EXACT)
    stored = open_targets(tmp_path / "store")
    settings = {"save_every": 4}
    wanted = trained(bound(EXTRACTION, teacher=stored))
    outputs = Outputs(folder=tmp_path / "run")
    run = bound(EXTRACTION, teacher=stored, settings=settings)
    execute(run, judge, metric="none", outputs=outputs)
    again = bound(EXTRACTION, teacher=stored, settings=settings)
    execute(again, judge, metric="none", outputs=outputs, resume=True)
    assert torch.equal(weights(again), wanted)
    foreign = bound(EXTRACTION, settings=settings)
    with pytest.raises(CheckpointError, match="must belong to this run"):
        execute(foreign, judge, metric="none", outputs=outputs, resume=True)


def test_a_further_capture_leaves_interrupted_students_to_go_on(tmp_path: Path) -> None:
    chosen, store = one_shot(total="8 steps"), tmp_path / "store"
    capture([bound(chosen)], store, compression=EXACT)
    wanted = trained(bound(chosen, teacher=open_targets(store)))
    every = {"save_every": 4, "log_every": 1}

    def run() -> BoundRun:
        return bound(chosen, teacher=open_targets(store), settings=every)

    def kill(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == 6:
            raise KeyboardInterrupt

    outputs = Outputs(folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        execute(run(), judge, metric="none", outputs=replace(outputs, observers=(kill,)))
    writer = TrajectoryWriter(tmp_path / "steps", [1])
    writer.save(mlp(16, 12, seed=4).module, 1)
    live = LiveTeacher(mlp(16, 12, seed=1), open_trajectory(tmp_path / "steps"))
    more = replace(staged(HIDDEN).stages[0], teacher=1)
    capture(
        [bound(Curriculum(name="more", stages=(more,)), teacher=live)], store, compression=EXACT
    )
    again = run()
    execute(again, judge, metric="none", outputs=outputs, resume=True)
    assert torch.equal(weights(again), wanted)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("center", [False, True])
def test_a_capture_says_where_a_batch_is_at_fault(tmp_path: Path, center: bool, step: int) -> None:
    good, bad = (Batch(inputs={"input_ids": torch.tensor([[1, one]])}) for one in (3, 99))
    hidden = MatchHidden(pair=LayerPair(student="block", teacher="block"), center=center)
    run = texts(staged(hidden), stream=Listed(*[good] * step, bad))
    sentence = rf"^stage 'only', step {step}, seed 0: 'input_ids' must lie between .*; got 99$"
    with pytest.raises(DataError, match=sentence):
        capture([run], tmp_path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), None], ids=str)
@pytest.mark.parametrize("codec", [Exact(), Sampled(), Int8()], ids=lambda one: one.kind)
def test_targets_that_are_no_numbers_are_refused(
    tmp_path: Path, codec: Any, wrong: float | None
) -> None:
    good, bad = (Batch(inputs=torch.full((2, 6), one)) for one in (1.0, wrong or 2.0))
    teacher = mlp(16, 12, seed=1)
    run = bound(staged(MatchLogits()), teacher=LiveTeacher(teacher), stream=Listed(good, good, bad))
    words = "; inputs of the batch are not finite: 'inputs' holds 12 .*, first in example 0"
    if wrong is None:
        words = ""
        with torch.no_grad():
            teacher.module.get_parameter("head.bias")[0] = float("nan")
    step = 0 if wrong is None else 2
    sentence = (
        rf"^stage 'only', step {step}, seed 0: 'targets' must be finite; got 2 of 2 rows of the "
        rf"teacher that are not{words}$"
    )
    with pytest.raises(DataError, match=sentence):
        capture([run], tmp_path, compression=TargetCompression(logits=codec))


def test_missing_examples_end_a_run_with_one_sentence(tmp_path: Path) -> None:
    capture([bound(EXTRACTION)], tmp_path)
    run = bound(EXTRACTION, teacher=open_targets(tmp_path), stream=parity(5))
    with pytest.raises(ValueError, match="'targets' must hold every example that is read"):
        trained(run)


def test_what_is_stored_suffices_whenever_a_stage_ends(tmp_path: Path) -> None:
    rule = UntilPlateau(at_most="9 steps", window=2, patience=1, min_improvement=0.9)
    curriculum = extraction(total="14 steps", durations=(rule,))
    seen: list[Record] = []
    live = bound(curriculum)
    execute(live, judge, metric="none", outputs=Outputs(observers=(seen.append,)))
    assert [one.done for one in seen if isinstance(one, StageEndRecord)] == [4]
    # The logits are then read at steps 4 to 8, which are none of their stage as planned.
    capture([bound(curriculum)], tmp_path, compression=EXACT)
    stored = bound(curriculum, teacher=open_targets(tmp_path))
    assert torch.equal(trained(stored), weights(live))
