"""Folders of checkpoints of a teacher: steps in their names, and whether each can be read.

Trainers name the checkpoints of a model by the step: `checkpoint-1000` (transformers), `step1000`
(revisions of Pythia and others), `chck_10M` (words read, BabyLM). The folders lie beside each
other, or as revisions in the Hub's cache. `inspect` reads the heads of all weights files and
compares names and shapes, without a model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, final

import safetensors

from curricle.curriculum.durations import SUFFIXES
from curricle.errors import CheckpointError, reason
from curricle.files import content_digest
from curricle.teachers.pretrained import pretrained_files
from curricle.yaml_specs import from_json

TRAINER_STATE = "trainer_state.json"
TOKENIZER = "tokenizer.json"
REFS, SNAPSHOTS = "refs", "snapshots"
"""Folders of the Hub's cache: the commit of each revision, and the files of each commit."""
LETTERS = {letter.upper(): factor for letter, factor in SUFFIXES.items()} | {"B": 1_000_000_000}
"""Factors of the letters after a number in a name."""
NAMES: Final = (
    re.compile(r"checkpoint-(\d+)()"),
    re.compile(r"step[-_]?(\d+)()"),
    re.compile(r"chck_(\d+)([kKMGB]?)"),
)
"""Names of checkpoints, with number and letter."""
EXAMPLES = "'checkpoint-1000', 'step1000' or 'chck_1M'"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint in a folder, as far as it can be read without a model."""

    step: int
    """Number in its name."""
    path: Path
    """Its folder or file."""
    parameters: int = 0
    """Number of weights in its files."""
    num_bytes: int = 0
    """Bytes of its files."""
    dtype: str = ""
    """Type of its weights."""
    loss: float | None = None
    """Loss on held-out data, in nats, if known."""
    fault: str = ""
    """Sentence about its fault; empty if it has none."""


def in_step_order(folders: Sequence[Path]) -> list[tuple[int, Path]]:
    """Return folders with the steps in their names, ascending.

    Folders whose names do not all follow one pattern keep their order and are numbered from 1.

    Raises:
        CheckpointError: If a step occurs twice.
    """
    for pattern in NAMES:
        matches = [pattern.fullmatch(folder.name) for folder in folders]
        steps = [_number(match) for match in matches if match is not None]
        if len(steps) < len(folders):
            continue
        repeated = sorted({step for step in steps if steps.count(step) > 1})
        if repeated:
            raise CheckpointError(
                f"'folders' must have each step once; got step {repeated[0]} twice"
            )
        return sorted(zip(steps, folders, strict=True))
    # Names without steps define no order, so the user's order stays.
    return list(enumerate(folders, start=1))


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return the steps and folders of the checkpoints in a folder, ascending.

    Args:
        folder: Folder with checkpoints under names with steps, or a model of the Hub's cache
            (`models--OWNER--NAME`) with such revisions.

    Raises:
        CheckpointError: If it holds none, or checkpoints under names of several patterns.
    """
    places = _named_folders(folder)
    found = {
        pattern.pattern: [place for place in places if pattern.fullmatch(place)]
        for pattern in NAMES
    }
    named = [names for names in found.values() if names]
    if len(named) != 1:
        rule = f"must hold checkpoints under names such as {EXAMPLES}"
        what = "none" if not named else f"{named[0][0]!r} beside {named[1][0]!r}"
        raise CheckpointError(f"{str(folder)!r} {rule}, of one kind; got {what}")
    ordered = in_step_order([Path(name) for name in named[0]])
    return [(step, places[name.name]) for step, name in ordered]


def _named_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of checkpoints by name; of the Hub's cache those of its revisions.

    Raises:
        CheckpointError: If there is no such folder.
    """
    refs = folder / REFS
    if refs.is_dir() and (folder / SNAPSHOTS).is_dir():
        commits = {path.name: path.read_text().strip() for path in refs.iterdir() if path.is_file()}
        return {name: folder / SNAPSHOTS / commit for name, commit in commits.items()}
    if not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} must be a folder with checkpoints; there is none")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def inspect(folders: Sequence[tuple[int, Path]]) -> list[Checkpoint]:
    """Return the content of the files of checkpoints, and the fault of each.

    Args:
        folders: Steps and Hugging Face folders or weights files, ascending.
    """
    checkpoints: list[Checkpoint] = []
    first: dict[str, tuple[int, ...]] | None = None
    for step, folder in folders:
        try:
            files = pretrained_files(folder) if folder.is_dir() else [folder]
            shapes, dtypes = _heads(files)
            loss = evaluation_loss(folder, step)
        except CheckpointError as error:
            checkpoints.append(Checkpoint(step=step, path=folder, fault=str(error)))
            continue
        first = first or shapes
        checkpoints.append(
            Checkpoint(
                step=step,
                path=folder,
                parameters=sum(map(prod, shapes.values())),
                num_bytes=sum(file.stat().st_size for file in files),
                dtype=", ".join(sorted(dtypes)),
                loss=loss,
                fault=_difference(folder, shapes, first),
            )
        )
    return checkpoints


def tokenizer_note(folders: Sequence[tuple[int, Path]]) -> str:
    """Return a sentence about checkpoints with different tokenizers; empty if there are none.

    Args:
        folders: Steps and Hugging Face folders.
    """
    digests = {
        step: content_digest(folder / TOKENIZER)
        for step, folder in folders
        if (folder / TOKENIZER).is_file()
    }
    first = next(iter(digests), 0)
    others = [step for step, digest in digests.items() if digest != digests[first]]
    if not others:
        return ""
    return f"{TOKENIZER} of step {others[0]} differs from that of step {first}"


def evaluation_loss(folder: Path, step: int) -> float | None:
    """Return the evaluation loss of a step in the Trainer's state, in nats; None if it has none.

    Args:
        folder: A Hugging Face folder.
        step: The step.

    Raises:
        CheckpointError: If the state is damaged.
    """
    state = folder / TRAINER_STATE
    if not state.is_file():
        return None
    try:
        history = from_json(state.read_bytes())["log_history"]
        evaluations = [entry for entry in history if "eval_loss" in entry and entry["step"] == step]
        return float(evaluations[-1]["eval_loss"]) if evaluations else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(state)!r} must hold the 'log_history' of a Trainer: {error!r}"
        ) from None


def _heads(files: Sequence[Path]) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Return the shapes of all weights by name, and their types.

    Raises:
        CheckpointError: If a file is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for path in files:
        try:
            with safetensors.safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    weight = file.get_slice(name)
                    shapes[name] = tuple(weight.get_shape())
                    dtypes.add(str(weight.get_dtype()))
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{str(path)!r} must be a safetensors file: {reason(error)}"
            ) from None
    return shapes, dtypes


def _difference(
    folder: Path, shapes: dict[str, tuple[int, ...]], first: dict[str, tuple[int, ...]]
) -> str:
    """Return a sentence about weights that the first checkpoint has otherwise; empty if equal."""
    rule = f"{str(folder)!r} must hold the weights of the first checkpoint; "
    foreign = sorted(shapes.keys() ^ first.keys())
    if foreign:
        return f"{rule}{foreign[0]!r} is {'missing' if foreign[0] in first else 'not in it'}"
    different = [name for name, shape in shapes.items() if shape != first[name]]
    if different:
        name = different[0]
        return f"{rule}{name!r} has shape {shapes[name]} instead of {first[name]}"
    return ""


def _number(match: re.Match[str]) -> int:
    return int(match.group(1)) * LETTERS[match.group(2).upper()]
