"""Every example runs to its end in a few steps, and the smallest one at its own size."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.integration
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def loaded(path: Path) -> ModuleType:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = loaded(path).main(steps=30)
    # Accuracies, FLOPs or whatever an example compares.
    assert results
    assert all(isinstance(number, float) for number in results.values())


def test_extraction_teaches_parity_where_one_shot_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = (path for path in EXAMPLES if path.stem == "parity")
    # Three quarters of the size at which it is shown.
    accuracy = loaded(path).main(steps=3000)
    assert accuracy["extraction"] > accuracy["one_shot"] + 0.2
