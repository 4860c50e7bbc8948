"""One transformer, causal or bidirectional, under one frozen configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import rows
from dirasym.models import layers
from dirasym.precision import widened
from dirasym.types import ApplyFn, Params


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Hyperparameters. `None` fields take the value that their comment gives.

    Raises:
      ValueError: sizes that do not fit together, or an unknown choice; the field is named.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    causal: bool
    block_size: int | None = None  # reads its own block, of so many tokens, and all before; all
    num_kv_heads: int | None = None  # num_heads; fewer for grouped-query attention
    head_dim: int | None = None  # width / num_heads
    mlp_width: int | None = None  # 4 · width
    positions: layers.Positions = "rope"
    max_len: int | None = None  # required by learned positions, a bound for the others
    rope_base: float = 10_000.0
    rope_pairing: Literal["half", "interleaved"] = "half"
    rope_scaling: layers.RopeScaling | None = None
    window: int | None = None  # positions nearer than this are read; all of them
    window_layers: tuple[int, ...] | None = None  # the layers that have the window; every one
    window_rope_base: float | None = None  # of these layers; rope_base
    first_position: int = 0  # of a text's first token, in the table of learned positions
    token_types: int = 0  # embeddings of a token's kind, such as BERT's two sentences
    embed_norm: bool = False  # the first layer's attention then has no norm before it
    norm_place: Literal["pre", "post"] = "pre"  # "post": after each addition, and none at the end
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    norm_bias_init: float = 0.0
    qk_norm: bool = False  # norm each head's queries and keys
    mlp: layers.Activation = "gelu"
    attention_only: bool = False  # no MLP
    residual: bool = True  # False: attention's output replaces the stream
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = True
    head_bias: bool = False
    tied_head: bool = False  # the head is the transposed embedding
    head_transform: bool = False  # BERT's: a linear layer, exact GELU and a norm before the head
    shift_logits: bool = False  # predict a token where the one before it stands, as Dream does
    dropout: float = 0.0  # on what attention and the MLP add to the stream
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0  # on the softmaxed weights
    init: Literal["uniform_fan_in", "normal"] = "uniform_fan_in"  # ±1/√fan_in; GPT-2's 0.02
    embed_std: float | None = None  # normal of this standard deviation; None: as `init` says
    head_init: Literal["as_init", "zeros"] = "as_init"
    remat: bool = False  # recompute each layer in the backward pass
    scan_layers: bool = False  # one compiled layer; parameters get a leading layer axis
    dtype: Any = jnp.float32  # of the computation; scores and softmax stay float32
    param_dtype: Any = jnp.float32
    # Hugging Face's name of the architecture whose weights these are; no part of the function.
    model_type: str | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        def default(name, value):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        counts = ("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads", "head_dim")
        for name in (*counts, "mlp_width", "max_len", "block_size"):
            self._check(name, lambda x: x >= 1, "positive")
        for name in ("rope_base", "window_rope_base", "norm_eps"):
            self._check(name, lambda x: 0 < x < math.inf, "positive and finite")
        self._check("embed_std", lambda x: 0 <= x < math.inf, "at least 0 and finite")
        self._check("norm_bias_init", math.isfinite, "finite")
        if self.head_dim is None and self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        default("num_kv_heads", self.num_heads)
        default("head_dim", self.width // self.num_heads)
        default("mlp_width", 4 * self.width)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}"
            )
        for field in dataclasses.fields(self):
            choices = getattr(field.type, "__args__", ())
            if choices and all(isinstance(choice, str) for choice in choices):
                value = getattr(self, field.name)
                if value not in choices:
                    raise ValueError(f"{field.name} must be one of {choices}, got {value!r}")
        self._check_window()
        if self.positions == "learned" and self.max_len is None:
            raise ValueError("max_len is required with learned positions")
        if self.positions == "rope":
            layers.plane_angles(self.head_dim)  # an odd head_dim raises
        if self.positions == "sinusoidal" and self.width % 2:
            raise ValueError(f"width must be even for sinusoidal positions, got {self.width}")
        for name in ("dropout", "embed_dropout", "attention_dropout"):
            self._check(name, lambda x: 0 <= x < 1, "in [0, 1)")

    def _check(self, name: str, is_right: Callable[[Any], bool], wanted: str) -> None:
        """Raises ValueError for a field that is set and is not as wanted."""
        value = getattr(self, name)
        if value is not None and not is_right(value):
            raise ValueError(f"{name} must be {wanted}, got {value}")

    def _check_window(self):
        """Brings the fields of the window to one form: what says nothing is None."""
        layers_with = self.window_layers
        self._check("window", lambda x: x >= 1, "positive")
        if layers_with is not None:
            layers_with = tuple(sorted(set(layers_with)))
            if self.window is None or not all(0 <= n < self.num_layers for n in layers_with):
                raise ValueError(
                    f"window_layers {layers_with} are not layers of {self.num_layers} with a window"
                )
            if not layers_with:
                object.__setattr__(self, "window", None)
            layers_with = layers_with if 0 < len(layers_with) < self.num_layers else None
            object.__setattr__(self, "window_layers", layers_with)
        if self.window is None or self.window_rope_base == self.rope_base:
            object.__setattr__(self, "window_rope_base", None)
        if self.scan_layers and (layers_with or (self.embed_norm and self.norm_place == "pre")):
            raise ValueError(
                "scan_layers needs layers that are alike: no window_layers, and with "
                "embed_norm norm_place='post'"
            )
        if self.shift_logits and self.causal:
            raise ValueError("shift_logits needs causal=False: a causal model shifts by itself")
        if self.block_size is not None and (self.shift_logits or self.causal):
            raise ValueError(
                "block_size needs causal=False (1 is a causal mask) and no shift_logits"
            )

    def has_window(self, layer: int) -> bool:
        """Whether a layer's attention reads `window` alone."""
        return self.window is not None and (
            self.window_layers is None or layer in self.window_layers
        )

    def of_layer(self, layer: int) -> "TransformerConfig":
        """What one layer computes with: its own base of RoPE."""
        if self.window_rope_base is None or not self.has_window(layer):
            return self
        return dataclasses.replace(self, rope_base=self.window_rope_base)


