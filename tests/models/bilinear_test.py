import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import models, objectives, training
from dirasym.models import bilinear
from dirasym.types import Batch

V = 7


def _random_params(model, length, seed=0):
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, length), int))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def _loss(model, tokens_BL, scored_BL=None):
    batch = Batch(tokens_BL, np.arange(len(tokens_BL)), len(tokens_BL), scored_BL)
    apply_fn = models.make_tokens_apply_fn(model)

    def loss(params):
        total, count, _ = objectives.next_token(apply_fn, params, batch)
        return total / count

    return loss


def test_embeddings_are_signs_of_unit_norm_and_nearly_orthogonal():
    embed = bilinear.random_signs(jax.random.key(0), (50, 4096))
    np.testing.assert_allclose(np.abs(embed), 1 / 64)
    gram = np.asarray(embed @ embed.T)
    np.testing.assert_allclose(np.diag(gram), 1, rtol=1e-6)
    assert np.abs(gram - np.eye(50)).max() < 5 / 64


@pytest.mark.parametrize("symmetric", [False, True])
def test_bilinear_is_its_formula(symmetric):
    model = models.Bilinear(V, 5, symmetric)
    params = _random_params(model, 2)
    got = model.apply({"params": params}, jnp.arange(V)[None])[0]
    theta, embed = np.asarray(params["theta"]), np.asarray(params["embed"])
    theta = (theta + theta.T) / 2 if symmetric else theta
    np.testing.assert_allclose(got, embed @ theta @ embed.T, rtol=1e-4, atol=1e-5)
    assert np.allclose(got, got.T, atol=1e-5) == symmetric


def test_bilinear_embeddings_take_no_gradient():
    model = models.Bilinear(V, 5)
    grads = jax.grad(_loss(model, jnp.array([[0, 1], [2, 3]])))(_random_params(model, 2))
    assert not grads["embed"].any() and grads["theta"].any()


@pytest.mark.parametrize("itself", [False, True])
def test_one_layer_is_its_formula(itself):
    model = models.ReparameterisedAttention(V, itself)
    params = _random_params(model, 5)
    y, z = np.asarray(params["Y"], float), np.asarray(params["Z"], float)
    tokens = np.array([[3, 1, 3, 0, 6], [2, 2, 2, 2, 2]])
    got = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens))
    for row, logits_LV in zip(tokens, np.asarray(got), strict=True):
        for end, logits_V in enumerate(logits_LV):
            context = row[: end + itself]
            if len(context) == 0:
                np.testing.assert_array_equal(logits_V, 0)
                continue
            b = np.exp(z[row[end], context])
            u = np.eye(V)[context].T @ (b / b.sum())
            np.testing.assert_allclose(logits_V, y.T @ u / np.linalg.norm(u), rtol=1e-4, atol=1e-5)


def test_attention_gets_no_gradient_from_three_token_sentences():
    """One context token has weight 1 whatever Z is (§4.3); two have not, nor with the query."""
    model, tokens = models.ReparameterisedAttention(V), jnp.array([[2, 0, 3], [4, 1, 5], [5, 0, 2]])
    last = jnp.arange(3)[None] == jnp.full((3, 1), 2)
    params = _random_params(model, 3)
    grads = jax.jit(jax.grad(_loss(model, tokens, last)))(params)
    np.testing.assert_array_equal(grads["Z"], 0)
    assert (np.abs(grads["Y"]).sum(axis=1) > 0).tolist() == [t in (2, 4, 5) for t in range(V)]

    with_itself = jax.jit(jax.grad(_loss(models.ReparameterisedAttention(V, True), tokens, last)))(
        params
    )
    assert np.abs(with_itself["Z"]).max() > 1e-3
    longer = jnp.array([[2, 6, 0, 3]])
    assert np.abs(jax.jit(jax.grad(_loss(model, longer)))(params)["Z"]).max() > 1e-3


class TrainStepTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_the_train_step_moves_one_row_a_sentence(self):
        """Y[A] += η/n (1_B − softmax(Y[A])), and nothing else moves."""
        model, rate = models.ReparameterisedAttention(V), 0.3
        params = _random_params(model, 3)
        tokens = np.array([[2, 0, 3], [4, 1, 5]])
        batch = Batch(tokens, np.arange(2), 2, scored_BL=np.arange(3)[None] >= np.full((2, 1), 2))
        state = training.create_state(
            models.make_tokens_apply_fn(model), params, optax.sgd(rate), jax.random.key(0)
        )
        step = functools.partial(training.train_step, objective=objectives.next_token)
        new, metrics = self.variant(step)(state, batch)
        want = np.array(params["Y"])
        losses = []
        for a, b in ((2, 3), (4, 5)):
            p = np.asarray(jax.nn.softmax(params["Y"][a]))
            want[a] += rate / 2 * (np.eye(V)[b] - p)
            losses.append(-np.log(p[b]))
        np.testing.assert_allclose(new.params["Y"], want, atol=1e-5)
        chex.assert_trees_all_equal(new.params["Z"], params["Z"])
        np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4)
