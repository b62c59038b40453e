"""Inputs that atheris draws by the code that they reach, read as the command line reads them.

    pip install atheris
    OMP_NUM_THREADS=1 python -m tests.soak.guided specs -runs=20000

`tests.soak.fuzz` mutates whole files by hand; here bytes are mutated so that further branches of
curricle are reached. A first file of each kind is the seed. Whatever is no error of curricle, or
has a sentence that a terminal cannot show, ends the series with exit code 77, and its input is
written to `crash-...` in the present folder. Options with one dash are those of libFuzzer.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris
import yaml

with atheris.instrument_imports(include=["curricle"]):
    from curricle.checksums import LineChain
    from curricle.errors import CurricleError
    from curricle.records import EndRecord, StageRecord, Usage, read_records
    from curricle.runs.spec import load_spec
    from curricle.tasks import TextTask
    from curricle.teachers.store.manifest import MANIFEST, Shard, read_manifest
    from curricle.teachers.store.shards import open_shard
    from curricle.values import plain
from tests.soak.jobs import COMPARISON

Read = Callable[[Path], object]
LONGEST_SENTENCE = 1500


def _read_corpus(path: Path) -> None:
    task = TextTask(
        corpus=str(path), vocabulary_size=270, window=8, batch_size=2, evaluation_batches=1
    )
    with tempfile.TemporaryDirectory() as cache:
        task.open(seed=0, cache_dir=Path(cache)).stream.batch(0)


def _read_shard(path: Path) -> None:
    shard = Shard(
        file=path.name, section="x", examples=1, rows=1, size=path.stat().st_size, sha256="x"
    )
    open_shard(path.parent, shard)


def _records() -> bytes:
    chain = LineChain()
    records = (
        StageRecord(stage="logits", usage=Usage()),
        EndRecord(metrics={"accuracy": 0.5}, usage=Usage(steps=2)),
    )
    return b"".join(chain.line(plain(record)) for record in records)


KINDS: dict[str, tuple[str, Callable[[], bytes], Read]] = {
    "specs": ("spec.yaml", lambda: yaml.safe_dump(COMPARISON).encode(), load_spec),
    "records": ("records.jsonl", _records, lambda path: list(read_records(path))),
    "manifests": (
        MANIFEST,
        lambda: json.dumps({"format": 1, "sections": [], "shards": []}).encode(),
        lambda path: read_manifest(path.parent),
    ),
    "stores": (
        "shard.safetensors",
        lambda: (2).to_bytes(8, "little") + b"{}",
        _read_shard,
    ),
    "corpora": ("corpus.txt", lambda: b"the quick brown fox\n" * 40, _read_corpus),
}
"""File name, seed and reader of each kind."""


def main() -> None:
    """Read inputs of the kind in the first argument."""
    kind, *options = sys.argv[1:] or [""]
    if kind not in KINDS:
        raise SystemExit(f"the first argument must be one of {', '.join(KINDS)}; got {kind!r}")
    name, seed, read = KINDS[kind]
    folder = Path(tempfile.mkdtemp(prefix="guided-"))
    (folder / "seeds").mkdir()
    (folder / "seeds" / "first").write_bytes(seed())
    path = folder / name

    def look(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except CurricleError as error:
            sentence = " ".join(str(error).split())
            if not sentence.isprintable() or not 0 < len(sentence) <= LONGEST_SENTENCE:
                raise RuntimeError(f"a sentence must be printable: {sentence!r}") from error

    atheris.Setup([sys.argv[0], *options, str(folder / "seeds")], look)
    with suppress(KeyboardInterrupt):
        atheris.Fuzz()


if __name__ == "__main__":
    main()
