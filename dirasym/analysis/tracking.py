"""What is tracked along training, as flat dicts of arrays that join a run's history."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dirasym.analysis import alignment, lemmas, theorem_b1
from dirasym.analysis.neglected import neglected_terms
from dirasym.models.transformer import TransformerConfig
from dirasym.types import Array, Params

STEP_LENGTHS = np.logspace(-2, -1, 5)  # η‖g_fwd‖ of the first-order check
ASSUMPTIONS = ("non_saturated", "signals_aligned", "margins_agree", "rope_positive")


def track_alignment(
    loss_fwd: alignment.Loss,
    loss_rev: alignment.Loss,
    params: Params,
    examples: Any,
    blocks: alignment.BlockOf,
) -> dict[str, jax.Array]:
    """Gradients of two losses, example by example and of their means.

    Args:
      loss_fwd: nats, of (params, example).
      loss_rev: the same of the other direction.
      params: any pytree.
      examples: with a leading axis E.
      blocks: as `alignment.alignment` takes them.

    Returns:
      `cosine/BLOCK` and `inner/BLOCK` [E]; `cosine_of_means`, of the mean losses; and for steps
      of η‖g_fwd‖ in `STEP_LENGTHS` the change of the reverse mean loss, `predicted` as
      −η⟨g_rev, g_fwd⟩ and `measured`.
    """
    aligned = alignment.alignment(
        loss_fwd, loss_rev, params, blocks=blocks, examples=examples, method="factored"
    )
    values = {f"cosine/{block}": x for block, x in aligned.cosine.items()}
    values |= {f"inner/{block}": x for block, x in aligned.inner.items()}
    mean_fwd, mean_rev = (
        lambda p, loss=loss: jax.vmap(loss, (None, 0))(p, examples).mean()
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


def track_theorem(
    params: Params, config: TransformerConfig, *, mask_id: int, context: Array, target: Array
) -> dict[str, jax.Array]:
    """Theorem B.1 at Δ₁ = Δ₂ = 1 in a trained one-layer encoder, pair by pair.

    Args:
      params: of the encoder; see `theorem_b1.OneLayer.from_transformer`.
      config: its configuration.
      mask_id: [M].
      context: tokens B, one a pair.
      target: tokens A, one a pair.

    Returns:
      `theorem/BLOCK` in closed form, `full/BLOCK` of the full model's gradients, `assumption/NAME`
      of Corollary B.2 and `theorem_cosine`, one entry a pair.
    """
    model, how = theorem_b1.OneLayer.from_transformer(
        params, config, mask_id=mask_id, context=context, target=target
    )
    how |= dict(delta_fwd=1, delta_rev=1)
    targets = how.pop("target")
    h_B_alone: Any = dataclasses.replace(jax.tree.map(lambda _: None, model), h_B=0)
    over_pairs = functools.partial(jax.vmap, in_axes=(h_B_alone, 0))
    terms = over_pairs(lambda m, target: neglected_terms(m, target=target, **how))
    check = over_pairs(lambda m, target: lemmas.check_corollary_b2(m, target=target, **how))
    neglected, corollary = terms(model, targets), check(model, targets)
    return {
        **{f"theorem/{block}": getattr(neglected.theorem, block) for block in theorem_b1.BLOCKS},
        **{f"full/{block}": getattr(neglected.full, block) for block in theorem_b1.BLOCKS},
        **{f"assumption/{name}": getattr(corollary, name) for name in ASSUMPTIONS},
        "theorem_cosine": corollary.cosine,
    }
