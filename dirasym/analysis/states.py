"""Hidden states: what a linen model computes inside, and whether two sets of it speak of one thing.

Two sets of states speak of the same items, such as facts that are asked in two directions. If an
item is one entry whichever way it is asked, its states lie nearest to each other (`nearest`), and
what a linear probe learns of it on one set holds on the other (`probe`). arXiv 2604.04943 takes
distances and probes to tell distinct entries of a fact apart. Each set is centred by itself, so
that what all of it share, such as how it is asked, does not count.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dirasym.types import Array, Params

RIDGE = 0.01  # of the mean variance of a coordinate


def captured(model: nn.Module, params: Params, tokens_BL: Array, name: str) -> jax.Array:
    """What the submodule `name` of a linen model returns: of a transformer, [B, L, D].

    "final_norm" of a pre-norm `Transformer` is what its head reads, "blocks_2" the residual stream
    behind the third layer.

    Raises:
      ValueError: there is no such submodule, or it does not run.
    """
    _, kept = model.apply(
        {"params": params},
        tokens_BL,
        capture_intermediates=lambda module, _: module.name == name,
        mutable=["intermediates"],
    )
    found = kept.get("intermediates", {})
    if name not in found:
        raise ValueError(f"the model runs no submodule {name!r}")
    return found[name]["__call__"][0]


def nearest(states_XD: Array, others_XD: Array) -> jax.Array:
    """Whether each item's state has its own among the others nearest to it, by cosine: bool [X].

    A guess is right for 1/X of them. Row x of both is of item x.

    Examples:
      >>> states_XD = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> nearest(states_XD, 5 * states_XD + 7).tolist()
      [True, True, True]
      >>> nearest(states_XD, states_XD[::-1]).tolist()
      [False, True, False]
    """
    x_XD, y_XD = (_centred(states) for states in (states_XD, others_XD))
    length_X1 = jnp.linalg.norm(y_XD, axis=1, keepdims=True)
    score_XY = x_XD @ (y_XD / jnp.where(length_X1 > 0, length_X1, 1)).T
    return jnp.argmax(score_XY, axis=1) == jnp.arange(len(score_XY))


def probe(
    states_ED: Array, item_E: Array, asked_FD: Array, num_items: int, *, ridge: float = RIDGE
) -> jax.Array:
    """The item that a linear probe names for each of other states: int [F].

    W = argmin ‖Y − X W‖² + λ ‖W‖², with X the states, Y one-hot by item and λ = ridge · E · (mean
    variance of a coordinate); the largest entry of x W is named.

    Args:
      states_ED: on which the probe is fitted.
      item_E: of which item each is.
      asked_FD: the other states.
      num_items: how many items there are.
      ridge: above 0.
    """
    x_ED = _centred(states_ED)
    y_EX = jax.nn.one_hot(item_E, num_items)
    gram_DD = x_ED.T @ x_ED
    shrink = ridge * jnp.trace(gram_DD) / len(gram_DD)
    weights_DX = jnp.linalg.solve(gram_DD + shrink * jnp.eye(len(gram_DD)), x_ED.T @ y_EX)
    return jnp.argmax(_centred(asked_FD) @ weights_DX, axis=1)


def _centred(states_XD: Array) -> jax.Array:
    states_XD = jnp.asarray(states_XD)
    return states_XD - states_XD.mean(axis=0, keepdims=True)
