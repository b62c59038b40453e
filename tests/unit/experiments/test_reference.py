"""The page about run specs tells what the source says."""

import re
from pathlib import Path

import pytest

from curricle.experiments.reference import spec_reference

PAGE = Path(__file__).parents[3] / "docs" / "spec.md"


def test_the_page_is_that_of_the_source() -> None:
    assert PAGE.read_text(encoding="utf-8") == spec_reference(), "to be made again by: make docs"


def test_every_link_leads_to_one_heading() -> None:
    page = spec_reference()
    headings = re.findall(r"^##+ `?([\w ]+)`?$", page, flags=re.MULTILINE)
    anchors = [heading.lower().replace(" ", "-") for heading in headings]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\(#([\w-]+)\)", page)) <= set(anchors)


@pytest.mark.parametrize(
    "row",
    [
        # A value of its own, a text that is read, a range, a choice, a list, and arguments.
        "| `target` | [target](#target) | `{}` | What counts as having learned. |",
        "| `duration` | [length](#length) |  | How long the stage lasts, in steps, exam",
        "| `momentum` | number ≥ 0, < 1 | `0.0` | Momentum; 0 is plain descent. |",
        "| `decay` | `constant`, `cosine`, `linear` | `constant` | Shape of the fall from the peak",
        "| `widths` | list: whole number > 0, not empty |  | Width of each hidden layer, fir",
        "| `betas` | list of 2: number | `[0.9, 0.95]` | Decay rates of the first and second mome",
        "| `schedule` | [schedule](#schedule) | `{warmup: 0.06, decay: cosine}` | Learning ra",
        "| `last` | [hidden](#hidden) or [logits](#logits) or [labels](#labels) or [learned_",
        "| `share` | number > 0, < 1 | `null` | Part of `total` for all layer stages toge",
        "| `trajectory` | list: whole number | the teacher's | A trajectory, or the steps of the",
    ],
)
def test_a_field_is_told_with_type_default_and_meaning(row: str) -> None:
    assert f"\n{row}" in spec_reference()


def test_every_field_and_argument_has_a_meaning() -> None:
    rows = [line for line in spec_reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert not [row for row in rows if row.endswith("|  |")]
