"""Damage of one file of a folder: a flipped bit, a lost end, or the file of another run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.soak.contents import files_below

KINDS, SHARES = ("bit", "end", "swap"), (0.7, 0.15, 0.15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What was done to which file."""

    file: str
    """Path in the damaged folder."""
    kind: str
    place: int
    """Byte that was changed, or the new length; 0 for a swap."""
    bit: int = 0


def draw_damage(generator: np.random.Generator, folder: Path, other: Path) -> Damage:
    """Return a damage of a folder's file; every file is as likely as any other.

    Args:
        generator: Of the trial.
        folder: What is damaged.
        other: The same kind of folder, made by another run.
    """
    files = [path.relative_to(folder) for path in files_below(folder) if path.stat().st_size]
    file = files[generator.integers(len(files))]
    kind = str(generator.choice(KINDS, p=SHARES))
    if kind == "swap" and not _differs(folder / file, other / file):
        kind = "bit"
    size = (folder / file).stat().st_size
    place = 0 if kind == "swap" else int(generator.integers(size))
    return Damage(file=str(file), kind=kind, place=place, bit=int(generator.integers(8)))


def apply_damage(damage: Damage, folder: Path, other: Path) -> None:
    """Damage a file of a folder."""
    path = folder / damage.file
    if damage.kind == "swap":
        shutil.copyfile(other / damage.file, path)
        return
    data = bytearray(path.read_bytes())
    if damage.kind == "end":
        del data[damage.place :]
    else:
        data[damage.place] ^= 1 << damage.bit
    path.write_bytes(data)


def _differs(path: Path, other: Path) -> bool:
    return other.is_file() and other.read_bytes() != path.read_bytes()
