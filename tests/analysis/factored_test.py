"""Factored gradient products are those of formed gradients, in any framework."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest
from flax import nnx

from dirasym import models
from dirasym.analysis import alignment
from dirasym.models import lora

VOCAB, LENGTH, EXAMPLES = 7, 5, 3


def _tokens():
    return np.random.default_rng(1).integers(0, VOCAB, (EXAMPLES, LENGTH))


def _vectors(*shape):
    return np.random.default_rng(2).normal(size=(EXAMPLES, *shape))


def _cast(params, dtype):
    """Random parameters: none at the zeros and ones where an error would hide."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    scaled = [x + 0.3 * rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
    return structure.unflatten([jnp.asarray(x, dtype) for x in scaled])


def _linen(dtype, lora_config=None, **kwargs):
    config = models.TransformerConfig(
        vocab_size=VOCAB, num_layers=2, width=8, num_heads=2, causal=False,
        dtype=dtype, param_dtype=dtype, **kwargs,
    )  # fmt: skip
    model = models.Transformer(config)
    if lora_config is not None:
        model = lora.LoRA(model, lora_config)
    variables = jax.jit(model.init)(jax.random.key(0), _tokens()[:1])
    apply = lambda v, tokens_L: model.apply(v, tokens_L[None])[0]  # noqa: E731
    if lora_config is None:
        params = variables["params"]
        return lambda p, x: apply({"params": p}, x), params, _tokens()
    return apply, dict(variables), _tokens()


def _adapted(dtype):
    return _linen(dtype, lora.LoRAConfig(rank=2, alpha=4.0, targets="query$|value$|mlp/up$"))


def _nnx(dtype):
    class Model(nnx.Module):
        def __init__(self, rngs):
            how = dict(rngs=rngs, dtype=dtype, param_dtype=dtype)
            self.embed = nnx.Embed(VOCAB, 6, **how)
            self.layers = nnx.List([nnx.Linear(6, 6, **how) for _ in range(2)])
            self.attention = nnx.MultiHeadAttention(2, 6, decode=False, **how)
            self.head = nnx.Linear(6, VOCAB, **how)

        def __call__(self, tokens_L):
            x_LD = self.embed(tokens_L)
            x_LD = x_LD + self.attention(x_LD[None])[0]
            for layer in self.layers:
                x_LD = nnx.gelu(layer(x_LD))
            return self.head(x_LD)

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, rest)(x), params, _tokens()


def _nnx_remat(dtype):
    """Each layer returns its state, unchanged, from the checkpoint."""

    class Layer(nnx.Module):
        def __init__(self, rngs):
            how = dict(rngs=rngs, dtype=dtype, param_dtype=dtype)
            self.norm, self.linear = nnx.LayerNorm(6, **how), nnx.Linear(6, 6, **how)

        @nnx.remat
        def __call__(self, x_LD):
            return x_LD + nnx.gelu(self.linear(self.norm(x_LD)))

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(VOCAB, 6, rngs=rngs, dtype=dtype, param_dtype=dtype)
            self.layers = nnx.List([Layer(rngs) for _ in range(2)])

        def __call__(self, tokens_L):
            x_LD = self.embed(tokens_L)
            for layer in [*self.layers, self.layers[0]]:
                x_LD = layer(x_LD)
            return self.embed.attend(x_LD)

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, rest)(x), params, _tokens()


def _equinox(dtype):
    eqx = pytest.importorskip("equinox")

    keys = jax.random.split(jax.random.key(0), 3)
    embed = eqx.nn.Embedding(VOCAB, 6, key=keys[0])
    attention = eqx.nn.MultiheadAttention(2, 6, use_output_bias=True, key=keys[1])
    mlp = eqx.nn.MLP(6, VOCAB, 8, 2, key=keys[2])
    params, static = eqx.partition((embed, attention, mlp), eqx.is_inexact_array)

    def apply(params, tokens_L):
        embed, attention, mlp = eqx.combine(params, static)
        x_LD = jax.vmap(embed)(tokens_L)
        return jax.vmap(mlp)(x_LD + attention(x_LD, x_LD, x_LD))

    return apply, params, _tokens()


