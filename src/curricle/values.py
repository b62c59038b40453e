"""Frozen values, and their conversion to and from plain data, YAML and command-line overrides.

A value *is* its configuration: there is no configuration class beside it. `value` makes a class
frozen, keyword-only, slotted and validated (by pydantic); the string under a field is its only
documentation. `parse` turns plain data into a value and every mistake into a sentence that names
the path of the field. `override` applies `a.b=c` to plain data before parsing, so that the type of
the field checks the new value.

Design: discriminated unions carry a literal `kind`; there are no import strings.
"""

import collections.abc
import functools
import hashlib
import inspect
import json
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    overload,
)

import pydantic
import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs, PydanticCustomError

from curricle.errors import SpecError, reason
from curricle.field_errors import MUST_BE, NO_FLAG, RULES, sentence, short
from curricle.renamed import name_hint
from curricle.yaml_specs import MOST_CHARACTERS, Document, from_yaml, kind_of

ValueType = TypeVar("ValueType")
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
Plain = Document
"""Plain data as YAML and JSON hold it."""

CONFIG = ConfigDict(
    extra="forbid",
    use_attribute_docstrings=True,
    coerce_numbers_to_str=True,
    arbitrary_types_allowed=True,
    allow_inf_nan=False,
)
LONGEST_NAME = 100
"""Characters of the longest name; names become folders and columns of tables."""


def _one_line(text: str) -> str:
    """Return text that a terminal prints unchanged.

    Raises:
        SpecError: If it holds a line end or another control character.
    """
    if not text.isprintable():
        raise SpecError(f"{MUST_BE}one line of printable characters; got {short(text)}")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
"""Text that is shown to people or names a file: one line without control characters."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def value(cls: type[ValueType]) -> type[ValueType]:
    """Return `cls` as a frozen, keyword-only, slotted and validated value class.

    Wrong arguments raise `SpecError` instead of pydantic's own error, so that the Python API and
    YAML have the same error sentences.
    """
    names = [name for name in cls.__annotations__ if not name.startswith("_")]
    numbers = frozenset(name for name in names if _holds_numbers(cls.__annotations__[name]))

    def reject_unknown(_cls: type, data: object) -> object:
        fields = data.kwargs or {} if isinstance(data, ArgsKwargs) else data
        if isinstance(fields, Mapping):
            for name in fields:
                if name not in names:
                    raise ValueError(f"{str(name)!r} is not a field; {name_hint(str(name), names)}")
            _refuse_flags(fields, numbers)
        return data

    # Pydantic needs a class method here, while its types accept the plain function only.
    before = pydantic.model_validator(mode="before")
    validator = before(classmethod(reject_unknown))  # type: ignore[arg-type]
    setattr(cls, "_reject_unknown", validator)  # noqa: B010 - a class made by a decorator
    built = pydantic_dataclass(frozen=True, kw_only=True, slots=True, config=CONFIG)(cls)
    validated_init = built.__init__

    def checked_init(self: object, *args: object, **fields: object) -> None:
        # Pydantic overlooks `kw_only` for required fields that are declared with `Field`.
        if args:
            raise SpecError(f"{cls.__name__!r} takes its fields by name; got {short(args[0])}")
        try:
            validated_init(self, **fields)
        except ValidationError as error:
            raise SpecError(sentence(error, fields, prefix=cls.__name__)) from None

    built.__init__ = checked_init  # type: ignore[method-assign]
    built.__signature__ = _readable(inspect.signature(built))  # type: ignore[attr-defined]
    # The decorator adds fields, it does not change the class.
    return cast("type[ValueType]", built)


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Return a function whose arguments are validated like the fields of a value."""
    validated = pydantic.validate_call(config=CONFIG)(function)
    signature = inspect.signature(function)
    names = list(signature.parameters)
    numbers = frozenset(
        name for name in names if _holds_numbers(signature.parameters[name].annotation)
    )

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        for name in kwargs:
            if name not in names:
                raise SpecError(f"{name!r} is not an argument; {name_hint(name, names)}")
        try:
            for name in _flags(kwargs, numbers):
                raise SpecError(f"{name!r} {RULES[NO_FLAG]}; got {short(kwargs[name])}")
            return validated(*args, **kwargs)
        except ValidationError as error:
            raise SpecError(sentence(error, kwargs)) from None

    # Without this, help shows the insides of every annotation.
    call.__signature__ = _readable(signature)  # type: ignore[attr-defined] # read by `inspect`
    return call


def _readable(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature with plain types, without validators."""
    return signature.replace(
        parameters=[
            parameter.replace(annotation=_bare(parameter.annotation))
            for parameter in signature.parameters.values()
        ]
    )


def _bare(kind: object) -> object:
    """Return an annotation without the validators in it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bare(inner[0])
    if origin is None or not inner or origin is Literal:
        return kind
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_bare, inner))
    if origin is collections.abc.Callable:
        return kind
    return origin[tuple(map(_bare, inner))]


def _holds_numbers(kind: object) -> bool:
    """Return whether an annotation has room for numbers and none for true or false."""
    leaves = set(_leaves(kind))
    return bool(leaves & {int, float}) and not leaves & {bool, Any, object}


def _leaves(kind: object) -> Iterator[object]:
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        yield from _leaves(inner[0])
    elif not inner or get_origin(kind) is Literal:
        yield kind
    else:
        for argument in inner:
            yield from _leaves(argument)


