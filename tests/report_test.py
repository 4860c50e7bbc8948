import os
import subprocess
import sys

import artists
import numpy as np
import pytest

from dirasym import intervals, report, usage
from experiments.reports import alignment, toy
from experiments.reports import facts as facts_report
from experiments.tables import facts
from experiments.tools import redraw


def test_table():
    text = report.table(["a", "b"], [[1, "x"], [2.5, "y"]])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | x |", "| 2.5 | y |"]


def test_with_interval():
    assert report.with_interval(43.104, 2.0) == "43.10 ± 2.00"
    assert report.with_interval(1.0, float("nan"), 1) == "1.0"
    assert report.mean_interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert report.mean_interval([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5"


def test_colors_begin_anew_after_seven():
    assert [report.color(n) for n in (0, 6, 7, 8)] == [report.COLORS[n] for n in (0, 6, 0, 1)]


def test_forward_is_blue_and_reverse_is_red_in_every_report():
    colors = {"forward": "#0072B2", "reverse": "#D55E00"}
    assert (report.FORWARD, report.REVERSE) == tuple(colors.values())
    for tables in (alignment, facts_report, toy):
        assert colors == tables.COLORS


def test_wrapping_breaks_lines_at_blanks_alone():
    long = "https://" + 120 * "x"
    assert report.wrapped(f"see {long} there").split("\n") == ["see", long, "there"]
    hyphens = 40 * "one-way-"
    assert report.wrapped(f"a {hyphens} b").split("\n") == ["a", hyphens, "b"]
    rows = "| " + 60 * "cell " + "|\n# " + 60 * "head "
    assert report.wrapped(rows) == rows


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
    _, alone = report.new_figure()
    report.plot_seeds(alone[0, 0], x_T, y_TS[:, :1], "one seed")
    assert [list(line.get_ydata()) for line in alone[0, 0].get_lines()] == [[1, 2, 5]]
    mean, first, second = axes[0, 0].get_lines()
    for line, want in ((mean, [2.5, 5.0, 6.0]), (first, [1, 2, 5]), (second, [4, 8, 7])):
        np.testing.assert_array_equal(line.get_xdata(), x_T)
        np.testing.assert_array_equal(line.get_ydata(), want)
        assert line.get_color() == mean.get_color() and line.get_linestyle() == "--"
    assert [line.get_label() for line in axes[0, 0].get_lines()].count("two seeds") == 1
    report.plot_seeds(axes[0, 0], x_T, y_TS[:, :1], "one seed")
    assert len(axes[0, 0].get_lines()) == 4  # its mean is the seed


def test_boxes_and_bands_hold_their_arrays():
    pytest.importorskip("matplotlib")
    _, axes = report.new_figure(1, 2)
    values_TX = np.array([[1.0, 2.0, 3.0, np.nan], [10.0, 30.0, 20.0, 40.0]])
    report.plot_boxes(axes[0, 0], np.array([0, 100]), values_TX)
    medians = [line for line in axes[0, 0].get_lines() if len(set(line.get_ydata())) == 1]
    found = {(line.get_xdata().mean(), line.get_ydata()[0]) for line in medians}
    assert {(0.0, 2.0), (100.0, 25.0)} <= found
    report.plot_band(axes[0, 1], [1, 2], [5.0, 6.0], [4.0, 5.5], [7.0, 9.0])
    (line,) = axes[0, 1].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [5, 6])
    (band,) = axes[0, 1].collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert {(1, 4), (1, 7), (2, 5.5), (2, 9)} <= corners


def test_boxes_are_three_fifths_of_the_least_step_wide_and_show_no_outliers():
    pytest.importorskip("matplotlib")
    _, axes = report.new_figure(1, 3)
    values_TX = np.array([[1.0, 2.0, 3.0, 4.0, 50.0]] * 3)
    for ax, x_T, width in zip(axes[0], ([0, 10, 50], [0, 30], [7]), (6.0, 18.0, 0.6), strict=True):
        report.plot_boxes(ax, np.array(x_T), values_TX[: len(x_T)])
        ax.figure.canvas.draw()
        boxes = [line.get_xydata() for line in ax.get_lines() if len(line.get_xdata()) == 5]
        assert len(boxes) == len(x_T) and len(ax.get_lines()) == 6 * len(x_T)
        for place, box in zip(x_T, boxes, strict=True):
            ends = [(place - width / 2, 2.0), (place + width / 2, 4.0)]  # quartiles
            np.testing.assert_allclose([box.min(axis=0), box.max(axis=0)], ends)
        assert not {tuple(ax.get_xticks())} & {tuple(x_T)}  # those of numbers, not one a box


def test_a_report_holds_its_text_and_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    draw = lambda: report.new_figure()[0]  # noqa: E731
    report.write(tmp_path, "# Title", {"one": draw, "two": draw}, printed="| table |")
    text = (tmp_path / "report.md").read_text()
    assert text == "# Title\n\n![one](figures/one.png)\n![two](figures/two.png)\n"
    paths = [tmp_path / "figures" / f"{name}.png" for name in ("one", "two")]
    assert all(path.exists() and path.with_suffix(".pdf").exists() for path in paths)
    printed = ["| table |", *map(str, paths), str(tmp_path / "report.md")]
    assert capsys.readouterr().out.splitlines() == printed


def test_intervals_and_bounds_are_bars_on_their_side():
    pytest.importorskip("matplotlib")
    _, axes = report.new_figure(1, 2)
    some = [intervals.Interval(1.0, 0.5), intervals.Interval(2.0, float("nan"))]
    report.plot_intervals(axes[0, 0], [3, 4], some, "some")
    (points,) = axes[0, 0].containers
    np.testing.assert_array_equal(points.lines[0].get_xydata(), [[3, 1], [4, 2]])
    bars = [segment[:, 1].tolist() for segment in points.lines[2][0].get_segments()]
    assert bars == [[0.5, 1.5], [2, 2]] and points.get_label() == "some"
    bounds = [intervals.Bounds(2.0, 1.5, 4.0), intervals.Bounds(5.0, float("nan"), float("nan"))]
    for across in (False, True):
        how = dict(across=True) if across else {}
        report.plot_bounds(axes[0, 1], [7, 8], bounds, None, **how)
        along = int(not across)
        points = axes[0, 1].containers[-1]
        np.testing.assert_array_equal(points.lines[0].get_xydata()[:, along], [2, 5])
        np.testing.assert_array_equal(points.lines[0].get_xydata()[:, 1 - along], [7, 8])
        bars = [segment[:, along].tolist() for segment in points.lines[2][0].get_segments()]
        assert bars == [[1.5, 4], [5, 5]]


def test_curves_over_training_have_a_panel_a_run_and_a_line_a_key():
    pytest.importorskip("matplotlib")
    curves = {"eval_step": np.array([0, 5]), "p": np.array([[0.1], [0.2]]), "q": np.ones((2, 1))}
    keys = {"q": ("the other", "red"), "p": ("one", "blue")}
    for log, scale in ((False, "linear"), (True, "log")):
        figure = report.over_training({"a": curves, "b": curves}, keys, "share", log=log)
        assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
        for ax in figure.axes:
            other, one = ax.get_lines()
            assert (one.get_label(), one.get_color()) == ("one", "blue")
            np.testing.assert_array_equal(one.get_xydata(), [[0, 0.1], [5, 0.2]])
            np.testing.assert_array_equal(other.get_ydata(), [1, 1])
            assert (ax.get_yscale(), ax.get_ylabel(), ax.get_xlabel()) == (scale, "share", "step")
        assert figure.axes[0].get_legend() and not figure.axes[1].get_legend()


def test_a_report_without_matplotlib_keeps_its_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "can_draw", lambda: False)
    report.write(tmp_path, "# Title", {"one": lambda: 1 / 0}, printed="| table |")
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Title\n\nNo figures") and usage.install("plots") in text
    assert capsys.readouterr().out.splitlines() == ["| table |", str(tmp_path / "report.md")]


