"""Closed form of one row of the one-layer model under cross-entropy (arXiv 2405.04669, §4).

Numbers and arrays broadcast; NumPy, float64.
"""

import numpy as np
import scipy.special

from dirasym.types import Array


def row_gap(
    time: Array | float, num_tokens: Array | float, rate: Array | float = 1.0
) -> np.ndarray:
    """Gap s = y_target − y_other of a row of M logits under gradient flow from zero.

    The row learns one target by cross-entropy at learning rate η, and all other logits stay
    equal. With p = e^s/(e^s + M − 1),

        s' = η M/(M−1) (1 − p),   hence   s + (e^s − 1)/(M−1) = η M t/(M−1) =: τ,

    and with a = 1/(M−1) and ω the Wright omega function, s = ln(ω(τ + a + ln a)/a): Lambert's W
    without its overflow. A Newton step removes the cancellation near τ = 0.

    Args:
      time: t ≥ 0.
      num_tokens: M ≥ 2.
      rate: η; a mean over n rows has η/n.

    Raises:
      ValueError: a time or rate below 0, or fewer than 2 tokens.
    """
    time, num_tokens, rate = (np.asarray(x, np.float64) for x in (time, num_tokens, rate))
    if not ((time >= 0).all() and (rate >= 0).all() and (num_tokens >= 2).all()):
        raise ValueError("a row needs time and rate of at least 0 and at least 2 tokens")
    a = 1 / (num_tokens - 1)
    tau = rate * num_tokens * time * a
    gap = np.log(scipy.special.wrightomega(tau + a + np.log(a)).real / a)
    return gap - (gap + a * np.expm1(gap) - tau) / (1 + a * np.exp(gap))


def row_probability(
    time: Array | float, num_tokens: Array | float, rate: Array | float = 1.0
) -> np.ndarray:
    """p = e^s/(e^s + M − 1) of the row's target at time t; see `row_gap`.

    Each of the other M − 1 tokens has (1 − p)/(M − 1): below a uniform guess 1/M from the
    start. In a chain A → B, B → C that is p(C | A).

    Examples:
      >>> row_probability(time=[0.0, 100.0], num_tokens=800, rate=1.0).round(3)
      array([0.001, 0.989])
    """
    gap = row_gap(time, num_tokens, rate)
    return 1 / (1 + (np.asarray(num_tokens, np.float64) - 1) * np.exp(-gap))


def time_to_loss(
    loss: Array | float, num_tokens: Array | float, rate: Array | float = 1.0
) -> np.ndarray:
    """When the row's loss −ln p has fallen to `loss` nats: the inverse of `row_probability`.

    s = −ln((M−1)⁻¹(e^loss − 1)), and t from the equation of `row_gap`.

    Raises:
      ValueError: a loss outside (0, ln M], the loss at time 0; or a rate that is not positive.
    """
    loss, num_tokens, rate = (np.asarray(x, np.float64) for x in (loss, num_tokens, rate))
    if not ((loss > 0) & (loss <= np.log(num_tokens) * (1 + 1e-12))).all():
        raise ValueError("the loss falls from ln(num_tokens) towards 0 and takes no other values")
    if not (rate > 0).all():
        raise ValueError("rate must be positive: without it the loss does not fall")
    a = 1 / (num_tokens - 1)
    gap = np.maximum(-np.log(a * np.expm1(loss)), 0.0)  # 0 at ln M, rounding apart
    return (gap + a * np.expm1(gap)) / (rate * num_tokens * a)
