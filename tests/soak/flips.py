"""Damaged files of run folders and target stores, and whether the commands that read them notice.

    OMP_NUM_THREADS=1 python -m tests.soak.flips --count 100 --seed 0

A trial copies a folder, damages one file and runs the commands that may read it. Each must refuse
with one sentence that names the file, or come to what it comes to without the damage, or print that
runs are incomplete (`flagged`: records that lost their end look like those of a killed run). A
command that accepts the file and comes to something else is `unnoticed`, the worst outcome.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from curricle.seeding import numpy_generator
from tests.soak.contents import Contents, contents
from tests.soak.damage import apply_damage, draw_damage
from tests.soak.jobs import EXTRACTION, RUN, SPEC, STORED, TARGETS, Plain, staged, tiny_spec
from tests.soak.processes import HUNG, Ending, exit_code, kill_group, run, start, warm_up
from tests.soak.trials import Plan, Result, defects, outcome_table, run_trials

OUTCOMES = ("refused", "unread", "flagged", "unnoticed", "unclean", "vague", "hang")
CLEAN = ("refused", "unread", "flagged")
WORST_FIRST = ("unnoticed", "unclean", "hang", "vague", "refused", "flagged", "unread")
FLAGS = ("incomplete", "missing", "not complete", "interrupted run")
"""Words by which a command says that something is not finished, without blaming a file."""
LOG = "log.txt"
TEACH = ("teach", SPEC)
DISTILL = ("distill", SPEC)
LIVE = ("--set", "targets=null")
NEW_RUN = ("--set", "output_dir=other-run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A command that reads a folder, and the files in which its result lies."""

    arguments: tuple[str, ...]
    results: tuple[str, ...] = ()
    """Patterns of paths; empty if the result is what it prints."""
    reads_all: bool = False
    """Whether it promises to look at every file, as `targets verify` does."""
    skips_unfinished: bool = False
    """Whether it leaves out what is not finished without a word, as `probe` is documented to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """A folder to be damaged, and who reads it."""

    name: str
    spec: Plain
    commands: tuple[tuple[str, ...], ...]
    """Commands that make it."""
    readers: tuple[Forward, ...]
    stop_at: str = ""
    """Checkpoint at whose appearance the last command is killed; empty lets it end."""
    damaged: str = RUN
    """Folder whose files are damaged."""


CATEGORIES = (
    (r"^targets/manifest\.json$", "manifest of a target store"),
    (r"^targets/", "shard of a target store"),
    (r"trajectory/.*\.safetensors$", "checkpoint of a trajectory"),
    (r"teacher/model\.safetensors$", "weights of a teacher"),
    (r"checkpoints/.*/student\.safetensors$", "checkpoint: weights"),
    (r"checkpoints/.*/.*optimizer\.safetensors$", "checkpoint: optimizer"),
    (r"checkpoints/.*/adapters\.safetensors$", "checkpoint: trained heads"),
    (r"checkpoints/", "checkpoint: state and manifest"),
    (r"\.safetensors$", "weights of a student"),
    (r"\.jsonl$", "records"),
    (r"\.(html|svg|png|pdf)$|summary\.json$", "report"),
    (r"", "spec, command and other manifests"),
)
WEIGHTS = (rf"{RUN}/model\.safetensors", rf"{RUN}/records\.jsonl")
STUDENTS = (rf"{RUN}/students/.*/(model\.safetensors|records\.jsonl)",)
REPORT = Forward(arguments=("report", RUN), results=(rf"{RUN}/summary\.json",))
PROBE = Forward(
    arguments=("probe", RUN, "--examples", "64"),
    results=(rf"{RUN}/probes\.jsonl",),
    skips_unfinished=True,
)
RESUME = Forward(arguments=("resume", RUN), results=WEIGHTS)
FINISHED = (REPORT, PROBE, RESUME)
STAGED = tiny_spec(curriculum=staged())
PROGRESSIVE = tiny_spec(curriculum={"kind": "progressive"})
COMPARED = tiny_spec(
    strategies={"extraction": {"curriculum": EXTRACTION}}, seeds=[0, 1], budget="24 steps"
)
CAPTURED = ((*TEACH, *LIVE), ("targets", "capture", SPEC))
FIXTURES = (
    Fixture(name="finished run", spec=PROGRESSIVE, commands=(DISTILL,), readers=FINISHED),
    Fixture(
        name="interrupted layer stage",
        spec=STAGED,
        commands=(DISTILL,),
        stop_at=f"{RUN}/checkpoints/step-000000016",
        readers=(REPORT, RESUME),
    ),
    Fixture(
        name="interrupted logit stage",
        spec=STAGED,
        commands=(DISTILL,),
        stop_at=f"{RUN}/checkpoints/step-000000072",
        readers=(RESUME,),
    ),
    Fixture(
        name="interrupted teacher",
        spec=PROGRESSIVE,
        commands=(DISTILL,),
        stop_at=f"{RUN}/teacher/checkpoints/step-000000064",
        readers=(RESUME,),
    ),
    Fixture(
        name="trajectory",
        spec=PROGRESSIVE,
        commands=(TEACH,),
        readers=(replace(RESUME, arguments=DISTILL),),
    ),
    Fixture(
        name="comparison",
        spec=COMPARED,
        commands=(("compare", SPEC),),
        readers=(REPORT, PROBE, replace(RESUME, results=STUDENTS)),
    ),
    Fixture(
        name="target store",
        spec=STORED,
        commands=CAPTURED,
        damaged=str(TARGETS["folder"]),
        readers=(
            Forward(arguments=("targets", "info", "targets")),
            Forward(arguments=("targets", "verify", "targets"), reads_all=True),
            Forward(arguments=("targets", "verify", "targets", "--spec", SPEC), reads_all=True),
            replace(RESUME, arguments=DISTILL),
        ),
    ),
)


class Bench:
    """Folder of a series of trials, with the fixtures and what each reader comes to."""

    def __init__(self, folder: Path) -> None:
        """Make all fixtures anew."""
        self.folder = folder
        shutil.rmtree(folder / "fixtures", ignore_errors=True)
        self._expected: dict[str, list[tuple[Ending, Contents]]] = {}

    def fixture(self, fixture: Fixture, *, seed: int = 0) -> Path:
        """Return the folder of a fixture.

        Args:
            fixture: Which.
            seed: 0 for the folder that is damaged, 1 for the one from which files are swapped.

        Raises:
            RuntimeError: If one of its commands fails.
        """
        folder = self.folder / "fixtures" / f"{fixture.name.replace(' ', '-')}-{seed}"
        if folder.is_dir():
            return folder
        folder.mkdir(parents=True)
        (folder / SPEC).write_text(_yaml(fixture.spec | {"seed": seed}))
        *before, last = fixture.commands
        for arguments in before:
            _require(run(arguments, folder=folder, log=folder / LOG), arguments)
        if fixture.stop_at:
            _stop(last, folder, fixture.stop_at)
        else:
            _require(run(last, folder=folder, log=folder / LOG), last)
        return folder

    def expected(self, fixture: Fixture) -> list[tuple[Ending, Contents]]:
        """Return what each reader comes to where nothing is damaged."""
        if fixture.name not in self._expected:
            folder = self.copy(fixture, "reference")
            self._expected[fixture.name] = [
                _read(reader, folder, _require) for reader in fixture.readers
            ]
            shutil.rmtree(folder)
        return self._expected[fixture.name]

    def copy(self, fixture: Fixture, name: str) -> Path:
        """Return a copy of a fixture's folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.fixture(fixture), folder)
        return folder


