"""Stored targets among processes: one writes, any number read, and a kill costs little."""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from curricle.curriculum.stages import Curriculum, Stage
from curricle.errors import CheckpointError
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.store.codecs import Int8, Sampled
from curricle.teachers.store.manifest import read_manifest
from curricle.teachers.store.target_sets import open_store
from curricle.teachers.stored import open_targets
from curricle.training.targets.capture import TargetCompression, capture
from tests.parts import bound, stored_target

pytestmark = pytest.mark.integration
SPAWN = multiprocessing.get_context("spawn")
STEPS = 6
STATES = MatchHidden(pair=LayerPair(student=1, teacher=1))
# Every batch is a file, so that a kill finds some written and some not.
CODECS = TargetCompression(hidden=Int8(), logits=Sampled(), shard_bytes=1)
Numbers = list[np.ndarray]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=SPAWN) as found:
        yield found


def staged(*objectives: MatchHidden | MatchLogits) -> Curriculum:
    stage = Stage(name="only", duration=f"{STEPS} steps", objectives=objectives)
    return Curriculum(name="own", stages=(stage,))


BOTH = staged(STATES, MatchLogits())


def captured_slowly(folder: Path, begun: Path, may_end: Path) -> None:
    """Capture, but stop after the third step until that is allowed."""

    def watch(done: int, total: int) -> None:
        if done == 3:
            begun.touch()
            wait_for(may_end)

    capture([bound(BOTH)], folder, compression=CODECS, watch=watch)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} has not come"
        time.sleep(0.01)


def read(
    folder: Path, rank: int = 0, world: int = 1, chosen: Curriculum = BOTH
) -> dict[int, Numbers]:
    """Return the targets of every so many batches, as one of several readers."""
    run = bound(chosen, teacher=open_targets(folder), seed=rank)
    return {
        step: [
            one
            for number in range(len(run.stages[0].terms))
            for one in numbers(stored_target(run, run.stream.batch(step), number))
        ]
        for step in range(rank, STEPS, world)
    }


def agree(found: dict[int, Numbers], wanted: dict[int, Numbers]) -> bool:
    return all(
        np.array_equal(*pair)
        for step, each in wanted.items()
        for pair in zip(found[step], each, strict=True)
    )


def numbers(target: object) -> Numbers:
    parts = [target.ids, target.weights] if isinstance(target, SparseTarget) else [target]
    return [np.asarray(part) for part in parts]


def test_readers_of_every_other_batch_get_what_one_reader_gets(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    capture([bound(BOTH)], tmp_path, compression=CODECS)
    alone = read(tmp_path)
    both = [pool.submit(read, tmp_path, rank, 2) for rank in (0, 1)]
    found: dict[int, Numbers] = {}
    for one in both:
        assert len(one.result()) == STEPS // 2
        found |= one.result()
    assert len(alone) == len(found) == STEPS
    assert {len(one) for one in alone.values()} == {3}
    assert agree(found, alone)


def test_of_two_captures_at_once_one_is_refused_and_the_store_is_whole(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    folder, begun, may_end = (tmp_path / name for name in ("store", "begun", "may_end"))
    first = pool.submit(captured_slowly, folder, begun, may_end)
    wait_for(begun)
    with pytest.raises(CheckpointError, match="must have one writer at a time"):
        capture([bound(BOTH)], folder, compression=CODECS)
    may_end.touch()
    first.result()
    assert read_manifest(folder) == capture([bound(BOTH)], tmp_path / "alone", compression=CODECS)
    store = open_store(folder)
    for section in store.manifest.sections:
        store.reader(section).check_content()


def test_a_process_that_is_killed_leaves_what_was_complete_and_lets_others_write(
    tmp_path: Path,
) -> None:
    folder, begun, never = (tmp_path / name for name in ("store", "begun", "never"))
    whole = capture([bound(BOTH)], tmp_path / "whole", compression=CODECS)
    first = staged(STATES)
    capture([bound(first)], folder, compression=CODECS)
    wanted = read(folder, chosen=first)
    writer = SPAWN.Process(target=captured_slowly, args=(folder, begun, never))
    writer.start()
    wait_for(begun)
    assert agree(read(folder, chosen=first), wanted)
    writer.kill()
    writer.join()
    left = read_manifest(folder)
    assert not left.is_complete
    assert len(whole.shards) > len(left.shards) > STEPS
    assert agree(read(folder, chosen=first), wanted)
    again = capture([bound(BOTH)], folder, compression=CODECS)
    assert again.is_complete
    assert sorted(map(str, again.shards)) == sorted(map(str, whole.shards))
