"""Generation inside jit: left to right, and by revealing masked positions.

Where a model's logits are NaN no token is chosen: −1 stands there (the largest number, of
unsigned tokens).
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from dirasym import keys
from dirasym.objectives import exclude
from dirasym.precision import widened
from dirasym.rows import behind, call, check_mask_id, check_read, hidden_share, takes
from dirasym.types import ApplyFn, Array, Params

Order = Literal["random", "left_to_right", "right_to_left"]


def top_k_sample(key: jax.Array, logits_V: jax.Array, top_k: int | None) -> jax.Array:
    """One token from the renormalised `top_k` most probable (all for None, the best for 1).

    Drawn in float32 or what is wider of the logits: in bfloat16 noise ties, and the first wins.

    Raises:
      ValueError: a `top_k` outside 1..V.
    """
    if top_k is not None and not 1 <= top_k <= len(logits_V):
        raise ValueError(f"top_k must be in 1..{len(logits_V)}, got {top_k}")
    logits_V = widened(logits_V)
    if top_k is None:
        return _chosen(jax.random.categorical(key, logits_V), logits_V)
    best_K, token_K = jax.lax.top_k(logits_V, top_k)
    return _chosen(token_K[jax.random.categorical(key, best_K)], logits_V)


def _chosen(token: jax.Array, logits: jax.Array) -> jax.Array:
    """Tokens [..] chosen by logits [.., V], −1 where there is none."""
    return jnp.where(jnp.isnan(jnp.max(logits, axis=-1)), -1, token)


def left_to_right(
    apply_fn: ApplyFn,
    params: Params,
    prompt_BL: Array,
    key: jax.Array,
    *,
    prompt_length: int,
    bos_id: int,
    top_k: int | None,
    index_B: Array | None = None,
) -> jax.Array:
    """Continues prompts with a causal model that reads BOS first: tokens_BL.

    Positions `prompt_length`.. of `prompt_BL` are overwritten, one after another. Row b
    draws from `fold_in(key, index_B[b])`, with b itself when None.

    Raises:
      ValueError: a `prompt_length` outside 0..L, or a BOS that the model has no embedding of.
    """
    check_read("bos_id", bos_id, apply_fn)
    prompt_BL = jnp.asarray(prompt_BL)
    num_rows, length = prompt_BL.shape
    if not 0 <= prompt_length <= length:
        raise ValueError(f"prompt_length must be in 0..{length}, got {prompt_length}")
    keys_B = _row_keys(key, num_rows, index_B)

    def fill(tokens_BL, position):
        inputs_BL = behind(bos_id, tokens_BL)
        rows_B = jnp.arange(num_rows) * length + position
        logits_BV = call(apply_fn, params, inputs_BL, rows_R=rows_B)
        check_read("bos_id", bos_id, apply_fn, logits_BV.shape[-1])
        drawn_B = _sample_rows(keys_B, position, logits_BV, top_k)
        return tokens_BL.at[:, position].set(drawn_B.astype(tokens_BL.dtype)), None

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
    block_size: int | None = None,
    index_B: Array | None = None,
) -> jax.Array:
    """Fills every [M] of a batch with a masked model: tokens_BL.

    The masked positions of a row are ranked by `order` (a fresh uniform permutation for
    "random"). In each of `num_steps` steps the next share of them is revealed, each drawn
    from its own conditional given what stood before the step; one position a step when
    None. `num_steps=1` reveals all at once. With `block_size` blocks of so many positions are
    filled one after another, each in `order`. [M] itself is never drawn. Row b draws from
    `fold_in(key, index_B[b])`, with b itself when None.

    Raises:
      ValueError: an unknown order, no steps or tokens in a block, or a mask id that the model
        lacks.
    """
    check_mask_id(mask_id, apply_fn)
    tokens_BL = jnp.asarray(tokens_BL)
    num_rows, length = tokens_BL.shape
    keys_B = _row_keys(key, num_rows, index_B)
    masked_BL = tokens_BL == mask_id
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    rank_BL = _ranks(masked_BL, order, keys_B, block_size or length)
    masked_B = jnp.sum(masked_BL, axis=1)
    num_steps = length if num_steps is None else num_steps
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    most = -(-length // num_steps)  # that a row reveals in a step

    def reveal(tokens_BL, step):
        # One position a step counts ranks; shares of the row's own masks otherwise.
        per_B = jnp.full_like(masked_B, num_steps) if num_steps == length else masked_B
        first_B, end_B = step * per_B // num_steps, (step + 1) * per_B // num_steps
        now_BL = masked_BL & (rank_BL >= first_B[:, None]) & (rank_BL < end_B[:, None])
        noise_B = hidden_share(tokens_BL, mask_id, None)
        if most == length:
            place_BP = jnp.broadcast_to(jnp.arange(length), tokens_BL.shape)
            logits_BPV = call(apply_fn, params, tokens_BL, noise_B=noise_B)
        else:
            place_BP = jnp.argsort(~now_BL, axis=1)[:, :most]
            rows_R = (jnp.arange(num_rows)[:, None] * length + place_BP).ravel()
            logits_BPV = call(apply_fn, params, tokens_BL, rows_R=rows_R, noise_B=noise_B)
            logits_BPV = logits_BPV.reshape(num_rows, most, -1)
        logits_BPV = _without(mask_id, logits_BPV, apply_fn)
        if num_steps == length:  # one draw a row
            drawn_BP = _sample_rows(keys_B, step, logits_BPV[:, 0], top_k)[:, None]
        else:
            step_keys_B = jax.vmap(lambda k: jax.random.fold_in(k, step))(keys_B)
            keys_BL = jax.vmap(lambda k: jax.random.split(k, length))(step_keys_B)
            keys_BP = jnp.take_along_axis(keys_BL, place_BP, axis=1)
            draw = jax.vmap(jax.vmap(lambda k, logits_V: top_k_sample(k, logits_V, top_k)))
            drawn_BP = draw(keys_BP, logits_BPV)
        is_now_BP = jnp.take_along_axis(now_BL, place_BP, axis=1)
        old_BP = jnp.take_along_axis(tokens_BL, place_BP, axis=1)
        new_BP = jnp.where(is_now_BP, drawn_BP.astype(tokens_BL.dtype), old_BP)
        return tokens_BL.at[jnp.arange(num_rows)[:, None], place_BP].set(new_BP), None

    return jax.lax.scan(reveal, tokens_BL, jnp.arange(num_steps))[0]


def _ranks(masked_BL: jax.Array, order: Order, keys_B: jax.Array, block_size: int) -> jax.Array:
    """When the masked positions of a row are revealed, from 0; the others come after them."""
    length = masked_BL.shape[1]
    if order == "random":
        order_keys_B = jax.vmap(lambda k: jax.random.fold_in(k, length))(keys_B)
        place_BL = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(order_keys_B)
    elif order in ("left_to_right", "right_to_left"):
        place_L = jnp.arange(length, dtype=jnp.float32)
        place_L = place_L if order == "left_to_right" else -place_L
        place_BL = jnp.broadcast_to(place_L, masked_BL.shape)
    else:
        raise ValueError(f"order must be random, left_to_right or right_to_left, got {order!r}")
    block_BL = jnp.where(masked_BL, jnp.arange(length) // block_size, length)
    return jnp.argsort(jnp.lexsort((place_BL, block_BL), axis=1), axis=1)


def greedy(
    extend_fn: Callable[..., tuple[jax.Array, Any]],
    params: Params,
    prompt_BL: Array,
    valid_BL: Array,
    *,
    num_new: int,
    eos_id: int | None = None,
) -> jax.Array:
    """The likeliest continuation, token by token, with a key/value cache: int32 [B, num_new].

    Padding (False in `valid_BL`) may be on either side and changes nothing. A row ends at
    `eos_id`, which fills what is left of it; the loop ends when all rows have.

    Args:
      extend_fn: `models.make_extend_fn(model)`, `recomputing(apply_fn)`, or anything of that
        signature.
      params: its parameters.
      prompt_BL: prompts, each with at least one token.
      valid_BL: False at padding.
      num_new: tokens to generate.
      eos_id: ends a row; None never.

    Raises:
      ValueError: `num_new` below 1.
    """
    logits_BV, cache = start_greedy(extend_fn, params, prompt_BL, valid_BL, num_new=num_new)
    started = dict(logits_BV=logits_BV, cache=cache, num_new=num_new, eos_id=eos_id)
    return go_on_greedy(extend_fn, params, valid_BL, **started)


def start_greedy(
    extend_fn: Callable[..., tuple[jax.Array, Any]],
    params: Params,
    prompt_BL: Array,
    valid_BL: Array,
    *,
    num_new: int,
) -> tuple[jax.Array, Any]:
    """`greedy`'s reading of the prompts: logits of the first new token [B, V], and the cache."""
    if num_new < 1:
        raise ValueError(f"num_new must be at least 1, got {num_new}")
    prompt_BL, valid_BL = jnp.asarray(prompt_BL), jnp.asarray(valid_BL)
    chex.assert_equal_shape([prompt_BL, valid_BL])
    valid_BS = jnp.pad(valid_BL, ((0, 0), (0, num_new)), constant_values=True)
    logits_BLV, cache = extend_fn(params, {}, prompt_BL, 0, valid_BS)
    last_B = prompt_BL.shape[1] - 1 - jnp.argmax(valid_BL[:, ::-1], axis=1)
    return jnp.take_along_axis(logits_BLV, last_B[:, None, None], axis=1)[:, 0], cache


