"""Token stores on disk."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.text.token_store import (
    Vocabulary,
    open_store,
    read_manifest,
    remove_leftovers,
    require_digest,
    write_folder,
    write_store,
)
from curricle.errors import CheckpointError, DataError, SpecError
from curricle.values import Plain

VOCABULARY = Vocabulary(size=10, special=(0, 1), mask=1)
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def written(folder: Path) -> Path:
    write_store(folder / "store", [TOKENS[:3], TOKENS[3:]], VOCABULARY)
    return folder / "store"


def change_manifest(folder: Path, **fields: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    store = open_store(written(tmp_path))
    assert store.tokens.tolist() == TOKENS.tolist()
    assert store.vocabulary == VOCABULARY


def test_tokens_are_mapped_from_disk(tmp_path: Path) -> None:
    assert isinstance(open_store(written(tmp_path)).tokens, np.memmap)


@pytest.mark.parametrize(("size", "num_bytes"), [(65_536, 2), (65_537, 4)])
def test_a_token_takes_two_bytes_if_the_vocabulary_allows(
    tmp_path: Path, size: int, num_bytes: int
) -> None:
    write_store(tmp_path / "store", [np.array([size - 1])], Vocabulary(size=size))
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == num_bytes
    assert open_store(tmp_path / "store").tokens.tolist() == [size - 1]


def test_a_store_without_tokens_can_be_read(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [], VOCABULARY)
    assert open_store(tmp_path / "store").tokens.size == 0


@pytest.mark.parametrize("place", range(len(TOKENS)))
def test_the_fingerprint_depends_on_every_token(place: int, tmp_path: Path) -> None:
    other = TOKENS.copy()
    other[place] = 7
    write_store(tmp_path / "other", [other], VOCABULARY)
    assert open_store(tmp_path / "other").fingerprint != open_store(written(tmp_path)).fingerprint


def test_the_fingerprint_depends_on_the_vocabulary_and_not_on_the_pieces(tmp_path: Path) -> None:
    write_store(tmp_path / "same", [TOKENS], VOCABULARY)
    write_store(tmp_path / "other", [TOKENS], Vocabulary(size=10, special=(0,), mask=1))
    same, other = (open_store(tmp_path / name).fingerprint for name in ("same", "other"))
    assert open_store(written(tmp_path)).fingerprint == same != other


@pytest.mark.parametrize("outside", [10, -1])
def test_ids_outside_the_vocabulary_are_refused(outside: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'tokens' must lie between 0 and .* 9; got .*(10|-1)"):
        write_store(tmp_path / "store", [np.array([0, outside])], VOCABULARY)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'tokens' must lie"):
        write_store(tmp_path / "store", [TOKENS, np.array([10])], VOCABULARY)
    assert not list(tmp_path.iterdir())


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    written(tmp_path)
    write_store(tmp_path / "store", [np.array([7])], VOCABULARY)
    assert open_store(tmp_path / "store").tokens.tolist() == TOKENS.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_foreign_folder_in_the_way_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").touch()

    def fill(_: Path) -> Plain:
        return {}

    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "store", fill)


def test_a_store_without_manifest_is_refused_by_name(tmp_path: Path) -> None:
    (written(tmp_path) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json' cannot be read as a manifest"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize("content", ["{oops", "\x00"])
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (written(tmp_path) / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"manifest.json' cannot be read as a manifest"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize(("content", "found"), [('{"format": 99}', "99"), ("[]", r"\[\]")])
def test_another_format_is_refused(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"must have format 1; got {found}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("fields", [{"tokens": "many"}, {"vocabulary": {"size": "x"}}])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, fields: Plain) -> None:
    change_manifest(written(tmp_path), **fields)
    with pytest.raises(CheckpointError, match="does not describe a token store"):
        open_store(tmp_path / "store")


def test_a_cut_token_file_is_refused_with_its_size(tmp_path: Path) -> None:
    path = written(tmp_path) / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=r"tokens.bin' must hold 16 bytes .*; got 14"):
        open_store(tmp_path / "store")


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    (written(tmp_path) / "tokens.bin").unlink()
    with pytest.raises(CheckpointError, match=r"tokens.bin' must hold 16 bytes .*; got 0"):
        open_store(tmp_path / "store")


@given(place=st.integers(0, 15))
def test_one_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int) -> None:
    folder = written(tmp_path_factory.mktemp("damaged"))
    content = bytearray((folder / "tokens.bin").read_bytes())
    content[place] ^= 1
    (folder / "tokens.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokens.bin' is damaged: its SHA-256 must be"):
        open_store(folder)


def test_a_missing_file_is_refused_before_its_digest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must exist by its manifest; there is none"):
        require_digest(tmp_path / "missing", "")


@pytest.mark.parametrize("fields", [{"special": (4,)}, {"mask": 4}, {"special": (-1,)}])
def test_named_ids_must_exist(fields: Plain) -> None:
    with pytest.raises(SpecError, match=r"must be ids below the size 4; got (4|-1)"):
        Vocabulary(size=4, **fields)


def test_a_vocabulary_of_special_tokens_alone_is_refused() -> None:
    with pytest.raises(SpecError, match="'size' must leave an id that is not special; got 2"):
        Vocabulary(size=2, special=(0,), mask=1)


def unfinished(parent: Path, *, seconds_old: float = 60) -> Path:
    """Return what a process leaves that is killed while it writes a store."""
    folder = parent / ".store-x"
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "tokens.bin").write_bytes(b"half")
    (folder / "lock").touch()
    then = time.time() - seconds_old
    os.utime(folder / "lock", (then, then))
    return folder


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = unfinished(tmp_path)
    remove_leftovers(tmp_path)
    assert not folder.exists()


def test_what_another_process_still_writes_stays(tmp_path: Path) -> None:
    folder = unfinished(tmp_path)
    with FileLock(folder / "lock", is_singleton=False):
        remove_leftovers(tmp_path)
    assert (folder / "new" / "tokens.bin").read_bytes() == b"half"


def test_what_was_just_begun_stays(tmp_path: Path) -> None:
    folder = unfinished(tmp_path, seconds_old=0)
    remove_leftovers(tmp_path)
    assert folder.is_dir()


def test_a_link_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "elsewhere")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".store-y").symlink_to(folder)
    remove_leftovers(tmp_path / "cache")
    assert (folder / "new" / "tokens.bin").is_file()


def test_hidden_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "lock").touch()
    os.utime(tmp_path / ".git" / "lock", (0, 0))
    remove_leftovers(tmp_path)
    assert (tmp_path / ".git" / "lock").is_file()


def test_a_store_is_locked_while_it_is_written(tmp_path: Path) -> None:
    def fill(building: Path) -> Plain:
        lock = building.parent / "lock"
        with pytest.raises(Timeout):
            FileLock(lock, blocking=False, is_singleton=False).acquire()
        return {}

    write_folder(tmp_path / "store", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
