"""The two models whose training arXiv 2405.04669 solves: bilinear, and one attention layer.

Both read tokens alone, so `make_tokens_apply_fn` makes either an `ApplyFn`, and the same
objectives and train step serve them.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dirasym.models.layers import masked_softmax


def random_signs(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Embeddings [V, D] with entries ±1/√D: of unit norm, and nearly orthogonal if D is large."""
    return jax.random.rademacher(key, shape, dtype) / math.sqrt(shape[1])


class Bilinear(nn.Module):
    """p_Θ(y | x) ∝ exp(xᵀ Θ y), with x the embedding of a token and y of the one after it (§3).

    Parameters are "theta" [D, D], from zero, and the embeddings "embed" [V, D], which are fixed:
    no gradient flows to them (but weight decay would reach them).

    Attributes:
      vocab_size: V.
      width: D.
      symmetric: put (Θ + Θᵀ)/2 in place of Θ, under which the reversal curse goes away.
    """

    vocab_size: int
    width: int
    symmetric: bool = False

    @nn.compact
    def __call__(self, tokens_BL):
        embed_VD = self.param("embed", random_signs, (self.vocab_size, self.width))
        theta_DD = self.param("theta", nn.initializers.zeros, (self.width, self.width))
        if self.symmetric:
            theta_DD = (theta_DD + theta_DD.T) / 2
        embed_VD = jax.lax.stop_gradient(embed_VD)
        return embed_VD[tokens_BL] @ theta_DD @ embed_VD.T


class ReparameterisedAttention(nn.Module):
    """A one-layer transformer in the coordinates of its tokens (§4, after Tian et al., 2023).

    The field calls it reparameterised: Y stands for the value, output and embedding matrices
    multiplied out, and Z for queries, keys and embeddings. (`analysis.theorem_b1.OneLayer` is
    another model, with its matrices apart.)

    The last token x_T asks, and those before it are the context:

        b_t ∝ exp(Z[x_T, x_t]) over t < T,   u = Σ_t b_t 1[x_t],   logits = Yᵀ u / ‖u‖₂

    so that Y[x, y] is the weight from a context token x to a next token y. The first token has
    no context, and its logits are 0. Parameters are "Y" and "Z", both [V, V], from zero.

    Attributes:
      vocab_size: V.
      attends_to_itself: let t = T into the context too. The relation's own row of Y then learns
        which tokens ever follow it.
    """

    vocab_size: int
    attends_to_itself: bool = False
    num_layers: ClassVar[int] = 1

    @nn.compact
    def __call__(self, tokens_BL):
        square = (self.vocab_size, self.vocab_size)
        y_VV = self.param("Y", nn.initializers.zeros, square)
        z_VV = self.param("Z", nn.initializers.zeros, square)
        length = tokens_BL.shape[1]
        readable_LS = jnp.tril(
            jnp.ones((length, length), bool), 0 if self.attends_to_itself else -1
        )
        scores_BLS = z_VV[tokens_BL[:, :, None], tokens_BL[:, None, :]]
        weights_BLS = masked_softmax(scores_BLS, readable_LS[None])
        has_context_L1 = readable_LS.any(axis=1, keepdims=True)
        token_BSV = jax.nn.one_hot(tokens_BL, self.vocab_size, dtype=y_VV.dtype)
        u_BLV = jnp.where(has_context_L1[None], weights_BLS @ token_BSV, 0)
        norm_BL1 = jnp.sqrt(jnp.sum(u_BLV**2, axis=-1, keepdims=True) + ~has_context_L1[None])
        return (u_BLV / norm_BL1) @ y_VV