def _haiku(dtype):
    hk = pytest.importorskip("haiku")

    def forward(tokens_L):
        x_LD = hk.Embed(VOCAB, 6)(tokens_L)
        x_LD = x_LD + hk.MultiHeadAttention(2, 3, w_init=hk.initializers.RandomNormal())(
            x_LD, x_LD, x_LD
        )
        return hk.nets.MLP([8, VOCAB])(x_LD)

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, model.init(jax.random.key(0), _tokens()[0]), _tokens()


def _plain(dtype):
    """Reshaped, transposed and cast parameters, one of them used twice."""
    shapes = dict(embed=(VOCAB, 2, 3), w=(6, 2, 3), both=(6, 6), head=(VOCAB, 6))

    def apply(p, tokens_L):
        x_LD = p["embed"][tokens_L].reshape(LENGTH, 6)
        x_LD = jnp.tanh(x_LD @ p["w"].reshape(6, 6) @ p["both"])
        x_LD = x_LD @ p["both"].T + x_LD @ p["both"][None].squeeze(0)
        return x_LD @ p["head"].T

    return apply, {name: jnp.zeros(shape) for name, shape in shapes.items()}, _tokens()


def _convolution(dtype):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x_BHWC):
            x = nn.Conv(3, (3, 2), strides=(2, 1), dtype=dtype, param_dtype=dtype)(x_BHWC)
            x = nn.Conv(2, (2, 2), kernel_dilation=(1, 2), dtype=dtype, param_dtype=dtype)(
                nn.gelu(x)
            )
            return nn.Dense(VOCAB, dtype=dtype, param_dtype=dtype)(x.reshape(x.shape[0], -1))

    images = _vectors(1, 6, 5, 2).astype(dtype)
    model = Model()
    return (
        lambda p, x: model.apply({"params": p}, x),
        model.init(jax.random.key(0), images[0])["params"],
        images,
    )


def _gru(dtype):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens_L):
            x_LD = nn.Embed(VOCAB, 4, dtype=dtype, param_dtype=dtype)(tokens_L)
            cell = nn.GRUCell(5, dtype=dtype, param_dtype=dtype)
            states = nn.RNN(cell)(x_LD[None])[0]
            return nn.Dense(VOCAB, dtype=dtype, param_dtype=dtype)(states)

    model = Model()
    return (
        lambda p, x: model.apply({"params": p}, x),
        model.init(jax.random.key(0), _tokens()[0])["params"],
        _tokens(),
    )


def _haiku_gru(dtype):
    """Its state's matrix and its bias are split by gates."""
    hk = pytest.importorskip("haiku")

    def forward(tokens_L):
        cell = hk.GRU(5)
        states = hk.dynamic_unroll(cell, hk.Embed(VOCAB, 4)(tokens_L), cell.initial_state(None))[0]
        return hk.Linear(VOCAB)(states)

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, model.init(jax.random.key(0), _tokens()[0]), _tokens()


def _fused(dtype):
    """Queries, keys and values, and a gate, as columns and as rows of one matrix each."""
    shapes = dict(embed=(VOCAB, 4), qkv=(4, 12), bias=(12,), gated=(12, 4), head=(VOCAB, 6))

    def apply(p, tokens_L):
        x_LD = p["embed"][tokens_L]
        kernels, biases = jnp.split(p["qkv"], 3, axis=1), jnp.split(p["bias"], 3)
        q, k, v = (x_LD @ w + b[None] for w, b in zip(kernels, biases, strict=True))
        x_LD = jax.nn.softmax(q @ k.T) @ v
        x_LF = (x_LD @ p["gated"][:6].T) * jax.nn.gelu(x_LD @ p["gated"][6:].T)
        return x_LF @ p["head"].T

    return apply, {name: jnp.zeros(shape) for name, shape in shapes.items()}, _tokens()


