"""How long does it take before anything begins?

Imports of torch and of curricle, the first use of it, and `curricle --help` take turns, each in a
process of its own with warm file caches; seconds are those of the wall clock, medians.
Run: python benchmarks/start_up.py [--quick]
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CALLS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import curricle": [sys.executable, "-c", "import curricle"],
    "curricle.distill": [sys.executable, "-c", "import curricle; curricle.distill"],
    "curricle --help": [str(Path(sys.executable).with_name("curricle")), "--help"],
}
"""What is run."""


def main() -> None:
    """Print a row for each call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    repetitions = 2 if parser.parse_args().quick else 9
    found: dict[str, list[float]] = {name: [] for name in CALLS}
    for _ in range(repetitions + 1):
        for name, call in CALLS.items():
            started = time.perf_counter()
            subprocess.run(call, check=True, capture_output=True)
            found[name].append(time.perf_counter() - started)
    print(f"Python {platform.python_version()}, {platform.machine()}, {repetitions} repetitions")
    # The first call of each finds its files not in memory yet.
    medians = {name: statistics.median(taken[1:]) for name, taken in found.items()}
    for name, seconds in medians.items():
        print(f"{name:20} {seconds:6.2f} s, {seconds / medians['import torch']:5.2f} of torch")


if __name__ == "__main__":
    main()
