from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curricle.reports.figures import learning_figure, loss_figure, metrics_figure
from curricle.reports.run_folders import Run, load_runs
from tests.parts import edit_records

WriteRun = Callable[..., Path]


@pytest.fixture
def runs(comparison: Path) -> tuple[Run, ...]:
    return load_runs([comparison])


def _named(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.showlegend}


def test_each_strategy_has_one_line_and_the_teacher_none(runs: tuple[Run, ...]) -> None:
    lines = _named(learning_figure(runs, metric="accuracy"))
    assert list(lines) == ["extraction", "one_shot"]
    assert lines["one_shot"].x == (200, 3_000)
    assert lines["one_shot"].y == pytest.approx((0.5, 0.65))


def test_every_trace_knows_its_other_units(runs: tuple[Run, ...]) -> None:
    for figure in (learning_figure(runs, metric="accuracy"), loss_figure(runs)):
        for trace in figure.data:
            units = trace.meta["x"]
            assert set(units) == {"examples", "student_flops", "total_flops", "seconds"}
            assert {len(along) for along in units.values()} == {len(trace.y)}
            assert tuple(units["examples"]) == trace.x


def test_the_band_is_the_interval_of_the_mean_inside_what_a_share_can_be(
    runs: tuple[Run, ...],
) -> None:
    figure = learning_figure(runs, metric="accuracy")
    low, high = [each for each in figure.data if each.line.width == 0][2:4]
    # Of .6 and .7: .65 and 12.7062 times .05 to each side.
    assert low.y == pytest.approx((0.5, 0.01469))
    assert high.y == (0.5, 1.0)
    assert high.fill == "tonexty"


def test_every_seed_is_a_thin_line(runs: tuple[Run, ...]) -> None:
    thin = [
        each for each in learning_figure(runs, metric="accuracy").data if each.line.width == 0.8
    ]
    assert [each.y[-1] for each in thin] == pytest.approx([0.95, 0.96, 0.97, 0.6, 0.7])
    assert "one_shot, seed 1" in thin[-1].hovertemplate


