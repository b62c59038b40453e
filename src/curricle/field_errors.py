"""Sentences for the errors of pydantic: path of the field, rule, actual value, remedy.

Pydantic finds mistakes, and its words for them are those of Python's types and of its own
machinery. The sentences here are made of the type of an error and of its numbers alone, in the
terms of a file; the message of an error is never passed on, except for rules of our own that raise
a `ValueError`.

Design: a type of error without a row has the rule of `OTHERWISE`, so that no version of pydantic
can bring its words back.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from curricle.errors import close_names, near_names

SHOULD = "input should be "
"""Begin of the rules of types and ranges."""
INTEGER = f"{SHOULD}a valid integer"
NUMBER = f"{SHOULD}a valid number"
TEXT = f"{SHOULD}a valid string"
MAPPING = f"{SHOULD}a mapping"
LIST = f"{SHOULD}a list"
FLAG = f"{SHOULD}true or false"
OTHERWISE = f"{SHOULD}of another kind"
"""Rule for a type of error that no field of ours raises."""
NO_FLAG = "no_flag"
"""Type of the error of `values` for true or false in the place of a number."""
RULES = MappingProxyType(
    {
        NO_FLAG: f"{SHOULD}a number, not true or false",
        "missing": "field required",
        "missing_argument": "argument required",
        "missing_keyword_only_argument": "argument required",
        "missing_positional_only_argument": "argument required",
        "multiple_argument_values": "argument should be there once",
        "unexpected_positional_argument": "argument should be passed by name",
        "unexpected_keyword_argument": "argument does not exist",
        "extra_forbidden": "field does not exist",
        "invalid_key": "name should be a valid string",
        "recursion_loop": "input should not contain itself",
        "none_required": f"{SHOULD}null",
        "bool_parsing": FLAG,
        "bool_type": FLAG,
        "int_parsing": INTEGER,
        "int_type": INTEGER,
        "int_from_float": INTEGER,
        "int_parsing_size": f"{SHOULD}an integer of fewer digits",
        "float_parsing": NUMBER,
        "float_type": NUMBER,
        "finite_number": f"{SHOULD}a finite number",
        "greater_than": f"{SHOULD}greater than {{gt}}",
        "greater_than_equal": f"{SHOULD}greater than or equal to {{ge}}",
        "less_than": f"{SHOULD}less than {{lt}}",
        "less_than_equal": f"{SHOULD}less than or equal to {{le}}",
        "multiple_of": f"{SHOULD}a multiple of {{multiple_of}}",
        "string_type": TEXT,
        "string_unicode": TEXT,
        "string_not_ascii": "string should hold ASCII characters only",
        "literal_error": f"{SHOULD}{{expected}}",
        "enum": f"{SHOULD}{{expected}}",
        "dict_type": MAPPING,
        "mapping_type": MAPPING,
        "dataclass_type": MAPPING,
        "dataclass_exact_type": MAPPING,
        "model_type": MAPPING,
        "model_attributes_type": MAPPING,
        "tuple_type": LIST,
        "list_type": LIST,
        "set_type": LIST,
        "frozen_set_type": LIST,
        "iterable_type": LIST,
        "is_instance_of": f"{SHOULD}of class {{class}}",
        "is_subclass_of": f"{SHOULD}a class derived from {{class}}",
        "callable_type": f"{SHOULD}a function",
    }
)
"""Rule by type of error; braces hold its numbers and names."""
PLAIN_NAME = r"^[\w+-][\w.+-]*$"
"""Pattern of names that become folders."""
PATTERNS = MappingProxyType(
    {PLAIN_NAME: f"{SHOULD}letters, digits, '_', '+', '-' and, after the first character, '.'"}
)
"""Rule by pattern of a text."""
# Names of kinds and choices have no quotes inside.
QUOTED = re.compile(r"'([^']*)'")


def sentence(error: ValidationError, data: object, *, prefix: str = "") -> str:
    """Return the first mistake of a validation error as one sentence with the field's path.

    Args:
        error: The error.
        data: The data that were validated, of whose names the path is made.
        prefix: Name that the path begins with.
    """
    first, *further = error.errors(include_url=False)
    place = _path(first, data)
    path = ".".join(filter(None, [prefix, place]))
    if first["type"] == "union_tag_not_found":
        return f"{'.'.join(filter(None, [path, 'kind']))!r}: field required"
    where, rule = f"{path!r}: " if path else "", _rule(first)
    if first["type"] in ("value_error", "assertion_error", "union_tag_invalid"):
        return f"{where}{rule}"
    # A field of several types breaks the rule of each; a name and its value are judged apart.
    choices = [
        _choice(detail)
        for detail in further
        if _path(detail, data) == place and _is_of_name(detail) == _is_of_name(first)
    ]
    rule = " or ".join(dict.fromkeys([rule, *choices]))
    got = "" if first["type"].startswith("missing") else f"; got {short(_actual(first))}"
    return f"{where}{rule}{got}{_remedy([first, *further], data)}"


def short(item: object, max_length: int = 80) -> str:
    """Return a value as Python writes it, cut if it is long."""
    text = repr(item)
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def _rule(error: ErrorDetails) -> str:
    """Return the rule that an error breaks, in the words of a file."""
    kind, numbers = error["type"], error.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(numbers["error"])
    if kind == "union_tag_invalid":
        tag = numbers["tag"]
        return f"{tag!r} is not a kind; {near_names(tag, QUOTED.findall(numbers['expected_tags']))}"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return _length_rule(error["input"], numbers)
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(numbers["pattern"], f"{SHOULD}of the form {numbers['pattern']}")
    rule = RULES.get(kind, OTHERWISE)
    return rule.format_map({name: _bound(number) for name, number in numbers.items()})


def _length_rule(items: object, numbers: Mapping[str, object]) -> str:
    """Return the rule for the length of a text, list or mapping.

    Args:
        items: The text, list or mapping.
        numbers: The bound, as `min_length` or `max_length`.
    """
    is_minimum = "min_length" in numbers
    bound = numbers["min_length" if is_minimum else "max_length"]
    limit, plural = f"at {'least' if is_minimum else 'most'} {bound}", "" if bound == 1 else "s"
    if isinstance(items, str):
        return f"string should have {limit} character{plural}"
    name, item = ("mapping", "field") if isinstance(items, Mapping) else ("list", "item")
    length = f" and has {len(items)}" if isinstance(items, Sequence | Mapping) else ""
    return f"{name} should have {limit} {item}{plural}{length}"


def _bound(number: object) -> object:
    """Return a bound of a range without a fraction of zero, and any other context unchanged."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _choice(error: ErrorDetails) -> str:
    """Return the rule of one of several types as the end of a sentence on all of them."""
    rule = _rule(error).partition("; got ")[0].removeprefix(SHOULD)
    return re.sub(r"^(string|list|mapping) should have ", r"a \1 of ", rule)


