"""Theorem B.1: the forward–reverse gradient inner product of a one-layer encoder, block by block.

arXiv 2602.02133, App. B. The queries are x_fwd = ([M], B) with B at distance Δ₁ ahead and
x_rev = (B, [M]) with B at distance Δ₂ behind; the target at [M] is A in both. The model has
one head of width D, matrices that act as y = W h, fixed embeddings h_M and h_B, and RoPE:

    S = (W_Q h_M)ᵀ R(±Δ) (W_K h_B),   α = softmax over ([M], B) of scores/√D, at B,
    z = W_O (α W_V h_B),              L = −log softmax(z)_A.

It keeps B's value alone in the context, and holds the score of [M] on itself constant; see
`analysis.neglected` for what that leaves out. Closed forms stand beside autodiff of the same
model. Computed at the highest matmul precision of the platform, in the parameters' dtype.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dirasym.models.layers import plane_angles, rotate
from dirasym.models.transformer import TransformerConfig
from dirasym.precision import highest_precision
from dirasym.rows import check_mask_id, check_read
from dirasym.types import Array, Params

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

    @classmethod
    def from_transformer(
        cls,
        params: Params,
        config: TransformerConfig,
        *,
        mask_id: int,
        context: Array | int,
        target: Array | int,
    ) -> tuple["OneLayer", dict[str, Any]]:
        """The theorem's parameters out of a one-layer encoder of attention alone.

        Its output projection and head count as one W_O = head ∘ out. [M] is never predicted, so
        its row is left out of W_O. What the theorem drops of this model is `neglected_terms`.

            model, how = OneLayer.from_transformer(params, config, mask_id=0, context=5, target=7)
            theorem_b1(model, delta_fwd=1, delta_rev=1, **how)

        Args:
          params: "params" of a `models.Transformer`.
          config: its configuration, such as `models.attention_only(vocab_size, residual=False)`.
          mask_id: [M].
          context: token B; several give h_B a leading axis.
          target: token A, never [M]; several give a leading axis.

        Returns:
          The parameters, and keywords of `theorem_b1`: target (as a row of W_O), angles, pairing.

        Raises:
          ValueError: a model that is not the theorem's; names the fields that differ. A mask id,
            context or target that it lacks, or a target that is [M]: of another row of W_O, all
            products would be numbers of another token.
        """
        wanted = dict(
            num_layers=1, num_heads=1, num_kv_heads=1, head_dim=config.width, causal=False,
            block_size=None, window=None, positions="rope", token_types=0, norm="none",
            attention_only=True, residual=False, qkv_bias=False, out_bias=False, head_bias=False,
            head_transform=False, shift_logits=False,
        )  # fmt: skip
        wrong = [name for name, value in wanted.items() if getattr(config, name) != value]
        if wrong:
            says = ", ".join(f"{name}={wanted[name]}" for name in wrong)
            raise ValueError(f"Theorem B.1 is of a model with {says}")
        check_mask_id(mask_id, None, config.vocab_size)
        for name, tokens in (("context", context), ("target", target)):
            known = () if isinstance(tokens, jax.core.Tracer) else np.asarray(tokens).ravel()
            for token in known:
                check_read(name, token, None, config.vocab_size)
                if name == "target" and token == mask_id:
                    raise ValueError(f"target is {token}, [M], which is never predicted")
        block = params["blocks_0"] if not config.scan_layers else params["blocks"]["block"]
        attend = block["attention"]
        kernels = {name: attend[name]["kernel"] for name in ("query", "key", "value", "out")}
        if config.scan_layers:
            kernels = {name: kernel[0] for name, kernel in kernels.items()}
        embed_VD = params["embed"]["embedding"]
        head_DV = embed_VD.T if config.tied_head else params["head"]["kernel"]
        read_out_DV = kernels["out"][0] @ jnp.delete(head_DV, mask_id, axis=1)
        model = cls(
            W_Q=kernels["query"][:, 0].T,
            W_K=kernels["key"][:, 0].T,
            W_V=kernels["value"][:, 0].T,
            W_O=read_out_DV.T,
            h_M=embed_VD[mask_id],
            h_B=embed_VD[context],
        )
        row = jnp.asarray(target) - (jnp.asarray(target) > mask_id)
        angles = plane_angles(config.width, config.rope_base, config.rope_scaling)
        return model, dict(target=row, angles=angles, pairing=config.rope_pairing)


class BlockProducts(NamedTuple):
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


class TheoremQuery(NamedTuple):
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

    inner: BlockProducts
    fwd: TheoremQuery
    rev: TheoremQuery
    q_M: jax.Array
    k_B: jax.Array
    v_B: jax.Array
    C: jax.Array
    k_R_k: jax.Array
    q_R_q: jax.Array
    scale: BlockProducts


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
        a token, an unknown pairing.
      TypeError: parameters that are not floats, by name.
    """
    theta = check_arguments(params, delta_fwd, delta_rev, target, angles, pairing)
    q_M, k_B = params.W_Q @ params.h_M, params.W_K @ params.h_B
    v_B = params.W_V @ params.h_B
    C = params.W_O @ v_B
    turn = functools.partial(rotate, angles=theta, pairing=pairing)
    total = jnp.asarray(delta_fwd) + jnp.asarray(delta_rev)
    k_R_k, q_R_q = k_B @ turn(k_B, total), q_M @ turn(q_M, total)
    fwd, rev = (
        _query(params, q_M @ turn(k_B, delta), C, target)
        for delta in (jnp.asarray(delta_fwd), -jnp.asarray(delta_rev))
    )

    def size_alone(query):
        norms = {name: jnp.linalg.norm(getattr(query, name))[None] for name in ("e", "u")}
        return query._replace(mu=query.abs_mu, **norms)

    inner = block_inner(params, v_B, fwd, rev, k_R_k, q_R_q)
    sizes = size_alone(fwd), size_alone(rev), square(k_B), square(q_M)
    scale = block_inner(params, v_B, *sizes)
    return TheoremB1(inner, fwd, rev, q_M, k_B, v_B, C, k_R_k, q_R_q, scale)


