import functools
import types

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest

from dirasym import models, objectives, training
from dirasym.compile import compile_scan
from dirasym.models import lora
from dirasym.rows import PerRow
from dirasym.types import Batch

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6) % 11


def _model(causal=True, **overrides):
    config = dict(vocab_size=11, num_layers=2, width=16, num_heads=4, num_kv_heads=2)
    return models.Transformer(models.TransformerConfig(causal=causal, **(config | overrides)))


def _config(**overrides):
    base = dict(rank=4, alpha=8.0, targets=lora.GPT2_TARGETS, fused=lora.QKV)
    return models.LoRAConfig(**(base | overrides))


def _variables(adapted, seed=0, noise=0.3):
    """Initial variables, and the same with adapters that do something."""
    start = jax.jit(adapted.init)(jax.random.key(seed), TOKENS)
    flat, unravel = jax.flatten_util.ravel_pytree(start["lora"])
    moved = flat + noise * jax.random.normal(jax.random.key(seed + 1), flat.shape)
    return start, {"params": start["params"], "lora": unravel(moved)}


def _merge(variables, config):
    merge = jax.jit(functools.partial(lora.merge, config=config))
    return merge(variables["params"], variables["lora"])


class LoRATest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_at_the_start_outputs_and_parameter_paths_are_the_models_own(self):
        model = _model()
        start, moved = _variables(models.LoRA(model, _config()))
        own = jax.jit(model.init)(jax.random.key(0), TOKENS)
        chex.assert_trees_all_equal(start["params"], own["params"])
        adapted = self.variant(models.LoRA(model, _config()).apply)
        chex.assert_trees_all_equal(adapted(start, TOKENS), self.variant(model.apply)(own, TOKENS))
        assert np.abs(adapted(moved, TOKENS) - adapted(start, TOKENS)).max() > 0.1


@pytest.mark.parametrize(
    ("scan_layers", "remat", "fused"),
    [
        members.slow((False, False, lora.QKV)),
        (True, True, lora.QKV),
        members.slow((False, True, ())),
    ],
)
def test_merged_weights_give_the_same_logits(scan_layers, remat, fused):
    model = _model(scan_layers=scan_layers, remat=remat, qkv_bias=True)
    config = _config(fused=fused)
    _, moved = _variables(models.LoRA(model, config))
    merged = _merge(moved, config)
    adapted = jax.jit(models.LoRA(model, config).apply)(moved, TOKENS)
    chex.assert_trees_all_close(
        jax.jit(model.apply)({"params": merged}, TOKENS), adapted, atol=1e-5
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, moved["params"])


@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_calls_and_internals_are_those_of_the_merged_weights(scan_layers):
    model, config = _model(scan_layers=scan_layers), _config()
    adapted = models.LoRA(model, config)
    _, moved = _variables(adapted)
    merged = _merge(moved, config)
    chex.assert_trees_all_close(
        jax.jit(lora.make_internals_fn(adapted))(moved, TOKENS),
        jax.jit(models.make_internals_fn(model))(merged, TOKENS),
        atol=1e-5,
        rtol=1e-5,
    )
    valid_BS, pieces, cache = np.ones(TOKENS.shape, bool), [], {}
    extend = jax.jit(lora.make_extend_fn(adapted))
    for start, stop in ((0, 4), (4, 6)):
        logits, cache = extend(moved, cache, TOKENS[:, start:stop], start, valid_BS)
        pieces.append(logits)
    whole = jax.jit(model.apply)({"params": merged}, TOKENS)
    chex.assert_trees_all_close(jnp.concatenate(pieces, axis=1), whole, atol=1e-5)


@pytest.mark.parametrize("scan_layers", members.quick([False, True], [False]))
def test_scored_positions_alone_give_the_adapters_the_same_gradients(scan_layers):
    model = _model(scan_layers=scan_layers, tied_head=True)
    _, variables = _variables(models.LoRA(model, _config()))
    scored_BL = np.broadcast_to(np.arange(6) >= 4, TOKENS.shape)
    batch = Batch(TOKENS, np.arange(2), 2, scored_BL=scored_BL)

    def grads(capacity):
        apply_fn = lora.make_apply_fn(models.LoRA(model, _config()))

        def loss(adapters):
            params = variables | {"lora": adapters}
            return objectives.next_token(apply_fn, params, batch, capacity=capacity)[0]

        return jax.jit(jax.grad(loss))(variables["lora"])

    for capacity in (PerRow(2), 0.5):
        chex.assert_trees_all_close(grads(capacity), grads(None), atol=1e-5)


