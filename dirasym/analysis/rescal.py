"""RESCAL: are relations bilinear in the hidden states of a model? (arXiv 2509.21993)

RESCAL (Nickel et al., 2011) writes the score of a fact (s, r, o) as h_sᵀ M_r h_o, one matrix a
relation and one vector h a person. arXiv 2509.21993 finds this structure in the hidden states of
language models that answer reverse facts. Here the vectors are given, and the matrices are fitted:

    M_r = argmin ‖Y_r − H_r M Hᵀ‖²,   Y_r[s, o] = 1 where (s, r, o) is a fact, else 0,

with H [P, D] all persons and H_r [S, D] the subjects of the facts. Where the inverse of r is r',
bilinear states have M_r' = M_rᵀ; fitted on other persons, neither that nor a score is trivial.
"""

import chex
import jax
import jax.numpy as jnp

from dirasym.types import Array

RIDGE = 0.1  # of the mean square of singular values


def fit(hidden_PD: Array, subject_E: Array, object_E: Array, *, ridge: float = RIDGE) -> jax.Array:
    """The matrix M [D, D] of one relation: least squares with a ridge on both sides, by SVD.

    M = H_r⁺ Y (H⁺)ᵀ, with X⁺ = V diag(σ/(σ² + λ)) Uᵀ of X = U diag(σ) Vᵀ and λ = ridge times the
    mean σ². With ridge 0 and H of full rank it is the least-squares solution.

    Args:
      hidden_PD: a vector a person, centred by the caller or not.
      subject_E: persons (rows of `hidden_PD`) of which the relation is told, each once.
      object_E: their objects.
      ridge: at least 0.

    Examples:
      >>> M_DD = fit(jnp.eye(3), jnp.array([0, 1]), jnp.array([1, 2]), ridge=0.0)
      >>> M_DD.round(3).tolist()
      [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    hidden_PD, subject_E, object_E = map(jnp.asarray, (hidden_PD, subject_E, object_E))
    chex.assert_equal_shape([subject_E, object_E])
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    # Y (H⁺)ᵀ: the columns of H⁺ at the objects.
    return _inverse(hidden_PD[subject_E], ridge) @ _inverse(hidden_PD, ridge).T[object_E]


def _inverse(x_PD: jax.Array, ridge: float) -> jax.Array:
    """X⁺ [D, P]; singular values below rounding count as 0."""
    u_PK, s_K, v_KD = jnp.linalg.svd(x_PD, full_matrices=False)
    floor = s_K[0] * max(x_PD.shape) * jnp.finfo(x_PD.dtype).eps
    scale = jnp.where(s_K > floor, s_K / jnp.maximum(s_K**2 + ridge * jnp.mean(s_K**2), 1e-30), 0)
    return v_KD.T @ (scale[:, None] * u_PK.T)


def scores(hidden_PD: Array, matrix_DD: Array, subject_E: Array) -> jax.Array:
    """h_sᵀ M h_o of every subject with every person: [E, P]."""
    hidden_PD = jnp.asarray(hidden_PD)
    return hidden_PD[jnp.asarray(subject_E)] @ jnp.asarray(matrix_DD) @ hidden_PD.T


def hits(hidden_PD: Array, matrix_DD: Array, subject_E: Array, object_E: Array) -> jax.Array:
    """The share of facts whose object scores highest of all persons but the subject (hits@1)."""
    scores_EP = scores(hidden_PD, matrix_DD, subject_E)
    row_E = jnp.arange(len(scores_EP))
    scores_EP = scores_EP.at[row_E, jnp.asarray(subject_E)].set(-jnp.inf)
    return jnp.mean(jnp.argmax(scores_EP, axis=1) == jnp.asarray(object_E))


def transpose_cosine(matrix_DD: Array, inverse_DD: Array) -> jax.Array:
    """⟨M, N⟩/(‖M‖ ‖N‖) of M and Nᵀ, the inverse relation's: 1 where reversing is transposing.

    Examples:
      >>> M_DD = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> float(transpose_cosine(M_DD, M_DD.T))
      1.0
    """
    matrix_DD, inverse_DD = jnp.asarray(matrix_DD), jnp.asarray(inverse_DD)
    chex.assert_equal_shape([matrix_DD, inverse_DD.T])
    size = jnp.linalg.norm(matrix_DD) * jnp.linalg.norm(inverse_DD)
    return jnp.sum(matrix_DD * inverse_DD.T) / jnp.where(size > 0, size, 1)
