"""One layer read from a table of its tokens: an `ApplyFn` that equals the model's own, faster.

In the first layer of a model whose positions enter by rotation alone, queries, keys and values
depend on the token, and the score of a query on a key on (token, token, offset). Short texts
over few tokens, such as the toy task's, project V rows in place of B·L and look scores up.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import rows
from dirasym.models import layers, transformer
from dirasym.models.transformer import Transformer, TransformerConfig
from dirasym.types import ApplyFn, Params


def is_exact(config: TransformerConfig) -> bool:
    """Whether a model of this configuration can be read from a table."""
    c = config
    one_layer = c.num_layers == 1 and not c.scan_layers
    plain = not (c.embed_norm or c.token_types or c.window or c.shift_logits)
    return one_layer and plain and c.positions in ("rope", "none")


def make_apply_fn(model: Transformer) -> ApplyFn:
    """`transformer.make_apply_fn`, from the table where `rows_R` are asked and it is a saving.

    The same function of the parameters and the dropout key; float rounding differs. The model
    itself is called where the table would be wrong (padding, whose slots are no offsets; dropout
    of embeddings or weights, position by position) or larger than what it spares.

    Examples:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from dirasym import models
      >>> from dirasym.models import token_table
      >>> model = models.Transformer(models.radd(5, width=8))
      >>> tokens_BL = jnp.tile(jnp.arange(5), (4, 2))
      >>> params = model.init(jax.random.key(0), tokens_BL)["params"]
      >>> rows_R = jnp.array([0, 7, 12])
      >>> fast = token_table.make_apply_fn(model)(params, tokens_BL, rows_R=rows_R)
      >>> plain = models.make_apply_fn(model)(params, tokens_BL, rows_R=rows_R)
      >>> bool(np.allclose(fast, plain, atol=1e-5))
      True

    Raises:
      ValueError: a model that no table gives; see `is_exact`.
    """
    c = model.config
    if not is_exact(c):
        raise ValueError(
            "a table needs one layer, not scanned, positions by rotation or none, and neither a "
            "window, a norm of embeddings, token types nor shifted logits: got "
            f"num_layers={c.num_layers}, scan_layers={c.scan_layers}, positions={c.positions!r}"
        )
    whole = transformer.make_apply_fn(model)

    def apply_fn(params: Params, tokens_BL, *, valid_BL=None, rows_R=None, rngs=None):
        drops = bool(rngs) and (c.embed_dropout > 0 or c.attention_dropout > 0)
        saves = c.vocab_size**2 <= tokens_BL.size * c.width / 2
        if rows_R is None or valid_BL is not None or drops or not saves:
            return whole(params, tokens_BL, valid_BL=valid_BL, rows_R=rows_R, rngs=rngs)
        return model.apply({"params": params}, tokens_BL, rows_R, method=_logits_at, rngs=rngs)

    return rows.knowing(apply_fn, c.vocab_size)


def fastest_apply_fn(model: Transformer) -> ApplyFn:
    """`make_apply_fn` for a model that a table gives, `transformer.make_apply_fn` for another."""
    make = make_apply_fn if is_exact(model.config) else transformer.make_apply_fn
    return make(model)


def _logits_at(model: Transformer, tokens_BL, rows_R) -> jax.Array:
    tokens_BL = jnp.asarray(tokens_BL)  # NumPy's cannot be indexed by what is traced
    row_R = jnp.minimum(rows_R, tokens_BL.size - 1)
    _, (layer_key,) = model.dropout_keys()
    (block,) = model.blocks
    table_VD = model.embed(jnp.arange(model.config.vocab_size))
    attended_RD = _attend(
        block.attention,
        block.attention_input(table_VD),
        tokens_BL,
        model.readable(tokens_BL.shape),
        row_R,
    )
    x_RD = table_VD[layers.take_rows(tokens_BL, row_R)]
    rest_key = None if layer_key is None else jax.random.split(layer_key)[1]
    return model.logits(block.after_attention(x_RD, attended_RD, row_R, rest_key))


def _attend(attention: layers.Attention, table_VD, tokens_BL, readable_BLS, row_R) -> jax.Array:
    """What attention returns at rows of the flattened B·L, if x = table[tokens]: [R, D].

    The weights that fall on equal tokens are added before they meet the values, which lets a
    single head's output projection act on the V values too.
    """
    c = attention.config
    length, vocab = tokens_BL.shape[1], table_VD.shape[0]
    scores_NVOW = _score_table(attention, table_VD, length)
    v_VNH = attention.value(table_VD).repeat(c.num_heads // c.num_kv_heads, axis=1)

    example_R, position_R = row_R // length, row_R % length
    key_token_RS = tokens_BL[example_R]
    query_token_R1 = tokens_BL[example_R, position_R][:, None]
    offset_index_RS = jnp.arange(length)[None] - position_R[:, None] + length - 1
    scores_NRS = scores_NVOW[:, query_token_R1, offset_index_RS, key_token_RS]
    weights_NRS = layers.masked_softmax(
        scores_NRS / math.sqrt(c.head_dim), readable_BLS[example_R, position_R][None]
    )
    num_rows, weights_RSN = len(row_R), jnp.moveaxis(weights_NRS, 0, -1)
    mass_RVN = jnp.zeros((num_rows, vocab, c.num_heads), weights_RSN.dtype)
    mass_RVN = mass_RVN.at[jnp.arange(num_rows)[:, None], key_token_RS].add(weights_RSN)
    mass_RVN = mass_RVN.astype(v_VNH.dtype)
    if c.num_heads == 1:
        return mass_RVN[..., 0] @ attention.out(v_VNH)
    return attention.out(jnp.einsum("rvn,vnh->rnh", mass_RVN, v_VNH))


def _score_table(attention: layers.Attention, table_VD, length: int) -> jax.Array:
    """Raw score of every query token on every key token at every offset -(L-1)..L-1: NVOW."""
    c = attention.config
    q_VNH = attention.queries(table_VD)
    k_VNH = attention.keys(table_VD).repeat(c.num_heads // c.num_kv_heads, axis=1)
    offset_O = np.arange(-(length - 1), length)
    q_OVNH = jnp.broadcast_to(q_VNH, (len(offset_O), *q_VNH.shape))
    if c.positions == "rope":  # qᵀ R(Δ) k = (R(-Δ) q)ᵀ k
        angles = layers.plane_angles(c.head_dim, c.rope_base, c.rope_scaling)
        q_OVNH = layers.rotate(q_OVNH, -offset_O[:, None, None], angles, c.rope_pairing)
    return jnp.einsum("ovnh,wnh->nvow", q_OVNH, k_VNH, preferred_element_type=jnp.float32)
