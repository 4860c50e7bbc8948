"""Keys that draw the same wherever an example stands."""

import jax
import jax.numpy as jnp

# Folded into a key in place of an example or a step, as none reaches it.
BEYOND = 2**32 - 1


def threefry(key: jax.Array) -> jax.Array:
    """A key of the Threefry implementation: `key` itself if it is one, or made of its words.

    Everything here draws for an example with a key of its own, under `vmap`. XLA's bit
    generator ("rbg", "unsafe_rbg") then draws for all of them with the first one's key, so that
    what an example meets depends on its company; Threefry draws the same alone and among others.
    Raw keys (uint32 words) are taken for keys of JAX's default implementation.

    Examples:
      >>> import jax
      >>> key = threefry(jax.random.key(0, impl="rbg"))
      >>> str(jax.random.key_impl(key))
      'threefry2x32'

    Raises:
      TypeError: it is neither; a seed is made a key by `jax.random.key`.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or shape[-1:] > (1,)):
        raise TypeError(f"key must be a key such as jax.random.key(0), got {key!r:.80}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    first, second, *others = jax.random.key_data(key)
    made = jax.random.wrap_key_data(jnp.stack([first, second]), impl="threefry2x32")
    for word in others:
        made = jax.random.fold_in(made, word)
    return made
