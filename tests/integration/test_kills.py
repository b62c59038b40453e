"""Ten runs that are killed with SIGKILL end as those that nobody disturbs.

The hundred of docs/reliability.md are run by the same script, over all kinds of runs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.integration
def test_ten_killed_runs_end_bit_equal(tmp_path: Path) -> None:
    # In a process of its own: the script forks, which threads of this one would not survive.
    arguments = ["--count", "10", "--quick", "--output", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.soak.kills", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "10 kills in " in ended.stdout
