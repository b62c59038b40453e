"""Files that curricle reads, how their mutations are made, and the functions that read them.

Each surface starts from files that a real run has written, or from the shipped recipes. Its reader
is what the command line calls, without starting a training.
"""

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from curricle.errors import CurricleError
from tests.soak.jobs import JOBS
from tests.soak.mutations import TEXTS, finished_text, mutated_bytes, mutated_tree

REPOSITORY = Path(__file__).parents[2]
BOUND = 0.5
"""Share of the accepted parity specs that are also bound, which takes a tenth of a second."""
PAGES = 0.04
"""Share of the records of which a page is made, which takes a second."""
CANARY = "outside.safetensors"
"""Copy of a shard beside the target store, which nothing in the store may lead to."""
Make = Callable[[Path, np.random.Generator], Path]
Read = Callable[[Path, Path, np.random.Generator], None]
"""Reads the copy, of which one file is mutated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One kind of file and its reader."""

    name: str
    share: float
    """Part of all inputs."""
    make: Make
    """Writes a mutated file into a copy of the sources and returns its path."""
    read: Read


UNCHECKED = "unchecked"
"""The same run with records as version 0.1 wrote them. Behind a check a mutation is just damage."""


class EscapedError(Exception):
    """A file outside the folder was read."""


def write_sources(folder: Path, run: Path, stored: Path) -> None:
    """Collect the files from which inputs are made.

    Args:
        folder: Where they are put.
        run: Folder of a finished comparison, with its spec.
        stored: Folder of a finished run with stored targets.
    """
    shutil.copytree(run / "run", folder / "run")
    shutil.copytree(run / "run", folder / UNCHECKED)
    _remove_checks(folder / UNCHECKED)
    shutil.copytree(stored / "targets", folder / "targets")
    shutil.copytree(stored / "run", folder / "stored")
    shard = next(iter(sorted((folder / "targets").glob("*.safetensors"))))
    shutil.copyfile(shard, folder / CANARY)
    specs = [yaml.safe_load(path.read_text()) for path in sorted(REPOSITORY.glob("recipes/*.yaml"))]
    specs += [job.spec for job in JOBS]
    (folder / "specs.json").write_text(json.dumps(specs))
    lines = ["the quick brown fox jumps over the lazy dog", "", "zwölf Boxkämpfer <unk> jagen"]
    (folder / "corpus.txt").write_text("\n".join(lines * 30) + "\n")
    documents = [json.dumps({"text": line}) for line in lines]
    (folder / "corpus.jsonl").write_text("\n".join(documents * 30) + "\n")


def _remove_checks(run: Path) -> None:
    for path in run.rglob("records.jsonl"):
        path.write_bytes(re.sub(rb', "check": "[0-9a-f]+"\}', b"}", path.read_bytes()))
        (path.parent / "manifest.json").unlink(missing_ok=True)


def _mutated_document(data: Any, generator: np.random.Generator) -> bytes:
    """Return a JSON object of which one place is changed, with the check that then fits."""
    return _checked(mutated_tree(data, generator, is_yaml=False))


def _checked(data: Any) -> bytes:
    """Return a JSON object with its check, computed here so that earlier versions can be tested."""
    if not isinstance(data, dict):
        return json.dumps(data).encode()
    data.pop("check", None)
    check = hashlib.sha256(json.dumps(data, indent=1).encode()).hexdigest()[:16]
    text = json.dumps({**data, "check": check}, indent=1) + "\n"
    return finished_text(text, is_yaml=False).encode()


def _mutated_file(data: Any, generator: np.random.Generator, *, is_yaml: bool) -> bytes:
    """Return plain data as a text of which one to three places are changed."""
    changes, in_bytes = int(generator.integers(1, 4)), generator.random() < 0.3
    for _ in range(changes - in_bytes):
        data = mutated_tree(data, generator, is_yaml=is_yaml)
    in_blocks = is_yaml and generator.random() < 0.6
    text = yaml.safe_dump(data, sort_keys=False) if in_blocks else json.dumps(data, indent=1)
    written = finished_text(text, is_yaml=is_yaml).encode("utf-8", errors="surrogatepass")
    return mutated_bytes(written, generator) if in_bytes else written


def _make_spec(folder: Path, generator: np.random.Generator) -> Path:
    specs = json.loads((folder / "specs.json").read_text())
    spec = specs[generator.integers(len(specs))]
    path = folder / "spec.yaml"
    path.write_bytes(_mutated_file(spec, generator, is_yaml=True))
    return path


def _read_spec(folder: Path, path: Path, generator: np.random.Generator) -> None:
    from curricle.runs.spec import load_spec
    from curricle.runs.train import first_runs, rehearse, single_run

    spec = load_spec(path)
    if generator.random() < BOUND and spec.task.kind == "parity":
        rehearse(spec, first_runs(spec) if spec.strategies else [single_run(spec)])


def _make_records(folder: Path, generator: np.random.Generator) -> Path:
    run = ("run", UNCHECKED)[generator.integers(2)]
    paths = sorted((folder / run).rglob("records.jsonl"))
    path = paths[generator.integers(len(paths))]
    lines = path.read_bytes().splitlines(keepends=True)
    place = int(generator.integers(len(lines)))
    record = json.loads(lines[place])
    for _ in range(int(generator.integers(0, 3))):
        record = mutated_tree(record, generator, is_yaml=False)
    text = finished_text(json.dumps(record), is_yaml=False)
    lines[place] = text.encode("utf-8", errors="surrogatepass") + b"\n"
    data = b"".join(lines)
    path.write_bytes(mutated_bytes(data, generator) if generator.random() < 0.4 else data)
    return path


