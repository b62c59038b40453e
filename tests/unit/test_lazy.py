"""Names of a package that are imported on first use."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from curricle.lazy import public_names

INIT = '''
"""A package."""
from curricle.lazy import public_names

__all__, __getattr__, __dir__ = public_names(
    __name__, {"shapes": ("circle", "square"), "inner.losses": ("LabelLoss",)}
)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Yield a package with two modules, none of which is imported yet."""
    folder = tmp_path / "lazy_example"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT)
    (folder / "shapes.py").write_text("circle, square, hexagon = 'circle', 'square', 'hexagon'\n")
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "losses.py").write_text("class LabelLoss: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_example")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_example"]:
        del sys.modules[name]


def test_a_name_imports_its_own_module_and_no_other(package: ModuleType) -> None:
    assert "lazy_example.shapes" not in sys.modules
    assert package.circle == "circle"
    assert "lazy_example.shapes" in sys.modules
    assert "lazy_example.inner.losses" not in sys.modules
    assert package.LabelLoss is sys.modules["lazy_example.inner.losses"].LabelLoss


def test_names_are_listed_before_they_are_imported(package: ModuleType) -> None:
    assert package.__all__ == ["LabelLoss", "circle", "square"]
    assert {"circle", "square", "LabelLoss", "__name__"} <= set(dir(package))
    assert "lazy_example.shapes" not in sys.modules


def test_star_imports_bring_the_public_names_alone(package: ModuleType) -> None:
    names: dict[str, object] = {}
    exec("from lazy_example import *", names)
    assert names.keys() - {"__builtins__"} == set(package.__all__)


def test_modules_are_imported_from_the_package_as_ever(package: ModuleType) -> None:
    names: dict[str, ModuleType] = {}
    exec("from lazy_example import inner, shapes", names)
    assert names["shapes"] is sys.modules["lazy_example.shapes"]
    assert names["inner"] is sys.modules["lazy_example.inner"]


def test_a_name_that_is_patched_in_its_module_is_patched_in_the_package(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package.circle == "circle"
    monkeypatch.setattr("lazy_example.shapes.circle", "ellipse")
    assert package.circle == "ellipse"


@pytest.mark.parametrize("name", ["hexagon", "circl", "__path_hooks__"])
def test_other_names_are_attribute_errors(package: ModuleType, name: str) -> None:
    message = rf"^module 'lazy_example' has no attribute '{name}'$"
    with pytest.raises(AttributeError, match=message) as caught:
        getattr(package, name)
    assert (caught.value.name, caught.value.obj) == (name, package)
    assert not hasattr(package, name)


def test_a_former_name_is_answered_by_its_new_one_where_that_is_public(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=r"'FitLabels'; it is now named 'LabelLoss'$"):
        _ = package.FitLabels
    with pytest.raises(AttributeError, match=r"'EngineSettings'$"):
        _ = package.EngineSettings


def test_a_module_that_lacks_its_name_is_an_attribute_error_of_the_module() -> None:
    _, read, _ = public_names("curricle", {"errors": ("MissingError",)})
    with pytest.raises(AttributeError, match=r"module 'curricle\.errors' has no attribute"):
        read("MissingError")
