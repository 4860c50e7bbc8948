"""What a model answers on the toy task of `data.case_pairs` (arXiv 2602.02133, §5, App. D.4).

A masked model reads rows as they stand, [M] where it is asked. A causal model reads BOS and what
stands before; its BOS is the same token, `case_pairs.MASK`.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, metrics
from dirasym.analysis import attention
from dirasym.data import case_pairs
from dirasym.data.case_pairs import MASK, PAD, VOCAB_SIZE, Queries
from dirasym.rows import PerRow
from dirasym.types import ApplyFn, Params

Kind = Literal["masked", "causal"]
Order = Literal["random", "left_to_right", "right_to_left", "at_once"]
DIRECTIONS: tuple[case_pairs.Direction, ...] = ("forward", "reverse")
CHUNK_TOKENS = 2**16  # read in one call; they bound the memory of an evaluation


def queries(length: int, kind: Kind) -> dict[str, Queries]:
    """The placements of both directions: row by row about the same letter and positions."""
    ask = case_pairs.prefix_queries if kind == "causal" else case_pairs.mask_queries
    return {direction: ask(length, direction) for direction in DIRECTIONS}


def both(of_direction) -> Queries:
    """Queries of both directions with a leading axis for them."""
    return jax.tree.map(lambda *x: np.stack(x), *map(of_direction, DIRECTIONS))


def generation_percent(
    apply_fn: ApplyFn,
    params: Params,
    prompts: Queries,
    key: jax.Array,
    *,
    kind: Kind,
    generations: int,
    top_k: int | None = 3,
    order: Order = "random",
    block_size: int | None = None,
) -> jax.Array:
    """Percent of generations that hold the letter asked for anywhere, over all letters.

    Args:
      apply_fn: the model.
      params: its parameters.
      prompts: `case_pairs.prompts(length, direction)`: a letter at position 0.
      key: of sampling.
      kind: how the model reads.
      generations: of each prompt.
      top_k: sample among the most probable.
      order: in which a masked model reveals positions; "at_once" draws all in one step.
      block_size: a masked model reveals block after block, each in that order.
    """
    tokens_BL = jnp.repeat(prompts.tokens_EL, generations, axis=0)
    if kind == "causal":
        output_BL = decoding.left_to_right(
            apply_fn, params, tokens_BL, key, prompt_length=1, bos_id=MASK, top_k=top_k
        )
    else:
        at_once = order == "at_once"
        how: dict[str, Any] = dict(
            order="random" if at_once else order,
            num_steps=1 if at_once else None,
            block_size=block_size,
        )
        output_BL = decoding.unmask(
            apply_fn, params, tokens_BL, key, mask_id=MASK, top_k=top_k, **how
        )
    target_B = jnp.repeat(prompts.target_E, generations)
    return 100 * metrics.generation_success(output_BL, target_B).mean()


def true_probability(apply_fn: ApplyFn, params: Params, asked: Queries, *, kind: Kind) -> jax.Array:
    """Mean P(true letter) over all placements of one direction (App. D.4).

    There are 13·L(L−1) placements of a masked model's: they are read `CHUNK_TOKENS` at a time.
    """
    reading = dict(bos_id=MASK) if kind == "causal" else dict(excluded_id=MASK, capacity=PerRow(1))

    def total(tokens_EL, target_E, asked_EL):
        return metrics.target_probability(
            apply_fn, params, tokens_EL, target_E, asked_EL, **reading
        ).sum()

    rows = (asked.tokens_EL, asked.target_E, asked.asked_EL)
    num_rows, length = asked.tokens_EL.shape
    chunk = max(CHUNK_TOKENS // length, 1)
    if num_rows <= chunk:
        return total(*rows) / asked.asked_EL.sum(dtype=np.float32)
    # What fills the last chunk asks for nothing.
    missing = -num_rows % chunk
    chunks = [
        jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:])
        for x in rows
    ]
    totals = jax.lax.map(lambda one: total(*one), tuple(chunks))
    return totals.sum() / asked.asked_EL.sum(dtype=np.float32)


def reverse_panel(apply_fn: ApplyFn, params: Params, length: int, *, kind: Kind) -> jax.Array:
    """Figure 11: P(the right lowercase) and the largest wrong P but `0`, by position [2, L].

    Means over letters. A causal model reads the uppercase and then zeros, the likeliest tokens.
    """
    prompts = case_pairs.prompts(length, "reverse")
    tokens_EL, reading = prompts.tokens_EL, dict(excluded_id=MASK)
    if kind == "causal":
        tokens_EL, reading = np.where(tokens_EL == MASK, PAD, tokens_EL), dict(bos_id=MASK)
    p_ELV = metrics.probabilities(apply_fn, params, tokens_EL, **reading)
    is_target_EV = np.arange(VOCAB_SIZE) == prompts.target_E[:, None]
    is_wrong_EV = ~is_target_EV & (np.arange(VOCAB_SIZE) != PAD)
    right_EL = jnp.where(is_target_EV[:, None], p_ELV, 0.0).sum(-1)
    wrong_EL = jnp.where(is_wrong_EV[:, None], p_ELV, 0.0).max(-1)
    return jnp.stack([right_EL.mean(0), wrong_EL.mean(0)])


def evaluate(
    apply_fn: ApplyFn,
    weights: dict[str, Params],
    length: int,
    key: jax.Array,
    *,
    kind: Kind,
    **sampling,
) -> dict[str, jax.Array]:
    """All of the above for several weights of one model, compiled once.

    Returns:
      `p_forward_NAME`, `percent_reverse_NAME`, .. scalars and `panel_right_NAME`,
      `panel_wrong_NAME` [L], for each NAME in `weights`.
    """
    prompts = both(functools.partial(case_pairs.prompts, length))
    asked = both(queries(length, kind).__getitem__)
    keys = jax.random.split(key)

    def of_weights(params):
        return {
            "panel": reverse_panel(apply_fn, params, length, kind=kind),
            "p": jax.lax.map(lambda q: true_probability(apply_fn, params, q, kind=kind), asked),
            "percent": jax.lax.map(
                lambda x: generation_percent(apply_fn, params, *x, kind=kind, **sampling),
                (prompts, keys),
            ),
        }

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *weights.values())
    values = jax.lax.map(of_weights, stacked)
    labels = {"p": DIRECTIONS, "percent": DIRECTIONS, "panel": ("right", "wrong")}
    return {
        f"{measure}_{label}_{name}": values[measure][row, column]
        for measure, columns in labels.items()
        for row, name in enumerate(weights)
        for column, label in enumerate(columns)
    }


def sampled_queries(length: int, per_cell: int) -> dict[str, Queries]:
    """Both directions of up to `per_cell` placements of each letter and distance."""
    ask = queries(length, "masked")
    first_E = np.minimum(ask["forward"].position_E, ask["forward"].context_E)
    distance_E = ask["forward"].distance_E
    chosen_E = np.zeros(len(first_E), bool)
    for distance in range(1, length):
        starts = np.linspace(0, length - distance - 1, per_cell).astype(int)
        chosen_E |= (distance_E == distance) & np.isin(first_E, starts)
    return {name: jax.tree.map(lambda x: x[chosen_E], asked) for name, asked in ask.items()}


def shares(asked: Queries) -> np.ndarray:
    """The share of all placements that each row of `sampled_queries` stands for: [E], sums to 1.

    A letter has L − d placements at distance d, shared among its rows of that distance.
    """
    length = asked.tokens_EL.shape[1]
    cell_E = np.asarray(asked.letter_E) * length + asked.distance_E
    _, of_E, rows_C = np.unique(cell_E, return_inverse=True, return_counts=True)
    share_E = (length - asked.distance_E) / rows_C[of_E]
    return share_E / share_E.sum()


def sampled_rows(asked: Queries, count: int) -> np.ndarray:
    """A fixed sample of rows: of both directions the same letters and positions."""
    return np.random.default_rng(0).permutation(len(asked.target_E))[:count]


def attention_to_context(
    internals: attention.Internals, params: Params, asked: dict[str, Queries]
) -> dict[str, attention.AttentionTo]:
    """Attention from [M] to the uppercase of every row, in both directions."""
    return {
        direction: attention.attention_to(internals, params, q.tokens_EL, q.position_E, q.context_E)
        for direction, q in asked.items()
    }


def score_correlation(
    internals: attention.Internals, params: Params, length: int, per_cell: int
) -> attention.DistanceCorrelation:
    """Figure 3: Corr(S_fwd, S_rev) over letters against Δ1+Δ2; see `attention`."""
    asked = sampled_queries(length, per_cell)
    paid = attention_to_context(internals, params, asked)
    scores = [
        attention.by_distance(paid[name].scores, q.letter_E, q.distance_E)
        for name, q in asked.items()
    ]
    return attention.distance_correlation(*scores, resamples=200)
