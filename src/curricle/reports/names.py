"""Names in figures and at the start of a sentence; `errors.visible` escapes characters."""

import re
from collections.abc import Iterable

LONGEST = 48
"""Characters of a name in a figure."""


def shortened(text: str) -> str:
    """Return a name that leaves room for a figure; the middle of a longer one is left out."""
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def capitalized(text: str, names: Iterable[str]) -> str:
    """Return a sentence with a capital at its start, but for a name there, which stays as it is.

    Args:
        text: The sentence.
        names: Names with which it may begin.
    """
    if any(re.match(rf"{re.escape(name)}(?!\w)", text) for name in names):
        return text
    return f"{text[:1].upper()}{text[1:]}"
