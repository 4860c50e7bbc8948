from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest
import scipy.special

from dirasym import models
from dirasym.analysis import alignment, neglected, recall, theorem_b1
from dirasym.models import layers

WIDTHS, VOCABULARIES, DRAWS = (2, 6, 32), (2, 40), 8


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


def _draws(dtype, seed=0):
    rng = np.random.default_rng(seed)
    for width in WIDTHS:
        for vocab in VOCABULARIES:
            for _ in range(DRAWS):
                fwd, rev = rng.integers(1, 300, 2)
                yield _draw(rng, width, vocab, dtype), int(fwd), int(rev), int(rng.integers(vocab))


def test_closed_form_is_autodiff_in_float64():
    with jax.enable_x64(True):
        closed, auto = jax.jit(theorem_b1.theorem_b1), jax.jit(theorem_b1.theorem_b1_autodiff)
        for params, fwd, rev, target in _draws(jnp.float64):
            want = auto(params, fwd, rev, target)
            chex.assert_trees_all_close(
                closed(params, fwd, rev, target).inner, want, rtol=1e-10, atol=1e-290
            )


@pytest.mark.parametrize("traced", members.quick([True, False], [False]))
def test_closed_form_is_autodiff_in_float32(traced):
    jit = jax.jit if traced else (lambda f: f)
    closed, auto = jit(theorem_b1.theorem_b1), jit(theorem_b1.theorem_b1_autodiff)
    for params, fwd, rev, target in _draws(jnp.float32, seed=1):
        if not traced and len(params.W_O) != 2:
            continue  # slow without jit: a third of the draws
        got, want = closed(params, fwd, rev, target), auto(params, fwd, rev, target)
        for a, b, scale in zip(got.inner, want, got.scale, strict=True):
            assert abs(float(a - b)) <= 1e-5 * float(scale) + 1e-30


