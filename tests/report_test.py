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


def test_every_seed_is_drawn_and_their_mean():
    pytest.importorskip("matplotlib")
    _, axes = report.new_figure()
    x_T, y_TS = np.array([0, 10, 30]), np.array([[1.0, 4.0], [2.0, 8.0], [5.0, 7.0]])
    report.plot_seeds(axes[0, 0], x_T, y_TS, "two seeds", ls="--")
    mean, first, second = axes[0, 0].get_lines()
    for line, want in ((mean, [2.5, 5.0, 6.0]), (first, [1, 2, 5]), (second, [4, 8, 7])):
        np.testing.assert_array_equal(line.get_xdata(), x_T)
        np.testing.assert_array_equal(line.get_ydata(), want)
        assert line.get_color() == mean.get_color() and line.get_linestyle() == "--"
    assert [line.get_label() for line in axes[0, 0].get_lines()].count("two seeds") == 1
    report.plot_seeds(axes[0, 0], x_T, y_TS[:, :1], "one seed")
    assert len(axes[0, 0].get_lines()) == 4  # its mean is the seed


def test_committed_results_draw_the_figures_of_the_docs(tmp_path):
    pytest.importorskip("matplotlib")
    redraw.main(tmp_path)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"toy_accuracy", "toy_study", "facts_names"}
