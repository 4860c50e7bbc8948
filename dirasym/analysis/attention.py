"""Attention from [M] to its context, forward and reverse: scores, correlation, weights.

Appendix E.1 of arXiv 2602.02133. A model is given as `internals(params, tokens_EL)`, which
returns what it sows: "scores" (raw qᵀ R k, before 1/√D and any mask) and "weights"
(softmaxed), each [layers, E, heads, L, L]; see `models.make_internals_fn`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.rows import check_mask_id, check_read
from dirasym.types import Array, Params

Internals = Callable[[Params, Array], dict[str, jax.Array]]


class AttentionTo(NamedTuple):
    """What one position pays a token, or a name of several, in each row: [layers, heads, E] each.

    Attributes:
      scores: raw; the mean over the name's tokens.
      weights: softmaxed; the sum over the name's tokens.
    """

    scores: jax.Array
    weights: jax.Array


def attention_to(
    internals: Internals,
    params: Params,
    tokens_EL: Array,
    query_E: Array,
    key_E: Array,
    *,
    stop_E: Array | None = None,
    chunk_size: int = 512,
) -> AttentionTo:
    """Raw score and softmaxed weight from position query_E[e] to key_E[e] of every row.

    Args:
      internals: what the model sows; see the module.
      params: its parameters.
      tokens_EL: rows.
      query_E: positions that attend.
      key_E: positions attended to, the first token of a name.
      stop_E: where the name ends (its last token is before); key_E + 1 when None.
      chunk_size: rows a call.

    Raises:
      ValueError: positions outside the rows, names without a token, or not one a row (values
        are checked outside jit); `internals` without scores or weights.
    """
    num_rows, length = np.shape(tokens_EL)
    stop_E = jnp.asarray(key_E) + 1 if stop_E is None else stop_E
    for name, place_E, last in (
        ("query_E", query_E, length - 1),
        ("key_E", key_E, length - 1),
        ("stop_E", stop_E, length),
    ):
        if np.shape(place_E) != (num_rows,):
            raise ValueError(f"{name} must be [{num_rows}] as tokens_EL, got {np.shape(place_E)}")
        if not isinstance(place_E, jax.core.Tracer):
            if not np.all((np.asarray(place_E) >= 0) & (np.asarray(place_E) <= last)):
                raise ValueError(f"{name} must be positions in 0..{last}, got {place_E}")
    if not any(isinstance(x, jax.core.Tracer) for x in (key_E, stop_E)):
        if not np.all(np.asarray(stop_E) > np.asarray(key_E)):
            raise ValueError(f"stop_E must be after key_E, got {stop_E} and {key_E}")

    def one(row):
        tokens_L, query, key, stop = row
        with jax.default_matmul_precision("highest"):
            sown = internals(params, tokens_L[None])
        for name in AttentionTo._fields:
            if name not in sown:
                raise ValueError(f"internals must give {name!r}, and gives {sorted(sown)}")
        is_name_L = (jnp.arange(length) >= key) & (jnp.arange(length) < stop)
        sums = (
            jnp.sum(sown[name][:, 0, :, query], axis=-1, where=is_name_L[None, None])
            for name in AttentionTo._fields
        )
        scores, weights = sums
        return AttentionTo(scores / (stop - key), weights)

    rows = tuple(map(jnp.asarray, (tokens_EL, query_E, key_E, stop_E)))
    taken = jax.lax.map(one, rows, batch_size=min(chunk_size, num_rows))
    return AttentionTo(*(jnp.moveaxis(x, 0, -1) for x in taken))


class PlacedNames(NamedTuple):
    """Rows of [M] and a name at a distance, and nothing else: one for each (name, distance).

    Attributes:
      tokens_EL: int32.
      query_E: where [M] is.
      key_E, stop_E: the name's first token, and the place after its last.
      item_E: number of the name.
      distance_E: from [M] to the name's nearest token.
    """

    tokens_EL: np.ndarray
    query_E: np.ndarray
    key_E: np.ndarray
    stop_E: np.ndarray
    item_E: np.ndarray
    distance_E: np.ndarray


def place_names(
    names: Sequence[Sequence[int]],
    max_distance: int,
    direction: Literal["forward", "reverse"],
    *,
    mask_id: int,
    fill_id: int,
) -> PlacedNames:
    """Every name at distances 1..max_distance from [M]: after it forward, before it in reverse.

    Args:
      names: tokens of each name, at least one.
      max_distance: at least 1.
      direction: forward is [M] .. B, reverse B .. [M].
      mask_id: [M].
      fill_id: stands everywhere else. Every row is as long as the longest needs.

    Raises:
      ValueError: a name without a token, no names, no distance, or an unknown direction.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be forward or reverse, got {direction!r}")
    if not names or not all(map(len, names)) or max_distance < 1:
        raise ValueError("some names of at least one token, and distances from 1, are needed")
    length = max_distance + max(map(len, names))
    rows = []
    for item, name in enumerate(names):
        for distance in range(1, max_distance + 1):
            start = distance if direction == "forward" else 0
            place = 0 if direction == "forward" else len(name) - 1 + distance
            row = np.full(length, fill_id)
            row[start : start + len(name)] = name
            row[place] = mask_id
            rows.append((row, place, start, start + len(name), item, distance))
    return PlacedNames(*(np.array(column, np.int32) for column in zip(*rows, strict=True)))


