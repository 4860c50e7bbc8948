"""Gradients and attention of the toy task's models, measured along their training.

Figures 3 to 5, 12 and 13 of arXiv 2602.02133 (§5, App. D.4, E.1), and Theorem B.1 beside autodiff.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dirasym import models, training
from dirasym.analysis import alignment, attention, case_recall, lemmas, recall, theorem_b1
from dirasym.analysis.neglected import neglected_terms
from dirasym.data import case_pairs
from experiments.systems import toy

# A block of parameters: what the first match in the path says.
BLOCKS = r"embed|query|key|value|out|up|down|head|norm"
STEP_LENGTHS = np.logspace(-2, -1, 5)  # η‖g_fwd‖ of the first-order check
ASSUMPTIONS = ("non_saturated", "signals_aligned", "margins_agree", "rope_positive")
DIRECTIONS = case_recall.DIRECTIONS


def measurements(
    task: toy.Task, examples: int, per_cell: int, state: training.TrainState
) -> dict[str, jax.Array]:
    """Everything that is tracked over training, of the raw weights.

    Args:
      task: the model.
      examples: matched placements whose gradients are compared.
      per_cell: placements a letter and distance whose attention is read.
      state: of training.
    """
    params, ask = state.params, case_recall.queries(task.length, task.kind)
    read = functools.partial(case_recall.true_probability, task.apply_fn, params, kind=task.kind)
    values = {f"p_{direction}": read(queries) for direction, queries in ask.items()}
    if task.model == "arm":
        return values
    for direction, (_, paid) in attention_to(task, per_cell, params).items():
        values[f"weight_{direction}"] = paid.weights.mean(-1)
    values |= gradients(task, examples, params)
    if task.config.attention_only:
        values |= theorem_along(task, params)
    return values


def attention_to(task: toy.Task, per_cell: int, params) -> dict[str, tuple]:
    """(queries, attention from [M] to the uppercase) of each direction."""
    internals = models.make_internals_fn(models.Transformer(task.network))
    return {
        direction: (
            queries,
            attention.attention_to(
                internals, params, queries.tokens_EL, queries.position_E, queries.context_E
            ),
        )
        for direction, queries in attention_queries(task.length, per_cell).items()
    }


def gradients(task: toy.Task, examples: int, params) -> dict[str, jax.Array]:
    """Alignment of matched queries per block and of their means, and the first-order check."""
    ask = case_recall.queries(task.length, "masked")
    rows = matched_rows(ask["forward"], examples)
    matched = tuple(
        recall.Cloze(q.tokens_EL[rows], q.position_E[rows], q.target_E[rows]) for q in ask.values()
    )
    # Without the table, so that every layer is one that the factored way knows.
    apply_fn = models.make_apply_fn(models.Transformer(task.network))
    loss_fwd, loss_rev = recall.paired_losses(apply_fn, mask_id=case_pairs.MASK)
    aligned = alignment.alignment(
        loss_fwd, loss_rev, params, blocks=BLOCKS, examples=matched, method="factored"
    )
    values = {f"cosine/{block}": x for block, x in aligned.cosine.items()}
    values |= {f"inner/{block}": x for block, x in aligned.inner.items()}
    mean_fwd, mean_rev = (
        lambda p, loss=loss: jax.vmap(loss, (None, 0))(p, matched).mean()
        for loss in (loss_fwd, loss_rev)
    )
    of_means = alignment.alignment(mean_fwd, mean_rev, params)
    rates = STEP_LENGTHS / of_means.norm_fwd["total"]
    transfer = alignment.first_order_transfer(mean_fwd, mean_rev, params, rates)
    return values | {
        "cosine_of_means": of_means.cosine["total"],
        "predicted": transfer.predicted,
        "measured": transfer.measured,
    }


def theorem_along(task: toy.Task, params) -> dict[str, jax.Array]:
    """Theorem B.1 at Δ₁ = Δ₂ = 1 for every letter, and what it neglects in the full model."""
    model, how = theorem_b1.OneLayer.from_transformer(
        params,
        task.network,
        mask_id=case_pairs.MASK,
        context=case_pairs.UPPER,
        target=case_pairs.LOWER,
    )
    how |= dict(delta_fwd=1, delta_rev=1)
    targets = how.pop("target")
    over_letters = functools.partial(jax.vmap, in_axes=(theorem_b1.OneLayer(*[None] * 5, h_B=0), 0))
    terms = over_letters(lambda m, target: neglected_terms(m, target=target, **how))
    check = over_letters(lambda m, target: lemmas.check_corollary_b2(m, target=target, **how))
    neglected, corollary = terms(model, targets), check(model, targets)
    return {
        **{f"theorem/{block}": getattr(neglected.theorem, block) for block in theorem_b1.BLOCKS},
        **{f"full/{block}": getattr(neglected.full, block) for block in theorem_b1.BLOCKS},
        **{f"assumption/{name}": getattr(corollary, name) for name in ASSUMPTIONS},
        "theorem_cosine": corollary.cosine,
    }


def attention_queries(length: int, per_cell: int) -> dict[str, case_pairs.Queries]:
    """Both directions of up to `per_cell` placements of each letter and distance."""
    ask = case_recall.queries(length, "masked")
    first_E = np.minimum(ask["forward"].position_E, ask["forward"].context_E)
    distance_E = ask["forward"].distance_E
    chosen_E = np.zeros(len(first_E), bool)
    for distance in range(1, length):
        starts = np.linspace(0, length - distance - 1, per_cell).astype(int)
        chosen_E |= (distance_E == distance) & np.isin(first_E, starts)
    return {name: jax.tree.map(lambda x: x[chosen_E], queries) for name, queries in ask.items()}


def matched_rows(queries: case_pairs.Queries, count: int) -> np.ndarray:
    """A fixed sample of rows: the same letter and positions in both directions."""
    total = len(queries.target_E)
    return np.random.default_rng(0).permutation(total)[:count]


def correlation_by_distance(
    task: toy.Task, per_cell: int, state: training.TrainState, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Figure 3: Corr(S_fwd, S_rev) at the last step, [layers, heads, total distance]."""
    del folder
    scores = [
        attention.by_distance(paid.scores, queries.letter_E, queries.distance_E)
        for queries, paid in attention_to(task, per_cell, state.params).values()
    ]
    correlation = attention.distance_correlation(*scores, resamples=200)
    return {f"correlation_{name}": x for name, x in correlation._asdict().items()}


def summarize(history: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a result line says of one seed."""
    last = {f"final_p_{name}": float(history[f"p_{name}"][-1]) for name in DIRECTIONS}
    if "cosine/total" not in history:
        return last
    median_T = np.median(history["cosine/total"], axis=-1)
    error_TR = np.abs(history["predicted"] - history["measured"])
    slopes_T = np.polyfit(np.log(STEP_LENGTHS), np.log(error_TR.T), 1)[0]
    return last | {
        "median_cosine_min": float(median_T[1:].min()),
        "median_cosine_last": float(median_T[-1]),
        "cosine_of_means_min": float(history["cosine_of_means"][1:].min()),
        "score_correlation_mean": float(history["correlation_mean"].mean()),
        "first_order_slope": float(np.median(slopes_T)),
    }
