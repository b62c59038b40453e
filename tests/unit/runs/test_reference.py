"""The pages about run specs and records agree with the source."""

import re
from pathlib import Path

import pytest

from curricle.runs.reference import PAGES, spec_reference

DOCS = Path(__file__).parents[3] / "docs"
EVERY_PAGE = pytest.mark.parametrize("name", PAGES)


@EVERY_PAGE
def test_the_page_is_that_of_the_source(name: str) -> None:
    page = DOCS / f"{name}.md"
    assert page.read_text(encoding="utf-8") == PAGES[name](), "to be made again by: make docs"


@EVERY_PAGE
def test_every_link_leads_to_one_heading(name: str) -> None:
    page = PAGES[name]()
    headings = re.findall(r"^##+ ([\w `()]+)$", page, flags=re.MULTILINE)
    anchors = [re.sub(r"[`()]", "", heading).lower().replace(" ", "-") for heading in headings]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\(#([\w-]+)\)", page)) <= set(anchors)


@pytest.mark.parametrize(
    "row",
    [
        # A value of its own, a text that is read, a range, a choice, a list, and arguments.
        "| `goal` | [goal](#goal) | `{}` | Metric and value that count as learned. |",
        "| `duration` | [length](#length) or [plateau](#plateau) or [metric](#metric) or [",
        "| `momentum` | number ≥ 0, < 1 | `0.0` | Momentum; 0 is plain descent. |",
        "| `decay` | `constant`, `cosine`, `linear` | `constant` | Shape of the fall from the peak",
        "| `widths` | list: whole number > 0, not empty |  | Width of each hidden layer, fir",
        "| `betas` | list of 2: number | `[0.9, 0.95]` | Decay rates of the first and second mome",
        "| `schedule` | [schedule](#schedule) | `{warmup: 0.06, decay: cosine}` | Learning ra",
        "| `final_objective` | [hidden](#hidden) or [logits](#logits) or [paired_logits](",
        "| `layer_fraction` | number > 0, < 1 | `null` | Part of `total` for all layer stages toge",
        "| `trajectory` | list: whole number | the teacher's | A trajectory, or the steps of the",
    ],
)
def test_a_field_is_told_with_type_default_and_meaning(row: str) -> None:
    assert f"\n{row}" in spec_reference()


@EVERY_PAGE
def test_every_field_and_argument_has_a_meaning(name: str) -> None:
    rows = [line for line in PAGES[name]().splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    assert not [row for row in rows if row.endswith("|  |")]
