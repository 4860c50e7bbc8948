"""The numbers of docs/theory.md that no training makes come from known errors, draws and minima."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tools import theory_numbers as tool

CASES = len(tool.WIDTHS) * len(tool.VOCABULARIES)


@pytest.fixture
def plain(monkeypatch):
    """What is measured is called as it stands, and need be no function of arrays."""
    monkeypatch.setattr(tool, "jax", types.SimpleNamespace(jit=lambda function: function))


def test_errors_are_over_the_value_and_over_the_natural_scale(plain, monkeypatch):
    """Of four blocks one is zero, which counts over its scale alone; one has no digits at all."""
    want, scale = np.array([2.0, -4.0, 0.0, 0.0]), np.array([8.0, 2.0, 4.0, 1e-35])
    error = np.array([0.5, -0.25, 1.5, 1.0])
    found = types.SimpleNamespace(inner=want + error, scale=scale)
    monkeypatch.setattr(tool.theorem_b1, "theorem_b1", lambda *asked: found)
    monkeypatch.setattr(tool.theorem_b1, "theorem_b1_autodiff", lambda *asked: want)
    line = tool.closed_form_errors(1, "float32")
    assert (line["what"], line["dtype"], line["draws"]) == ("closed_form", "float32", 3 * CASES)
    assert line["error_of_value"] == pytest.approx(1 / 4)  # of 0.5/2 and 0.25/4
    assert line["error_of_scale"] == pytest.approx(3 / 8)  # of 0.5/8, 0.25/2 and 1.5/4


def test_what_is_left_out_is_a_share_of_the_theorem_s_value(plain, monkeypatch):
    """A ratio of the vocabulary's size, 2 or 40, at W_Q, and of its inverse at W_K."""

    def measured(params, fwd, rev, target):
        vocab = len(params.W_O)
        assert 0 <= target < vocab and params.W_Q.dtype == jnp.float64
        theorem = types.SimpleNamespace(W_Q=-2.0, W_K=0.5)
        own = types.SimpleNamespace(W_Q=2.0 * vocab, W_K=0.5 / vocab)
        return types.SimpleNamespace(theorem=theorem, own_score=own, own_value=theorem)

    monkeypatch.setattr(tool.neglected, "neglected_terms", measured)
    with jax.enable_x64(True):
        query, key = tool.left_out(2)
    keys = "block", "draws", "lower_quartile", "median", "upper_quartile"
    assert [query[k] for k in keys] == ["W_Q", 12, 2, 21, 40]
    assert [key[k] for k in keys] == ["W_K", 12, 1 / 40, pytest.approx(21 / 80), 1 / 2]


def test_a_draw_of_proposition_b8_fails_where_the_product_is_not_positive(monkeypatch):
    asked = {}

    def known(key, width, vocab_size, **how):
        asked.update(how, width=width, vocab_size=vocab_size)
        return types.SimpleNamespace(inner=jnp.array([-1.0, 0.0, 1.0, 2.0, 3.0]), bound=0.3)

    monkeypatch.setattr(tool.lemmas, "simulate_proposition_b8", known)
    line = tool.proposition_b8(16, 5)
    assert line == dict(what="proposition_b8", width=16, draws=5, failed=2, bound=0.3)
    assert asked == dict(width=16, vocab_size=54, adversarial=True, num_draws=5)


def test_minima_are_those_of_the_sums_over_planes():
    found, deltas = list(tool.minima()), np.arange(1, 101)
    assert [line.get("width") for line in found] == [None, 16, 32, 64, 128, 256]
    for line in found[1:]:
        angles = 10_000.0 ** (-np.arange(0, 1, 2 / line["width"]))
        want = np.cos(np.outer(deltas, angles)).mean(axis=1)
        assert line["smallest"] == pytest.approx(want.min(), abs=1e-5)
    exponents = (np.arange(20_000) + 0.5) / 20_000  # the integral, by midpoints
    limit = np.cos(np.outer(deltas, 10_000.0**-exponents)).mean(axis=1)
    assert found[0]["smallest"] == pytest.approx(limit.min(), abs=1e-4)
    assert found[0]["delta"] == deltas[limit.argmin()]


def test_unequal_distances_fall_short_of_the_bound_by_a_mean_over_queries():
    line = tool.unequal_distances(20_000)
    assert {key: line[key] for key in tool.UNEQUAL} == tool.UNEQUAL
    ahead, behind = line["delta_fwd"], line["delta_rev"]
    angles = 10_000.0 ** (-np.arange(0, 1, 2 / 16))
    weight = np.random.default_rng(5).dirichlet(np.ones(8), 20_000)

    def mean(turn):
        return weight @ np.cos(turn * angles)

    above = mean(ahead + behind) + mean(ahead - behind)
    found = above / np.sqrt((1 + mean(2 * ahead)) * (1 + mean(2 * behind)))
    short = np.cos((ahead + behind) * angles).mean() - found
    error = short.std() / np.sqrt(len(short))
    assert line["standard_error"] == pytest.approx(error, rel=0.05)
    assert abs(line["below"] - short.mean()) < 6 * error < 0.02