def _read_records(folder: Path, path: Path, generator: np.random.Generator) -> None:
    from curricle.reports.headline import headline
    from curricle.reports.tables import summary_table
    from curricle.runs.report import summarized, write_report

    run = folder / path.relative_to(folder).parts[0]
    if generator.random() < PAGES:
        write_report([run], run / "report.html")
    else:
        _, summary = summarized([run])
        summary_table(summary)
        headline(summary)


MANIFESTS = (
    "run/teacher/trajectory/manifest.json",
    "run/run.json",
    "run/teacher/taught.json",
    "run/spec.yaml",
    "run/teacher/checkpoints/*/state.json",
    "targets/manifest.json",
    "targets/manifest.json",
    "stored/checkpoints/*/state.json",
)


def _make_manifest(folder: Path, generator: np.random.Generator) -> Path:
    pattern = MANIFESTS[generator.integers(len(MANIFESTS))]
    path = sorted(folder.glob(pattern))[0]
    text = path.read_text()
    is_yaml = path.suffix == ".yaml"
    data = yaml.safe_load(text) if is_yaml else json.loads(text)
    if path.parent.name == "targets" and generator.random() < 0.1:
        # The canary is a copy of the first, so nothing but its place is wrong.
        first = min(data["shards"], key=lambda shard: str(shard["file"]))
        first["file"] = f"../{CANARY}"
        path.write_bytes(_checked(data) if "check" in data else json.dumps(data).encode())
    elif "check" in data and generator.random() < 0.5:
        path.write_bytes(_mutated_document(data, generator))
    else:
        path.write_bytes(_mutated_file(data, generator, is_yaml=is_yaml))
    return path


def _read_manifest(folder: Path, path: Path, generator: np.random.Generator) -> None:
    """Read all manifests in turn; the errors of one do not hide those of the others."""
    first: CurricleError | None = None
    for read in (_read_run, _read_states, _read_targets):
        try:
            read(folder)
        except CurricleError as error:
            first = first or error
    if first is not None:
        raise first


def _read_run(folder: Path) -> None:
    from curricle.runs.folder import is_claimed, read_origin, stored_spec
    from curricle.teachers.trajectory import open_trajectory

    open_trajectory(folder / "run" / "teacher" / "trajectory")
    read_origin(folder / "run")
    is_claimed(stored_spec(folder / "run"))


def _read_states(folder: Path) -> None:
    from curricle.training.loop.checkpoints import latest_checkpoint, read_state

    for run in (folder / "run" / "teacher", folder / "stored"):
        checkpoint = latest_checkpoint(run / "checkpoints")
        if checkpoint is not None:
            read_state(checkpoint)


def _read_targets(folder: Path) -> None:
    from curricle.runs.target_folder import describe_targets, verify_targets
    from curricle.teachers.store.manifest import read_manifest

    manifest = read_manifest(folder / "targets")
    describe_targets(manifest)
    verify_targets(folder / "targets")
    if any(CANARY in shard.file for shard in manifest.shards):
        raise EscapedError(f"{CANARY!r} was read")


def _make_corpus(folder: Path, generator: np.random.Generator) -> Path:
    suffix = (".txt", ".jsonl")[generator.integers(2)]
    data = (folder / f"corpus{suffix}").read_bytes()
    for _ in range(int(generator.integers(1, 4))):
        data = mutated_bytes(data, generator)
    if suffix == ".jsonl" and generator.random() < 0.5:
        data = _with_document(data, generator)
    if generator.random() < 0.3:
        data, suffix = gzip.compress(data, mtime=0), f"{suffix}.gz"
        data = mutated_bytes(data, generator) if generator.random() < 0.5 else data
    path = folder / f"input{suffix}"
    path.write_bytes(data)
    return path


def _with_document(data: bytes, generator: np.random.Generator) -> bytes:
    """Return JSON lines with a strange document among them."""
    document = {"text": TEXTS[generator.integers(len(TEXTS))]}
    if generator.random() < 0.5:
        document = mutated_tree(document, generator, is_yaml=False)
    text = finished_text(json.dumps(document), is_yaml=False)
    lines = data.splitlines(keepends=True)
    place = int(generator.integers(len(lines) + 1))
    line = text.encode("utf-8", errors="surrogatepass") + b"\n"
    return b"".join([*lines[:place], line, *lines[place:]])


def _read_corpus(folder: Path, path: Path, generator: np.random.Generator) -> None:
    from curricle.tasks import TextTask

    task = TextTask(
        corpus=str(path), vocabulary_size=270, window=8, batch_size=2, evaluation_batches=1
    )
    data = task.open(seed=0, cache_dir=folder / "cache")
    data.stream.batch(0)


SURFACES = (
    Surface(name="specs", share=0.4, make=_make_spec, read=_read_spec),
    Surface(name="records", share=0.2, make=_make_records, read=_read_records),
    Surface(name="manifests", share=0.2, make=_make_manifest, read=_read_manifest),
    Surface(name="corpora", share=0.2, make=_make_corpus, read=_read_corpus),
)