class Transformer(nn.Module):
    """Token ids to logits.

    With `rngs={"dropout": key}` dropout is on, without it off.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        if c.embed_std is not None:
            embed_init = nn.initializers.normal(c.embed_std)
        elif c.init == "uniform_fan_in":
            embed_init = layers.uniform_fan_in(c.width)
        else:
            embed_init = nn.initializers.normal(0.02)
        embed = functools.partial(
            nn.Embed,
            features=c.width,
            embedding_init=embed_init,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
        )
        self.embed = embed(c.vocab_size)
        if c.positions == "learned":
            self.position_embed = embed(c.max_len + c.first_position)
        if c.token_types:
            self.type_embed = embed(c.token_types)
        if c.embed_norm:
            self.embed_norm = layers.make_norm(c)
        block = layers.Block
        if c.remat:
            block = nn.remat(block, prevent_cse=not c.scan_layers)
        if c.scan_layers:
            self.blocks = nn.scan(
                _ScannedBlock,
                variable_axes={"params": 0, "lora": 0, "cache": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
                length=c.num_layers,
            )(c.of_layer(0), block)
        else:
            self.blocks = [
                block(c.of_layer(n), is_normed=n == 0 and c.embed_norm and c.norm_place == "pre")
                for n in range(c.num_layers)
            ]
        if c.norm_place == "pre":
            self.final_norm = layers.make_norm(c)
        if c.head_transform:
            self.head_dense = layers.dense(c, c.width, c.width, use_bias=c.mlp_bias)
            self.head_norm = layers.make_norm(c)
        if c.tied_head and c.head_bias:
            shape = (c.vocab_size,)
            self.head_bias = self.param("head_bias", nn.initializers.zeros, shape, c.param_dtype)
        elif not c.tied_head:
            init = "zeros" if c.head_init == "zeros" else None
            self.head = layers.dense(c, c.vocab_size, c.width, use_bias=c.head_bias, init=init)

    def __call__(self, tokens_BL, *, valid_BL=None, rows_R=None, types_BL=None):
        """int tokens_BL -> float32 logits_BLV; with `rows_R`, logits_RV.

        Args:
          tokens_BL: ids in [0, vocab_size).
          valid_BL: False at padding, which no position attends to. Position numbers count
            valid tokens, so left and right padding give the same answers.
          rows_R: the positions that are asked, as indices into the flattened B·L; one of B·L or
            more is not in use, and gets the last position's logits. After the last layer's
            attention nothing is computed elsewhere (with `scan_layers`: after the last layer).
            The same function of the parameters and the dropout key as the whole.
          types_BL: which of `token_types` a token is of; the first when None.

        Raises:
          ValueError: the sequence is longer than `max_len`.
        """
        c = self.config
        length = _checked_length(tokens_BL, valid_BL, rows_R, types_BL)
        if c.max_len is not None and length > c.max_len:
            raise ValueError(f"sequence of {length} tokens is longer than max_len {c.max_len}")
        position_BL = np.arange(length)[None]  # known, so that RoPE's angles are constants
        if valid_BL is not None:
            position_BL = jnp.maximum(jnp.cumsum(valid_BL, axis=1) - 1, 0)
        readable_BLS = self.readable(tokens_BL.shape, valid_BL)
        embed_key, layer_keys = self.dropout_keys()
        x_BLD = self._embed(tokens_BL, position_BL, embed_key, types_BL)
        if rows_R is None:
            x_BLD = self._blocks(x_BLD, position_BL, readable_BLS, layer_keys)
            if c.shift_logits:
                row_R = self._source_rows(jnp.arange(tokens_BL.size), length, valid_BL)
                x_BLD = layers.take_rows(x_BLD, row_R).reshape(x_BLD.shape)
            return self.logits(x_BLD)
        row_R = jnp.minimum(rows_R, tokens_BL.size - 1)
        if c.shift_logits:
            row_R = self._source_rows(row_R, length, valid_BL)
        if c.scan_layers:
            x_BLD = self._blocks(x_BLD, position_BL, readable_BLS, layer_keys)
            return self.logits(layers.take_rows(x_BLD, row_R))
        *before, last = self.blocks
        for layer, (block, key) in enumerate(zip(before, layer_keys[:-1], strict=True)):
            x_BLD = block(x_BLD, position_BL, self._in_layer(layer, readable_BLS, position_BL), key)
        # Never recomputed, even with `remat`: its backward pass comes first.
        readable_BLS = self._in_layer(c.num_layers - 1, readable_BLS, position_BL)
        return self.logits(last.at_rows(x_BLD, position_BL, readable_BLS, row_R, layer_keys[-1]))

    def extend(self, tokens_BL, start, valid_BS):
        """float32 logits_BLV of slots start..start+L-1 of sequences of S slots, causal models only.

        What earlier calls read is in the collection "cache" (so apply it with mutable="cache"),
        which the first call, at start 0, makes. `valid_BS` says which slots hold or will hold
        a token, as `valid_BL` does in a call of the whole; its logits are these.

        Raises:
          ValueError: a bidirectional model, or S beyond `max_len`.
        """
        c = self.config
        num_slots = valid_BS.shape[1]
        if not c.causal:
            raise ValueError("a cache needs a causal model")
        if c.max_len is not None and num_slots > c.max_len:
            raise ValueError(f"sequence of {num_slots} tokens is longer than max_len {c.max_len}")
        slot_L = start + jnp.arange(tokens_BL.shape[1])
        position_BS = jnp.maximum(jnp.cumsum(valid_BS, axis=1) - 1, 0)
        readable_1LS = jnp.arange(num_slots)[None, None] <= slot_L[None, :, None]
        x_BLD = self._embed(tokens_BL, position_BS[:, slot_L], None, None)
        no_keys = None if c.scan_layers else [None] * c.num_layers
        told = position_BS[:, slot_L], readable_1LS & valid_BS[:, None], no_keys
        return self.logits(self._blocks(x_BLD, *told, start, position_BS))

    def readable(self, shape: tuple[int, int], valid_BL=None):
        """Whether position s may be read from l: bool [B, L, S]."""
        return _readable(self.config, shape, valid_BL)

    def _in_layer(self, layer: int, readable_BLS, position_BL, position_BS=None):
        """What one layer reads: within its window, if it has one, which counts valid tokens."""
        window = self.config.window
        if window is None or not self.config.has_window(layer):
            return readable_BLS
        position_BS = position_BL if position_BS is None else position_BS
        from_BLS = position_BL[:, :, None] - position_BS[:, None]
        return readable_BLS & (jnp.abs(from_BLS) < window)

    def _source_rows(self, row_R, length: int, valid_BL):
        """Where the logits of rows are read with `shift_logits`: a text's first token at itself."""
        has_one_R = row_R % length > 0
        if valid_BL is not None:
            has_one_R &= jnp.ravel(valid_BL)[row_R - 1]
        return row_R - has_one_R

    def dropout_keys(self):
        """The embedding's key and the layers': None for each without dropout.

        An array of layers' keys (or None for all) where layers are scanned, a list otherwise.
        """
        c = self.config
        if not self.has_rng("dropout"):
            return None, None if c.scan_layers else [None] * c.num_layers
        keys = jax.random.split(self.make_rng("dropout"), c.num_layers + 1)
        return keys[0], keys[1:] if c.scan_layers else list(keys[1:])

    def logits(self, x):
        """Final norm and head: [..., V] in float32 or better, from x [..., D]."""
        c = self.config
        if c.norm_place == "pre":
            x = self.final_norm(x)
        if c.head_transform:
            x = self.head_norm(nn.gelu(self.head_dense(x), approximate=False))
        logits = widened(self.embed.attend(x) if c.tied_head else self.head(x))
        if c.tied_head and c.head_bias:
            logits += self.head_bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return logits

    def _blocks(self, x_BLD, position_BL, readable_BLS, layer_keys, start=None, position_BS=None):
        if self.config.scan_layers:
            readable_BLS = self._in_layer(0, readable_BLS, position_BL, position_BS)
            x_BLD, _ = self.blocks(x_BLD, position_BL, readable_BLS, layer_keys, start)
            return x_BLD
        for layer, (block, key) in enumerate(zip(self.blocks, layer_keys, strict=True)):
            near_BLS = self._in_layer(layer, readable_BLS, position_BL, position_BS)
            x_BLD = block(x_BLD, position_BL, near_BLS, key, start)
        return x_BLD

    def _embed(self, tokens_BL, position_BL, dropout_key, types_BL):
        c = self.config
        x_BLD = self.embed(tokens_BL)
        if c.token_types:
            x_BLD = x_BLD + self.type_embed(
                jnp.zeros((1, 1), int) if types_BL is None else types_BL
            )
        if c.positions == "learned":
            x_BLD = x_BLD + self.position_embed(position_BL + c.first_position)
        if c.positions == "sinusoidal":
            x_BLD = x_BLD + layers.sinusoids(position_BL, c.width).astype(x_BLD.dtype)
        if c.embed_norm:
            x_BLD = self.embed_norm(x_BLD)
        return layers.dropout(x_BLD, c.embed_dropout, dropout_key)


