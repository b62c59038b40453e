"""Names and first sentences of the packages whose language is finished."""

import ast
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
FINISHED = (
    "curricle/curriculum",
    "curricle/objectives",
    "curricle/probes",
    "curricle/cli",
    "curricle/reports",
    "curricle/runs",
    "curricle/teachers",
    "curricle/data",
    "curricle/models",
    "curricle/training",
    "curricle/integrations",
    "curricle_papers",
)
"""Packages that hold the rules; a package is added when it is rewritten."""
VAGUE = frozenset(
    """
    one each found told own kept given wanted known asked other others ours theirs made shown moved
    held left needy alike chosen whole rest also them those such thing part parts most least drawn
    taken said still tried begun opened
    """.split()  # noqa: SIM905 - a list of words reads better as a text
)
"""Pronouns and participles, which name no thing."""
MOST_VAGUE = 0.005
"""Share of such names among the variables and arguments of a package."""


def modules(package: str) -> list[Path]:
    """Return the modules of a package."""
    return sorted((SOURCE / package).rglob("*.py"))


def bindings(path: Path) -> Counter[str]:
    """Return how often each name is bound to a variable or an argument."""
    names: Counter[str] = Counter()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] += 1
        elif isinstance(node, ast.arg):
            names[node.arg] += 1
    return names


def vague_share(names: Counter[str]) -> float:
    """Return the share of vague names."""
    return sum(count for name, count in names.items() if name in VAGUE) / names.total()


@pytest.mark.parametrize("package", FINISHED)
def test_variables_and_arguments_are_named_by_nouns(package: str) -> None:
    names = sum((bindings(path) for path in modules(package)), Counter[str]())
    vague = {name: count for name, count in names.items() if name in VAGUE}
    assert vague_share(names) <= MOST_VAGUE, vague


@pytest.mark.parametrize("package", FINISHED)
def test_a_module_begins_with_a_noun_phrase_and_not_a_question(package: str) -> None:
    for path in modules(package):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.partition("\n\n")[0]
        assert first, path
        assert "?" not in first, path


def test_the_measure_sees_vague_names(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def add(one, loss):\n    found = [part for part in one]\n    return found\n")
    assert bindings(path) == Counter(one=1, loss=1, found=1, part=1)
    assert vague_share(bindings(path)) == 0.75
