import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from dirasym.analysis import rope
from dirasym.models import layers

# Table 3 of arXiv 2602.02133: Δ -> (m = 64 for c = 0.05..0.30, m = 128 for the same).
TABLE_3 = {
    10: "0.981 0.977 0.972 0.965 0.956 0.941 0.990 0.988 0.986 0.982 0.977 0.970",
    20: "0.967 0.958 0.947 0.930 0.903 0.858 0.985 0.981 0.976 0.969 0.957 0.938",
    30: "0.958 0.947 0.930 0.905 0.863 0.790 0.981 0.976 0.969 0.958 0.939 0.906",
    40: "0.955 0.942 0.923 0.893 0.843 0.752 0.979 0.974 0.965 0.952 0.928 0.885",
    50: "0.965 0.956 0.942 0.921 0.887 0.827 0.979 0.973 0.963 0.949 0.923 0.874",
}


@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_rotation_is_a_group_and_the_models_rotation(head_dim):
    r = lambda delta: rope.rotation(delta, head_dim)  # noqa: E731
    np.testing.assert_allclose(r(3) @ r(4.5), r(7.5), atol=1e-12)
    np.testing.assert_allclose(r(2) @ r(2).T, np.eye(head_dim), atol=1e-12)
    np.testing.assert_allclose(r(-2), r(2).T, atol=1e-12)
    x = np.random.default_rng(0).normal(size=head_dim)
    turned = layers.rotate(jnp.asarray(x), -7, layers.plane_angles(head_dim), "interleaved")
    np.testing.assert_allclose(r(-7) @ x, turned, atol=1e-5)
    chex.assert_shape(rope.rotation(np.arange(5), head_dim), (5, head_dim, head_dim))


def test_trace_is_the_trace():
    deltas = np.array([0.0, 1.0, -3.0, 17.5])
    full = np.trace(rope.rotation(deltas, 16), axis1=-2, axis2=-1) / 16
    np.testing.assert_allclose(rope.trace(deltas, 16), full, atol=1e-14)
    np.testing.assert_allclose(rope.trace_bound(deltas, 16), rope.trace(2 * deltas, 16))
    under_jit = jax.jit(lambda d: rope.trace(d, 16))(jnp.asarray(deltas))
    np.testing.assert_allclose(under_jit, full, atol=1e-5)


def test_everything_takes_the_plane_angles_alone():
    """A permutation of planes, any base and scaling: the same formulas with other angles."""
    angles = layers.plane_angles(8, 5e5, layers.RopeScaling(8.0, 1.0, 4.0, 32))
    np.testing.assert_allclose(rope.trace(9, 8, angles=angles), np.cos(9 * angles).mean())
    np.testing.assert_allclose(
        rope.trace(9, 8, angles=angles), rope.trace(9, 8, angles=angles[::-1].copy())
    )
    assert rope.cantelli_lower_bound(9, 0.05, 8, angles=angles) > 0


def test_cosine_integral_is_the_integral_and_the_limit_of_the_trace():
    for delta in (0, 1, 7, 50, 100):
        want, _ = scipy.integrate.quad(lambda x, d=delta: np.cos(d / 1e4**x), 0, 1, limit=500)
        np.testing.assert_allclose(rope.cosine_integral_approximation(delta), want, atol=1e-7)
    gaps = [
        np.abs(
            rope.trace(np.arange(1, 101), d) - rope.cosine_integral_approximation(np.arange(1, 101))
        )
        for d in (64, 256, 1024, 4096)
    ]
    sizes = [gap.max() for gap in gaps]
    assert all(a > 3 * b for a, b in itertools.pairwise(sizes))  # O(1/D)


def test_what_depends_on_the_angles_takes_those_that_are_given():
    angles, half = np.array([0.3, 0.05]), np.array([0.5, 0.5])
    cos = np.cos(8 * angles)
    assert rope.trace_bound(4, 4, angles=angles) == pytest.approx(cos.mean())
    gap = (cos.mean() - 0.02) ** 2
    want = gap / (cos.var() / 3 + gap)
    assert rope.cantelli_lower_bound(4, 0.02, 4, angles=angles) == pytest.approx(want)
    assert rope.conditional_correlation(half, 0.0, 4, 4, angles=angles) == pytest.approx(cos.mean())
    want, _ = scipy.integrate.quad(lambda x: np.cos(7 / 50.0**x), 0, 1)
    np.testing.assert_allclose(rope.cosine_integral_approximation(7, base=50.0), want, atol=1e-9)
    rho, w = np.array([0.1, 0.9]), np.random.default_rng(0).dirichlet(np.ones(2), size=20_000)
    found = rope.monte_carlo_correlation(
        jax.random.key(1), 2, 9, 4, rho=rho, num_queries=256, num_keys=256, angles=angles
    )
    want = rope.conditional_correlation(w, rho, 2, 9, angles=angles).mean()
    assert abs(found.mean - want) < 4 * found.standard_error < 0.2
    for other in (dict(rho=rho[::-1], angles=angles), dict(rho=rho, angles=None)):
        far = rope.conditional_correlation(w, other["rho"], 2, 9, angles=other["angles"]).mean()
        assert abs(far - want) > 8 * found.standard_error


