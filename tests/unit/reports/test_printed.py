import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from curricle.reports.printed import CAPTION, save_learning_curves
from curricle.reports.run_folders import load_runs

WriteRun = Callable[..., Path]


def test_a_png_and_an_svg_are_written(comparison: Path, tmp_path: Path) -> None:
    png, svg = save_learning_curves(
        load_runs([comparison]), tmp_path / "deep/curves.v1", metric="accuracy", goal=0.9
    )
    assert (png.name, svg.name) == ("curves.v1.png", "curves.v1.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


@pytest.mark.parametrize("log_x", [False, True])
def test_the_same_runs_give_the_same_bytes(
    comparison: Path, tmp_path: Path, *, log_x: bool
) -> None:
    runs = load_runs([comparison])
    pairs = zip(
        save_learning_curves(runs, tmp_path / "first", metric="accuracy", log_x=log_x),
        save_learning_curves(runs, tmp_path / "second", metric="accuracy", log_x=log_x),
        strict=True,
    )
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)


def test_global_settings_are_left_alone(comparison: Path, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_learning_curves(load_runs([comparison]), tmp_path / "curves", metric="accuracy")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "name", ["a\x1b[0m--b", "模型 \U0001f642", "$x$ $", "x" * 200, "<!-- & -->"]
)
def test_names_of_any_kind_give_a_figure_that_can_be_read(
    tmp_path: Path, write_run: WriteRun, name: str
) -> None:
    runs = load_runs([write_run(tmp_path, {5: 0.5, 10: 0.7}, method=name)])
    _, svg = save_learning_curves(runs, tmp_path / "c", metric="accuracy", axes=["examples"])
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_several_seeds_bring_an_explanation_of_the_band(comparison: Path, tmp_path: Path) -> None:
    runs = load_runs([comparison])
    _, svg = save_learning_curves(runs, tmp_path / "c", metric="accuracy", axes=["examples"])
    text = svg.read_text()
    assert f"<!-- {CAPTION} -->" in text
    assert "<!-- extraction (3 seeds) -->" in text
    alone = [run for run in runs if run.seed == 0]
    _, svg = save_learning_curves(alone, tmp_path / "c", metric="accuracy", axes=["examples"])
    assert CAPTION not in svg.read_text()


def test_a_figure_that_cannot_be_written_leaves_the_old_one(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = load_runs([comparison])
    png, _ = save_learning_curves(runs, tmp_path / "c", metric="accuracy", axes=["examples"])
    before = png.read_bytes()

    def full(_: Figure, file: Path, **settings: object) -> None:
        Path(file).write_bytes(b"torn")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        save_learning_curves(runs, tmp_path / "c", metric="accuracy", axes=["examples"])
    assert png.read_bytes() == before


def test_incomplete_runs_and_odd_names_are_drawn(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, finished in enumerate((True, False)):
        folder = tmp_path / f"students/_$x$/seed-{seed}"
        write_run(folder, {5: 0.5, 10: 0.7}, seed=seed, finished=finished)
    png, _ = save_learning_curves(
        load_runs([tmp_path]), tmp_path / "curves", metric="accuracy", axes=["seconds"]
    )
    assert png.is_file()


def test_metrics_that_are_no_shares_are_drawn_as_they_are(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {5: 1.5, 10: 0.7}, metric="nll")])
    _, svg = save_learning_curves(runs, tmp_path / "curves", metric="nll", goal=0.8)
    assert svg.is_file()


def test_without_students_there_is_no_legend(comparison: Path, tmp_path: Path) -> None:
    teacher = [run for run in load_runs([comparison]) if run.is_teacher]
    png, _ = save_learning_curves(teacher, tmp_path / "curves", metric="accuracy")
    assert png.is_file()


def test_a_single_point_is_drawn_with_its_marker(tmp_path: Path, write_run: WriteRun) -> None:
    runs = load_runs([write_run(tmp_path, {5: 0.5})])
    _, svg = save_learning_curves(runs, tmp_path / "curves", metric="accuracy", axes=["examples"])
    # One on the curve and one in the legend.
    assert len(re.findall(r"<use [^>]*fill: #0072b2", svg.read_text())) == 2
