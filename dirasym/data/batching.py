"""Shuffled epochs as a pure function of (key, step): no iterator, so nothing to checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp


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
    first_epoch = rounds * batch_size + rest * batch_size // num_examples
    slots = rest * batch_size % num_examples + jnp.arange(num_steps * batch_size)
    num_epochs = (num_steps * batch_size - 1) // num_examples + 2  # that many can be touched

    def shuffled(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)

    orders = jax.vmap(shuffled)(first_epoch + jnp.arange(num_epochs))
    indices = orders[slots // num_examples, slots % num_examples]
    return indices.reshape(num_steps, batch_size)


def batch_at(arrays: Any, key: jax.Array, step: jax.Array | int, batch_size: int) -> Any:
    """Rows of step `step`: every array of the pytree `arrays` [n, ...] as [batch_size, ...].

    Runs on the device, under jit, with a traced `step`. The same (key, step) gives the
    same rows on any machine; see `batch_indices` for the order.

    Raises:
      ValueError: arrays of unequal length, none at all, or an empty batch.
    """
    lengths = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(arrays)}
    if len(lengths) != 1:
        raise ValueError(f"arrays must share one leading size, got {sorted(lengths)}")
    rows = batch_indices(key, step, 1, lengths.pop(), batch_size)[0]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], arrays)
