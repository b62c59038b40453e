"""Bounded readers of YAML and JSON.

YAML can describe a great deal in few characters: aliases of aliases that expand to billions of
items, thousands of levels, integers that take seconds to parse. `from_yaml` refuses them while
parsing, and duplicate keys of a mapping, of which YAML would silently drop the first. `from_json`
turns every failure of Python's JSON reader into a `JSONDecodeError`.

Design: an alias counts with the size of its expansion, so that bounds also hold for copies.
"""

import json
from typing import Any, final

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode

MOST_CHARACTERS = 2**20
"""Characters of the longest text that is read."""
MOST_LEVELS = 50
"""Levels of the deepest nesting."""
MOST_NODES = 10_000
"""Items of the largest text, aliases counted with their expansion."""
MOST_BITS = 128
"""Bits of the largest integer."""
Document = dict[str, Any]
"""A JSON object; readers check its fields as they go."""
MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key `<<`, which may stand several times."""


def from_yaml(text: str) -> object:
    """Return the plain data in a YAML text.

    Args:
        text: The text.

    Raises:
        ValueError: If it is not YAML, beyond a bound, or has a key twice; the message is the rest
            of a sentence that begins with the name of the text.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"must have at most {MOST_CHARACTERS:,} characters; it has more")
    try:
        # The loader is PyYAML's safe one, which builds plain data only.
        return yaml.load(text, Loader=_BoundedLoader)
    except (ComposerError, ConstructorError) as error:
        raise ValueError(f"must be plain YAML: {_sentence(error)}") from None
    except MarkedYAMLError as error:
        raise ValueError(f"is not YAML: {_sentence(error)}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None


def _sentence(error: MarkedYAMLError) -> str:
    """Return the problem and its place, without a copy of the text."""
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
    return f"{' '.join(filter(None, [error.context, error.problem]))}{where}"


def kind_of(data: object) -> str:
    """Return the kind of plain data, in words."""
    if data is None:
        return "nothing"
    kinds: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "named fields",
    }
    return kinds.get(type(data), f"a {type(data).__name__}")


def from_json(text: str | bytes) -> Any:  # noqa: ANN401 - readers check as they go
    """Return the plain data in a JSON text.

    Args:
        text: The text; as bytes it must be UTF-8.

    Raises:
        JSONDecodeError: If it is not JSON, nested too deeply or holds a number with too many
            digits.
    """
    printable = text if isinstance(text, str) else repr(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("Nested too deeply", printable, 0) from None
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"Not UTF-8 ({error.reason})", printable, error.start) from None
    except ValueError:
        # Python reads no integer of more than 4,300 digits.
        raise json.JSONDecodeError("Number with too many digits", printable, 0) from None


@final
class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds; errors name line and column."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[Node, int] = {}
        self._level = 0
        self._count = 0

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        """Return the next node after counting it.

        Raises:
            ComposerError: If the text is beyond a bound, or an alias contains itself.
        """
        # PyYAML's parser carries no types.
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        alias = event.anchor if isinstance(event, yaml.AliasEvent) else None
        before, self._level = self._count, self._level + 1
        if self._level > MOST_LEVELS:
            raise ComposerError(
                None, None, f"at most {MOST_LEVELS} levels are read; there are more", mark
            )
        # The stubs know numbers only; PyYAML passes a key of a mapping, or None, as well.
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._level -= 1
        if node is None:
            return None
        if alias is None:
            self._count += 1
            self._sizes[node] = self._count - before
        elif node in self._sizes:
            self._count += self._sizes[node]
        else:
            raise ComposerError(None, None, f"alias {alias!r} contains itself", mark)
        if self._count > MOST_NODES:
            raise ComposerError(
                None,
                None,
                f"at most {MOST_NODES:,} items are read, aliases included; there are more",
                mark,
            )
        return node

    def compose_mapping_node(self, anchor: object) -> MappingNode:
        """Return a mapping with distinct keys.

        Raises:
            ComposerError: If a key stands twice.
        """
        # By the stubs it is a mapping; PyYAML passes a name or None.
        node = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != MERGE:
                line = key.start_mark.line + 1
                if (name := (key.tag, key.value)) in lines:
                    problem = f"key {_short(key.value)} stands twice, first in line {lines[name]}"
                    raise ComposerError(None, None, f"{problem},", key.start_mark)
                lines[name] = line
        return node

    def construct_object(self, node: Node, deep: bool = False) -> object:  # noqa: FBT001, FBT002 - as PyYAML
        """Return the plain data of a node.

        Raises:
            ConstructorError: If it is a number or date that cannot be read.
        """
        try:
            built = super().construct_object(node, deep=deep)
        except (ValueError, OverflowError):
            # `int` refuses thousands of digits, `date` a thirteenth month.
            raise ConstructorError(None, None, _unreadable(node), node.start_mark) from None
        if isinstance(built, int) and built.bit_length() > MOST_BITS:
            raise ConstructorError(None, None, _unreadable(node), node.start_mark)
        return built


def _unreadable(node: Node) -> str:
    return f"{_short(str(node.value))} cannot be read as a number or a date"


def _short(text: str, max_length: int = 40) -> str:
    return repr(text if len(text) <= max_length else f"{text[:max_length]}...")
