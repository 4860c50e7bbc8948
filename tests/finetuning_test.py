import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import models, objectives, training
from dirasym.finetuning import Trainable
from dirasym.models import LoRAConfig
from dirasym.types import Batch

MODEL = models.Transformer(
    models.llama(
        11, num_layers=2, width=16, num_heads=2, num_kv_heads=1, mlp_width=24, max_len=16,
        rope_base=10_000.0, rope_scaling=None,
    )
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 6)).astype(np.int32)
BATCH = Batch(TOKENS, np.arange(4), 4)
STEP = jax.jit(functools.partial(training.train_step, objective=objectives.next_token))


@pytest.fixture(scope="module")
def base():
    return jax.jit(MODEL.init)(jax.random.key(9), TOKENS)["params"]


def _same(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), one, other)))


@pytest.mark.slow
def test_from_scratch_the_seed_draws_the_weights():
    trained = Trainable(MODEL, optax.sgd(0.1))
    first, again, other = (trained.state(seed) for seed in (0, 0, 1))
    assert _same(first.params, again.params) and not _same(first.params, other.params)
    assert first.apply_fn is other.apply_fn and first.tx is other.tx  # one compiled program
    assert (jax.random.key_data(first.key) != jax.random.key_data(other.key)).any()
    logits_BLV = trained.apply_fn(first.variables(first.params), TOKENS)
    assert _same(logits_BLV, jax.jit(MODEL.apply)({"params": first.params}, TOKENS))


def test_every_seed_starts_from_the_given_weights_and_may_overwrite_its_own(base):
    trained = Trainable(MODEL, optax.sgd(0.1), base=base)
    first, other = trained.state(0), trained.state(1)
    assert _same(first.params, base) and _same(other.params, base)
    donating = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    donating(first.params)
    assert _same(other.params, base) and np.isfinite(base["embed"]["embedding"]).all()


def test_adapters_are_trained_and_the_base_is_not(base):
    adapters = LoRAConfig(2, 4.0, r"attention/(query|value)$")
    trained = Trainable(MODEL, optax.sgd(0.5), base=base, adapters=adapters)
    state = trained.state(0)
    assert set(state.params) == {"lora"} and _same(state.frozen, {"params": base})
    read = functools.partial(trained.apply_fn, tokens_BL=TOKENS)
    before = read(state.variables(state.params))
    np.testing.assert_allclose(before, jax.jit(MODEL.apply)({"params": base}, TOKENS), atol=1e-6)
    after, _ = STEP(state, BATCH)
    assert _same(after.frozen, {"params": base}) and not _same(after.params, state.params)
    changed = after.variables(after.params)
    assert not np.allclose(read(changed), before, atol=1e-4)
    # Generation and what is sown read the adapters too.
    ones = jnp.ones(TOKENS.shape, bool)
    extended, _ = trained.extend_fn(changed, {}, TOKENS, 0, ones)
    np.testing.assert_allclose(extended, read(changed), atol=1e-5)
    scores = [
        trained.internals_fn(x, TOKENS)["scores"] for x in (changed, {**changed, **state.params})
    ]
    assert not np.allclose(*scores, atol=1e-4)


def test_adapters_that_cannot_be_are_named(base):
    with pytest.raises(ValueError, match="adapters need weights"):
        Trainable(MODEL, optax.sgd(0.1), adapters=LoRAConfig(2, 4.0, "query$"))
    unknown = Trainable(MODEL, optax.sgd(0.1), base=base, adapters=LoRAConfig(2, 4.0, "c_attn"))
    with pytest.raises(ValueError, match="match no linear layer"):
        unknown.state(0)


@pytest.mark.parametrize("adapters", [None, LoRAConfig(2, 4.0, "query$")])
def test_seeds_that_start_from_given_weights_have_keys_and_adapters_of_their_own(base, adapters):
    trained = Trainable(MODEL, optax.sgd(0.1), base=base, adapters=adapters)
    states = [trained.state(seed) for seed in (0, 1)]
    for seed, state in enumerate(states):
        want = jax.random.split(jax.random.key(seed))[1]
        np.testing.assert_array_equal(*map(jax.random.key_data, (state.key, want)))
    assert _same(*(state.params for state in states)) == (adapters is None)
