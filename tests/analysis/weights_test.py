import jax
import numpy as np
import pytest

from dirasym import models
from dirasym.analysis import weights

LEFT = 1


def test_effective_logits_are_weights_in_the_simple_models():
    sentences = np.array([[2, LEFT, 5], [3, LEFT, 6], [4, LEFT, 7]])
    model = models.ReparameterisedAttention(9)
    y = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32)
    params = {"Y": y, "Z": y}
    apply_fn = models.make_tokens_apply_fn(model)
    got = weights.effective_logits(apply_fn, params, sentences)
    np.testing.assert_allclose(got, y[2:5, 5:8], rtol=1e-6)
    own = y[[2, 3, 4], [5, 6, 7]]
    others = (y[2:5, 5:8].sum(axis=1) - own) / 2
    np.testing.assert_allclose(weights.gap(got), own - others, rtol=1e-5)


def test_a_gap_is_of_each_matrix_of_a_stack():
    logits = np.array([[[3.0, 1.0, 0.0], [0.0, 5.0, 1.0], [2.0, 4.0, 9.0]]])
    want = [3 - 0.5, 5 - 0.5, 9 - 3]
    got = weights.gap(np.concatenate([logits, -logits]))
    np.testing.assert_allclose(got, [want, np.negative(want)])


def test_a_choice_is_the_greatest_of_its_row_and_a_tie_is_none():
    rng = np.random.default_rng(0)
    logits_SPP = rng.normal(size=(5, 6, 6))
    logits_SPP[0, 2] = 7.0  # all alike
    logits_SPP[1, 3, 3] = logits_SPP[1, 3, 5] = 9.0
    want = [
        [all(row[i] > row[j] for j in range(6) if j != i) for i, row in enumerate(logits_PP)]
        for logits_PP in logits_SPP
    ]
    got = weights.choice(logits_SPP)
    np.testing.assert_array_equal(got, want)
    assert 0 < got.mean() < 1 and not got[0, 2] and not got[1, 3]
    assert weights.choice([[3, 2], [4, 5]]).all()  # of rows: of columns, 3 is below 4


def test_blocks_that_do_not_fit_are_refused():
    square, long = np.eye(3), np.ones((2, 3))
    for call in (
        lambda: weights.gap(long),
        lambda: weights.choice(long),
        lambda: weights.asymmetry(long, long),
        lambda: weights.intransitivity(square, square, np.eye(2)),
    ):
        with pytest.raises(AssertionError, match="shape"):
            call()
    for measure in weights.gap, weights.choice:
        with pytest.raises(ValueError, match="another"):
            measure(np.ones((1, 1)))


@pytest.mark.parametrize("causal", [True, False])
def test_effective_logits_of_a_deep_network(causal):
    sentences = np.array([[2, 0, 5], [3, 0, 6]])
    mask_id = None if causal else 8
    config = models.gpt2(
        9, dropout=0.0, num_layers=24, width=8, num_heads=2, max_len=3, causal=causal,
        scan_layers=True,
    )  # fmt: skip
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), sentences)["params"]
    apply_fn = models.make_apply_fn(model)
    got = jax.jit(
        lambda params: weights.effective_logits(apply_fn, params, sentences, mask_id=mask_id)
    )(params)
    prompts = sentences[:, :2] if causal else np.array([[2, 0, 8], [3, 0, 8]])
    want = jax.jit(apply_fn)(params, prompts)[:, -1, 5:7]
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_asymmetry():
    rng = np.random.default_rng(0)
    forward = rng.normal(size=(40, 40)) + 5 * np.eye(40)
    offsets = 10 * rng.normal(size=(40, 1))
    symmetric = forward.T + offsets + offsets.T
    assert weights.asymmetry(forward, symmetric) < 1e-5
    assert weights.asymmetry(0 * forward, 0 * forward) == 0
    assert weights.asymmetry(forward, -forward.T) == pytest.approx(1, rel=1e-5)
    assert weights.asymmetry(forward, np.ones((40, 40))) == pytest.approx(1, rel=1e-5)
    others = np.stack([symmetric, -forward.T, forward.T])
    got = weights.asymmetry(np.stack([forward] * 3), others)
    np.testing.assert_allclose(got, [0, 1, 0], atol=1e-5)
    alike = np.stack([rng.normal(size=(40, 40)) for _ in range(2)])
    assert weights.asymmetry(*alike) == pytest.approx(0.5**0.5, rel=0.05)


def test_intransitivity_of_a_solved_chain():
    """The one-layer model's A→C weight falls below the others, so it exceeds 1 (§4.2)."""
    eye = np.eye(6)
    assert weights.intransitivity(2 * eye, 3 * eye + 1, eye) == pytest.approx(0.5)
    assert weights.intransitivity(2 * eye, 3 * eye, 0 * eye) == 1
    assert weights.intransitivity(2 * eye, 3 * eye, -eye) > 1
    # Means over prompts, of which no two are alike: 3.5, 7 and 1.75 by either order.
    uneven = np.diag(np.arange(1.0, 7.0))
    for pair in ((uneven, 2 * uneven), (2 * uneven, uneven)):
        assert weights.intransitivity(*pair, uneven[::-1, ::-1] / 2) == pytest.approx(0.5)
    assert weights.intransitivity(uneven, 4 * eye, 2 * eye) == pytest.approx(1 - 2 / 3.5)
