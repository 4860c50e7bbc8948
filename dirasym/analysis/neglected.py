"""What Theorem B.1 leaves out of the one-layer encoder, term by term (arXiv 2602.02133, App. B).

The theorem keeps B's value alone in the context, and holds the score of [M] on itself constant.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.analysis.theorem_b1 import (
    BlockProducts,
    OneLayer,
    block_products,
    check_arguments,
    target_loss,
)
from dirasym.models.layers import rotate
from dirasym.precision import highest_precision
from dirasym.types import Array


class Others(NamedTuple):
    """Further tokens of a sequence, for `neglected_terms`.

    Attributes:
      h: [O, D] embeddings.
      offset_fwd, offset_rev: [O], their positions minus that of [M] in each query.
    """

    h: jax.Array
    offset_fwd: jax.Array
    offset_rev: jax.Array


class Neglected(NamedTuple):
    """Block inner products of the theorem's model and of the model that it simplifies.

    Attributes:
      theorem: as `theorem_b1`.
      full: [M]'s own value in the context, gradients through its own score, other tokens.
      own_score: theorem + the gradient through the score of [M] on itself, minus theorem.
      own_value: theorem + the value of [M] in the context, minus theorem.
      others: theorem + other tokens in the softmax and the context, minus theorem.
      interaction: full minus theorem minus the three effects alone.
    """

    theorem: BlockProducts
    full: BlockProducts
    own_score: BlockProducts
    own_value: BlockProducts
    others: BlockProducts
    interaction: BlockProducts


@highest_precision
def neglected_terms(
    params: OneLayer,
    delta_fwd: Array | float,
    delta_rev: Array | float,
    target: Array | int,
    *,
    others: Others | None = None,
    angles: Array | None = None,
    pairing: str = "interleaved",
) -> Neglected:
    """What Theorem B.1 leaves out of the full one-layer model, each term measured by autodiff.

    Arguments as for `theorem_b1`; `others` are the sequence's further tokens, none by default.
    """
    angles = check_arguments(params, delta_fwd, delta_rev, target, angles, pairing)
    if others is None:
        empty = jnp.zeros((0,), int)
        others = Others(jnp.zeros((0, len(params.h_M)), params.h_M.dtype), empty, empty)

    def inner(**kept):
        loss = functools.partial(_encoder_loss, angles=angles, pairing=pairing, **kept)
        fwd = jax.grad(loss)(params, jnp.asarray(delta_fwd), target, others.h, others.offset_fwd)
        rev = jax.grad(loss)(params, -jnp.asarray(delta_rev), target, others.h, others.offset_rev)
        return block_products(fwd, rev)

    none = dict(own_score=False, own_value=False, other_tokens=False)
    theorem = inner(**none)
    full = inner(**dict.fromkeys(none, True))
    score, value, tokens = (
        jax.tree.map(jnp.subtract, inner(**(none | {name: True})), theorem) for name in none
    )
    interaction = jax.tree.map(lambda f, t, *e: f - t - sum(e), full, theorem, score, value, tokens)
    return Neglected(theorem, full, score, value, tokens, interaction)


def _encoder_loss(
    params: OneLayer,
    offset,
    target,
    other_h_OD,
    other_offset_O,
    *,
    angles,
    pairing,
    own_score: bool,
    own_value: bool,
    other_tokens: bool,
):
    """One-layer encoder at [M]: tokens are [M], B and others; switches keep or drop terms."""
    q_M = params.W_Q @ params.h_M
    h_TD = jnp.stack([params.h_M, params.h_B])
    offset_T = jnp.stack([jnp.zeros_like(offset), offset])
    if other_tokens:
        h_TD = jnp.concatenate([h_TD, other_h_OD])
        offset_T = jnp.concatenate([offset_T, other_offset_O])
    score_T = rotate(h_TD @ params.W_K.T, offset_T, angles, pairing) @ q_M
    if not own_score:
        score_T = score_T.at[0].set(jax.lax.stop_gradient(score_T[0]))
    # Each weight from its odds against the rest, which keeps its gradient's digits.
    odds_TT = (score_T[None] - score_T[:, None]) / np.sqrt(len(q_M))
    odds_TT = jnp.where(jnp.eye(len(score_T), dtype=bool), -jnp.inf, odds_TT)
    alpha_T = jnp.exp(-jax.nn.softplus(jax.nn.logsumexp(odds_TT, axis=1)))
    v_TD = alpha_T[:, None] * (h_TD @ params.W_V.T)
    context_D = v_TD.sum(0) if own_value else v_TD[1:].sum(0)
    return target_loss(params.W_O @ context_D, target)