def go_on_greedy(
    extend_fn: Callable[..., tuple[jax.Array, Any]],
    params: Params,
    valid_BL: Array,
    *,
    logits_BV: jax.Array,
    cache: Any,
    num_new: int,
    eos_id: int | None,
) -> jax.Array:
    """`greedy` from what `start_greedy` gives."""
    num_rows, length = jnp.shape(valid_BL)
    valid_BS = jnp.pad(jnp.asarray(valid_BL), ((0, 0), (0, num_new)), constant_values=True)
    first_B = _chosen(jnp.argmax(logits_BV, axis=-1), logits_BV).astype(jnp.int32)
    new_BT = jnp.full((num_rows, num_new), 0 if eos_id is None else eos_id, jnp.int32)
    new_BT = new_BT.at[:, 0].set(first_B)

    def ended(token_B):
        return jnp.zeros(token_B.shape, bool) if eos_id is None else token_B == eos_id

    def is_unfinished(carry):
        step, _, _, ended_B, _ = carry
        return (step < num_new) & ~jnp.all(ended_B)

    def add_token(carry):
        step, new_BT, token_B, ended_B, cache = carry
        logits_BLV, cache = extend_fn(params, cache, token_B[:, None], length + step - 1, valid_BS)
        logits_BV = logits_BLV[:, -1]
        token_B = _chosen(jnp.argmax(logits_BV, axis=-1), logits_BV).astype(jnp.int32)
        token_B = jnp.where(ended_B, new_BT[:, step], token_B)
        return step + 1, new_BT.at[:, step].set(token_B), token_B, ended_B | ended(token_B), cache

    carry = (jnp.int32(1), new_BT, first_B, ended(first_B), cache)
    return jax.lax.while_loop(is_unfinished, add_token, carry)[1]


