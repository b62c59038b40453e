"""A comparison so small that it is trained in a moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import tiny_comparison

MakeSpec = Callable[..., Any]
FOLDERS = {"output_dir": "run", "cache_dir": "cache"}


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """Return a function from `path=value` overrides to the spec of a tiny comparison."""
    from curricle.runs.spec import RunSpec
    from curricle.values import override, parse

    folders = {name: str(tmp_path / folder) for name, folder in FOLDERS.items()}

    def make(*assignments: str) -> Any:
        return parse(RunSpec, override(tiny_comparison() | folders, assignments))

    return make
