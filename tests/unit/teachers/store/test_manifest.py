"""The manifest of stored targets: it comes back as it was, and damage is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.checksums import write_sealed
from curricle.errors import CheckpointError
from curricle.teachers.store.codecs import BFloat16, Sampled
from curricle.teachers.store.manifest import (
    DRAW,
    MANIFEST,
    DataFacts,
    Manifest,
    Shard,
    TargetSet,
    TeacherFacts,
    missing_files,
    read_manifest,
    write_manifest,
)
from curricle.values import plain

STATES = TargetSet(
    facts={"kind": "hidden", "place": "blocks.0", "projection_seed": 3},
    selected=False,
    codec=BFloat16(),
    width=4,
)
LOGITS = TargetSet(
    reference=40,
    facts={"kind": "logits", "num_classes": 9},
    selected=True,
    codec=Sampled(),
    width=9,
)
WHOLE = Manifest(
    teacher=TeacherFacts(weights={"final": "ab"}, taps=("a", "b"), parameters=5),
    data=DataFacts(name="text", fingerprint="cd", tokenizer="ef"),
    sections=(STATES, LOGITS),
    shards=(
        Shard(file="a", section=STATES.name, examples=2, rows=6, size=99, sha256="01"),
        Shard(file="b", section=LOGITS.name, examples=1, rows=1, size=9, sha256="02"),
    ),
)


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    write_manifest(tmp_path, WHOLE)
    assert read_manifest(tmp_path) == WHOLE


def test_a_section_knows_its_files() -> None:
    assert [one.file for one in WHOLE.of(LOGITS)] == ["b"]
    assert WHOLE.target_set(LOGITS.name) == LOGITS
    assert WHOLE.target_set("other") is None


def test_a_section_that_was_finished_stays_readable_but_more_files_want_an_end() -> None:
    one = WHOLE.with_finished([STATES])
    assert [one.is_readable(section) for section in (STATES, LOGITS)] == [True, False]
    both = one.with_finished([LOGITS])
    assert [one.is_complete, both.is_complete] == [False, True]
    more = both.with_shard(replace(WHOLE.shards[0], file="c"))
    assert more.is_readable(STATES)
    assert [more.is_complete, more.with_finished([STATES]).is_complete] == [False, True]


def test_other_targets_have_another_name() -> None:
    others = [
        replace(STATES, reference=40),
        replace(STATES, selected=True),
        replace(STATES, facts=STATES.facts | {"place": "blocks.1"}),
    ]
    assert len({one.name for one in (STATES, *others)}) == 4


def test_another_draw_serves_where_it_may() -> None:
    wanted = STATES.facts | {"projection_seed": 4}
    assert STATES.matches("final", wanted, but=(DRAW,))
    assert not STATES.matches("final", wanted)
    assert not STATES.matches(40, wanted, but=(DRAW,))
    assert not STATES.matches("final", wanted | {"place": "other"}, but=(DRAW,))


def test_more_files_do_not_change_what_targets_depend_on() -> None:
    more = replace(WHOLE, shards=(), finished={STATES.name: 0})
    assert more.fingerprint(WHOLE.sections) == WHOLE.fingerprint(WHOLE.sections)


def test_a_digest_is_of_what_is_read() -> None:
    one, both = WHOLE.fingerprint([STATES]), WHOLE.fingerprint([STATES, LOGITS])
    assert len({one, both, WHOLE.fingerprint([LOGITS])}) == 3
    assert WHOLE.fingerprint([LOGITS, STATES, LOGITS]) == both
    weights = {"final": "ab", "40": "cd"}
    more = replace(WHOLE, teacher=replace(WHOLE.teacher, weights=weights), sections=(STATES,))
    assert more.fingerprint([STATES]) == one
    assert more.fingerprint([LOGITS]) != WHOLE.fingerprint([LOGITS])
    other = replace(WHOLE, teacher=replace(WHOLE.teacher, weights={"final": "cd"}))
    assert other.fingerprint([STATES]) != one


@pytest.mark.parametrize(
    "text",
    [
        *(None, "no json", "[]", json.dumps({"format": 2})),
        *(json.dumps({"sections": value}) for value in (3, None, ["x"], [{"codec": "x"}])),
    ],
)
def test_a_folder_without_a_whole_manifest_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="must describe stored targets"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", "a/b", ".."])
def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    write_manifest(tmp_path, replace(WHOLE, shards=(replace(WHOLE.shards[0], file=file),)))
    with pytest.raises(CheckpointError, match=r"must list plain names of files inside it; got "):
        read_manifest(tmp_path)


def test_a_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, WHOLE)
    (tmp_path / "a").symlink_to(tmp_path.parent)
    with pytest.raises(CheckpointError, match=r"/a' must be a file of its folder; it is a symbol"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999])
def test_a_flipped_bit_is_noticed(tmp_path: Path, place: float) -> None:
    write_manifest(tmp_path, WHOLE)
    content = bytearray((tmp_path / MANIFEST).read_bytes())
    content[int(place * len(content))] ^= 2
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.json' must describe stored targets"):
        read_manifest(tmp_path)


def test_a_manifest_of_an_earlier_version_has_no_check(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(plain(WHOLE)))
    assert read_manifest(tmp_path) == WHOLE


@pytest.mark.parametrize("facts", [{}, {"kind": 3}, {"kind": "../x"}])
def test_targets_without_a_kind_are_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    document = plain(WHOLE)
    document["sections"][0]["facts"] = facts
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"'facts' of stored targets must have a 'kind' such"):
        read_manifest(tmp_path)


def test_missing_and_cut_files_are_found_without_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(99))
    (tmp_path / "b").write_bytes(bytes(8))
    assert missing_files(tmp_path, WHOLE) == ["b"]
    (tmp_path / "a").unlink()
    assert missing_files(tmp_path, WHOLE) == ["a", "b"]


def test_the_former_name_of_the_number_of_samples_is_read(tmp_path: Path) -> None:
    content = json.loads(json.dumps(plain(WHOLE)))
    codec = content["sections"][1]["codec"]
    codec["draws"] = codec.pop("num_samples")
    write_sealed(tmp_path / MANIFEST, content)
    assert read_manifest(tmp_path) == WHOLE
