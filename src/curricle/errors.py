"""Errors that a user can cause, and the form of their sentences.

Every error a user can cause is one of the kinds below. Each derives from `CurricleError` and from
a builtin, so that both `except CurricleError` and `except ValueError` work. A message is one
sentence: the quoted name, the rule, the actual value and, if it helps, the remedy. The command
line prints it on one line and exits with 2; any other exception is a fault of curricle and keeps
its traceback.

Design: the kind follows from *when* the mistake can be detected. A value that contradicts itself is
a `SpecError` (declare); two values that do not fit are a `BindError` (bind); errors that only the
data, the disk or other processes can cause are a `DataError`, `CheckpointError`, `DivergenceError`
or `LostProcessError`, and a lack of memory is an `OutOfMemoryError` (run).
"""

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import final

CAUSAL_LOADER = "AutoModelForCausalLM"
"""Class of transformers that loads a language model with its head, as an example."""
LONGEST_SENTENCE = 1_200
"""Characters of an error sentence, a dozen lines of a terminal."""
LONGEST_REASON = 200
"""Characters of the error of another library in a message; some errors list every family."""
# Controls; marks of reading direction; line separators; surrogates and noncharacters. Joiners stay:
# Indic scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff"
    "\ud800-\udfff]"
)


class CurricleError(Exception):
    """Base of every error that a user of curricle can cause and mend."""

    def __str__(self) -> str:
        """Return the sentence as a terminal can show it.

        Names and values in it come from users and files: hidden characters are written as escapes,
        and of a very long sentence the middle is cut.
        """
        text = visible(super().__str__(), keep="\n")
        if len(text) <= LONGEST_SENTENCE:
            return text
        half = LONGEST_SENTENCE // 2
        return f"{text[:half]} ... {text[-half:]}"


@final
class SpecError(CurricleError, ValueError):
    """A declared value breaks its own rule."""


@final
class BindError(CurricleError, ValueError):
    """Two declared values do not fit together, for example a tap and a model."""


@final
class DataError(CurricleError, ValueError):
    """The data cannot be read or are too few."""

    step: int | None = None
    """Step of the faulty batch, where it is known when the error is raised; the sentence leaves it
    out, since the training loop adds it with the stage and the seed."""


@final
class CheckpointError(CurricleError, OSError):
    """A checkpoint or a run folder is missing, damaged or of another run."""


@final
class DivergenceError(CurricleError, ArithmeticError):
    """A loss became infinite or not a number while training."""


@final
class LostProcessError(CurricleError, RuntimeError):
    """A process of a run has ended, or does not answer."""


@final
class OutOfMemoryError(CurricleError, MemoryError):
    """The memory of the processor that trains is used up."""


def reason(error: Exception) -> str:
    """Return the reason of an error, without the path that an `OSError` adds to its message."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def short_reason(error: Exception) -> str:
    """Return the message of an error of another library on one line, without its end if it is long.

    Args:
        error: The error.
    """
    return " ".join(reason(error).split())[:LONGEST_REASON]


def rule(error: CurricleError) -> str:
    """Return the rule of an error sentence, without the actual value and the remedy.

    For a note on something that was tried and does not apply, which is no mistake.

    Args:
        error: The error.
    """
    return str(error).partition(";")[0]


def loading_hint(argument: object, loader: str = "AutoModel") -> str:
    """Return the end of an error sentence for a name in the place of the object that it names.

    Args:
        argument: The argument; anything but a text or a path has no hint.
        loader: Class of transformers that loads a folder or a name of the Hub.
    """
    if not isinstance(argument, str | Path):
        return ""
    return (
        f"; a folder or a name of the Hub is loaded before the call, as by transformers.{loader}"
        f".from_pretrained({str(argument)!r})"
    )


@lru_cache(maxsize=4096)
def visible(text: str, *, keep: str = "") -> str:
    """Return a text with printable characters only; hidden characters are written as escapes.

    Names of files, stages and metrics come from users; an escape sequence in one would reach the
    terminal, and a control character would make a page invalid.

    Args:
        text: Any text.
        keep: Control characters that stay, such as line ends in a block of text.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def near_names(name: str, available: Iterable[str], *, limit: int = 12) -> str:
    """Return the end of an error sentence that helps to mend a misspelt name.

    The closest available names come first as a question, then the available names themselves, cut
    after `limit` of them.
    """
    names = list(available)
    close = close_names(name, names)
    question = f"{close} " if close else ""
    listing = ", ".join(map(repr, names[:limit])) or "none"
    remainder = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{question}available: {listing}{remainder}"


def close_names(name: str, available: Iterable[str]) -> str:
    """Return a question for the available names that are close to a misspelt one; nothing if none.

    Args:
        name: The misspelt name.
        available: The available names.
    """
    close = difflib.get_close_matches(name, list(available), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""
