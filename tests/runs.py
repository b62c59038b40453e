"""A comparison so small that it is trained in a moment, and what lies in its folder after.

Curricle itself is not imported here: conftests use it, before the hook that checks shapes.
"""

from pathlib import Path
from typing import Any


def tiny_comparison() -> dict[str, Any]:
    """Return (8,2)-parity with a teacher of width 16 and a student of width 8, as plain data."""
    return {
        "output_dir": "run",
        "cache_dir": "cache",
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
        "engine": {"eval_every": 6, "log_every": 3, "threads": 1},
    }


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob(pattern)
        if path.is_file()
    }
