"""The likelihood of an answer: exact for causal models, a bound with its error for masked ones."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.objectives import (
    corrupt,
    denoising_nll,
    example_keys,
    next_token_nll,
    scored_tokens,
    uniforms,
)
from dirasym.rows import Capacity
from dirasym.types import ApplyFn, Batch, Params


def answer_log_likelihood(
    apply_fn: ApplyFn, params: Params, batch: Batch, *, capacity: Capacity = None
) -> jax.Array:
    """log p(scored tokens | what stands before them) under a causal model, in nats: [B]. Exact.

    `capacity` says how many positions are scored, as in `objectives`.
    """
    return -jnp.sum(next_token_nll(apply_fn, params, batch, capacity=capacity), axis=1)


class Estimate(NamedTuple):
    """A Monte-Carlo mean with its standard error."""

    mean: jax.Array
    standard_error: jax.Array


def masked_log_likelihood(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    mask_id: int,
    num_samples: int = 128,
    counts: Literal["stratified", "uniform"] = "stratified",
    capacity: Capacity = None,
) -> Estimate:
    """A masked diffusion model's bound on log p(scored tokens | the others), in nats: [B].

    The mean over samples of -(n/k) Σ_M nll, M a uniform k-subset of the row's n scored tokens
    (Nie et al., 2025, Eq. 6): the expected log-likelihood over random orders of revealing,
    which is at most the log of the expected likelihood. Each sample costs one reading of
    the batch.

    Args:
      apply_fn: the model.
      params: its parameters.
      batch: `scored_BL` says what is masked and asked.
      key: for k and M; example `index` of the batch draws from fold_in(key, index).
      mask_id: [M], never predicted.
      num_samples: at least 2.
      counts: how the mask count k is drawn from 1..n: "uniform" each sample for itself, or
        "stratified", sample s in the s-th of `num_samples` equal cells. Stratified samples
        vary less than the standard error says, which takes them for independent.
      capacity: how many positions of the batch are scored, as in `objectives`.

    Raises:
      ValueError: an unknown `counts`, or fewer than 2 samples.
    """
    if counts not in ("stratified", "uniform"):
        raise ValueError(f"counts must be stratified or uniform, got {counts!r}")
    if num_samples < 2:
        raise ValueError(f"a standard error needs 2 samples, got {num_samples}")
    scored_BL, keys_B = scored_tokens(batch), example_keys(batch, key)

    def sample(number):
        uniform_B, place_BL = uniforms(
            batch, jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        )
        if counts == "stratified":
            uniform_B = (number + uniform_B) / num_samples
        masked_BL, weight_B, level_B = corrupt(uniform_B, place_BL, scored_BL, weighting="k")
        nll_BL = denoising_nll(
            *(apply_fn, params, batch, masked_BL, masked_BL, mask_id, capacity), noise_B=level_B
        )
        return -weight_B * jnp.sum(nll_BL, axis=1)

    samples_SB = jax.lax.map(sample, jnp.arange(num_samples))
    error_B = jnp.std(samples_SB, axis=0, ddof=1) / np.sqrt(num_samples)
    return Estimate(jnp.mean(samples_SB, axis=0), error_B)