def test_a_backend_that_is_not_there_does_not_matter(tmp_path):
    pytest.importorskip("matplotlib")
    script = "from dirasym import report; print(report.can_draw()); report.new_figure()"
    env = os.environ | {"MPLBACKEND": "module://no.such.backend"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout == "True\n" and done.returncode == 0, done.stderr


def test_the_plan_says_hours_at_a_rate():
    line = {"run": "a", "seeds": 2, "steps": 10, "parameters": 5, "flops": 7.2e15}
    header, _, row, rate = report.plan_table([line], 1e12).splitlines()
    assert header == "| run | seeds | steps | parameters | flops | hours, at least |"
    assert row == "| a | 2 | 10 | 5 | 7.2e+15 | 2 |" and "1000 GFLOP/s" in rate
    with_memory = report.plan_table([line | {"GB": 41.6646}], 1e12).splitlines()
    assert with_memory[0].endswith("| flops | GB | hours, at least |")
    assert with_memory[2] == "| a | 2 | 10 | 5 | 7.2e+15 | 41.7 | 2 |"
    assert report.plan_table([], 1.0) == "nothing to train"


@pytest.mark.slow
def test_committed_results_draw_the_figures_of_the_docs_and_hide_no_point(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    save_figure, cut = report.save_figure, {"dynamics_bilinear_losses"}  # from time 1 on

    def save(figure, folder, name):
        if name not in cut:
            artists.hides_nothing(figure)
        return save_figure(figure, folder, name)

    monkeypatch.setattr(report, "save_figure", save)
    redraw.draw(redraw.Config(str(tmp_path)))
    found = {path.stem for path in tmp_path.glob("*.png")}
    named = {"toy_study", "world_a_lora", "alignment_minimal", "dynamics_weights", "rope_bounds"}
    assert found == set(redraw.figures()) >= named
    folder = redraw.DOCS / "figures"
    assert found <= {path.stem for path in folder.glob("*.png")}


def test_bars_of_reverse_questions_are_means_and_their_dots_seeds():
    keys = "percent", "copied_percent", "choice_percent"
    lines = {
        name: [
            {f"reverse_{key}": base + 10 * n + seed for n, key in enumerate(keys)} for seed in seeds
        ]
        for name, base, seeds in (("one", 1.0, (0, 4)), ("other", 50.0, (0,)))
    }
    (ax,) = redraw.reverse_bars(lines).axes
    heights = [bar.get_width() for bar in ax.patches]
    assert heights == [3, 50, 13, 60, 23, 70]  # a kind after another, both names each
    dots = [list(line.get_xdata()) for line in ax.get_lines()]
    assert dots == [[1, 5], [50], [11, 15], [60], [21, 25], [70]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "other"]


def test_every_seed_of_table_2_is_drawn():
    pytest.importorskip("matplotlib")
    courses = {10: [([500, 3000], [50.0, 60.0]), ([1000, 3000], [55.0, 5.0])]}
    left, right = redraw.seeds_apart(courses | {30: [([1000, 3000], [51.0, 7.0])]}).axes
    *seeds, paper = left.get_lines()
    assert [(list(x.get_xdata()), list(x.get_ydata())) for x in seeds] == courses[10]
    assert list(paper.get_ydata()) == [43.10] and paper.get_xdata()[0] > 3000
    assert (right.get_title(), left.get_xlabel()) == ("L = 30", "step (2 seeds)")
    assert list(right.get_lines()[1].get_ydata()) == [33.89]
    for ax in (left, right):
        low, high = ax.get_ylim()
        assert all(low < y < high for line in ax.get_lines() for y in line.get_ydata())


def test_gradients_are_drawn_as_boxes_over_examples_and_seeds():
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    curves = {
        "eval_step": np.array([0, 10, 20]),
        "gradient_cosine_total": rng.uniform(-1, 1, (3, 2, 5)),
        "gradient_inner_total": rng.normal(size=(3, 2, 5)),
    }
    curves["gradient_cosine_total"][1, 0, 0] = np.nan
    above, middle, below = report.gradients({"one": curves}).axes
    for ax, name in ((above, "cosine"), (middle, "inner")):
        medians = {
            np.mean(line.get_xdata()): line.get_ydata()[0]
            for line in ax.get_lines()
            if len(line.get_xdata()) == 2 and line.get_color() == report.COLORS[1]
        }
        for step, values in zip(curves["eval_step"], curves[f"gradient_{name}_total"], strict=True):
            np.testing.assert_allclose(medians[step], np.nanmedian(values))
    two = report.gradients({"one": curves, "other": curves}).axes
    assert two[1].get_shared_y_axes().joined(two[0], two[1])  # cosines are compared
    assert not two[3].get_shared_y_axes().joined(two[2], two[3])
    inner, *seeds = below.get_lines()[:-1]  # the last is 0
    np.testing.assert_array_equal(inner.get_xdata(), curves["eval_step"])
    np.testing.assert_allclose(inner.get_ydata(), curves["gradient_inner_total"].mean(axis=(1, 2)))
    means_TS = curves["gradient_inner_total"].mean(axis=2)
    np.testing.assert_allclose(np.stack([line.get_ydata() for line in seeds], axis=1), means_TS)


def test_attention_is_drawn_by_layer_and_head():
    pytest.importorskip("matplotlib")
    mean = np.random.default_rng(0).normal(size=(2, 3, 4, 5))  # seeds, layers, heads, totals
    total = np.arange(2, 7)
    curves = {"attention_mean": mean, "attention_total": np.stack([total, total])}
    (ax,) = report.attention({"one": curves}).axes
    lines = ax.get_lines()
    for layer in range(3):
        whole, *heads = lines[9 * layer : 9 * layer + 9]
        assert whole.get_label() == f"layer {layer}"
        np.testing.assert_allclose(whole.get_ydata(), mean[:, layer].mean(axis=(0, 1)))
        for head, line in enumerate(heads):
            np.testing.assert_array_equal(line.get_ydata(), mean[head // 4, layer, head % 4])
            np.testing.assert_array_equal(line.get_xdata(), total)


def test_a_heat_map_is_the_matrix_and_white_at_zero():
    pytest.importorskip("matplotlib")
    _, axes = report.new_figure()
    x_PP = np.array([[1.0, -5.0], [2.0, 3.0]])
    report.heat_map(axes[0, 0], x_PP, "logit (nats)")
    (image,) = axes[0, 0].images
    np.testing.assert_array_equal(image.get_array(), x_PP)
    assert image.get_clim() == (-5, 5)
    report.heat_map(axes[0, 0], x_PP, "logit (nats)", limit=7)
    assert axes[0, 0].images[1].get_clim() == (-7, 7)


def test_powers_have_a_guide_through_the_first_curves_end():
    pytest.importorskip("matplotlib")
    _, ((ax,),) = report.new_figure()
    x_X, y_TX = np.array([2.0, 4.0, 8.0]), np.array([[9.0, 9.0, 5.0], [1.0, 2.0, 3.0]])
    report.plot_powers(ax, x_X, y_TX, np.array([0, 7]), 2)
    first, last, guide = (line.get_xydata().T for line in ax.get_lines())
    np.testing.assert_array_equal(first, [x_X, y_TX[0]])
    np.testing.assert_array_equal(last, [x_X, y_TX[1]])
    np.testing.assert_allclose(guide, [x_X, 5 * np.array([1 / 16, 1 / 4, 1])])
    assert [line.get_label() for line in ax.get_lines()] == ["step 0", "step 7", "slope 2"]


def test_labels_at_the_ends_stand_apart_and_in_order():
    pytest.importorskip("matplotlib")
    _, axes = report.new_figure()
    for label, end in (("high", 1.0), ("low", 0.0), ("beside", 0.01)):
        axes[0, 0].plot([0, 1], [0.5, end], label=label)
    axes[0, 0].plot([0, 1], [0, 0])
    report.label_ends(axes[0, 0], gap=0.1)
    heights = {text.get_text(): text.get_position()[1] for text in axes[0, 0].texts}
    assert list(heights) == ["low", "beside", "high"]
    assert heights["beside"] == pytest.approx(heights["low"] + 0.1)
    assert 0.9 < heights["high"] < 1


def test_labels_of_lines_that_end_on_top_stay_beside_the_panel():
    pytest.importorskip("matplotlib")
    _, ((ax,),) = report.new_figure()
    for label, end in (("low", 0.0), ("third", 0.98), ("second", 0.99), ("first", 1.0)):
        ax.plot([0, 1], [0.5, end], label=label)
    report.label_ends(ax, gap=0.1)
    heights = [text.get_position()[1] for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == ["low", "third", "second", "first"]
    assert heights[1:] == pytest.approx([0.8, 0.9, 1.0]) and heights[0] < 0.1


def test_marks_beside_one_another_keep_their_data_and_scale_the_panel():
    pytest.importorskip("matplotlib")
    _, ((ax,),) = report.new_figure()
    (line,) = ax.plot([1, 2], [3, 4], transform=report.beside(ax, 0.5))
    assert line.get_xydata().tolist() == [[1, 3], [2, 4]]
    drawn = line.get_transform().transform(line.get_xydata())
    np.testing.assert_allclose(drawn, ax.transData.transform([[1.5, 3], [2.5, 4]]))
    assert ax.dataLim.bounds == (1.5, 3, 1, 1)
    artists.hides_nothing(ax.figure)


def test_a_figure_is_no_wider_than_a_page_and_its_spare_panels_are_gone():
    pytest.importorskip("matplotlib")
    figure, axes = report.new_panels(5, (3.6, 2.0))
    assert len(axes) == len(figure.axes) == 5
    np.testing.assert_allclose(figure.get_size_inches(), [7.2, 6.0])
    figure, _ = report.new_figure(1, 6, (3.0, 2.0))
    np.testing.assert_allclose(figure.get_size_inches(), [report.WIDTH, 2.0])


def test_eight_layers_are_still_named_and_have_their_heads():
    pytest.importorskip("matplotlib")
    mean = np.random.default_rng(0).normal(size=(1, 8, 2, 3))
    curves = {"attention_mean": mean, "attention_total": np.arange(3)[None]}
    (ax,) = report.attention({"one": curves}).axes
    assert len(ax.get_lines()) == 8 * 3 + 1  # each with its two heads, and zero
    assert sorted(text.get_text() for text in ax.texts) == [f"layer {n}" for n in range(8)]


def test_many_layers_are_shades_with_a_bar():
    pytest.importorskip("matplotlib")
    mean = np.random.default_rng(0).normal(size=(1, 9, 2, 3))
    curves = {"attention_mean": mean, "attention_total": np.arange(3)[None]}
    ax, bar = report.attention({"one": curves}).axes
    assert len(ax.get_lines()) == 10 and bar.get_ylabel() == "layer, 0 the first"
    scale = ax.figure.axes[1]._colorbar.mappable  # the bar shows layers as the lines have them
    assert scale.get_clim() == (0, 8)
    for layer, line in enumerate(ax.get_lines()[:9]):
        np.testing.assert_allclose(scale.to_rgba(layer), line.get_color())
    assert (
        len(
            {
                line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color())
                for line in ax.get_lines()[:9]
            }
        )
        == 9
    )


def test_cosines_of_one_origin_are_those_of_the_histories():
    (ax,) = redraw.cosines_of_one_origin().axes
    named = {x.get_label(): x for x in ax.get_lines() if x.get_label() in ("masked", "causal")}
    for model, name in (("mdm", "masked"), ("arm", "causal")):
        ends = facts.pair_history(model, "gradient_cosine_total_median", -1)
        np.testing.assert_allclose(named[name].get_ydata()[-1], np.mean(ends))
        assert named[name].get_xdata()[-1] == 2100