def recomputing(apply_fn: ApplyFn) -> Callable[..., tuple[jax.Array, Any]]:
    """An `extend_fn` for `greedy` of a causal model without a cache: it reads every row anew.

    The tokens of a row are moved together, so that no model need be told of padding; what is
    behind the last one a causal model does not read. A step costs a reading of whole rows.
    """

    def extend_fn(params, cache, tokens_BL, start, valid_BS):
        num_rows, size = tokens_BL.shape
        row_BS = cache.get("tokens", jnp.zeros(valid_BS.shape, jnp.int32))
        row_BS = jax.lax.dynamic_update_slice_in_dim(row_BS, tokens_BL.astype(jnp.int32), start, 1)
        length = row_BS.shape[1]
        read_BS = jnp.asarray(valid_BS) & (jnp.arange(length) < start + size)[None]
        order_BS = jnp.argsort(~read_BS, axis=1, stable=True)
        place_BS = jnp.maximum(jnp.cumsum(read_BS, axis=1) - 1, 0)
        place_BL = jax.lax.dynamic_slice_in_dim(place_BS, start, size, axis=1)
        rows_R = (jnp.arange(num_rows)[:, None] * length + place_BL).ravel()
        together_BS = jnp.take_along_axis(row_BS, order_BS, axis=1)
        # Some models cannot do without it.
        told_BS = jnp.take_along_axis(read_BS, order_BS, axis=1)
        valid_BS = told_BS if takes(apply_fn, "valid_BL") else None
        logits_RV = call(apply_fn, params, together_BS, rows_R=rows_R, valid_BL=valid_BS)
        return logits_RV.reshape(num_rows, size, -1), {"tokens": row_BS}

    return extend_fn