def _is_of_name(error: ErrorDetails) -> bool:
    """Return whether an error is one of a name in a mapping, whose path is that of its value."""
    return error["loc"][-1:] == ("[key]",)


def _actual(error: ErrorDetails) -> object:
    return error["ctx"]["actual"] if error["type"] == NO_FLAG else error["input"]


def _remedy(errors: Sequence[ErrorDetails], data: object) -> str:
    """Return the names that a misspelt choice is close to, as the end of a sentence.

    Args:
        errors: The errors; those of the first one's field name its choices.
        data: The data that were validated.
    """
    actual, place = errors[0]["input"], _path(errors[0], data)
    if not isinstance(actual, str):
        return ""
    names = [
        name
        for error in errors
        if error["type"] in ("literal_error", "enum") and _path(error, data) == place
        for name in QUOTED.findall(error["ctx"]["expected"])
    ]
    close = close_names(actual, names)
    return f"; {close}" if close else ""


def _path(error: ErrorDetails, data: object) -> str:
    """Return the dotted path of an error without the tags that pydantic adds for unions."""
    names: list[str] = []
    here = data
    for position, item in enumerate(error["loc"]):
        items = dict(enumerate(here)) if isinstance(here, Sequence) else here
        if isinstance(items, Mapping) and item in items:
            here = items[item]
        elif position < len(error["loc"]) - 1 or not error["type"].startswith("missing"):
            continue
        names.append(str(item))
    if error["type"] == NO_FLAG:
        names.append(str(error["ctx"]["name"]))
    return ".".join(names)
