"""The verbs of `curricle targets` from end to end."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.teachers.store.manifest import read_manifest, write_manifest
from tests.parts import stored_rows

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
CHANGES = ("--set", "targets=store", "--set", "data_seed=0", "--set", "output_dir=run")


def test_targets_are_captured_told_verified_and_read(command: Command, parity: Path) -> None:
    assert command("teach", parity, *CHANGES)[0] == 0
    code, shown, _ = command("targets", "capture", parity, *CHANGES)
    assert code == 0
    assert "state: complete" in shown
    assert command("targets", "info", "store")[1] == shown
    code, shown, _ = command("targets", "verify", "store", "--spec", parity, *CHANGES)
    assert code == 0
    assert "100.0% of" in shown
    assert "store: all files intact" in shown
    code, shown, error = command("distill", parity, *CHANGES)
    assert (code, error) == (0, "")
    assert "accuracy" in shown


def test_several_processes_capture_what_one_captures(command: Command, parity: Path) -> None:
    assert command("teach", parity, *CHANGES)[0] == 0
    assert command("targets", "capture", parity, *CHANGES)[0] == 0
    changes = ("--set", "targets=shared", *CHANGES[2:])
    code, shown, error = command("targets", "capture", parity, *changes, "--jobs", 2)
    assert (code, error) == (0, "")
    assert "state: complete" in shown
    assert stored_rows(Path("shared")) == stored_rows(Path("store"))
    code, _, error = command("targets", "capture", parity, *changes, "--num-gpus", 1)
    assert code == 2
    assert "'--num-cpus' and '--num-gpus' must be left out without '--on ray'" in error


def test_masked_texts_are_captured_with_their_tokenizer(command: Command, text: Path) -> None:
    changes = ("--set", "targets=store")
    for line in (("teach",), ("targets", "capture"), ("distill",)):
        code, shown, error = command(*line, text, *changes)
        assert (code, error) == (0, "")
        if "capture" in line:
            assert "tokenizer: none" not in shown
            assert "sampled" in shown
            assert "bfloat16" in shown


def test_a_store_that_is_damaged_ends_with_two(command: Command, parity: Path) -> None:
    command("teach", parity, *CHANGES)
    command("targets", "capture", parity, *CHANGES)
    shard = next(Path("store").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    code, _, error = command("targets", "verify", "store")
    assert code == 2
    assert "is damaged" in error
    code, _, error = command("distill", parity, *CHANGES)
    assert code == 2
    assert "is damaged" in error
    assert "damaged:" not in command("targets", "info", "store")[1]
    shard.write_bytes(bytes(content[:-1]))
    shown = command("targets", "info", "store")[1]
    assert f"the first is {shard.name}; they or manifest.json are of another store or" in shown


def test_lines_of_vllm_become_a_store(command: Command, tmp_path: Path) -> None:
    told = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": {"logprob": -0.1}}]}
    (tmp_path / "told.jsonl").write_text(json.dumps(told))
    code, shown, _ = command("targets", "import", "told.jsonl", "store", "--num-classes", 5)
    assert code == 0
    assert "teacher: unknown" in shown
    code, _, error = command("targets", "import", "told.jsonl", "other", "--missing", "drop")
    assert code == 2
    assert "'--missing' must be 'rest' or 'renormalize'; got 'drop'" in error


def test_a_folder_tells_what_a_capture_that_was_stopped_has_left(
    command: Command, tmp_path: Path
) -> None:
    told = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": {"logprob": -0.1}}]}
    (tmp_path / "told.jsonl").write_text(json.dumps(told))
    command("targets", "import", "told.jsonl", "store", "--num-classes", 5)
    manifest = read_manifest(Path("store"))
    (section,) = manifest.sections
    assert re.search(r"│ yes +│ top_k", command("targets", "info", "store")[1])
    write_manifest(Path("store"), replace(manifest, finished={section.name: 0}))
    shown = command("targets", "info", "store")[1]
    assert "state: incomplete: capturing again continues" in shown
    assert re.search(r"│ no +│ top_k", shown)
    code, shown, _ = command("targets", "verify", "store")
    assert code == 0
    assert shown.splitlines() == [
        "store: all files intact",
        "capture incomplete; run 'curricle targets capture' again to finish it",
    ]
