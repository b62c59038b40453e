"""Small runs of everything that trains, whose outcomes are recorded bit by bit.

    python -m tests.golden.runs --compare                        # differences from the record
    python -m tests.golden.runs --compare --only extraction      # of a single case
    python -m tests.golden.runs --write tests/golden/runs.json   # a new record

Refactorings leave all outcomes equal. A commit that changes numbers on purpose writes them anew and
states the reason in the changelog. `curricula`, `engines`, `modules`, `targets` and `tasks` hold
the cases, `outcomes` the meaning of the digests and the tolerance on other machines.

Design: a case is a value with a function, so that the test and this command run the same code.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

import curricle
from curricle.extras import COMPILERS
from tests.golden import curricula, engines, modules, targets, tasks
from tests.golden.cases import Case
from tests.golden.outcomes import (
    Machine,
    Outcome,
    differences,
    outcome_of,
    read_outcomes,
    write_outcomes,
)

RECORDED = Path(__file__).with_name("runs.json")
ALL = (*curricula.CASES, *engines.CASES, *modules.CASES, *targets.CASES, *tasks.CASES)
CASES: Mapping[str, Case] = {case.name: case for case in ALL}
HAS_COMPILER = any(map(shutil.which, COMPILERS["cpu"]))


def perform(case: Case) -> Outcome:
    """Return the outcome of a case after running it in a folder that is removed again."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        return outcome_of(case.run(Path(folder)))


def main(arguments: list[str] | None = None) -> int:
    """Write or compare outcomes; return the exit code.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.golden.runs", description=__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", type=Path, metavar="FILE", help="write the outcomes to a file")
    task.add_argument("--compare", action="store_true", help="compare them with the record")
    parser.add_argument("--only", action="append", metavar="NAME", help="restrict to a case")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.only or ()) - CASES.keys())
    if unknown:
        parser.error(f"--only must name a case; got {unknown}; there are {sorted(CASES)}")
    torch.set_num_threads(1)
    cases = [case for name, case in CASES.items() if name in (options.only or CASES)]
    if options.write is None:
        return _compare(cases)
    _write(cases, options.write)
    return 0


def _write(cases: Iterable[Case], path: Path) -> None:
    """Write the outcomes of some cases; those of others stay if the machine is the same."""
    machine, outcomes = Machine.current(), dict[str, Outcome]()
    for case in cases:
        if case.is_compiled and not HAS_COMPILER:
            sys.exit(f"{case.name!r} needs a C++ compiler to be written")
        outcomes[case.name] = perform(case)
    if outcomes.keys() != CASES.keys():
        recorded_machine, recorded = read_outcomes(path)
        if recorded_machine != machine:
            sys.exit("all cases must be written on a machine that differs from the recorded one")
        outcomes = {name: recorded[name] for name in recorded if name in CASES} | outcomes
    write_outcomes(path, machine, outcomes)
    sys.stdout.write(f"{len(outcomes)} outcomes in {path}\n")


def _compare(cases: Iterable[Case]) -> int:
    machine, recorded = read_outcomes(RECORDED)
    current, different, compared = Machine.current(), 0, 0
    for case in cases:
        if case.is_compiled and not HAS_COMPILER:
            sys.stdout.write(f"skipped    {case.name}: no C++ compiler\n")
            continue
        began = time.perf_counter()
        phrases = _differences(case, recorded, machine, current)
        seconds = time.perf_counter() - began
        different, compared = different + bool(phrases), compared + 1
        sys.stdout.write(
            f"{'DIFFERENT' if phrases else 'equal':<10} {case.name} ({seconds:.2f} s)\n"
        )
        sys.stdout.writelines(f"           {phrase}\n" for phrase in phrases)
    scope = "digests and numbers" if current == machine else "numbers alone (another machine)"
    # The environment may hold an installation of another working tree.
    source = Path(curricle.__file__).parent
    sys.stdout.write(f"{compared} cases of {source} compared by {scope}, {different} different\n")
    return int(different > 0 or not compared)


def _differences(
    case: Case, recorded: Mapping[str, Outcome], machine: Machine, current: Machine
) -> list[str]:
    if case.name not in recorded:
        return ["not recorded"]
    return differences(
        recorded[case.name],
        perform(case),
        precision=case.precision,
        compares_digests=machine.computes_as(current, is_compiled=case.is_compiled),
    )


if __name__ == "__main__":
    sys.exit(main())
