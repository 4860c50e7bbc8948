"""Theorem B.1: the forward–reverse gradient inner product of a one-layer encoder, block by block.

arXiv 2602.02133, App. B. The queries are x_fwd = ([M], B) with B at distance Δ₁ ahead and
x_rev = (B, [M]) with B at distance Δ₂ behind; the target at [M] is A in both. The model has
one head of width D, matrices that act as y = W h, fixed embeddings h_M and h_B, and RoPE:

    S = (W_Q h_M)ᵀ R(±Δ) (W_K h_B),   α = softmax over ([M], B) of scores/√D, at B,
    z = W_O (α W_V h_B),              L = −log softmax(z)_A.

It keeps B's value alone in the context, and holds the score of [M] on itself constant; see
`neglected_terms` for what that leaves out. Closed forms stand beside autodiff of the same
model. Computed at the highest matmul precision of the platform, in the parameters' dtype.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dirasym.models.layers import plane_angles, rotate
from dirasym.types import Array

BLOCKS = ("W_Q", "W_K", "W_V", "W_O")


@flax.struct.dataclass
class OneLayer:
    """Parameters of the theorem's model, y = W h.

    Attributes:
      W_Q, W_K, W_V: [D, D].
      W_O: [V, D].
      h_M, h_B: [D], embeddings of [M] and of the context token.
    """

    W_Q: jax.Array
    W_K: jax.Array
    W_V: jax.Array
    W_O: jax.Array
    h_M: jax.Array
    h_B: jax.Array


class Blocks(NamedTuple):
    """One number a parameter block."""

    W_Q: jax.Array
    W_K: jax.Array
    W_V: jax.Array
    W_O: jax.Array

    @property
    def storage(self) -> jax.Array:
        """W_V + W_O: what is said once B is read."""
        return self.W_V + self.W_O

    @property
    def routing(self) -> jax.Array:
        """W_Q + W_K: whether B is read."""
        return self.W_Q + self.W_K

    @property
    def total(self) -> jax.Array:
        """All four."""
        return self.storage + self.routing


class Query(NamedTuple):
    """Ingredients of one of the two queries.

    Attributes:
      score: S, raw.
      alpha: attention weight on B. beta: α(1−α).
      p: [V] probabilities. e: [V] error p − 1_A.
      u: [D] backpropagated signal W_Oᵀ e.
      mu: E_p[C] − C_A, the margin-like scalar. abs_mu: Σ_t |e_t C_t|, its natural scale.
      loss: −log p_A in nats.
    """

    score: jax.Array
    alpha: jax.Array
    beta: jax.Array
    p: jax.Array
    e: jax.Array
    u: jax.Array
    mu: jax.Array
    abs_mu: jax.Array
    loss: jax.Array


class TheoremB1(NamedTuple):
    """The four block inner products and everything that they are made of.

    Attributes:
      inner: I_W = ⟨∇_W L_fwd, ∇_W L_rev⟩ per block.
      fwd, rev: ingredients of each query.
      q_M, k_B, v_B: [D].
      C: [V], C_t = w_{O,t} · v_B.
      k_R_k, q_R_q: the RoPE quadratic forms k_Bᵀ R(Δ₁+Δ₂) k_B and q_Mᵀ R(Δ₁+Δ₂) q_M.
      scale: natural scale per block, for comparing floats: every inner product replaced by
        the product of norms, μ by Σ|e C|.
    """

    inner: Blocks
    fwd: Query
    rev: Query
    q_M: jax.Array
    k_B: jax.Array
    v_B: jax.Array
    C: jax.Array
    k_R_k: jax.Array
    q_R_q: jax.Array
    scale: Blocks


def highest_precision(function: Callable) -> Callable:
    """Runs `function` with exact float32 products: GPUs and TPUs round them by default."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped


@highest_precision
def theorem_b1(
    params: OneLayer,
    delta_fwd: Array | float,
    delta_rev: Array | float,
    target: Array | int,
    *,
    angles: Array | None = None,
    pairing: str = "interleaved",
) -> TheoremB1:
    """The closed form of Theorem B.1.

        I_WO = ⟨e_f, e_r⟩ α_f α_r ‖v_B‖²
        I_WV = ⟨u_f, u_r⟩ α_f α_r ‖h_B‖²
        I_WQ = μ_f μ_r β_f β_r / D · ‖h_M‖² · k_Bᵀ R(Δ₁+Δ₂) k_B
        I_WK = μ_f μ_r β_f β_r / D · ‖h_B‖² · q_Mᵀ R(Δ₁+Δ₂) q_M

    Args:
      params: of the model; D even.
      delta_fwd: Δ₁ ≥ 1, tokens.
      delta_rev: Δ₂ ≥ 1.
      target: A, in 0..V-1.
      angles: RoPE plane angles [D/2]; θ_s = 10000^(-2(s-1)/D) when None.
      pairing: of RoPE's coordinates, see `models.layers.rotate`.

    Raises:
      ValueError: shapes that do not fit, an odd D, a distance below 1, a target that is not
        a token.
    """
    angles = _check(params, delta_fwd, delta_rev, target, angles)
    q_M, k_B = params.W_Q @ params.h_M, params.W_K @ params.h_B
    v_B = params.W_V @ params.h_B
    C = params.W_O @ v_B
    turn = functools.partial(rotate, angles=angles, pairing=pairing)
    total = jnp.asarray(delta_fwd) + jnp.asarray(delta_rev)
    k_R_k, q_R_q = k_B @ turn(k_B, total), q_M @ turn(q_M, total)
    fwd, rev = (
        _query(params, q_M @ turn(k_B, delta), C, target)
        for delta in (jnp.asarray(delta_fwd), -jnp.asarray(delta_rev))
    )

    def products(e_e, u_u, mu_mu, k_k, q_q):
        weights, betas = fwd.alpha * rev.alpha, fwd.beta * rev.beta / len(q_M)
        return Blocks(
            W_Q=mu_mu * betas * _square(params.h_M) * k_k,
            W_K=mu_mu * betas * _square(params.h_B) * q_q,
            W_V=u_u * weights * _square(params.h_B),
            W_O=e_e * weights * _square(v_B),
        )

    norm = jnp.linalg.norm
    return TheoremB1(
        inner=products(fwd.e @ rev.e, fwd.u @ rev.u, fwd.mu * rev.mu, k_R_k, q_R_q),
        fwd=fwd,
        rev=rev,
        q_M=q_M,
        k_B=k_B,
        v_B=v_B,
        C=C,
        k_R_k=k_R_k,
        q_R_q=q_R_q,
        scale=products(
            norm(fwd.e) * norm(rev.e),
            norm(fwd.u) * norm(rev.u),
            fwd.abs_mu * rev.abs_mu,
            _square(k_B),
            _square(q_M),
        ),
    )


