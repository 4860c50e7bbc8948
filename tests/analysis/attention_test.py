import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models
from dirasym.analysis import attention, rope
from dirasym.data import case_pairs

LENGTH = 5


def _model(num_layers=1, **kwargs):
    config = models.radd(
        vocab_size=case_pairs.VOCAB_SIZE, num_layers=num_layers, num_heads=2, width=16, **kwargs
    )
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, LENGTH), np.int32))["params"]
    return model, models.make_internals_fn(model), params


def _queries(direction):
    q = case_pairs.mask_queries(LENGTH, direction)
    return q.tokens_EL, q.position_E, q.context_E


def test_scores_and_weights_are_the_models_own():
    _, internals, params = _model(num_layers=2)
    tokens_EL, query_E, key_E = _queries("forward")
    got = attention.attention_to(internals, params, tokens_EL, query_E, key_E, chunk_size=64)
    sown = internals(params, tokens_EL)
    rows = np.arange(len(tokens_EL))
    for name in ("scores", "weights"):
        want = np.moveaxis(np.asarray(sown[name])[:, rows, :, query_E, key_E], 0, -1)
        np.testing.assert_allclose(getattr(got, name), want, atol=1e-5 * np.abs(want).max())


def _table_internals(params, tokens_EL):
    """One layer, two heads: scores and weights that say which (query, key, token) they are of."""
    tokens_EL = jnp.asarray(tokens_EL)
    length = tokens_EL.shape[1]
    query_LS, key_LS = jnp.meshgrid(jnp.arange(length), jnp.arange(length), indexing="ij")
    scores = 100.0 * query_LS[None] + 10.0 * key_LS[None] + tokens_EL[:, None]
    two = jnp.stack([scores, -scores], axis=1)[None]
    return {"scores": params * two, "weights": two / 1000}


