import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import intervals, likelihood, metrics, types
from dirasym.data import case_pairs


def test_student_interval_covers():
    draws = np.random.default_rng(1).normal(3.0, 2.0, size=(4000, 3))
    covered = 0
    for row in draws:
        mean, half = intervals.student_interval(row)
        covered += abs(mean - 3.0) < half
    np.testing.assert_allclose(covered / len(draws), 0.95, atol=0.012)
    mean, half = intervals.student_interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose((mean, half), (2.0, 4.303 / np.sqrt(3)), rtol=1e-3)
    assert np.isnan(intervals.student_interval([5.0]).half_width)
    with pytest.raises(ValueError, match="values"):
        intervals.student_interval([])


def test_wilson_interval():
    """The ends solve (p̂ − p)² = z² p(1 − p)/n, and cover at their level."""
    for successes, count, level, z in ((242, 250, 0.95, 1.959964), (3, 7, 0.8, 1.281552)):
        share, low, high = intervals.wilson_interval(successes, count, level)
        assert share == successes / count and 0 < low < share < high < 1
        for p in (low, high):
            np.testing.assert_allclose((share - p) ** 2, z**2 * p * (1 - p) / count, rtol=1e-5)
    assert intervals.wilson_interval(0, 250)[:2] == (0, 0)
    np.testing.assert_allclose(intervals.wilson_interval(0, 250).high, 0.0151, atol=1e-4)
    assert intervals.wilson_interval(4, 4).high == 1
    np.testing.assert_allclose(
        intervals.wilson_interval(1, 1).low, 1 / (1 + 1.959964**2), rtol=1e-5
    )
    for successes, count in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="no share"):
            intervals.wilson_interval(successes, count)


def test_bootstrap_interval():
    values = np.random.default_rng(2).normal(3.0, 2.0, size=400)
    got = intervals.bootstrap_interval(values, level=0.9)
    assert got.estimate == values.mean()
    error = values.std(ddof=1) / 20
    np.testing.assert_allclose(
        (got.low, got.high), got.estimate + 1.645 * error * np.array([-1, 1]), atol=0.15 * error
    )
    skewed = intervals.bootstrap_interval(np.exp(values), np.median)
    assert skewed.estimate == np.median(np.exp(values))
    assert skewed.low < np.exp(3) < skewed.high
    assert intervals.bootstrap_interval(values, level=0.9) == got  # a seed of its own
    assert intervals.bootstrap_interval(values, level=0.9, seed=1) != got
    # Sums of five draws are binomial: the ends are its own quantiles, not those mirrored.
    for level, high in ((0.95, 0.6), (0.8, 0.4)):
        assert intervals.bootstrap_interval([0, 0, 0, 0, 1], level=level) == (0.2, 0, high)
    assert intervals.bootstrap_interval(values, level=0.9, resamples=50) != got
    assert intervals.bootstrap_interval(np.full(5, 7.0)) == (7, 7, 7)
    assert np.isnan(intervals.bootstrap_interval([7.0])[1:]).all()
    with pytest.raises(ValueError, match="no values"):
        intervals.bootstrap_interval([])
    with pytest.raises(ValueError, match="NaN"):
        intervals.bootstrap_interval([1.0, np.nan])


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -1.0, np.nan])
def test_a_level_is_between_none_and_all(level):
    for call in (
        lambda: intervals.student_interval([1.0, 2.0], level),
        lambda: intervals.wilson_interval(1, 2, level),
        lambda: intervals.bootstrap_interval([1.0, 2.0], level=level),
    ):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
            call()


def test_generation_success_is_anywhere():
    got = metrics.generation_success(np.array([[1, 2], [3, 1], [2, 2]]), np.array([1, 1, 1]))
    np.testing.assert_array_equal(got, [True, True, False])


