"""Excess loss in every unit, and the gap between directions (arXiv 2511.19997).

The paper's excess subtracts ln K, the entropy of a whole string, from a mean loss per token.
Here the excess is in nats per string, above the exact floor of the factorisation that the
model can represent: see `exact_floor`. Its zero is reached by an oracle and by nothing less.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import metrics
from dirasym.data import string_maps
from dirasym.objectives import Objective
from dirasym.types import ApplyFn, Batch, Params

FloorKind = Literal["joint", "parallel"]


class Floor(NamedTuple):
    """The least loss that a data set allows.

    Attributes:
      kind: "joint" for models of the whole target, token by token given those before it;
        "parallel" for models of each of its tokens given the source alone.
      nats_per_string: mean over examples.
      tokens_per_target: mean number of scored tokens.
    """

    kind: FloorKind
    nats_per_string: float
    tokens_per_target: float

    @property
    def nats_per_token(self) -> float:
        """Σ floor / Σ tokens: the least mean loss per token."""
        return self.nats_per_string / self.tokens_per_target


def exact_floor(
    sources: Sequence[Hashable],
    targets: Sequence[Sequence[Hashable]],
    kind: FloorKind,
    *,
    length_known: bool = False,
) -> Floor:
    """The floor of a factorisation on exactly these pairs.

    joint: H(target | source); parallel: Σ_p H(target_p | source), in nats per string, where
    H is the entropy of the empirical law of the pairs.

    Args:
      sources: one hashable each.
      targets: their tokens (or characters), of any length.
      kind: the factorisation.
      length_known: whether the model sees how many tokens the target has, as one that reads
        a row of mask tokens does. It is then part of the source.

    Raises:
      ValueError: an unknown kind.
    """
    targets = [tuple(target) for target in targets]
    if length_known:
        sources = [(source, len(target)) for source, target in zip(sources, targets, strict=True)]
    if kind == "joint":
        floor = string_maps.joint_floor(sources, targets)
    elif kind == "parallel":
        floor = string_maps.parallel_floor(sources, targets)
    else:
        raise ValueError(f"kind must be 'joint' or 'parallel', got {kind!r}")
    return Floor(kind, floor, sum(map(len, targets)) / len(targets))


def clean_loss(
    objective: Objective,
    apply_fn: ApplyFn,
    params: Params,
    data: dict[str, jax.Array],
    key: jax.Array,
    *,
    batch_size: int,
) -> jax.Array:
    """Σ nats / examples over a whole data set, with no dropout and the weights still.

    Args:
      objective: one whose sum is in nats; see `objectives`.
      apply_fn: the model.
      params: its parameters.
      data: `Batch` fields, each [n, ...].
      key: of the objective's noise; example i draws from fold_in(key, i).
      batch_size: examples at a time.

    Returns:
      Nats per string, a scalar: the sum of its batches' shares.
    """
    num_examples = len(data["tokens_BL"])

    def batch_nats(first):
        index_B = first + jnp.arange(batch_size)
        rows = {name: jnp.asarray(x)[index_B % num_examples] for name, x in data.items()}
        scored_BL = rows.get("scored_BL", jnp.ones(rows["tokens_BL"].shape, bool))
        rows["scored_BL"] = scored_BL & (index_B < num_examples)[:, None]
        batch = Batch(**rows, index_B=index_B, global_size=num_examples)
        return objective(apply_fn, params, batch, key)[0]

    nats = jax.lax.map(batch_nats, jnp.arange(0, num_examples, batch_size))
    return jnp.sum(nats / num_examples)


def excess_bits_per_stored_bit(excess_nats_per_string: float, bits_per_pair: float) -> float:
    """What is still missing, in bits, for each bit that the map takes to store.

    NaN for a map that takes none, such as all strings to one of them, inverse.
    """
    if bits_per_pair == 0:
        return math.nan
    return excess_nats_per_string / math.log(2) / bits_per_pair


def directional_gap(
    forward: Sequence[float], inverse: Sequence[float], level: float = 0.95
) -> metrics.Interval:
    """Inverse excess − forward excess, paired by seed: mean and Student interval."""
    difference = np.subtract(np.asarray(inverse, float), np.asarray(forward, float))
    return metrics.student_interval(difference, level)
