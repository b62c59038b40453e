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

MUST_BE = "must be "
"""Begin of the rules of types and ranges."""
MUST_HAVE = "must have "
"""Begin of the rules of lengths."""
KINDS = MappingProxyType({"character": "a string", "item": "a list", "field": "a mapping"})
"""Types that have a length, by the unit of the length."""
INTEGER = f"{MUST_BE}an integer"
NUMBER = f"{MUST_BE}a number"
TEXT = f"{MUST_BE}a string"
MAPPING = f"{MUST_BE}a mapping"
LIST = f"{MUST_BE}a list"
FLAG = f"{MUST_BE}true or false"
GIVEN = "must be given"
OTHERWISE = "does not have the form of this field"
"""Rule for a type of error that no field of ours raises."""
NO_FLAG = "no_flag"
"""Type of the error of `values` for true or false in the place of a number."""
RULES = MappingProxyType(
    {
        NO_FLAG: f"{MUST_BE}a number, not true or false",
        "missing": GIVEN,
        "missing_argument": GIVEN,
        "missing_keyword_only_argument": GIVEN,
        "missing_positional_only_argument": GIVEN,
        "multiple_argument_values": "must be given once",
        "unexpected_positional_argument": "must be passed by name",
        "unexpected_keyword_argument": "is not an argument",
        "extra_forbidden": "is not a field",
        "invalid_key": "must have a string as its name",
        "recursion_loop": "must not contain itself",
        "none_required": f"{MUST_BE}null",
        "bool_parsing": FLAG,
        "bool_type": FLAG,
        "int_parsing": INTEGER,
        "int_type": INTEGER,
        "int_from_float": INTEGER,
        "int_parsing_size": f"{MUST_BE}an integer of fewer digits",
        "float_parsing": NUMBER,
        "float_type": NUMBER,
        "finite_number": f"{MUST_BE}a finite number",
        "greater_than": f"{MUST_BE}greater than {{gt}}",
        "greater_than_equal": f"{MUST_BE}greater than or equal to {{ge}}",
        "less_than": f"{MUST_BE}less than {{lt}}",
        "less_than_equal": f"{MUST_BE}less than or equal to {{le}}",
        "multiple_of": f"{MUST_BE}a multiple of {{multiple_of}}",
        "string_type": TEXT,
        "string_unicode": TEXT,
        "string_not_ascii": "must hold ASCII characters only",
        "literal_error": f"{MUST_BE}{{expected}}",
        "enum": f"{MUST_BE}{{expected}}",
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
        "is_instance_of": f"{MUST_BE}of class {{class}}",
        "is_subclass_of": f"{MUST_BE}a class derived from {{class}}",
        "callable_type": f"{MUST_BE}a function",
    }
)
"""Rule by type of error; braces hold its numbers and names."""
PLAIN_NAME = r"^[\w+-][\w.+-]*$"
"""Pattern of names that become folders."""
PATTERNS = MappingProxyType(
    {
        PLAIN_NAME: f"{MUST_BE}made of letters, digits, '_', '+', '-' and, after the first "
        f"character, '.'"
    }
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
        return f"{'.'.join(filter(None, [path, 'kind']))!r} {GIVEN}"
    rule = _rule(first)
    if first["type"] in ("value_error", "assertion_error", "union_tag_invalid"):
        # Rules of our own begin with their subject, or have that of the path.
        colon = "" if rule.startswith("must ") else ":"
        return f"{path!r}{colon} {rule}" if path else rule
    # A field of several types breaks the rule of each; a name and its value are judged apart.
    choices = [
        _choice(detail)
        for detail in further
        if _path(detail, data) == place and _is_of_name(detail) == _is_of_name(first)
    ]
    rule = " or ".join(dict.fromkeys([rule, *choices]))
    got = "" if first["type"].startswith("missing") else f"; got {short(_actual(first))}"
    subject = repr(path) if path else "input"
    return f"{subject} {rule}{got}{_remedy([first, *further], data)}"


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
        return PATTERNS.get(numbers["pattern"], f"{MUST_BE}of the form {numbers['pattern']}")
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
        return f"{MUST_HAVE}{limit} character{plural}"
    item = "field" if isinstance(items, Mapping) else "item"
    length = f" and has {len(items)}" if isinstance(items, Sequence | Mapping) else ""
    return f"{MUST_HAVE}{limit} {item}{plural}{length}"


def _bound(number: object) -> object:
    """Return a bound of a range without a fraction of zero, and any other context unchanged."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _choice(error: ErrorDetails) -> str:
    """Return the rule of one of several types as the end of a sentence on all of them."""
    rule = _rule(error).partition("; got ")[0].removeprefix(MUST_BE)
    if not rule.startswith(MUST_HAVE):
        return rule
    length = rule.removeprefix(MUST_HAVE)
    return f"{next(kind for unit, kind in KINDS.items() if unit in length)} of {length}"


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
