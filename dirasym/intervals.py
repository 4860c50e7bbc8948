"""How sure one can be of a number: intervals over seeds, questions and draws."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from dirasym.types import Array


class Bounds(NamedTuple):
    """An estimate and the ends of its confidence interval, which need not lie evenly."""

    estimate: float
    low: float
    high: float


class Interval(NamedTuple):
    """A mean with the half-width of its confidence interval (NaN for a single value)."""

    mean: float
    half_width: float

    @property
    def bounds(self) -> Bounds:
        """The mean and the ends of the interval."""
        return Bounds(self.mean, self.mean - self.half_width, self.mean + self.half_width)


def student_interval(values: Array | Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean over independent runs (seeds): mean ± t_{n-1}·s/√n.

    Examples:
      >>> mean, half_width = student_interval([1.0, 2.0, 3.0])
      >>> round(mean, 3), round(half_width, 3)
      (2.0, 2.484)

    Raises:
      ValueError: no values, or a level outside (0, 1).
    """
    _check_level(level)
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

    Examples:
      >>> share, low, high = wilson_interval(242, 250)
      >>> f"{share:.1%} ({low:.1%} to {high:.1%})"
      '96.8% (93.8% to 98.4%)'

    Args:
      successes: of `count` independent draws.
      count: at least 1.
      level: of confidence.

    Raises:
      ValueError: successes outside 0..count, no draws, or a level outside (0, 1).
    """
    _check_level(level)
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
      ValueError: no values, one that is not a number, or a level outside (0, 1).
    """
    _check_level(level)
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


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")


def proportion_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent draws: √(p(1-p)/n)."""
    return float(np.sqrt(share * (1 - share) / count))
