"""Generation inside jit: left to right, and by revealing masked positions in an order."""

from typing import Literal

import jax
import jax.numpy as jnp

from dirasym.objectives import call, exclude
from dirasym.types import ApplyFn, Array, Params

Order = Literal["random", "left_to_right", "right_to_left"]


def top_k_sample(key: jax.Array, logits_V: jax.Array, top_k: int | None) -> jax.Array:
    """One token from the renormalised `top_k` most probable (all for None, the best for 1)."""
    if top_k is None:
        return jax.random.categorical(key, logits_V)
    best_K, token_K = jax.lax.top_k(logits_V, top_k)
    return token_K[jax.random.categorical(key, best_K)]


def left_to_right(
    apply_fn: ApplyFn,
    params: Params,
    prompt_BL: Array,
    key: jax.Array,
    *,
    prompt_length: int,
    bos_id: int,
    top_k: int | None,
) -> jax.Array:
    """Continues prompts with a causal model that reads BOS first: tokens_BL.

    Positions `prompt_length`.. of `prompt_BL` are overwritten, one after another. Row b
    draws from `fold_in(key, b)`.
    """
    prompt_BL = jnp.asarray(prompt_BL)
    num_rows, length = prompt_BL.shape
    keys_B = _row_keys(key, num_rows)

    def fill(tokens_BL, position):
        inputs_BL = jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)), constant_values=bos_id)
        scored_BL = jnp.broadcast_to(jnp.arange(length) == position, tokens_BL.shape)
        logits_BLV = call(apply_fn, params, inputs_BL, scored_BL=scored_BL)
        drawn_B = _sample_rows(keys_B, position, logits_BLV[:, position], top_k)
        return tokens_BL.at[:, position].set(drawn_B), None

    return jax.lax.scan(fill, prompt_BL, jnp.arange(prompt_length, length))[0]


def unmask(
    apply_fn: ApplyFn,
    params: Params,
    tokens_BL: Array,
    key: jax.Array,
    *,
    mask_id: int,
    top_k: int | None,
    order: Order = "random",
    num_steps: int | None = None,
) -> jax.Array:
    """Fills every [M] of a batch with a masked model: tokens_BL.

    The masked positions of a row are ranked by `order` (a fresh uniform permutation for
    "random"). In each of `num_steps` steps the next share of them is revealed, each drawn
    from its own conditional given what stood before the step; one position a step when
    None. `num_steps=1` reveals all at once. [M] itself is never drawn.

    Raises:
      ValueError: an unknown order.
    """
    tokens_BL = jnp.asarray(tokens_BL)
    num_rows, length = tokens_BL.shape
    keys_B = _row_keys(key, num_rows)
    if order == "random":
        order_keys_B = jax.vmap(lambda k: jax.random.fold_in(k, length))(keys_B)
        place_BL = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(order_keys_B)
    elif order in ("left_to_right", "right_to_left"):
        place_L = jnp.arange(length) if order == "left_to_right" else -jnp.arange(length)
        place_BL = jnp.broadcast_to(place_L, tokens_BL.shape)
    else:
        raise ValueError(f"order must be random, left_to_right or right_to_left, got {order!r}")
    masked_BL = tokens_BL == mask_id
    rank_BL = jnp.argsort(jnp.argsort(jnp.where(masked_BL, place_BL, jnp.inf), axis=1), axis=1)
    masked_B = jnp.sum(masked_BL, axis=1)
    num_steps = length if num_steps is None else num_steps

    def reveal(tokens_BL, step):
        # One position a step counts ranks; shares of the row's own masks otherwise.
        per_B = jnp.full_like(masked_B, num_steps) if num_steps == length else masked_B
        first_B, end_B = step * per_B // num_steps, (step + 1) * per_B // num_steps
        now_BL = masked_BL & (rank_BL >= first_B[:, None]) & (rank_BL < end_B[:, None])
        logits_BLV = exclude(call(apply_fn, params, tokens_BL, scored_BL=now_BL), mask_id)
        if num_steps == length:  # one draw a row
            position_B = jnp.argmax(now_BL, axis=1)
            logits_BV = jnp.take_along_axis(logits_BLV, position_B[:, None, None], axis=1)[:, 0]
            drawn_BL = _sample_rows(keys_B, step, logits_BV, top_k)[:, None]
        else:
            step_keys_B = jax.vmap(lambda k: jax.random.fold_in(k, step))(keys_B)
            keys_BL = jax.vmap(lambda k: jax.random.split(k, length))(step_keys_B)
            draw = jax.vmap(jax.vmap(lambda k, logits_V: top_k_sample(k, logits_V, top_k)))
            drawn_BL = draw(keys_BL, logits_BLV)
        return jnp.where(now_BL, drawn_BL, tokens_BL), None

    return jax.lax.scan(reveal, tokens_BL, jnp.arange(num_steps))[0]


def _row_keys(key: jax.Array, num_rows: int) -> jax.Array:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(num_rows))


def _sample_rows(keys_B, step, logits_BV, top_k) -> jax.Array:
    """One draw a row, keyed by (row, step)."""
    return jax.vmap(lambda k, logits_V: top_k_sample(jax.random.fold_in(k, step), logits_V, top_k))(
        keys_B, logits_BV
    )
