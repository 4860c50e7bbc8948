"""How RoPE ties the attention of a query to what stands behind it and before it.

Theorem 4.1 of arXiv 2602.02133 (§4.2, App. A) in closed form. With q the query and k the
key, S(Δ) = qᵀ R(Δ) k, and R(Δ) turning plane s of D/2 by Δ·θ_s. Every function depends on
the plane angles θ alone, so it holds for interleaved and half-split pairings, any base and
any frequency scaling: pass `angles` (radians per token, [D/2]) for other than the default
θ_s = 10000^(-2(s-1)/D).

Numbers and NumPy arrays are computed in float64; JAX arrays in their own precision, under
jit if wanted, except where a function says that it works on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from dirasym.models.layers import plane_angles
from dirasym.precision import highest_precision
from dirasym.types import Array

DEFAULT_BASE = 10_000.0


def rotation(delta: Array | float, head_dim: int, *, angles: Array | None = None) -> Array:
    """R(Δ), block-diagonal with planes (cos −sin; sin cos): [..., D, D] for Δ [...].

    Coordinates are interleaved, plane s being (2s, 2s+1), as the theory is written.
    """
    xp, angles = _namespace(delta, angles), _angles(head_dim, angles)
    turn = _turns(xp, delta, angles)
    eye = xp.repeat(xp.repeat(np.eye(head_dim // 2), 2, axis=-2), 2, axis=-1)
    cos, sin = (xp.repeat(f(turn), 2, axis=-1)[..., None] for f in (xp.cos, xp.sin))
    sign = np.array([[0.0, -1.0], [1.0, 0.0]])
    same = np.eye(head_dim)
    across = eye * np.tile(sign, (head_dim // 2, head_dim // 2))
    return cos * same + sin * across


def trace(delta: Array | float, head_dim: int, *, angles: Array | None = None) -> Array:
    """(1/D) Tr R(Δ) = (2/D) Σ_s cos(Δ θ_s), for Δ of any shape."""
    xp, angles = _namespace(delta, angles), _angles(head_dim, angles)
    return xp.cos(_turns(xp, delta, angles)).mean(axis=-1)


def trace_bound(delta: Array | float, head_dim: int, *, angles: Array | None = None) -> Array:
    """Theorem 4.1's lower bound (1/D) Tr R(2Δ) on the expected correlation at equal distances Δ."""
    return trace(2 * _namespace(delta).asarray(delta), head_dim, angles=angles)


def cosine_integral_approximation(
    delta: Array | float, *, base: float = DEFAULT_BASE
) -> np.ndarray:
    """The limit of `trace` for wide heads: ∫₀¹ cos(Δ base^-x) dx = (Ci(Δ) − Ci(Δ/base)) / ln base.

    App. A.2. Even in Δ, and 1 at Δ = 0. Float64, on the host.
    """
    delta = np.abs(np.asarray(delta, np.float64))
    safe = np.where(delta == 0, 1.0, delta)
    integral = scipy.special.sici(safe)[1] - scipy.special.sici(safe / base)[1]
    return np.where(delta == 0, 1.0, integral / np.log(base))


def conditional_correlation(
    w: Array,
    rho: Array | float,
    delta_fwd: Array | float,
    delta_rev: Array | float,
    *,
    angles: Array | None = None,
) -> Array:
    """Corr(qᵀ R(Δ₁) k, qᵀ R(−Δ₂) k | q), exactly, under (A2) as the proof uses it.

    Given q, keys have in plane s the covariance τ²((1−ρ_s)/2 I + ρ_s q_s q_sᵀ/‖q_s‖²), with
    one τ for all planes and 0 ≤ ρ_s ≤ 1. With w_s = ‖q_s‖²/‖q‖²:

          Σ_s w_s [cos((Δ₁+Δ₂)θ_s) + ρ_s cos((Δ₁−Δ₂)θ_s)]
        ─────────────────────────────────────────────────────
        √( Σ_s w_s [1 + ρ_s cos(2Δ₁θ_s)] · Σ_s w_s [1 + ρ_s cos(2Δ₂θ_s)] )

    which is (A+B)/(1+C) of App. A.1 for Δ₁ = Δ₂. Distances are positive, w weighs planes.

    Args:
      w: [..., D/2], not negative; scaled to sum to 1 by the formula itself.
      rho: broadcastable to w.
      delta_fwd: Δ₁, distance to the key ahead, broadcastable to w's leading axes.
      delta_rev: Δ₂, distance to the key behind.
      angles: θ.

    Raises:
      ValueError: `rho` outside [0, 1], `w` negative, a distance below 1 (checked outside jit),
        or widths that do not match.
    """
    xp = _namespace(w, rho, delta_fwd, delta_rev, angles)
    w, rho = (xp.asarray(x) for x in (w, rho))
    if not w.ndim or not (isinstance(w, jax.core.Tracer) or (w >= 0).all()):
        raise ValueError(f"w must be weights [..., D/2] of planes, not negative, got {w}")
    _check_distances(delta_fwd=delta_fwd, delta_rev=delta_rev)
    num_planes = np.shape(w)[-1]
    _check_rho(rho, num_planes)
    angles = _angles(2 * num_planes, angles)
    fwd, rev = (_turns(xp, d, angles) for d in (delta_fwd, delta_rev))
    shape = np.broadcast_shapes(*(np.shape(x) for x in (w, rho, fwd, rev)))
    w, rho, fwd, rev = (xp.broadcast_to(x, shape) for x in (w, rho, fwd, rev))
    covariance = (w * (xp.cos(fwd + rev) + rho * xp.cos(fwd - rev))).sum(-1)
    variances = [(w * (1 + rho * xp.cos(2 * turn))).sum(-1) for turn in (fwd, rev)]
    return covariance / xp.sqrt(variances[0] * variances[1])


