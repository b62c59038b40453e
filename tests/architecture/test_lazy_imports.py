"""What can be imported without torch, and that the package's names are there all the same."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import curricle

HELP = "import sys; sys.argv = ['curricle', '--help']; from curricle.cli.app import main; main()"
WITHOUT_TORCH = (
    "import curricle",
    "import curricle.errors",
    "import curricle.values",
    "import curricle.records",
    "import curricle.reports.page, curricle.reports.printed, curricle.reports.headline",
    "import curricle_papers.theory.gradient_correlations, curricle_papers.theory.phases",
    "import curricle_papers.theory.readouts",
    "import curricle.cli.app",
    HELP,
)


@pytest.mark.integration
@pytest.mark.parametrize("statement", WITHOUT_TORCH)
def test_torch_is_not_imported(statement: str) -> None:
    told = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    )
    source = Path(str(curricle.__file__)).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", told + statement],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(source)},
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "False"


def test_public_names_are_sorted_and_each_is_there() -> None:
    assert curricle.__all__ == sorted(set(curricle.__all__))
    assert len(curricle.__all__) > 20
    assert all(getattr(curricle, name).__name__ == name for name in curricle.__all__)
    assert set(curricle.__all__) <= set(dir(curricle))


def test_every_name_comes_from_where_type_checkers_are_told() -> None:
    tree = ast.parse(Path(str(curricle.__file__)).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.asname: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == dict(curricle._HOMES)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'curricle' has no attribute 'extracton'"):
        getattr(curricle, "extracton")  # noqa: B009 - the type checker knows that it is not there
