import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dirasym import models, objectives
from dirasym.rows import PerRow
from dirasym.types import Batch

MASK, VOCAB = 5, 6


def _batch(tokens, **kwargs):
    tokens = np.atleast_2d(np.asarray(tokens, np.int32))
    return Batch(tokens, np.arange(len(tokens)), len(tokens), **kwargs)


def _model(causal=False, **overrides):
    config = models.TransformerConfig(VOCAB, 1, 8, 1, causal=causal, **overrides)
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    return jax.jit(models.make_apply_fn(model)), jax.tree.map(lambda x: 3 * x, params)


def _set_weight(k, n):
    return math.factorial(k - 1) * math.factorial(n - k) / math.factorial(n)


def _quadrature(f, n=200):
    """∫ over (0, 1] by Gauss–Legendre."""
    x, w = np.polynomial.legendre.leggauss(n)
    return sum(wi * f((xi + 1) / 2) for xi, wi in zip(x, w, strict=True)) / 2


SCHEDULES = [objectives.linear_schedule, objectives.cosine_schedule, lambda t: t**2]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lambda_and_t_weigh_each_mask_as_any_order_decoding_does(schedule):
    """Weight of a set of k of n: E[weight · P(set | level)] = (k-1)!(n-k)!/n!, exactly."""
    n = 4
    u = np.polynomial.legendre.leggauss(200)[0] / 2 + 0.5
    ones = jnp.ones((len(u), n), bool)
    for weighting in ("lambda", "t"):
        # The level is read off the places at which masking stops.
        _, weight, _ = objectives.corrupt(
            jnp.asarray(u), jnp.zeros((len(u), n)), ones, weighting=weighting, schedule=schedule
        )
        level = u if weighting == "lambda" else np.asarray(schedule(jnp.asarray(u)))
        for delta, masked in ((-1e-4, True), (1e-4, False)):
            places = jnp.asarray(np.repeat((level + delta)[:, None], n, 1))
            got, _, told = objectives.corrupt(
                jnp.asarray(u), places, ones, weighting=weighting, schedule=schedule
            )
            assert (np.asarray(got) == masked).all()
            np.testing.assert_allclose(told, level, rtol=1e-5)
        gauss = np.polynomial.legendre.leggauss(200)[1] / 2
        for k in range(1, n + 1):
            total = (gauss * np.asarray(weight) * level**k * (1 - level) ** (n - k)).sum()
            np.testing.assert_allclose(total, _set_weight(k, n), rtol=1e-4)


def test_llada_schedule_leaves_out_the_lowest_levels_alone():
    """λ = 0.999 t + 0.001; a set of k of n weighs ∫ p^(k-1) (1-p)^(n-k) dp over p from 0.001."""
    n, (x, gauss) = 4, np.polynomial.legendre.leggauss(200)
    t = jnp.asarray((x + 1) / 2)
    level = np.asarray(objectives.llada_schedule(t))
    np.testing.assert_allclose(level, 0.999 * (x + 1) / 2 + 0.001, rtol=1e-6)
    ends = objectives.llada_schedule(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [1e-3, 1.0], rtol=1e-6)
    _, weight, _ = objectives.corrupt(
        t, jnp.zeros((len(t), n)), jnp.ones((len(t), n), bool),
        weighting="t", schedule=objectives.llada_schedule,
    )  # fmt: skip
    np.testing.assert_allclose(weight, 0.999 / level, rtol=1e-5)
    for k in range(1, n + 1):
        total = (gauss / 2 * np.asarray(weight) * level**k * (1 - level) ** (n - k)).sum()
        kept = scipy.special.betainc(n - k + 1, k, 0.999)  # of p above 0.001
        np.testing.assert_allclose(total, _set_weight(k, n) * kept, rtol=1e-5)


