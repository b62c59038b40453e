"""How do frozen values become plain data, YAML and command-line overrides, and back?

A value *is* its configuration: there is no configuration class beside it. `value` makes a class
frozen, keyword-only, slotted and validated (pydantic does the work); the string under a field is
its only documentation. `parse` turns plain data into a value and every mistake into one sentence
that names the path of the field. `override` applies `a.b=c` to plain data before parsing, so that
the field's own type judges the new value.

Design: discriminated unions carry a literal `kind`; there are no import strings.
"""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, cast, dataclass_transform

import pydantic
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from curricle.errors import SpecError, near_names, reason

ValueType = TypeVar("ValueType")
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
Plain = dict[str, Any]
"""Plain data as YAML and JSON hold it."""

CONFIG = ConfigDict(
    extra="forbid",
    use_attribute_docstrings=True,
    coerce_numbers_to_str=True,
    arbitrary_types_allowed=True,
    allow_inf_nan=False,
)
SHOULD = "input should be "
RULES = MappingProxyType(
    dict.fromkeys(("bool_parsing", "bool_type"), f"{SHOULD}true or false")
    | dict.fromkeys(("dict_type", "dataclass_type", "model_attributes_type"), f"{SHOULD}a mapping")
    | dict.fromkeys(("tuple_type", "list_type"), f"{SHOULD}a list")
)
"""What pydantic says in Python's words, said in those of a file."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def value(cls: type[ValueType]) -> type[ValueType]:
    """Return `cls` as a frozen, keyword-only, slotted and validated value class.

    Building one from wrong arguments raises `SpecError` instead of pydantic's own error, so that
    the Python API and YAML speak the same sentences.
    """
    names = [name for name in cls.__annotations__ if not name.startswith("_")]

    def reject_unknown(_cls: type, data: Any) -> Any:  # noqa: ANN401 - pydantic's own signature
        given = data.kwargs or {} if isinstance(data, ArgsKwargs) else data
        if isinstance(given, Mapping):
            for name in given:
                if name not in names:
                    raise ValueError(f"{name!r} is not a field; {near_names(str(name), names)}")
        return data

    # Pydantic itself asks for a class method here; its types know the plain function only.
    method: Any = classmethod(reject_unknown)
    validator = pydantic.model_validator(mode="before")(method)
    setattr(cls, "_reject_unknown", validator)  # noqa: B010 - a class made by a decorator
    built: Any = pydantic_dataclass(frozen=True, kw_only=True, slots=True, config=CONFIG)(cls)
    validated_init = built.__init__

    def checked_init(self: object, *args: Any, **fields: Any) -> None:  # noqa: ANN401
        # Pydantic overlooks `kw_only` for required fields that are declared with `Field`.
        if args:
            raise SpecError(f"{cls.__name__!r} takes its fields by name; got {_short(args[0])}")
        try:
            validated_init(self, **fields)
        except ValidationError as error:
            raise SpecError(sentence(error, fields, prefix=cls.__name__)) from None

    built.__init__ = checked_init
    # The decorator adds fields, it does not change the class.
    return cast("type[ValueType]", built)


def sentence(error: ValidationError, data: object, *, prefix: str = "") -> str:
    """Return the first mistake of a validation error as one sentence with the field's path."""
    first, *others = error.errors(include_url=False)
    place = _path(first, data)
    path = ".".join(filter(None, [prefix, place]))
    if first["type"] == "union_tag_not_found":
        return f"{'.'.join(filter(None, [path, 'kind']))!r}: field required"
    rule = _rule(first)
    if first["type"] in ("value_error", "union_tag_invalid"):
        return f"{path!r}: {rule}" if path else rule
    # A field of several types breaks the rule of each.
    choices = [_rule(one) for one in others if _path(one, data) == place]
    rule = " or ".join(dict.fromkeys([rule, *(one.removeprefix(SHOULD) for one in choices)]))
    got = "" if first["type"].startswith("missing") else f"; got {_short(first['input'])}"
    return f"{path!r}: {rule}{got}"


