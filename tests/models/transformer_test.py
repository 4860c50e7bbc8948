import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models
from dirasym.models import layers

POSITIONS = ["rope", "alibi", "sinusoidal", "learned", "none"]


def _config(**overrides):
    base = dict(vocab_size=11, num_layers=2, width=16, num_heads=2, causal=False, max_len=8)
    return models.TransformerConfig(**(base | overrides))


def _init(config, length=6, batch=3, seed=0, **kwargs):
    model = models.Transformer(config, **kwargs)
    tokens = jax.random.randint(jax.random.key(seed + 1), (batch, length), 0, config.vocab_size)
    params = jax.jit(model.init)(jax.random.key(seed), tokens)["params"]
    # Away from the symmetric start, so that a term left out shows.
    keys = jax.random.split(jax.random.key(seed + 2), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    noisy = jax.tree.map(
        lambda p, k: p + 0.1 * jax.random.normal(k, p.shape, p.dtype), params, keys
    )
    return model, noisy, tokens


def _apply(model, variables, *args, **kwargs):
    """`model.apply` as one compiled program."""
    names = {key: value for key, value in kwargs.items() if isinstance(value, str)}
    arrays = {key: value for key, value in kwargs.items() if key not in names}
    return jax.jit(functools.partial(model.apply, **names))(variables, *args, **arrays)


def _influence(model, params, tokens):
    """[L, L]: how much the logits at row l depend on the embedding read at column s."""

    def logits(delta_LD):
        def add(next_fun, args, kwargs, context):
            out = next_fun(*args, **kwargs)
            if context.module.name == "embed" and context.method_name == "__call__":
                out = out + delta_LD[None]
            return out

        import flax.linen as nn

        with nn.intercept_methods(add):
            return _apply(model, {"params": params}, tokens)[0]

    length, width = tokens.shape[1], model.config.width
    jacobian = jax.jit(jax.jacobian(logits))(jnp.zeros((length, width)))
    return np.abs(jacobian).sum(axis=(1, 3))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("causal", [True, False])
def test_causality_by_gradient(positions, causal):
    model, params, tokens = _init(_config(positions=positions, causal=causal))
    influence = _influence(model, params, tokens[:1])
    future = np.triu(np.ones_like(influence), 1) > 0
    assert (influence[~future] > 0).all()
    assert (influence[future] == 0).all() if causal else (influence[future] > 0).all()


@pytest.mark.parametrize("positions", ["rope", "alibi", "none"])
def test_relative_positions_do_not_see_a_shift(positions):
    model, params, tokens = _init(_config(positions=positions, max_len=None), length=5)
    pad = jnp.zeros((3, 4), tokens.dtype)
    valid = jnp.arange(9)[None] >= 4
    shifted = _apply(
        model,
        {"params": params},
        jnp.concatenate([pad, tokens], 1),
        valid_BL=jnp.broadcast_to(valid, (3, 9)),
    )
    chex.assert_trees_all_close(
        shifted[:, 4:], _apply(model, {"params": params}, tokens), atol=1e-5
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("causal", [True, False])
def test_left_and_right_padding_give_the_same_answers(positions, causal):
    model, params, tokens = _init(_config(positions=positions, causal=causal), length=5)
    bare = _apply(model, {"params": params}, tokens)
    junk = jnp.full((3, 2), 7, tokens.dtype)
    for padded, keep in (([junk, tokens], slice(2, 7)), ([tokens, junk], slice(0, 5))):
        valid = jnp.zeros((3, 7), bool).at[:, keep].set(True)
        logits = _apply(model, {"params": params}, jnp.concatenate(padded, 1), valid_BL=valid)
        chex.assert_trees_all_close(logits[:, keep], bare, atol=1e-5)


def test_without_positions_a_bidirectional_model_is_permutation_equivariant():
    model, params, tokens = _init(_config(positions="none"))
    order = jnp.array([3, 0, 5, 1, 4, 2])
    plain = _apply(model, {"params": params}, tokens)
    permuted = _apply(model, {"params": params}, tokens[:, order])
    chex.assert_trees_all_close(permuted, plain[:, order], atol=1e-5)


def test_grouped_queries_are_shared_heads():
    grouped, params, tokens = _init(_config(num_heads=4, num_kv_heads=2))
    full = models.Transformer(_config(num_heads=4))
    repeated = jax.tree.map(lambda x: x, params)
    for block in ("blocks_0", "blocks_1"):
        for name in ("key", "value"):
            kernel = params[block]["attention"][name]["kernel"]
            repeated[block]["attention"][name] = {"kernel": kernel.repeat(2, axis=1)}
    chex.assert_trees_all_close(
        _apply(grouped, {"params": params}, tokens),
        _apply(full, {"params": repeated}, tokens),
        atol=1e-5,
    )


def test_internals_are_sown_and_raw():
    config = _config(num_layers=1)
    model, params, tokens = _init(config)
    _, sown = _apply(model, {"params": params}, tokens, mutable="intermediates")
    internals = sown["intermediates"]["blocks_0"]["attention"]
    scores, weights = internals["scores_BNLS"][0], internals["weights_BNLS"][0]
    chex.assert_shape((scores, weights), (3, 2, 6, 6))
    chex.assert_shape(internals["context_BLNH"][0], (3, 6, 2, 8))
    chex.assert_trees_all_close(weights, jax.nn.softmax(scores / np.sqrt(8), -1), atol=1e-6)
    # The score depends on (query token, key token, offset) alone in the first layer.
    same = jnp.full((1, 6), 3)
    _, sown = _apply(model, {"params": params}, same, mutable="intermediates")
    score_LS = sown["intermediates"]["blocks_0"]["attention"]["scores_BNLS"][0][0, 0]
    for offset in range(-5, 6):
        diagonal = np.diagonal(score_LS, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)


def test_scan_and_remat_change_nothing():
    loop, params, tokens = _init(_config())
    stacked = jax.tree.map(lambda *x: jnp.stack(x), params["blocks_0"], params["blocks_1"])
    rest = {k: v for k, v in params.items() if not k.startswith("blocks_")}
    scanned = models.Transformer(_config(scan_layers=True, remat=True))
    scan_params = rest | {"blocks": {"block": stacked}}
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), tokens)["params"]
    chex.assert_trees_all_equal_shapes(shapes, scan_params)

    def loss(model, params):
        return (_apply(model, {"params": params}, tokens) ** 2).sum()

    want, want_grads = jax.value_and_grad(functools.partial(loss, loop))(params)
    got, got_grads = jax.value_and_grad(functools.partial(loss, scanned))(scan_params)
    chex.assert_trees_all_close(got, want, rtol=1e-5)
    for layer in range(2):
        part = jax.tree.map(lambda x, n=layer: x[n], got_grads["blocks"]["block"])
        chex.assert_trees_all_close(part, want_grads[f"blocks_{layer}"], rtol=1e-3, atol=1e-4)
    remat = models.Transformer(_config(remat=True))
    remat_grads = jax.grad(functools.partial(loss, remat))(params)
    chex.assert_trees_all_close(remat_grads, want_grads, rtol=1e-4, atol=1e-5)
    _, sown = _apply(scanned, {"params": scan_params}, tokens, mutable="intermediates")
    scores = sown["intermediates"]["blocks"]["block"]["attention"]["scores_BNLS"][0]
    chex.assert_shape(scores, (2, 3, 2, 6, 6))


