import dataclasses
import functools
import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import models
from dirasym.models import layers, presets, token_table

POSITIONS = ["rope", "alibi", "sinusoidal", "learned", "none"]


def _config(**overrides):
    base = dict(vocab_size=11, num_layers=2, width=16, num_heads=2, causal=False, max_len=8)
    return models.TransformerConfig(**(base | overrides))


def _init(config, length=6, batch=3, seed=0, **kwargs):
    model = models.Transformer(config, **kwargs)
    tokens = jax.random.randint(jax.random.key(seed + 1), (batch, length), 0, config.vocab_size)
    params = jax.jit(model.init)(jax.random.key(seed), tokens)["params"]
    # Away from the symmetric start, so that a term left out shows.
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    noise = jax.random.normal(jax.random.key(seed + 2), flat.shape)
    noisy = unravel(flat + 0.1 * noise)
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


@pytest.mark.parametrize("positions", members.quick(POSITIONS, ["rope", "learned"]))
@pytest.mark.parametrize("causal", [True, False])
def test_causality_by_gradient(positions, causal):
    model, params, tokens = _init(_config(positions=positions, causal=causal))
    influence = _influence(model, params, tokens[:1])
    future = np.triu(np.ones_like(influence), 1) > 0
    assert (influence[~future] > 0).all()
    assert (influence[future] == 0).all() if causal else (influence[future] > 0).all()


@pytest.mark.parametrize(("size", "like"), [(1, True), (6, False), (7, False)])
def test_blocks_of_one_token_and_of_all_are_causal_and_bidirectional(size, like):
    model, params, tokens = _init(_config(block_size=size))
    want = models.Transformer(_config(causal=like))
    got = _apply(model, {"params": params}, tokens)
    chex.assert_trees_all_close(got, _apply(want, {"params": params}, tokens), atol=1e-6)


def test_a_block_reads_itself_and_what_is_before_it():
    model, params, tokens = _init(_config(block_size=2, num_layers=1))
    place = np.arange(6)
    want = place[None] // 2 <= place[:, None] // 2
    np.testing.assert_array_equal(_influence(model, params, tokens[:1]) > 0, want)
    bare = _apply(model, {"params": params}, tokens)
    for left in (0, 1):  # blocks count the tokens that are there
        valid = np.zeros((3, 7), bool)
        valid[:, left : left + 6] = True
        padded = np.full((3, 7), 7)
        padded[:, left : left + 6] = tokens
        got = _apply(model, {"params": params}, jnp.asarray(padded), valid_BL=jnp.asarray(valid))
        chex.assert_trees_all_close(got[:, left : left + 6], bare, atol=1e-5)


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


@pytest.mark.parametrize("positions", members.quick(POSITIONS, ["alibi", "learned"]))
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


def test_internals_are_layer_by_layer_whether_scanned_or_not():
    model, params, tokens = _init(_config())
    _, sown = _apply(model, {"params": params}, tokens, mutable="intermediates")
    blocks = [sown["intermediates"][f"blocks_{layer}"]["attention"] for layer in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), params["blocks_0"], params["blocks_1"])
    scanned = {k: v for k, v in params.items() if not k.startswith("blocks_")}
    scanned |= {"blocks": {"block": stacked}}
    for config, held in ((_config(), params), (_config(scan_layers=True), scanned)):
        got = jax.jit(models.make_internals_fn(models.Transformer(config)))(held, tokens)
        for name in ("scores_BNLS", "weights_BNLS", "context_BLNH"):
            want = np.stack([block[name][0] for block in blocks])
            assert np.abs(want[0] - want[1]).max() > 0.01
            np.testing.assert_allclose(got[name.split("_")[0]], want, atol=1e-5)


@pytest.mark.slow
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


