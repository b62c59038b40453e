"""Mutations of plain data and of its text, which keep most of the grammar and break a part of it.

`mutated_tree` changes values inside JSON-like data; what no dumper can write (5,000-digit integers,
thousands of levels, aliases, duplicate keys) goes in as a marker that `finished_text` replaces.
`mutated_bytes` changes the file as bytes.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Plain = Any
"""JSON-like data of whatever shape."""
DUPLICATE = "@duplicate@"
MARKERS = {
    "@digits@": "9" * 5000,
    "@levels@": "[" * 100 + "]" * 100,
    "@many levels@": "[" * 10_000 + "]" * 10_000,
    "@open levels@": "[" * 10_000,
    "@mappings@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@huge exponent@": "1e999",
}
YAML_MARKERS = {
    "@self@": "&self [*self]",
    "@self mapping@": "&self {again: *self}",
    "@aliases@": "[&a [1,1,1,1,1,1,1,1,1], "
    + ", ".join(
        f"&{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]",
    "@merge@": "{<<: [{kind: sgd}, {kind: adamw}], kind: none}",
    "@tag@": "!!python/object/apply:os.system [true]",
    "@binary@": "!!binary aGVsbG8=",
    "@set@": "!!set {a, b}",
    "@date@": "2026-01-01",
    "@nan@": ".nan",
    "@infinity@": "-.inf",
}
NUMBERS: tuple[float, ...] = (
    *(-1, 0, 1, 3, 257, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30)),
    *(0.5, -0.0, 1e30, 1e308, -1e308, 5e-324),
)
TEXTS = (
    *("", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\r", "a\nb", "\u2028", "\u202egnp", "\ud800"),
    *("[bold]x[/bold]", "[/]", "[link=file:///]", "<script>alert(1)</script>", "{{7*7}}", "%s%n"),
    *("../../outside", "/", "/etc/passwd", "~", ".", "..", "a" * 300, "a" * 100_000, "ä" * 255),
    *("nan", "1e400", "0x10", "1_000", "-5 steps", "0 steps", "1e400 steps", "5 parsecs"),
    *("9" * 5000, "9" * 5000 + " steps", "9999999999999999999 tokens", "1.5 steps", "1T flops"),
)
SHAPES: tuple[Plain, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"kind": None}, {"": 1}, [1] * 5000, {"kind": []}),
)
BYTES = (
    *(
        b"\xff",
        b"\x00",
        b"\x1b",
        b"\r",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\t",
        b"---\n",
        b"...\n",
    ),
    *(b"\xe2\x80\xa8", b"\n\n", b"#", b"&a ", b"*a ", b"<<: ", b"!!int ", b"}", b"]", b'"', b"'"),
    *(
        b"NaN",
        b"-Infinity",
        b'{"a":1}\n',
        b"null\n",
        b"0" * 5000,
        b"% x\n",
        b"? ",
        b"| \n",
        b"\\u0000",
    ),
)


def mutated_tree(data: Plain, generator: np.random.Generator, *, is_yaml: bool) -> Plain:
    """Return plain data with one place changed."""
    result = copy.deepcopy(data)
    places = _places(result) if isinstance(result, dict | list) else []
    if not places:
        return _hostile(generator, is_yaml=is_yaml)
    parent, key = places[generator.integers(len(places))]
    change = TREE_CHANGES[generator.integers(len(TREE_CHANGES))]
    change(parent, key, generator, is_yaml)
    return result


def finished_text(text: str, *, is_yaml: bool) -> str:
    """Return dumped data with the markers replaced by what they stand for."""
    for marker, replacement in (MARKERS | (YAML_MARKERS if is_yaml else {})).items():
        for quoted in (f'"{marker}"', f"'{marker}'", marker):
            text = text.replace(quoted, replacement)
    return text.replace(DUPLICATE, "")


def mutated_bytes(data: bytes, generator: np.random.Generator) -> bytes:
    """Return bytes with one place changed."""
    change = BYTE_CHANGES[generator.integers(len(BYTE_CHANGES))]
    return change(data, generator)


def _places(data: Plain) -> list[tuple[Any, Any]]:
    """Return every parent with every key in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting:
        here = waiting.pop()
        keys: Sequence[Any] = list(here) if isinstance(here, dict) else range(len(here))
        for key in keys:
            found.append((here, key))
            if isinstance(here[key], dict | list):
                waiting.append(here[key])
    return found


