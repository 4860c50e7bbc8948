"""Every number of toy_study's line, table and figure is that of its generations."""

import types

import artists
import jax
import numpy as np
import pytest

from dirasym.analysis import case_recall
from dirasym.data import case_pairs
from experiments import toy_study
from experiments.reports import toy_study as tables

INITS, ORDERS, WEIGHTS = ("default", "bias_zero"), ("random", "at_once"), ("raw", "ema")


def _percent(init, direction, order, weights, seed, moment):
    """A number of its own for every cell."""
    code = 40 * (direction == "forward") + 20 * (order == "at_once") + 10 * (weights == "ema")
    return code + 5.0 * (init == "bias_zero") + seed + moment / 4


def _line(init, seed):
    keys = [(d, o, w) for d in ("forward", "reverse") for o in ORDERS for w in WEIGHTS]
    curves = {
        f"{d}/{o}/{w}": np.array([_percent(init, d, o, w, seed, t) for t in range(3)])
        for d, o, w in keys
    }
    history = curves | {"eval_step": np.array([0, 2, 4]), "loss": np.array([9.0, 8.0, 7.0, 6.0])}
    return {"init": init, "seed": seed} | dict(toy_study.summarize(2, history))


LINES = [_line(init, seed) for init in INITS for seed in (0, 1)]


def test_the_line_holds_the_curves_and_the_loss_at_each_evaluation():
    line = LINES[3]
    assert line["eval_step"] == [0, 2, 4] and line["loss"] == [8, 6]
    assert line["reverse/at_once/ema"] == [36, 36.25, 36.5]
    assert line["forward/random/raw"] == [46, 46.25, 46.5]


def test_each_weight_direction_and_order_is_asked_for_itself(monkeypatch):
    """What generates is replaced by a code of what it was asked."""

    def generation_percent(apply_fn, params, prompts, key, *, kind, order, top_k):
        assert (apply_fn, kind, top_k) == ("model", "masked", 3)
        direction = [
            way
            for way in ("forward", "reverse")
            if np.array_equal(prompts.tokens_EL, case_pairs.prompts(5, way).tokens_EL)
        ]
        return direction, order, params

    monkeypatch.setattr(case_recall, "generation_percent", generation_percent)
    task = types.SimpleNamespace(length=5, apply_fn="model", sampling=dict(order="x", top_k=3))
    state = types.SimpleNamespace(key=jax.random.key(0), params="raw", ema_params="ema")
    got = toy_study.generate_in_orders(task, ORDERS, state)
    assert len(got) == 8
    for name, (direction, order, params) in got.items():
        assert name == f"{direction[0]}/{order}/{params}"


def test_the_table_holds_means_intervals_and_ranges():
    table = tables.table(LINES, INITS, ORDERS)
    assert table.splitlines()[0] == (
        "| initialisation | order | weights | forward % | reverse % | reverse, any step |"
    )
    for middle, span in ((7, "7 to 30"), (40, "30 to 40")):  # the start is left out
        later = [line | {"reverse/random/raw": [50, middle, 30]} for line in LINES]
        row = f"| default | random | raw | 41.0 ± 6.4 | 30.0 ± 0.0 | {span} |"
        assert row in tables.table(later, INITS, ORDERS)
    # Two seeds, 1 apart: the interval is 12.706 · 0.5; the range is over seeds and moments > 0.
    assert "| default | random | raw | 41.0 ± 6.4 | 1.0 ± 6.4 | 0 to 2 |" in table
    assert "| bias_zero | at_once | ema | 76.0 ± 6.4 | 36.0 ± 6.4 | 35 to 36 |" in table


def test_the_figure_holds_the_reverse_curves():
    pytest.importorskip("matplotlib")
    figure = tables.figure(LINES, INITS, ORDERS)
    axes = figure.axes
    for column, weights in enumerate(WEIGHTS):
        for row, init in enumerate(INITS):
            ax = axes[2 * row + column]
            assert ax.get_title() == f"{tables.NAMES[init]}: {tables.WEIGHTS[weights]}"
            for order in ORDERS:
                (line,) = (x for x in ax.get_lines() if x.get_label() == order.replace("_", " "))
                want = [
                    np.mean([_percent(init, "reverse", order, weights, s, t) for s in (0, 1)])
                    for t in range(3)
                ]
                np.testing.assert_allclose(line.get_ydata(), want)
                np.testing.assert_array_equal(line.get_xdata(), [0, 2, 4])
    named = artists.entries(figure.legends[0])
    assert named == [order.replace("_", " ") for order in ORDERS]
    assert {ax.get_xlabel() for ax in axes[-2:]} == {"step"} == {axes[-1].get_xlabel()}


def test_one_seed_of_one_initialisation_is_shown_as_it_is():
    pytest.importorskip("matplotlib")
    one = [LINES[0]]
    assert "| default | at_once | ema | 70.0 | 30.0 | 30 to 30 |" in (
        tables.table([LINES[0] | {f"{d}/at_once/ema": [1, x, x] for d, x in
                                  (("forward", 70), ("reverse", 30))}], ["default"], ORDERS)
    )  # fmt: skip
    raw, ema = tables.figure(one, ["default"], ORDERS).axes
    assert [ax.get_ylabel() for ax in (raw, ema)] == ["reverse (%)", ""]
    assert [ax.get_xlabel() for ax in (raw, ema)] == ["step", "step"]
    assert list(raw.get_lines()[0].get_ydata()) == [0, 0.25, 0.5]


def test_short_names_of_initialisations_say_what_differs():
    size = {0.0: "", 0.02: "small embedding", 1.0: "unit embedding"}
    assert list(tables.NAMES) and set(tables.NAMES) == set(toy_study.INITS)
    for init, changes in toy_study.INITS.items():
        assert size[changes.get("embed_std", 0.0)] in tables.NAMES[init]
        assert ("head_init" in changes) == ("zero head" in tables.NAMES[init])


def test_each_run_starts_as_its_name_says(monkeypatch):
    task = lambda *given: types.SimpleNamespace(  # noqa: E731
        network=None, run=lambda identity, *_, **__: (identity["init"], given)
    )
    monkeypatch.setattr(toy_study.toy, "Task", task)
    given = dict(toy_study.plan(toy_study.Config(length=5, generations=7), None))
    starts = {
        init: (c.norm_bias_init, c.embed_std, c.head_init) for init, (_, _, c) in given.items()
    }
    assert starts == {
        "default": (1, 0, "as_init"), "bias_zero": (0, 0, "as_init"),
        "bias_zero+embed_unit": (0, 1, "as_init"), "bias_zero+embed_small": (0, 0.02, "as_init"),
        "head_zero": (1, 0, "zeros"), "bias_zero+head_zero": (0, 0, "zeros"),
    }  # fmt: skip
    assert {(*x[:2], x[2].generations) for x in given.values()} == {("mdm", 5, 7)}