@highest_precision
def theorem_b1_autodiff(
    params: OneLayer,
    delta_fwd: Array | float,
    delta_rev: Array | float,
    target: Array | int,
    *,
    angles: Array | None = None,
    pairing: str = "interleaved",
) -> BlockProducts:
    """The same four inner products by `jax.grad` of the theorem's model; arguments as there."""
    angles = check_arguments(params, delta_fwd, delta_rev, target, angles, pairing)
    grad = jax.grad(theorem_loss)
    fwd = grad(params, jnp.asarray(delta_fwd), target, angles, pairing)
    rev = grad(params, -jnp.asarray(delta_rev), target, angles, pairing)
    return block_products(fwd, rev)


def block_inner(
    params: OneLayer, v_B, fwd: TheoremQuery, rev: TheoremQuery, k_R_k, q_R_q
) -> BlockProducts:
    """The four products of the theorem."""
    norm = jnp.linalg.norm

    # Each query's small weights meet its own large factors first: α_f α_r alone may underflow.
    def storage(x_fwd, x_rev, size):
        return (fwd.alpha * size * x_fwd) @ (rev.alpha * size * x_rev)

    def routing(h):
        size = norm(h) / len(h) ** 0.5
        return (fwd.beta * size * fwd.mu) * (rev.beta * size * rev.mu)

    return BlockProducts(
        W_Q=routing(params.h_M) * k_R_k,
        W_K=routing(params.h_B) * q_R_q,
        W_V=storage(fwd.u, rev.u, norm(params.h_B)),
        W_O=storage(fwd.e, rev.e, norm(v_B)),
    )


