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
from dirasym.analysis import case_recall, recall, tracking
from dirasym.data import case_pairs
from experiments.systems import toy

# A block of parameters: what the first match in the path says.
BLOCKS = r"embed|query|key|value|out|up|down|head|norm"


def measurements(
    task: toy.Task, examples: int, per_cell: int, state: training.TrainState
) -> dict[str, jax.Array]:
    """Everything that is tracked over training, of the raw weights.

    `examples` matched placements have their gradients compared; of each letter and distance the
    attention of `per_cell` placements is read.
    """
    params, ask = state.params, case_recall.queries(task.length, task.kind)
    read = functools.partial(case_recall.true_probability, task.apply_fn, params, kind=task.kind)
    values = {f"p_{direction}": read(queries) for direction, queries in ask.items()}
    if task.model == "arm":
        return values
    model = models.Transformer(task.network)
    asked = case_recall.sampled_queries(task.length, per_cell)
    internals = models.make_internals_fn(model)
    for direction, paid in case_recall.attention_to_context(internals, params, asked).items():
        values[f"weight_{direction}"] = paid.weights.mean(-1)
        values[f"weight_{direction}_all"] = paid.weights @ case_recall.shares(asked[direction])
    rows = case_recall.sampled_rows(ask["forward"], examples)
    matched = tuple(
        recall.Cloze(q.tokens_EL[rows], q.position_E[rows], q.target_E[rows]) for q in ask.values()
    )
    # Without the table, so that every layer is one that the factored way knows.
    losses = recall.paired_losses(models.make_apply_fn(model), mask_id=case_pairs.MASK)
    values |= tracking.track_alignment(*losses, params, matched, BLOCKS)
    if task.config.attention_only:
        pairs = dict(context=case_pairs.UPPER, target=case_pairs.LOWER)
        values |= tracking.track_theorem(params, task.network, mask_id=case_pairs.MASK, **pairs)
    return values


def correlation(
    task: toy.Task, per_cell: int, state: training.TrainState, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Figure 3 at the last step: `correlation_mean`, .. [layers, heads, total distance]."""
    del folder
    internals = models.make_internals_fn(models.Transformer(task.network))
    found = case_recall.score_correlation(internals, state.params, task.length, per_cell)
    return {f"correlation_{name}": x for name, x in found._asdict().items()}


def summarize(history: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a result line says of one seed."""
    last = {f"final_p_{name}": float(history[f"p_{name}"][-1]) for name in case_recall.DIRECTIONS}
    if "cosine/total" not in history:
        return last
    median_T = np.median(history["cosine/total"], axis=-1)
    error_TR = np.abs(history["predicted"] - history["measured"])
    slopes_T = np.polyfit(np.log(tracking.STEP_LENGTHS), np.log(error_TR.T), 1)[0]
    return last | {
        "median_cosine_min": float(median_T[1:].min()),
        "median_cosine_last": float(median_T[-1]),
        "cosine_of_means_min": float(history["cosine_of_means"][1:].min()),
        "score_correlation_mean": float(history["correlation_mean"].mean()),
        "first_order_slope": float(np.median(slopes_T)),
    }
