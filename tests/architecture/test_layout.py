"""Rules of the layout that no linter holds: sizes, names, namesakes, final classes, sentences."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src"
FILES = sorted(SOURCE.rglob("*.py"))
# Files are split by noun, never because they are full; see docs/decisions/0008.
LONGEST_FILE = 600
ATTICS = {"utils", "util", "common", "helpers", "helper", "misc"}
# Base class of every error; it is caught, never raised.
ABSTRACT_CLASSES = {"CurricleError", "Interrupted"}
EVERY_FILE = pytest.mark.parametrize(
    "path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES]
)


def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes(path: Path) -> Iterator[ast.ClassDef]:
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.ClassDef):
            yield node


def name_of(node: ast.expr) -> str:
    """Return the last name in `a.b.name(...)` or `name[...]`."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def decorators(node: ast.ClassDef) -> dict[str, ast.expr]:
    return {name_of(decorator): decorator for decorator in node.decorator_list}


def sets(decorator: ast.expr, option: str) -> bool:
    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
    return any(
        keyword.arg == option
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is True
        for keyword in keywords
    )


def is_abstract(node: ast.ClassDef) -> bool:
    return node.name in ABSTRACT_CLASSES or bool({"ABC", "Protocol"} & {*map(name_of, node.bases)})


@cache
def protocols() -> set[str]:
    """Return the names of all protocols of the source."""
    return {
        node.name
        for path in FILES
        for node in classes(path)
        if "Protocol" in map(name_of, node.bases)
    }


@EVERY_FILE
def test_no_object_is_checked_against_a_protocol_by_isinstance(path: Path) -> None:
    # Since Python 3.12 it misses attributes that are forwarded; `protocols.conforms` does not.
    checked = [
        name_of(name)
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.Call) and name_of(node) in ("isinstance", "issubclass")
        for name in ast.walk(node.args[1])
        if isinstance(name, (ast.Name, ast.Attribute))
    ]
    assert "TappedModel" in protocols()
    assert not protocols() & set(checked)


def test_the_source_is_found() -> None:
    assert SOURCE / "curricle" / "errors.py" in FILES


@EVERY_FILE
def test_a_source_file_stays_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@EVERY_FILE
def test_a_module_is_named_after_what_it_holds(path: Path) -> None:
    assert not ATTICS & {*path.relative_to(SOURCE).parent.parts, path.stem}


@EVERY_FILE
def test_annotations_are_evaluated_where_they_stand(path: Path) -> None:
    found = [
        node.module for node in ast.walk(syntax_tree(path)) if isinstance(node, ast.ImportFrom)
    ]
    assert "__future__" not in found


def test_no_two_modules_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        if not path.stem.startswith("__"):
            places.setdefault(path.stem, []).append(str(path.relative_to(REPOSITORY)))
    shared = [", ".join(paths) for paths in places.values() if len(paths) > 1]
    assert not shared, "of one name: " + "; ".join(shared)


def test_every_module_has_a_namesake_test() -> None:
    tests = [path.stem for path in (REPOSITORY / "tests").rglob("test_*.py")]
    missing = [
        str(path.relative_to(REPOSITORY))
        for path in FILES
        if not path.stem.startswith("__")
        and not any(re.fullmatch(rf"test_{path.stem}(_\w+)?", test) for test in tests)
    ]
    assert not missing, "without a test file named after them: " + ", ".join(missing)


@EVERY_FILE
def test_a_public_dataclass_is_frozen(path: Path) -> None:
    thawed = [
        node.name
        for node in classes(path)
        for name, decorator in decorators(node).items()
        if name == "dataclass" and node.name[0] != "_" and not sets(decorator, "frozen")
        # The Trainer of transformers changes its arguments.
        if node.name != "CurriculumConfig"
    ]
    assert not thawed


@EVERY_FILE
def test_a_concrete_class_is_final(path: Path) -> None:
    loose = [
        node.name
        for node in classes(path)
        if not is_abstract(node) and "final" not in decorators(node)
    ]
    assert not loose


@EVERY_FILE
def test_a_value_takes_no_options_that_could_thaw_it(path: Path) -> None:
    found = [decorators(node).get("value") for node in classes(path)]
    assert all(isinstance(decorator, ast.Name) for decorator in found if decorator is not None)


def messages() -> Iterator[tuple[str, ast.expr]]:
    """Yield the place and the first argument of every error that is raised with one."""
    for path in FILES:
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node.exc.args[0]


def tells_a_value(message: ast.expr) -> bool:
    """Return whether a message holds a value, or at least a quoted name."""
    if isinstance(message, ast.Constant):
        return "'" in str(message.value)
    return True


def test_errors_tell_the_actual_value() -> None:
    found = dict(messages())
    silent = [place for place, message in found.items() if not tells_a_value(message)]
    assert len(silent) <= len(found) / 10, f"errors without a value: {', '.join(silent)}"
