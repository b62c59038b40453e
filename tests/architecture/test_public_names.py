"""Public names of the packages: each is there, and type checkers, docs and examples agree.

The imports of this module are a test too: `make types` refuses a name that an init lacks.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from curricle import LabelLoss
from curricle.curriculum import Stage
from curricle.data import Batch
from curricle.data.synthetic import MaskedStrings
from curricle.data.text import MaskedWindows
from curricle.integrations.sentence_transformers import TextCollator
from curricle.integrations.transformers import CurriculumConfig
from curricle.models import TappedModel
from curricle.objectives import Learned
from curricle.probes import with_probes
from curricle.reports import load_runs
from curricle.runs import load_spec
from curricle.teachers import StoredTeacher
from curricle.training import label_metrics

REPOSITORY = Path(__file__).parents[2]
PUBLIC = {
    "curricle": LabelLoss,
    "curricle.curriculum": Stage,
    "curricle.data": Batch,
    "curricle.data.synthetic": MaskedStrings,
    "curricle.data.text": MaskedWindows,
    "curricle.integrations.sentence_transformers": TextCollator,
    "curricle.integrations.transformers": CurriculumConfig,
    "curricle.models": TappedModel,
    "curricle.objectives": Learned,
    "curricle.probes": with_probes,
    "curricle.reports": load_runs,
    "curricle.runs": load_spec,
    "curricle.teachers": StoredTeacher,
    "curricle.training": label_metrics,
}
"""Packages with public names, each with an object that this file imports from it."""
INTERNAL = (
    "curricle.cli",
    "curricle.least_squares",
    "curricle.training.",
    "curricle.teachers.store",
)
"""Packages whose init has no names: the command line, and parts of a package that has them."""
ROOT_ONLY = {"evaluate", "export", "compare", "distill", "tapped"}
"""Names of `curricle` that are names of modules in their own package."""
MODULES = {"curricle.seeding"}
"""Modules that are documented as such, by their functions' names with the module's in front."""
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples").glob("*.py")),
]
SOURCES = sorted((REPOSITORY / "src" / "curricle").rglob("*.py"))
EVERY_PACKAGE = pytest.mark.parametrize("package", sorted(PUBLIC))
EVERY_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


def folder_of(package: str) -> Path:
    return REPOSITORY / "src" / Path(*package.split("."))


def checked_names(package: str) -> dict[str, str]:
    """Return the module of each name that an init imports for type checkers."""
    tree = ast.parse((folder_of(package) / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        str(alias.asname): str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def modules_of(package: str) -> set[str]:
    """Return the names of the modules and packages directly inside a package."""
    paths = folder_of(package).iterdir()
    return {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()}


def public(package: str) -> list[str]:
    names: list[str] = importlib.import_module(package).__all__
    return names


@EVERY_PACKAGE
def test_every_public_name_is_there_and_is_the_one_of_its_module(package: str) -> None:
    names = checked_names(package)
    assert public(package) == sorted(names)
    module = importlib.import_module(package)
    for name, home in names.items():
        found = getattr(module, name)
        assert found is getattr(importlib.import_module(home), name)
        assert not isinstance(found, ModuleType)
    assert PUBLIC[package] in [getattr(module, name) for name in names]
    assert set(names) <= set(dir(module))


@EVERY_PACKAGE
def test_a_package_has_names_of_its_own_modules_alone(package: str) -> None:
    assert all(home.startswith(f"{package}.") for home in checked_names(package).values())


@EVERY_PACKAGE
def test_no_public_name_is_that_of_a_module_of_the_package(package: str) -> None:
    # Once such a module is imported it replaces the name.
    assert not set(public(package)) & modules_of(package)
    assert not {name for name in public(package) if name.startswith("_")}


def test_every_package_has_public_names_or_is_internal() -> None:
    inits = (REPOSITORY / "src" / "curricle").rglob("__init__.py")
    packages = {".".join(init.parent.relative_to(REPOSITORY / "src").parts) for init in inits}
    # Integrations are imported one by one.
    packages.remove("curricle.integrations")
    assert {name for name in packages if not name.startswith(INTERNAL)} == set(PUBLIC)


def test_a_name_of_curricle_is_also_one_of_its_package() -> None:
    missing = set()
    for name, home in checked_names("curricle").items():
        package = max((known for known in PUBLIC if f"{home}.".startswith(f"{known}.")), key=len)
        if package != "curricle" and name not in public(package):
            assert name in modules_of(package)
            missing.add(name)
    assert missing == ROOT_ONLY


def test_the_library_imports_from_modules_and_not_from_inits() -> None:
    # Imports through an init would hide who depends on whom from the import contracts.
    through_inits = [
        f"{path.relative_to(REPOSITORY)}: {node.module}.{alias.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in PUBLIC
        for alias in node.names
        if alias.name in public(str(node.module))
    ]
    assert SOURCES
    assert not through_inits


def test_former_names_are_answered_in_packages_too() -> None:
    objectives = importlib.import_module("curricle.objectives")
    message = r"^module 'curricle\.objectives' has no attribute 'FitLabels'; it is now named"
    with pytest.raises(AttributeError, match=message):
        _ = objectives.FitLabels


def imports(text: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import from curricle, at any indentation."""
    statement = r"^ *from (curricle[\w.]*) import (?:\(([^)]*)\)|([^(\n]+))$"
    for module, listed, line in re.findall(statement, text, re.MULTILINE):
        for name in re.findall(r"\w+", re.sub(r" as \w+|#.*", "", listed or line)):
            yield module, name


def dotted(text: str) -> set[str]:
    """Return the names of the form `curricle.a.b` in a text, without file names."""
    return set(re.findall(r"(?<![\w/.-])curricle(?:\.[A-Za-z_]\w*)+(?![\w/])", text))


@EVERY_DOCUMENT
def test_documents_and_examples_import_from_packages(path: Path) -> None:
    for module, name in imports(path.read_text(encoding="utf-8")):
        assert name in public(module) or f"{module}.{name}" in MODULES, f"{module}.{name}"


@EVERY_DOCUMENT
def test_a_name_in_a_text_is_a_public_one(path: Path) -> None:
    for name in dotted(path.read_text(encoding="utf-8")):
        package = max((known for known in PUBLIC if name.startswith(f"{known}.")), key=len)
        first = name.removeprefix(f"{package}.").partition(".")[0]
        assert first in public(package) or name in {*PUBLIC, *MODULES}, name


def test_the_patterns_see_deep_paths() -> None:
    text = """`curricle.probes.ngrams.Probe` in src/curricle.probes and 'curricle plan'.
from curricle.data import Batch, Stream as Rows
    from curricle.data.text import (
        Masking,  # of tokens
        MaskedWindows,
    )
"""
    assert dotted(text) == {
        "curricle.probes.ngrams.Probe",
        "curricle.data",
        "curricle.data.text",
    }
    assert list(imports(text)) == [
        ("curricle.data", "Batch"),
        ("curricle.data", "Stream"),
        ("curricle.data.text", "Masking"),
        ("curricle.data.text", "MaskedWindows"),
    ]
    assert "readings" not in public("curricle.probes")