def test_scanned_layers_have_adapters_of_their_own():
    start, _ = _variables(models.LoRA(_model(scan_layers=True), _config()))
    a = start["lora"]["blocks"]["block"]["attention"]["fused_a"]
    chex.assert_shape(a, (2, 16, 4))
    assert not np.allclose(a[0], a[1])


def test_any_linen_model_and_the_formula():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="up")(nn.DenseGeneral((2, 3), axis=(-2, -1), name="mix")(x))

    config = models.LoRAConfig(rank=2, alpha=3.0, targets="mix")
    adapted = models.LoRA(Net(), config)
    x = jax.random.normal(jax.random.key(0), (5, 4, 2))
    variables = adapted.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, variables["lora"]) == {"mix": {"a": (8, 2), "b": (2, 6)}}
    b = jax.random.normal(jax.random.key(2), (2, 6))
    variables["lora"]["mix"]["b"] = b
    hidden = Net().bind({"params": variables["params"]})
    p = hidden.variables["params"]
    h = jnp.tensordot(x, p["mix"]["kernel"], 2) + p["mix"]["bias"][None]
    h += 1.5 * (x.reshape(5, 8) @ variables["lora"]["mix"]["a"] @ b).reshape(5, 2, 3)
    want = h @ p["up"]["kernel"] + p["up"]["bias"][None, None]
    chex.assert_trees_all_close(adapted.apply(variables, x), want, atol=1e-5)


def _size(adapters):
    return sum(x.size for x in jax.tree.leaves(adapters))


@pytest.mark.parametrize(("rank", "count"), [(8, 811_008), (64, 6_488_064), (256, 25_952_256)])
def test_counts_at_gpt2_small_equal_pefts(rank, count):
    adapted = models.LoRA(models.Transformer(models.gpt2()), _config(rank=rank))
    shapes = jax.eval_shape(adapted.init, jax.random.key(0), TOKENS)["lora"]
    assert _size(shapes) == count


@pytest.mark.parity
def test_counts_equal_pefts_live():
    import peft
    import transformers

    small = dict(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=4)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**small, bos_token_id=0, eos_token_id=0)
    )
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True
    )
    trainable, _ = peft.get_peft_model(theirs, settings).get_nb_trainable_parameters()
    gpt2 = models.gpt2(vocab_size=11, max_len=8, width=16, num_layers=2, num_heads=4)
    shapes = jax.eval_shape(
        models.LoRA(models.Transformer(gpt2), _config()).init, jax.random.key(0), TOKENS
    )
    assert _size(shapes["lora"]) == trainable


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_acts_on_the_adapters_input_and_is_shared_by_fused_layers(scan_layers):
    model = _model(scan_layers=scan_layers)
    adapted = models.LoRA(model, _config(dropout=0.5))
    start, moved = _variables(adapted)
    rngs = {"dropout": jax.random.key(3)}
    apply = jax.jit(adapted.apply)
    dropped = apply(moved, TOKENS, rngs=rngs)
    assert np.abs(dropped - apply(moved, TOKENS)).max() > 0.01
    chex.assert_trees_all_equal(apply(moved, TOKENS, rngs=rngs), dropped)
    chex.assert_trees_all_close(apply(start, TOKENS, rngs=rngs), apply(start, TOKENS), atol=1e-6)
    # On the same input with the same B, fused layers add the same: their masks are the same.
    x = jnp.ones((3, 16))

    class Siblings(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.Dense(8, name=name)(x) for name in lora.QKV]

    adapted = models.LoRA(Siblings(), _config(dropout=0.5, targets="."))
    variables = adapted.init(jax.random.key(0), x)
    for name in lora.QKV:
        variables["lora"][name]["b"] = jnp.ones((4, 8))
        variables["params"][name]["kernel"] = jnp.zeros((16, 8))
    query, key, value = adapted.apply(variables, x, rngs=rngs)
    chex.assert_trees_all_equal(query, key, value)
    assert np.abs(query - adapted.apply(variables, x)[0]).max() > 0.01
    # One number of the input, dropped or doubled, takes all of its product along.
    query, whole = (adapted.apply(variables, jnp.eye(16), **how)[0] for how in ({"rngs": rngs}, {}))
    assert set(np.abs(np.round(query / whole, 3)).ravel().tolist()) == {0.0, 2.0}


