"""What is measured of a model's answers."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dirasym.objectives import exclude
from dirasym.rows import Capacity, behind, call, check_read, hidden_share, read_at, reading
from dirasym.types import ApplyFn, Array, Params


def generation_success(tokens_BL: Array, target_B: Array) -> jax.Array:
    """Whether each generated row holds its target anywhere: bool [B]."""
    chex.assert_shape(jnp.asarray(target_B), np.shape(tokens_BL)[:1])
    return jnp.any(jnp.asarray(tokens_BL) == jnp.asarray(target_B)[:, None], axis=1)


def probabilities(
    apply_fn: ApplyFn,
    params: Params,
    tokens_EL: Array,
    *,
    excluded_id: int | None = None,
    bos_id: int | None = None,
) -> jax.Array:
    """The model's distribution over the token at each position: float32 [E, L, V].

    A masked model reads each row as it stands; pass its mask id as `excluded_id`. With
    `bos_id` a causal model is read: position l sees BOS and the tokens before l only.
    """
    noise_E = hidden_share(tokens_EL, excluded_id, None)
    tokens_EL = _behind_bos(tokens_EL, bos_id)
    logits = call(apply_fn, params, tokens_EL, noise_B=noise_E)
    check_read("bos_id", bos_id, apply_fn, logits.shape[-1])
    return _softmax(logits, excluded_id)


def target_probability(
    apply_fn: ApplyFn,
    params: Params,
    tokens_EL: Array,
    target_E: Array,
    asked_EL: Array,
    *,
    excluded_id: int | None = None,
    bos_id: int | None = None,
    capacity: Capacity = None,
) -> jax.Array:
    """p(target | row) at the asked positions, 0 elsewhere: float32 [E, L]; see `probabilities`.

    `capacity` says how many positions are asked, as in `objectives`.
    """
    chex.assert_shape(jnp.asarray(target_E), np.shape(tokens_EL)[:1])
    tokens_EL = _behind_bos(tokens_EL, bos_id)
    target_EL = jnp.broadcast_to(jnp.asarray(target_E)[:, None], tokens_EL.shape)
    asked_EL = jnp.asarray(asked_EL)
    asked = (tokens_EL, asked_EL, target_EL)
    noise_E = hidden_share(tokens_EL, excluded_id, None)
    read = reading("bos_id", bos_id, apply_fn, _probability(excluded_id))
    return read_at(read, apply_fn, params, *asked, capacity=capacity, noise_B=noise_E)


def _probability(excluded_id: int | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def read(logits, target):
        p = _softmax(logits, excluded_id)
        return jnp.take_along_axis(p, target[..., None], axis=-1)[..., 0]

    return read


def _behind_bos(tokens_EL: Array, bos_id: int | None) -> jax.Array:
    tokens_EL = jnp.asarray(tokens_EL)
    check_read("bos_id", bos_id, None)
    if bos_id is None:
        return tokens_EL
    return behind(bos_id, tokens_EL)


def _softmax(logits: jax.Array, excluded_id: int | None) -> jax.Array:
    return jax.nn.softmax(exclude(logits, excluded_id).astype(jnp.float32), axis=-1)
