"""Texts as arrays, and shuffled epochs as a pure function of (key, step): no iterator to save."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.data.tokenizers import Tokenizer


def encode_answers(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]
) -> dict[str, np.ndarray]:
    """`prompt + answer` as rows of ids, of which the answer is scored.

    Rows are as long as the longest text; shorter ones are filled up on the right with
    `eos_id`, which is neither valid nor scored.

    Returns:
      Fields of a `Batch` over n examples: int32 "tokens_BL", bool "scored_BL" and "valid_BL".

    Raises:
      ValueError: a text that the tokenizer cannot hold, or a token that spans the end of a
        prompt.
    """
    ids = tokenizer.encode([p + a for p, a in zip(prompts, answers, strict=True)])
    prompt_ids = tokenizer.encode(prompts)
    for prompt, own, whole in zip(prompts, prompt_ids, ids, strict=True):
        if whole[: len(own)] != own:
            raise ValueError(f"the tokenizer joins the end of {prompt!r} with what follows it")
    length_B, prompt_B = (np.array([[len(i)] for i in rows]) for rows in (ids, prompt_ids))
    position_L = np.arange(length_B.max())[None]
    tokens_BL = np.full((len(ids), position_L.size), tokenizer.eos_id, np.int32)
    valid_BL = position_L < length_B
    tokens_BL[valid_BL] = np.concatenate(ids)
    scored_BL = valid_BL & (position_L >= prompt_B)
    return {"tokens_BL": tokens_BL, "scored_BL": scored_BL, "valid_BL": valid_BL}


def batch_indices(
    key: jax.Array, first_step: jax.Array | int, num_steps: int, num_examples: int, batch_size: int
) -> jax.Array:
    """Which examples steps first_step..first_step+num_steps-1 read: int32 [num_steps, batch_size].

    Epochs follow one another without a seam: with n examples, the slots e·n..(e+1)·n-1 of
    the stream hold permutation `fold_in(key, e)`, and step t reads slots t·b..(t+1)·b-1.
    Every example is thus seen exactly once an epoch, and a batch may span two epochs.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(f"need examples and a batch, got {num_examples=} and {batch_size=}")
    # step = round·n + rest, and a round of n steps is b whole epochs: no step·b to overflow int32.
    rounds, rest = jnp.divmod(jnp.asarray(first_step), num_examples)
    epochs, first_slot = _product_divmod(rest, batch_size, num_examples)
    first_epoch = rounds * batch_size + epochs
    slots = first_slot + jnp.arange(num_steps * batch_size)
    num_epochs = (num_steps * batch_size - 1) // num_examples + 2  # that many can be touched

    def shuffled(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)

    orders = jax.vmap(shuffled)(first_epoch + jnp.arange(num_epochs))
    indices = orders[slots // num_examples, slots % num_examples]
    return indices.reshape(num_steps, batch_size)


def _product_divmod(x: jax.Array, factor: int, divisor: int) -> tuple[jax.Array, jax.Array]:
    """(x·factor // divisor, x·factor % divisor) for x < divisor, bit by bit of `factor`.

    The product itself may be too large for int32.
    """
    quotient = remainder = jnp.zeros_like(x)
    for bit in f"{factor:b}":
        remainder = 2 * remainder + int(bit) * x
        quotient, remainder = 2 * quotient + remainder // divisor, remainder % divisor
    return quotient, remainder


def epoch_indices(
    key: jax.Array, first_step: jax.Array | int, num_steps: int, num_examples: int, batch_size: int
) -> jax.Array:
    """`batch_indices` for epochs that end by themselves: int32 [num_steps, batch_size].

    Each epoch is permutation `fold_in(key, e)` in ⌈n/b⌉ steps; the last one is filled up with
    -1, which stands for no example.
    """
    if num_examples < 1 or batch_size < 1:
        raise ValueError(f"need examples and a batch, got {num_examples=} and {batch_size=}")
    epoch_steps = -(-num_examples // batch_size)
    step_T = jnp.asarray(first_step) + jnp.arange(num_steps)
    num_epochs = (num_steps - 1) // epoch_steps + 2  # that many can be touched

    def shuffled(epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        missing = epoch_steps * batch_size - num_examples
        filled = jnp.pad(order, (0, missing), constant_values=-1)
        return filled.reshape(epoch_steps, batch_size)

    first_epoch = step_T[0] // epoch_steps
    orders = jax.vmap(shuffled)(first_epoch + jnp.arange(num_epochs))
    return orders[step_T // epoch_steps - first_epoch, step_T % epoch_steps]


def batch_at(arrays: Any, key: jax.Array, step: jax.Array | int, batch_size: int) -> Any:
    """Rows of step `step`: every array of the pytree `arrays` [n, ...] as [batch_size, ...].

    Runs on the device, under jit, with a traced `step`. The same (key, step) gives the
    same rows on any machine; see `batch_indices` for the order.

    Raises:
      ValueError: arrays of unequal length, none at all, or an empty batch.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(arrays)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"arrays must share one leading size, got shapes {shapes}")
    rows = batch_indices(key, step, 1, lengths.pop(), batch_size)[0]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], arrays)
