"""What is measured of a model, and how sure one can be of it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from dirasym.objectives import (
    corrupt,
    denoising_nll,
    example_keys,
    exclude,
    next_token_nll,
    scored_tokens,
    uniforms,
)
from dirasym.rows import Capacity, call, read_at
from dirasym.types import ApplyFn, Array, Batch, Params


class Mean(NamedTuple):
    """A mean that can be merged: a sum and the count that it is over."""

    total: jax.Array | float
    count: jax.Array | float  # type: ignore[assignment]  # hides tuple.count

    def merge(self, other: "Mean") -> "Mean":
        """The mean over both sets; exact, unlike a mean of means."""
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self):
        """total / count; NaN when empty."""
        if isinstance(self.count, jax.Array):
            return self.total / self.count
        return self.total / self.count if np.any(self.count) else np.nan


class Interval(NamedTuple):
    """A mean with the half-width of its confidence interval (NaN for a single value)."""

    mean: float
    half_width: float


class Bounds(NamedTuple):
    """An estimate and the ends of its confidence interval, which need not lie evenly."""

    estimate: float
    low: float
    high: float


def student_interval(values: Array | Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean over independent runs (seeds): mean ± t_{n-1}·s/√n.

    >>> mean, half_width = student_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half_width, 3)
    (2.0, 2.484)

    Raises:
      ValueError: no values.
    """
    values = np.asarray(values, float)
    if values.size == 0:
        raise ValueError("no values to average")
    if values.size == 1:
        return Interval(float(values[0]), float("nan"))
    quantile = scipy.stats.t.ppf(0.5 + level / 2, values.size - 1)
    error = values.std(ddof=1) / np.sqrt(values.size)
    return Interval(float(values.mean()), float(quantile * error))


def wilson_interval(successes: int, count: int, level: float = 0.95) -> Bounds:
    """Wilson's score interval of a share: all p with |p̂ − p| ≤ z √(p(1 − p)/count).

    Inside [0, 1], and of some width even where no draw or every draw is a success.

    >>> share, low, high = wilson_interval(242, 250)
    >>> f"{share:.1%} ({low:.1%} to {high:.1%})"
    '96.8% (93.8% to 98.4%)'

    Args:
      successes: of `count` independent draws.
      count: at least 1.
      level: of confidence.

    Raises:
      ValueError: successes outside 0..count, or no draws.
    """
    if not (0 <= successes <= count and count >= 1):
        raise ValueError(f"{successes} successes of {count} draws are no share")
    interval = scipy.stats.binomtest(int(successes), int(count)).proportion_ci(level, "wilson")
    return Bounds(successes / count, float(interval.low), float(interval.high))


def bootstrap_interval(
    values: Array,
    statistic: Callable[..., Any] = np.mean,
    level: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Bounds:
    """Percentile bootstrap of a statistic of independent values, such as one a question.

    Args:
      values: [n]; with one alone the ends are NaN.
      statistic: of an array along `axis`, such as `np.mean` and `np.median`.
      level: of confidence.
      resamples: draws of n values with replacement.
      seed: of the draws.

    Raises:
      ValueError: no values, or one that is not a number.
    """
    values = np.asarray(values, float)
    if values.size == 0:
        raise ValueError("no values to average")
    if np.isnan(values).any():
        raise ValueError("values holds NaN: leave out what was not measured")
    estimate = float(statistic(values, axis=-1))
    if values.size == 1:
        return Bounds(estimate, float("nan"), float("nan"))
    interval = scipy.stats.bootstrap(
        (values,),
        statistic,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // values.size),  # of memory
        vectorized=True,
        axis=-1,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Bounds(estimate, float(interval.low), float(interval.high))


def proportion_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent draws: √(p(1-p)/n)."""
    return float(np.sqrt(share * (1 - share) / count))


def generation_success(tokens_BL: Array, target_B: Array) -> jax.Array:
    """Whether each generated row holds its target anywhere: bool [B]."""
    return jnp.any(jnp.asarray(tokens_BL) == jnp.asarray(target_B)[:, None], axis=1)


def probabilities(
    apply_fn: ApplyFn,
    params: Params,
    tokens_EL: Array,
    *,
    excluded_id: int | None = None,
    bos_id: int | None = None,
) -> jax.Array:
    """The model's distribution over the token at each position: float32 [E, L, V].

    A masked model reads each row as it stands; pass its mask id as `excluded_id`. With
    `bos_id` a causal model is read: position l sees BOS and the tokens before l only.
    """
    return _softmax(call(apply_fn, params, _behind_bos(tokens_EL, bos_id)), excluded_id)


def target_probability(
    apply_fn: ApplyFn,
    params: Params,
    tokens_EL: Array,
    target_E: Array,
    asked_EL: Array,
    *,
    excluded_id: int | None = None,
    bos_id: int | None = None,
    capacity: Capacity = None,
) -> jax.Array:
    """p(target | row) at the asked positions, 0 elsewhere: float32 [E, L]; see `probabilities`.

    `capacity` says how many positions are asked, as in `objectives`.
    """
    tokens_EL = _behind_bos(tokens_EL, bos_id)

    def read(logits, target):
        p = _softmax(logits, excluded_id)
        return jnp.take_along_axis(p, target[..., None], axis=-1)[..., 0]

    target_EL = jnp.broadcast_to(jnp.asarray(target_E)[:, None], tokens_EL.shape)
    asked_EL = jnp.asarray(asked_EL)
    return read_at(read, apply_fn, params, tokens_EL, asked_EL, target_EL, capacity=capacity)


def _behind_bos(tokens_EL: Array, bos_id: int | None) -> jax.Array:
    tokens_EL = jnp.asarray(tokens_EL)
    if bos_id is None:
        return tokens_EL
    return jnp.pad(tokens_EL[:, :-1], ((0, 0), (1, 0)), constant_values=bos_id)


def _softmax(logits: jax.Array, excluded_id: int | None) -> jax.Array:
    return jax.nn.softmax(exclude(logits, excluded_id).astype(jnp.float32), axis=-1)


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
        masked_BL, weight_B = corrupt(uniform_B, place_BL, scored_BL, weighting="k")
        nll_BL = denoising_nll(apply_fn, params, batch, masked_BL, masked_BL, mask_id, capacity)
        return -weight_B * jnp.sum(nll_BL, axis=1)

    samples_SB = jax.lax.map(sample, jnp.arange(num_samples))
    error_B = jnp.std(samples_SB, axis=0, ddof=1) / np.sqrt(num_samples)
    return Estimate(jnp.mean(samples_SB, axis=0), error_B)