def _readable(config: TransformerConfig, shape: tuple[int, int], valid_BL):
    """See `Transformer.readable`; blocks count valid tokens."""
    length = shape[1]
    readable_BLS = jnp.ones((1, length, length), bool)
    if config.causal:
        readable_BLS = jnp.tril(readable_BLS)
    if config.block_size is not None:
        is_valid_BL = np.ones((1, length), bool) if valid_BL is None else valid_BL
        block_BL = jnp.maximum(jnp.cumsum(is_valid_BL, axis=1) - 1, 0) // config.block_size
        readable_BLS = block_BL[:, None, :] <= block_BL[:, :, None]
    if valid_BL is not None:
        readable_BLS = readable_BLS & valid_BL[:, None, :]
    return jnp.broadcast_to(readable_BLS, (*shape, length))


def _checked_length(tokens_BL, valid_BL, rows_R, types_BL) -> int:
    """Tokens of a sequence, if all arguments have the shapes that they should."""
    chex.assert_equal_shape([x for x in (tokens_BL, valid_BL, types_BL) if x is not None])
    if rows_R is not None:
        chex.assert_rank(rows_R, 1)
    return tokens_BL.shape[1]


class _ScannedBlock(nn.Module):
    """A block with the (carry, outputs) signature of `nn.scan`."""

    config: TransformerConfig
    block: Any

    @nn.compact
    def __call__(self, x_BLD, *args):
        return self.block(self.config, name="block")(x_BLD, *args), None


