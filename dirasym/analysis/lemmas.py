"""What follows from Theorem B.1, checked and simulated: arXiv 2602.02133, App. B.

Corollary B.2 on given parameters or along a trajectory, Lemma B.7 without its assumptions,
and Propositions B.8 and B.10 by simulation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.analysis.theorem_b1 import (
    BlockProducts,
    OneLayer,
    TheoremB1,
    TheoremQuery,
    block_inner,
    check_arguments,
    square,
    theorem_b1,
    theorem_loss,
)
from dirasym.precision import highest_precision
from dirasym.types import Array


class CorollaryB2(NamedTuple):
    """Whether the assumptions of Corollary B.2 hold, and what follows.

    Attributes:
      non_saturated: (i) p_A < 1 in both queries.
      signals_aligned: (ii) ⟨u_fwd, u_rev⟩ > 0.
      margins_agree: (iii) μ_fwd μ_rev > 0.
      rope_positive: (iv) both RoPE quadratic forms > 0.
      signs: sign of each block's inner product, −1, 0 or 1.
      total: ⟨g_rev, g_fwd⟩.
      cosine: of the two gradients over all blocks; NaN when one is zero.
    """

    non_saturated: jax.Array
    signals_aligned: jax.Array
    margins_agree: jax.Array
    rope_positive: jax.Array
    signs: BlockProducts
    total: jax.Array
    cosine: jax.Array

    @property
    def assumptions_hold(self) -> jax.Array:
        """All four; the corollary then says total > 0."""
        return self.non_saturated & self.signals_aligned & self.margins_agree & self.rope_positive


@highest_precision
def check_corollary_b2(
    params: OneLayer | Sequence[OneLayer],
    delta_fwd: Array | float,
    delta_rev: Array | float,
    target: Array | int,
    *,
    angles: Array | None = None,
    pairing: str = "interleaved",
) -> CorollaryB2:
    """Checks (i)–(iv) on given parameters, or along a trajectory of them.

    A trajectory is a sequence of `OneLayer`, or one whose arrays have a leading axis of times;
    so have the results then. Other arguments as for `theorem_b1`.
    """
    if not isinstance(params, OneLayer):
        params = jax.tree.map(lambda *x: jnp.stack(x), *params)
    assert isinstance(params, OneLayer)
    one = params if params.h_M.ndim == 1 else jax.tree.map(lambda x: x[0], params)
    angles = check_arguments(one, delta_fwd, delta_rev, target, angles, pairing)

    def check(params: OneLayer) -> CorollaryB2:
        b1 = theorem_b1(params, delta_fwd, delta_rev, target, angles=angles, pairing=pairing)
        return _corollary_b2(params, b1, target)

    return check(params) if params.h_M.ndim == 1 else jax.vmap(check)(params)


def _corollary_b2(params: OneLayer, b1: TheoremB1, target: Array | int) -> CorollaryB2:
    """The assumptions, and what follows, from the theorem's ingredients."""
    # The cosine is that of the gradients over α max|e|, whose squares do not underflow.
    fwd, rev = (_over_its_size(query) for query in (b1.fwd, b1.rev))
    inner, fwd_square, rev_square = (
        block_inner(params, b1.v_B, x, y, *forms).total
        for x, y, *forms in (
            (fwd, rev, b1.k_R_k, b1.q_R_q),
            (fwd, fwd, square(b1.k_B), square(b1.q_M)),
            (rev, rev, square(b1.k_B), square(b1.q_M)),
        )
    )
    # Signs of factors, where the products themselves may underflow.
    aligned = _sign(b1.fwd.u, b1.rev.u)
    margins = jnp.sign(b1.fwd.mu) * jnp.sign(b1.rev.mu)
    betas = jnp.sign(b1.fwd.beta) * jnp.sign(b1.rev.beta)
    weights = jnp.sign(b1.fwd.alpha) * jnp.sign(b1.rev.alpha)
    return CorollaryB2(
        non_saturated=(b1.fwd.e[target] < 0) & (b1.rev.e[target] < 0),
        signals_aligned=aligned > 0,
        margins_agree=margins > 0,
        rope_positive=(b1.k_R_k > 0) & (b1.q_R_q > 0),
        signs=BlockProducts(
            W_Q=margins * betas * jnp.sign(b1.k_R_k),
            W_K=margins * betas * jnp.sign(b1.q_R_q),
            W_V=aligned * weights,
            W_O=_sign(b1.fwd.e, b1.rev.e) * weights,
        ),
        total=b1.inner.total,
        cosine=inner / (jnp.sqrt(fwd_square) * jnp.sqrt(rev_square)),
    )


