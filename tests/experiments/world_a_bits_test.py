"""Maps whose bits and entropies are known, and lines whose table is known by hand."""

import dataclasses
import math
import types

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


def _of_pairs(pairs, half, number=0, **more):
    """A line whose half, of a guess of 4 ln 36, is learned at `half` epochs."""
    curve, at = [2 * GUESS, 0.0], [0, half / 0.75]
    line = _line(number, 0, curve, pairs=pairs, batch_size=64, epochs=40, eval_epochs=at)
    return line | more


FORWARD, INVERSE = ({"K": 5, "direction": way} for way in ("A->B", "B->A"))
PAIRS = [
    _of_pairs(500, 4.0),
    _of_pairs(500, 6.0, 1),
    _of_pairs(2000, 10.0),
    _of_pairs(500, 9.0, epochs=80),
    _of_pairs(1000, 3.0, **FORWARD, bits_to_store_per_pair=14.25),
    _of_pairs(1000, 7.0, **INVERSE, eval_excess_nats_per_string_curve=[2 * GUESS, 1.5 * GUESS]),
]


def test_steps_and_targets_of_a_number_of_pairs():
    # 500 pairs are 7 batches of 64 and one of 52; 640 are ten whole ones.
    assert [report.steps_an_epoch(_of_pairs(n, 1.0)) for n in (1, 64, 500, 640)] == [1, 1, 8, 10]
    assert [report.half_steps(line) for line in PAIRS[:3]] == pytest.approx([32.0, 48.0, 320.0])
    assert [report.at_least(PAIRS[n]) for n in (2, 5)] == pytest.approx([10.0, 7.0 / 0.75])
    assert [report.targets(PAIRS[n]) for n in (0, 4, 5)] == [500, 200, 1000]


def test_the_exponent_is_of_means_over_maps_and_from_the_fewest_to_the_most():
    assert report.exponent(PAIRS[:3]) == pytest.approx(0.5)  # 5 to 10 epochs, 4 times the pairs
    assert report.exponent(PAIRS[2::-1]) == pytest.approx(0.5)
    between = _of_pairs(1000, 1.0)  # is not asked
    assert report.exponent([*PAIRS[:3], between]) == pytest.approx(0.5)
    in_steps = report.exponent(PAIRS[:3], report.half_steps)  # 8 steps an epoch, then 32
    assert in_steps == pytest.approx(1.5)


def test_the_table_by_pairs_has_epochs_and_steps():
    header, _, *rows = report.pairs_table(PAIRS).splitlines()
    assert header.split(" | ")[6:8] == ["half learned", "in steps"]
    cells = [[x.strip() for x in row.strip("|").split("|")] for row in rows]
    few, longer, many, forward, inverse = cells
    # 4 and 6 epochs on two maps: ± 12.706.
    assert few == ["K = 1", "500", "500", "20.0", "8", "40", "5.0 ± 12.7", "40 ± 102", "0.0 ± 0.0",
                   "2 × 1"]  # fmt: skip
    assert longer[:2] + longer[5:8] == ["K = 1", "500", "80", "9.0", "72"]
    assert many[1:3] + many[4:8] == ["2000", "2000", "32", "40", "10.0", "320"]
    assert forward[:4] == ["K = 5 forward", "1000", "200", "14.2"]
    assert inverse[0] == "K = 5 inverse" and inverse[2] == "1000"
    assert inverse[6:9] == ["over 9.3", "over 149", "150.0"]  # of 9.33 epochs of 16 steps


def test_the_figure_by_pairs_draws_epochs_and_steps():
    pytest.importorskip("matplotlib")
    lines = [*PAIRS[:3], PAIRS[4], PAIRS[5]]
    epochs, steps = report.pairs_figure(lines).axes
    drawn = [{x.get_label(): x[0].get_xydata().tolist() for x in ax.containers}
             for ax in (epochs, steps)]  # fmt: skip
    assert drawn[0]["K = 1"] == [[500, pytest.approx(5.0)], [2000, pytest.approx(10.0)]]
    assert drawn[1]["K = 1"] == [[500, pytest.approx(40.0)], [2000, pytest.approx(320.0)]]
    assert drawn[0]["K = 5 forward"] == [[1000, pytest.approx(3.0)]]
    assert set(drawn[1]) == {"K = 1", "K = 5 forward", "K = 5 inverse"}
    # No half in 9.33 epochs of 16 steps: hollow there, and full elsewhere.
    assert drawn[1]["K = 5 inverse"] == [[1000, pytest.approx(16 * 7 / 0.75)]]
    hollow = [
        [
            n
            for line in ax.lines
            if line.get_mfc() == "w"
            for n, y in line.get_xydata().tolist()
            if y == y
        ]
        for ax in (epochs, steps)
    ]
    assert hollow == [[1000], [1000]] and epochs.get_xticks().tolist() == [500, 1000, 2000]
    low, high = epochs.containers[0][2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], [5 - 12.706, 5 + 12.706], atol=1e-2)
    named = [artists.words(ax) for ax in (epochs, steps)]
    assert named == [("", "pairs", "epochs until half is learned"),
                     ("", "pairs", "steps until half is learned")]  # fmt: skip


def test_a_direction_may_be_asked_for_alone(tmp_path):
    asked = dataclasses.replace(SMALL, models=("mlp",), directions=("inverse",))
    found = [(run.identity["K"], run.identity["direction"]) for run in page.plan(asked, tmp_path)]
    assert set(found) == {(1, "A->B"), (5, "B->A")} and len(found) == 8


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


def test_the_report_holds_the_table_and_draws_its_lines(monkeypatch):
    drawn = artists.of_report(monkeypatch, report.report)
    found = types.SimpleNamespace(path=None, results=lambda: LINES)
    report.write(found, types.SimpleNamespace(epochs=2))
    assert drawn == {"bits": (LINES,)}


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
