"""Distances and probes find what two sets of states share, and nothing where they share nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models
from dirasym.analysis import states

RNG = np.random.default_rng(0)


def test_items_are_found_by_direction_whatever_all_of_a_set_share():
    items_XD = RNG.normal(size=(20, 8)).astype(np.float32)
    shift_D = 30 * RNG.normal(size=8)
    assert states.nearest(items_XD, 0.1 * items_XD + shift_D).all()
    moved = items_XD.copy()
    moved[[3, 7]] = moved[[7, 3]]
    found_X = states.nearest(items_XD, moved)
    assert found_X.sum() == 18 and not found_X[3] and not found_X[7]
    asked_XD = np.array([[1, 0.5], [-1, -0.5], [0, 1], [0, -1]])
    long_XD = np.array([[1, 0], [-1, 0], [0, 10], [0, -10]])  # the longest is no nearer
    assert states.nearest(asked_XD, long_XD).all()
    unrelated = RNG.normal(size=(20, 8))
    assert states.nearest(items_XD, unrelated).mean() < 0.3
    # Half alike: whose own is nearest of the others, not for whom it is the nearest item.
    halfway = items_XD + 1.5 * unrelated
    x_XD, y_XD = (z - z.mean(axis=0) for z in (items_XD, halfway))
    cosine_XY = x_XD @ y_XD.T / np.linalg.norm(x_XD, axis=1)[:, None] / np.linalg.norm(y_XD, axis=1)
    ways = [cosine_XY.argmax(axis=axis) == np.arange(20) for axis in (1, 0)]
    assert (ways[0] != ways[1]).any()
    np.testing.assert_array_equal(states.nearest(items_XD, halfway), ways[0])


def test_a_probe_names_items_of_other_states_where_both_are_coded_alike():
    items_XD, item_E = RNG.normal(size=(6, 16)), np.repeat(np.arange(6), 5)
    noisy = items_XD[item_E] + 0.1 * RNG.normal(size=(30, 16))
    asked_F = np.array([4, 0, 2, 5, 1, 3])
    other = items_XD[asked_F] + 7.0
    np.testing.assert_array_equal(states.probe(noisy, item_E, other, 6), asked_F)
    turned = other @ np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    assert (np.asarray(states.probe(noisy, item_E, turned, 6)) == asked_F).mean() < 0.7


def test_a_probe_is_the_ridge_solution():
    size_D = np.array([3.0, 1.0, 0.3])  # what is small is shrunk most
    x_ED, item_E = RNG.normal(size=(40, 3)) * size_D, RNG.integers(4, size=40)
    x_ED = x_ED - x_ED.mean(0)
    asked_FD = RNG.normal(size=(50, 3))
    for how, ridge in ((dict(ridge=5.0), 5.0), ({}, 0.01)):
        shrink = ridge * 40 * (x_ED**2).mean()
        rows = np.vstack([x_ED, np.sqrt(shrink) * np.eye(3)])
        known = np.vstack([np.eye(4)[item_E], np.zeros((3, 4))])
        want = np.linalg.lstsq(rows, known, rcond=None)[0]
        named = np.argmax((asked_FD - asked_FD.mean(0)) @ want, axis=1)
        np.testing.assert_array_equal(states.probe(x_ED, item_E, asked_FD, 4, **how), named)


def test_what_the_head_reads_is_captured():
    model = models.Transformer(models.radd(7, width=8))
    tokens = jnp.array([[1, 2, 3], [4, 5, 6]])
    params = model.init(jax.random.key(0), tokens)["params"]
    hidden_BLD = states.captured(model, params, tokens, "final_norm")
    logits = model.apply({"params": params}, tokens)
    head = params["head"]
    np.testing.assert_allclose(
        np.asarray(hidden_BLD) @ np.asarray(head["kernel"]) + np.asarray(head["bias"]),
        logits,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="no submodule 'nosuch'"):
        states.captured(model, params, tokens, "nosuch")