def _sign(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sign of ⟨x, y⟩, whatever the vectors' sizes."""
    sizes = [jnp.abs(v).max() for v in (x, y)]
    return jnp.sign(
        (x / jnp.where(sizes[0] > 0, sizes[0], 1)) @ (y / jnp.where(sizes[1] > 0, sizes[1], 1))
    )


def _over_its_size(query: TheoremQuery) -> TheoremQuery:
    """The same gradient over α max|e|: all four blocks are linear in both."""
    size = jnp.abs(query.e).max()
    linear = {name: getattr(query, name) / size for name in ("e", "u", "mu", "abs_mu")}
    return query._replace(**linear, alpha=query.alpha / query.alpha, beta=query.beta / query.alpha)


class ErrorAlignment(NamedTuple):
    """Lemma B.7's quantities: ⟨e(p), e(q)⟩, its lower bound (1−p_A)(1−q_A), and the cosine."""

    inner: jax.Array
    bound: jax.Array
    cosine: jax.Array


def error_alignment(p: Array, q: Array, target: Array | int) -> ErrorAlignment:
    """Alignment of the cross-entropy errors e(p) = p − 1_A of two distributions.

    Lemma B.7 in a stronger form than the paper's: whenever p_A, q_A < 1,

        ⟨e(p), e(q)⟩ ≥ (1−p_A)(1−q_A)  and  cos ∠(e(p), e(q)) ≥ 1/2,

    without its "typical configurations": Σ_{t≠A} p_t² ≤ (1−p_A)², so ‖e(p)‖² ≤ 2(1−p_A)².
    Equality at p, q that put the rest of their mass on different single tokens. NaN where
    p_A or q_A is 1.

    Args:
      p, q: [..., V], rows that sum to 1. The mass off A is read from the other entries, which
        keeps its digits when p_A is near 1.
      target: A.
    """
    is_target = jnp.arange(jnp.shape(p)[-1]) == target

    def split(x):
        """1 − x_A, and the other entries as shares of it."""
        others = jnp.where(is_target, 0.0, jnp.asarray(x))
        rest = others.sum(-1)
        return rest, others / rest[..., None]

    (rest_p, share_p), (rest_q, share_q) = split(p), split(q)
    product = 1 + (share_p * share_q).sum(-1)
    norms = [jnp.sqrt(1 + (share**2).sum(-1)) for share in (share_p, share_q)]
    bound = rest_p * rest_q
    return ErrorAlignment(bound * product, bound, product / (norms[0] * norms[1]))


class DriftSimulation(NamedTuple):
    """Proposition B.8 by simulation.

    Attributes:
      positive: share of draws with ⟨Pa, Pb⟩ > 0.
      bound: 1 − 3 exp(−D/128); negative, that is vacuous, for D ≤ 140.
      inner: [num_draws], ⟨Pa, Pb⟩.
    """

    positive: jax.Array
    bound: float
    inner: jax.Array


@highest_precision
def simulate_proposition_b8(
    key: jax.Array,
    width: int,
    vocab_size: int,
    *,
    drift: float = 1 / 32,
    cosine: float = 0.5,
    adversarial: bool = False,
    num_draws: int = 1000,
) -> DriftSimulation:
    """Draws P = P₀ + Δ with P₀ ~ N(0, 1/D) [D, V] and ‖Δ‖₂ = drift, and unit a, b at `cosine`.

    Δ is a random matrix scaled to that spectral norm or, if `adversarial`, made for each draw
    the matrix of that norm that lowers ⟨Pa, Pb⟩ most, to first order: −drift·UWᵀ, with
    P₀b aᵀ + P₀a bᵀ = U S Wᵀ the gradient.

    Raises:
      ValueError: a cosine outside [−1, 1], a negative drift, a width below 2, or fewer than 2
        tokens, which two vectors at an angle take.
    """
    if not -1 <= cosine <= 1 or not drift >= 0:
        raise ValueError(f"cosine must be in [-1, 1] and drift >= 0, got {cosine=}, {drift=}")
    if width < 2 or vocab_size < 2:
        raise ValueError(f"width and vocab_size must be at least 2, got {width=}, {vocab_size=}")

    def draw(key):
        keys = jax.random.split(key, 3)
        frame, _ = jnp.linalg.qr(jax.random.normal(keys[0], (vocab_size, 2)))
        a = frame[:, 0]
        b = cosine * a + np.sqrt(1 - cosine**2) * frame[:, 1]
        start = jax.random.normal(keys[1], (width, vocab_size)) / np.sqrt(width)
        if adversarial:  # the gradient's row space is that of the frame
            in_frame = jnp.outer(start @ b, a @ frame) + jnp.outer(start @ a, b @ frame)
            left, _, right = jnp.linalg.svd(in_frame, full_matrices=False)
            change = -left @ right @ frame.T
        else:
            change = jax.random.normal(keys[2], (width, vocab_size))
            change = change / jnp.linalg.norm(change, ord=2)
        trained = start + drift * change
        return (trained @ a) @ (trained @ b)

    inner = jax.lax.map(draw, jax.random.split(key, num_draws), batch_size=32)
    return DriftSimulation((inner > 0).mean(), 1 - 3 * np.exp(-width / 128), inner)


class MarginStep(NamedTuple):
    """Change of C_t = w_{O,t}·v_B in an SGD step on W_O: as Proposition B.10 says, and measured."""

    predicted: jax.Array
    measured: jax.Array


@highest_precision
def simulate_proposition_b10(
    params: OneLayer,
    delta_fwd: Array | float,
    target: Array | int,
    learning_rate: float,
    *,
    angles: Array | None = None,
    pairing: str = "interleaved",
) -> MarginStep:
    """One forward SGD step on W_O: ΔC_t = −η α_fwd ‖v_B‖² e_fwd,t, [V].

    So C_A rises, every other C_t falls, and every margin C_A − C_t grows strictly.
    """
    angles = check_arguments(params, delta_fwd, delta_fwd, target, angles, pairing)
    grad = jax.grad(theorem_loss)(params, jnp.asarray(delta_fwd), target, angles, pairing)
    v_B = params.W_V @ params.h_B
    stepped = params.W_O - learning_rate * grad.W_O
    b1 = theorem_b1(params, delta_fwd, delta_fwd, target, angles=angles, pairing=pairing)
    return MarginStep(
        predicted=-learning_rate * b1.fwd.alpha * square(v_B) * b1.fwd.e,
        measured=stepped @ v_B - params.W_O @ v_B,
    )