def test_slips_of_the_source_with_our_numbers():
    deltas = np.arange(1, 101)
    integral = rope.cosine_integral_approximation(deltas)
    np.testing.assert_allclose(integral.min(), 0.43677, atol=5e-6)
    assert deltas[integral.argmin()] == 100
    smallest = [rope.trace(deltas, d).min() for d in (16, 32, 64, 128, 256)]
    np.testing.assert_allclose(smallest, [-0.027, 0.209, 0.337, 0.372, 0.410], atol=5e-4)


def test_table_3_comes_out_whole():
    thresholds = np.array([0.05, 0.10, 0.15, 0.20, 0.25, 0.30])
    for delta, row in TABLE_3.items():
        paper = np.array(row.split(), float).reshape(2, 6)
        for m, cells in zip((64, 128), paper, strict=True):
            ours = rope.cantelli_lower_bound(delta, thresholds, 2 * m)
            printed = np.floor(np.round(ours, 4) * 1000 + 1e-6) / 1000
            np.testing.assert_allclose(printed, cells, atol=1e-12)


def test_cantelli_bound_holds_and_its_moments_are_the_dirichlets():
    w = np.random.default_rng(0).dirichlet(np.ones(16), size=100_000)
    values = w @ np.cos(2 * 10 * layers.plane_angles(32))
    mean = rope.trace_bound(10, 32)
    np.testing.assert_allclose(values.mean(), mean, atol=3e-3)
    for threshold in (0.05, 0.15, 0.25):
        bound = rope.cantelli_lower_bound(10, threshold, 32)
        assert (values >= threshold).mean() >= bound
        variance = (mean - threshold) ** 2 * (1 / bound - 1)
        np.testing.assert_allclose(variance, values.var(), rtol=0.03)
    assert rope.cantelli_lower_bound(10, mean, 32) == 0


def _covariances(w, rho, angles):
    """Cov(k | q) and a q with ‖q_s‖² = w_s, interleaved, from the definition in App. A.1."""
    rng = np.random.default_rng(1)
    turns = rng.uniform(0, 2 * np.pi, len(w))
    q = np.stack([np.cos(turns), np.sin(turns)], -1) * np.sqrt(w)[:, None]
    covariance = np.zeros((2 * len(w), 2 * len(w)))
    for s, (q_s, rho_s) in enumerate(zip(q, rho, strict=True)):
        block = (1 - rho_s) / 2 * np.eye(2) + rho_s * np.outer(q_s, q_s) / (q_s @ q_s)
        covariance[2 * s : 2 * s + 2, 2 * s : 2 * s + 2] = block
    return q.ravel(), covariance


def test_conditional_correlation_is_the_correlation_of_the_linear_forms():
    rng = np.random.default_rng(2)
    for _ in range(20):
        planes = rng.integers(1, 9)
        w, rho = rng.dirichlet(np.ones(planes)), rng.uniform(0, 1, planes)
        fwd, rev = rng.integers(1, 60, 2)
        q, covariance = _covariances(w, rho, layers.plane_angles(2 * planes))
        rows = [rope.rotation(d, 2 * planes).T @ q for d in (fwd, -rev)]
        joint = np.array([[a @ covariance @ b for b in rows] for a in rows])
        want = joint[0, 1] / np.sqrt(joint[0, 0] * joint[1, 1])
        got = rope.conditional_correlation(w, rho, fwd, rev)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
        scaled = rope.conditional_correlation(5 * w, rho, fwd, rev)
        np.testing.assert_allclose(scaled, want, rtol=1e-9, atol=1e-12)