def cantelli_lower_bound(
    delta: Array | float, threshold: Array | float, head_dim: int, *, angles: Array | None = None
) -> np.ndarray:
    """Pr[Corr ≥ c] ≥ (E − c)² / (V + (E − c)²) at equal distances Δ (App. A.3, Table 3).

    E and V are the mean and variance of Σ_s w_s cos(2Δθ_s) for w uniform on the simplex of
    m = D/2 planes: E = mean_s cos(2Δθ_s), V = (mean_s cos² − E²)/(m + 1). Float64, on the host.

    Raises:
      ValueError: `threshold` outside (0, E], where Cantelli's inequality says nothing, or a
        distance below 1.
    """
    _check_distances(delta=delta)
    delta = np.asarray(delta, np.float64)
    cos = np.cos(_turns(np, 2 * delta, _angles(head_dim, angles)))
    mean = cos.mean(axis=-1)
    variance = cos.var(axis=-1) / (head_dim // 2 + 1)
    threshold = np.asarray(threshold, np.float64)
    if not ((threshold > 0) & (threshold <= mean)).all():
        raise ValueError(
            f"threshold must be in (0, E] with E = (1/D) Tr R(2Δ) = {mean}, got {threshold}"
        )
    return (mean - threshold) ** 2 / (variance + (mean - threshold) ** 2)


class MonteCarlo(NamedTuple):
    """An estimate and its standard error."""

    mean: jax.Array
    standard_error: jax.Array


@highest_precision
def monte_carlo_correlation(
    key: jax.Array,
    delta_fwd: float,
    delta_rev: float,
    head_dim: int,
    *,
    rho: Array | float,
    num_queries: int = 1024,
    num_keys: int = 1024,
    angles: Array | None = None,
) -> MonteCarlo:
    """E_q[Corr(S_fwd, S_rev | q)] by sampling under (A1) and (A2), no formula used.

    Draws q ~ N(0, I), for each q keys from the conditional law of `conditional_correlation`,
    and averages the sample correlations of the two scores. The error is over queries; each
    sample correlation is biased by −r(1−r²)/(2·num_keys), far below it at the defaults.

    Raises:
      ValueError: as `conditional_correlation`, or fewer than 2 queries or keys.
    """
    angles = jnp.asarray(_angles(head_dim, angles))
    _check_distances(delta_fwd=delta_fwd, delta_rev=delta_rev)
    _check_rho(rho, head_dim // 2)
    if num_queries < 2 or num_keys < 2:
        raise ValueError(
            f"num_queries and num_keys must be at least 2, got {num_queries=}, {num_keys=}"
        )
    rho_P = jnp.broadcast_to(jnp.asarray(rho, jnp.float32), (head_dim // 2,))

    def correlation(key):
        q_key, along_key, around_key = jax.random.split(key, 3)
        q_P2 = jax.random.normal(q_key, (head_dim // 2, 2))
        unit_P2 = q_P2 / jnp.linalg.norm(q_P2, axis=-1, keepdims=True)
        along = jax.random.normal(along_key, (num_keys, head_dim // 2, 1))
        around = jax.random.normal(around_key, (num_keys, head_dim // 2, 2))
        k_EP2 = (
            jnp.sqrt((1 - rho_P) / 2)[None, :, None] * around
            + jnp.sqrt(rho_P)[None, :, None] * along * unit_P2[None]
        )

        def scores(delta):
            cos, sin = jnp.cos(delta * angles)[None], jnp.sin(delta * angles)[None]
            first, second = k_EP2[..., 0], k_EP2[..., 1]
            turned = jnp.stack([cos * first - sin * second, sin * first + cos * second], -1)
            return (q_P2[None] * turned).sum((-1, -2))

        return jnp.corrcoef(scores(delta_fwd), scores(-delta_rev))[0, 1]

    values = jax.lax.map(correlation, jax.random.split(key, num_queries), batch_size=64)
    return MonteCarlo(values.mean(), values.std(ddof=1) / np.sqrt(num_queries))


def _namespace(*values):
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def _turns(xp, delta: Array | float, angles: Array) -> Array:
    """Δ·θ_s: [..., D/2]. No matrix product: accelerators would round its factors."""
    return xp.multiply.outer(xp.asarray(delta), xp.asarray(angles))


def _check_distances(**deltas: Array | float) -> None:
    """A theorem's distances, in tokens; a rotation alone takes any sign."""
    for name, delta in deltas.items():
        if not isinstance(delta, jax.core.Tracer) and not np.all(np.asarray(delta) >= 1):
            raise ValueError(f"{name} is a distance in tokens, at least 1, got {delta}")


def _check_rho(rho: Array | float, planes: int) -> None:
    if np.ndim(rho) and np.shape(rho)[-1] not in (1, planes):
        raise ValueError(f"rho must be one number or one for each of {planes} planes, got {rho}")
    if not isinstance(rho, jax.core.Tracer):
        if not np.all((np.asarray(rho) >= 0) & (np.asarray(rho) <= 1)):
            raise ValueError(f"rho must be in [0, 1] (assumption A2), got {rho}")


def _angles(head_dim: int, angles: Array | None) -> Array:
    if angles is None:
        return plane_angles(head_dim)
    if np.shape(angles) != (head_dim // 2,) or head_dim % 2:
        raise ValueError(f"angles must be [{head_dim // 2}] for head_dim {head_dim}")
    return angles
