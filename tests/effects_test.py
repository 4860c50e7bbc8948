"""Effects, aliases, rank correlations and ROC areas of cells whose answer is known."""

import itertools

import numpy as np
import pytest
import scipy.stats

from dirasym import effects

FACTORS = {"a": ["x", "y"], "b": [1, 2, 3]}
CELLS = [{"a": a, "b": b} for a, b in itertools.product(*FACTORS.values())]


def _outcome(cell, shift):
    """Base 10, y adds 4, level 2 takes 3, level 3 adds 1, and y with 3 adds 5 more."""
    of = 10 + 4 * (cell["a"] == "y") - 3 * (cell["b"] == 2) + (cell["b"] == 3)
    return of + 5 * (cell["a"] == "y" and cell["b"] == 3) + shift * (cell["a"] == "y")


def test_effects_are_those_of_the_cells_and_intervals_those_of_the_seeds():
    shifts = [-1.0, 0.0, 4.0]
    outcome = [[_outcome(cell, shift) for shift in shifts] for cell in CELLS]
    of = effects.design(CELLS, FACTORS, [("a", "b")])
    found = effects.effects(of, outcome)
    assert of.aliases == () and set(found) == set(of.names)
    want = {"constant": 10, "a=y": 5, "b=2": -3, "b=3": 1, "a=y:b=2": 0, "a=y:b=3": 5}
    got = [found[name].estimate for name in want]
    np.testing.assert_allclose(got, list(want.values()), atol=1e-9)
    for how, level in (({}, 0.95), (dict(level=0.8), 0.8)):
        half = scipy.stats.t.ppf(0.5 + level / 2, 2) * np.std(shifts, ddof=1) / np.sqrt(3)
        ends = effects.effects(of, outcome, **how)["a=y"][1:]
        np.testing.assert_allclose(ends, [5 - half, 5 + half])
    np.testing.assert_allclose(found["b=2"][1:], [-3, -3], atol=1e-9)


def test_what_cells_cannot_tell_apart_is_named_and_left_out():
    cells = [{"a": "x", "b": 1}, {"a": "x", "b": 2}, {"a": "y", "b": 3}]
    of = effects.design(cells, FACTORS)
    assert of.aliases == (("a=y", "b=3"),)
    found = effects.effects(of, [[1.0, 1.0], [3.0, 4.0], [7.0, 7.0]])
    assert set(found) == {"constant", "b=2"} and found["b=2"].estimate == pytest.approx(2.5)
    more = effects.design([*cells, {"a": "x", "b": 3}], FACTORS, [("a", "b")])
    assert more.aliases == (("a=y", "a=y:b=3"),)  # a pair of levels that no cell has: no column


def test_ranks_and_areas_are_the_definitions():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 9, 30), rng.normal(size=30)
    got = effects.rank_correlation(x, y)
    assert got.estimate == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert got.low < got.estimate < got.high
    assert effects.rank_correlation(y, -(y**3)).estimate == pytest.approx(-1)
    happens = y > 0.3
    area = effects.roc_area(x, happens)
    pairs = [(p > q) + (p == q) / 2 for p in x[happens] for q in x[~happens]]
    assert area.estimate == pytest.approx(np.mean(pairs)) and area.low < area.high
    assert (
        effects.roc_area(y, happens).estimate == 1 and effects.roc_area(-y, happens).estimate == 0
    )
    assert np.isnan(effects.roc_area(x, x > 100)).all()
    # In a third of the draws of three cells it never happens, or always: these say nothing.
    assert effects.roc_area([1, 2, 3], [False, False, True]) == (1, 1, 1)


def test_bounds_are_percentiles_over_cells_drawn_anew():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 12))
    y, happens = y + x, x + rng.normal(size=12) > 0
    for ask, other, statistic in (
        (effects.rank_correlation, y, lambda a, b: scipy.stats.spearmanr(a, b).statistic),
        (effects.roc_area, happens, lambda a, b: np.mean(np.sign(a[b][:, None] - a[~b]) / 2 + 0.5)),
    ):
        got = ask(x, other, 0.8, resamples=100, seed=5)
        drawn = [
            statistic(x[cells], other[cells])
            for cells in np.random.default_rng(5).integers(12, size=(100, 12))
        ]
        np.testing.assert_allclose(got[1:], np.percentile(drawn, [10, 90]), rtol=1e-9)
        assert ask(x, other) == ask(x, other, 0.95, resamples=2000, seed=0)


def test_bad_input():
    of = effects.design(CELLS, FACTORS)
    for outcome, what in (
        (np.ones((6, 1)), "two seeds"),
        (np.ones((5, 2)), "6 cells"),
        (np.full((6, 2), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=what):
            effects.effects(of, outcome)
    with pytest.raises(ValueError, match="b=7 is not among"):
        effects.design([{"a": "x", "b": 7}], FACTORS)
    with pytest.raises(ValueError, match="no cells"):
        effects.design([], FACTORS)
    for bad in ([1, 2], [1, 2, np.nan]):
        with pytest.raises(ValueError, match=r"three cells|finite"):
            effects.rank_correlation(bad, bad)
