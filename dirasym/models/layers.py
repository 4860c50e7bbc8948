"""Building blocks: positions, norms, attention and MLPs. They know shapes, no data and no loss."""

import dataclasses
import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import keys
from dirasym.types import Array

Positions = Literal["rope", "alibi", "sinusoidal", "learned", "none"]
Activation = Literal["gelu", "gelu_exact", "swiglu", "geglu"]

# ---------------------------------------------------------------------------------------
# Positions


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """LLaMA-3.1's stretching of slow RoPE planes (`rope_type: llama3` in Hugging Face configs).

    A plane that turns once in more than original_max_len / low_freq_factor tokens is slowed
    by `factor`; one that turns faster than once in original_max_len / high_freq_factor keeps
    its angle; between them the angle is interpolated linearly in original_max_len / wavelength.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


def plane_angles(
    head_dim: int, base: float = 10_000.0, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Angle of each RoPE plane per token of offset, in radians: float64 [head_dim / 2].

    θ_s = base^(-2(s-1)/D), s = 1..D/2 (Su et al., 2024), then `scaling` if any.

    Raises:
      ValueError: `head_dim` is odd or below 2, since planes take two coordinates each.
    """
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and positive for RoPE, got {head_dim}")
    angles = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return angles
    turns = scaling.original_max_len * angles / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return angles * (keep + (1 - keep) / scaling.factor)


def rotate(x: jax.Array, offset: Array, angles: Array, pairing: str = "half") -> jax.Array:
    """R(offset) x, where plane s of `x` turns by offset·angles[s].

    Args:
      x: [..., H].
      offset: broadcastable against x's leading axes, in tokens, of any sign.
      angles: [H/2], radians per token.
      pairing: which coordinates make plane s: "half" for (s, s + H/2), as LLaMA and RADD
        do, or "interleaved" for (2s, 2s + 1), as the theory is written.
    """
    cos, sin = (
        t.reshape((1,) * (x.ndim - t.ndim) + t.shape).astype(x.dtype)
        for t in cos_sin(offset, angles, jnp.promote_types(x.dtype, jnp.float32))
    )
    if pairing == "half":
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    first, second = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.reshape(x.shape)


def cos_sin(offset: Any, angles: Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """cos and sin of offset·angles [..., H/2].

    A float32 product offset·angle is off by 6e-8 of itself, which at 1000 tokens is 6e-5 of a
    turn's radian. So known offsets are multiplied in float64, and are right to the last digits of
    `dtype`. Traced integers are multiplied exactly with angles that are rounded to 2^32 parts of a
    turn: they are off by at most 7.3e-10 · |offset| radians.
    """
    if not isinstance(offset, jax.core.Tracer):
        turn: Array = np.multiply.outer(np.asarray(offset, np.float64), angles)
        return jnp.asarray(np.cos(turn), dtype), jnp.asarray(np.sin(turn), dtype)
    is_known = not isinstance(angles, jax.Array)
    if is_known and dtype == jnp.float32 and jnp.issubdtype(offset.dtype, jnp.integer):
        parts = np.round(angles / (2 * np.pi) * 2**32).astype(np.uint64).astype(np.uint32)
        turned = jnp.tensordot(offset.astype(jnp.uint32), parts, axes=0)
        turn = turned.astype(jnp.int32).astype(dtype) * np.float32(2 * np.pi / 2**32)
    else:
        turn = jnp.tensordot(offset.astype(dtype), jnp.asarray(angles, dtype), axes=0)
    return jnp.cos(turn), jnp.sin(turn)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Sinusoidal position embeddings (Vaswani et al., 2017), sines then cosines: [..., width]."""
    cos, sin = cos_sin(positions, plane_angles(width), jnp.float32)
    return jnp.concatenate([sin, cos], axis=-1)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slope per head (Press et al., 2022): 2^(-8n/N) for n = 1..N, N a power of two.

    Other N take the slopes of the power of two below, then every second one of the power above.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    more = 2.0 ** (-8 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([slopes, more])[:num_heads]


# ---------------------------------------------------------------------------------------
# Initialisation


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Uniform on ±1/√fan_in: PyTorch's default for the weight and bias of a linear layer."""

    def init(key, shape, dtype=jnp.float32):
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# ---------------------------------------------------------------------------------------
# Layers. `config` is a `transformer.TransformerConfig`.


def make_norm(config: Any, name: str | None = None):
    """LayerNorm, RMSNorm, or the identity."""
    if config.norm == "none":
        return lambda x: x
    kwargs = dict(
        epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.param_dtype, name=name
    )
    if config.norm == "rmsnorm":
        return nn.RMSNorm(**kwargs)
    # The two-pass variance: flax's fast one loses digits when the mean is large.
    return nn.LayerNorm(
        use_bias=config.norm_bias,
        bias_init=nn.initializers.constant(config.norm_bias_init),
        use_fast_variance=False,
        **kwargs,
    )


def dense(
    config: Any,
    features: int | tuple[int, ...],
    fan_in: int,
    *,
    use_bias: bool,
    axis: int | tuple[int, ...] = -1,
    residual: bool = False,
    init: str | None = None,
):
    """A linear layer in the configuration's dtypes; `init` replaces its initialisation.

    `residual` marks the layers that write into the residual stream, which GPT-2 starts
    smaller by √(2·layers).
    """
    kernel_init = bias_init = nn.initializers.zeros
    match init or config.init:
        case "uniform_fan_in":
            kernel_init = bias_init = uniform_fan_in(fan_in)
        case "normal":
            std = 0.02 / math.sqrt(2 * config.num_layers) if residual else 0.02
            kernel_init = nn.initializers.normal(std)
    return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=use_bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
    )


