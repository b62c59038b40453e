"""`llms.txt` and the skill file: they are current, and their links lead to files."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = REPOSITORY / "tools" / "agent_files.py"
    spec = importlib.util.spec_from_file_location("agent_files", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_of_the_pages(script: ModuleType) -> None:
    assert script.INDEX.read_text(encoding="utf-8") == script.index(), "run: make docs"
    assert script.SKILL.read_text(encoding="utf-8") == script.skill(), "run: make docs"


def test_every_link_leads_to_a_file(script: ModuleType) -> None:
    for path in (script.INDEX, script.SKILL):
        for target in re.findall(r"\]\((?!https?:)(.+?)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target.split("#")[0]).exists(), f"{path.name}: {target}"


def test_every_page_and_every_command_is_listed(script: ModuleType) -> None:
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    assert pages == {name for names in script.PAGES.values() for name in names}
    assert {"distill", "compare", "export", "targets"} <= set(
        re.findall(r"^- `curricle (\w+)`: \w", script.skill(), flags=re.MULTILINE)
    )