@pytest.mark.slow
def test_finite_differences_are_a_third_witness():
    """⟨∇L_fwd, ∇L_rev⟩ as the derivative of L_rev along ∇L_fwd, one block at a time."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        params, angles = _draw(rng, 6, 5, jnp.float64), layers.plane_angles(6)
        loss = lambda p, offset: theorem_b1.theorem_loss(p, offset, 3, angles, "interleaved")  # noqa: E731
        inner = theorem_b1.theorem_b1(params, 4, 9, 3).inner
        own = (params.W_Q @ params.h_M) @ (params.W_K @ params.h_M)

        def frozen_own_score(p, offset):  # finite differences see through stop_gradient
            q, k = p.W_Q @ p.h_M, p.W_K @ p.h_B
            score = q @ layers.rotate(k, offset, angles, "interleaved")
            alpha = 1 / (1 + jnp.exp((own - score) / np.sqrt(6)))
            return -jax.nn.log_softmax(p.W_O @ (alpha * (p.W_V @ p.h_B)))[3]

        np.testing.assert_allclose(frozen_own_score(params, 4), loss(params, 4), rtol=1e-12)
        direction = jax.grad(loss)(params, 4)
        for block in theorem_b1.BLOCKS:
            moved = [
                params.replace(**{block: getattr(params, block) + h * getattr(direction, block)})
                for h in (1e-5, -1e-5)
            ]
            slope = (frozen_own_score(moved[0], -9) - frozen_own_score(moved[1], -9)) / 2e-5
            np.testing.assert_allclose(slope, getattr(inner, block), rtol=1e-5)


@pytest.mark.parametrize("saturated", [False, True])
def test_ingredients_are_what_their_names_say(saturated):
    """Each to its own last digits; in float64, as the plain formulas cancel where saturated."""
    with jax.enable_x64(True):
        draw = _draw if saturated else _order_one
        params = draw(np.random.default_rng(4), 8, 7, jnp.float64)
        _check_ingredients(params, theorem_b1.theorem_b1(params, 3, 5, 2), saturated)


def _check_ingredients(params, b1, saturated):
    q, k, v = params.W_Q @ params.h_M, params.W_K @ params.h_B, params.W_V @ params.h_B
    turn = lambda x, m: layers.rotate(x, m, layers.plane_angles(8), "interleaved")  # noqa: E731
    for query, offset in ((b1.fwd, 3), (b1.rev, -5)):
        scores = jnp.stack([q @ (params.W_K @ params.h_M), q @ turn(k, offset)]) / np.sqrt(8)
        alpha = jax.nn.softmax(scores)[1]
        p = jax.nn.softmax(params.W_O @ (alpha * v))
        rest = jnp.delete(p, 2)
        e = p.at[2].set(-rest.sum())  # p − 1_A without the difference
        assert (min(alpha, rest.sum()) < 1e-6) == saturated
        want = dict(
            score=q @ turn(k, offset),
            alpha=alpha,
            beta=alpha * (1 - alpha),
            p=p,
            e=e,
            u=params.W_O.T @ e,
            mu=e @ (params.W_O @ v),
            loss=-jnp.log1p(-rest.sum()),
        )
        for name, value in want.items():
            got = getattr(query, name)
            np.testing.assert_allclose(got, value, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(b1.k_R_k, k @ turn(k, 8), rtol=1e-9)
    np.testing.assert_allclose(b1.q_R_q, q @ turn(q, -8), rtol=1e-9)  # even in the offset
    inner = b1.inner
    np.testing.assert_allclose(inner.storage + inner.routing, inner.total, rtol=1e-12)
    np.testing.assert_allclose(inner.storage, inner.W_V + inner.W_O, rtol=1e-12)
    np.testing.assert_allclose(inner.total, sum(inner), rtol=1e-12)


def test_the_natural_scale_has_norms_in_place_of_products():
    params = _order_one(np.random.default_rng(4), 6, 5, jnp.float32)
    b1 = theorem_b1.theorem_b1(params, 3, 5, 0)
    h_M, h_B, q, k, v = (x @ x for x in (params.h_M, params.h_B, b1.q_M, b1.k_B, b1.v_B))
    fwd, rev = b1.fwd, b1.rev
    alpha, beta = fwd.alpha * rev.alpha, fwd.beta * rev.beta
    mu, e, u = (
        np.prod([float(size(query)) for query in (fwd, rev)])
        for size in (
            lambda query: jnp.abs(query.e * b1.C).sum(),
            lambda query: jnp.linalg.norm(query.e),
            lambda query: jnp.linalg.norm(query.u),
        )
    )
    want = theorem_b1.BlockProducts(
        mu * beta / 6 * h_M * k, mu * beta / 6 * h_B * q, u * alpha * h_B, e * alpha * v
    )
    chex.assert_trees_all_close(b1.scale, want, rtol=1e-4)
    for inner, scale in zip(b1.inner, b1.scale, strict=True):
        assert abs(inner) <= scale


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_other_angles_and_pairings(pairing):
    params = _order_one(np.random.default_rng(5), 6, 5, jnp.float32)
    kwargs = dict(angles=layers.plane_angles(6, 50.0), pairing=pairing)
    got = theorem_b1.theorem_b1(params, 2, 7, 1, **kwargs)
    want = theorem_b1.theorem_b1_autodiff(params, 2, 7, 1, **kwargs)
    assert np.abs(want).min() > 1e-3
    np.testing.assert_allclose(got.inner, want, rtol=1e-4)
    default = theorem_b1.theorem_b1(params, 2, 7, 1).inner
    assert abs(float(default.W_Q / got.inner.W_Q) - 1) > 0.1


def test_angles_may_be_given_to_a_program_with_traced_distances():
    params = _order_one(np.random.default_rng(5), 6, 5, jnp.float32)
    how = dict(angles=jnp.asarray(layers.plane_angles(6, 50.0)), pairing="half")
    for function in (theorem_b1.theorem_b1_autodiff, neglected.neglected_terms):
        want = function(params, 2, 7, 1, **how)
        got = jax.jit(lambda *deltas, f=function: f(params, *deltas, 1, **how))(2, 7)
        got, want = (np.array(jax.tree.leaves(x)) for x in (got, want))
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_neglected_terms_add_up_to_the_full_model():
    with jax.enable_x64(True):
        rng = np.random.default_rng(6)
        params = _draw(rng, 8, 5, jnp.float64)
        others = neglected.Others(
            jnp.asarray(rng.normal(size=(3, 8))), jnp.array([-1, 2, 3]), jnp.array([-3, 1, 2])
        )
        parts = jax.jit(lambda p, o: neglected.neglected_terms(p, 1, 2, 4, others=o))(
            params, others
        )
        want = jax.jit(lambda p: theorem_b1.theorem_b1(p, 1, 2, 4))(params).inner
        chex.assert_trees_all_close(parts.theorem, want, rtol=1e-10)
        total = jax.tree.map(
            lambda *x: sum(x),
            *(
                getattr(parts, n)
                for n in ("theorem", "own_score", "own_value", "others", "interaction")
            ),
        )
        chex.assert_trees_all_close(total, parts.full, rtol=1e-10)

        def full_loss(p, offsets):  # written plainly: a one-layer encoder read at [M]
            h = jnp.stack([p.h_M, p.h_B, *others.h])
            k = layers.rotate(h @ p.W_K.T, offsets, layers.plane_angles(8), "interleaved")
            weights = jax.nn.softmax(k @ (p.W_Q @ p.h_M) / np.sqrt(8))
            return -jax.nn.log_softmax(p.W_O @ (weights @ (h @ p.W_V.T)))[4]

        grad = jax.jit(jax.grad(full_loss))
        fwd = grad(params, np.array([0, 1, -1, 2, 3]))
        rev = grad(params, np.array([0, -2, -3, 1, 2]))
        for block in theorem_b1.BLOCKS:
            inner = jnp.vdot(getattr(fwd, block), getattr(rev, block))
            np.testing.assert_allclose(getattr(parts.full, block), inner, rtol=1e-9)
        # W_V and W_O stay exact without the stop-gradient; W_Q and W_K do not.
        own = parts.own_score
        size = min(abs(want.W_V), abs(want.W_O))
        np.testing.assert_allclose([own.W_V, own.W_O], 0, atol=1e-13 * size)
        assert abs(own.W_Q) > 1e-3 * abs(want.W_Q) and abs(own.W_K) > 1e-3 * abs(want.W_K)


@pytest.mark.parametrize(
    ("pairing", "scanned", "tied"), [("half", False, False), ("interleaved", True, True)]
)
def test_parameters_of_a_transformer_are_the_theorems(pairing, scanned, tied):
    """Its own gradients, at distance 2 with a token between, are what `neglected_terms` says."""
    mask_id, context, target, other = 2, 4, 3, 5
    config = models.attention_only(
        7, width=6, residual=False, rope_base=50.0, rope_pairing=pairing, tied_head=tied,
        scan_layers=scanned, rope_scaling=layers.RopeScaling(8.0, 1.0, 4.0, 32),
    )  # fmt: skip
    model = models.Transformer(config)
    rows = np.array([[mask_id, other, context], [context, other, mask_id]])
    with jax.enable_x64(True):
        params = jax.jit(model.init)(jax.random.key(3), rows)["params"]
        params = jax.tree.map(lambda x: 4 * jnp.asarray(x, jnp.float64), params)
        one_layer, how = theorem_b1.OneLayer.from_transformer(
            params, config, mask_id=mask_id, context=context, target=target
        )
        how["target"] = int(how["target"])
        assert one_layer.W_O.shape == (6, 6) and how["target"] == 2
        others = neglected.Others(
            params["embed"]["embedding"][other][None], jnp.array([1]), jnp.array([-1])
        )
        full = jax.jit(lambda p, o: neglected.neglected_terms(p, 2, 2, others=o, **how).full)(
            one_layer, others
        )

        apply_fn = models.make_apply_fn(model.clone(config=replace(config, dtype=jnp.float64)))
        pair = tuple(recall.Cloze(rows[[e]], np.array([2 * e]), np.array([target])) for e in (0, 1))
        got = alignment.alignment(
            *recall.paired_losses(apply_fn, mask_id=mask_id), params, examples=pair,
            blocks=r"query|key|value",
        )  # fmt: skip
        for block, layer in (("W_Q", "query"), ("W_K", "key"), ("W_V", "value")):
            assert abs(got.inner[layer][0]) > 1e-6
            np.testing.assert_allclose(got.inner[layer][0], getattr(full, block), rtol=1e-5)
        # W_O = head ∘ out reads the context c: ⟨e_f, e_r⟩⟨c_f, c_r⟩.
        internals = jax.jit(models.make_internals_fn(model))(params, rows)
        c_ED = np.asarray(internals["context"])[0, [0, 1], [0, 2], 0]
        logits_EV = np.asarray(jax.jit(apply_fn)(params, rows))[[0, 1], [0, 2]]
        logits_EV = np.delete(logits_EV, mask_id, 1)
        e_EV = scipy.special.softmax(logits_EV, axis=1) - np.eye(6)[how["target"]]
        want = (e_EV[0] @ e_EV[1]) * (c_ED[0] @ c_ED[1])
        np.testing.assert_allclose(full.W_O, want, rtol=1e-4)


def test_a_model_that_is_not_the_theorems_is_refused():
    config = models.attention_only(5, width=4, num_heads=2)
    with pytest.raises(ValueError, match="num_heads=1, num_kv_heads=1, head_dim=4, residual=False"):
        theorem_b1.OneLayer.from_transformer({}, config, mask_id=0, context=1, target=2)
    theorems = models.attention_only(5, width=4, residual=False)
    for field, value in dict(
        head_transform=True, shift_logits=True, token_types=2, window=1, block_size=1
    ).items():
        with pytest.raises(ValueError, match=f"a model with {field}="):
            theorem_b1.OneLayer.from_transformer(
                {}, replace(theorems, **{field: value}), mask_id=0, context=1, target=2
            )
    for name, tokens, words in (
        ("target", np.array([2, 0]), r"target is 0, \[M\], which is never predicted"),
        ("target", 5, "target 5 is none of the model's 5 tokens"),
        ("context", np.array([1, 9]), "context 9 is none of the model's 5 tokens"),
    ):
        asked = dict(mask_id=0, context=1, target=2) | {name: tokens}
        with pytest.raises(ValueError, match=words):
            theorem_b1.OneLayer.from_transformer({}, theorems, **asked)


def test_bad_input_names_the_argument():
    params = _draw(np.random.default_rng(11), 4, 3, jnp.float32)
    for name, bad in (("delta_fwd", (0, 1)), ("delta_rev", (1, -2)), ("delta_fwd", (0.5, 1))):
        with pytest.raises(ValueError, match=name):
            theorem_b1.theorem_b1(params, *bad, 0)
    with pytest.raises(ValueError, match="target"):
        theorem_b1.theorem_b1(params, 1, 1, 3)
    with pytest.raises(ValueError, match="even"):
        theorem_b1.theorem_b1(_draw(np.random.default_rng(0), 5, 3, jnp.float32), 1, 1, 0)
    with pytest.raises(ValueError, match="W_K"):
        theorem_b1.theorem_b1(params.replace(W_K=jnp.ones((4, 3))), 1, 1, 0)
    for field in ("W_Q", "h_B"):
        ints = params.replace(**{field: jnp.ones_like(getattr(params, field), int)})
        for function in (
            theorem_b1.theorem_b1,
            theorem_b1.theorem_b1_autodiff,
            neglected.neglected_terms,
        ):
            with pytest.raises(TypeError, match=f"{field} is int"):
                function(ints, 1, 1, 0)
    for name, bad in (
        ("delta_fwd", (np.array([1, 2]), 1, 0)),
        ("target", (1, 1, np.array([0, 1]))),
        ("target", (1, 1, 0.5)),
        ("target", (1, 1, -1)),
    ):
        with pytest.raises(ValueError, match=name):
            theorem_b1.theorem_b1(params, *bad)
    with pytest.raises(ValueError, match="pairing"):
        theorem_b1.theorem_b1(params, 1, 1, 0, pairing="half_split")
    with pytest.raises(ValueError, match="angles"):
        theorem_b1.theorem_b1(params, 1, 1, 0, angles=np.ones(1))
    with pytest.raises(ValueError, match="V at least 2"):
        theorem_b1.theorem_b1(params.replace(W_O=params.W_O[:1]), 1, 1, 0)
