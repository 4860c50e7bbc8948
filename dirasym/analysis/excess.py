"""Excess loss in every unit, and the gap between directions (arXiv 2511.19997).

The paper's excess subtracts ln K, the entropy of a whole string, from a mean loss per token.
Here the excess is in nats per string, above the exact floor of the factorisation that the
model can represent: see `exact_floor`. Its zero is reached by an oracle and by nothing less.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import intervals
from dirasym.data import batching, string_maps
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

    @property
    def bits_per_string(self) -> float:
        """The same floor in bits."""
        return self.nats_per_string / math.log(2)


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

    Examples:
      >>> floor = exact_floor(["a", "a"], ["xx", "yy"], "parallel")
      >>> round(floor.nats_per_string, 3), floor.tokens_per_target  # 2 ln 2: each token is a guess
      (1.386, 2.0)

    Args:
      sources: one hashable each.
      targets: their tokens (or characters), of any length.
      kind: the factorisation.
      length_known: whether the model sees how many tokens the target has, as one that reads
        a row of mask tokens does. It is then part of the source.

    Raises:
      ValueError: an unknown kind, no pairs, sources of another number than targets, or targets
        that are no sequences or hold no token.
    """
    if len(sources) != len(targets) or not len(sources):
        raise ValueError(
            "sources and targets must be as many, one or more, got "
            f"{len(sources)} and {len(targets)}"
        )
    for target in targets:
        if not hasattr(target, "__iter__"):
            raise ValueError(f"targets must be strings or sequences of tokens, got {target!r}")
    targets = [tuple(target) for target in targets]
    if not any(targets):
        raise ValueError("targets hold no token")
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

    Raises:
      ValueError: fields of different n, or an empty batch.
    """
    num_examples = batching.count_examples(data)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    def batch_nats(first):
        index_B = first + jnp.arange(batch_size)
        rows = {name: jnp.asarray(x)[index_B % num_examples] for name, x in data.items()}
        scored_BL = rows.get("scored_BL", jnp.ones(rows["tokens_BL"].shape, bool))
        rows["scored_BL"] = scored_BL & (index_B < num_examples)[:, None]
        batch = Batch(**rows, index_B=index_B, global_size=num_examples)
        return objective(apply_fn, params, batch, key)[0]

    nats = jax.lax.map(batch_nats, jnp.arange(0, num_examples, batch_size))
    return jnp.sum(nats / num_examples)


class Case(NamedTuple):
    """A map in one direction as a model reads it.

    Attributes:
      of: the map.
      direction: of it.
      data: `Batch` fields [n, ..], a row a pair.
      floor: the least loss that they allow the model's factorisation.
    """

    of: string_maps.StringMap
    direction: string_maps.Direction
    data: dict[str, Any]
    floor: Floor


def make_case(
    of: string_maps.StringMap,
    direction: string_maps.Direction,
    data: dict[str, Any],
    kind: FloorKind,
    *,
    length_known: bool = False,
) -> Case:
    """The case of these rows, with the floor of their scored tokens: see `exact_floor`."""
    rows = zip(data["tokens_BL"], data["scored_BL"], strict=True)
    targets = [tokens_L[scored_L].tolist() for tokens_L, scored_L in rows]
    sources, _ = of.oriented(direction)
    return Case(of, direction, data, exact_floor(sources, targets, kind, length_known=length_known))


def epoch_losses(
    loss_T: np.ndarray, count_T: np.ndarray, num_epochs: int, num_examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training losses of each epoch: (mean of its batches' losses, Σ nats / examples).

    The first is the paper's, where a small last batch weighs as much as a whole one; the second
    is in nats per string.

    Args:
      loss_T: of each step, nats per count.
      count_T: of each step, e.g. scored tokens.
      num_epochs: each of equally many steps.
      num_examples: of an epoch.
    """
    steps = (num_epochs, -1)
    nats_T = np.float64(loss_T) * count_T  # 40000 pairs are many to add
    means, sums = loss_T.reshape(steps).mean(axis=1), nats_T.reshape(steps).sum(axis=1)
    return means, sums / num_examples


def in_all_units(
    case: Case, token_means: np.ndarray, train_nats: np.ndarray, clean_nats: np.ndarray
) -> dict[str, Any]:
    """A run's excess loss in every unit, with all that it is made of, as JSON values.

    Args:
      case: what was learned.
      token_means: the paper's training loss of each epoch, nats per token.
      train_nats: of each epoch, nats per string.
      clean_nats: of each evaluation, nats per string, the weights still.

    Returns:
      "excess_loss", the published number (mean loss per token − `theoretical_min`);
      "excess_nats_per_string" of training and "eval_excess_nats_per_string", above the floor;
      "excess_bits_per_stored_bit", of the latter; curves of these; floors and bits.
    """
    floor, bits = case.floor, case.of.bits_to_store(case.direction)
    published = case.of.published_floor(case.direction)
    train, clean = (
        np.asarray(x, np.float64) - floor.nats_per_string for x in (train_nats, clean_nats)
    )
    return {
        "theoretical_min": published,
        "excess_loss": float(token_means[-1]) - published,
        "excess_nats_per_string": float(train[-1]),
        "eval_excess_nats_per_string": float(clean[-1]),
        "floor_nats_per_string": floor.nats_per_string,
        "floor_kind": floor.kind,
        "tokens_per_target": floor.tokens_per_target,
        "bits_to_store_per_pair": bits,
        "excess_bits_per_stored_bit": excess_bits_per_stored_bit(float(clean[-1]), bits),
        "train_curve": token_means.tolist(),
        "excess_nats_per_string_curve": train.tolist(),
        "eval_excess_nats_per_string_curve": clean.tolist(),
    }


def half_learned(
    epoch_T: Sequence[float], excess_T: Sequence[float], whole: float | None = None
) -> float:
    """The epoch at which the excess falls to half of its first value; NaN if it does not.

    Between two evaluations by a straight line. `whole` stands for the first value where given,
    such as that of a uniform guess over the strings.

    Examples:
      >>> half_learned([0, 10, 20], [8.0, 6.0, 2.0])
      15.0
    """
    falling_T, half = -np.asarray(excess_T, float), (excess_T[0] if whole is None else whole) / 2
    below = np.flatnonzero(-falling_T <= half)
    if len(below) == 0 or below[0] == 0:
        return math.nan
    last = slice(below[0] - 1, below[0] + 1)
    return float(np.interp(-half, falling_T[last], epoch_T[last]))


def excess_bits_per_stored_bit(excess_nats_per_string: float, bits_per_pair: float) -> float:
    """What is still missing, in bits, for each bit that the map takes to store.

    NaN for a map that takes none, such as all strings to one of them, inverse.
    """
    if bits_per_pair == 0:
        return math.nan
    return excess_nats_per_string / math.log(2) / bits_per_pair


def directional_gap(
    forward: Sequence[float], inverse: Sequence[float], level: float = 0.95
) -> intervals.Interval:
    """Inverse excess − forward excess, paired by seed: mean and Student interval."""
    difference = np.subtract(np.asarray(inverse, float), np.asarray(forward, float))
    return intervals.student_interval(difference, level)
