import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models, objectives
from dirasym.analysis import gradient_flow, row_dynamics
from dirasym.types import Batch

RIGHT, LEFT = 0, 1


def _one_layer(sentences, vocab_size, **kwargs):
    """Loss of the linen module on the last tokens of sentences, and its parameters at zero."""
    model = models.ReparameterisedAttention(vocab_size, **kwargs)
    tokens = np.asarray(sentences)
    scored = np.arange(tokens.shape[1])[None] == np.full((len(tokens), 1), tokens.shape[1] - 1)
    return _loss(model, tokens, scored), model.init(jax.random.key(0), tokens)["params"]


def _loss(model, tokens, scored=None):
    batch = Batch(tokens, np.arange(len(tokens)), len(tokens), scored)

    def loss(params):
        total, count, _ = objectives.next_token(models.make_tokens_apply_fn(model), params, batch)
        return total / count

    return loss


def _softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


# Closed forms


# Closed form, flow of the linen module, and what stays and falls


def test_one_layer_flow_is_the_closed_form_and_the_reverse_never_moves():
    vocab, pairs = 12, [(2, 3), (4, 5), (6, 7)]
    loss, params = _one_layer([(a, RIGHT, b) for a, b in pairs], vocab)
    times = np.append(0, np.logspace(-1, 4, 26))  # τ over more than four orders of magnitude
    weights = gradient_flow.flow(gradient_flow.negative_gradient(loss), params, times)
    for a, b in pairs:
        p = _softmax(weights["Y"][:, a])[:, b]
        np.testing.assert_allclose(p, row_dynamics.row_probability(times, vocab, 1 / 3), atol=1e-6)
        gap = weights["Y"][:, a, b] - weights["Y"][:, a, 0]
        np.testing.assert_allclose(gap, row_dynamics.row_gap(times, vocab, 1 / 3), atol=1e-4)
        np.testing.assert_array_equal(weights["Y"][:, b], 0)
        np.testing.assert_allclose(_softmax(weights["Y"][:, b])[:, a], 1 / vocab, rtol=1e-15)
    np.testing.assert_array_equal(weights["Z"], 0)


def test_a_chain_does_not_close():
    vocab, (a, b, c) = 20, (2, 3, 4)
    loss, params = _one_layer([(a, RIGHT, b), (b, RIGHT, c)], vocab)
    times = np.append(0, np.logspace(-1, 4, 11))
    y = gradient_flow.flow(gradient_flow.negative_gradient(loss), params, times)["Y"]
    p_ab, p_bc, p_ac = (_softmax(y[:, x])[:, z] for x, z in ((a, b), (b, c), (a, c)))
    np.testing.assert_allclose(p_ac, (1 - p_ab) / (vocab - 1), rtol=1e-6)
    assert (np.diff(p_ac) < 0).all() and p_bc[-1] > 0.99
    assert (np.diff(y[:, a, b]) > 0).all() and (np.diff(y[:, a, c]) < 0).all()


def test_each_break_condition_breaks_it():
    vocab, times = 12, np.array([0.0, 3e3])
    sentences = [(2, RIGHT, 3), (4, RIGHT, 5), (5, LEFT, 4)]  # 3 ← 2 is withheld

    def reverse(sentences, **kwargs):
        loss, params = _one_layer(sentences, vocab, **kwargs)
        params = gradient_flow.flow(gradient_flow.negative_gradient(loss), params, times)
        model = models.ReparameterisedAttention(vocab, **kwargs)
        last = jax.tree.map(lambda x: x[-1].astype(np.float32), params)
        logits = model.apply({"params": last}, np.array([[3, LEFT], [5, LEFT]]))[:, 1]
        return _softmax(np.asarray(logits))[np.arange(2), [2, 4]]

    withheld, trained = reverse(sentences)
    assert abs(withheld - 1 / vocab) < 1e-7 and trained > 0.99  # pairs trained both ways
    withheld, _ = reverse(sentences, attends_to_itself=True)
    assert abs(withheld - 1 / vocab) > 0.01

    context, target = np.array([2, 4]), np.array([3, 5])
    for symmetric in (False, True):
        model = gradient_flow.BilinearFlow(np.eye(vocab), context, target, symmetric)
        c = gradient_flow.flow(model.field, np.zeros((vocab, vocab)), times)
        loss = gradient_flow.pair_loss(model.logits(c), target, context)[-1]
        assert loss < 0.01 if symmetric else abs(loss - np.log(vocab)) < 1e-12