def _refuse_flags(fields: Mapping[str, object], numbers: frozenset[str]) -> None:
    """Refuse true and false in the place of numbers.

    Args:
        fields: Values by name.
        numbers: Names of those that hold numbers.

    Raises:
        PydanticCustomError: If there is any.
    """
    for name in _flags(fields, numbers):
        raise PydanticCustomError(NO_FLAG, RULES[NO_FLAG], {"name": name, "actual": fields[name]})


def _flags(fields: Mapping[str, object], numbers: frozenset[str]) -> Iterator[str]:
    """Yield the names of numbers in whose place there is true or false, a number to Python.

    Args:
        fields: Values by name.
        numbers: Names of those that hold numbers.
    """
    for name in numbers:
        field = fields.get(name)
        if type(field) not in (int, float, type(None)) and _has_flag(field):
            yield name


def _has_flag(field: object) -> bool:
    if isinstance(field, Mapping):
        return any(map(_has_flag, field.values()))
    if isinstance(field, list | tuple):
        return any(map(_has_flag, field))
    # Arrays and tensors of one truth value count as numbers too.
    return isinstance(field, bool | bytes) or str(getattr(field, "dtype", "")).endswith("bool")


_adapter = functools.cache(TypeAdapter[object])
"""Pydantic's reader of a type; building one takes fifty times as long as using it."""


@overload
def parse(kind: type[ValueType], data: object, *, source: str = "") -> ValueType: ...


@overload
def parse(kind: object, data: object, *, source: str = "") -> Any: ...  # noqa: ANN401 - an alias


def parse(kind: object, data: object, *, source: str = "") -> object:
    """Return plain data as a value of type `kind`.

    Args:
        kind: A value class or any annotation that pydantic understands.
        data: Plain data, for example from YAML.
        source: Origin of the data, put before the message.

    Raises:
        SpecError: If the data do not describe such a value; the path is named.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        where = f"{source}: " if source else ""
        raise SpecError(where + sentence(error, data)) from None


def plain(spec: object) -> Plain:
    """Return a value as plain data that `parse` reads back to an equal value."""
    kind: object = type(spec)
    fields: Plain = _adapter(kind).dump_python(spec, mode="json")
    return fields


def to_yaml(spec: object) -> str:
    """Return a value as YAML text in the order of its fields."""
    return yaml.safe_dump(plain(spec), sort_keys=False, width=100, allow_unicode=True)


def read_yaml(path: Path, *, listed: str = "") -> Plain:
    """Return the plain data in a YAML file.

    Args:
        path: The file.
        listed: Where its fields are listed, for the error.

    Raises:
        SpecError: If the file cannot be read, is not YAML or does not hold named fields.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # One more than is allowed shows that a file is too long, whatever its length.
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        raise SpecError(f"{str(path)!r} cannot be read: {reason(error)}") from None
    try:
        data = from_yaml(text)
    except ValueError as error:
        raise SpecError(f"{str(path)!r} {error}") from None
    rule = f"must hold named fields{f', which {listed} lists' if listed else ''}"
    if data is None:
        raise SpecError(f"{str(path)!r} is empty; it {rule}")
    if not isinstance(data, dict):
        raise SpecError(f"{str(path)!r} {rule}; got {kind_of(data)}")
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
            new = from_yaml(text) if text else ""
        except ValueError:
            raise SpecError(f"{path!r} must be set to a value in YAML; got {short(text)}") from None
        _assign(result, path, new)
    return dict(result)


def _assign(data: object, path: str, new: object) -> None:
    here = data
    names = path.split(".")
    for depth, name in enumerate(names, start=1):
        is_last = depth == len(names)
        if isinstance(here, dict):
            if is_last or here.get(name) is None:
                here[name] = new if is_last else {}
            here = here[name]
        else:
            items, number = _item(here, name, ".".join(names[:depth]))
            if is_last:
                items[number] = new
            here = items[number]


def _item(here: object, name: str, path: str) -> tuple[list[object], int]:
    """Return the list in which an item is set, and the item's number.

    Raises:
        SpecError: If there is no list, or no such item in it.
    """
    if not isinstance(here, list):
        raise SpecError(f"{path!r} cannot be set: its parent has no fields; got {short(here)}")
    if not name.isdecimal() or int(name) >= len(here):
        raise SpecError(f"{path!r} must number one of {len(here)} items; got {name!r}")
    return here, int(name)


def changes(then: Plain, now: Plain, *, words: str = "{path} was {then} and is {now}") -> list[str]:
    """Return each difference of two plain data in words, with its path and both values.

    A list is one value unless it holds mappings, whose fields are compared by number and name. A
    field that is missing equals one that is None.

    Args:
        then: The data as they were.
        now: The data as they are.
        words: Sentence on a difference, with the fields `path`, `then` and `now`.
    """
    # Data that were read from a file are compared with data as a file would hold them.
    before, after = (dict(_paths(json.loads(json.dumps(data)))) for data in (then, now))
    return [
        words.format(path=repr(path), then=_shown(before, path), now=_shown(after, path))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def _shown(leaves: Plain, path: str) -> str:
    return short(leaves[path]) if path in leaves else "not there"


def _paths(data: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values in nested plain data with their paths."""
    items: list[tuple[object, object]] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        items = list(enumerate(data))
    if not items:
        yield path, data
    for name, item in items:
        yield from _paths(item, f"{path}.{name}" if path else str(name))


def fingerprint(spec: object) -> str:
    """Return 16 hexadecimal digits that are equal exactly for equal plain data."""
    data = spec if isinstance(spec, (dict, list, str, int, float)) else plain(spec)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