ROW_CASES = {
    "radd": models.radd(11, width=16, max_len=8, dropout=0.0),
    "several heads": models.radd(11, width=16, num_heads=4, num_kv_heads=2, dropout=0.0),
    "no positions": models.radd(11, width=16, num_heads=2, positions="none", dropout=0.0),
    "interleaved": models.radd(11, width=16, rope_pairing="interleaved", dropout=0.0),
    "causal": models.radd(11, width=16, causal=True, dropout=0.0),
    "two layers": models.radd(11, width=16, num_layers=2, dropout=0.0),
    "alibi": models.radd(11, width=16, num_layers=2, positions="alibi", dropout=0.0),
    "gpt2": models.gpt2(11, num_layers=1, width=16, num_heads=2, max_len=8, dropout=0.0),
    "scanned": models.gpt2(
        11, num_layers=2, width=16, num_heads=2, max_len=8, dropout=0.0, scan_layers=True
    ),
    "remat": models.gpt2(11, num_layers=2, width=16, num_heads=2, dropout=0.0, remat=True),
    "attention only": models.attention_only(11, width=16),
    "blocks": models.radd(11, width=16, block_size=2, dropout=0.0),
}
# Many rows are taken out of all contexts; few have queries of their own.
ROWS = {"many": np.array([0, 3, 4, 5, 11, 12, 13, 40, 41, 60, 62]), "few": np.array([1, 17, 95])}


def _check_rows(make_apply_fn, config, rate, rows_R, **kwargs):
    """Logits and gradients at rows are those of the whole model there."""
    embed = rate if config.positions == "learned" else 0.0
    config = dataclasses.replace(config, dropout=rate, embed_dropout=embed, attention_dropout=embed)
    kwargs["rngs"] = {"dropout": jax.random.key(9)} if rate else None
    model, params, tokens = _init(config, batch=16)
    unused_R = np.append(rows_R, [tokens.size, tokens.size])

    # One program a side: run operation by operation, each would be compiled on its own.
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def whole(params):
        logits = models.make_apply_fn(model)(params, tokens, **kwargs)
        logits = logits.reshape(-1, 11)[rows_R]
        return jnp.sum(jnp.sin(logits)), logits

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def rows(params):
        logits = make_apply_fn(model)(params, tokens, rows_R=unused_R, **kwargs)
        return jnp.sum(jnp.sin(logits[: len(rows_R)])), logits

    (_, want), want_grads = whole(params)
    (_, got), got_grads = rows(params)
    got, unused = np.split(got, [len(rows_R)])
    chex.assert_trees_all_close(got, want, atol=1e-5)
    # Some gradients are zero but for rounding (keys' biases): one scale for all leaves.
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want_grads))
    chex.assert_trees_all_close(got_grads, want_grads, atol=1e-5 * scale)
    assert unused.shape == (2, 11) and np.isfinite(unused).all()
    return model, params, tokens


QUICK_ROWS = ("causal", 0.3), ("alibi", 0.3), ("scanned", 0.3), ("gpt2", 0.0), ("blocks", 0.0)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        case if case in QUICK_ROWS else members.slow(case)
        for case in itertools.product(ROW_CASES, (0.0, 0.3))
    ],
)
def test_rows_are_those_of_the_whole(name, rate):
    for rows_R in ROWS.values():
        _check_rows(models.make_apply_fn, ROW_CASES[name], rate, rows_R)


