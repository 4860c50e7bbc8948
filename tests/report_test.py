import numpy as np
import pytest

from dirasym import report
from experiments import redraw


def test_table():
    text = report.table(["a", "b"], [[1, "x"], [2.5, "y"]])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | x |", "| 2.5 | y |"]


def test_with_interval():
    assert report.with_interval(43.104, 2.0) == "43.10 ± 2.00"
    assert report.with_interval(1.0, float("nan"), 1) == "1.0"


def test_select():
    lines = [{"model": "mdm", "seed": 0}, {"model": "arm", "seed": 0}]
    assert report.select(lines, model="arm", seed=0) == lines[1:]


def test_figures_are_written_as_png_and_pdf(tmp_path):
    pytest.importorskip("matplotlib")
    figure, axes = report.new_figure(1, 2)
    report.plot_seeds(axes[0, 0], np.arange(3), np.ones((3, 2)), "ones")
    path = report.save_figure(figure, tmp_path / "figures", "one")
    assert path.name == "one.png" and path.stat().st_size > 1000
    assert path.with_suffix(".pdf").exists()


def test_committed_results_draw_the_figures_of_the_docs(tmp_path):
    pytest.importorskip("matplotlib")
    redraw.main(tmp_path)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"toy_accuracy", "toy_study", "facts_names"}
