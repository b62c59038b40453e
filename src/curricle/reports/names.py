"""Lengths of names in figures. Escapes for what cannot be shown are in `errors.visible`."""

LONGEST = 48
"""Characters of a name in a figure."""


def shortened(text: str) -> str:
    """Return a name that leaves room for a figure; the middle of a longer one is left out."""
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