def _position_model(params, tokens):
    """Logits that depend on the tokens up to and at the position."""
    seen = jnp.cumsum(tokens, axis=1)
    return jnp.sin(seen[..., None] * jnp.arange(1.0, case_pairs.VOCAB_SIZE + 1)[None, None])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_target_probability_of_a_causal_model_reads_the_prefix_alone(direction):
    q = case_pairs.prefix_queries(5, direction)
    got = metrics.target_probability(
        _position_model, {}, q.tokens_EL, q.target_E, q.asked_EL, bos_id=7
    )
    assert (np.asarray(got) > 0).sum() == q.asked_EL.sum() == 26 * 10
    for e in (0, 3, 50, 103):
        for j in np.flatnonzero(q.asked_EL[e]):
            prefix = np.concatenate([[7], q.tokens_EL[e, :j]])
            logits = _position_model({}, jnp.asarray(prefix)[None])[0, -1]
            np.testing.assert_allclose(got[e, j], jax.nn.softmax(logits)[q.target_E[e]], rtol=1e-4)


def test_target_probability_of_a_masked_model_leaves_the_mask_out():
    q = case_pairs.mask_queries(4, "reverse")

    def flat(params, tokens):
        return jnp.zeros((*tokens.shape, case_pairs.VOCAB_SIZE))

    p = metrics.target_probability(
        flat, {}, q.tokens_EL, q.target_E, q.asked_EL, excluded_id=case_pairs.MASK
    )
    np.testing.assert_allclose(p[q.asked_EL], 1 / (case_pairs.VOCAB_SIZE - 1), rtol=1e-6)


def test_a_model_of_few_bits_is_told_the_share_that_is_hidden_and_read_in_float32():
    slope_V = jnp.array([0.0, 1.0, 2.5, -3.0, 7.0])  # of the share; token 4 is [M]

    def told(params, tokens_BL, *, noise_B):
        logits_BLV = noise_B[:, None, None] * slope_V[None, None]
        shape = (*tokens_BL.shape, len(slope_V))
        return jnp.broadcast_to(logits_BLV, shape).astype(jnp.bfloat16)

    tokens_EL = np.array([[4, 1, 4, 2], [1, 2, 3, 4]])
    logits_EV = np.asarray(np.outer([0.5, 0.25], slope_V[:4]).astype(jnp.bfloat16), float)
    p_EV = np.exp(logits_EV) / np.exp(logits_EV).sum(axis=1, keepdims=True)
    got_ELV = metrics.probabilities(told, {}, tokens_EL, excluded_id=4)
    assert got_ELV.dtype == jnp.float32 and not got_ELV[..., 4].any()
    np.testing.assert_allclose(got_ELV[..., :4], p_EV[:, None].repeat(4, axis=1), rtol=1e-6)
    target_E = np.array([2, 3])
    got_EL = metrics.target_probability(
        told, {}, tokens_EL, target_E, tokens_EL == 4, excluded_id=4
    )
    want_EL = p_EV[[0, 1], target_E][:, None] * (tokens_EL == 4)
    np.testing.assert_allclose(got_EL, want_EL, rtol=1e-6)


def test_likelihoods_score_every_token_when_not_told():
    flat = lambda params, tokens: jnp.zeros((*tokens.shape, 5))  # noqa: E731
    tokens_BL = np.ones((2, 4), np.int32)
    batch = types.Batch(tokens_BL=tokens_BL, index_B=np.arange(2), global_size=2)
    np.testing.assert_allclose(
        likelihood.answer_log_likelihood(flat, {}, batch), -3 * np.log(5), rtol=1e-6
    )
    masked = likelihood.masked_log_likelihood(
        flat, {}, batch, jax.random.key(0), mask_id=4, num_samples=4
    )
    np.testing.assert_allclose(masked.mean, -4 * np.log(4), rtol=1e-6)


def test_proportion_error():
    np.testing.assert_allclose(intervals.proportion_error(0.5, 2600), 0.0098, atol=1e-4)
    np.testing.assert_allclose(intervals.proportion_error(0.2, 4), 0.2, rtol=1e-12)


def test_one_target_for_several_rows_is_refused():
    tokens = np.zeros((2, 3), int)
    for ask in (
        lambda: metrics.generation_success(tokens, np.array([1])),
        lambda: metrics.target_probability(
            lambda params, tokens: jnp.zeros((2, 3, 4)), {}, tokens, np.array([1]), tokens == 0
        ),
    ):
        with pytest.raises(AssertionError):
            ask()
