"""Effective weights of any model: the logit of an answer after a prompt, and measures of them.

What arXiv 2405.04669 says of the weights of the bilinear and the one-layer model, these say of
a network.
"""

import chex
import jax
import jax.numpy as jnp

from dirasym.rows import call, check_mask_id
from dirasym.types import ApplyFn, Array, Params


def effective_logits(
    apply_fn: ApplyFn, params: Params, sentences_PL: Array, *, mask_id: int | None = None
) -> jax.Array:
    """Weight from every prompt to every answer: float [P, P].

    A sentence is a prompt and an answer of one token, the last; entry (i, j) is the logit of
    answer j after prompt i. With `mask_id` the model is bidirectional, and reads the prompt
    with [M] in the answer's place.

    Raises:
      ValueError: a mask id that the model lacks.
    """
    sentences_PL = jnp.asarray(sentences_PL)
    if mask_id is None:
        prompts_PL = sentences_PL[:, :-1]
    else:
        check_mask_id(mask_id, apply_fn)
        prompts_PL = sentences_PL.at[:, -1].set(mask_id)
    num, length = prompts_PL.shape
    last_P = length * jnp.arange(1, num + 1) - 1
    logits_PV = call(apply_fn, params, prompts_PL, rows_R=last_P)
    if mask_id is not None:
        check_mask_id(mask_id, apply_fn, logits_PV.shape[-1])
    return logits_PV[:, sentences_PL[:, -1]]


def gap(logits_PP: Array) -> jax.Array:
    """How far each prompt's own answer stands above the mean of the others, in nats: [..., P].

    The block is square, of at least 2.

    Examples:
      >>> gap([[3.0, 1.0], [0.0, 0.5]]).tolist()
      [2.0, 0.5]
    """
    logits_PP, own_P = _with_own(logits_PP, "gap")
    num = logits_PP.shape[-1]
    return (own_P * num - logits_PP.sum(axis=-1)) / (num - 1)


def choice(logits_PP: Array) -> jax.Array:
    """Whether each prompt's own answer stands above every other of the block: bool [..., P].

    A guess is right for one in P. Where no answer of the block was ever one after the block's
    relation, what remains is which of them it is: that none is likely costs them all alike.

    Examples:
      >>> choice([[3.0, 1.0], [0.5, 0.5]]).tolist()
      [True, False]
    """
    logits_PP, own_P = _with_own(logits_PP, "choice")
    return (own_P[..., None] > logits_PP).sum(axis=-1) == logits_PP.shape[-1] - 1


def intransitivity(first_PP: Array, second_PP: Array, composed_PP: Array) -> jax.Array:
    """1 − g(A→C) / min(g(A→B), g(B→C)), with g the mean `gap` of a block of effective logits.

    0 when what follows from two facts weighs as much as the weaker of them, 1 when it weighs
    nothing, above 1 when it is less likely than a guess: [...] for blocks [..., P, P].
    """
    chex.assert_equal_shape([first_PP, second_PP, composed_PP])
    first, second, composed = (gap(x).mean(axis=-1) for x in (first_PP, second_PP, composed_PP))
    return 1 - composed / jnp.minimum(first, second)


def asymmetry(forward_PP: Array, reverse_PP: Array) -> jax.Array:
    """‖F − Rᵀ‖ / (‖F‖ + ‖R‖) in Frobenius norms, after means of rows and columns are removed.

    F are weights from A's to B's and R from B's to A's, pairs in one order: blocks of Θ − Θᵀ.
    0 for symmetric weights (as none at all are), 1 when one of the two is zero or they are
    opposite, 1/√2 when they have nothing to do with each other and one norm. The means are a
    softmax's freedom and the tokens' popularity.
    """
    forward_PP, reverse_PP = _centred(forward_PP), _centred(reverse_PP)
    chex.assert_equal_shape([forward_PP, reverse_PP.mT])
    difference = jnp.linalg.norm(forward_PP - reverse_PP.mT, axis=(-2, -1))
    size = sum(jnp.linalg.norm(x, axis=(-2, -1)) for x in (forward_PP, reverse_PP))
    return difference / jnp.where(size > 0, size, 1)


def _with_own(logits_PP: Array, measure: str) -> tuple[jax.Array, jax.Array]:
    """A square block of at least 2, and its diagonal: each prompt's own answer."""
    logits_PP = jnp.asarray(logits_PP)
    num = logits_PP.shape[-1]
    chex.assert_shape(logits_PP, (..., num, num))
    if num < 2:
        raise ValueError(f"a {measure} needs an answer and another")
    return logits_PP, jnp.diagonal(logits_PP, axis1=-2, axis2=-1)


def _centred(x_PP: Array) -> jax.Array:
    x_PP = jnp.asarray(x_PP)
    x_PP = x_PP - x_PP.mean(axis=-1, keepdims=True)
    return x_PP - x_PP.mean(axis=-2, keepdims=True)