def test_a_head_that_is_the_embedding_has_no_adapter():
    """Also where another target matches, for which the head was left out in silence."""
    both = _config(targets=f"{lora.GPT2_TARGETS}|head$")
    models.LoRA(_model(), both).init(jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match="match the head, which is the embedding"):
        models.LoRA(_model(tied_head=True), both).init(jax.random.key(0), TOKENS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(targets="c_attn"), "match no linear layer"),
        (dict(rank=17), "rank 17 exceeds .*16 × 16"),
        (dict(rank=0), "rank must be positive"),
        (dict(alpha=float("nan")), "alpha must be a finite number, got nan"),
        (dict(targets="("), "is not a regex"),
        (dict(dropout=1.0), "dropout must be in"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        models.LoRA(_model(), _config(**settings)).init(jax.random.key(0), TOKENS)


def test_training_moves_the_adapters_and_holds_state_for_them_alone():
    model = _model(param_dtype=jnp.bfloat16, num_layers=1)
    adapted = models.LoRA(model, _config(dropout=0.1))
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    adapters = lora.init_adapters(adapted, params, jax.random.key(1))
    state = training.create_state(
        lora.make_apply_fn(adapted),
        {"lora": adapters},
        training.make_optimizer(1e-2, weight_decay=0.01),
        jax.random.key(2),
        frozen={"params": params},
    )
    moments = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(moments) == 2 * _size(adapters)
    step = functools.partial(training.train_step, objective=objectives.next_token)
    data = {"tokens_BL": TOKENS}
    run = compile_scan(step, num_steps=30, batch_size=2)
    trained, metrics = run(state, data)
    assert metrics["loss"][-1] < 0.7 * metrics["loss"][0]
    chex.assert_trees_all_equal(trained.frozen, {"params": params})  # and not donated
    assert {x.dtype for x in jax.tree.leaves(trained.params)} == {jnp.dtype(jnp.float32)}
    assert "lora" in trained.variables(trained.params)


def test_seeds_share_what_is_frozen():
    model = _model(num_layers=1)
    adapted = models.LoRA(model, _config())
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    apply_fn, optimizer = lora.make_apply_fn(adapted), optax.sgd(0.1)

    def state(seed):
        return training.create_state(
            apply_fn,
            {"lora": lora.init_adapters(adapted, params, jax.random.key(seed))},
            optimizer,
            jax.random.key(seed),
            frozen={"params": params},
        )

    step = functools.partial(training.train_step, objective=objectives.next_token)
    kwargs = dict(num_steps=3, batch_size=2)
    data = {"tokens_BL": TOKENS}
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x), *(state(seed).replace(frozen=None) for seed in (1, 2))
    ).replace(frozen={"params": params})
    together, _ = compile_scan(step, over_seeds=True, **kwargs)(stacked, data)
    alone, _ = compile_scan(step, **kwargs)(state(2), data)
    last = jax.tree.map(lambda x: x[1], together.params)
    chex.assert_trees_all_close(last, alone.params, atol=1e-6)
    chex.assert_trees_all_equal_shapes(together.frozen, {"params": params})


def test_an_adapted_model_is_told_all_that_a_model_is_told():
    told = dict(valid_BL=TOKENS > 0, rows_R=np.arange(3), rngs={"dropout": jax.random.key(0)})
    spy = types.SimpleNamespace(apply=lambda variables, tokens, **how: how, model=_model())
    assert lora.make_apply_fn(spy)({}, TOKENS, **told) == told


def test_adapters_begin_uniform_below_one_over_the_root_of_the_inputs():
    adapted = models.LoRA(_model(num_layers=1, num_kv_heads=4), _config(rank=16))
    params = jax.jit(adapted.model.init)(jax.random.key(0), TOKENS)["params"]
    adapters = lora.init_adapters(adapted, params, jax.random.key(1))
    a = adapters["blocks_0"]["attention"]["fused_a"]
    assert a.size == 256 and 0.9 < 4 * jnp.abs(a).max() <= 1  # of 16 inputs
    assert not adapters["blocks_0"]["attention"]["query"]["b"].any()


def test_merged_weights_are_rounded_once_to_their_own_dtype():
    kernel, a, b = jnp.full((2, 3), 256.0), jnp.ones((2, 1)), jnp.full((1, 3), 1.5)
    params = {"up": {"kernel": kernel.astype(jnp.bfloat16)}}
    config = models.LoRAConfig(rank=1, alpha=0.7, targets="up")
    (merged,) = jax.tree.leaves(lora.merge(params, {"up": {"a": a, "b": b}}, config))
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, jnp.bfloat16(256 + 0.7 * 1.5))
