"""A comparison so small that it is trained in a moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeSpec = Callable[..., Any]


def tiny_plain(folder: Path) -> dict[str, Any]:
    """Return (8,2)-parity with a teacher of width 16 and a student of width 8."""
    return {
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "task": {
            "kind": "parity",
            "num_inputs": 8,
            "degree": 2,
            "batch_size": 16,
            "evaluation_examples": 64,
        },
        "teacher": {
            "model": {"kind": "mlp", "widths": [16]},
            "total": "20 steps",
            "checkpoints": 2,
        },
        "student": {"kind": "mlp", "widths": [8]},
        "curriculum": {"kind": "one_shot"},
        "strategies": {
            "one_shot": {"curriculum": {"kind": "one_shot"}},
            "progressive": {"curriculum": {"kind": "progressive"}},
        },
        "seeds": [0, 1],
        "budget": "12 steps",
        "optimizer": {"kind": "sgd", "learning_rate": 0.3},
        "engine": {"evaluate_every": 6, "record_every": 3, "threads": 1},
    }


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """Return a function from `path=value` overrides to the spec of a tiny comparison."""
    from curricle.experiments.spec import RunSpec
    from curricle.specs import override, parse

    def make(*assignments: str) -> Any:
        return parse(RunSpec, override(tiny_plain(tmp_path), assignments))

    return make
