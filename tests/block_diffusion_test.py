"""Block diffusion is the chain rule over blocks, each told by masked diffusion."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import block_diffusion, models, objectives
from dirasym.rows import PerRow
from dirasym.types import Batch

MASK, VOCAB, LENGTH = 5, 6, 4
CLEAN = np.array([0, 3, 2, 4])


def _model(block_size):
    model = models.Transformer(
        models.TransformerConfig(VOCAB, 1, 8, 1, causal=False, block_size=block_size)
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, LENGTH), int))["params"]
    return jax.jit(models.make_apply_fn(model)), jax.tree.map(lambda x: 3 * x, params)


def _nll(apply_fn, params, hidden, asked):
    """-Σ log p of the asked tokens in a row with [M] at the hidden ones."""
    row = jnp.where(jnp.asarray(hidden), MASK, CLEAN)[None]
    log_p = jax.nn.log_softmax(apply_fn(params, row)[0, :, :MASK])
    return -sum(float(log_p[i, CLEAN[i]]) for i in range(LENGTH) if asked[i])


def test_blocks_of_one_token_are_the_chain_rule():
    apply_fn, params = _model(1)
    batch = Batch.of(np.tile(CLEAN, (3, 1)))
    how = dict(block_size=1, mask_id=MASK, weighting="k")
    total, count, aux = block_diffusion.block_diffusion(
        apply_fn, params, batch, jax.random.key(0), **how
    )
    place = np.arange(LENGTH)
    want = sum(_nll(apply_fn, params, place >= i, place == i) for i in range(LENGTH))
    np.testing.assert_allclose(total / count, want, rtol=1e-5)
    assert count == 3 and aux["tokens"] == 3 * LENGTH


@pytest.mark.parametrize("capacity", members.quick([None, PerRow(2), 0.3], [PerRow(2)]))
def test_two_blocks_have_the_enumerated_expectation(capacity):
    """Σ over blocks and masks of a block of (k-1)!(n-k)!/n! · nll(mask | earlier blocks clean)."""
    apply_fn, params = _model(2)
    want, place = 0.0, np.arange(LENGTH)
    for start in (0, 2):
        for masked in itertools.product([False, True], repeat=2):
            hidden = place >= start + 2
            asked = np.zeros(LENGTH, bool)
            asked[start : start + 2] = masked
            if k := sum(masked):
                weight = math.factorial(k - 1) * math.factorial(2 - k) / 2
                want += weight * _nll(apply_fn, params, hidden | asked, asked)
    rows = 20_000
    batch = Batch.of(np.tile(CLEAN, (rows, 1)))
    total, count, aux = block_diffusion.block_diffusion(
        apply_fn, params, batch, jax.random.key(1), block_size=2, mask_id=MASK, capacity=capacity
    )
    np.testing.assert_allclose(total / count, want, rtol=0.02)
    np.testing.assert_allclose(aux["tokens"] / rows, LENGTH / 2, rtol=0.02)


def test_one_block_is_masked_diffusion_and_others_are_not():
    apply_fn, params = _model(None)
    batch, key = Batch.of(np.tile(CLEAN, (4, 1))), jax.random.key(2)
    first = jax.random.fold_in(key, 0)
    want = objectives.masked_diffusion(apply_fn, params, batch, first, mask_id=MASK)
    for size in (LENGTH, LENGTH + 1):
        got = block_diffusion.block_diffusion(
            apply_fn, params, batch, key, block_size=size, mask_id=MASK
        )
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    other = block_diffusion.block_diffusion(
        apply_fn, params, batch, key, block_size=2, mask_id=MASK
    )
    assert abs(other[0] - want[0]) > 0.1


def test_a_network_without_the_mask_of_blocks_finds_nothing_behind_its_block():
    batch = Batch.of([[1, 2, 3, 4], [4, 3, 2, 1]], scored=[[0, 1, 1, 1], [1, 1, 1, 1]])
    one = block_diffusion.in_block(batch, 0, 2, MASK)
    assert one.tokens_BL.tolist() == [[1, 2, MASK, MASK], [4, 3, MASK, MASK]]
    assert one.scored_BL.tolist() == [[False, True, False, False], [True, True, False, False]]
    assert one.noised_BL.tolist() == one.scored_BL.tolist()


def test_bad_input():
    apply_fn, params = _model(None)
    with pytest.raises(ValueError, match="block_size"):
        block_diffusion.block_diffusion(
            apply_fn, params, Batch.of([[1, 2]]), jax.random.key(0), block_size=0, mask_id=MASK
        )
    how = dict(block_size=1, mask_id=MASK, per_token=True)
    with pytest.raises(ValueError, match="per_token counts the tokens of an example"):
        block_diffusion.block_diffusion(
            apply_fn, params, Batch.of([[1, 2]]), jax.random.key(0), **how
        )


def test_blocks_are_of_tokens_and_hide_what_may_be_hidden():
    batch = Batch.of([[9, 1, 2, 3]], scored=[[0, 0, 1, 1]], valid=[[0, 1, 1, 1]])
    batch = dataclasses.replace(batch, noised_BL=np.array([[False, True, True, True]]))
    one = block_diffusion.in_block(batch, 0, 2, MASK)
    assert one.tokens_BL.tolist() == [[9, 1, 2, MASK]]
    assert one.scored_BL.tolist() == [[False, False, True, False]]
    assert one.noised_BL.tolist() == [[False, True, True, False]]


def test_examples_count_that_score_a_token():
    apply_fn, params = _model(2)
    batch = Batch.of(np.tile(CLEAN, (2, 1)), scored=[[0, 0, 0, 0], [0, 0, 0, 1]])
    how = dict(block_size=2, mask_id=MASK)
    assert (
        block_diffusion.block_diffusion(apply_fn, params, batch, jax.random.key(0), **how)[1] == 1
    )


def test_each_block_has_noise_and_dropout_of_its_own():
    seen = []

    def spy(params, tokens, *, noise_B, rngs):
        drawn = jax.random.uniform(rngs["dropout"])
        jax.debug.callback(lambda *x: seen.append([float(y) for y in x]), drawn, noise_B[0])
        return jnp.zeros((*tokens.shape, 6))

    batch, rngs = Batch.of([[1, 2, 3, 4]]), {"dropout": jax.random.key(1)}
    how = dict(block_size=2, mask_id=5, rngs=rngs)
    block_diffusion.block_diffusion(spy, {}, batch, jax.random.key(0), **how)
    jax.effects_barrier()
    assert [len(set(x)) for x in zip(*seen, strict=True)] == [2, 2]