def dropout(x: jax.Array, rate: float, key: jax.Array | None, row: jax.Array | None = None):
    """Zeroes a share `rate` of x and scales up the rest; the identity without a key.

    With `row`, integers of x's leading shape, the mask of a vector x[i] depends on
    (key, row[i]) alone, so that a subset of rows meets the same mask as the whole. The rate
    is met to 2^-17: 16 random bits an entry halve the cost of drawing them.
    """
    if key is None or rate == 0:
        return x
    key, drop_below = keys.threefry(key), round(rate * 2**16)
    if row is None:
        bits = _bits16(key, x.size)
    else:
        row_keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(row.ravel())
        bits = jax.vmap(lambda k: _bits16(k, x.shape[-1]))(row_keys)
    scale = (bits.reshape(x.shape) >= drop_below).astype(x.dtype) / (1 - drop_below / 2**16)
    return x * scale


def _bits16(key: jax.Array, size: int) -> jax.Array:
    """`size` uniform uint16, words of split Threefry keys: half the cost of `random.bits`."""
    words = jax.random.key_data(jax.random.split(key, (size + 3) // 4))
    return jax.lax.bitcast_convert_type(words, jnp.uint16).ravel()[:size]


class Attention(nn.Module):
    """Multi-head attention with shared key/value heads, causal or bidirectional.

    The raw score is S = qᵀ R(j - i) k: before 1/√H, before position biases, before any mask.
    Sown into "intermediates", in float32: `scores_BNLS` (raw), `weights_BNLS` (softmaxed)
    and `context_BLNH`.
    """

    config: Any

    def setup(self):
        c = self.config
        self.query = dense(c, (c.num_heads, c.head_dim), c.width, use_bias=c.qkv_bias)
        self.key = dense(c, (c.num_kv_heads, c.head_dim), c.width, use_bias=c.qkv_bias)
        self.value = dense(c, (c.num_kv_heads, c.head_dim), c.width, use_bias=c.qkv_bias)
        self.out = dense(
            c, c.width, c.num_heads * c.head_dim, axis=(-2, -1), use_bias=c.out_bias, residual=True
        )
        if c.qk_norm:
            self.query_norm, self.key_norm = make_norm(c), make_norm(c)

    def queries(self, x):
        """[..., N, H] from [..., D], before any rotation; `keys` gives [..., K, H]."""
        return self.query_norm(self.query(x)) if self.config.qk_norm else self.query(x)

    def keys(self, x):
        return self.key_norm(self.key(x)) if self.config.qk_norm else self.key(x)

    def __call__(self, x_BLD, position_BL, readable_BLS, dropout_key, cache_start=None):
        """x_BLD -> x_BLD. `readable_BLS`: whether position s may be read from l.

        With `cache_start`, x holds slots cache_start.. of a sequence of S slots; the keys and
        values of the others come from the collection "cache", where these are put too.
        """
        context = self.context(x_BLD, position_BL, readable_BLS, dropout_key, cache_start)
        return self.out(context)

    def context(self, x_BLD, position_BL, readable_BLS, dropout_key, cache_start=None):
        """The weighted sum of values at every position: context_BLNH."""
        c = self.config
        q_BLNH = self._rotated(self.queries(x_BLD), position_BL)
        k_BSKH, v_BSKH = self._rotated(self.keys(x_BLD), position_BL), self.value(x_BLD)
        position_BS = position_BL
        if cache_start is not None:
            num_slots = readable_BLS.shape[-1]
            if c.positions == "alibi":  # the others put them into the keys or the residual stream
                position_BS = self._with_cache("position_BS", position_BL, cache_start, num_slots)
            k_BSKH = self._with_cache("key_BSKH", k_BSKH, cache_start, num_slots)
            v_BSKH = self._with_cache("value_BSKH", v_BSKH, cache_start, num_slots)
        scores_BNLS = _scores(q_BLNH, k_BSKH)
        weights_BNLS = self._weights(scores_BNLS, position_BL, position_BS, readable_BLS)
        self.sow("intermediates", "scores_BNLS", scores_BNLS)
        self.sow("intermediates", "weights_BNLS", weights_BNLS)
        weights_BNLS = dropout(weights_BNLS, c.attention_dropout, dropout_key)
        context_BLNH = _weighted(weights_BNLS, v_BSKH)
        self.sow("intermediates", "context_BLNH", context_BLNH)
        return context_BLNH

    def context_at(self, x_BSD, position_BS, readable_BSS, row_R):
        """`context` at rows of the flattened B·S, with queries for these alone: context_RNH.

        A row is an example of one query here, so the keys and values of its example are copied.
        Without dropout of the weights; nothing is sown.
        """
        example_R = row_R // x_BSD.shape[1]
        position_BS = jnp.broadcast_to(position_BS, x_BSD.shape[:2])
        position_RS, position_R1 = position_BS[example_R], take_rows(position_BS, row_R)[:, None]
        q_R1NH = self._rotated(self.queries(take_rows(x_BSD, row_R)[:, None]), position_R1)
        k_RSKH = self._rotated(self.keys(x_BSD), position_BS)[example_R]
        v_RSKH = self.value(x_BSD)[example_R]
        weights_RN1S = self._weights(
            _scores(q_R1NH, k_RSKH),
            position_R1,
            position_RS,
            take_rows(readable_BSS, row_R)[:, None],
        )
        return _weighted(weights_RN1S, v_RSKH)[:, 0]

    def _rotated(self, x_BLNH, position_BL):
        c = self.config
        if c.positions != "rope":
            return x_BLNH
        angles = plane_angles(c.head_dim, c.rope_base, c.rope_scaling)
        return rotate(x_BLNH, position_BL[..., None], angles, c.rope_pairing)

    def _weights(self, scores_BNLS, position_BL, position_BS, readable_BLS):
        """Softmaxed weights_BNLS of raw scores."""
        c = self.config
        biased_BNLS = scores_BNLS / math.sqrt(c.head_dim)
        if c.positions == "alibi":
            distance_B1LS = jnp.abs(position_BL[:, None, :, None] - position_BS[:, None, None, :])
            slopes_1N11 = jnp.asarray(alibi_slopes(c.num_heads), jnp.float32)[None, :, None, None]
            biased_BNLS -= slopes_1N11 * distance_B1LS.astype(slopes_1N11.dtype)
        return masked_softmax(biased_BNLS, readable_BLS[:, None])

    def _with_cache(self, name: str, new_BL, start, num_slots: int):
        """What the cache holds, [B, S, ...], with new entries in their slots."""
        batch, _, *sizes = new_BL.shape
        zeros_BS = jnp.zeros((batch, num_slots, *sizes), new_BL.dtype)
        old_BS = self.get_variable("cache", name, zeros_BS)
        new_BS = jax.lax.dynamic_update_slice_in_dim(old_BS, new_BL, start, axis=1)
        self.put_variable("cache", name, new_BS)
        return new_BS


def _scores(q_BLNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
    """Raw scores_BNLS in float32 or better; N/K neighbouring query heads share a key head."""
    q_BLKGH = q_BLNH.reshape(*q_BLNH.shape[:2], k_BSKH.shape[2], -1, q_BLNH.shape[-1])
    dtype = jnp.promote_types(q_BLNH.dtype, jnp.float32)
    scores_BKGLS = jnp.einsum("blkgh,bskh->bkgls", q_BLKGH, k_BSKH, preferred_element_type=dtype)
    return scores_BKGLS.reshape(scores_BKGLS.shape[0], -1, *scores_BKGLS.shape[3:])


def _weighted(weights_BNLS: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    """Values summed with these weights, in the values' dtype: context_BLNH."""
    batch, num_heads, length, num_slots = weights_BNLS.shape
    weights_BKGLS = weights_BNLS.reshape(batch, v_BSKH.shape[2], -1, length, num_slots)
    context_BLKGH = jnp.einsum("bkgls,bskh->blkgh", weights_BKGLS.astype(v_BSKH.dtype), v_BSKH)
    return context_BLKGH.reshape(batch, length, num_heads, v_BSKH.shape[-1])


def masked_softmax(scores: jax.Array, readable: jax.Array) -> jax.Array:
    """Softmax over the last axis, among readable entries; where there is none, uniform."""
    return jax.nn.softmax(jnp.where(readable, scores, jnp.finfo(scores.dtype).min), axis=-1)


# Recomputed in the backward pass, which would else read up to six arrays that this one stored.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)
_exact_gelu = functools.partial(nn.gelu, approximate=False)
_ACTIVATIONS = {
    "gelu": _recomputed(functools.partial(nn.gelu, approximate=True)),
    "gelu_exact": _recomputed(_exact_gelu),
    "swiglu": _recomputed(lambda up, gate: nn.silu(gate) * up),
    "geglu": _recomputed(lambda up, gate: _exact_gelu(gate) * up),
}


class MLP(nn.Module):
    """down(gelu(up x)), or gated: SwiGLU down(silu(gate x) * up x), GeGLU with GELU for SiLU.

    "gelu" is its tanh form; "gelu_exact" and GeGLU have the error function. Any leading axes.
    """

    config: Any

    def setup(self):
        c = self.config
        self.up = dense(c, c.mlp_width, c.width, use_bias=c.mlp_bias)
        if c.mlp in ("swiglu", "geglu"):
            self.gate = dense(c, c.mlp_width, c.width, use_bias=c.mlp_bias)
        self.down = dense(c, c.width, c.mlp_width, use_bias=c.mlp_bias, residual=True)

    def __call__(self, x):
        activation = _ACTIVATIONS[self.config.mlp]
        # Tokens on one axis: with two, XLA's backward pass of a gated MLP is slower on CPUs.
        x_TD = x.reshape(-1, x.shape[-1])
        if self.config.mlp in ("swiglu", "geglu"):
            hidden_TF = activation(self.up(x_TD), self.gate(x_TD))
        else:
            hidden_TF = activation(self.up(x_TD))
        return self.down(hidden_TF).reshape(x.shape)


class Block(nn.Module):
    """Pre-norm: x += attention(norm(x)), x += mlp(norm(x)); post-norm: x = norm(x + ..) twice."""

    config: Any
    is_normed: bool = False  # the input is normed already: a pre-norm attention reads it as it is

    def setup(self):
        c = self.config
        self.attention_norm = (lambda x: x) if self.is_normed else make_norm(c)
        self.attention = Attention(c)
        if not c.attention_only:
            self.mlp_norm = make_norm(c)
            self.mlp = MLP(c)

    def __call__(self, x_BLD, position_BL, readable_BLS, dropout_key, cache_start=None):
        weights_key, rest_key = _split(dropout_key)
        attended_BLD = self.attention(
            self.attention_input(x_BLD), position_BL, readable_BLS, weights_key, cache_start
        )
        row_BL = jnp.arange(x_BLD[..., 0].size).reshape(x_BLD.shape[:2])
        return self.after_attention(x_BLD, attended_BLD, row_BL, rest_key)

    def attention_input(self, x):
        """What attention reads of the stream."""
        return self.attention_norm(x) if self.config.norm_place == "pre" else x

    def at_rows(self, x_BLD, position_BL, readable_BLS, row_R, dropout_key):
        """The block's output at rows of the flattened B·L; only attention sees the others."""
        weights_key, rest_key = _split(dropout_key)
        inputs = (self.attention_input(x_BLD), position_BL, readable_BLS)
        if self._asks_alone(x_BLD.shape, row_R.size, dropout_key):
            context_RNH = self.attention.context_at(*inputs, row_R)
        else:
            context_RNH = take_rows(self.attention.context(*inputs, weights_key), row_R)
        attended_RD = self.attention.out(context_RNH)
        return self.after_attention(take_rows(x_BLD, row_R), attended_RD, row_R, rest_key)

    def _asks_alone(self, shape_BLD, num_rows: int, dropout_key) -> bool:
        """Whether `Attention.context_at` is exact, and its copies of the keys are no burden."""
        c = self.config
        # The masks of the weights, and of the adapters' inputs, are those of the whole.
        exact = dropout_key is None or (c.attention_dropout == 0 and "lora" not in self.variables)
        exact = exact and not self.is_mutable_collection("intermediates")
        batch, length, _ = shape_BLD
        # Copies as large as the keys themselves, or as the scores that are spared.
        return exact and num_rows * c.num_kv_heads * c.head_dim <= batch * max(
            c.num_kv_heads * c.head_dim, length * c.num_heads
        )

    def after_attention(self, x, attended, row, dropout_key):
        """What follows attention, token by token: leading axes as those of `row`."""
        c = self.config
        attended_key, mlp_key = _split(dropout_key)
        is_post = c.norm_place == "post"
        x = (x if c.residual else 0) + dropout(attended, c.dropout, attended_key, row)
        if is_post:
            x = self.attention_norm(x)
        if c.attention_only:
            return x
        added = self.mlp(x if is_post else self.mlp_norm(x))
        x = x + dropout(added, c.dropout, mlp_key, row)
        return self.mlp_norm(x) if is_post else x


def _split(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    return (None, None) if key is None else tuple(jax.random.split(key))


def take_rows(x: jax.Array, row_R: jax.Array) -> jax.Array:
    """Rows of x [B, L, ...] seen as [B·L, ...]."""
    return _flat(x)[row_R]


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])