def _query(params: OneLayer, score, C, target) -> TheoremQuery:
    own = (params.W_Q @ params.h_M) @ (params.W_K @ params.h_M)
    logit = (score - own) / np.sqrt(len(params.h_M))
    alpha, rest = jnp.exp(jax.nn.log_sigmoid(logit)), jnp.exp(jax.nn.log_sigmoid(-logit))
    z = alpha * C
    is_target = jnp.arange(len(z)) == target
    others = jnp.where(is_target, -jnp.inf, z - z[target])
    log_odds = jax.nn.logsumexp(others)  # of not A against A
    p_others = jnp.exp(jax.nn.log_sigmoid(log_odds)) * jax.nn.softmax(others)
    e = jnp.where(is_target, -p_others.sum(), p_others)
    return TheoremQuery(
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


def theorem_loss(params: OneLayer, offset, target, angles, pairing):
    """The theorem's loss, written so that saturation costs no digits of its gradient."""
    q_M, k_B = params.W_Q @ params.h_M, params.W_K @ params.h_B
    own = jax.lax.stop_gradient(q_M @ (params.W_K @ params.h_M))
    score = q_M @ rotate(k_B, offset, angles, pairing)
    # α = exp(log σ): its derivative is α(1−α) with 1−α as σ(−x), not as a difference.
    alpha = jnp.exp(jax.nn.log_sigmoid((score - own) / np.sqrt(len(q_M))))
    return target_loss(params.W_O @ (alpha * (params.W_V @ params.h_B)), target)


def target_loss(z: jax.Array, target: Array | int) -> jax.Array:
    """−log softmax(z)_A as log(1 + Σ_{t≠A} e^(z_t − z_A)): its gradient never subtracts from 1."""
    others = jnp.where(jnp.arange(len(z)) == target, -jnp.inf, z - z[target])
    return jax.nn.softplus(jax.nn.logsumexp(others))


def block_products(first: OneLayer, second: OneLayer) -> BlockProducts:
    """⟨first, second⟩ of two gradients, block by block."""
    return BlockProducts(*(jnp.vdot(getattr(first, b), getattr(second, b)) for b in BLOCKS))


def square(x: jax.Array) -> jax.Array:
    """‖x‖² of a vector."""
    return x @ x


def check_arguments(params: OneLayer, delta_fwd, delta_rev, target, angles, pairing) -> Any:
    """The RoPE plane angles, once everything fits; raises as `theorem_b1` says."""
    for name, leaf in vars(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"params: {name} is {jnp.result_type(leaf)}; gradients need floats")
    width, vocab = params.h_M.shape[-1], params.W_O.shape[0]
    if width % 2:
        raise ValueError(f"head width must be even for RoPE, h_M has {width}")
    for name in ("W_Q", "W_K", "W_V"):
        if getattr(params, name).shape != (width, width):
            shape = getattr(params, name).shape
            raise ValueError(f"{name} must be [{width}, {width}] as h_M has {width}, got {shape}")
    if params.W_O.shape != (vocab, width) or params.h_B.shape != (width,) or vocab < 2:
        raise ValueError(
            f"W_O must be [V, {width}] with V at least 2 and h_B [{width}], got "
            f"{params.W_O.shape} and {params.h_B.shape}"
        )
    for name, value in (("delta_fwd", delta_fwd), ("delta_rev", delta_rev), ("target", target)):
        if jnp.ndim(value):
            raise ValueError(f"{name} must be one number (or use jax.vmap), got {value}")
    for name, delta in (("delta_fwd", delta_fwd), ("delta_rev", delta_rev)):
        if not isinstance(delta, jax.core.Tracer) and not delta >= 1:
            raise ValueError(f"{name} is a distance in tokens, at least 1, got {delta}")
    if not isinstance(target, jax.core.Tracer):
        if not (0 <= target < vocab and target == int(target)):
            raise ValueError(f"target must be a token in 0..{vocab - 1}, got {target}")
    if pairing not in ("half", "interleaved"):
        raise ValueError(f"pairing must be 'half' or 'interleaved', got {pairing!r}")
    if angles is None:
        return plane_angles(width)
    if not isinstance(angles, jax.core.Tracer):
        angles = np.asarray(angles, np.float64)
    if angles.shape != (width // 2,):
        raise ValueError(f"angles must be [{width // 2}] as h_M has {width}, got {angles}")
    return angles