SCORED_CASES = {
    "radd, from the token table": models.radd(11, width=16, max_len=8, dropout=0.0),
    "several heads": models.radd(11, width=16, num_heads=4, num_kv_heads=2, dropout=0.0),
    "no positions": models.radd(11, width=16, num_heads=2, positions="none", dropout=0.0),
    "interleaved": models.radd(11, width=16, rope_pairing="interleaved", dropout=0.0),
    "causal": models.radd(11, width=16, causal=True, dropout=0.0),
    "two layers": models.radd(11, width=16, num_layers=2, dropout=0.0),
    "gpt2": models.gpt2(11, num_layers=1, width=16, num_heads=2, max_len=8, dropout=0.0),
    "attention only": models.attention_only(11, width=16),
}


# The quick suite runs each case once, with dropout or without.
@pytest.mark.parametrize(
    ("name", "rate"),
    [
        pytest.param(
            name, rate, marks=[pytest.mark.slow] if (place % 2 == 0) == (rate == 0) else []
        )
        for place, name in enumerate(SCORED_CASES)
        for rate in (0.0, 0.3)
    ],
)
def test_scored_rows_give_the_plain_logits_and_gradients(name, rate):
    embed = rate if "gpt2" in name else 0.0
    config = dataclasses.replace(
        SCORED_CASES[name], dropout=rate, embed_dropout=embed, attention_dropout=embed
    )
    rngs = {"dropout": jax.random.key(9)} if rate else None
    plain, params, tokens = _init(config, batch=16)
    scored = jax.random.uniform(jax.random.key(5), tokens.shape) < 0.5
    fast = models.Transformer(config, scored_fraction=0.7)
    if "table" in name:  # the case must take the path that it is named after
        assert config.vocab_size**2 <= tokens.size * config.width / 2

    def loss(model, params):
        logits = _apply(model, {"params": params}, tokens, scored_BL=scored, rngs=rngs)
        return jnp.sum(jnp.where(scored[..., None], jnp.sin(logits), 0.0)), logits

    grad = jax.value_and_grad(loss, argnums=1, has_aux=True)
    (want, want_logits), want_grads = grad(plain, params)
    (got, got_logits), got_grads = jax.jit(grad, static_argnums=0)(fast, params)
    chex.assert_trees_all_close(got_logits[scored], want_logits[scored], atol=1e-5)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    # Some gradients are zero but for rounding (keys' biases): one scale for all leaves.
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want_grads))
    chex.assert_trees_all_close(got_grads, want_grads, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("causal", "positions", "rate"),
    [
        (True, "learned", 0.3),
        (True, "rope", 0.0),
        pytest.param(False, "alibi", 0.3, marks=pytest.mark.slow),
        pytest.param(True, "alibi", 0.0, marks=pytest.mark.slow),
    ],
)
def test_last_positions_alone_are_the_plain_logits_and_gradients_there(causal, positions, rate):
    config = models.gpt2(
        11, dropout=rate, num_layers=2, num_heads=2, width=16, max_len=8, causal=causal,
        positions=positions,
    )  # fmt: skip
    rngs = {"dropout": jax.random.key(9)} if rate else None
    plain, params, tokens = _init(config, batch=4)
    fast = models.Transformer(config, scored_last=2)

    def loss(model, params):
        logits = _apply(model, {"params": params}, tokens, rngs=rngs)
        return jnp.sum(jnp.sin(logits[:, -2:])), logits

    grad = jax.value_and_grad(loss, argnums=1, has_aux=True)
    (_, want), want_grads = grad(plain, params)
    (_, got), got_grads = grad(fast, params)
    chex.assert_trees_all_close(got[:, -2:], want[:, -2:], atol=1e-5)
    chex.assert_trees_all_equal(got[:, :-2], jnp.zeros_like(got[:, :-2]))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want_grads))
    chex.assert_trees_all_close(got_grads, want_grads, atol=1e-5 * scale)
    internals = models.make_internals_fn(fast)(params, tokens)  # of all positions, in every layer
    assert internals["scores"].shape == (2, 4, 2, *tokens.shape[1:], *tokens.shape[1:])