def test_of_many_strategies_only_means_are_drawn_and_no_two_look_alike(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for number in range(26):
        folder = tmp_path / f"students/s{number // 2:02}/seed-{number % 2}"
        write_run(folder, {10: 0.5 + 0.01 * number}, seed=number % 2)
    figure = learning_figure(load_runs([tmp_path]), metric="accuracy")
    assert not [each for each in figure.data if each.line.width == 0.8]
    lines = _named(figure).values()
    assert len({(each.line.color, each.marker.symbol) for each in lines}) == 13


def test_other_metrics_have_a_panel_each(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {10: 0.5, 20: 0.6}) / "records.jsonl"
    text = records.read_text().replace('{"accuracy": 0.5}', '{"accuracy": 0.5, "nll": 1.5}')
    edit_records(records, text)
    figure = metrics_figure(load_runs([tmp_path]), ["nll", "accuracy"])
    assert [each.text for each in figure.layout.annotations] == ["nll", "accuracy"]
    lines = [each for each in figure.data if each.line.width == 2.2]
    assert [each.y for each in lines] == [(1.5,), (0.5, 0.6)]
    assert not figure.layout.showlegend


def test_stages_are_numbered_where_there_is_room(tmp_path: Path, write_run: WriteRun) -> None:
    for name, first in (("far", 50), ("near", 2)):
        figure = loss_figure(load_runs([write_run(tmp_path / name, {100: 0.5}, first=first)]))
        (numbers,) = [each for each in figure.data if each.mode == "text"]
        assert numbers.text == (("1", "2") if name == "far" else ("1",))


def test_a_loss_has_the_interval_of_its_mean_inside_the_losses_of_all_seeds(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed in range(2):
        path = write_run(tmp_path / f"students/a/seed-{seed}", {4: 0.5}, seed=seed)
        records = path / "records.jsonl"
        edit_records(
            records, records.read_text().replace('"loss": 0.5', f'"loss": {0.4 + 0.2 * seed}')
        )
    low, high = [each for each in loss_figure(load_runs([tmp_path])).data if each.line.width == 0][
        :2
    ]
    # Step 1 is alike; at step 2 the interval of .4 and .6 leaves what was seen, .25 to 1.
    assert (low.y, high.y) == ((1.0, 0.25), (1.0, 1.0))


def test_one_seed_has_no_band(tmp_path: Path, write_run: WriteRun) -> None:
    figure = learning_figure(load_runs([write_run(tmp_path, {10: 0.5})]), metric="accuracy")
    assert not [each for each in figure.data if each.line.width == 0]


def test_borders_between_stages_are_dashed_verticals(runs: tuple[Run, ...]) -> None:
    figure = learning_figure(runs, metric="accuracy")
    dashed = [each for each in figure.data if each.line.dash == "dash"]
    assert [each.x for each in dashed] == [(500, 500, None), (1_500, 1_500, None)]


def test_the_target_is_a_dotted_line_with_its_name(runs: tuple[Run, ...]) -> None:
    (line,) = learning_figure(runs, metric="accuracy", goal=0.9).layout.shapes
    assert (line.y0, line.y1, line.line.dash) == (0.9, 0.9, "dot")
    assert line.name == "goal: 90 % accuracy"
    assert not learning_figure(runs, metric="accuracy").layout.shapes


def test_an_incomplete_run_beside_complete_ones_is_drawn_apart(
    comparison: Path, write_run: WriteRun
) -> None:
    path = comparison / "students/one_shot/seed-2"
    write_run(path, {20: 0.5, 40: 0.6}, seed=2, finished=False)
    figure = learning_figure(load_runs([comparison]), metric="accuracy")
    (dotted,) = [each for each in figure.data if each.line.dash == "dot"]
    assert dotted.x == (200, 400)
    assert "one_shot, seed 2, incomplete" in dotted.hovertemplate


@pytest.mark.parametrize(("log_x", "scale"), [(False, "linear"), (True, "log")])
def test_the_horizontal_axis_can_be_logarithmic(
    runs: tuple[Run, ...], *, log_x: bool, scale: str
) -> None:
    assert learning_figure(runs, metric="accuracy", log_x=log_x).layout.xaxis.type == scale
    assert loss_figure(runs, log_x=log_x).layout.xaxis.type == scale


def test_losses_have_a_panel_for_each_strategy_and_a_line_for_each_stage(
    runs: tuple[Run, ...],
) -> None:
    figure = loss_figure(runs)
    assert [each.text for each in figure.layout.annotations] == ["extraction", "one_shot"]
    lines = [each for each in figure.data if each.line.width == 2.2]
    assert [each.yaxis for each in lines] == ["y", "y", "y2", "y2"]
    assert figure.layout.yaxis.type == "log"


def test_a_loss_at_zero_is_drawn_on_a_linear_axis(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {2: 0.5}) / "records.jsonl"
    edit_records(records, records.read_text().replace('"loss": 0.5', '"loss": 0.0'))
    assert loss_figure(load_runs([tmp_path])).layout.yaxis.type == "linear"


def test_losses_over_many_decades_have_few_ticks(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {2: 0.5}) / "records.jsonl"
    edit_records(records, records.read_text().replace('"loss": 0.5', '"loss": 1e-8'))
    # Eight decades: a tick every second one.
    assert loss_figure(load_runs([tmp_path])).layout.yaxis.dtick == 2


def test_losses_whose_quotient_is_beyond_any_float_have_an_axis(
    tmp_path: Path, write_run: WriteRun
) -> None:
    records = write_run(tmp_path, {2: 0.5}) / "records.jsonl"
    text = records.read_text().replace('"loss": 0.5', '"loss": 1e-200')
    edit_records(records, text.replace('"loss": 1.0', '"loss": 1e200'))
    # Four hundred decades: five ticks.
    assert loss_figure(load_runs([tmp_path])).layout.yaxis.dtick == 80


def test_names_are_shown_as_text_whatever_they_contain(tmp_path: Path, write_run: WriteRun) -> None:
    runs = load_runs([write_run(tmp_path, {10: 0.5}, method="<b>x</b>")])
    assert list(_named(learning_figure(runs, metric="accuracy"))) == ["&lt;b&gt;x&lt;/b&gt;"]


def test_a_run_without_losses_has_an_empty_panel(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {10: 0.5}) / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    edit_records(records, "".join(line for line in lines if '"kind": "step"' not in line))
    assert len(loss_figure(load_runs([tmp_path])).data) == 0