# Bilinear: token coordinates against Θ itself


@pytest.mark.parametrize("symmetric", [False, True])
def test_token_coordinates_are_the_flow_of_theta(symmetric):
    vocab, width = 8, 5
    model = models.Bilinear(vocab, width, symmetric)
    pairs = np.array([[0, 4], [1, 5], [2, 6], [4, 0], [0, 5]])  # 0 goes on in two ways
    params = model.init(jax.random.key(1), pairs)["params"]
    times = np.append(0, np.logspace(0, 2, 5))
    embed = np.asarray(params["embed"], np.float64)
    tokens = gradient_flow.BilinearFlow(embed @ embed.T, pairs[:, 0], pairs[:, 1], symmetric)

    def same(theta_TDD, c_TVV):
        if symmetric:
            theta_TDD = (theta_TDD + theta_TDD.mT) / 2
        want = embed @ theta_TDD @ embed.T
        np.testing.assert_allclose(tokens.logits(c_TVV), want, atol=1e-5)

    loss, start = _loss(model, pairs), np.zeros((vocab, vocab))
    field = gradient_flow.negative_gradient(loss)
    same(
        gradient_flow.flow(field, params, times)["theta"],
        gradient_flow.flow(tokens.field, start, times),
    )
    how = dict(step_size=2.0, num_steps=40, every=10)
    thetas = gradient_flow.descend(field, loss, params, **how)["theta"]
    same(thetas, gradient_flow.descend(tokens.field, tokens.loss, start, **how))
    assert len(thetas) == 5


def test_orthonormal_embeddings_give_the_closed_form():
    vocab, times = 30, np.append(0, np.logspace(0, 4, 9))
    model = gradient_flow.BilinearFlow(np.eye(vocab), np.arange(10), np.arange(10, 20))
    c = gradient_flow.flow(model.field, np.zeros((vocab, vocab)), times)
    loss = gradient_flow.pair_loss(model.logits(c), np.arange(10), np.arange(10, 20))
    want = -np.log(row_dynamics.row_probability(times, vocab, 0.1))
    np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_descent_approaches_the_flow_at_first_order():
    model = gradient_flow.BilinearFlow(np.eye(10), np.arange(4), np.arange(4, 8))
    start = np.zeros((10, 10))
    want = gradient_flow.flow(model.field, start, [0.0, 40.0])[-1]
    errors = []
    for step in (4.0, 2.0, 1.0):
        got = gradient_flow.descend(
            model.field, model.loss, start, step_size=step, num_steps=round(40 / step), every=1
        )
        errors.append(np.abs(got[-1] - want).max())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def test_a_diverging_step_names_the_stability_bound():
    hessian = jnp.array([1.0, 4.0])

    def loss(x):
        return (hessian * x**2).sum() / 2

    field = gradient_flow.negative_gradient(loss)
    gradient_flow.descend(
        field, loss, jnp.ones(2), step_size=0.49, num_steps=50
    )  # 2/4 is the bound
    with pytest.raises(gradient_flow.UnstableStepError, match="diverges") as error:
        gradient_flow.descend(field, loss, jnp.ones(2), step_size=0.6, num_steps=50)
    assert 0.5 <= error.value.bound < 0.6 and error.value.step >= 1

    rng = np.random.default_rng(0)
    embed = rng.choice([-0.5, 0.5], (30, 4))  # 30 tokens crowd 4 dimensions
    model = gradient_flow.BilinearFlow(embed @ embed.T, np.arange(15), np.arange(15, 30))
    with pytest.raises(gradient_flow.UnstableStepError, match="1e\\+06 diverges") as error:
        gradient_flow.descend(
            model.field, model.loss, np.zeros((30, 30)), step_size=1e6, num_steps=5
        )
    gradient_flow.descend(
        model.field, model.loss, np.zeros((30, 30)), step_size=error.value.bound / 4, num_steps=5
    )


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_stability_bound_is_two_over_the_largest_curvature(scale):
    # From here the step that climbs runs mostly along flat directions.
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    hessian = basis @ np.diag([10.0, 3, 2, 1, 1, 1]) @ basis.T * scale

    def loss(x):
        return x @ hessian @ x / 2

    field, start = gradient_flow.negative_gradient(loss), basis @ np.array([0.05, 1, 1, 5, 5, 5])
    descend = functools.partial(gradient_flow.descend, field, loss, start, num_steps=400, every=400)
    with pytest.raises(gradient_flow.UnstableStepError) as error:
        descend(step_size=0.25 / scale)
    np.testing.assert_allclose(error.value.bound, 0.2 / scale, rtol=1e-9)
    descend(step_size=0.999 * error.value.bound)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 40])
