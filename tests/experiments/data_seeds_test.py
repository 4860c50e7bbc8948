"""What a flag's seed draws is drawn by it: another seed gives other data, and the known ones."""

import types

import jax
import numpy as np
import pytest

from dirasym.data import facts, families, relations
from experiments import measure, rope_bounds
from experiments.systems import facts as facts_system
from experiments.systems import families as families_system
from experiments.systems import relations as relations_system
from experiments.systems import training_dynamics

SEEDS = 0, 5


def test_facts_are_those_of_the_data_seed():
    told = []
    for seed in SEEDS:
        config = facts_system.Config(num_pairs=4, both_ways=3, name_words=1, data_seed=seed)
        people = facts.invent_parent_child(4 + 3, seed, 1)
        told.append(facts_system.fact_set("p2c", config))
        assert told[-1] == facts.parent_child(people[:4], both_ways=people[4:])
    assert told[0] != told[1]


@pytest.mark.parametrize("task", ["reversal", "chain", "chain_related", "icl"])
def test_sentences_are_those_of_the_data_seed(task):
    drawn = []
    for seed in SEEDS:
        config = relations_system.Config(
            task=task, vocab_size=60, alphabet_size=40, num_val=10, num_x_tokens=10,
            num_y_tokens=4, n_layers=1, n_heads=2, embed_dim=8, dropout=0.0, data_seed=seed,
        )  # fmt: skip
        drawn.append(relations_system.sentences(config, 20).train_EL)
    if task == "reversal":
        known = relations.reversal(60, 1, seed=SEEDS[1]).train_EL
        np.testing.assert_array_equal(drawn[1], known)
    assert drawn[0].shape == drawn[1].shape and (drawn[0] != drawn[1]).any()


def test_families_are_those_of_the_data_seed():
    drawn = []
    for seed in SEEDS:
        config = families_system.Config(num_families=8, data_seed=seed)
        known = families.families(8, 2, withheld=("husband",), withheld_share=0.25, seed=seed)
        drawn.append(config.graph(2).train_EL)
        np.testing.assert_array_equal(drawn[-1], known.train_EL)
    assert drawn[0].shape != drawn[1].shape or (drawn[0] != drawn[1]).any()


def test_embeddings_of_the_bilinear_model_are_those_of_the_seed():
    config = training_dynamics.Config(vocab_size=6, num_pairs=2)
    one, same, other = (training_dynamics.bilinear(config, 8, seed).gram_VV for seed in (0, 0, 5))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_sampled_correlations_are_those_of_the_seed(monkeypatch):
    """Keys as they are made, and the sums over queries drawn beside them."""
    made = lambda key, *asked, **how: types.SimpleNamespace(  # noqa: E731
        mean=jax.random.key_data(key)[-1], standard_error=0.0
    )
    monkeypatch.setattr(rope_bounds.rope, "monte_carlo_correlation", made)
    lines = [
        rope_bounds.sample(rope_bounds.Config(sampled_width=4, seed=seed), 1, 3, 0.5)[0]
        for seed in SEEDS
    ]
    assert [line["sampled"] for line in lines] == list(SEEDS)
    assert lines[0]["exact"] != lines[1]["exact"]


def test_an_untrained_network_and_invented_pairs_are_those_of_the_seed(monkeypatch):
    started = lambda self, key, tokens: {"params": int(jax.random.key_data(key)[-1])}  # noqa: E731
    monkeypatch.setattr(measure.models.Transformer, "init", started)
    for seed in SEEDS:
        _, params, pairs, _ = measure._opened.__wrapped__(measure.Config(num_pairs=4, seed=seed))
        people = facts.invent_parent_child(4, seed)
        assert pairs.names == tuple((x.parent, x.child) for x in people)
        assert params == seed
