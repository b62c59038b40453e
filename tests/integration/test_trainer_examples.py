"""Scripts of `examples/trainer`: three changed lines make one distil, and both run."""

import difflib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curricle import seeding

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "examples" / "trainer"
NAMES = ["masked_lm", "next_token", "text_classification"]
MOST_LINES = 3


def changed_lines(name: str) -> list[str]:
    """Return the lines of the distilling script that the plain one lacks."""
    plain, distilling = (
        (SCRIPTS / f"{name}{ending}.py").read_text().splitlines() for ending in ("", "_distilled")
    )
    changes = list(difflib.ndiff(plain, distilling))
    added = [line[2:] for line in changes if line.startswith("+ ")]
    assert sum(line.startswith("- ") for line in changes) <= len(added)
    return added


def loaded(name: str) -> Any:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_at_most_three_lines_make_a_script_distil(name: str) -> None:
    added = changed_lines(name)
    assert 0 < len(added) <= MOST_LINES
    guide = (REPOSITORY / "docs" / "guide.md").read_text()
    assert all(f"+{line}" in guide for line in added)


def excerpt(read: Callable[[str], str], split: str) -> str:
    return read(split)[:20_000]


@pytest.mark.parametrize("name", NAMES)
def test_a_script_and_its_distilling_form_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    texts = loaded("texts")
    # The scripts themselves train a tokenizer on the whole text.
    monkeypatch.setattr(texts, "read", partial(excerpt, texts.read))
    monkeypatch.setitem(sys.modules, "texts", texts)
    short: dict[str, Any] = {"max_steps": 3, "use_cpu": True, "report_to": []}
    with seeding.scoped(0, "trainer example", beyond_torch=True):
        loaded(name).main("teacher", 32, **short)
        metrics = loaded(f"{name}_distilled").main("student", 16, **short)
    assert 0 < metrics["eval_loss"] < 10
    assert (tmp_path / "student" / "model.safetensors").is_file()