def _experts(dtype):
    """A mixture of experts: products with an axis of experts on both sides."""
    shapes = dict(embed=(VOCAB, 4), gate=(4, 3), up=(3, 4, 5), down=(3, 5, VOCAB))

    def apply(p, tokens_L):
        x_LD = p["embed"][tokens_L]
        gates_LE = jax.nn.softmax(x_LD @ p["gate"])
        hidden_ELF = jax.nn.gelu(jnp.einsum("eld,edf->elf", jnp.stack([x_LD] * 3), p["up"]))
        return jnp.einsum("le,elf,efv->lv", gates_LE, hidden_ELF, p["down"])

    return apply, {name: jnp.zeros(shape) for name, shape in shapes.items()}, _tokens()


CASES = {  # what makes it, and last names of what cannot be factored
    "plain": (_linen, set()),
    "scan": (functools.partial(_linen, scan_layers=True), set()),
    "remat": (functools.partial(_linen, remat=True), set()),
    "scan and remat": (functools.partial(_linen, scan_layers=True, remat=True), set()),
    "tied": (functools.partial(_linen, tied_head=True, mlp="swiglu", norm="rmsnorm"), set()),
    "grouped queries": (functools.partial(_linen, num_kv_heads=1, positions="learned", max_len=9), set()),  # noqa: E501
    "lora": (_adapted, set()),
    "nnx": (_nnx, set()),
    "nnx remat": (_nnx_remat, set()),
    "equinox": (_equinox, set()),
    "haiku": (_haiku, set()),
    "function": (_plain, set()),
    "convolution": (_convolution, set()),
    "gru": (_gru, set()),
    "haiku gru": (_haiku_gru, set()),
    "fused": (_fused, set()),
    "experts": (_experts, {"up"}),
}  # fmt: skip


def _losses(apply):
    def loss(params, x, position):
        logits_LV = apply(params, x)
        label = jnp.int32(position % VOCAB)
        return optax.softmax_cross_entropy_with_integer_labels(logits_LV[position], label)

    return functools.partial(loss, position=0), functools.partial(loss, position=-1)


def _assert_equal(got, want, rtol):
    assert got.inner.keys() == want.inner.keys()
    total = np.max(want.norm_fwd["total"])
    for block, norm in want.norm_fwd.items():
        size = np.asarray(norm * want.norm_rev[block])
        if np.max(size) < (1e-5 * total) ** 2:  # zero but for rounding: biases of keys
            continue
        assert (np.abs(got.inner[block] - want.inner[block]) <= rtol * size).all(), block
        np.testing.assert_allclose(got.norm_fwd[block], norm, rtol=rtol, err_msg=block)


QUICK = ("function", "experts", "nnx remat", "fused")


@pytest.mark.parametrize("name", members.quick(CASES, QUICK))
def test_factored_is_direct_in_float64_and_float32(name):
    make, not_factored = CASES[name]

    def found(apply, params, examples, *methods):
        losses = _losses(apply)
        run = functools.partial(alignment.alignment, *losses, params, examples=examples)
        return [jax.tree.map(np.asarray, run(method=method)) for method in methods]

    with jax.enable_x64(True):
        apply, params, examples = make(jnp.float64)
        params = _cast(params, jnp.float64)
        want, factored = found(apply, params, examples, "direct", "factored")
    _assert_equal(factored, want, 1e-12)
    apply, like, examples = make(jnp.float32)
    rounded = jax.tree.map(lambda x, y: np.asarray(y, x.dtype), like, params)
    _assert_equal(found(apply, rounded, examples, "factored")[0], want, 1e-5)
    assert {p.removesuffix("/value").split("/")[-1] for p in factored.direct} == not_factored
    assert factored.direct_share == 0 if not not_factored else factored.direct_share < 1
    assert len(want.direct) == len(jax.tree.leaves(params)) and want.direct_share == 1.0