def test_the_spectral_radius_of_a_field_that_is_no_gradient(size):
    """Of a matrix that is not symmetric, whose largest eigenvalue is negative or complex."""
    with jax.enable_x64(True):
        matrix = np.random.default_rng(size).normal(size=(size, size))
        values = np.linalg.eigvals(matrix)
        got = gradient_flow._spectral_radius(lambda x: matrix @ x, np.ones(size))
        np.testing.assert_allclose(got, np.abs(values).max(), rtol=1e-9)
        zero = gradient_flow._spectral_radius(lambda x: 0 * x, np.ones(size))
        assert zero == 0


def test_a_flow_is_as_exact_as_it_is_told():
    errors = [
        np.abs(gradient_flow.flow(lambda x: -x, np.ones(1), [0.0, 5.0], **how)[-1] - np.exp(-5))
        for how in ({}, dict(rtol=1e-4, atol=1e-4), dict(atol=1e-1, rtol=1e-1))
    ]
    assert errors[0] < 1e-9 < errors[1] < errors[2] < 0.1


def test_descent_that_has_arrived_stays():
    target = jnp.array([0.3, 0.7])
    loss = lambda x: -(target * jax.nn.log_softmax(x)).sum()  # noqa: E731
    kept = gradient_flow.descend(
        gradient_flow.negative_gradient(loss),
        loss,
        np.log([0.3, 0.7]),
        step_size=1.0,
        num_steps=300,
    )
    np.testing.assert_allclose(kept, np.log([[0.3, 0.7]] * 301), atol=1e-12)


def test_flow_errors_are_told():
    with pytest.raises(RuntimeError, match="gradient flow"):
        gradient_flow.flow(lambda x: x**2, jnp.ones(1), [0.0, 2.0])  # blows up at t = 1
    for factor in (np.nan, np.inf):
        with pytest.raises(RuntimeError, match="not finite at the start"):
            gradient_flow.flow(lambda x, factor=factor: factor * x, np.ones(2), [0.0, 1.0])
    with pytest.raises(RuntimeError, match="gradient flow"):  # NaN on the way
        gradient_flow.flow(lambda x: jnp.where(x > 1.5, jnp.nan, x), np.ones(2), [0.0, 1.0])
    with pytest.raises(ValueError, match="times"):
        gradient_flow.flow(lambda x: x, np.ones(2), [0.0, np.inf])


# Measures


def test_smallest_exponent():
    forward = np.exp(-np.linspace(0, 5, 50))
    assert gradient_flow.smallest_exponent(forward, 3 * forward**0.2) == pytest.approx(0.2)
    assert gradient_flow.smallest_exponent(forward, 2 - forward) == 0
    reverse = 1 - 0.3 * np.sin(np.linspace(0, 3, 50)) ** 2
    eps = gradient_flow.smallest_exponent(forward, reverse)
    holds = [(reverse >= forward**e * (1 - 1e-12)).all() for e in (eps, 0.99 * eps)]
    assert holds == [True, False]
    with pytest.raises(ValueError, match="falls"):
        gradient_flow.smallest_exponent(np.array([1.0, 1.1]), np.ones(2))


def test_pair_loss_in_both_libraries():
    logits = np.random.default_rng(0).normal(size=(3, 6, 6))
    x, y = np.array([0, 2]), np.array([5, 1])
    want = -np.log(_softmax(logits))[:, x, y].mean(axis=1)
    np.testing.assert_allclose(gradient_flow.pair_loss(logits, x, y), want, rtol=1e-12)
    np.testing.assert_allclose(gradient_flow.pair_loss(jnp.asarray(logits), x, y), want, rtol=1e-5)
