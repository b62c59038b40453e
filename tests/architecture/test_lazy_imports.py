"""Statements that leave torch alone; names of the packages are imported on first use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import curricle

HELP = "import sys; sys.argv = ['curricle', '--help']; from curricle.cli.app import main; main()"
# Packages and their lists of names; `test_public_names.py` imports every name.
INITS = (
    "import curricle.models, curricle.data.text, curricle.data.synthetic, curricle.objectives; "
    "import curricle.curriculum, curricle.teachers, curricle.training, curricle.probes; "
    "import curricle.runs; assert 'label_metrics' in dir(curricle.training)"
)
WITHOUT_TORCH = (
    "import curricle",
    "import curricle.errors",
    "import curricle.values",
    "import curricle.records",
    "import curricle.reports.page, curricle.reports.printed, curricle.reports.headline",
    "import curricle_papers.theory.gradient_correlations, curricle_papers.theory.phases",
    "import curricle_papers.theory.readouts",
    "import curricle.cli.app",
    INITS,
    "from curricle import CurricleError; from curricle.reports import load_runs, write_page",
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
