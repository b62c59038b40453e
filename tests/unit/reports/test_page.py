from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from curricle.records import ProbeRecord
from curricle.reports.page import page_text, write_page
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import summarize
from tests.parts import edit_records

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


def _write(
    folder: Path,
    path: Path,
    *,
    title: str = "Parity",
    budget: Mapping[str, object] | None = None,
    command: str = "",
) -> _Reader:
    runs = load_runs([folder])
    summary = summarize(runs, goal=0.9, budget=budget)
    write_page(runs, summary, path, title=title, command=command)
    return _read(path)


@pytest.fixture
def page(comparison: Path, tmp_path: Path) -> _Reader:
    path = tmp_path / "out/page.html"
    budget = {"number": 2.5e9, "unit": "flops"}
    return _write(
        comparison, path, title="Parity <1>", budget=budget, command="curricle compare <spec>"
    )


def test_the_page_loads_nothing(page: _Reader) -> None:
    assert page.links == []
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)


def test_the_page_forbids_itself_to_load_anything(comparison: Path) -> None:
    runs = load_runs([comparison])
    path = comparison / "page.html"
    write_page(runs, summarize(runs, goal=0.9), path, title="Parity")
    assert "Content-Security-Policy\" content=\"default-src 'none'" in path.read_text()


@pytest.mark.parametrize(
    "told",
    [
        "Parity <1>",
        "parity · goal: 90 % accuracy · budget: 2.5G FLOPs",
        "extraction reached 90 % accuracy after 24k ± 19.9k total FLOPs; one_shot did not reach it",
        "96.00 % (3 seeds: 95.00, 96.00, 97.00 %)",
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
    told = _write(comparison, comparison / "page.html").text
    assert "one_shot, seed 2, stopped at step 1,040" in told
    assert "one_shot (seed 2)" in told


def test_a_remade_page_equals_the_first(comparison: Path) -> None:
    paths = [comparison / "first.html", comparison / "second.html"]
    for path in paths:
        _write(comparison, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_texts_of_records_are_escaped(tmp_path: Path, write_run: WriteRun) -> None:
    attack = "</script><script>alert(1)</script><img src=x>"
    folder = write_run(tmp_path, {10: 0.5, 20: 0.6}, method=attack, task=attack)
    path = tmp_path / "page.html"
    reader = _write(folder, path, title=attack, command=attack)
    assert "alert(1)</script>" not in path.read_text(encoding="utf-8")
    assert "img" not in reader.tags
    assert attack in reader.text


def test_why_the_stages_are_as_they_are_is_told_once(tmp_path: Path, write_run: WriteRun) -> None:
    for seed in range(2):
        path = tmp_path / f"students/extraction/seed-{seed}"
        write_run(path, {10: 0.5}, seed=seed, notes=("checkpoint 7 lies inside",))
    assert _write(tmp_path, tmp_path / "page.html").text.count("Checkpoint 7 lies inside.") == 1


@pytest.mark.parametrize("method", ["from_labels", "ünder", "no"])
def test_a_name_at_the_start_of_a_line_stays_as_it_is_written(
    tmp_path: Path, write_run: WriteRun, method: str
) -> None:
    notes = (f"{method}: it is so", "second is a stage", "the rest is a sentence")
    path = tmp_path / f"students/{method}/seed-0"
    write_run(path, {10: 0.5, 20: 0.95}, method=method, notes=notes)
    told = _write(tmp_path, tmp_path / "page.html").text
    assert f"{method} reached 90 % accuracy" in told
    assert f"{method}: it is so." in told
    assert "second is a stage." in told
    assert "The rest is a sentence." in told
    assert method.capitalize() not in told


@pytest.mark.parametrize("method", ["n", "extraction", "not"])
def test_a_line_that_begins_with_a_word_begins_with_a_capital(
    tmp_path: Path, write_run: WriteRun, method: str
) -> None:
    write_run(tmp_path / f"students/{method}/seed-0", {10: 0.5}, method=method)
    told = _write(tmp_path, tmp_path / "page.html").text
    assert "No strategy reached 90 % accuracy" in told


def test_a_budget_of_several_parts_is_told_in_words(comparison: Path) -> None:
    runs = load_runs([comparison])
    summary = summarize(runs, budget={"max_steps": 9, "hours": 2})
    assert "budget: max steps 9, hours 2" in page_text(runs, summary, title="t")


def test_missing_runs_are_named_in_a_warning(comparison: Path) -> None:
    runs = load_runs([comparison])
    summary = summarize(runs, missing=["one_shot seed <2>"])
    page = page_text(runs, summary, title="t")
    assert "Missing runs.</strong> 1 of 6 runs is missing: one_shot seed &lt;2&gt;.</aside>" in page
    assert "Missing runs" not in page_text(runs, summarize(runs), title="t")


def test_the_page_says_how_the_strategy_that_sets_the_target_is_judged(comparison: Path) -> None:
    runs = load_runs([comparison])
    page = page_text(runs, summarize(runs, goal_of="one_shot"), title="t")
    assert "goal: one_shot&#x27;s final accuracy (65.00 %)" in page
    assert "mean final value of &#x27;one_shot&#x27;" in page
    assert "its cost is that of its whole runs" in page


def test_the_page_says_that_runs_ended_at_their_target(
    comparison: Path, write_run: WriteRun
) -> None:
    write_run(comparison / "students/extraction/seed-1", {20: 0.5, 60: 0.9}, seed=1, planned=100)
    told = _write(comparison, comparison / "page.html").text
    assert "1 of 5 runs ended when they reached the goal" in told


def test_what_was_planned_stands_beside_what_was_done(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, last in enumerate((60, 100)):
        folder = tmp_path / f"students/extraction/seed-{seed}"
        # Equal plans: a first stage of 30 steps, then the rest of 100.
        write_run(folder, {30: 0.5, last: 0.9}, seed=seed, planned=100, first=30)
    told = _write(tmp_path, tmp_path / "page.html").text
    assert "Planned for a run: 100 steps, 10k student FLOPs, 30k teacher FLOPs." in told
    assert "Done: 60 to 100 steps, 6k to 10k student FLOPs, 18k to 30k teacher FLOPs." in told


def test_complete_runs_of_the_planned_length_have_not_ended_early(page: _Reader) -> None:
    assert "ended when they reached" not in page.text


@pytest.mark.parametrize(("last", "scale"), [(80, "linear"), (90, "log")])
def test_figures_and_buttons_begin_with_the_scale_that_shows_every_strategy(
    tmp_path: Path, write_run: WriteRun, last: int, scale: str
) -> None:
    for method, step in (("extraction", 10), ("one_shot", last)):
        write_run(tmp_path / f"students/{method}/seed-0", {5: 0.5, step: 0.95}, method=method)
    runs = load_runs([tmp_path])
    page = page_text(runs, summarize(runs, goal=0.9), title="t")
    assert f'data-scale="{scale}" aria-pressed="true"' in page
    assert page.count('data-scale="linear" aria-pressed="true"') == (scale == "linear")
    assert ('"type":"log"' in page.split('id="learning-curves"')[1].split('id="losses"')[0]) == (
        scale == "log"
    )


def test_other_metrics_are_drawn_and_named(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {10: 0.5}) / "records.jsonl"
    assert "Other metrics" not in _write(tmp_path, tmp_path / "page.html").text
    edit_records(
        records, records.read_text().replace(': 0.5}, "usage"', ': 0.5, "nll": 1.5}, "usage"')
    )
    page = _write(tmp_path, tmp_path / "page.html")
    assert "Other metrics" in page.text
    assert "Lines, bands and colors as in the learning curves." in page.text


def test_the_page_says_what_bands_are_and_of_how_many_seeds(page: _Reader) -> None:
    assert "Thick lines are means over seeds (extraction 3, one_shot 2)." in page.text
    assert "Bands are 95 % intervals of the mean (Student's t; with two seeds" in page.text
    assert "no further than 0 to 100 %" in page.text


def test_of_many_strategies_the_page_says_that_bands_are_left_out(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for number in range(13):
        write_run(tmp_path / f"students/s{number}/seed-0", {10: 0.5})
    assert "With more than 12 strategies" in _write(tmp_path, tmp_path / "page.html").text


def test_stages_too_short_for_a_loss_are_named(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {30: 0.5}, first=4, every=5)
    told = _write(tmp_path, tmp_path / "page.html").text
    assert "Stages of 'extraction': 1 first, 2 second." in told
    assert (
        "Strategy 'extraction' has no recorded loss in 'first': shorter than the interval" in told
    )


def test_runs_that_planned_the_same_share_one_table(tmp_path: Path, write_run: WriteRun) -> None:
    for folder in ("a", "b"):
        write_run(tmp_path / folder, {10: 0.5})
    # The first batch of another seed was longer.
    records = tmp_path / "b/records.jsonl"
    edit_records(
        records, records.read_text().replace('"student_flops": 100,', '"student_flops": 90,')
    )
    runs = load_runs([tmp_path / "a", tmp_path / "b"])
    page = page_text(runs, summarize(runs), title="t")
    assert page.count("whole run") == 1
    assert "<h3>a/extraction, b/extraction</h3>" in page
    assert "FLOPs and memory are those of seed 0; others differ." in page
    assert "Planned for a run: 10 steps, 900 to 1k student FLOPs" in page


def test_a_metric_of_unknown_direction_is_explained(tmp_path: Path, write_run: WriteRun) -> None:
    for method in ("a", "b"):
        write_run(tmp_path / f"students/{method}/seed-0", {10: 0.5}, metric="xyz")
    runs = load_runs([tmp_path])
    page = page_text(runs, summarize(runs), title="t")
    assert "No strategy is called best: it is not known whether lower or higher values" in page


def test_control_characters_never_reach_the_page(tmp_path: Path, write_run: WriteRun) -> None:
    attack = "a\x1b[31m\u202e\x00b"
    folder = write_run(tmp_path, {10: 0.5}, method=attack, task=attack, notes=(attack,))
    path = tmp_path / "page.html"
    told = _write(folder, path, title=attack, command=attack).text
    assert not {"\x1b", "\u202e", "\x00"} & set(path.read_text(encoding="utf-8").split("<main>")[1])
    assert r"a\x1b[31m\u202e\x00b" in told


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = comparison / "page.html"
    _write(comparison, path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        _write(comparison, path, title="other")
    assert path.read_bytes() == before
    assert not [file for file in comparison.iterdir() if file.suffix == ".tmp"]


def test_the_table_of_stages_tells_what_was_done_and_why_a_rule_ended_it(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, (first, why) in enumerate([(30, "plateau"), (1200, "length")]):
        folder = tmp_path / f"students/extraction/seed-{seed}"
        last = first + 20
        write_run(folder, {last: 0.9}, seed=seed, first=first, every=50, rule=(1200, why))
    told = _write(tmp_path, tmp_path / "page.html").text
    for words in (
        "at most 1,200",
        "until plateau of the loss",
        "30 to 1,200",
        "plateau 1, length 1",
    ):
        assert words in told


def test_the_table_of_stages_of_fixed_lengths_says_nothing_of_ends(page: _Reader) -> None:
    assert "ended by" not in page.text


def test_numbers_of_parameters_name_their_strategies(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5})
    path = write_run(tmp_path / "students/labels/seed-0", {20: 0.5})
    records = path / "records.jsonl"
    text = records.read_text()
    edit_records(records, text.replace('"teacher_parameters": 1024', '"teacher_parameters": 0'))
    runs = load_runs([tmp_path])
    assert "1,024 (extraction) / 0 (labels)" in page_text(runs, summarize(runs), title="t")


def test_probes_of_the_runs_have_a_section_with_the_collapsed_ranks(comparison: Path) -> None:
    runs = load_runs([comparison])
    record = ProbeRecord(
        probe="ranks",
        model="extraction",
        is_teacher=False,
        seed=0,
        step=100,
        examples=64,
        numbers={"rank_1": 1.5, "teacher_1": 4.0},
    )
    page = page_text(runs, summarize(runs), title="t", probes=[record])
    assert "<h2>Probes</h2>" in page
    assert "extraction: the effective rank of the hidden states at tap 1, 1.5, is below" in page
    assert "<h2>Probes</h2>" not in page_text(runs, summarize(runs), title="t")
