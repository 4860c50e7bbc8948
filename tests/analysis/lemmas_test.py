import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dirasym.analysis import lemmas, rope, theorem_b1
from dirasym.models import layers


def _draw(rng, width, vocab, dtype, most=0.5):
    """Parameters over two orders of magnitude, from flat to (most > 0) saturated softmaxes."""
    scale = 10 ** rng.uniform(-1.5, most)
    shapes = [(width, width)] * 3 + [(vocab, width), (width,), (width,)]
    arrays = [
        jnp.asarray(rng.normal(size=s) * (scale if len(s) == 2 else 1), dtype) for s in shapes
    ]
    return theorem_b1.OneLayer(*arrays)


def _order_one(rng, width, vocab, dtype):
    """Parameters whose scores, weights, errors and blocks are all of order one."""
    shapes = [(width, width)] * 3 + [(vocab, width), (width,), (width,)]
    arrays = [rng.normal(size=s) * (width**-0.5 if len(s) == 2 else 1) for s in shapes]
    return theorem_b1.OneLayer(*(jnp.asarray(x, dtype) for x in arrays))


_grad = jax.jit(jax.grad(theorem_b1.theorem_loss), static_argnums=(2, 4))


def test_corollary_b2_implies_alignment_and_runs_along_a_trajectory():
    rng = np.random.default_rng(7)
    # Narrow, so that (iv) often fails; not saturated, so that float32 holds the totals.
    several = [_draw(rng, 4, 5, jnp.float32, most=-0.3) for _ in range(200)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    check = lemmas.check_corollary_b2(stacked, 2, 1, 1)
    holds = np.asarray(check.assumptions_hold)
    assert 20 < holds.sum() < 180
    assert (np.asarray(check.total)[holds] > 0).all()
    assert (np.stack(check.signs)[:, holds] == 1).all()
    assert (np.asarray(check.cosine)[holds] <= 1 + 1e-5).all()
    one = lemmas.check_corollary_b2(several[5], 2, 1, 1)
    chex.assert_trees_all_close(one.cosine, check.cosine[5], rtol=1e-4)
    angles = layers.plane_angles(4)
    grads = [_grad(several[5], d, 1, angles, "interleaved") for d in (2, -1)]
    flat = [jnp.concatenate([getattr(g, b).ravel() for b in theorem_b1.BLOCKS]) for g in grads]
    cosine = flat[0] @ flat[1] / jnp.linalg.norm(flat[0]) / jnp.linalg.norm(flat[1])
    np.testing.assert_allclose(one.cosine, cosine, rtol=1e-4)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_signs_and_assumptions_are_those_of_the_theorems_terms(pairing):
    rng = np.random.default_rng(3)
    several = [_draw(rng, 4, 5, jnp.float32, most=-0.3) for _ in range(100)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    how = dict(angles=layers.plane_angles(4, 50.0), pairing=pairing)
    check = lemmas.check_corollary_b2(stacked, 2, 1, 1, **how)
    b1 = jax.jit(jax.vmap(lambda p: theorem_b1.theorem_b1(p, 2, 1, 1, **how)))(stacked)
    for block, sign, inner in zip(theorem_b1.BLOCKS, check.signs, b1.inner, strict=True):
        np.testing.assert_array_equal(sign, np.sign(inner), err_msg=block)
        assert set(np.asarray(sign).tolist()) == ({-1, 1} if block in ("W_Q", "W_K") else {1})
    np.testing.assert_allclose(check.total, b1.inner.total, rtol=1e-3, atol=1e-12)
    np.testing.assert_array_equal(check.signals_aligned, (b1.fwd.u * b1.rev.u).sum(-1) > 0)
    np.testing.assert_array_equal(check.margins_agree, b1.fwd.mu * b1.rev.mu > 0)
    np.testing.assert_array_equal(check.rope_positive, np.minimum(b1.k_R_k, b1.q_R_q) > 0)


def test_each_assumption_is_of_both_queries():
    """B is read ahead and not behind: what is sure of a token where B is read is sure once."""
    D, turn = np.zeros((2, 2), np.float32), dict(angles=np.array([np.pi / 2]))
    ten, one = D.copy(), D.copy()
    ten[0, 0], one[1, 0] = 10, 1  # q = (10, 0) of h_M = (1, 0); k = (10, 0) of h_B = (0, 1)
    params = theorem_b1.OneLayer(
        ten, ten[:, ::-1], np.eye(2, dtype=np.float32), D, np.float32([1, 0]), np.float32([0, 1])
    )
    level = lemmas.check_corollary_b2(params, 4, 2, 0, **turn)  # W_O = 0: every C is 0
    assert level.non_saturated and not level.margins_agree and not level.signals_aligned
    sure = params.replace(W_O=1e6 * (one - one[::-1])[:, ::-1])
    b1 = theorem_b1.theorem_b1(sure, 4, 2, 1, **turn)
    assert (b1.fwd.alpha, b1.fwd.e[1]) == (1, 0) and b1.rev.alpha < 1e-20 and b1.rev.e[1] < -0.4
    assert not lemmas.check_corollary_b2(sure, 4, 2, 1, **turn).non_saturated
    # Sure of token 1 ahead, flat behind: ⟨u_f, u_r⟩ = (w_1 − w_0)(w̄ − w_0) < 0, as μ_f μ_r.
    opposed = params.replace(W_O=1e3 * np.float32([[0, 0], [0, 1], [0, -5]]))
    wrong = lemmas.check_corollary_b2(opposed, 4, 2, 0, **turn)
    assert wrong.non_saturated and not wrong.signals_aligned and not wrong.margins_agree
    assert (wrong.signs.W_V, wrong.signs.W_O) == (-1, 1)


@pytest.mark.parametrize("distances", [(0, 2), (2, 0)])
def test_corollary_b2_looks_at_both_distances(distances):
    with pytest.raises(ValueError, match="delta_"):
        lemmas.check_corollary_b2(_draw(np.random.default_rng(0), 4, 3, jnp.float32), *distances, 0)


def test_a_saturated_model_is_reported_as_such():
    params = _draw(np.random.default_rng(8), 4, 3, jnp.float32)
    v = params.W_V @ params.h_B
    sure = params.replace(W_O=jnp.outer(jnp.array([1e6, -1e6, -1e6]), v))
    check = lemmas.check_corollary_b2(sure, 1, 1, 0)
    assert not bool(check.non_saturated) and np.isnan(check.cosine)


@pytest.mark.parametrize("gap", [0.0, 30.0, 60.0, 80.0])
def test_cosine_of_a_nearly_saturated_query_keeps_its_digits(gap):
    """Sure of A by `gap` nats in float32, where squares of its errors are below 1e-38."""
    params = _draw(np.random.default_rng(12), 8, 5, jnp.float32, most=-0.5)
    v = params.W_V @ params.h_B
    alpha = theorem_b1.theorem_b1(params, 3, 40, 0).fwd.alpha
    sure = jnp.outer(jnp.zeros(5).at[0].set(gap / alpha), v) / (v @ v)
    params = params.replace(W_O=params.W_O + sure)
    got = lemmas.check_corollary_b2(params, 3, 40, 0)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        fwd, rev = (_grad(wide, d, 0, layers.plane_angles(8), "interleaved") for d in (3, -40))
        flat = [
            np.concatenate([getattr(g, b).ravel() for b in theorem_b1.BLOCKS]) for g in (fwd, rev)
        ]
        want = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    np.testing.assert_allclose(got.cosine, want, rtol=1e-4)
    several = lemmas.check_corollary_b2([params, params], 3, 40, 0)
    np.testing.assert_allclose(several.cosine, [got.cosine] * 2, rtol=1e-5)


def test_lemma_b7_in_its_unconditional_form():
    rng = np.random.default_rng(9)
    with jax.enable_x64(True):
        for concentration in (0.05, 0.3, 5.0):
            p, q = rng.dirichlet(np.full(6, concentration), size=(2, 3000))
            result = lemmas.error_alignment(p, q, 2)
            assert (result.inner >= result.bound * (1 - 1e-12)).all()
            assert (result.cosine >= 0.5 - 1e-12).all()
            errors = p - np.eye(6)[2], q - np.eye(6)[2]
            sizes = [np.linalg.norm(e, axis=1) for e in errors]
            inner = (errors[0] * errors[1]).sum(axis=1)
            np.testing.assert_allclose(result.inner, inner, rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(result.bound, errors[0][:, 2] * errors[1][:, 2], atol=1e-14)
            sure = np.minimum(*sizes) > 1e-6  # else 1 − p_A has no digits
            cosine = (inner / (sizes[0] * sizes[1]))[sure]
            np.testing.assert_allclose(np.asarray(result.cosine)[sure], cosine, rtol=1e-6)
    # The extreme: the rest of p and q on different tokens, however near p_A is to 1.
    for rest in (0.9, 1e-3, 1e-7):
        p = np.array([1 - rest, rest, 0.0])
        q = np.array([1 - rest, 0.0, rest])
        result = lemmas.error_alignment(p, q, 0)
        np.testing.assert_allclose(result.cosine, 0.5, rtol=1e-5)
        np.testing.assert_allclose(result.inner, rest**2, rtol=1e-5)


@pytest.mark.slow
def test_proposition_b8_by_simulation():
    run = lemmas.simulate_proposition_b8
    wide = run(jax.random.key(0), 384, 6, num_draws=200, adversarial=True)
    assert float(wide.positive) == 1 > wide.bound > 0.8  # a mean of 0.44, deviations of 0.06
    np.testing.assert_allclose(wide.bound, 1 - 3 * np.exp(-3), rtol=1e-6)
    narrow = run(jax.random.key(0), 128, 20, num_draws=50)
    assert narrow.bound < 0  # vacuous for D <= 140
    broken = run(jax.random.key(0), 64, 20, drift=1.0, adversarial=True, num_draws=50)
    assert float(broken.positive) < 0.5  # the drift bound is needed
    # The adversary's slope at 0 is minus the nuclear norm, (1 + cosine) + (1 − cosine) for an
    # isometry; the steepest direction at equal Frobenius norm reaches 5/3.
    start, moved = (
        run(jax.random.key(0), 512, 6, drift=drift, adversarial=True, num_draws=30).inner
        for drift in (0.0, 1e-2)
    )
    np.testing.assert_allclose((start - moved).mean() / 1e-2, 2.0, atol=0.06)


@pytest.mark.parametrize("cosine", [0.5, -0.3])
def test_proposition_b8_without_drift_is_the_f_distribution(cosine):
    """⟨x, y⟩ of Gaussians at correlation c is (1+c)/2 χ²_D/D − (1−c)/2 χ'²_D/D."""
    width, num = 4, 6000
    still = lemmas.simulate_proposition_b8(
        jax.random.key(1), width, 9, drift=0.0, cosine=cosine, num_draws=num
    )
    want = scipy.stats.f(width, width).sf((1 - cosine) / (1 + cosine))
    assert abs(float(still.positive) - want) < 4 * np.sqrt(want * (1 - want) / num)
    np.testing.assert_allclose(still.positive, (np.asarray(still.inner) > 0).mean(), rtol=1e-6)
    # Mean c and variance (1 + c²)/D.
    error = np.sqrt((1 + cosine**2) / width / num)
    assert abs(float(still.inner.mean()) - cosine) < 4 * error
    np.testing.assert_allclose(still.inner.var(), (1 + cosine**2) / width, rtol=0.1)
    assert still.bound == pytest.approx(1 - 3 * np.exp(-width / 128), rel=1e-12)


def test_the_random_drift_of_proposition_b8_has_its_spectral_norm():
    """ΔΔᵀ of a Gaussian D × V matrix over its norm √D + √V: ⟨Δa, Δb⟩ is c D/(√D + √V)²."""
    far = lemmas.simulate_proposition_b8(
        jax.random.key(2), 36, 144, drift=1e3, cosine=0.5, num_draws=60
    )
    np.testing.assert_allclose(far.inner.mean() / 1e6, 0.5 * 36 / (6 + 12) ** 2, rtol=0.12)


def test_proposition_b10():
    params = _order_one(np.random.default_rng(10), 8, 6, jnp.float32)
    step = lemmas.simulate_proposition_b10(params, 3, 2, 0.1)
    scale = float(jnp.abs(step.measured).max())
    assert scale > 1e-3
    np.testing.assert_allclose(step.measured, step.predicted, atol=1e-4 * scale)
    others = np.delete(np.asarray(step.predicted), 2)
    assert step.predicted[2] > 0 and (others < 0).all()
    how = dict(angles=layers.plane_angles(8, 50.0), pairing="half")
    turned = lemmas.simulate_proposition_b10(params, 3, 2, 0.1, **how)
    b1 = theorem_b1.theorem_b1(params, 3, 3, 2, **how)
    want = -0.1 * b1.fwd.alpha * (b1.v_B @ b1.v_B) * b1.fwd.e
    for got in turned:
        np.testing.assert_allclose(got, want, atol=1e-4 * scale)
    assert np.abs(want - step.predicted).max() > 0.01 * scale


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match="vocab_size"):
        lemmas.simulate_proposition_b8(jax.random.key(0), 4, 1)
    with pytest.raises(ValueError, match="cosine"):
        lemmas.simulate_proposition_b8(jax.random.key(0), 4, 4, cosine=1.5)


def _scores(params, delta_fwd, delta_rev, angles, pairing):
    """S of [M] on B in both queries, as functions of the parameters."""

    def score(p, offset):
        return (p.W_Q @ p.h_M) @ layers.rotate(p.W_K @ p.h_B, offset, angles, pairing)

    return [jax.grad(score)(params, offset) for offset in (delta_fwd, -delta_rev)]


def test_lemma_b3():
    """⟨∇C_i, ∇C_j⟩ in W_O is ‖v_B‖² for i = j, else 0, with C_t = w_{O,t}·W_V h_B."""
    params = _order_one(np.random.default_rng(20), 6, 4, jnp.float32)
    v_B = params.W_V @ params.h_B
    grads = jax.jacrev(lambda W_O: W_O @ v_B)(params.W_O).reshape(4, -1)
    np.testing.assert_allclose(grads @ grads.T, np.eye(4) * float(v_B @ v_B), rtol=1e-5, atol=1e-6)


def test_lemma_b4():
    """⟨∇ aᵀWu, ∇ bᵀWv⟩ = (aᵀb)(uᵀv), with W not square."""
    a, b = np.random.default_rng(21).normal(size=(2, 3)).astype(np.float32)
    u, v = np.random.default_rng(22).normal(size=(2, 5)).astype(np.float32)
    one, other = (
        jax.grad(lambda W, x=x, y=y: jnp.asarray(x) @ W @ y)(jnp.zeros((3, 5)))
        for x, y in ((a, u), (b, v))
    )
    np.testing.assert_allclose(jnp.vdot(one, other), (a @ b) * (u @ v), rtol=1e-5)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_lemmas_b5_and_b6(pairing):
    """Inner products of the scores' gradients at unequal distances, and what `theorem_b1` says."""
    params, angles = (
        _order_one(np.random.default_rng(23), 6, 5, jnp.float32),
        layers.plane_angles(6),
    )
    fwd, rev = _scores(params, 3, 8, angles, pairing)
    b1 = theorem_b1.theorem_b1(params, 3, 8, 1, angles=angles, pairing=pairing)
    q, k = params.W_Q @ params.h_M, params.W_K @ params.h_B
    turn = lambda x: layers.rotate(x, 11, angles, pairing)  # noqa: E731
    for block, h, x, form in (("W_Q", params.h_M, k, b1.k_R_k), ("W_K", params.h_B, q, b1.q_R_q)):
        got = jnp.vdot(getattr(fwd, block), getattr(rev, block))
        assert abs(float(got)) > 0.1
        np.testing.assert_allclose(got, (h @ h) * (x @ turn(x)), rtol=1e-4)
        np.testing.assert_allclose(form, x @ turn(x), rtol=1e-4)


def test_lemma_b5_s_identity_is_of_one_plane():
    """xᵀR(Δ)x = ‖x‖² cos θ, as its proof has it, at D = 2 and at no greater width."""
    for width, holds in ((2, True), (6, False)):
        x = np.random.default_rng(24).normal(size=width)
        got = x @ rope.rotation(0.7, width) @ x
        assert (abs(got - x @ x * np.cos(0.7)) < 1e-12) == holds


@pytest.mark.parametrize("sure", [0.0, 3.0, 60.0])
def test_lemma_b9(sure):
    """C_A greatest: μ < 0 in both queries; equal scores: μ = 0; C_A not greatest: μ may be > 0."""
    params = _order_one(np.random.default_rng(25), 6, 5, jnp.float32)
    v_B = params.W_V @ params.h_B

    def margins(C_V):
        W_O = jnp.outer(jnp.asarray(C_V), v_B) / (v_B @ v_B)
        b1 = theorem_b1.theorem_b1(params.replace(W_O=W_O), 2, 9, 3)
        return float(b1.fwd.mu), float(b1.rev.mu)

    greatest = np.array([-1.0, 0.5, 0.2, 0.6 + sure, -2.0], np.float32)
    assert max(margins(greatest)) < 0
    np.testing.assert_allclose(margins(np.full(5, 1 + sure, np.float32)), 0, atol=1e-4)
    assert min(margins(-greatest)) > 0


def test_lemma_b11():
    """xᵀR(Δ)x plane by plane, and even in Δ."""
    x, angles = np.random.default_rng(26).normal(size=8), layers.plane_angles(8)
    for delta in (1, 7, 90):
        want = sum(
            np.cos(delta * angle) * (x[2 * s] ** 2 + x[2 * s + 1] ** 2)
            for s, angle in enumerate(angles)
        )
        for sign in (1, -1):
            got = x @ rope.rotation(sign * delta, 8) @ x
            np.testing.assert_allclose(got, want, rtol=1e-12)


def test_proposition_b12():
    """E[kᵀR(Δ)k / ‖k‖²] of an isotropic k is the trace over D, which need not reach 0.435."""
    k = np.random.default_rng(27).normal(size=(40_000, 16)) * 3
    for delta in (2, 50, 97):
        forms = ((k @ rope.rotation(delta, 16)) * k).sum(-1) / (k**2).sum(-1)
        error = forms.std() / np.sqrt(len(k))
        assert abs(forms.mean() - rope.trace(delta, 16)) < 4 * error < 0.01
    assert min(rope.trace(np.arange(1, 101), 16)) < 0