def test_theorem_4_1_at_equal_distances_and_not_at_unequal_ones():
    rng = np.random.default_rng(3)
    angles = layers.plane_angles(16)
    w = rng.dirichlet(np.ones(8), size=2000)
    for delta in (1, 5, 20, 47):
        for rho in (0.0, 0.5, 1.0, rng.uniform(0, 1, (2000, 8))):
            exact = rope.conditional_correlation(w, rho, delta, delta)
            a, b, c = (
                (w * x).sum(-1)
                for x in (np.cos(2 * delta * angles), rho, rho * np.cos(2 * delta * angles))
            )
            np.testing.assert_allclose(exact, (a + b) / (1 + c), rtol=1e-9)
            assert (exact >= a - 1e-12).all()
    w = rng.dirichlet(np.ones(8), size=200_000)
    shortfall = rope.trace(5 + 34, 16) - rope.conditional_correlation(w, 1.0, 5, 34).mean()
    np.testing.assert_allclose(shortfall, 0.034, atol=0.003)  # the bound does not carry over


@pytest.mark.parametrize(("fwd", "rev", "rho"), [(6, 6, 0.0), (6, 6, 0.7), (5, 34, 1.0)])
def test_monte_carlo_agrees_within_its_error(fwd, rev, rho):
    estimate = rope.monte_carlo_correlation(
        jax.random.key(0), fwd, rev, 16, rho=rho, num_queries=512, num_keys=512
    )
    w = np.random.default_rng(0).dirichlet(np.ones(8), size=200_000)
    exact = rope.conditional_correlation(w, rho, fwd, rev).mean()
    assert abs(estimate.mean - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.02
    if fwd == rev:
        assert estimate.mean > rope.trace_bound(fwd, 16) - 4 * estimate.standard_error


def test_the_error_of_a_simulation_is_the_spread_of_its_repeats():
    """Of two queries each: their number and not that of keys, and n − 1, count."""
    found = jax.jit(
        jax.vmap(
            lambda key: rope.monte_carlo_correlation(
                key, 2, 9, 4, rho=0.3, num_queries=2, num_keys=64
            )
        )
    )(jax.random.split(jax.random.key(3), 1000))
    error = np.sqrt(np.mean(np.square(found.standard_error)))
    np.testing.assert_allclose(error, np.std(found.mean), rtol=0.1)


def test_bad_input_names_the_argument():
    for bad in (3, 0, -2):
        with pytest.raises(ValueError, match="head_dim"):
            rope.trace(1, bad)
    for bad in (0.0, -0.1, 0.9):
        with pytest.raises(ValueError, match="threshold"):
            rope.cantelli_lower_bound(10, bad, 64)
    with pytest.raises(ValueError, match="rho"):
        rope.conditional_correlation(np.ones(4) / 4, 1.5, 1, 1)
    with pytest.raises(ValueError, match="rho"):
        rope.conditional_correlation(np.ones(4) / 4, np.ones(3), 1, 1)
    with pytest.raises(ValueError, match="angles"):
        rope.trace(1, 8, angles=np.ones(3))
    with pytest.raises(ValueError, match="w must be"):
        rope.conditional_correlation(np.array([1.5, -0.5]), 0.5, 1, 1)
    sample = lambda *deltas, rho=0.5: rope.monte_carlo_correlation(  # noqa: E731
        jax.random.key(0), *deltas, 8, rho=rho
    )
    for rho in (1.5, np.nan, np.ones(3)):
        with pytest.raises(ValueError, match="rho"):
            sample(1, 1, rho=rho)
    exact = lambda *deltas: rope.conditional_correlation(np.ones(4), 0.5, *deltas)  # noqa: E731
    for function in (exact, sample):
        for name, deltas in (("delta_fwd", (0, 3)), ("delta_rev", (3, -1))):
            with pytest.raises(ValueError, match=name):
                function(*deltas)
    with pytest.raises(ValueError, match="delta is a distance"):
        rope.cantelli_lower_bound(0.5, 0.1, 8)


def test_angles_may_be_a_list_or_traced():
    angles = layers.plane_angles(8, 50.0)
    for function in (rope.trace, rope.rotation):
        want = function(7, 8, angles=angles)
        np.testing.assert_allclose(function(7, 8, angles=list(angles)), want)
        traced = jax.jit(lambda x, function=function: function(7, 8, angles=x))(angles)
        np.testing.assert_allclose(traced, want, atol=1e-5)
    slope = jax.grad(lambda x: rope.trace(7, 8, angles=x))(jnp.asarray(angles))
    np.testing.assert_allclose(slope, -7 * np.sin(7 * angles) / 4, rtol=1e-4)
