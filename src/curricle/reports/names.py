"""Names from records, made safe to show.

Records may come from others: a name can hold escape sequences that a terminal would obey, marks
that turn the direction of reading, halves of surrogate pairs that no file can hold, or characters
that XML forbids. They are shown as escapes, as Python writes them. Markup is escaped where it is
written.
"""

import re
from functools import lru_cache

LONGEST = 48
"""Characters of a name in a figure."""
# Controls; marks of reading direction; line separators; surrogates and noncharacters. Joiners stay:
# Indic scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff"
    "\ud800-\udfff]"
)


@lru_cache(maxsize=4096)
def visible(text: str, *, keep: str = "") -> str:
    """Return a text whose characters can all be shown; others are written as escapes.

    Args:
        text: Any text.
        keep: Control characters that stay, such as line ends in a block of text.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def shortened(text: str) -> str:
    """Return a name that leaves room for a figure; the middle of a longer one is left out."""
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
