"""Every benchmark that `make benchmarks` runs starts with `--quick` alone."""

import ast
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NOT_RUN = {"theorem_tables.py", "encoders.py"}
"""The list QUIET of the Makefile."""
RUN = [path for path in sorted(BENCHMARKS.glob("*.py")) if path.name not in NOT_RUN]
RUN.append(BENCHMARKS / "peers" / "steps.py")


def arguments(path: Path) -> list[tuple[str, dict[str, object]]]:
    """Return the first name and the constant options of every command-line argument of a script."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    ]
    return [
        (
            ast.literal_eval(call.args[0]),
            {
                str(option.arg): option.value.value
                for option in call.keywords
                if isinstance(option.value, ast.Constant)
            },
        )
        for call in calls
    ]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_a_benchmark_runs_with_quick_alone(path: Path) -> None:
    options = arguments(path)
    required = [
        name
        for name, constants in options
        if constants.get("required")
        or (not name.startswith("-") and constants.get("nargs") not in ("?", "*"))
    ]
    assert "--quick" in [name for name, _ in options]
    assert not required


def test_the_makefile_leaves_out_the_same_benchmarks() -> None:
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    (line,) = [line for line in makefile.splitlines() if line.startswith("QUIET :=")]
    assert {Path(name).name for name in line.split(":=")[1].split()} == NOT_RUN


def test_the_usual_pieces_on_a_gpu_take_at_most_a_quarter_of_an_hour() -> None:
    text = (BENCHMARKS / "gpu.sh").read_text()
    usual = re.findall(r"(\w+)=(\d+)", text.partition("|| set -- ")[2].partition("\n")[0])
    known = re.findall(r"^    (\w+)\) ", text.partition("piece() {")[2], flags=re.MULTILINE)
    assert [name for name, _ in usual] == known[: len(usual)]
    total = sum(int(seconds) for _, seconds in usual)
    assert total <= 900
    assert f"sum to {total} seconds" in text
