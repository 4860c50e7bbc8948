"""Trajectories of weights: gradient flow, gradient descent, and the bilinear model's flow.

Gradient flow goes by a library's integrator. The bilinear model (arXiv 2405.04669, §3) is
followed in the coordinates of its tokens, which cost the same at any width. The closed form
that both are compared with is `row_dynamics`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.sparse.linalg
import scipy.special

from dirasym.types import Array, Params

State = Any  # a pytree of float arrays
Field = Callable[[State], State]  # state -> its time derivative


def negative_gradient(loss: Callable[[Params], jax.Array]) -> Field:
    """−∇L, the field of gradient flow."""
    return lambda params: jax.tree.map(jnp.negative, jax.grad(loss)(params))


def flow(
    field: Field,
    state: State,
    times: Sequence[float],
    *,
    rtol: float = 1e-8,
    atol: float = 1e-10,
) -> State:
    """Solves dx/dt = field(x) from x(times[0]) = `state`: numpy float64 leaves [T, ...].

    SciPy's DOP853 (Dormand–Prince 8(5,3)), whose local error is kept below rtol·|x| + atol in
    every coordinate, in float64 whatever `state` is.

    Examples:
      >>> flow(lambda x: -x, np.ones(1), [0.0, 1.0])[:, 0].round(6)  # e^0 and e^-1
      array([1.      , 0.367879])

    Raises:
      RuntimeError: the field is not finite at the start, or the integrator gave up; says why.
      ValueError: times that are not finite.
    """
    if not np.isfinite(times).all():
        raise ValueError("times must be finite")
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(_float64(state))
        slope = jax.jit(lambda x: jax.flatten_util.ravel_pytree(field(unravel(x)))[0])
        if not np.isfinite(slope(flat)).all():  # SciPy's first step would be NaN, and never end
            raise RuntimeError("gradient flow: the field is not finite at the start")
        solution = scipy.integrate.solve_ivp(
            lambda _, x: np.asarray(slope(x)),
            (times[0], times[-1]),
            np.asarray(flat),
            method="DOP853",
            t_eval=times,
            rtol=rtol,
            atol=atol,
        )
        if not solution.success:
            raise RuntimeError(f"gradient flow: {solution.message}")
        return jax.tree.map(np.asarray, jax.vmap(unravel)(solution.y.T))


class UnstableStepError(ValueError):
    """Gradient descent climbed above where it began; `bound` is the step size to stay below."""

    def __init__(self, step: int, loss: float, step_size: float, bound: float):
        super().__init__(
            f"step size {step_size:g} diverges: the loss rose to {loss:.4g} at step {step}, where "
            f"step sizes below {bound:.4g} are stable"
        )
        self.step, self.bound = step, bound


def descend(
    field: Field,
    loss: Callable[[State], Array],
    state: State,
    *,
    step_size: float,
    num_steps: int,
    every: int = 1,
) -> State:
    """Gradient descent, x ← x + η field(x): leaves [1 + num_steps // every, ...], float64.

    Stops at the first loss that is not finite or (rounding apart) above the first one. The
    stability bound is the lesser of two at the x before: 2/ρ, with ρ the spectral radius of the
    field's Jacobian (2/λ_max of the Hessian, if the field is −∇ loss); and what this step could
    bear. Along it φ(σ) = loss(x + σ η field(x)) rises from σ = 0 to 1 though φ'(0) < 0, which
    takes max φ'' > 2|φ'(0)|; with η scaled by 2|φ'(0)| / max φ'' it would not have.

    Raises:
      UnstableStepError: names the step and the stability bound.
    """
    with jax.enable_x64(True):
        state = _float64(state)
        step = jax.jit(lambda x, size: jax.tree.map(lambda x, v: x + size * v, x, field(x)))
        loss = jax.jit(loss)
        first, kept = loss(state), [state]
        highest = first + 1e-12 * abs(first)
        for number in range(1, num_steps + 1):
            before, state = state, step(state, step_size)
            if not loss(state) <= highest:
                along_step = _step_bound(functools.partial(step, before), loss, step_size)
                bound = min(along_step, 2 / max(_spectral_radius(field, before), 1e-300))
                raise UnstableStepError(number, float(loss(state)), step_size, bound)
            if number % every == 0:
                kept.append(state)
        return jax.tree.map(lambda *x: np.stack(x), *kept)


def _step_bound(step_from_here, loss, step_size: float) -> float:
    """η · 2|φ'(0)| / max φ'', the maximum over points dense near 0; see `descend`."""
    slope = jax.grad(lambda share: loss(step_from_here(share * step_size)))
    curvature = jax.vmap(jax.grad(slope))(jnp.append(0.0, jnp.logspace(-8, 0, 65)))
    steepest = jnp.max(curvature, initial=0.0, where=jnp.isfinite(curvature))
    return float(step_size * -2 * slope(0.0) / steepest)


def _spectral_radius(field: Field, state: State) -> float:
    """The largest |eigenvalue| of the field's Jacobian at `state`, to 1e-10 of itself."""
    flat, unravel = jax.flatten_util.ravel_pytree(state)
    size = flat.size

    @jax.jit
    def jacobian(v):
        return jax.jvp(
            lambda x: jax.flatten_util.ravel_pytree(field(unravel(x)))[0], (flat,), (v,)
        )[1]

    start = np.random.default_rng(0).normal(size=size)
    image = np.asarray(jacobian(start))
    if not image.any() or not np.isfinite(image).all():  # which ARPACK does not take
        return float(np.abs(image).max())
    if size <= 8:  # nor does it find one of so few
        return float(np.abs(np.linalg.eigvals(np.asarray(jax.vmap(jacobian)(np.eye(size))))).max())
    operator = scipy.sparse.linalg.LinearOperator((size, size), jacobian, dtype=np.float64)
    found = scipy.sparse.linalg.eigs(
        operator, k=1, which="LM", v0=start, tol=1e-10, return_eigenvectors=False
    )
    return float(np.abs(found).max())


def _float64(tree: State) -> State:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


class BilinearFlow(NamedTuple):
    """Gradient flow of Θ for pairs x → y, through C with Θ = Eᵀ C E and E the embeddings.

    The gradient of cross-entropy is a sum of x (p − 1_y)ᵀ E, so from Θ = 0 nothing else is ever
    reached, and with the Gram matrix K = E Eᵀ

        logits of all tokens after all tokens = K C K,   dC/dt = (1/n) Σ_i 1_{x_i} (1_{y_i} − p_i)ᵀ

    K = I is the one-layer model, with C = Y. `symmetric` has (C + Cᵀ)/2 in place of C.

    Attributes:
      gram_VV: K.
      context_E, target_E: token ids of the n pairs that train.
      symmetric: whether Θ is held symmetric.
    """

    gram_VV: Array
    context_E: Array
    target_E: Array
    symmetric: bool = False

    def logits(self, c_VV: Array) -> Array:
        """All tokens after all tokens: [..., V, V]."""
        if self.symmetric:
            c_VV = (c_VV + c_VV.mT) / 2
        return self.gram_VV @ c_VV @ self.gram_VV

    def loss(self, c_VV: Array) -> Array:
        """Mean cross-entropy of the pairs that train, in nats."""
        return pair_loss(self.logits(c_VV), self.context_E, self.target_E)

    def field(self, c_VV: Array) -> jax.Array:
        """dC/dt."""
        logits_EV = self.logits(c_VV)[self.context_E]
        error_EV = jax.nn.one_hot(self.target_E, logits_EV.shape[1], dtype=logits_EV.dtype)
        error_EV = (error_EV - jax.nn.softmax(logits_EV)) / len(self.target_E)
        return jnp.zeros_like(c_VV).at[self.context_E].add(error_EV)


def pair_loss(logits_VV: Array, context_E: Array, target_E: Array) -> Array:
    """Mean of −log softmax(logits[..., x, :])_y over pairs (x, y), in nats: [...].

    NumPy arrays stay NumPy's, in float64.
    """
    is_jax = isinstance(logits_VV, jax.Array)
    logp_VV = jax.nn.log_softmax(logits_VV) if is_jax else scipy.special.log_softmax(logits_VV, -1)
    return -logp_VV[..., context_E, target_E].mean(axis=-1)


def smallest_exponent(loss_T: Array, reverse_T: Array) -> float:
    """The least ε ≥ 0 with L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε at every time.

    That is max_t ln(L_rev(t)/L_rev(0)) / ln(L(t)/L(0)), and 0 if L_rev never falls (the
    inequality of §3's theorem; the curse is ε near 0).

    Raises:
      ValueError: the forward loss does not stay below its start.
    """
    forward, reverse = (np.log(np.asarray(x, np.float64)) for x in (loss_T, reverse_T))
    forward, reverse = forward[1:] - forward[0], reverse[1:] - reverse[0]
    if not (forward < 0).all():
        raise ValueError("the inequality compares with a forward loss that falls")
    return float(max(0.0, (reverse / forward).max()))
