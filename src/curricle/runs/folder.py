"""Run folders of the command line.

`spec.yaml` holds the spec, `run.json` the command and the hash of the spec,
`teacher/taught.json` the settings by which its teacher was taught, with their digest. A folder that
already holds a run is refused before anything is written; a teacher that `curricle teach` left
there is used again if the spec has the same settings. One command at a time works in a folder.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, final

from torch import nn

from curricle.checksums import read_sealed, write_sealed
from curricle.errors import CheckpointError, SpecError, reason
from curricle.extras import package_version
from curricle.figure_points import where_runs_are
from curricle.files import content_digest, remove_leftovers_of, usable_folder, write_text
from curricle.locks import COMMAND_LOCK, locked
from curricle.models.weights import load_weights
from curricle.records import RECORDS, EndRecord, RunRecord, read_records
from curricle.runs.spec import RunSpec
from curricle.runs.teacher_file import TEACHER_METRICS
from curricle.training.loop.checkpoints import CHECKPOINTS, latest_checkpoint
from curricle.training.loop.resuming import FINISHED, RunFolder, check_weights_file
from curricle.values import Plain, changes, fingerprint, parse, plain, read_yaml, to_yaml

SPEC, COMMAND, TEACHER, STUDENTS = "spec.yaml", "run.json", "teacher", "students"
TAUGHT = "taught.json"
MOST_CHANGES = 6
"""Fields in which two specs differ that are named in an error."""
COMMANDS: Final = ("teach", "distill", "compare")
"""Commands that make run folders."""
SPEC_HASH: Final = "spec_sha256"
"""Field of `run.json` with the hash of `spec.yaml`."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a run folder came to be."""

    command: str
    """`teach`, `distill` or `compare`."""
    title: str
    """Heading of its report."""
    line: str
    """Command that runs it again."""


def run_folder(folder: Path, strategy: str, seed: int) -> Path:
    """Return the folder of a student below that of its comparison."""
    return folder / STUDENTS / strategy / f"seed-{seed}"


def refuse_taken(spec: RunSpec, command: str) -> None:
    """Check that a command may write into the spec's run folder; nothing is written.

    Args:
        spec: Spec of the run.
        command: `teach`, `distill` or `compare`.

    Raises:
        CheckpointError: If the folder already holds a run, or the teacher of another spec.
    """
    folder = usable_folder(spec.output_dir, "output_dir")
    files = [name for name in (RECORDS, STUDENTS, COMMAND) if (folder / name).exists()]
    only_taught = files == [COMMAND] and read_origin(folder).command == "teach"
    if files and (command == "teach" or not only_taught):
        raise CheckpointError(
            f"'output_dir' {str(folder)!r} must not hold a run already; "
            f"use 'curricle resume {folder}' or another folder{_changes(spec)}"
        )
    is_claimed(spec)


def is_begun(spec: RunSpec, command: str) -> bool:
    """Return whether the spec's run folder holds a run that this command has begun.

    Args:
        spec: Spec of the run.
        command: `teach` or `distill`.
    """
    if not has_spec(spec.folder):
        return False
    return read_origin(spec.folder).command == command and stored_spec(spec.folder) == spec


def _changes(spec: RunSpec) -> str:
    """Return the end of an error: differences from the existing run; empty if there are none."""
    if not has_spec(spec.folder):
        return ""
    words = changes(plain(stored_spec(spec.folder)), plain(spec))
    return f"; 'resume' runs the stored spec, not this one, where {_listed(words)}" if words else ""


def _listed(words: list[str]) -> str:
    """Return the first changes, and how many are left out."""
    more = len(words) - MOST_CHANGES
    return ", ".join(words if more <= 0 else [*words[:MOST_CHANGES], f"and {more} more"])


