import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models

TOKENS = jnp.array([[3, 1, 4, 1, 5], [2, 6, 5, 3, 0]])


@pytest.mark.parametrize("model", [models.PrefixMLP(7, 8, 2, max_len=5), models.GRU(7, 8, 2)])
def test_logits_depend_on_the_prefix_in_order_and_on_nothing_after(model):
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)
    apply = jax.jit(model.apply)
    logits = apply(params, TOKENS)
    assert logits.shape == (2, 5, 7)
    for place in range(5):
        changed = apply(params, TOKENS.at[:, place].set(6 - TOKENS[:, place]))
        moved = np.abs(changed - logits).max(axis=(0, 2)) > 1e-6
        assert moved.tolist() == [at >= place for at in range(5)]
    swapped = apply(params, TOKENS[:, jnp.array([1, 0, 2, 3, 4])])
    assert np.abs(swapped - logits)[:, -1].max() > 1e-5


def test_the_perceptron_is_its_formula():
    model = models.PrefixMLP(7, 8, 1, max_len=6)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    got = jax.jit(model.apply)({"params": params}, TOKENS)
    embedded = params["embed"]["embedding"][TOKENS]
    for end in range(5):
        read = sum(embedded[:, s] @ params["kernel"][s] for s in range(end + 1))
        hidden = jnp.maximum(read + params["bias"][None], 0)
        want = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
        np.testing.assert_allclose(got[:, end], want, atol=1e-5)


def test_too_long_a_sequence():
    with pytest.raises(ValueError, match="longer than max_len 4"):
        models.PrefixMLP(7, 8, 1, max_len=4).init(jax.random.key(0), TOKENS)
