"""Every number of toy_reversal's line, table and figures is that of its history."""

import dataclasses
import functools
import types

import artists
import jax
import numpy as np
import pytest

from dirasym import runs
from dirasym.workdir import WorkDir
from experiments import toy_reversal
from experiments.reports import toy as tables
from experiments.systems import toy

CONFIG = toy.Config(lengths=(4, 10), seeds=(0, 3), steps=40, eval_every=20, report_step=20)
PAPER = toy_reversal.PAPER_TABLE_2


def _value(model, length, seed, row, key):
    """A number of its own for every cell."""
    code = 1000 * (model == "arm") + 100 * (length == 10) + 10 * seed + 3 * row
    return code + sum(map(ord, key)) / 10_000


def _history(model, length, seed):
    names = ("raw", "ema") if model == "mdm" else ("raw",)
    keys = [f"{m}_{d}_{n}" for m in ("p", "percent") for d in tables.DIRECTIONS for n in names]
    history = {
        key: np.array([_value(model, length, seed, row, key) for row in range(3)]) for key in keys
    }
    for name in names:
        for number, panel in enumerate(("right", "wrong")):
            value = _value(model, length, seed, 0, panel + name)
            place = np.arange(length)[None] + 100.0 * np.arange(3)[:, None]
            history[f"panel_{panel}_{name}"] = value + number * 0.5 + place
    history["loss"] = np.linspace(5, 1, 40) + seed
    return history | {"eval_step": np.array([0, 20, 40]), "wall_time_sec": np.zeros(())}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A work directory whose histories are known, and its runs."""
    workdir = WorkDir(tmp_path_factory.mktemp("toy"), dataclasses.asdict(CONFIG))
    all_runs = toy_reversal.plan(CONFIG, workdir.path)
    for run in all_runs:
        for seed in CONFIG.seeds:
            history = _history(run.identity["model"], run.identity["length"], seed)
            workdir.save_curves(run, seed, history)
            workdir.record(run, seed, run.summarize(history))
    return workdir, all_runs


def test_the_line_takes_the_shown_and_the_last_step(reported):
    workdir, all_runs = reported
    for run in all_runs:
        model, length = run.identity["model"], run.identity["length"]
        line = workdir.line(run, 3)
        name = "ema" if model == "mdm" else "raw"
        value = functools.partial(_value, model, length, 3)
        for direction in tables.DIRECTIONS:
            key = f"percent_{direction}_{name}"
            assert line[f"{direction}_percent"] == line[key] == value(1, key)
            assert line[f"final_{direction}_percent"] == value(2, key)
            assert line[f"p_{direction}_raw"] == value(1, f"p_{direction}_raw")
        assert line["final_loss"] == 4.0 and line["weights"] == name


def test_the_table_says_mean_interval_seeds_and_the_papers_cell(reported, capsys):
    workdir, all_runs = reported
    tables.write(workdir, CONFIG, all_runs, PAPER)
    text = (workdir.path / "report.md").read_text(encoding="utf-8")
    error = 100 * np.sqrt(0.25 / (26 * CONFIG.generations))  # of a share of one half
    assert f"standard error of at most {error:.1f} by sampling" in " ".join(text.split())
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line][2:]
    cells = {(row[0].strip("| "), row[1], row[2]): row[3:] for row in rows}
    assert len(cells) == 8
    for direction, published in (("forward", "99.83"), ("reverse", "0.00")):
        values = [_value("arm", 10, seed, 1, f"percent_{direction}_raw") for seed in (0, 3)]
        paper, ours, each, raw, *_ = cells["10", "ARM", direction]
        half = 12.706 * np.std(values, ddof=1) / np.sqrt(2)  # Student's t for two values
        mean, interval = map(float, ours.split(" ± "))
        assert paper == published and raw == ""
        np.testing.assert_allclose([mean, interval], [np.mean(values), half], rtol=1e-4)
        assert each == ", ".join(f"{value:.1f}" for value in values)
    assert cells["10", "MDM", "reverse"][0] == "43.10" and cells["4", "MDM", "forward"][0] == ""
    shown = [_value("mdm", 4, seed, 1, "percent_forward_ema") for seed in (0, 3)]
    last = [_value("mdm", 4, seed, 2, "percent_forward_ema") for seed in (0, 3)]
    raw = [_value("mdm", 4, seed, 1, "percent_forward_raw") for seed in (0, 3)]
    _, ours, _, ours_raw, final = cells["4", "MDM", "forward"]
    for cell, values in ((ours, shown), (ours_raw, raw), (final, last)):
        assert float(cell.split(" ± ")[0]) == pytest.approx(np.mean(values), abs=0.01)


def test_of_one_moment_the_table_has_one_column(reported, capsys):
    workdir, all_runs = reported
    tables.write(workdir, CONFIG, all_runs, PAPER)
    both = capsys.readouterr().out.splitlines()
    config = dataclasses.replace(CONFIG, steps=CONFIG.shown_step)
    tables.write(workdir, config, all_runs, PAPER)
    once = capsys.readouterr().out.splitlines()
    heads = [next(x for x in of if x.startswith("| L ")).split(" | ") for of in (both, once)]
    assert heads[1] == [*heads[0][:-2], heads[0][-2] + " |"] and heads[1][-1].startswith("raw")


def test_the_figures_hold_the_curves(reported):
    pytest.importorskip("matplotlib")
    workdir, all_runs = reported
    curves = {tuple(r.identity.values()): workdir.stacked(r, CONFIG.seeds) for r in all_runs}
    figure = tables.training_figure(curves, CONFIG, "percent")
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}  # L = 10
    for label, model, direction, name in (
        ("MDM reverse (ema)", "mdm", "reverse", "ema"),
        ("MDM forward (raw)", "mdm", "forward", "raw"),
        ("ARM forward (raw)", "arm", "forward", "raw"),
    ):
        key = f"percent_{direction}_{name}"
        want = [np.mean([_value(model, 10, s, row, key) for s in (0, 3)]) for row in range(3)]
        np.testing.assert_allclose(lines[label].get_ydata(), want)
        np.testing.assert_array_equal(lines[label].get_xdata(), [0, 20, 40])
    styles = {name: line.get_linestyle() for name, line in lines.items() if name[0] in "MA"}
    assert styles == {f"MDM {d} ({w})": ls for d in tables.DIRECTIONS for w, ls in
                      (("raw", ":"), ("ema", "-"))} | {
        f"ARM {d} (raw)": "--" for d in tables.DIRECTIONS}  # fmt: skip
    assert figure.axes[1].get_ylim()[1] == 102
    p = tables.training_figure(curves, CONFIG, "p").axes[1]
    styles = {x.get_label(): x.get_linestyle() for x in p.get_lines() if x.get_label()[0] in "MA"}
    assert styles == {f"{m} {d} (raw)": ls for d in tables.DIRECTIONS for m, ls in
                      (("MDM", "-"), ("ARM", "--"))}  # fmt: skip
    assert p.get_ylim()[1] == 1.02
    panel = tables.panel_figure(curves, CONFIG).axes[0]  # MDM, L = 4
    right, wrong = (
        next(line for line in panel.get_lines() if line.get_label().startswith(label))
        for label in ("right", "best wrong")
    )
    for line, name in ((right, "panel_right_ema"), (wrong, "panel_wrong_ema")):
        want = np.mean([_history("mdm", 4, seed)[name][1] for seed in (0, 3)], axis=0)
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(line.get_ydata(), want[1:])


def test_the_bars_are_means_and_the_diamonds_the_papers(reported):
    pytest.importorskip("matplotlib")
    workdir, _ = reported
    mdm, arm = tables.accuracy_bars(workdir.results(), CONFIG, PAPER).axes
    for ax, model, name in ((mdm, "mdm", "ema"), (arm, "arm", "raw")):
        want = [
            np.mean([_value(model, n, s, 1, f"percent_{d}_{name}") for s in (0, 3)])
            for d in tables.DIRECTIONS
            for n in (4, 10)
        ]
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], want)
        diamonds = [line.get_ydata() for line in ax.get_lines() if line.get_marker() == "D"]
        published = PAPER[10][:2] if model == "mdm" else PAPER[10][2:]
        np.testing.assert_allclose(np.concatenate(diamonds), published)
        assert artists.entries(ax.get_legend()) == ["seed", "paper", *tables.DIRECTIONS]
        # Side by side at its length, forward first; a bar's seeds and diamond stand on it.
        bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
        for place in (0, 1):
            (left, end), (start, right) = bars[place], bars[place + 2]
            assert place - 0.5 < left < end <= start < right < place + 0.5
        for dots, direction, bars_of in zip(
            (line for line in ax.get_lines() if line.get_marker() == "."),
            tables.DIRECTIONS,
            (bars[:2], bars[2:]),
            strict=True,
        ):
            key = f"percent_{direction}_{name}"
            values = [_value(model, n, s, 1, key) for n in (4, 10) for s in (0, 3)]
            np.testing.assert_allclose(dots.get_ydata(), values)
            for (left, right), x in zip(bars_of, dots.get_xdata().reshape(2, 2), strict=True):
                assert ((left < x) & (x < right)).all()
        known = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "D"]
        for (left, right), x in zip((bars[1], bars[3]), known, strict=True):  # L = 10
            assert (left + right) / 2 < x < right  # beside the seeds, which are in the middle


def test_a_run_is_known_by_model_and_length(reported):
    _, all_runs = reported
    assert [run.name for run in all_runs] == [
        f"model={model},length={length}" for model in ("mdm", "arm") for length in (4, 10)
    ]
    assert isinstance(all_runs[0], runs.Run)


@pytest.mark.parametrize(("embed_std", "want"), [(0.0, None), (0.25, 0.25)])
def test_the_size_of_the_embedding_reaches_the_network(embed_std, want):
    config = dataclasses.replace(CONFIG, embed_std=embed_std)
    assert toy.Task("mdm", 4, config).network.embed_std == want


def test_a_network_has_what_its_flags_name():
    of_both = dict(width=16, dropout=0.25)
    of_mdm = dict(positions="alibi", head_init="zeros")
    changes = dict(layers=3, norm_bias_init=0.5, **of_both, **of_mdm)
    config = dataclasses.replace(CONFIG, **changes)
    of_both |= dict(num_layers=3, num_heads=1, max_len=4)
    for model, minimal, want in (
        ("arm", False, dict(causal=True)),
        ("mdm", False, dict(causal=False, norm_bias_init=0.5, attention_only=False, **of_mdm)),
        ("mdm", True, dict(causal=False, residual=False, attention_only=True, **of_mdm)),
    ):
        network = toy.Task(model, 4, dataclasses.replace(config, attention_only=minimal)).network
        want |= of_both
        assert {name: getattr(network, name) for name in want} == want


def test_a_model_is_asked_with_its_own_weights_and_sampling(monkeypatch):
    monkeypatch.setattr(toy.case_recall, "evaluate", lambda *given, **how: (given, how))
    weights = {"raw": 1.0, "ema": 2.0}
    state = types.SimpleNamespace(key=jax.random.key(0), weights=lambda: weights)
    sampling = dict(order="right_to_left", generations=7, top_k=2)
    for model, kind in (("mdm", "masked"), ("arm", "causal")):
        task = toy.Task(model, 4, dataclasses.replace(CONFIG, **sampling))
        (_, asked, length, _), how = task.evaluate(state)
        assert (asked, length, how) == (weights, 4, {"kind": kind, **sampling})


def test_a_model_trains_as_its_flags_say(monkeypatch):
    told = {}
    make = lambda rate, **how: told.update(how, rate=rate)  # noqa: E731
    monkeypatch.setattr(toy.training, "make_optimizer", make)
    monkeypatch.setattr(toy.training, "initializer", lambda *_, **how: told.update(how))
    changes = dict(ema_decay=0.5, weighting="k", warmup_steps=7, learning_rate=0.25)
    task = toy.Task("mdm", 4, dataclasses.replace(CONFIG, **changes))
    step = task.step().keywords
    assert (step["ema_decay"], step["objective"].keywords["weighting"]) == (0.5, "k")
    assert task.init is None and told == {"rate": 0.25, "warmup_steps": 7, "ema": True}
