"""Maps whose bits and entropies are known, and lines whose table is known by hand."""

import dataclasses
import math

import artists
import numpy as np
import pytest

from dirasym.data import string_maps
from dirasym.report import COLORS
from experiments import world_a_bits as page
from experiments.reports import world_a_bits as report

SMALL = page.Config(
    models=("mlp", "gpt2"), shapes=("6x8", "36x4"), Ks=(1, 5), n_pairs=(50,), maps=2, epochs=2,
    eval_every=1, mlp_width=8, layers=1, width=12, heads=2,
)  # fmt: skip


def test_each_run_learns_its_own_map(tmp_path):
    runs = page.plan(SMALL, tmp_path)
    # Two models, two kinds of strings, two maps; K = 1, and K = 5 both ways.
    assert len(runs) == 2 * 2 * 2 * 3
    tokens = set()
    for run in runs:
        who, data = run.identity, run.data(0)
        tokens.add((who["model"], data["tokens_BL"].tobytes()))
        assert (who["letters"], who["length"]) in ((6, 8), (36, 4)) and who["pairs"] == 50
        if who["model"] == "mlp":
            assert data["tokens_BL"].shape == (50, 2 * who["length"])
            assert data["tokens_BL"].max() < who["letters"]
            # The target is the right half, and K of the wider side share one of the other.
            left, right = (
                {tuple(row) for row in half}
                for half in (
                    data["tokens_BL"][:, : who["length"]],
                    data["tokens_BL"][:, who["length"] :],
                )
            )
            wanted = {"A->B": (50, 50 // who["K"]), "B->A": (50 // who["K"], 50)}
            assert (len(left), len(right)) == wanted[who["direction"]]
    assert len(tokens) == len(runs)  # no two tasks share their pairs
    steps = {(run.identity["model"], run.identity["length"]): set() for run in runs}
    for run in runs:
        steps[run.identity["model"], run.identity["length"]].add(id(run.step))
    assert all(map(len, steps.values())) and sum(map(len, steps.values())) == 4  # one program each


def _line(number, seed, curve, **more):
    line = dict(model="mlp", letters=36, length=4, pairs=10, K=1, direction="A->B", map=number)
    line |= dict(seed=seed, eval_epochs=[0, 2, 4], floor_nats_per_string=0.0)
    line |= dict(bits_to_store_per_pair=20.0, eval_excess_nats_per_string_curve=curve)
    return line | more


GUESS = 4 * math.log(36)
LINES = [  # halves at 3 and 2 on map 0, 1 and 3 on map 1; 0 and 20, 10 and 40 percent left
    _line(0, 0, [2 * GUESS, GUESS, 0.0]),
    _line(0, 1, [2 * GUESS, 0.5 * GUESS, 0.2 * GUESS]),
    _line(1, 0, [0.9 * GUESS, 0.1 * GUESS, 0.1 * GUESS]),
    _line(1, 1, [2 * GUESS, 0.6 * GUESS, 0.4 * GUESS]),
    _line(0, 0, [9.0, 9.0, 8.0], K=5, direction="B->A", bits_to_store_per_pair=19.5,
          floor_nats_per_string=2.0),
]  # fmt: skip


def test_half_is_of_a_uniform_guess_and_not_of_the_start():
    assert [report.half(line) for line in LINES[:4]] == pytest.approx([3.0, 2.0, 1.0, 3.0])
    assert math.isnan(report.half(LINES[4]))
    assert report.guess(LINES[4]) == pytest.approx(GUESS - 2)
    assert [report.entropy(LINES[n]) for n in (0, 4)] == [0.0, math.log(5)]


def test_the_table_averages_over_seeds_then_maps():
    one, inverse = report.table(LINES).splitlines()[2:]
    cells = [x.strip() for x in one.strip("|").split("|")]
    # 2.5 and 2 on the two maps: ± 12.706 · 0.25; 10 and 25 percent.
    assert cells == ["mlp", "36 × 4", "10", "K = 1", "20.0", "0.00", "2.2 ± 3.2", "17.5 ± 95.3",
                     "2 × 2"]  # fmt: skip
    assert "| K = 5 inverse | 19.5 | 1.61 | –" in inverse


def test_the_figure_draws_means_over_maps_at_their_bits():
    pytest.importorskip("matplotlib")
    (ax,) = report.figure([*LINES[:4], _line(0, 0, [GUESS, 0.4 * GUESS, 0.0], letters=6)]).axes
    points = {bar.get_label(): bar[0].get_xydata().tolist() for bar in ax.containers}
    assert points["36 × 4, 10 pairs, one answer"] == [[20.0, pytest.approx(2.25)]]
    assert "6 × 4, 10 pairs, one answer" in points and len(points) == 2
    marks = {bar.get_label()[:2]: bar[0].get_marker() for bar in ax.containers}
    assert [marks["36"], marks["6 "]] == list(report.MARKERS[:2])  # the most letters first
    assert report.figure(LINES[:4]).axes[0].containers[0][0].get_color() == COLORS[0]
    of_K = {"K": 5, "direction": "B->A", "bits_to_store_per_pair": 12.0}
    (ax,) = report.figure([line | of_K for line in LINES[:4]]).axes
    (points, _, (bars,)) = ax.containers[0]
    assert ax.containers[0].get_label().endswith("one of K") and points.get_color() == COLORS[1]
    assert points.get_xdata().tolist() == [12.0]
    low, high = bars.get_segments()[0][:, 1]  # 2.5 and 2 on the two maps: ± 12.706 · 0.25
    np.testing.assert_allclose([low, high], [2.25 - 3.1766, 2.25 + 3.1766], atol=1e-3)
    named = [artists.words(x) for x in report.figure(
        [*LINES[:4], *(line | {"model": "gpt2"} for line in LINES[:4])]).axes]  # fmt: skip
    words = "bits to store, per pair", "epochs until half is learned"
    assert named == [("GPT-2", *words), ("MLP", *words)]


def test_a_kind_of_strings_has_one_marker_in_both_panels():
    few = [line | {"letters": 6} for line in LINES[:4]]
    gpt2 = [line | {"model": "gpt2"} for line in LINES[:4]]  # which did not learn of few letters
    first, second = report.figure([*LINES[:4], *few, *gpt2]).axes
    assert first.get_shared_y_axes().joined(first, second)  # epochs of both are compared
    (alone,), both = first.containers, {x.get_label()[:6]: x for x in second.containers}
    assert alone[0].get_marker() == both["36 × 4"][0].get_marker() != both["6 × 4,"][0].get_marker()
    only = [*few, *gpt2]  # each panel has one kind, and not the same
    first, second = (ax.containers[0][0].get_marker() for ax in report.figure(only).axes)
    assert first != second


def test_maps_are_drawn_apart():
    maps = {
        page.string_map(shape, 50, K, n) for shape in page.SHAPES for K in (1, 5) for n in (0, 1)
    }
    assert len(maps) == 16 and len({tuple(of.pairs[0]) for of in maps}) == 16
    assert page.string_map("6x8", 50, 5, 1) == string_maps.StringMap(5, 50, 8, 2005, num_letters=6)


def test_gpt2_learns_at_its_rate_without_dropout_and_against_the_joint_floor(tmp_path, monkeypatch):
    made, floors = [], set()
    setting, make_case = page.world_a.Setting, page.excess.make_case
    spy = lambda config, path: made.append(config) or setting(config, path)  # noqa: E731
    monkeypatch.setattr(page.world_a, "Setting", spy)
    spy = lambda *given: floors.add(given[3]) or make_case(*given)  # noqa: E731
    monkeypatch.setattr(page.excess, "make_case", spy)
    page.plan(dataclasses.replace(SMALL, models=("gpt2",), shapes=("6x8",), lr=0.5), tmp_path)
    (config,) = made
    assert floors == {"joint"} and (config.lr, config.dropout) == (0.5, 0.0)
    assert (config.layers, config.width, config.heads, config.str_len) == (1, 12, 2, 8)