def test_k_weighs_each_mask_the_same():
    n = 4
    totals = dict.fromkeys((m for m in itertools.product([False, True], repeat=n) if any(m)), 0.0)
    orders = list(itertools.permutations(range(n)))
    for k, order in itertools.product(range(1, n + 1), orders):
        masked, weight, level = objectives.corrupt(
            jnp.array([(k - 0.5) / n]),
            (jnp.array([order]) + 1.0) / n,
            jnp.ones((1, n), bool),
            weighting="k",
        )
        np.testing.assert_allclose(level, [k / n])
        totals[tuple(np.asarray(masked[0]).tolist())] += float(weight[0]) / n / len(orders)
    for masked, total in totals.items():
        np.testing.assert_allclose(total, _set_weight(sum(masked), n), rtol=1e-6)


@pytest.mark.parametrize("weighting", ["lambda", "t", "k"])
def test_the_three_forms_have_the_enumerated_expectation(weighting):
    """The loss itself, averaged over many draws, is Σ over masks of weight · nll(mask)."""
    apply_fn, params = _model()
    clean = np.array([0, 3, 2])
    want = 0.0
    for masked in itertools.product([False, True], repeat=3):
        if any(masked):
            logits = apply_fn(params, jnp.where(jnp.array(masked), MASK, clean)[None])
            log_p = jax.nn.log_softmax(logits[0, :, :MASK])  # [M] is never predicted
            nll = -sum(log_p[i, clean[i]] for i in range(3) if masked[i])
            want += _set_weight(sum(masked), 3) * float(nll)
    rows = 40_000
    batch = _batch(np.tile(clean, (rows, 1)))
    total, count, aux = objectives.masked_diffusion(
        apply_fn,
        params,
        batch,
        jax.random.key(0),
        mask_id=MASK,
        weighting=weighting,
        schedule=objectives.cosine_schedule,
    )
    assert count == rows
    np.testing.assert_allclose(total / count, want, rtol=0.01)
    np.testing.assert_allclose(
        aux["tokens"] / (3 * rows),
        {"lambda": 1 / 2, "t": 1 - 2 / math.pi, "k": 2 / 3}[weighting],
        atol=0.01,
    )


def test_the_mask_token_is_never_predicted():
    def certain_of_mask(params, tokens):
        return jnp.zeros((*tokens.shape, VOCAB)).at[..., MASK].set(50.0)

    batch = _batch(np.zeros((4, 6)))
    for objective in (
        objectives.masked_diffusion,
        functools.partial(objectives.masked_lm, rate=0.5, vocab_size=VOCAB),
    ):
        total, _, aux = objective(certain_of_mask, {}, batch, jax.random.key(0), mask_id=MASK)
        tokens_nll = aux.get("token_nll", total)
        tokens = aux.get(
            "tokens", objective(certain_of_mask, {}, batch, jax.random.key(0), mask_id=MASK)[1]
        )
        np.testing.assert_allclose(tokens_nll / tokens, math.log(VOCAB - 1), rtol=1e-5)


def test_nats_of_low_precision_logits_are_those_of_the_same_numbers_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 300)), jnp.bfloat16)
    tokens = np.arange(50)
    got = objectives.token_nll(logits, tokens)
    want = objectives.token_nll(logits.astype(jnp.float32), tokens)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)
    with jax.enable_x64(True):
        assert objectives.token_nll(jnp.zeros((1, 2), jnp.float64), [0]).dtype == jnp.float64