@highest_precision
def theorem_b1_autodiff(
    params: OneLayer,
    delta_fwd: Array | float,
    delta_rev: Array | float,
    target: Array | int,
    *,
    angles: Array | None = None,
    pairing: str = "interleaved",
) -> Blocks:
    """The same four inner products by `jax.grad` of the theorem's model; arguments as there."""
    angles = _check(params, delta_fwd, delta_rev, target, angles)
    grad = jax.grad(_theorem_loss)
    fwd = grad(params, jnp.asarray(delta_fwd), target, angles, pairing)
    rev = grad(params, -jnp.asarray(delta_rev), target, angles, pairing)
    return _block_products(fwd, rev)


def _theorem_loss(params: OneLayer, offset, target, angles, pairing):
    """The theorem's loss, written so that saturation costs no digits of its gradient."""
    q_M, k_B = params.W_Q @ params.h_M, params.W_K @ params.h_B
    own = jax.lax.stop_gradient(q_M @ (params.W_K @ params.h_M))
    score = q_M @ rotate(k_B, offset, angles, pairing)
    # α = exp(log σ): its derivative is α(1−α) with 1−α as σ(−x), not as a difference.
    alpha = jnp.exp(jax.nn.log_sigmoid((score - own) / np.sqrt(len(q_M))))
    return _target_loss(params.W_O @ (alpha * (params.W_V @ params.h_B)), target)


def _target_loss(z: jax.Array, target: Array | int) -> jax.Array:
    """−log softmax(z)_A as log(1 + Σ_{t≠A} e^(z_t − z_A)): its gradient never subtracts from 1."""
    others = jnp.where(jnp.arange(len(z)) == target, -jnp.inf, z - z[target])
    return jax.nn.softplus(jax.nn.logsumexp(others))


def _query(params: OneLayer, score, C, target) -> Query:
    own = (params.W_Q @ params.h_M) @ (params.W_K @ params.h_M)
    logit = (score - own) / np.sqrt(len(params.h_M))
    alpha, rest = jnp.exp(jax.nn.log_sigmoid(logit)), jnp.exp(jax.nn.log_sigmoid(-logit))
    z = alpha * C
    is_target = jnp.arange(len(z)) == target
    others = jnp.where(is_target, -jnp.inf, z - z[target])
    log_odds = jax.nn.logsumexp(others)  # of not A against A
    p_others = jnp.exp(jax.nn.log_sigmoid(log_odds)) * jax.nn.softmax(others)
    e = jnp.where(is_target, -p_others.sum(), p_others)
    return Query(
        score=score,
        alpha=alpha,
        beta=alpha * rest,
        p=jnp.where(is_target, jnp.exp(jax.nn.log_sigmoid(-log_odds)), p_others),
        e=e,
        u=params.W_O.T @ e,
        mu=(p_others * (C - C[target])).sum(),  # Σ e_t C_t, as Σ e_t = 0
        abs_mu=jnp.abs(e * C).sum(),
        loss=jax.nn.softplus(log_odds),
    )


def _square(x: jax.Array) -> jax.Array:
    return x @ x


def _block_products(first: OneLayer, second: OneLayer) -> Blocks:
    return Blocks(*(jnp.vdot(getattr(first, b), getattr(second, b)) for b in BLOCKS))


def _check(params: OneLayer, delta_fwd, delta_rev, target, angles) -> Array:
    width, vocab = params.h_M.shape[-1], params.W_O.shape[0]
    if width % 2:
        raise ValueError(f"head width must be even for RoPE, h_M has {width}")
    for name in ("W_Q", "W_K", "W_V"):
        if getattr(params, name).shape != (width, width):
            shape = getattr(params, name).shape
            raise ValueError(f"{name} must be [{width}, {width}] as h_M has {width}, got {shape}")
    if params.W_O.shape != (vocab, width) or params.h_B.shape != (width,):
        raise ValueError(
            f"W_O must be [V, {width}] and h_B [{width}], got {params.W_O.shape} and "
            f"{params.h_B.shape}"
        )
    for name, delta in (("delta_fwd", delta_fwd), ("delta_rev", delta_rev)):
        if not isinstance(delta, jax.core.Tracer) and not np.all(np.asarray(delta) >= 1):
            raise ValueError(f"{name} is a distance in tokens, at least 1, got {delta}")
    if not isinstance(target, jax.core.Tracer) and not 0 <= int(target) < vocab:
        raise ValueError(f"target must be a token in 0..{vocab - 1}, got {target}")
    return plane_angles(width) if angles is None else angles