def flip_trial(bench: Bench, seed: int, number: int) -> Result:
    """Return the outcome of one damaged file; the folder stays if the trial failed."""
    generator = numpy_generator(seed, "soak flips", number)
    fixture = FIXTURES[generator.integers(len(FIXTURES))]
    expected = bench.expected(fixture)
    other = bench.fixture(fixture, seed=1) / fixture.damaged
    started = time.monotonic()
    folder = bench.copy(fixture, f"trial-{number:06d}")
    damage = draw_damage(generator, folder / fixture.damaged, other)
    apply_damage(damage, folder / fixture.damaged, other)
    damaged = f"{fixture.damaged}/{damage.file}"
    outcomes: list[tuple[str, str]] = []
    for reader, reference in zip(fixture.readers, expected, strict=True):
        ending, left = _read(reader, folder, None)
        judged = _judged(reader, (ending, left), reference, damaged)
        if judged == "unnoticed" and reader.skips_unfinished and "flagged" in dict(outcomes):
            judged = "flagged"
        outcomes.append((judged, _words(reader, ending)))
        # What comes after it would be judged by what it has written.
        if outcomes[-1][0] in {"unnoticed", "hang"}:
            break
    outcome, words = min(outcomes, key=lambda each: WORST_FIRST.index(each[0]))
    if outcome in CLEAN:
        shutil.rmtree(folder)
    return Result(
        seed=seed,
        trial=number,
        group=_category(damaged),
        outcome=outcome,
        detail=f"{fixture.name}: {_kind_of(damage.file)}, {damage.kind}: {words}",
        seconds=round(time.monotonic() - started, 2),
        facts={"damage": asdict(damage), "readers": [each for each, _ in outcomes]},
    )


