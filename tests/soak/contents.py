"""What a command leaves behind, reduced to what must not depend on whether it was disturbed.

Weights, trajectories, stored targets and measured numbers must be equal bit by bit. Seconds differ
between any two runs and are left out, and with them the hashes of files that hold seconds; of
pages and pictures only the existence counts.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from curricle.teachers.store.manifest import MANIFEST, read_manifest
from tests.parts import stored_rows

Contents = dict[str, str]
"""A digest, or the word `exists`, by the path in the folder."""
EXISTS = "exists"
VALUES = ("manifest.json", "summary.json")
LINES = ("records.jsonl", "points.jsonl", "probes.jsonl")
LOCKS = (".lock", ".lock-owner")
"""Ends of the names of files that any command may leave, and that hold no result."""
TIMED = ("records.jsonl", "state.json")
"""Files with seconds in them, whose size and hash differ between any two runs."""


def contents(folder: Path, *, divides_targets: bool = False) -> Contents:
    """Return what lies below a folder by path; locks are left out.

    Args:
        folder: The folder.
        divides_targets: Whether targets were captured in shares. Which of its files holds an
            example then depends on interruptions, so the rows of each example are compared instead.
    """
    found = {str(path.relative_to(folder)): _digest(path) for path in files_below(folder)}
    manifests = [path for path in folder.rglob(MANIFEST) if divides_targets]
    for store in {path.parent for path in manifests if "shards" in json.loads(path.read_text())}:
        manifest, rows = read_manifest(store), stored_rows(store)
        name = str(store.relative_to(folder))
        for file in (MANIFEST, *(shard.file for shard in manifest.shards)):
            found.pop(f"{name}/{file}")
        digest = hashlib.sha256(repr(sorted(rows.items())).encode()).hexdigest()
        found[f"{name} rows"] = f"{digest}, complete: {manifest.is_complete}"
    return found


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder but locks."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(LOCKS)
    ]


def differences(found: Contents, reference: Contents) -> dict[str, list[str]]:
    """Return paths that are missing, differ or are too many; empty if both are equal."""
    changed = [path for path in found.keys() & reference.keys() if found[path] != reference[path]]
    kinds = {
        "lost": sorted(reference.keys() - found.keys()),
        "different": sorted(changed),
        "leftover": sorted(found.keys() - reference.keys()),
    }
    return {kind: paths for kind, paths in kinds.items() if paths}


def without_seconds(data: Any) -> Any:
    """Return plain data without what depends on how long something took."""
    if isinstance(data, dict):
        return {
            name: EXISTS if name in TIMED else without_seconds(child)
            for name, child in data.items()
            if "seconds" not in name and name != "check"
        }
    return [without_seconds(child) for child in data] if isinstance(data, list) else data


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    try:
        if path.name in VALUES:
            return json.dumps(without_seconds(json.loads(data)), sort_keys=True)
        if path.name in LINES:
            return json.dumps([without_seconds(json.loads(line)) for line in data.splitlines()])
    except ValueError:
        return hashlib.sha256(data).hexdigest()
    return EXISTS
