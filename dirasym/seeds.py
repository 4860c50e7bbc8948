"""Several seeds in one program: states with a leading axis of seeds, and apart again."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.training import Data, TrainState


def stack(states: Sequence[TrainState]) -> TrainState:
    """States of several seeds as one with a leading axis; the only one as it is.

    What is frozen must be the same for all, and gets no axis.
    """
    if len(states) == 1:
        return states[0]
    # By their leaves: each state may have an optimizer of its own, and no two are equal.
    apart = [state.replace(frozen=None) for state in states]
    leaves = zip(*map(jax.tree.leaves, apart), strict=True)
    structure = jax.tree.structure(apart[0])
    stacked = jax.tree.unflatten(structure, [jnp.stack(leaf) for leaf in leaves])
    return stacked.replace(frozen=states[0].frozen)


def part(state: TrainState, place: int, count: int) -> TrainState:
    """The state of one seed, by its place among the `count` of `stack`; a copy, if of several."""
    if count == 1:
        return state
    bare = jax.tree.map(lambda x: x[place], state.replace(frozen=None))
    return bare.replace(frozen=state.frozen)


def joined(data: Sequence[Data]) -> tuple[Data, bool]:
    """The examples of several seeds for one program, and whether they have an axis of seeds.

    Seeds that were given the same object share it.
    """
    if all(one is data[0] for one in data):
        return data[0], False
    return jax.tree.map(lambda *x: np.stack(x), *data), True


def by_seed(metrics: Mapping[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    """Metrics [T] of a seed, or [seeds, T] of several, apart."""
    if count == 1:
        return [{key: np.asarray(x) for key, x in metrics.items()}]
    return [{key: np.asarray(x)[seed] for key, x in metrics.items()} for seed in range(count)]