def test_a_names_score_is_the_mean_of_its_tokens_and_its_weight_their_sum():
    tokens_EL = np.array([[5, 1, 2, 3], [4, 6, 7, 8]])
    query_E, key_E, stop_E = np.array([0, 3]), np.array([1, 0]), np.array([4, 1])
    got = attention.attention_to(
        _table_internals, 2.0, tokens_EL, query_E, key_E, stop_E=stop_E, chunk_size=1
    )
    scores = np.array([[11, 22, 33], [304, 304, 304]])
    np.testing.assert_allclose(got.scores[0, 0], 2 * scores.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(got.scores[0, 1], -2 * scores.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(got.weights[0, 0], [0.066, 0.304], rtol=1e-6)
    one = attention.attention_to(_table_internals, 2.0, tokens_EL, query_E, key_E)
    np.testing.assert_allclose(one.scores[0, 0], [22, 608], rtol=1e-6)
    for bad in ([1, 1], [5, 1], [0, 1]):
        with pytest.raises(ValueError, match="stop_E"):
            attention.attention_to(
                _table_internals, 1.0, tokens_EL, query_E, key_E, stop_E=np.array(bad)
            )


def test_names_are_placed_at_every_distance_on_their_side():
    names = [[1, 2], [3]]
    forward = attention.place_names(names, 2, "forward", mask_id=9, fill_id=0)
    np.testing.assert_array_equal(
        forward.tokens_EL, [[9, 1, 2, 0], [9, 0, 1, 2], [9, 3, 0, 0], [9, 0, 3, 0]]
    )
    np.testing.assert_array_equal(forward.query_E, 0)
    np.testing.assert_array_equal(forward.key_E, [1, 2, 1, 2])
    np.testing.assert_array_equal(forward.stop_E, [3, 4, 2, 3])
    reverse = attention.place_names(names, 2, "reverse", mask_id=9, fill_id=0)
    np.testing.assert_array_equal(
        reverse.tokens_EL, [[1, 2, 9, 0], [1, 2, 0, 9], [3, 9, 0, 0], [3, 0, 9, 0]]
    )
    np.testing.assert_array_equal(reverse.query_E, [2, 3, 1, 2])
    np.testing.assert_array_equal(reverse.key_E, 0)
    np.testing.assert_array_equal(reverse.stop_E, [2, 2, 1, 1])
    for placed in (forward, reverse):
        np.testing.assert_array_equal(placed.item_E, [0, 0, 1, 1])
        np.testing.assert_array_equal(placed.distance_E, [1, 2, 1, 2])
    for bad in (([], 2, "forward"), ([[]], 2, "forward"), (names, 0, "forward"), (names, 2, "up")):
        with pytest.raises(ValueError):
            attention.place_names(*bad, mask_id=9, fill_id=0)


def test_correlation_of_names_that_are_known():
    """S = ±x_name + distance: head 0 agrees in both directions, head 1 is opposite in reverse."""
    names = [[1], [2, 3], [4, 4, 4], [5, 1]]
    value_V = jnp.array([0.0, 1.0, -3.0, 7.0, 2.5, -4.0, 0.0])  # of tokens; 6 is [M]

    def internals(params, tokens_EL):
        tokens_EL = jnp.asarray(tokens_EL)
        length = tokens_EL.shape[1]
        offset_LS = jnp.arange(length)[None] - jnp.arange(length)[:, None]
        x_ELS = jnp.broadcast_to(value_V[tokens_EL][:, None], (len(tokens_EL), length, length))
        x_ELS = jnp.where(tokens_EL[:, :, None] == 6, x_ELS, jnp.nan)  # [M] alone is asked
        sign_LS = jnp.where(offset_LS > 0, 1.0, -1.0)
        heads = [x_ELS, x_ELS * sign_LS[None]]
        scores = jnp.stack(heads, axis=1)[None] + jnp.abs(offset_LS)[None, None, None]
        return {"scores": scores, "weights": scores}

    got = attention.name_correlation(internals, None, names, 3, mask_id=6, fill_id=0, resamples=20)
    np.testing.assert_array_equal(got.total, [2, 3, 4, 5, 6])
    # A name's tokens stand at one mean distance, whose spread by length is in both directions.
    x = np.array([np.mean([value_V[t] for t in name]) for name in names])
    far = np.array([(len(name) - 1) / 2 for name in names])
    want = np.corrcoef(x + far, x + far)[0, 1], np.corrcoef(x + far, far - x)[0, 1]
    np.testing.assert_allclose(got.mean[0], np.repeat(np.array(want)[:, None], 5, 1), atol=1e-5)
    for how in ({}, dict(resamples=7, seed=3, level=0.5)):
        named = attention.name_correlation(internals, None, names, 2, mask_id=6, fill_id=0, **how)
        scores = [
            np.array([[[x[n] + far[n] + d for d in (1, 2)] for n in range(4)]] * 2) for x in (x, x)
        ]
        scores[1][1] = scores[1][1] - 2 * x[:, None]
        want = attention.distance_correlation(scores[0][None], scores[1][None], **how)
        np.testing.assert_allclose(named.low, want.low, atol=1e-5)
        np.testing.assert_allclose(named.high, want.high, atol=1e-5)


def test_one_layer_rope_scores_depend_on_letter_and_distance_alone():
    _, internals, params = _model()
    q = case_pairs.mask_queries(LENGTH, "reverse")
    got = attention.attention_to(internals, params, q.tokens_EL, q.position_E, q.context_E)
    means = attention.by_distance(got.scores, q.letter_E, q.distance_E)
    assert means.shape == (1, 2, 26, LENGTH - 1)
    scores = np.asarray(got.scores)
    np.testing.assert_allclose(
        means[..., q.letter_E, q.distance_E - 1], scores, atol=1e-5 * np.abs(scores).max()
    )


def test_correlation_of_drawn_keys_is_the_closed_form():
    """Letters whose keys obey (A2) given one query: rope.conditional_correlation by distance."""
    rng = np.random.default_rng(0)
    head_dim, letters, rho = 32, 20_000, 0.3
    q_P2 = rng.normal(size=(head_dim // 2, 2))
    unit_P2 = q_P2 / np.linalg.norm(q_P2, axis=-1, keepdims=True)
    k = np.sqrt((1 - rho) / 2) * rng.normal(size=(letters, head_dim // 2, 2))
    k += np.sqrt(rho) * rng.normal(size=(letters, head_dim // 2, 1)) * unit_P2
    k = k.reshape(letters, head_dim)
    distances = np.arange(1, 5)
    fwd_ID, rev_ID = (
        np.stack([k @ rope.rotation(sign * d, head_dim).T @ q_P2.ravel() for d in distances], 1)
        for sign in (1, -1)
    )
    got = attention.distance_correlation(fwd_ID, rev_ID, resamples=50)
    w = (q_P2**2).sum(-1)
    want = np.array(
        [[rope.conditional_correlation(w, rho, a, b) for a in distances] for b in distances]
    )
    total = np.add.outer(distances, distances)
    for t, mean, low, high in zip(*got, strict=True):
        assert abs(mean - want[total == t].mean()) < 0.02
        assert low < mean < high


def test_perfect_and_absent_correlation():
    scores = np.random.default_rng(0).normal(size=(2, 200, 3))
    same = attention.distance_correlation(scores[:, :, :1], 2 * scores[:, :, :1] + 1, resamples=20)
    np.testing.assert_allclose(same.mean, 1)
    other = np.random.default_rng(1).normal(size=(2, 200, 3))
    unlike = attention.distance_correlation(scores, other, resamples=200)
    assert unlike.mean.shape == (2, 5) and np.all(np.abs(unlike.mean) < 0.25)
    assert np.all(unlike.low < unlike.high)
    with pytest.raises(ValueError, match="3 items"):
        attention.distance_correlation(scores[:, :2], other[:, :2])


def test_distances_are_correlated_pair_by_pair():
    """Each (Δ₁, Δ₂) by itself, where scores spread otherwise at every distance and way."""
    rng = np.random.default_rng(3)
    fwd_NID = rng.normal(size=(2, 7, 3)) * [1.0, 5.0, 0.2]
    rev_NID = (fwd_NID[..., ::-1] + rng.normal(size=(2, 7, 3))) * [40.0, 1.0, 9.0]
    got = attention.distance_correlation(fwd_NID, rev_NID, resamples=2)
    for head in range(2):
        one = np.corrcoef(fwd_NID[head], rev_NID[head], rowvar=False)[:3, 3:]
        want = [one[0, 0], (one[0, 1] + one[1, 0]) / 2, (one[0, 2] + one[1, 1] + one[2, 0]) / 3]
        want += [(one[1, 2] + one[2, 1]) / 2, one[2, 2]]
        np.testing.assert_allclose(got.mean[head], want, rtol=1e-9)


HOWS = [dict(resamples=400, seed=5, level=level) for level in (0.95, 0.8)]


@pytest.mark.parametrize("how", [*HOWS, {}])
def test_bounds_are_percentiles_over_items_drawn_anew(how):
    rng = np.random.default_rng(2)
    fwd_I1 = rng.normal(size=(30, 1))
    rev_I1 = fwd_I1 + rng.normal(size=(30, 1))
    got = attention.distance_correlation(fwd_I1, rev_I1, **how)
    resamples, seed, level = (dict(resamples=1000, seed=0, level=0.95) | how).values()
    counts_XI = np.random.default_rng(seed).multinomial(30, np.full(30, 1 / 30), size=resamples)
    drawn = [np.repeat(np.arange(30), counts_I) for counts_I in counts_XI]
    found = [np.corrcoef(fwd_I1[i, 0], rev_I1[i, 0])[0, 1] for i in drawn]
    ends = np.percentile(found, [50 - 50 * level, 50 + 50 * level])
    np.testing.assert_allclose([got.low[0], got.high[0]], ends, rtol=1e-9)
    np.testing.assert_allclose(got.mean[0], np.corrcoef(fwd_I1[:, 0], rev_I1[:, 0])[0, 1])
    few = attention.distance_correlation(fwd_I1[:3], rev_I1[:3], **how)
    assert -1 <= few.low[0] <= few.high[0] <= 1 + 1e-9  # draws of one item thrice say nothing


def test_means_by_distance_keep_leading_axes():
    values = np.array([[[1.0, 3.0, 5.0, 8.0]], [[2.0, 6.0, 7.0, 9.0]]])
    got = attention.by_distance(values, np.array([0, 0, 2, 2]), np.array([2, 2, 1, 2]))
    nan = np.nan
    want = [[[[nan, 2], [nan, nan], [5, 8]]], [[[nan, 4], [nan, nan], [7, 9]]]]
    np.testing.assert_array_equal(got, want)


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match="distance_E"):
        attention.by_distance(np.ones(2), np.array([0, 1]), np.array([1, 0]))
    _, internals, params = _model()
    tokens_EL = np.zeros((2, LENGTH), np.int32)
    for name, where in (("query_E", ([0, LENGTH], [1, 1])), ("key_E", ([0, 1], [1]))):
        with pytest.raises(ValueError, match=name):
            attention.attention_to(internals, params, tokens_EL, *map(np.array, where))