OBJECTIVES = {
    "lambda": functools.partial(objectives.masked_diffusion, mask_id=MASK),
    "k": functools.partial(objectives.masked_diffusion, mask_id=MASK, weighting="k"),
    "masked_lm": functools.partial(objectives.masked_lm, mask_id=MASK, rate=0.8, vocab_size=VOCAB),
    "next_token": objectives.next_token,
    "next_token_bos": functools.partial(objectives.next_token, bos_id=MASK),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_prompt_and_padding_are_never_scored_nor_noised(name):
    """Changing what stands at unscored positions of the *target* leaves the loss unchanged,
    and the model sees them clean."""
    seen = []

    def spy(params, tokens, *, rows_R=None, valid_BL=None):
        asked = np.isin(np.arange(tokens.size), rows_R).reshape(tokens.shape)
        seen.append((np.asarray(tokens), asked))
        return jnp.broadcast_to(params, (len(rows_R), VOCAB))

    tokens = np.array([[1, 2, 3, 4, 0, 0]] * 8)
    scored = np.broadcast_to(np.array([False, False, True, True, True, True]), tokens.shape)
    valid = np.broadcast_to(np.array([True, True, True, True, False, False]), tokens.shape)
    params = jnp.arange(VOCAB, dtype=jnp.float32)
    total, count, _ = OBJECTIVES[name](
        spy,
        params,
        _batch(tokens, scored_BL=scored, valid_BL=valid),
        jax.random.key(0),
        capacity=PerRow(2),
    )
    inputs, asked = seen[0]
    if "next" in name:
        assert count == 8 * 2
        log_p = np.asarray(jax.nn.log_softmax(params))
        np.testing.assert_allclose(total, -8 * (log_p[3] + log_p[4]), rtol=1e-5)
        assert asked.sum() == 16
    else:
        assert (inputs[:, [0, 1, 4, 5]] == tokens[:, [0, 1, 4, 5]]).all()
        assert (inputs[:, 2:4] == MASK).any()
        assert not asked[:, [0, 1, 4, 5]].any()


def test_noised_positions_may_be_more_than_scored_ones():
    seen = []

    def spy(params, tokens):
        seen.append(np.asarray(tokens))
        return jnp.zeros((*tokens.shape, VOCAB))

    scored = np.zeros((64, 4), bool)
    scored[:, 3] = True
    whole = _batch(np.ones((64, 4)), scored_BL=scored, noised_BL=np.ones((64, 4), bool))
    _, _, aux = objectives.masked_diffusion(spy, {}, whole, jax.random.key(0), mask_id=MASK)
    masked = seen[0] == MASK
    assert masked[:, 0].any()
    assert aux["tokens"] == masked[:, 3].sum()
    how = dict(mask_id=MASK, rate=0.5, keep=0, random=0)
    total, count, _ = objectives.masked_lm(spy, {}, whole, jax.random.key(0), **how)
    masked = seen[1] == MASK
    assert masked[:, 0].any() and count == masked[:, 3].sum()
    np.testing.assert_allclose(total, count * math.log(VOCAB - 1), rtol=1e-5)


def test_padding_is_not_noised_whatever_may_be():
    seen = []

    def spy(params, tokens, *, valid_BL, noise_B):
        jax.debug.callback(lambda *x: seen.append(x), tokens, noise_B)
        return jnp.zeros((*tokens.shape, VOCAB))

    tokens, valid = np.ones((64, 4)), np.tile([True, True, False, False], (64, 1))
    batch = _batch(tokens, noised_BL=np.ones((64, 4), bool), valid_BL=valid)
    for name in ("lambda", "k", "masked_lm"):
        OBJECTIVES[name](spy, {}, batch, jax.random.key(0))
        jax.effects_barrier()
        shown, noise = seen.pop()
        assert (shown[:, 2:] == 1).all() and (shown[:, :2] == MASK).any()
        if name == "k":
            assert set(noise.tolist()) == {0.5, 1.0}  # one or two of two tokens


def test_tokens_of_a_unit_are_hidden_together_as_often_as_alone():
    seen = []

    def spy(params, tokens, *, valid_BL=None):
        seen.append(np.asarray(tokens == MASK))
        return jnp.zeros((*tokens.shape, VOCAB))

    unit = np.tile([0, 1, 1, 1, 4], (4000, 1))
    padded = np.tile(np.arange(5) < 4, (4000, 1))
    for valid in (padded, None):
        batch = _batch(np.ones((4000, 5)), unit_BL=unit, valid_BL=valid)
        objectives.masked_diffusion(spy, {}, batch, jax.random.key(0), mask_id=MASK)
        hidden = seen.pop()
        assert (hidden[:, 1:4] == hidden[:, 1:2]).all() and (hidden[:, 0] != hidden[:, 1]).any()
        share = [0.5] * 4 + [0.5 if valid is None else 0.0]
        np.testing.assert_allclose(hidden.mean(axis=0), share, atol=0.02)
    with pytest.raises(ValueError, match="'k'"):
        objectives.masked_diffusion(spy, {}, batch, jax.random.key(0), mask_id=MASK, weighting="k")


def test_noise_belongs_to_the_example_wherever_it_is():
    seen = []

    def spy(params, tokens):
        seen.append(np.asarray(tokens))
        return jnp.zeros((*tokens.shape, VOCAB))

    tokens = np.arange(8 * 5).reshape(8, 5) % 5
    whole = _batch(tokens)
    part = Batch(tokens[[6, 1]], np.array([6, 1]), 8)
    for name in ("lambda", "k", "masked_lm"):
        seen.clear()
        OBJECTIVES[name](spy, {}, whole, jax.random.key(3))
        OBJECTIVES[name](spy, {}, part, jax.random.key(3))
        np.testing.assert_array_equal(seen[1], seen[0][[6, 1]])


def test_masked_lm_shares():
    seen = []

    def spy(params, tokens):
        seen.append(np.asarray(tokens))
        return jnp.zeros((*tokens.shape, 100))

    tokens = np.full((50, 2000), 7)
    _, count, _ = objectives.masked_lm(
        spy, {}, _batch(tokens), jax.random.key(0), mask_id=99, vocab_size=100
    )
    shown = seen[0]
    size = shown.size
    np.testing.assert_allclose(count / size, 0.15, atol=0.005)
    np.testing.assert_allclose((shown == 99).sum() / count, 0.8, atol=0.02)
    changed = (shown != 7) & (shown != 99)
    np.testing.assert_allclose(changed.sum() / count, 0.1 * 98 / 99, atol=0.01)
    assert set(np.unique(shown[changed])) == set(range(99)) - {7}
    # With [M] outside the vocabulary every token may be drawn, the last too.
    objectives.masked_lm(
        spy, {}, _batch(tokens[:, :40]), jax.random.key(0), mask_id=5, vocab_size=5, random=0.9
    )
    assert set(np.unique(seen[1])) == {*range(5), 7}


def test_a_token_that_is_replaced_by_any_word_is_asked_for_what_stood_there():
    """[M] stands among the words: it is drawn for none, and each other one as often."""
    seen = []

    def spy(params, tokens):
        seen.append(np.asarray(tokens))
        return jnp.broadcast_to(jnp.log(params), (*tokens.shape, 6))

    p_V, how = jnp.array([0.1, 0.4, 0.2, 0.1, 0.1, 0.1]), dict(rate=1, keep=0, random=1)
    total, count, _ = objectives.masked_lm(
        spy, p_V, _batch(np.ones((20, 1000))), jax.random.key(0), mask_id=2, vocab_size=6, **how
    )
    shares = np.bincount(seen[0].ravel(), minlength=6) / 20_000
    np.testing.assert_allclose(shares, [0.2, 0.2, 0, 0.2, 0.2, 0.2], atol=0.015)
    np.testing.assert_allclose(total / count, -math.log(0.4 / 0.8), rtol=1e-5)  # [M] apart


def test_no_level_and_no_place_is_zero(monkeypatch):
    """0 may be drawn, and is 1 then: 1/λ of 0 is infinite."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    keys_B = jax.random.split(jax.random.key(0), 2)
    for drawn in objectives.uniforms(_batch(np.ones((2, 3))), keys_B):
        np.testing.assert_array_equal(drawn, np.ones(drawn.shape))


def test_a_uniform_rate_hides_sets_of_every_size_alike():
    """MLM-U: the set of k of n is hidden with k!(n-k)!/(n+1)!, and weighs the same as any other."""
    clean, rows = np.array([0, 3, 2]), 40_000
    apply_fn, params = _model()
    how = dict(mask_id=MASK, rate=None, keep=0.0, random=0.0)
    batch = _batch(np.tile(clean, (rows, 1)))
    total, count, _ = objectives.masked_lm(apply_fn, params, batch, jax.random.key(0), **how)
    want, tokens = 0.0, 0.0
    for masked in itertools.product([False, True], repeat=3):
        k = sum(masked)
        share = math.factorial(k) * math.factorial(3 - k) / math.factorial(4)
        log_p = jax.nn.log_softmax(
            apply_fn(params, jnp.where(jnp.array(masked), MASK, clean)[None])[0, :, :MASK]
        )
        want -= share * sum(float(log_p[i, clean[i]]) for i in range(3) if masked[i])
        tokens += share * k
    np.testing.assert_allclose(count / rows, tokens, rtol=0.01)
    np.testing.assert_allclose(total / count, want / tokens, rtol=0.01)


def test_next_token_is_the_chain_rule():
    """Summed over all sequences, exp(-loss) is one: the factorisation is a distribution."""
    apply_fn, params = _model(causal=True)
    everything = np.array(list(itertools.product(range(VOCAB), repeat=3)))

    def log_p(row):
        batch = Batch(row[None], jnp.zeros(1, int), 1)
        return -objectives.next_token(apply_fn, params, batch, bos_id=0)[0]

    total = jnp.exp(jax.vmap(log_p)(everything)).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_a_foreign_apply_fn_serves_and_cannot_lose_padding():
    def foreign(params, tokens):
        return params[tokens]

    params = jax.random.normal(jax.random.key(0), (VOCAB, VOCAB))
    batch = _batch([[1, 2, 3, 4]])
    total, count, _ = objectives.next_token(foreign, params, batch, rngs={"dropout": None})
    want = -sum(jax.nn.log_softmax(params[a])[b] for a, b in ((1, 2), (2, 3), (3, 4)))
    np.testing.assert_allclose(total, want, rtol=1e-6)
    assert count == 3
    with pytest.raises(TypeError, match="valid_BL"):
        objectives.next_token(foreign, params, _batch([[1, 2]], valid_BL=np.ones((1, 2), bool)))


def test_gradients_are_finite_where_nothing_is_scored():
    apply_fn, params = _model()
    batch = _batch([[1, 2, 3, 4]], scored_BL=np.zeros((1, 4), bool))
    for name in ("lambda", "k", "masked_lm"):
        loss = functools.partial(OBJECTIVES[name], apply_fn)
        grads = jax.jit(jax.grad(lambda p, f=loss: f(p, batch, jax.random.key(0))[0]))(params)
        chex.assert_tree_all_finite(grads)


def test_bad_input():
    batch = _batch([[1, 2]])
    with pytest.raises(ValueError, match="weighting"):
        objectives.masked_diffusion(
            *_model(), batch, jax.random.key(0), mask_id=MASK, weighting="s"
        )
    with pytest.raises(ValueError, match="vocab_size"):
        objectives.masked_lm(*_model(), batch, jax.random.key(0), mask_id=MASK)
    with pytest.raises(ValueError, match="rate"):
        objectives.masked_lm(*_model(), batch, jax.random.key(0), mask_id=MASK, rate=0.0)
    with pytest.raises(ValueError, match="rows of one token: give a bos_id"):
        objectives.next_token(*_model(), _batch([[1], [2]]))
    objectives.next_token(*_model(), _batch([[1], [2]]), bos_id=MASK)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.masked_diffusion,
        objectives.parallel_target,
        objectives.any_order,
        functools.partial(objectives.masked_lm, random=0.0),
    ],
)
def test_a_mask_among_the_words_that_are_scored_is_refused_where_it_is_known(objective):
    ask = functools.partial(objective, *_model(), mask_id=MASK)
    key, batch = jax.random.key(0), _batch([[1, MASK]])
    with pytest.raises(ValueError, match=f"tokens_BL holds mask_id {MASK} where it is scored"):
        ask(batch, key)
    jax.eval_shape(ask, batch, key)  # traced: not known
    ask(batch.replace(scored_BL=np.array([[True, False]])), key)  # it is only read


def test_per_token_divides_by_the_tokens_that_an_example_scores():
    flat = lambda params, tokens: jnp.zeros((*tokens.shape, VOCAB))  # noqa: E731
    for num in (1, 3):
        scored = np.tile(np.arange(4) >= 4 - num, (64, 1))
        batch = _batch(np.ones((64, 4)), scored_BL=scored, noised_BL=np.ones((64, 4), bool))
        whole, each = (
            objectives.masked_diffusion(
                flat, {}, batch, jax.random.key(0), mask_id=MASK, per_token=per_token
            )[0]
            for per_token in (False, True)
        )
        np.testing.assert_allclose(each, whole / num, rtol=1e-6)


def test_examples_count_that_score_a_token():
    flat = lambda params, tokens: jnp.zeros((*tokens.shape, VOCAB))  # noqa: E731
    batch = _batch([[1, 2], [3, 4], [0, 0]], scored_BL=np.array([[0, 1], [1, 1], [0, 0]], bool))
    for objective in (objectives.masked_diffusion, objectives.any_order):
        assert objective(flat, {}, batch, jax.random.key(0), mask_id=MASK)[1] == 2


def test_a_model_is_told_the_share_of_the_scored_tokens_that_is_hidden():
    seen = []

    def spy(params, tokens, *, noise_B):
        jax.debug.callback(lambda x: seen.append(x.tolist()), noise_B)
        return jnp.zeros((*tokens.shape, VOCAB))

    batch = _batch([[1, 2, 3, 4]], scored_BL=np.array([[False, True, True, False]]))
    for objective, want in ((objectives.any_order, [[0.5], [1.0]]),
                            (objectives.parallel_target, [[1.0]])):  # fmt: skip
        objective(spy, {}, batch, jax.random.key(0), mask_id=MASK)
        jax.effects_barrier()
        assert sorted(seen) == want
        seen.clear()


def test_a_model_is_told_the_level_at_which_tokens_are_hidden():
    seen = []

    def spy(params, tokens, *, noise_B):
        jax.debug.callback(lambda *x: seen.append(x), jnp.mean(tokens == MASK, axis=1), noise_B)
        return jnp.zeros((*tokens.shape, VOCAB))

    batch = _batch(np.tile([1, 2, 3, 4], (8, 1)))
    constant = dict(weighting="t", schedule=lambda t: 0.25 + 0 * t)
    for name, how, told in (
        ("masked_diffusion", dict(weighting="k"), None),  # the share that is hidden
        ("masked_diffusion", constant, 0.25),
        ("masked_lm", dict(rate=0.4, random=0), 0.4),
    ):
        getattr(objectives, name)(spy, {}, batch, jax.random.key(0), mask_id=MASK, **how)
        jax.effects_barrier()
        hidden, noise = seen.pop()
        np.testing.assert_allclose(noise, told or hidden, rtol=1e-6)


def test_levels_are_dealt_one_a_cell_unless_told_otherwise():
    seen = []

    def spy(params, tokens, *, noise_B):
        jax.debug.callback(lambda x: seen.append(np.sort(x)), noise_B)
        return jnp.zeros((*tokens.shape, VOCAB))

    batch, how = _batch(np.ones((16, 4))), dict(mask_id=MASK)
    objectives.masked_lm(spy, {}, batch, jax.random.key(0), rate=None, random=0, **how)
    objectives.masked_diffusion(spy, {}, batch, jax.random.key(0), **how)
    jax.effects_barrier()
    for level_B in seen:
        np.testing.assert_array_equal(np.ceil(16 * level_B), np.arange(1, 17))
        assert np.std(16 * level_B - np.arange(16)) > 0.1  # anywhere in its cell
    assert len(seen) == 2


@pytest.mark.parametrize(
    "name", ["next_token", "parallel_target", "masked_diffusion", "any_order", "masked_lm"]
)
def test_the_key_of_dropout_reaches_the_model(name):
    seen = []

    def spy(params, tokens, *, rngs=None):
        seen.append(rngs and sorted(rngs))
        return jnp.zeros((*tokens.shape, VOCAB))

    how = {} if name == "next_token" else dict(mask_id=MASK)
    how |= dict(random=0) if name == "masked_lm" else {}
    rngs = {"dropout": jax.random.key(1)}
    getattr(objectives, name)(spy, {}, _batch([[1, 2]]), jax.random.key(0), rngs=rngs, **how)
    assert seen and all(x == ["dropout"] for x in seen)