def start(spec: RunSpec, origin: Origin) -> None:
    """Claim the run folder for a new run.

    Raises:
        CheckpointError: If it cannot be written, already holds a run or another spec's teacher.
    """
    refuse_taken(spec, origin.command)
    with working(spec.folder):
        # Another command may have taken the folder since.
        refuse_taken(spec, origin.command)
        write_text(spec.folder / SPEC, to_yaml(spec))
        digest = content_digest(spec.folder / SPEC)
        write_sealed(spec.folder / COMMAND, {**asdict(origin), SPEC_HASH: digest})


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Keep other commands out of a run folder while the block runs.

    Args:
        folder: The run folder.

    Yields:
        Nothing.
    """
    with locked(folder, name=COMMAND_LOCK, remedy="wait for its end"):
        remove_leftovers_of(folder, SPEC, COMMAND, TEACHER_METRICS)
        yield


def read_origin(folder: Path) -> Origin:
    """Return how a run folder came to be.

    Raises:
        CheckpointError: If the folder holds no run.
    """
    path = folder / COMMAND
    try:
        # Version 0.1 wrote no check and no hash.
        document = read_sealed(path, needs_check=False)
        document.pop(SPEC_HASH, None)
        origin = _parsed_origin(document)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(folder)!r} must be a run folder with a {COMMAND!r}: {reason(error)}"
            f"{_remedy(folder) if path.exists() else _hint(folder)}"
        ) from None
    if origin.command not in COMMANDS:
        raise CheckpointError(
            f"'command' in {str(path)!r} must be one of {', '.join(COMMANDS)}; got "
            f"{origin.command!r}"
        )
    return origin


def _parsed_origin(document: Plain) -> Origin:
    """Return the origin in a document.

    Raises:
        ValueError: If it holds something else.
    """
    names = [field.name for field in fields(Origin)]
    if set(document) != set(names) or not all(isinstance(text, str) for text in document.values()):
        raise ValueError(f"it must hold texts {', '.join(map(repr, names))}; got {document}")
    return Origin(**document)


def _remedy(folder: Path) -> str:
    """Return the remedy for a damaged command file."""
    again = f"run {str(folder / SPEC)!r} with another 'output_dir'"
    return f"; restore it, or {again if has_spec(folder) else 'run again in another folder'}"


def _hint(folder: Path) -> str:
    """Return the remedy for a folder that no command has claimed; empty if unknown."""
    recipe = where_runs_are(folder)
    if not recipe and (folder / RECORDS).is_file():
        return "; a run made in Python is resumed by 'curricle.distill(..., resume=True)'"
    return recipe


def unused_folder(folder: Path) -> Path:
    """Return the folder, numbered if it is taken: a demo never overwrites a run."""
    number, candidate = 2, folder
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate


def has_spec(folder: Path) -> bool:
    """Return whether a folder was made by a command that stores its spec."""
    return (folder / SPEC).is_file()


def stored_spec(folder: Path) -> RunSpec:
    """Return the spec in a run folder, with the present name of the folder.

    Raises:
        SpecError: If it has not the fields of this version.
    """
    data = stored_fields(folder) | {"output_dir": str(folder)}
    try:
        spec: RunSpec = parse(RunSpec, data, source=str(folder / SPEC))
    except SpecError as error:
        raise SpecError(
            f"{error}; the folder may be of another version than curricle {package_version()}: "
            f"'curricle report' reads it, and a new run needs another folder"
        ) from None
    return spec


def stored_fields(folder: Path) -> Plain:
    """Return the fields of the spec in a run folder as plain data, also those of other versions."""
    _check_spec(folder)
    return read_yaml(folder / SPEC)


def _check_spec(folder: Path) -> None:
    """Check that a spec is the one with which its run was started.

    Raises:
        CheckpointError: If it was changed or damaged since.
    """
    if not (folder / COMMAND).is_file() or not (folder / SPEC).is_file():
        return
    read_origin(folder)
    expected = read_sealed(folder / COMMAND, needs_check=False).get(SPEC_HASH)
    if expected is not None and (digest := content_digest(folder / SPEC)) != expected:
        raise CheckpointError(
            f"{str(folder / SPEC)!r} must be the spec with which the run was started, whose "
            f"SHA-256 {str(folder / COMMAND)!r} gives as {str(expected)[:16]}...; got "
            f"{digest[:16]}...; undo the change of either file, or run a copy of the spec with "
            f"another 'output_dir'"
        )


def is_claimed(spec: RunSpec) -> bool:
    """Return whether the run folder has this spec's teacher, finished or begun.

    Raises:
        CheckpointError: If it has the teacher of another spec, or its claim is damaged.
    """
    folder = usable_folder(spec.output_dir, "output_dir") / TEACHER
    claim = folder / TAUGHT
    if spec.teacher.total is None or not claim.is_file():
        return False
    claimed, then = _read_claim(claim)
    if claimed != (digest := teacher_digest(spec)):
        words = _changed_settings(then, teacher_facts(spec)) if then else []
        difference = f"it was trained by another spec, in which {_listed(words)}"
        raise CheckpointError(
            f"{str(folder)!r} must hold the teacher of this spec; "
            f"{difference if words else f'its digest is {claimed}, not {digest}'}; "
            f"'--set output_dir=...' takes another folder"
        )
    return True


def claim_teacher(spec: RunSpec) -> None:
    """Note that the teacher in the run folder is the one of this spec."""
    facts = teacher_facts(spec)
    claim = {"spec": _digest(facts), "facts": facts}
    remove_leftovers_of(spec.folder / TEACHER, TAUGHT)
    write_sealed(spec.folder / TEACHER / TAUGHT, claim)


def _read_claim(path: Path) -> tuple[str, Plain]:
    """Return the digest of the spec by which a teacher was taught, and its facts if they are kept.

    Raises:
        CheckpointError: If the file cannot be read or is damaged.
    """
    try:
        return _parsed_claim(path)
    except (OSError, ValueError) as error:
        folder = path.parent.parent
        again = f"'curricle resume {folder}'" if (folder / COMMAND).is_file() else "the command"
        raise CheckpointError(
            f"{str(path)!r} must hold the training settings of the teacher beside it: "
            f"{reason(error)}; remove this file, and {again} compares the teacher's records with "
            f"the spec and writes it again"
        ) from None


def _parsed_claim(path: Path) -> tuple[str, Plain]:
    """Return the digest and the facts in a claim.

    Raises:
        ValueError: If they are none.
    """
    # Version 0.1 wrote the digest alone, without a check.
    claim = read_sealed(path, needs_check=False)
    if claim.keys() not in ({"spec"}, {"spec", "facts"}):
        raise ValueError(f"it must hold 'spec' and 'facts'; got {sorted(claim)}")
    digest = claim["spec"]
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{16}", digest):
        raise ValueError(f"'spec' must be 16 hexadecimal digits; got {digest!r}")
    return digest, claim.get("facts", {})


def teacher_facts(spec: RunSpec) -> Plain:
    """Return everything on which the teacher depends as plain data, and the task for people."""
    engine = spec.engine
    data = spec.task.open(seed=spec.seed, cache_dir=Path(spec.cache_dir))
    return {
        "data": data.stream.fingerprint,
        "task": plain(spec.task),
        "teacher": plain(spec.teacher),
        "optimizer": plain(spec.teacher.optimizer or spec.optimizer),
        "engine": {
            "precision": engine.precision,
            "gradient_accumulation_steps": engine.gradient_accumulation_steps,
            "max_grad_norm": engine.max_grad_norm or 0,
        },
        "seed": spec.seed,
    }


def teacher_digest(spec: RunSpec) -> str:
    """Return a digest of everything on which the teacher depends.

    Of the task that is its training data, not where they lie or how students are judged.
    """
    return _digest(teacher_facts(spec))


def _digest(facts: Plain) -> str:
    engine = list(facts["engine"].values())
    return fingerprint([
        facts["data"], facts["teacher"], facts["optimizer"], engine, facts["seed"],
    ])  # fmt: skip


def _changed_settings(then: Plain, now: Plain) -> list[str]:
    """Return the differing settings of a teacher in words, by their names in a spec."""
    facts = [dict(settings) for settings in (then, now)]
    data = [settings.pop("data", None) for settings in facts]
    tasks = [settings.pop("task", None) for settings in facts]
    # With an optimizer of its own, the teacher does not depend on that of the run.
    if any(settings["teacher"].get("optimizer") for settings in facts):
        for settings in facts:
            settings["teacher"] = settings["teacher"] | {"optimizer": settings.pop("optimizer")}
    words = changes(*facts)
    if data[0] != data[1]:
        of_task = changes(*({"task": task} for task in tasks))
        # Data that are drawn depend on the seed, which is named already.
        is_drawn = then.get("seed") != now.get("seed")
        words = [*(of_task or ([] if is_drawn else ["the data are others"])), *words]
    return words


def has_checkpoint(folder: Path) -> bool:
    """Return whether an unfinished run in a folder, or below it, has a checkpoint.

    Args:
        folder: Folder of a run or of a comparison.
    """
    runs = (folder, folder / TEACHER, *folder.glob(f"{STUDENTS}/*/*"))
    return any(latest_checkpoint(run / CHECKPOINTS) and end_of(run) is None for run in runs)


def end_of(folder: Path) -> EndRecord | None:
    """Return the last record of a finished run; None if there is no run or it is not finished."""
    records = folder / RECORDS
    records_ = read_records(records) if records.is_file() else ()
    return next((record for record in records_ if isinstance(record, EndRecord)), None)


def checked_end(folder: Path) -> EndRecord | None:
    """Return the last record of a finished run after checking its weights; else None.

    Args:
        folder: Folder of a student or teacher.
    """
    end = end_of(folder)
    if end is not None:
        check_weights_file(folder / FINISHED, end)
    return end


def completed_end(folder: Path, *, is_writer: bool = True) -> EndRecord | None:
    """Return the last record of a finished run, whose manifest is written if it was killed before.

    Args:
        folder: Folder of a student or teacher that is to be trained.
        is_writer: Whether this process writes the files of its run.
    """
    end = checked_end(folder)
    if end is not None and is_writer:
        RunFolder.of(folder).complete(end)
    return end


def load_finished(module: nn.Module, folder: Path) -> None:
    """Put the weights of a finished run into a module, after checking them.

    Args:
        module: A student or teacher.
        folder: Its folder.
    """
    checked_end(folder)
    load_weights(module, folder / FINISHED)


def recorded_steps(folder: Path) -> int | None:
    """Return the planned length of the run in a folder in steps; None if none was begun."""
    records = folder / RECORDS
    opening = next(iter(read_records(records)), None) if records.is_file() else None
    if not isinstance(opening, RunRecord):
        return None
    return sum(stage.steps for stage in opening.stages)