def make_apply_fn(model: Transformer) -> ApplyFn:
    """The model as an `ApplyFn` of its "params" collection."""

    def apply_fn(params: Params, tokens_BL, *, valid_BL=None, rows_R=None, rngs=None):
        told = dict(valid_BL=valid_BL, rows_R=rows_R, rngs=rngs)
        return model.apply({"params": params}, tokens_BL, **told)

    return rows.knowing(apply_fn, model.config.vocab_size)


def make_extend_fn(model: Transformer) -> Callable[..., tuple[jax.Array, Any]]:
    """`Transformer.extend` as (params, cache, tokens_BL, start, valid_BS) -> (logits_BLV, cache).

    The first cache is an empty dict.
    """
    return lambda params, *args: apply_extend(model, {"params": params}, *args)


def apply_extend(model: nn.Module, variables: Params, cache: Any, tokens_BL, start, valid_BS):
    """Logits and the new cache, from all of a model's variables but its cache."""
    variables = {**variables, "cache": cache} if cache else variables
    logits_BLV, changed = model.apply(
        variables, tokens_BL, start, valid_BS, method="extend", mutable="cache"
    )
    return logits_BLV, changed["cache"]


def make_tokens_apply_fn(model: nn.Module) -> ApplyFn:
    """A model that takes token ids and nothing else, as an `ApplyFn` of its "params" collection."""

    def apply_fn(params: Params, tokens_BL):
        return model.apply({"params": params}, tokens_BL)

    return cast(ApplyFn, apply_fn)  # callers pass what it names


def make_internals_fn(model: Transformer) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """What the model sows, with a leading layer axis: (params, tokens_BL) -> arrays.

    "scores" (raw) and "weights" (softmaxed) are [layers, B, N, L, S], "context" is
    [layers, B, L, N, H].
    """

    def internals(params: Params, tokens_BL):
        return apply_internals(model, model.config, {"params": params}, tokens_BL)

    return rows.knowing(internals, model.config.vocab_size)


def apply_internals(model: nn.Module, config: TransformerConfig, variables: Params, tokens_BL):
    """See `make_internals_fn`; from all of a model's variables."""
    sown = model.apply(variables, tokens_BL, mutable="intermediates")[1]["intermediates"]
    if config.scan_layers:
        stacked = sown["blocks"]["block"]["attention"]
    else:
        one_each = [sown[f"blocks_{layer}"]["attention"] for layer in range(config.num_layers)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *one_each)
    keys = {"scores": "scores_BNLS", "weights": "weights_BNLS", "context": "context_BLNH"}
    return {key: stacked[name][0] for key, name in keys.items()}  # sow keeps tuples
