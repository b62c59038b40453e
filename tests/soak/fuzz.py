"""Broken specs, records, manifests and corpora, and whether they are refused with a sentence.

    OMP_NUM_THREADS=1 python -m tests.soak.fuzz --count 20000 --seed 0

Every input is read as the command line reads it. It may be accepted, or refused with one of
curricle's own errors in a sentence that a terminal can show. Any other exception, a hang, a file
read outside its folder and a great demand for memory are defects; they are told apart by the kind
of exception and the innermost function of curricle.

Inputs are read in a forked child, which is replaced if it dies or does not answer.
"""

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
import yaml

from curricle.errors import CurricleError
from curricle.seeding import numpy_generator
from tests.soak.flips import CAPTURED, COMPARED, DISTILL
from tests.soak.jobs import SPEC, STORED
from tests.soak.processes import run, warm_up
from tests.soak.surfaces import SURFACES, EscapedError, Surface, write_sources
from tests.soak.trials import Plan, Result, defects, outcome_table, run_trials

OUTCOMES = (
    *("refused", "accepted", "unclean", "hang", "memory", "crash", "escaped"),
    *("unprintable", "long"),
)
CLEAN = ("refused", "accepted")
LONGEST_SENTENCE = 1500
"""Characters; longer ones repeat their input instead of naming it."""
MOST_MEMORY = 600 << 20
"""Bytes by which one small input may make the process grow."""
ADDRESS_SPACE = 3 << 30
"""Bytes that a child may map beyond what it starts with."""
INPUTS_A_CHILD = 400
PATIENCE = 10
"""Limits of an input after which a child counts as silent; it may wait for a busy processor."""


class HangError(BaseException):
    """An input took too long. No `Exception`, so that no reader takes it for its own."""


class Child:
    """Process that reads inputs by their numbers."""

    def __init__(self, sources: Path, seed: int, limit: float) -> None:
        """Fork it."""
        self.left = INPUTS_A_CHILD
        question, self._questions = os.pipe()
        self._answers, answer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._questions)
            os.close(self._answers)
            _answer_in_child(question, answer, sources, seed, limit)
        os.close(question)
        os.close(answer)

    def ask(self, number: int, patience: float) -> dict[str, Any] | None:
        """Return what an input gave; None if the child died or was silent too long."""
        self.left -= 1
        os.write(self._questions, b"%d\n" % number)
        data, deadline = b"", time.monotonic() + patience
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            if not ready or not (piece := os.read(self._answers, 1 << 16)):
                return None
            data += piece
        answer: dict[str, Any] = json.loads(data)
        return answer

    def close(self) -> str:
        """End the process and return how it ended."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if not ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._questions)
        os.close(self._answers)
        return f"ended with {os.waitstatus_to_exitcode(status)}" if ended else "silent"


class Forward:
    """Reads inputs in a child, and starts another one when that is lost."""

    def __init__(self, sources: Path, seed: int, limit: float) -> None:
        """Start no child yet."""
        self._sources, self._seed, self._limit = sources, seed, limit
        self._child: Child | None = None

    def trial(self, number: int) -> Result:
        """Return what an input gave."""
        if self._child is not None and self._child.left == 0:
            self.close()
        if self._child is None:
            self._child = Child(self._sources, self._seed, self._limit)
        started = time.monotonic()
        answer = self._child.ask(number, PATIENCE * self._limit)
        if answer is None:
            ending = self._child.close()
            self._child = None
            answer = {"outcome": "hang" if ending == "silent" else "crash", "detail": ending}
        return Result(
            seed=self._seed,
            trial=number,
            group=_surface(self._seed, number)[0].name,
            seconds=round(time.monotonic() - started, 3),
            **answer,
        )

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _surface(seed: int, number: int) -> tuple[Surface, np.random.Generator]:
    generator = numpy_generator(seed, "soak fuzz", number)
    shares = [surface.share for surface in SURFACES]
    return SURFACES[generator.choice(len(SURFACES), p=shares)], generator


def _answer_in_child(
    question: int, answer: int, sources: Path, seed: int, limit: float
) -> NoReturn:
    try:
        _limit_memory()
        signal.signal(signal.SIGPROF, _raise_hang)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        folder = sources.with_name(f"input-{os.getpid()}")
        shutil.copytree(sources, folder)
        os.chdir(folder)
        with os.fdopen(question) as questions:
            for line in questions:
                outcome, detail = _outcome(sources, folder, (seed, int(line)), limit)
                reply = {"outcome": outcome, "detail": detail}
                os.write(answer, json.dumps(reply).encode() + b"\n")
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)


def _outcome(
    sources: Path, folder: Path, identity: tuple[int, int], limit: float
) -> tuple[str, str]:
    """Return what an input gives; the folder is as it was before."""
    surface, generator = _surface(*identity)
    path = surface.make(folder, generator)
    memory = _peak_memory()
    # Of the processor's time: a machine that is busy with something else is no hang.
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        outcome, detail = _read(surface, folder, path, generator)
    except HangError as error:
        outcome, detail = "hang", _place(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if outcome in CLEAN and _peak_memory() - memory > MOST_MEMORY:
        outcome, detail = "memory", detail or "accepted"
    _restore(sources, folder, path)
    return outcome, detail


def _read(
    surface: Surface, folder: Path, path: Path, generator: np.random.Generator
) -> tuple[str, str]:
    try:
        surface.read(folder, path, generator)
    except CurricleError as error:
        return _judged_sentence(error)
    except EscapedError as error:
        return "escaped", str(error)
    except MemoryError as error:
        return "memory", _place(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        # The form that torch gives to a lack of memory.
        is_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        return "memory" if is_memory else "unclean", _place(error)
    return "accepted", ""


def _judged_sentence(error: CurricleError) -> tuple[str, str]:
    """Return whether a sentence can be shown on a terminal as it is."""
    said = " ".join(str(error).split())
    if not said or not said.isprintable():
        return "unprintable", _place(error)
    return ("long", _place(error)) if len(said) > LONGEST_SENTENCE else ("refused", "")


def _place(error: BaseException) -> str:
    """Return the kind of an exception and the innermost function of curricle on its way."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/src/curricle/" in frame.filename
    ]
    where = f"{frames[-1].filename.partition('/src/')[2]}:{frames[-1].name}" if frames else "?"
    return f"{type(error).__name__} in {where}"


