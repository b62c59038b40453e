from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from curricle.errors import CheckpointError
from curricle.reports.page import page_text, write_page
from curricle.reports.runs import load_runs

WriteRun = Callable[..., Path]


class _Reader(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in {"script", "style"}
        self.links += [found or "" for name, found in attrs if name in {"src", "href", "action"}]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def _read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture
def page(comparison: Path, tmp_path: Path) -> _Reader:
    path = tmp_path / "out/page.html"
    write_page(
        load_runs([comparison]),
        path,
        title="Parity <1>",
        target=0.9,
        budget={"number": 2.5e9, "unit": "flops"},
        command="curricle compare <spec>",
    )
    return _read(path)


def test_the_page_loads_nothing(page: _Reader) -> None:
    assert page.links == []
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)


def test_the_page_forbids_itself_to_load_anything(comparison: Path) -> None:
    runs = load_runs([comparison])
    path = comparison / "page.html"
    write_page(runs, path, title="Parity", target=0.9)
    assert "Content-Security-Policy\" content=\"default-src 'none'" in path.read_text()


@pytest.mark.parametrize(
    "told",
    [
        "Parity <1>",
        "parity · target: 90 % accuracy · budget: 2.5G FLOPs",
        "Extraction reached 90 % accuracy with 600 examples, at least 5 times fewer",
        "96.00 ± 2.48 %",
        "not reached",
        "whole run",
        "gaussian 8 x 32",
        "teacher's own training",
        "2.13.0",
        "cpu float32",
        "curricle compare <spec>",
    ],
)
def test_the_page_tells_what_was_run_and_found(page: _Reader, told: str) -> None:
    assert told in page.text


def test_complete_runs_bring_no_warning(page: _Reader) -> None:
    assert "Incomplete runs" not in page.text


def test_incomplete_runs_are_flagged(comparison: Path, write_run: WriteRun) -> None:
    path = comparison / "students/one_shot/seed-2"
    write_run(path, {20: 0.5, 1_040: 0.6}, seed=2, finished=False)
    write_page(load_runs([comparison]), comparison / "page.html", title="Parity", target=0.9)
    told = _read(comparison / "page.html").text
    assert "one_shot, seed 2, stopped at step 1,040" in told
    assert "one_shot (seed 2)" in told


def test_a_remade_page_equals_the_first(comparison: Path) -> None:
    paths = [comparison / "first.html", comparison / "second.html"]
    for path in paths:
        write_page(load_runs([comparison]), path, title="Parity", target=0.9)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_texts_of_records_are_escaped(tmp_path: Path, write_run: WriteRun) -> None:
    attack = "</script><script>alert(1)</script><img src=x>"
    folder = write_run(tmp_path, {10: 0.5, 20: 0.6}, method=attack, task=attack)
    path = tmp_path / "page.html"
    write_page(load_runs([folder]), path, title=attack, target=None, command=attack)
    reader = _read(path)
    assert "alert(1)</script>" not in path.read_text(encoding="utf-8")
    assert "img" not in reader.tags
    assert attack in reader.text


def test_the_metric_is_that_of_the_runs_unless_another_is_named(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {10: 1.5, 20: 0.6}, metric="nll")])
    summary = write_page(runs, tmp_path / "page.html", title="Text", target=0.7)
    assert (summary.metric, summary.methods["extraction"].to_target.examples) == ("nll", 200)


def test_a_budget_of_several_parts_is_told_in_words(comparison: Path) -> None:
    runs = load_runs([comparison])
    summary = write_page(
        runs, comparison / "page.html", title="t", target=None, budget={"max_steps": 9, "hours": 2}
    )
    assert "budget: max steps 9, hours 2" in page_text(runs, summary, title="t")


def test_a_page_without_students_is_an_error(comparison: Path) -> None:
    teacher = [run for run in load_runs([comparison]) if run.is_teacher]
    match = "must tell of at least one student's run; got none"
    with pytest.raises(CheckpointError, match=match):
        write_page(teacher, comparison / "page.html", title="t", target=None)