@pytest.mark.parametrize(
    "name", members.quick(["causal", "alibi", "scanned", "blocks"], ["causal", "blocks"])
)
def test_rows_are_those_of_the_whole_around_padding(name):
    valid = np.broadcast_to(np.arange(6) // 2 != 1, (16, 6))
    inside = {key: rows[rows % 6 // 2 != 1] for key, rows in ROWS.items()}
    for rows_R in inside.values():
        _check_rows(models.make_apply_fn, ROW_CASES[name], 0.0, rows_R, valid_BL=valid)


@pytest.mark.parametrize(
    "name",
    members.quick(
        ["radd", "several heads", "no positions", "interleaved", "causal", "blocks"],
        ["several heads", "blocks"],
    ),
)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_table_of_the_tokens_is_the_model(name, rate):
    config = ROW_CASES[name]
    taken = []

    def make_apply_fn(model):
        apply_fn = token_table.make_apply_fn(model)
        with_table = functools.partial(apply_fn, rngs={"dropout": jax.random.key(9)})
        tokens = np.zeros((16, 6), int)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        text = str(jax.make_jaxpr(lambda p: with_table(p, tokens, rows_R=np.arange(3)))(params))
        taken.append("[11,16]" in text)
        return apply_fn

    _check_rows(make_apply_fn, config, rate, ROWS["many"])
    assert all(taken)


def test_a_table_is_left_where_it_is_wrong_or_no_saving():
    model, params, tokens = _init(ROW_CASES["radd"], batch=16)
    fast, plain = token_table.make_apply_fn(model), models.make_apply_fn(model)
    valid = np.broadcast_to(np.arange(6) // 2 != 1, tokens.shape)
    rows_R = np.array([1, 6, 11])
    for kwargs in (dict(valid_BL=valid, rows_R=rows_R), {}):
        with_table, without = (
            jax.jit(functools.partial(fn, **kwargs))(params, tokens) for fn in (fast, plain)
        )
        chex.assert_trees_all_equal(with_table, without)
    for name in ("two layers", "gpt2", "alibi"):
        with pytest.raises(ValueError, match="a table needs one layer"):
            token_table.make_apply_fn(models.Transformer(ROW_CASES[name]))
    for change in ("token_types", "embed_norm", "window", "shift_logits", "scan_layers"):
        assert not token_table.is_exact(dataclasses.replace(model.config, **{change: True}))


@pytest.mark.parametrize("where", ["embed_dropout", "attention_dropout"])
def test_a_table_does_not_drop_positions(where, monkeypatch):
    whole = lambda model: lambda *given, **how: "whole"  # noqa: E731
    monkeypatch.setattr(token_table.transformer, "make_apply_fn", whole)
    config = dataclasses.replace(ROW_CASES["radd"], **{where: 0.5})
    apply_fn = token_table.make_apply_fn(models.Transformer(config))
    how = dict(rows_R=np.arange(3), rngs={"dropout": jax.random.key(0)})
    assert apply_fn({}, np.zeros((16, 6), int), **how) == "whole"


def test_nothing_is_computed_elsewhere_after_the_last_attention():
    """Shapes of the products: the last query, MLP and head see the rows alone."""
    model, params, tokens = _init(_config(mlp_width=24), batch=16)
    everywhere = "f32[96,24]"  # the first layer's MLP: 16 rows of 6 tokens, on one axis
    for rows, queries in ((4, 4), (40, 16 * 6)):
        jaxpr = jax.make_jaxpr(
            lambda p, n=rows: model.apply({"params": p}, tokens, rows_R=jnp.arange(n))
        )(params)
        text = str(jaxpr)
        assert f"f32[{rows},24]" in text and f"f32[{rows},11]" in text
        assert everywhere in text and "f32[16,6,11]" not in text and "f32[96,11]" not in text
        ups = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        asked = [e.outvars[0].aval.shape for e in ups if e.outvars[0].aval.shape[-2:] == (2, 8)]
        assert sum(np.prod(shape) == queries * 16 for shape in asked) >= 1


def test_bfloat16_computes_with_float32_parameters():
    model, params, tokens = _init(_config(dtype=jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits, sown = _apply(model, {"params": params}, tokens, mutable="intermediates")
    assert logits.dtype == jnp.float32
    internals = sown["intermediates"]["blocks_0"]["attention"]
    assert internals["scores_BNLS"][0].dtype == jnp.float32
    assert internals["context_BLNH"][0].dtype == jnp.bfloat16
    exact = _apply(models.Transformer(_config()), {"params": params}, tokens)
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
    params = jax.jit(zeros.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    assert not np.any(params["head"]["kernel"]) and not np.any(params["head"]["bias"])
    assert (params["final_norm"]["bias"] == 1).all()
    radd = models.radd(54, width=64)
    assert (radd.mlp_width, radd.dropout, radd.norm_bias_init) == (256, 0.02, 1.0)


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("width", dict(width=15)),
        ("head_dim", dict(width=6, num_heads=2)),
        ("block_size", dict(block_size=0)),
        ("block_size", dict(block_size=2, causal=True)),
        ("block_size", dict(block_size=2, shift_logits=True)),
        ("width must be even", dict(positions="sinusoidal", width=15, num_heads=3)),
        ("num_kv_heads", dict(num_heads=4, num_kv_heads=3)),
        ("positions", dict(positions="rotary")),
        ("norm", dict(norm="batchnorm")),
        ("max_len", dict(positions="learned", max_len=None)),
        ("dropout", dict(dropout=1.0)),
        ("num_layers", dict(num_layers=0)),
        ("num_kv_heads", dict(num_kv_heads=0)),
        ("head_dim", dict(head_dim=-2)),
        ("max_len", dict(max_len=0)),
        ("norm_eps", dict(norm_eps=-1.0)),
        ("norm_eps", dict(norm_eps=float("nan"))),
        ("rope_base", dict(rope_base=-1.0)),
        ("embed_std", dict(embed_std=-1.0)),
        ("norm_bias_init", dict(norm_bias_init=float("inf"))),
    ],
)
def test_a_bad_configuration_names_the_field(field, overrides):
    with pytest.raises(ValueError, match=field):
        _config(**overrides)


def test_arguments_of_other_shapes():
    model, params, tokens = _init(_config())
    for given in (dict(valid_BL=np.ones((1, 6), bool)), dict(rows_R=np.ones((3, 6), int))):
        with pytest.raises(AssertionError):
            _apply(model, {"params": params}, tokens, **given)


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


def test_alibi_takes_slopes_times_distances_from_the_scores():
    model, params, tokens = _init(_config(num_layers=1, positions="alibi"))
    sown = jax.jit(models.make_internals_fn(model))(params, tokens)
    distance = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    taken = layers.alibi_slopes(2)[:, None, None] * distance[None]
    biased = sown["scores"][0] / np.sqrt(8) - taken[None]
    chex.assert_trees_all_close(sown["weights"][0], jax.nn.softmax(biased, -1), atol=1e-6)


def test_every_place_drops_out_at_its_own_rate_by_its_own_key(monkeypatch):
    told = []

    def spy(x, rate, key, row=None):
        told.append((rate, tuple(jax.random.key_data(key).tolist())))
        return x

    model, params, tokens = _init(_config(dropout=0.1, embed_dropout=0.2, attention_dropout=0.3))
    monkeypatch.setattr(layers, "dropout", spy)
    model.apply({"params": params}, tokens, rngs={"dropout": jax.random.key(0)})
    rates, keys = zip(*told, strict=True)
    assert rates == (0.2, *[0.3, 0.1, 0.1] * 2)  # weights, attention, MLP
    assert len(set(keys)) == 7


def test_gpt2_starts_smaller_where_it_writes_into_the_stream():
    config = models.gpt2(50, num_layers=2, width=64, num_heads=2, max_len=8, embed_std=0.5)
    params = jax.jit(models.Transformer(config).init)(jax.random.key(0), jnp.zeros((1, 1), int))
    block = params["params"]["blocks_1"]
    for layer, want in (
        (block["attention"]["query"], 0.02),
        (block["mlp"]["up"], 0.02),
        (block["attention"]["out"], 0.01),
        (block["mlp"]["down"], 0.01),
    ):
        np.testing.assert_allclose(layer["kernel"].std(), want, rtol=0.06)
    np.testing.assert_allclose(params["params"]["embed"]["embedding"].std(), 0.5, rtol=0.06)


def test_sizes_of_gpt2_are_the_published_ones():
    counts = (124_439_808, 354_823_168, 774_030_080, 1_557_611_200)
    for size, count in zip(presets.GPT2_SIZES.values(), counts, strict=True):
        model = models.Transformer(models.gpt2(**size, scan_layers=True))
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count
        assert model.config.head_dim == 64


def test_a_norm_is_exact_far_from_zero():
    x = 4096.0 + np.arange(16.0, dtype=np.float32)[None] / 8
    got, _ = layers.make_norm(_config()).init_with_output(jax.random.key(0), x)
    want = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_layers_start_uniform_below_one_over_the_root_of_their_inputs():
    config = models.radd(400, width=16, num_heads=4, mlp_width=64)
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    attention, mlp = (params["blocks_0"][name] for name in ("attention", "mlp"))
    for leaf, inputs in (
        (params["embed"]["embedding"], 16),
        (attention["out"]["kernel"], 16),
        (mlp["up"]["bias"], 16),
        (mlp["down"]["kernel"], 64),
        (params["head"]["bias"], 16),
    ):
        assert 0.9 < np.abs(leaf).max() * np.sqrt(inputs) <= 1