def _restore(sources: Path, folder: Path, path: Path) -> None:
    original = sources / path.relative_to(folder)
    if original.is_file():
        shutil.copyfile(original, path)
    else:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)


def _raise_hang(_number: int, _frame: object) -> NoReturn:
    raise HangError


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limit_memory() -> None:
    """Let a great demand for memory fail instead of stopping the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _made_sources(folder: Path) -> Path:
    """Return a folder of files that real runs have written."""
    shutil.rmtree(folder, ignore_errors=True)
    runs = {"run": (COMPARED, (("compare", SPEC),)), "stored": (STORED, (*CAPTURED, DISTILL))}
    for name, (spec, commands) in runs.items():
        here = folder / name
        here.mkdir(parents=True)
        (here / SPEC).write_text(yaml.safe_dump(spec, sort_keys=False))
        for arguments in commands:
            ending = run(arguments, folder=here, log=here / "log.txt")
            if ending.code != 0:
                raise RuntimeError(f"{arguments} must run; got {ending.text}")
    sources = folder / "sources"
    sources.mkdir()
    write_sources(sources, folder / "run", folder / "stored")
    return sources


def main(
    count: Annotated[int, typer.Option(help="Inputs.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first input.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Time after which no input is read.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Processor seconds that an input may take.")] = 20.0,
    output: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/soak/fuzz"),
    show: Annotated[
        int | None, typer.Option(help="Write this input into the folder, and read nothing.")
    ] = None,
) -> None:
    """Read broken files."""
    warm_up()
    output = output.resolve()
    sources = _made_sources(output / f"made-{first}")
    if show is not None:
        surface, generator = _surface(seed, show)
        typer.echo(surface.make(sources, generator))
        return
    reader = Forward(sources, seed, limit)

    def watch(result: Result) -> None:
        if result.outcome not in CLEAN:
            typer.echo(f"input {result.trial}: {result.outcome}: {result.group}: {result.detail}")

    plan = Plan(seed=seed, count=count, first=first, minutes=minutes)
    results = run_trials(reader.trial, plan, output / "results.jsonl", watch)
    reader.close()
    seconds = sum(result.seconds for result in results)
    typer.echo(f"\n{len(results)} inputs, {seconds:.0f} seconds, seed {seed}\n")
    typer.echo(outcome_table(results, OUTCOMES, rows="file") + "\n")
    typer.echo("\n".join(defects(results, CLEAN)))
    raise typer.Exit(any(result.outcome not in CLEAN for result in results))


if __name__ == "__main__":
    typer.run(main)