def _rule(error: ErrorDetails) -> str:
    """Return the rule that an error breaks, in the words of a file."""
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "union_tag_invalid":
        found, known = error["ctx"]["tag"], error["ctx"]["expected_tags"].split(", ")
        near = near_names(found, [name.strip("'") for name in known])
        return f"{found!r} is not a kind; {near}"
    message = error["msg"].replace("Tuple ", "List ")
    return RULES.get(error["type"], message[0].lower() + message[1:])


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Return a function whose arguments are validated like the fields of a value."""
    validated = pydantic.validate_call(config=CONFIG)(function)
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        for name in kwargs:
            if name not in known:
                raise SpecError(f"{name!r} is not an argument; {near_names(name, known)}")
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            raise SpecError(sentence(error, kwargs)) from None

    return call


def _path(error: ErrorDetails, data: object) -> str:
    """Return the dotted path of an error without the tags that pydantic adds for unions."""
    parts: list[str] = []
    here: Any = data
    for position, item in enumerate(error["loc"]):
        in_mapping = isinstance(here, Mapping) and item in here
        if in_mapping or (isinstance(here, Sequence) and item in range(len(here))):
            here = here[item]
        elif position < len(error["loc"]) - 1 or not error["type"].startswith("missing"):
            continue
        parts.append(str(item))
    return ".".join(parts)


def _short(found: object, most: int = 80) -> str:
    text = repr(found)
    return text if len(text) <= most else text[: most - 3] + "..."


@functools.cache
def _adapter(kind: Any) -> Any:  # noqa: ANN401 - the shape checks know no `TypeAdapter`
    """Return pydantic's reader of a type; building one takes fifty times as long as using it."""
    return TypeAdapter(kind)


def parse(kind: Any, data: object, *, source: str = "") -> Any:  # noqa: ANN401 - any value type
    """Return plain data as a value of type `kind`.

    Args:
        kind: A value class or any annotation that pydantic understands.
        data: Plain data, for example from YAML.
        source: What the data came from, put before the message.

    Raises:
        SpecError: If the data do not describe such a value; the path is named.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        where = f"{source}: " if source else ""
        raise SpecError(where + sentence(error, data)) from None


def plain(spec: object) -> Any:  # noqa: ANN401 - plain data has no narrower type
    """Return a value as plain data that `parse` reads back to an equal value."""
    kind: Any = type(spec)
    return _adapter(kind).dump_python(spec, mode="json")


def to_yaml(spec: object) -> str:
    """Return a value as YAML text in the order of its fields."""
    return yaml.safe_dump(plain(spec), sort_keys=False, width=100, allow_unicode=True)


def read_yaml(path: Path) -> Plain:
    """Return the plain data in a YAML file.

    Raises:
        SpecError: If the file cannot be read, is not YAML or does not hold named fields.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{str(path)!r} cannot be read: {reason(error)}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{str(path)!r} must hold named fields; got {type(data).__name__}")
    return data


def override(data: Plain, assignments: Sequence[str]) -> Plain:
    """Return a copy of plain data with every `path=value` applied.

    A path is field names joined by dots; a number picks an item of a list. The text after `=` is
    read as YAML, and the field's own type judges it when the data are parsed.

    Raises:
        SpecError: If an assignment has no `=`, its value is not YAML, or its path runs through
            something without fields.
    """
    # A round trip, because YAML's aliases are one object in several places. Dates become texts.
    result = json.loads(json.dumps(data, default=str))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise SpecError(f"{assignment!r} must have the form path=value")
        try:
            new = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise SpecError(f"{path!r} must be set to a value in YAML; got {text!r}") from None
        _assign(result, path, new)
    return dict(result)


def _assign(data: Any, path: str, new: object) -> None:  # noqa: ANN401 - walks plain data
    here = data
    names = path.split(".")
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        key = _key(here, name, ".".join(names[: depth + 1]))
        if last:
            here[key] = new
        else:
            if isinstance(here, dict) and here.get(key) is None:
                here[key] = {}
            here = here[key]


def _key(here: object, name: str, path: str) -> str | int:
    if isinstance(here, dict):
        return name
    if not isinstance(here, list):
        raise SpecError(f"{path!r} cannot be set: its parent has no fields; got {_short(here)}")
    if not name.isdecimal() or int(name) >= len(here):
        raise SpecError(f"{path!r} must number one of {len(here)} items; got {name!r}")
    return int(name)


def fingerprint(spec: object) -> str:
    """Return 16 hexadecimal digits that are equal exactly for equal plain data."""
    data = spec if isinstance(spec, (dict, list, str, int, float)) else plain(spec)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
