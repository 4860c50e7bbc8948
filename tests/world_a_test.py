"""A user's own model learns maps."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import objectives, runs, training, world_a
from dirasym.analysis import excess
from dirasym.data import string_maps

OPTIMIZER = optax.adam(0.1)


def _apply_fn(params, tokens_BL, valid_BL=None):
    """The next character from the one before it."""
    return params["table"][tokens_BL]


def _init(seed):
    params = {"table": jax.random.normal(jax.random.key(seed), (36, 36))}
    return training.create_state(_apply_fn, params, OPTIMIZER, jax.random.key(seed))


def _case(of, direction):
    pairs = zip(*of.oriented(direction), strict=True)
    tokens_BL = string_maps.to_ids([source + target for source, target in pairs])
    scored_BL = np.tile(np.arange(2 * of.str_len) >= of.str_len, (of.n_pairs, 1))
    data = {"tokens_BL": tokens_BL, "scored_BL": scored_BL}
    return excess.make_case(of, direction, data, "joint")


def test_any_model_learns_its_maps(tmp_path):
    of = string_maps.StringMap(5, 10, 3, seed=1)
    learner = world_a.Learner(_init, objectives.next_token, 8, 4, 4, dropout=False)
    all_runs = [
        learner.run(_case(of, direction), {"model": "mine"}, {"size": 7})
        for direction in string_maps.DIRECTIONS
    ]
    forward, *_, inverse = runs.sweep(all_runs, [0, 1], tmp_path, progress=False)
    assert (forward["direction"], inverse["direction"]) == ("A->B", "B->A")
    assert (inverse["model"], inverse["size"], inverse["total_params"]) == ("mine", 7, 36**2)
    assert inverse["theoretical_min"] == pytest.approx(np.log(5))
    assert inverse["eval_epochs"] == [0, 4, 8] and len(inverse["train_curve"]) == 8
    for line in (forward, inverse):
        clean = line["eval_excess_nats_per_string_curve"]
        assert clean[0] > clean[1] > clean[2] == line["eval_excess_nats_per_string"]
        # At step 0 nothing is learned: by hand.
        case = _case(of, {"A->B": "forward", "B->A": "inverse"}[line["direction"]])
        log_p = jax.nn.log_softmax(_init(line["seed"]).params["table"])
        tokens = jnp.asarray(case.data["tokens_BL"])[:, 2:]
        nats = -float(log_p[tokens[:, :-1], tokens[:, 1:]].sum()) / 10
        assert clean[0] == pytest.approx(nats - case.floor.nats_per_string, rel=1e-5)


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(excess).failed == 0


def test_a_learner_trains_and_measures_by_the_objectives_that_it_is_given():
    def constant(nats):
        return lambda apply_fn, params, batch, key, *, rngs=None: (
            nats * batch.scored_BL.any(axis=1).sum(),
            1.0 * batch.scored_BL.sum(),
            {},
        )

    case = _case(string_maps.StringMap(5, 10, 3, seed=1), "forward")
    for dropout in (True, False):
        learner = world_a.Learner(
            _init, constant(2.0), 1, 4, clean_objective=constant(3.0), dropout=dropout
        )
        run = learner.run(case, {})
        assert run.step.keywords == dict(objective=learner.objective, dropout=dropout)
        np.testing.assert_allclose(run.evaluate(_init(0))["nats_per_string"], 3, rtol=1e-6)


def test_gradients_are_those_of_what_is_trained():
    def steep(slope):
        return lambda apply_fn, params, batch, key, *, rngs=None: (
            slope
            * (batch.tokens_BL[:, 0] * batch.scored_BL.any(axis=1)).sum()
            * params["table"].sum(),
            1.0 * batch.scored_BL.sum(),
            {},
        )

    case = _case(string_maps.StringMap(5, 10, 3, seed=1), "forward")
    learner = world_a.Learner(_init, steep(2.0), 1, 4, clean_objective=steep(3.0), blocks="table")
    probe = [case.data | {"tokens_BL": np.full_like(case.data["tokens_BL"], x)} for x in (1, 3)]
    got = learner.run(case, {}, probe=tuple(probe)).evaluate(_init(0))
    for way, token in zip(string_maps.DIRECTIONS, (1, 3), strict=True):  # of 36 · 36 entries
        np.testing.assert_allclose(got[f"norm_{way}/total"], 2 * token * 36, rtol=1e-5)


def test_the_loss_of_a_line_is_that_of_the_last_epoch():
    learner = world_a.Learner(_init, objectives.next_token, 2, 10, loss_name="mine")
    run = learner.run(_case(string_maps.StringMap(5, 10, 3, seed=1), "forward"), {})
    counts = dict(count=np.array([30.0, 30.0]), eval_step=np.array([0, 2]))
    line = run.summarize(dict(loss=np.array([1.0, 3.0]), nats_per_string=np.ones(2), **counts))
    assert line["mine"] == pytest.approx(3) and line["train_curve"] == pytest.approx([1, 3])