def name_correlation(
    internals: Internals,
    params: Params,
    names: Sequence[Sequence[int]],
    max_distance: int,
    *,
    mask_id: int,
    fill_id: int,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> "DistanceCorrelation":
    """Corr over names of S_fwd and S_rev by total distance, in rows of [M] and a name alone.

    The score of a name of several tokens is the mean over them. Arguments as for `place_names`
    and `distance_correlation`; [layers, heads, totals].

    Raises:
      ValueError: as they do, or a mask or fill id that the model lacks, as far as it says.
    """
    check_mask_id(mask_id, internals)
    check_read("fill_id", fill_id, internals)
    scores = []
    for direction in ("forward", "reverse"):
        placed = place_names(names, max_distance, direction, mask_id=mask_id, fill_id=fill_id)
        found = attention_to(
            internals, params, placed.tokens_EL, placed.query_E, placed.key_E, stop_E=placed.stop_E
        )
        scores.append(by_distance(found.scores, placed.item_E, placed.distance_E))
    return distance_correlation(*scores, resamples=resamples, seed=seed, level=level)


def by_distance(values_E: Array, item_E: Array, distance_E: Array) -> np.ndarray:
    """Mean value for each (item, distance): [..., items, D] for distances 1..D; NaN where none.

    In a one-layer RoPE model the raw score depends on (letter, distance) alone and the mean
    is over equal numbers; in deeper ones it averages over where the pair stands.

    Examples:
      >>> by_distance([1.0, 3.0, 5.0], item_E=[0, 0, 1], distance_E=[2, 2, 1])
      array([[nan,  2.],
             [ 5., nan]])

    Raises:
      ValueError: a distance below 1 or a negative item, or none.
    """
    values_E, item_E, distance_E = map(np.asarray, (values_E, item_E, distance_E))
    if not distance_E.size or distance_E.min() < 1 or item_E.min() < 0:
        raise ValueError(
            "distance_E must be some distances of at least 1 and item_E items from 0, got "
            f"{distance_E} and {item_E}"
        )
    cell_E = item_E * distance_E.max() + distance_E - 1
    num_cells = (item_E.max() + 1) * distance_E.max()
    flat = values_E.reshape(-1, values_E.shape[-1]).astype(np.float64)
    counts = np.bincount(cell_E, minlength=num_cells)
    sums = np.stack([np.bincount(cell_E, row, minlength=num_cells) for row in flat])
    with np.errstate(invalid="ignore"):
        means = sums / counts
    return means.reshape(*values_E.shape[:-1], item_E.max() + 1, distance_E.max())


class DistanceCorrelation(NamedTuple):
    """Pearson correlation of forward and reverse scores against the total distance.

    Attributes:
      total: [T], Δ₁+Δ₂ = 2..2D.
      mean: [..., T], average over the pairs (Δ₁, Δ₂) of that total of the correlation over
        items (letters).
      low, high: percentile interval of a bootstrap over items.
    """

    total: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def distance_correlation(
    fwd_ID: np.ndarray,
    rev_ID: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> DistanceCorrelation:
    """Corr over items of S_fwd(item, Δ₁) and S_rev(item, Δ₂), by Δ₁+Δ₂.

    Args:
      fwd_ID, rev_ID: [..., items, D], from `by_distance`; leading axes are layers and heads.
      resamples: of the bootstrap over items.
      seed: of the bootstrap.
      level: of confidence.

    Raises:
      ValueError: shapes that differ, or fewer than 3 items.
    """
    fwd_ID, rev_ID = np.asarray(fwd_ID, np.float64), np.asarray(rev_ID, np.float64)
    if fwd_ID.shape != rev_ID.shape or fwd_ID.shape[-2] < 3:
        raise ValueError(
            "scores must be [..., items, D] with 3 items or more, alike forward and reverse, "
            f"got {fwd_ID.shape} and {rev_ID.shape}"
        )
    items, distances = fwd_ID.shape[-2:]
    total_DD = np.add.outer(np.arange(1, distances + 1), np.arange(1, distances + 1))
    total = np.arange(2, 2 * distances + 1)

    def by_total(counts_I):
        """One correlation a total, items weighted by how often they were drawn."""
        weight = counts_I / counts_I.sum()
        centred = [
            x - np.einsum("i,...id->...d", weight, x)[..., None, :] for x in (fwd_ID, rev_ID)
        ]
        covariance = np.einsum("i,...id,...ie->...de", weight, *centred)
        spread = [np.sqrt(np.einsum("i,...id->...d", weight, x**2)) for x in centred]
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = covariance / (spread[0][..., :, None] * spread[1][..., None, :])
        return np.stack([correlation[..., total_DD == t].mean(axis=-1) for t in total], axis=-1)

    rng = np.random.default_rng(seed)
    draws = rng.multinomial(items, np.full(items, 1 / items), size=resamples)
    boot = np.stack([by_total(counts) for counts in draws])
    low, high = np.nanpercentile(boot, [50 - 50 * level, 50 + 50 * level], axis=0)
    return DistanceCorrelation(total, by_total(np.ones(items)), low, high)
