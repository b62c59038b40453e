"""Captures in shares: together they make the passes, and store the bits, of one process."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricle.curriculum.stages import Curriculum, Stage
from curricle.errors import BindError, CheckpointError
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store import writing
from curricle.teachers.store.codecs import Exact, Sampled
from curricle.teachers.store.manifest import Manifest, read_manifest
from curricle.teachers.stored import open_targets
from curricle.training.binding.bound_run import BoundRun
from curricle.training.targets.capture import TargetCompression, capture
from curricle.training.targets.capture_shares import Share, capture_in_shares, capture_share
from tests.parts import StoredRows, bound, mlp, stored_rows

# Files of a few batches each, so that an interruption leaves some.
COMPRESSION = TargetCompression(hidden=Exact(), logits=Sampled(), shard_bytes=500)
HIDDEN = MatchHidden(pair=LayerPair(student=1, teacher=1))
STEPS = 12


def staged(*objectives: MatchHidden | MatchLogits) -> Curriculum:
    stage = Stage(name="stage", duration=f"{STEPS} steps", objectives=objectives)
    return Curriculum(name="curriculum", stages=(stage,))


def parity_run(teacher_seed: int = 1, **fields: Any) -> BoundRun:
    """Return a run over 12 batches of (8,2)-parity, among whose examples are repetitions."""
    teacher = LiveTeacher(mlp(16, 12, seed=teacher_seed))
    return bound(staged(HIDDEN, MatchLogits()), teacher=teacher, **fields)


def captured_shares(
    folder: Path, shares: list[Share], make_run: Callable[[], BoundRun] = parity_run
) -> None:
    for share in shares:
        capture_share([make_run()], folder, share, compression=COMPRESSION)


def in_shares(folder: Path, capture_all: Callable[[], None]) -> Manifest:
    return capture_in_shares(
        [parity_run()], folder, lambda _: capture_all(), compression=COMPRESSION
    )


def all_shares(count: int) -> list[Share]:
    return [Share(number=number, count=count) for number in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> StoredRows:
    folder = tmp_path_factory.mktemp("alone")
    capture([parity_run()], folder, compression=COMPRESSION)
    rows = stored_rows(folder)
    assert all(len(entries) == 1 for entries in rows.values())
    # Two kinds of targets of 12 batches of 8 examples, without repetitions.
    assert 2 * STEPS * 4 < len(rows) < 2 * STEPS * 8
    return rows


@settings(max_examples=10)
@given(data=st.data(), count=st.integers(1, 5))
def test_shares_in_any_order_store_what_one_process_stores(
    alone: StoredRows, data: st.DataObject, count: int
) -> None:
    shares = data.draw(st.permutations(all_shares(count)))
    with TemporaryDirectory() as name:
        folder = Path(name)
        manifest = in_shares(folder, partial(captured_shares, folder, shares))
        assert manifest.is_complete
        assert manifest == read_manifest(folder)
        assert stored_rows(folder) == alone
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []


def test_each_pass_of_the_teacher_is_made_by_one_share(tmp_path: Path) -> None:
    passes: list[int] = []

    def counting_run() -> BoundRun:
        run = parity_run()
        assert isinstance(run.teacher, LiveTeacher)
        run.teacher.model.module.register_forward_hook(lambda *_: passes.append(1))
        return run

    capture([counting_run()], tmp_path / "alone", compression=COMPRESSION)
    # One batch has repeated examples only.
    assert len(passes) == STEPS - 1
    counts = []

    def capture_all() -> None:
        for share in all_shares(3):
            passes.clear()
            captured_shares(tmp_path / "store", [share], counting_run)
            counts.append(len(passes))

    in_shares(tmp_path / "store", capture_all)
    assert counts == [4, 4, 3]


def test_an_interrupted_share_continues_after_its_last_file(
    alone: StoredRows, tmp_path: Path
) -> None:
    share = Share(number=1, count=2)
    passes: list[int] = []

    def stop(done: int, _total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    def capture_all() -> None:
        captured_shares(tmp_path, [Share(number=0, count=2)])
        with pytest.raises(KeyboardInterrupt):
            capture_share([parity_run()], tmp_path, share, compression=COMPRESSION, watch=stop)
        assert read_manifest(share.folder(tmp_path)).shards
        run = parity_run()
        assert isinstance(run.teacher, LiveTeacher)
        run.teacher.model.module.register_forward_hook(lambda *_: passes.append(1))
        captured_shares(tmp_path, [share], lambda: run)

    in_shares(tmp_path, capture_all)
    assert stored_rows(tmp_path) == alone
    assert 0 < len(passes) < STEPS // 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_next_capture_takes_the_files_of_an_interrupted_one(
    alone: StoredRows, tmp_path: Path, count: int
) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    def capture_all() -> None:
        captured_shares(tmp_path, [Share(number=2, count=3)])
        capture_share(
            [parity_run()],
            tmp_path,
            Share(number=0, count=3),
            compression=COMPRESSION,
            watch=stop,
        )

    with pytest.raises(KeyboardInterrupt):
        in_shares(tmp_path, capture_all)
    assert not read_manifest(tmp_path).is_complete
    if count == 1:
        capture([parity_run()], tmp_path, compression=COMPRESSION)
    else:
        in_shares(tmp_path, partial(captured_shares, tmp_path, all_shares(count)))
    assert read_manifest(tmp_path).is_complete
    assert stored_rows(tmp_path) == alone
    assert not (tmp_path / "shares").exists()


def test_a_kill_before_shares_are_removed_stores_nothing_twice(
    alone: StoredRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            in_shares(tmp_path, partial(captured_shares, tmp_path, all_shares(2)))
    capture([parity_run()], tmp_path, compression=COMPRESSION)
    assert stored_rows(tmp_path) == alone
    assert not (tmp_path / "shares").exists()


def test_a_kill_before_the_manifest_lists_files_of_shares_replaces_them(
    alone: StoredRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_folder: Path, _manifest: Manifest) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            in_shares(tmp_path, partial(captured_shares, tmp_path, all_shares(2)))
    unlisted = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert unlisted
    assert read_manifest(tmp_path).shards == ()
    capture([parity_run()], tmp_path, compression=COMPRESSION)
    assert stored_rows(tmp_path) == alone
    listed = [shard.file for shard in read_manifest(tmp_path).shards]
    assert sorted(listed) == sorted(path.name for path in tmp_path.glob("*.safetensors"))


def test_shares_add_to_a_store(alone: StoredRows, tmp_path: Path) -> None:
    capture([bound(staged(HIDDEN))], tmp_path, compression=COMPRESSION)
    in_shares(tmp_path, partial(captured_shares, tmp_path, all_shares(2)))
    assert stored_rows(tmp_path) == alone


def test_shares_of_another_teacher_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def capture_all() -> None:
        # As if the manifest had been lost between two captures.
        (folder / "manifest.json").unlink()
        captured_shares(folder, all_shares(1), partial(parity_run, 2))

    with pytest.raises(CheckpointError, match=r"0-of-1' must hold targets of this teacher 'final'"):
        in_shares(folder, capture_all)


def test_a_damaged_share_is_named(tmp_path: Path) -> None:
    def capture_all() -> None:
        captured_shares(tmp_path, all_shares(1))
        path = next(all_shares(1)[0].folder(tmp_path).glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    with pytest.raises(CheckpointError, match=r"0-of-1/.*safetensors' must have the SHA-256"):
        in_shares(tmp_path, capture_all)


def test_a_run_without_a_live_teacher_has_no_shares(tmp_path: Path) -> None:
    capture([parity_run()], tmp_path / "store", compression=COMPRESSION)
    stored = bound(staged(HIDDEN, MatchLogits()), teacher=open_targets(tmp_path / "store"))
    with pytest.raises(BindError, match="'teacher' must be a model to capture its targets"):
        capture_share([stored], tmp_path / "other", all_shares(1)[0], compression=COMPRESSION)
