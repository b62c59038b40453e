"""Pieces of a text that are short enough for a tokenizer.

A byte-level BPE first splits a text into words and then merges letters within each; its training
time grows with the square of the longest word, and the memory of a call with the length of its
text. `pieces` therefore yields lines, and cuts those longer than `LONGEST`.

Design: a line is cut at a border of the tokenizer's own split that does not depend on its context,
so tokens are those of the uncut line. Only a run of `LONGEST` characters without such a border
(text without blanks, zeros of a damaged file) is cut inside, which may split a token.
"""

import unicodedata
from collections.abc import Iterable, Iterator

LONGEST = 1000
"""Characters of the longest piece; training on a word of this length takes under a millisecond."""
AT_ONCE = 2**18
"""Characters per call of a tokenizer, which needs a hundred bytes for each."""
_BEFORE = frozenset("PSN")
"""First letters of the Unicode categories that end a run of letters: punctuation, symbols, digits.
"""


def pieces(chunks: Iterable[str], longest: int = LONGEST) -> Iterator[str]:
    """Yield a text as lines with their ends; long lines are cut.

    The borders of the chunks have no effect.

    Args:
        chunks: The text in order, in chunks of any length.
        longest: Characters after which a line is cut; a piece has at most two more.
    """
    remainder = ""
    for chunk in chunks:
        # `splitlines` would also break at characters that are not line ends in a book.
        *lines, remainder = (remainder + chunk).split("\n")
        for line in lines:
            *cut, end = _cut(line, longest)
            yield from cut
            yield end + "\n"
        *cut, remainder = _cut(remainder, longest)
        yield from cut
    if remainder:
        yield remainder


def _cut(line: str, longest: int) -> list[str]:
    """Return the pieces of a line; the last may grow with the following text."""
    if len(line) <= longest + 1:
        return [line]
    cut, start = [], 0
    # Whether a place is a border depends on the character after it, which the last cut needs too.
    while len(line) - start > longest + 1:
        end = _border(line, start, start + longest)
        cut.append(line[start:end])
        start = end
    return [*cut, line[start:]]


def _border(line: str, start: int, latest: int) -> int:
    """Return the last beginning of a word up to `latest`, or `latest` if there is none."""
    for place in range(latest, start, -1):
        before, after = line[place - 1], line[place]
        if after == " ":
            # The last blank of a run belongs to the next word, the others do not.
            if not before.isspace() and not line[place + 1].isspace():
                return place
        elif (
            before.isalpha()
            # ">" may close a special token such as `<unk>`, which must stay whole.
            and after != ">"
            and unicodedata.category(after)[0] in _BEFORE
        ):
            return place
    return latest


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of about `AT_ONCE` characters.

    Args:
        texts: Texts in order.
    """
    batch: list[str] = []
    count = 0
    for text in texts:
        batch.append(text)
        count += len(text)
        if count >= AT_ONCE:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