@pytest.mark.parametrize(("scan_layers", "rate"), [(True, 0.3), (False, 0.0)])
def test_no_more_scored_positions_than_promised(scan_layers, rate):
    config = models.gpt2(
        11, dropout=rate, num_layers=2, num_heads=2, width=16, max_len=8, scan_layers=scan_layers
    )
    rngs = {"dropout": jax.random.key(9)} if rate else None
    plain, params, tokens = _init(config, batch=16)
    scored = jax.random.uniform(jax.random.key(5), tokens.shape) < 0.3
    most = int(scored.sum(axis=1).max())
    assert 1 < most < tokens.shape[1] and int(scored.sum(axis=1).min()) < most

    def loss(model, params):
        logits = _apply(model, {"params": params}, tokens, scored_BL=scored, rngs=rngs)
        return jnp.sum(jnp.where(scored[..., None], jnp.sin(logits), 0.0)), logits

    grad = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    (_, want), want_grads = grad(plain, params)
    (_, got), got_grads = grad(models.Transformer(config, scored_per_row=most), params)
    chex.assert_trees_all_close(got[scored], want[scored], atol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want_grads))
    chex.assert_trees_all_close(got_grads, want_grads, atol=1e-5 * scale)
    (_, broken), _ = grad(models.Transformer(config, scored_per_row=most - 1), params)
    breaks = scored.sum(axis=1) == most
    assert bool(jnp.isnan(broken[breaks]).any(axis=(1, 2)).all())
    chex.assert_trees_all_close(broken[~breaks][scored[~breaks]], want[~breaks][scored[~breaks]])


