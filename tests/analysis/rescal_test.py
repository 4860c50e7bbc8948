"""The bilinear probe finds a planted structure, and nothing where there is none."""

import numpy as np
import pytest

from dirasym.analysis import rescal


def _planted(num=40, seed=0):
    """Orthonormal vectors, and a relation that sends person i of the first half to half + i."""
    hidden_PD = np.linalg.qr(np.random.default_rng(seed).normal(size=(num, num)))[0]
    return hidden_PD.astype(np.float32), np.arange(num // 2), num // 2 + np.arange(num // 2)


def test_a_fitted_matrix_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    hidden_PD = rng.normal(size=(30, 5)).astype(np.float32)
    subject_E, object_E = np.arange(10), np.array([3, 7, 20, 11, 29, 15, 18, 22, 2, 9])
    y_EP = np.zeros((10, 30))
    y_EP[np.arange(10), object_E] = 1
    design = np.kron(hidden_PD[subject_E], hidden_PD)  # rows (s, o), columns (d, e)
    want = np.linalg.lstsq(design, y_EP.ravel(), rcond=None)[0].reshape(5, 5)
    got = rescal.fit(hidden_PD, subject_E, object_E, ridge=0.0)
    np.testing.assert_allclose(got, want, atol=1e-5)
    ridged = rescal.fit(hidden_PD, subject_E, object_E, ridge=0.5)
    assert np.linalg.norm(ridged) < np.linalg.norm(got)


def test_without_a_ridge_what_no_person_tells_apart_has_no_weight():
    """Of states in a plane of five dimensions: pseudo-inverses, by NumPy's own."""
    rng = np.random.default_rng(4)
    hidden_PD = (rng.normal(size=(12, 2)) @ rng.normal(size=(2, 5))).astype(np.float32)
    subject_E, object_E = np.arange(6), np.array([3, 7, 0, 11, 9, 5])
    first, second = (
        np.linalg.pinv(x.astype(np.float64), rcond=1e-5) for x in (hidden_PD[:6], hidden_PD)
    )
    got = rescal.fit(hidden_PD, subject_E, object_E, ridge=0.0)
    np.testing.assert_allclose(got, first @ second.T[object_E], atol=1e-5)


def test_a_planted_bilinear_relation_is_found_on_persons_that_were_not_fitted():
    # h_s = (x, 1, 0) and h_o = (Qx, 0, 1): the relation turns x, and one kind into the other.
    rng = np.random.default_rng(1)
    x_ED = rng.normal(size=(60, 8))
    x_ED /= np.linalg.norm(x_ED, axis=1, keepdims=True)  # nobody scores by size
    turn_DD = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    kinds = [np.tile(kind, (60, 1)) for kind in ((1.0, 0.0), (0.0, 1.0))]
    hidden_PD = np.concatenate(
        [np.hstack([x_ED, kinds[0]]), np.hstack([x_ED @ turn_DD, kinds[1]])]
    ).astype(np.float32)
    s_E, o_E = np.arange(60), 60 + np.arange(60)
    matrix = rescal.fit(hidden_PD, s_E[:40], o_E[:40])
    inverse = rescal.fit(hidden_PD, o_E[40:], s_E[40:])
    assert rescal.hits(hidden_PD, matrix, s_E[40:], o_E[40:]) > 0.9
    assert rescal.hits(hidden_PD, matrix, o_E[40:], s_E[40:]) < 0.2  # not the other way
    assert rescal.hits(hidden_PD, inverse, o_E[:40], s_E[:40]) > 0.8
    assert rescal.transpose_cosine(matrix, inverse) > 0.8
    assert abs(rescal.transpose_cosine(matrix, matrix)) < 0.5


def test_vectors_without_structure_give_chance():
    hidden_PD, s_E, o_E = _planted()
    matrix = rescal.fit(hidden_PD, s_E[:10], o_E[:10])
    assert rescal.hits(hidden_PD, matrix, s_E[:10], o_E[:10]) == 1  # what was fitted
    assert rescal.hits(hidden_PD, matrix, s_E[10:], o_E[10:]) < 0.3
    inverse = rescal.fit(hidden_PD, o_E[10:], s_E[10:])
    assert abs(rescal.transpose_cosine(matrix, inverse)) < 1e-3  # disjoint facts
    inverse = rescal.fit(hidden_PD, o_E[:10], s_E[:10])
    np.testing.assert_allclose(rescal.transpose_cosine(matrix, inverse), 1, atol=1e-5)
    np.testing.assert_allclose(rescal.transpose_cosine(matrix, -inverse), -1, atol=1e-5)


def test_the_subject_itself_is_never_an_answer_and_a_negative_ridge_is_refused():
    hidden_PD = np.eye(3, dtype=np.float32)
    scores = np.array([[9.0, 1.0, 0.0], [0.0, 9.0, 1.0], [1.0, 0.0, 9.0]], np.float32)
    assert rescal.hits(hidden_PD, scores, np.arange(3), np.array([1, 2, 0])) == 1
    assert rescal.hits(hidden_PD, scores, np.arange(3), np.array([2, 0, 0])) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        rescal.fit(hidden_PD, np.array([0]), np.array([1]), ridge=-1.0)


def test_the_ridge_is_a_share_of_the_mean_square_on_both_sides():
    """Of 10 and of 30 rows, by the normal equations: X⁺ = (XᵀX + λ)⁻¹ Xᵀ; 0.1 if not said."""
    hidden_PD = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    subject_E, object_E = np.arange(10), np.array([3, 7, 20, 11, 29, 15, 18, 22, 2, 9])

    def inverse(x_PD, ridge):
        gram_DD = x_PD.T @ x_PD
        return np.linalg.solve(gram_DD + ridge * np.trace(gram_DD) / 5 * np.eye(5), x_PD.T)

    for how, ridge in ((dict(ridge=0.5), 0.5), ({}, 0.1)):
        want = inverse(hidden_PD[subject_E], ridge) @ inverse(hidden_PD, ridge).T[object_E]
        got = rescal.fit(hidden_PD, subject_E, object_E, **how)
        np.testing.assert_allclose(got, want, atol=1e-5)
