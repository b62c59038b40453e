"""Pieces of a text that are short enough for a tokenizer.

A byte-level BPE first splits a text into words and then merges letters within each; the time that
training takes grows with the square of the longest word, and the memory of a call with the length
of its text. `pieces` therefore yields lines, and cuts those longer than `LONGEST`.

Design: a line is cut at a border of the tokenizer's own split, independent of the text around it,
so tokens stay those of the whole line. Only a run without any such border in `LONGEST` characters
(text without blanks, zeros of a damaged file) is cut inside, and its tokens with it.
"""

import unicodedata
from collections.abc import Iterable, Iterator

LONGEST = 1000
"""Characters of the longest piece; training on one word of so many takes under a millisecond."""
_BEFORE = frozenset("PSN")
"""First letters of the Unicode categories that end a run of letters: punctuation, symbols, digits.
"""


def pieces(chunks: Iterable[str], longest: int = LONGEST) -> Iterator[str]:
    """Yield a text as lines with their ends, cut where they are too long.

    Where the chunks of the text begin and end does not matter.

    Args:
        chunks: The text in order, in parts of any length.
        longest: Characters after which a line is cut; a piece has at most two more.
    """
    tail = ""
    for chunk in chunks:
        # Not `splitlines`, which also breaks at characters that are no line ends in a book.
        *lines, tail = (tail + chunk).split("\n")
        for line in lines:
            *cut, end = _cut(line, longest)
            yield from cut
            yield end + "\n"
        *cut, tail = _cut(tail, longest)
        yield from cut
    if tail:
        yield tail


def _cut(line: str, longest: int) -> list[str]:
    """Return the pieces of a line; the last may still grow with the following text."""
    if len(line) <= longest + 1:
        return [line]
    segments, start = [], 0
    # A border is judged by the character after it, so that must be there for the last cut.
    while len(line) - start > longest + 1:
        end = _border(line, start, start + longest)
        segments.append(line[start:end])
        start = end
    return [*segments, line[start:]]


def _border(line: str, start: int, latest: int) -> int:
    """Return the last place up to `latest` where a word begins, or `latest` if there is none."""
    for place in range(latest, start, -1):
        before, after = line[place - 1], line[place]
        if after == " ":
            # Two blanks are one run, whose last belongs to the next word.
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
