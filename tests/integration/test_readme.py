"""The Python code of README, pasted into a new process, trains a student."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
README = Path(__file__).parents[2] / "README.md"


def test_the_code_of_readme_runs_as_it_stands_and_its_student_learns(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    # A process of its own, since the code seeds torch's global generator.
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout.strip().splitlines()[-1]
    metrics = ast.literal_eval(printed[: printed.index("}") + 1])
    assert metrics["accuracy"] > 0.95
    assert not list(tmp_path.iterdir())