def _read(
    reader: Forward,
    folder: Path,
    check: Callable[[Ending, tuple[str, ...]], None] | None,
) -> tuple[Ending, Contents]:
    """Return how a reader ended and its result."""
    ending = run(reader.arguments, folder=folder, log=folder / LOG)
    if check is not None:
        check(ending, reader.arguments)
    left = contents(folder)
    results = {
        path: digest
        for path, digest in left.items()
        if any(re.fullmatch(pattern, path) for pattern in reader.results)
    }
    return ending, results


def _judged(
    reader: Forward,
    found: tuple[Ending, Contents],
    reference: tuple[Ending, Contents],
    damaged: str,
) -> str:
    (ending, left), (expected, right) = found, reference
    if ending.code != 0:
        return _judged_error(ending, damaged)
    if reader.reads_all:
        return "unnoticed"
    if left == right if reader.results else ending.text == expected.text:
        return "unread"
    is_flagged = any(flag in ending.text and flag not in expected.text for flag in FLAGS)
    return "flagged" if is_flagged else "unnoticed"


def _judged_error(ending: Ending, damaged: str) -> str:
    if ending.code == HUNG:
        return "hang"
    if not ending.is_clean_refusal:
        return "unclean"
    if _names(ending.errors[0], damaged):
        return "refused"
    return "flagged" if any(flag in ending.text for flag in FLAGS) else "vague"


def _names(sentence: str, damaged: str) -> bool:
    """Return whether a sentence names a file, or a folder inside the run that it is a part of."""
    path = Path(damaged)
    inner = [str(parent) for parent in path.parents if len(parent.parts) > 1]
    return path.name in sentence or any(f"{parent}'" in sentence for parent in inner)


def _words(reader: Forward, ending: Ending) -> str:
    """Return a command and its last line without numbers, so that equal defects are equal."""
    said = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{12,}\b|[-\d.]+", "#", ending.last_line)[:160]
    return f"{' '.join(reader.arguments)} -> {ending.code}: {said}"


def _category(path: str) -> str:
    """Return the row of the table that a file belongs to."""
    return next(row for pattern, row in CATEGORIES if re.search(pattern, path))


def _kind_of(file: str) -> str:
    """Return a path without seeds, steps and digests."""
    name = re.sub(r"step-\d+", "step-N", file)
    name = re.sub(r"-[0-9a-f]{8}(?=[-.])", "-DIGEST", name)
    return re.sub(r"(?<=-)\d{3,}", "N", name)


def _require(ending: Ending, arguments: tuple[str, ...]) -> None:
    if ending.code != 0:
        raise RuntimeError(f"{arguments} must run; got {ending.code}: {ending.text}")


def _stop(arguments: tuple[str, ...], folder: Path, checkpoint: str) -> None:
    """Run a command until a checkpoint has its final name, and kill it then."""
    pid = start(arguments, folder=folder, log=folder / LOG)
    while exit_code(pid) is None:
        # The one before is removed a moment later; with both there, damage of it proves nothing.
        if (folder / checkpoint).is_dir() and _is_alone(folder / checkpoint):
            kill_group(pid)
            return
        time.sleep(0.0003)
    raise RuntimeError(f"{arguments} must reach {checkpoint!r} in {folder}")


def _is_alone(checkpoint: Path) -> bool:
    return all(path == checkpoint for path in checkpoint.parent.glob("step-*"))


def _yaml(spec: Mapping[str, object]) -> str:
    import yaml

    return yaml.safe_dump(dict(spec), sort_keys=False)


def main(
    count: Annotated[int, typer.Option(help="Damaged files.")] = 100,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first trial.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Time after which no trial begins.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of results and failed trials.")] = Path(
        "runs/soak/flips"
    ),
) -> None:
    """Damage files and run the commands that read them."""
    warm_up()
    output = output.resolve()
    bench = Bench(output)

    def watch(result: Result) -> None:
        if result.outcome not in CLEAN:
            typer.echo(f"trial {result.trial}: {result.outcome}: {result.group}: {result.detail}")

    results = run_trials(
        lambda number: flip_trial(bench, seed, number),
        Plan(seed=seed, count=count, first=first, minutes=minutes),
        output / "results.jsonl",
        watch,
    )
    seconds = sum(result.seconds for result in results)
    typer.echo(f"\n{len(results)} damaged files, {seconds:.0f} seconds, seed {seed}\n")
    typer.echo(outcome_table(results, OUTCOMES, rows="damaged file") + "\n")
    typer.echo("\n".join(defects(results, CLEAN)))
    raise typer.Exit(any(result.outcome not in CLEAN for result in results))


if __name__ == "__main__":
    typer.run(main)
