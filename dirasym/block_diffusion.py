"""Block diffusion: masked diffusion inside blocks, autoregression from block to block."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dirasym import keys
from dirasym.objectives import Sums, masked_diffusion, scored_tokens
from dirasym.rows import Capacity, check_mask_id
from dirasym.types import ApplyFn, Batch, Params, Rngs


def block_diffusion(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    block_size: int,
    mask_id: int,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
    **how: Any,
) -> Sums:
    """The loss of block diffusion (arXiv 2503.09573, eq. 6): Σ_k L_DCE(x^k | x^<k).

    Each block k of `block_size` tokens has a level of its own, its earlier blocks are clean, and
    its later ones are hidden. L_DCE is `masked_diffusion`'s, in any of its weightings. Blocks
    of one token, weighted "k", are the chain rule from left to right, each token read off an [M]
    in its own place; one block of all tokens is `masked_diffusion`. The paper's program reads a
    row once, beside a noisy copy of itself; here a row is read once a block: the same loss for
    any network, at L / block_size times the attention. `decoding.unmask(.., block_size=)` decodes.

    A network should not read later blocks (`TransformerConfig.block_size`): it finds [M] there.
    Blocks count valid tokens; the last may be shorter. `capacity` is that of the rows of a block,
    which never want more than `PerRow(block_size)`.

    Returns:
      sum: nats, weighted. count: examples with a scored token. aux: as `masked_diffusion`.

    Raises:
      ValueError: a block without tokens, `per_token`, which would divide a block's sum by the
        tokens of the block and not by those of the example, or as `masked_diffusion`.
    """
    check_mask_id(mask_id, apply_fn)
    if how.get("per_token"):
        raise ValueError("per_token counts the tokens of an example, not of a block: leave it out")
    num_blocks = -(-jnp.shape(batch.tokens_BL)[1] // max(block_size, 1))

    def of_block(block):
        one = in_block(batch, block, block_size, mask_id)
        noise_key = jax.random.fold_in(keys.threefry(key), block)
        asked = dict(mask_id=mask_id, capacity=capacity, rngs=_of_block(rngs, block))
        return masked_diffusion(apply_fn, params, one, noise_key, **asked, **how)

    sums_K = jax.vmap(of_block)(jnp.arange(num_blocks))
    total, _, aux = jax.tree.map(jnp.sum, sums_K)
    count = jnp.sum(jnp.any(scored_tokens(batch), axis=1)).astype(jnp.float32)
    return total, count, aux


def _of_block(rngs: Rngs | None, block: jax.Array) -> Rngs | None:
    if rngs is None:
        return None
    return {name: jax.random.fold_in(keys.threefry(key), block) for name, key in rngs.items()}


def in_block(batch: Batch, block: jax.Array | int, block_size: int, mask_id: int) -> Batch:
    """The same rows, noised and scored in one block and hidden behind it.

    Examples:
      >>> in_block(Batch.of([[5, 6, 7, 8]]), 0, 2, mask_id=0).tokens_BL.tolist()
      [[5, 6, 0, 0]]

    Raises:
      ValueError: a block without tokens.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    tokens_BL, scored_BL = jnp.asarray(batch.tokens_BL), scored_tokens(batch)
    noised_BL = scored_BL if batch.noised_BL is None else jnp.asarray(batch.noised_BL)
    valid_BL = jnp.ones_like(scored_BL) if batch.valid_BL is None else jnp.asarray(batch.valid_BL)
    block_BL = jnp.maximum(jnp.cumsum(valid_BL, axis=1) - 1, 0) // block_size
    return dataclasses.replace(
        batch,
        tokens_BL=jnp.where(valid_BL & (block_BL > block), mask_id, tokens_BL),
        scored_BL=scored_BL & (block_BL == block),
        noised_BL=noised_BL & (block_BL == block),
    )