def _hostile(generator: np.random.Generator, *, is_yaml: bool) -> Plain:
    """Return a value that hardly any field expects."""
    markers = [*MARKERS, *(YAML_MARKERS if is_yaml else ())]
    pools: list[Sequence[Plain]] = [NUMBERS, TEXTS, SHAPES, markers]
    pool = pools[generator.integers(4)]
    return copy.deepcopy(pool[int(generator.integers(len(pool)))])


TreeChange = Callable[[Any, Any, np.random.Generator, bool], None]


def _replace(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    parent[key] = _hostile(generator, is_yaml=is_yaml)


def _delete(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    del parent[key]


def _wrap(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    parent[key] = [parent[key]] if generator.random() < 0.5 else {"kind": parent[key]}


def _as_text(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    parent[key] = str(parent[key])


def _scale(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    if isinstance(parent[key], int | float):
        parent[key] *= (-1, 0, 1000, 10**6, 10**12, 0.5)[generator.integers(6)]
    else:
        _replace(parent, key, generator, is_yaml)


def _rename(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    if isinstance(parent, dict):
        text = TEXTS[generator.integers(len(TEXTS))]
        parent[f"{key}x" if generator.random() < 0.5 else text] = parent.pop(key)
    else:
        parent.append(parent[key])


def _duplicate(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    if isinstance(parent, dict):
        parent[f"{DUPLICATE}{key}"] = _hostile(generator, is_yaml=is_yaml)
    else:
        parent *= 2


def _move(parent: Any, key: Any, generator: np.random.Generator, is_yaml: bool) -> None:
    """Put a value in the place of its neighbor."""
    keys = list(parent) if isinstance(parent, dict) else range(len(parent))
    parent[keys[generator.integers(len(keys))]] = copy.deepcopy(parent[key])


TREE_CHANGES: tuple[TreeChange, ...] = (
    *(_replace, _replace, _replace, _replace, _delete, _wrap, _as_text, _scale, _scale),
    *(_rename, _duplicate, _move),
)


def _cut(data: bytes, generator: np.random.Generator) -> bytes:
    return data[: generator.integers(len(data) + 1)]


def _flip(data: bytes, generator: np.random.Generator) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    changed[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def _insert(data: bytes, generator: np.random.Generator) -> bytes:
    place = int(generator.integers(len(data) + 1))
    return data[:place] + BYTES[generator.integers(len(BYTES))] + data[place:]


def _repeat_line(data: bytes, generator: np.random.Generator) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    place = int(generator.integers(len(lines)))
    return b"".join([*lines[:place], lines[place], *lines[place:]])


def _drop_line(data: bytes, generator: np.random.Generator) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    del lines[generator.integers(len(lines))]
    return b"".join(lines)


def _swap_lines(data: bytes, generator: np.random.Generator) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    return b"".join(lines[place] for place in generator.permutation(len(lines)))


def _join_lines(data: bytes, generator: np.random.Generator) -> bytes:
    return data.replace(b"\n", (b"", b" ", b"\r\n", b"\n\n")[generator.integers(4)])


def _recode(data: bytes, generator: np.random.Generator) -> bytes:
    text = data.decode("utf-8", errors="replace")
    encoding = ("utf-16", "utf-8-sig", "utf-32", "cp500")[generator.integers(4)]
    return text.encode(encoding, errors="replace")


def _indent(data: bytes, generator: np.random.Generator) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    place = int(generator.integers(len(lines)))
    lines[place] = (b"\t", b"  ", b" " * 5000)[generator.integers(3)] + lines[place]
    return b"".join(lines)


BYTE_CHANGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *(_cut, _flip, _flip, _insert, _insert, _insert, _repeat_line, _drop_line, _swap_lines),
    *(_join_lines, _recode, _indent),
)
