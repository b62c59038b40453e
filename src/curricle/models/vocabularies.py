"""Comparison of two vocabularies by token id.

Logits are compared class by class, so equal ids must stand for equal tokens. Equal sizes prove
nothing: two tokenizers trained on different texts may have as many tokens. One vocabulary may
extend the other at its end, as by added tokens or padding to a multiple of 64; then the first ids
are common and the logits after them are left out on both sides.

Design: tokens are read from `tokenizer.json`, or from the `get_vocab` of a tokenizer object, so
neither transformers nor tokenizers is imported.
"""

from collections.abc import Mapping
from pathlib import Path

from curricle.errors import BindError
from curricle.models.tapped import TappedModel
from curricle.yaml_specs import from_json

TOKENIZER = "tokenizer.json"
"""File with the tokens of a Hugging Face folder."""
SHOWN = 3
"""Number of differing ids in an error sentence."""


def common_vocabulary(student: object, teacher: object) -> int:
    """Return the number of leading ids that stand for the same tokens in two tokenizers.

    It is the `num_classes` of `MatchLogits` for two models with these tokenizers.

    Args:
        student: The student's tokenizer: an object with `get_vocab`, as those of transformers and
            tokenizers, a `tokenizer.json`, or a folder with that file.
        teacher: The teacher's tokenizer, likewise.

    Raises:
        BindError: If an id stands for different tokens, or a tokenizer cannot be read; the first
            differing ids are shown with both tokens.
    """
    tokens = token_ids("student", student), token_ids("teacher", teacher)
    return _common(*(_by_id(ids) for ids in tokens))


def common_classes(student: TappedModel, teacher: TappedModel) -> int | None:
    """Return the number of leading token ids that two models have in common.

    The tokenizer of a model is the one in the local folder that it was loaded from. None is
    returned if one is unknown, or if tokenizers and numbers of logits are equal.

    Args:
        student: The model that learns.
        teacher: The model that teaches.

    Raises:
        BindError: If an id stands for different tokens.
    """
    files = _tokenizer_file(student), _tokenizer_file(teacher)
    if files[0] is None or files[1] is None:
        return None
    sizes = [getattr(_config(model), "vocab_size", None) for model in (student, teacher)]
    if sizes[0] == sizes[1] and files[0].read_bytes() == files[1].read_bytes():
        return None
    return common_vocabulary(*files)


def token_ids(role: str, tokenizer: object) -> Mapping[str, int]:
    """Return the id of each token, added tokens included.

    Args:
        role: Name of the tokenizer in error sentences: `student` or `teacher`.
        tokenizer: As in `common_vocabulary`.

    Raises:
        BindError: If it is none of these, or the file cannot be read.
    """
    if isinstance(tokenizer, (str, Path)):
        return _ids_in_file(role, Path(tokenizer))
    read = getattr(tokenizer, "get_vocab", None)
    vocabulary = read() if callable(read) else None
    if not isinstance(vocabulary, Mapping):
        raise BindError(
            f"the {role}'s tokenizer must have 'get_vocab', as those of transformers and "
            f"tokenizers, or be a folder with {TOKENIZER}; got {type(tokenizer).__name__!r}"
        )
    return vocabulary


def _tokenizer_file(model: TappedModel) -> Path | None:
    """Return the `tokenizer.json` beside the weights of a model; None if there is none."""
    folder = getattr(_config(model), "_name_or_path", None)
    if not isinstance(folder, str) or not folder:
        return None
    path = Path(folder, TOKENIZER)
    return path if path.is_file() else None


def _config(model: TappedModel) -> object:
    return getattr(getattr(model, "module", None), "config", None)


def _ids_in_file(role: str, path: Path) -> Mapping[str, int]:
    file = path / TOKENIZER if path.is_dir() else path
    try:
        content = from_json(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        # Unigram models have a list of tokens with their scores, in the order of ids.
        ids = (
            dict(vocabulary)
            if isinstance(vocabulary, dict)
            else {token: number for number, (token, _) in enumerate(vocabulary)}
        )
        added = {token["content"]: int(token["id"]) for token in content.get("added_tokens", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BindError(
            f"the {role}'s tokenizer must be readable as {TOKENIZER} of tokenizers; got "
            f"{str(file)!r}: {type(error).__name__} {error}"
        ) from None
    return ids | added


def _by_id(ids: Mapping[str, int]) -> dict[int, str]:
    return {number: token for token, number in ids.items()}


def _common(student: Mapping[int, str], teacher: Mapping[int, str]) -> int:
    """Return the number of ids up to the last one of the smaller vocabulary.

    Raises:
        BindError: If an id below it stands for different tokens.
    """
    count = min(max(student, default=-1), max(teacher, default=-1)) + 1
    differing = [number for number in range(count) if student.get(number) != teacher.get(number)]
    if differing or not count:
        pairs = "; ".join(
            f"id {number} is {_quoted(student, number)} for the student and "
            f"{_quoted(teacher, number)} for the teacher"
            for number in differing[:SHOWN]
        )
        raise BindError(
            f"tokenizers of student and teacher must give equal tokens equal ids to compare "
            f"logits by id; {len(differing)} of the first {count} ids differ: {pairs}; take the "
            f"teacher's tokenizer for the student, or read the text with both by "
            f"curricle.paired_texts and match by MatchPairedLogits"
        )
    return count


def _quoted(tokens: Mapping[int, str], number: int) -> str:
    return repr(tokens[number]) if number in tokens else "no token"