def remask(
    apply_fn: ApplyFn,
    params: Params,
    prompt_BL: Array,
    valid_BL: Array | None,
    key: jax.Array | None = None,
    *,
    mask_id: int,
    num_new: int = 32,
    num_steps: int = 32,
    block_length: int = 32,
    remasking: Literal["low_confidence", "random"] = "low_confidence",
    index_B: Array | None = None,
) -> jax.Array:
    """LLaDA's generation (Nie et al., 2025, Algorithms 4 and 5): int32 [B, num_new].

    [M] stands for every new token at first. Blocks of `block_length` are filled from left to
    right, each in num_steps / blocks steps; a step predicts every [M] at its likeliest token
    and keeps, of the block's predictions, an even share: the most probable ones
    ("low_confidence" ones are masked again) or random ones. [M] itself is never predicted.
    `num_steps` = `num_new` reveals one token a step. Padding as in `greedy`; there is none without
    `valid_BL`. At random, row b draws from `fold_in(key, index_B[b])`, with b itself when None.

    Raises:
      ValueError: blocks or steps that do not divide evenly, an unknown remasking, no key for a
        random one, or a mask id that the model lacks.
    """
    check_mask_id(mask_id, apply_fn)
    steps_per_block = check_blocks(num_new, num_steps, block_length)
    if remasking not in ("low_confidence", "random"):
        raise ValueError(f"remasking must be low_confidence or random, got {remasking!r}")
    if remasking == "random" and key is None:
        raise ValueError("random remasking needs a key")
    length = (prompt_BL := jnp.asarray(prompt_BL)).shape[1]
    padding = ((0, 0), (0, num_new))
    tokens_BS = jnp.pad(prompt_BL, padding, constant_values=mask_id)
    valid_BS = None
    if valid_BL is not None:
        chex.assert_equal_shape([prompt_BL, valid_BL := jnp.asarray(valid_BL)])
        valid_BS = jnp.pad(valid_BL, padding, constant_values=True)
    num_rows, num_slots = tokens_BS.shape
    keys_B = None if key is None else _row_keys(key, num_rows, index_B)
    first_R = (num_slots * jnp.arange(num_rows)[:, None] + jnp.arange(block_length)[None]).ravel()

    def reveal(tokens_BS, step):
        block, step_in_block = step // steps_per_block, step % steps_per_block
        start = length + block * block_length
        tokens_BP = jax.lax.dynamic_slice_in_dim(tokens_BS, start, block_length, axis=1)
        optional = dict(valid_BL=valid_BS, noise_B=hidden_share(tokens_BS, mask_id, valid_BS))
        logits_RV = call(apply_fn, params, tokens_BS, rows_R=first_R + start, **optional)
        logits_BPV = _without(mask_id, logits_RV, apply_fn).reshape(num_rows, block_length, -1)
        guess_BP = _chosen(jnp.argmax(logits_BPV, axis=-1), logits_BPV).astype(tokens_BS.dtype)
        if remasking == "random":
            step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
            score_BP = jax.vmap(lambda k: jax.random.uniform(k, (block_length,)))(step_keys_B)
        else:
            wide_BPV = widened(logits_BPV)
            score_BP = jnp.max(jax.nn.log_softmax(wide_BPV, axis=-1), axis=-1)
            score_BP = jnp.nan_to_num(score_BP, nan=jnp.finfo(jnp.float32).min)
        is_open_BP = tokens_BP == mask_id
        score_BP = jnp.where(is_open_BP, score_BP, -jnp.inf)
        share, extra = divmod(block_length, steps_per_block)
        num_kept = jnp.where(step_in_block < extra, share + 1, share)
        rank_BP = jnp.argsort(jnp.argsort(-score_BP, axis=1), axis=1)
        tokens_BP = jnp.where(is_open_BP & (rank_BP < num_kept), guess_BP, tokens_BP)
        return jax.lax.dynamic_update_slice_in_dim(tokens_BS, tokens_BP, start, axis=1), None

    return jax.lax.scan(reveal, tokens_BS, jnp.arange(num_steps))[0][:, length:]


def check_blocks(num_new: int, num_steps: int, block_length: int) -> int:
    """Steps a block of `remask`. Raises ValueError for what does not divide evenly."""
    if block_length < 1 or num_new % block_length:
        raise ValueError(f"{num_new} new tokens do not divide into blocks of {block_length}")
    num_blocks = num_new // block_length
    if num_steps < 1 or num_blocks < 1 or num_steps % num_blocks:
        raise ValueError(f"{num_steps} steps do not divide into {num_blocks} blocks")
    return num_steps // num_blocks


def _without(mask_id: int, logits: jax.Array, apply_fn: ApplyFn) -> jax.Array:
    check_mask_id(mask_id, apply_fn, logits.shape[-1])
    return exclude(logits, mask_id)


def _row_keys(key: jax.Array, num_rows: int, index_B: Array | None) -> jax.Array:
    index_B = jnp.arange(num_rows) if index_B is None else jnp.asarray(index_B)
    chex.assert_shape(index_B, (num_rows,))
    return jax.vmap(jax.random.fold_in, (None, 0))(keys.threefry(key), index_B)


def _sample_rows(keys_B, step, logits_BV, top_k) -> jax.Array:
    """One draw a row, keyed by (row, step)."""
    return jax.vmap(lambda k, logits_V: top_k_sample(jax.random.fold_in(k, step), logits_V, top_k))(
        keys_B, logits_BV
    )