def test_scored_rows_around_a_hole_and_outside_jit():
    config = models.radd(11, width=16, max_len=8, dropout=0.3)
    plain, params, tokens = _init(config, batch=16)
    valid = jnp.arange(tokens.shape[1]) // 2 != 1  # positions count valid tokens, offsets do too
    kwargs = {"valid_BL": jnp.broadcast_to(valid, tokens.shape)}
    kwargs["rngs"] = {"dropout": jax.random.key(9)}
    want = plain.apply({"params": params}, tokens, **kwargs)
    fast = models.Transformer(config, scored_fraction=1.0)
    got = fast.apply({"params": params}, tokens, scored_BL=kwargs["valid_BL"], **kwargs)
    chex.assert_trees_all_close(got[:, valid], want[:, valid], atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_more_scored_positions_than_capacity_fall_back(share):
    config = models.radd(11, width=16, max_len=8, dropout=0.3)
    rngs = {"dropout": jax.random.key(9)}  # the same masks, whichever branch
    plain, params, tokens = _init(config, batch=16)
    fast = models.Transformer(config, scored_fraction=0.3)
    scored = jnp.arange(tokens.size).reshape(tokens.shape) < share * tokens.size
    got = jax.jit(fast.apply)({"params": params}, tokens, scored_BL=scored, rngs=rngs)
    want = _apply(plain, {"params": params}, tokens, rngs=rngs)
    chex.assert_trees_all_close(got[scored], want[scored], atol=1e-5)
    assert bool(jnp.isfinite(got).all())


def test_seeds_under_vmap_take_the_fallback_together():
    config = SCORED_CASES["radd, from the token table"]
    plain, params, tokens = _init(config, batch=16)
    fast = models.Transformer(config, scored_fraction=0.3, vmap_axis="seed")
    two = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    share = jnp.array([0.1, 0.9])[:, None, None]
    scored = jnp.arange(tokens.size).reshape(1, *tokens.shape) < share * tokens.size
    apply = jax.vmap(
        lambda p, s: _apply(fast, {"params": p}, tokens, scored_BL=s), axis_name="seed"
    )
    got = jax.jit(apply)(two, scored)
    want = jax.vmap(lambda p: _apply(plain, {"params": p}, tokens))(two)
    chex.assert_trees_all_close(got[scored], want[scored], atol=1e-4)
    # One branch is computed, not both: the lowered program keeps a conditional.
    assert "stablehlo.case" in jax.jit(apply).lower(two, scored).as_text()


def test_bfloat16_computes_with_float32_parameters():
    model, params, tokens = _init(_config(dtype=jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits, sown = _apply(model, {"params": params}, tokens, mutable="intermediates")
    assert logits.dtype == jnp.float32
    internals = sown["intermediates"]["blocks_0"]["attention"]
    assert internals["scores_BNLS"][0].dtype == jnp.float32
    assert internals["context_BLNH"][0].dtype == jnp.bfloat16
    exact = models.Transformer(_config()).apply({"params": params}, tokens)
    assert 0 < float(jnp.abs(logits - exact).max()) < 0.2


def test_dropout_is_on_with_a_key_and_off_without():
    model, params, tokens = _init(_config(dropout=0.5, embed_dropout=0.5, attention_dropout=0.5))
    off = [_apply(model, {"params": params}, tokens) for _ in range(2)]
    chex.assert_trees_all_equal(*off)
    on = [
        _apply(model, {"params": params}, tokens, rngs={"dropout": jax.random.key(k)})
        for k in range(2)
    ]
    assert float(jnp.abs(on[0] - on[1]).max()) > 1e-3


def test_presets_and_options():
    shapes = jax.eval_shape(
        models.Transformer(models.gpt2()).init, jax.random.key(0), jnp.zeros((1, 4), int)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 124_439_808
    swiglu = _config(mlp="swiglu", norm="rmsnorm", mlp_bias=False, mlp_width=24)
    _, params, _ = _init(swiglu)
    assert set(params["blocks_0"]["mlp"]) == {"gate", "up", "down"}
    assert set(params["blocks_0"]["mlp_norm"]) == {"scale"}
    _, params, _ = _init(models.attention_only(11, width=16))
    assert set(params["blocks_0"]) == {"attention"} and set(params) == {"embed", "blocks_0", "head"}
    zeros = models.Transformer(models.radd(11, width=16, head_init="zeros", norm_bias_init=1.0))
    params = zeros.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    assert not np.any(params["head"]["kernel"]) and not np.any(params["head"]["bias"])
    assert (params["final_norm"]["bias"] == 1).all()
    assert models.radd(54, width=64).mlp_width == 256


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("width", dict(width=15)),
        ("head_dim", dict(width=6, num_heads=2)),
        ("width must be even", dict(positions="sinusoidal", width=15, num_heads=3)),
        ("num_kv_heads", dict(num_heads=4, num_kv_heads=3)),
        ("positions", dict(positions="rotary")),
        ("norm", dict(norm="batchnorm")),
        ("max_len", dict(positions="learned", max_len=None)),
        ("dropout", dict(dropout=1.0)),
        ("num_layers", dict(num_layers=0)),
    ],
)
def test_a_bad_configuration_names_the_field(field, overrides):
    with pytest.raises(ValueError, match=field):
        _config(**overrides)


def test_too_long_a_sequence():
    model, params, _ = _init(_config())
    with pytest.raises(ValueError, match="max_len"):
        _apply(model, {"params": params}, jnp.zeros((1, 9), int))


def test_norms_match_their_equations():
    x = jax.random.normal(jax.random.key(0), (2, 16)) + 3.0
    layer = layers.make_norm(_config())
    centred = x - x.mean(-1, keepdims=True)
    want = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    chex.assert_trees_all_close(layer.init_with_output(jax.random.key(0), x)[0], want, atol=1e-5)
    rms = layers.make_norm(_config(norm="rmsnorm"))
    want = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    chex.assert_trees_all_close(rms.init_with_output(jax.random.key(0), x)[0], want, atol=1e-5)
