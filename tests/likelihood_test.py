"""The likelihood of texts against a table of a model's answers, by every order of revealing."""

import functools
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import likelihood, models
from dirasym.data import tokenizers
from dirasym.types import Batch
from experiments.benchmarks import likelihood as likelihood_benchmark
from experiments.tables import likelihood as likelihood_table

LETTERS = tokenizers.Characters("aé")  # ids 0 and 1, of one and two bytes; the end of text is 2
VOCAB, LENGTH, MASK = 3, 3, 3
TABLE = np.random.default_rng(0).normal(size=(4**LENGTH, LENGTH, VOCAB + 1), scale=2)
TEXTS = ["aéa", "ééa", "é", "aaa", "éa"]
DIGITS = 4 ** np.arange(LENGTH)


def masked_model(params, tokens_BL):
    """Any function of all tokens: one row of a table for each sequence."""
    length = tokens_BL.shape[1]
    return params[tokens_BL @ DIGITS[:length]][:, :length]


def padded_model(params, tokens_BL, *, valid_BL=None):
    """The same of rows with padding, which counts as "a" does."""
    valid_BL = jnp.ones(tokens_BL.shape, bool) if valid_BL is None else valid_BL
    return masked_model(params, jnp.where(valid_BL, tokens_BL, 0))


def causal_model(params, tokens_BL):
    """Any function of the tokens so far."""
    length = tokens_BL.shape[1]
    code_BL = jnp.cumsum(tokens_BL * DIGITS[None, :length], axis=1)
    return params[code_BL, jnp.arange(length)[None]]


def _log_p(tokens, position, target, excluded=None):
    logits = TABLE[int(np.dot(tokens, DIGITS[: len(tokens)])), position].copy()
    if excluded is not None:
        logits[excluded] = -np.inf
    return logits[target] - np.log(np.exp(logits).sum())


def in_order(ids, order):
    """log p by the chain rule, tokens revealed in this order."""
    row, total = [MASK] * len(ids), 0.0
    for place in order:
        total += _log_p(row, place, ids[place], MASK)
        row[place] = ids[place]
    return total


def over_orders(ids):
    return np.mean([in_order(ids, order) for order in itertools.permutations(range(len(ids)))])


def _read(kind, model=masked_model, texts=TEXTS, **settings):
    settings = dict(tokenizer=LETTERS, mask_id=MASK) | settings
    with jax.enable_x64(True):
        return likelihood.likelihood(model, TABLE, texts, kind, **settings)


IDS = LETTERS.encode(TEXTS)


def test_causal_likelihoods_are_products_of_conditionals():
    found = _read("causal", model=causal_model)
    want = [sum(_log_p([2, *ids[:n]], n, token) for n, token in enumerate(ids)) for ids in IDS]
    np.testing.assert_allclose(found.log_likelihood_E, want, rtol=1e-5)
    assert not found.standard_error_E.any() and (found.passes_E == 1).all()
    start = _read("causal", model=causal_model, prefix=[1], texts=["éa"])
    want = _log_p([1], 0, 1) + _log_p([1, 1], 1, 0)
    np.testing.assert_allclose(start.log_likelihood_E, [want], rtol=1e-5)


def test_left_to_right_is_one_order():
    found = _read("left_to_right")
    want = [in_order(ids, range(len(ids))) for ids in IDS]
    np.testing.assert_allclose(found.log_likelihood_E, want, rtol=1e-5)
    assert not found.standard_error_E.any()
    assert found.passes_E.tolist() == [3, 3, 1, 3, 2]
    told = _read("left_to_right", texts=["éa"], prefix=[0])  # known from the start
    want = _log_p([0, MASK, MASK], 1, 1, MASK) + _log_p([0, 1, MASK], 2, 0, MASK)
    np.testing.assert_allclose(told.log_likelihood_E, [want], rtol=1e-5)


@pytest.mark.parametrize("kind", ["random_order", "stratified", "monte_carlo"])
def test_estimates_are_the_mean_over_orders_within_their_error(kind):
    found = _read(kind, passes=1500)
    want = np.array([over_orders(ids) for ids in IDS])
    error = found.standard_error_E
    assert (np.abs(found.log_likelihood_E - want) <= 4 * error + 1e-5).all()
    assert (error < 0.15).all() and (error[[0, 1, 3, 4]] > 0).all()
    np.testing.assert_allclose(found.log_likelihood_E[2], want[2], rtol=1e-5)  # of one token
    if kind == "random_order":
        assert found.passes_E.tolist() == [1500, 1500, 500, 1500, 1000]
    else:
        assert (found.passes_E == 1500).all()


def test_two_orders_have_an_error_and_one_is_refused():
    batch = Batch.of(np.array([IDS[1]]))
    given = masked_model, jnp.asarray(TABLE), batch, jax.random.key(3)
    ask = functools.partial(likelihood.order_log_likelihood, *given, mask_id=MASK)
    two = ask(num_orders=2)
    orders = [in_order(IDS[1], order) for order in itertools.permutations(range(3))]
    pairs = itertools.product(orders, repeat=2)
    assert any(np.allclose(two.mean[0], np.mean(pair), rtol=1e-4) for pair in pairs)
    assert np.isfinite(two.standard_error[0])
    with pytest.raises(ValueError, match="a standard error needs 2 orders, got 1"):
        ask(num_orders=1)


@functools.cache
def _repeated(kind, passes=12, seeds=300):
    """(estimates, errors) of one text over seeds: [seeds]."""
    found = _read(kind, texts=[TEXTS[1]] * seeds, passes=passes, batch_size=seeds)
    return found.log_likelihood_E, found.standard_error_E


@pytest.mark.parametrize("kind", ["random_order", "stratified", "monte_carlo"])
def test_standard_errors_are_those_of_repetition(kind):
    values, errors = _repeated(kind)
    reported = np.sqrt(np.mean(errors**2))
    assert abs(values.mean() - over_orders(IDS[1])) < 4 * values.std() / np.sqrt(len(values))
    ratio = values.std() / reported
    assert 0.85 < ratio < 1.15, ratio  # 300 repetitions know a deviation to 4%


def test_levels_in_strata_vary_less_than_independent_ones():
    variance = {kind: _repeated(kind)[0].var() for kind in ("stratified", "monte_carlo")}
    assert variance["stratified"] < 0.7 * variance["monte_carlo"], variance


def test_odd_numbers_of_strata_have_their_error_too():
    values, errors = _repeated("stratified", passes=21)  # one pair lies across two counts
    assert 0.8 < values.std() / np.sqrt(np.mean(errors**2)) < 1.15
    # Of three strata a pair and half of another; their means lie far apart, which is added to the
    # error (measured: 0.34, and 0.55 without the half).
    values, errors = _repeated("stratified", passes=3)
    assert 0.25 < values.std() / np.sqrt(np.mean(errors**2)) < 0.45


def test_totals_are_per_token_and_per_byte():
    found = _read("left_to_right")
    total = -sum(in_order(ids, range(len(ids))) for ids in IDS)
    assert found.num_tokens_E.tolist() == [3, 3, 1, 3, 2]
    assert found.num_bytes_E.tolist() == [4, 5, 2, 3, 3]
    np.testing.assert_allclose(found.nats_per_token.mean, total / 12, rtol=1e-5)
    np.testing.assert_allclose(found.bits_per_byte.mean, total / np.log(2) / 17, rtol=1e-5)
    noisy = _read("monte_carlo", passes=8)
    error = np.sqrt((noisy.standard_error_E**2).sum())
    np.testing.assert_allclose(noisy.nats_per_token.standard_error, error / 12)
    np.testing.assert_allclose(noisy.bits_per_byte.standard_error, error / 17 / np.log(2))


@pytest.mark.parametrize(
    "kind", members.quick(["causal", "left_to_right", "stratified"], ["left_to_right"])
)
def test_batches_and_padding_change_nothing(kind):
    model = causal_model if kind == "causal" else masked_model
    padded = (
        padded_model
        if kind != "causal"
        else (lambda params, tokens_BL, *, valid_BL=None: causal_model(params, tokens_BL))
    )
    whole = _read(kind, model=model, passes=6)
    for other in (_read(kind, model=padded, passes=6, batch_size=2),):
        if kind != "stratified":  # "a" stands where there is padding
            texts = [0, 1, 3]
            np.testing.assert_allclose(
                other.log_likelihood_E[texts], whole.log_likelihood_E[texts], rtol=1e-5
            )
    alone = _read(kind, model=padded, passes=6, batch_size=1)
    together = _read(kind, model=padded, passes=6, batch_size=4)
    np.testing.assert_allclose(alone.log_likelihood_E, together.log_likelihood_E, rtol=1e-5)


def _seen(texts, **settings):
    """Shapes of the rows that a model is given, traced; it is not sure of anything."""
    seen = []

    def even(params, tokens_BL, *, valid_BL=None):
        seen.append(tokens_BL.shape)
        return jnp.zeros((*tokens_BL.shape, VOCAB + 1))

    found = likelihood.likelihood(even, {}, texts, "causal", tokenizer=LETTERS, **settings)
    np.testing.assert_allclose(found.nats_per_token.mean, np.log(VOCAB + 1), rtol=1e-5)
    return seen[1:]  # the first asks for the vocabulary


def test_rows_are_as_long_as_the_next_multiple_of_32_and_32_at_a_time():
    lengths = [1, 31, 32, 33, 64, 65, 70]
    assert _seen(["a" * n for n in lengths]) == [(3, 32), (2, 64), (2, 70)]  # behind a prefix
    assert _seen(["a" * n for n in lengths], batch_size=2)[:2] == [(2, 32), (1, 32)]
    assert _seen(["é"] * 97) == [(32, 1), (1, 1)]  # compiled once for three of the batches


def test_as_many_draws_as_in_the_paper_by_default():
    """Nie et al. (2025) take 128."""
    given = inspect.signature(likelihood.likelihood).parameters
    assert [given[name].default for name in ("passes", "seed", "batch_size")] == [128, 0, 32]
    how = dict(tokenizer=LETTERS, mask_id=MASK)
    even = lambda params, tokens_BL: jnp.zeros((*tokens_BL.shape, VOCAB + 1))  # noqa: E731
    for kind, passes in (("monte_carlo", [128] * 2), ("stratified", [128] * 2)):
        found = likelihood.likelihood(even, {}, TEXTS[:2], kind, **how)
        assert found.passes_E.tolist() == passes
    assert likelihood.likelihood(even, {}, ["aéa"], "random_order", **how).passes_E == [3 * 43]
    ask = functools.partial(
        likelihood.masked_log_likelihood, masked_model, jnp.asarray(TABLE),
        Batch.of(np.array([IDS[1]])), jax.random.key(3), mask_id=MASK,
    )  # fmt: skip
    got, want = ask(), ask(num_samples=128, counts="stratified")
    np.testing.assert_array_equal(got, want)
    assert not np.allclose(got, ask(num_samples=129), rtol=1e-6)


def test_orders_come_as_near_to_the_passes_as_they_can_and_are_two_at_least():
    even = lambda params, tokens_BL: jnp.zeros((*tokens_BL.shape, VOCAB + 1))  # noqa: E731
    for passes, orders in ((1, 2), (2, 2), (7, 2), (8, 3), (9, 3), (128, 43)):
        how = dict(tokenizer=LETTERS, mask_id=MASK, passes=passes)
        found = likelihood.likelihood(even, {}, ["aéa"], "random_order", **how)
        assert found.passes_E == [3 * orders]


def test_a_model_that_asks_for_its_noise_is_told_the_share_that_is_hidden():
    def warmed(params, tokens_BL, *, noise_B):
        assert noise_B.shape == tokens_BL.shape[:1]
        return masked_model(params, tokens_BL) * noise_B[:, None, None]

    found = _read("left_to_right", model=warmed, texts=TEXTS[:1])
    (ids,), want = IDS[:1], 0.0
    for place in range(LENGTH):
        row = [*ids[:place], *[MASK] * (LENGTH - place)]
        logits = TABLE[int(np.dot(row, DIGITS)), place, :VOCAB] * (1 - place / LENGTH)
        want += logits[ids[place]] - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(found.log_likelihood_E, [want], rtol=1e-5)


def test_a_transformer_is_taken_as_it_is():
    config = models.radd(4, width=8)
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    settings = dict(tokenizer=LETTERS, mask_id=MASK)
    found, same = (
        likelihood.likelihood(x, params, TEXTS, "left_to_right", **settings)
        for x in (model, models.make_apply_fn(model))
    )
    np.testing.assert_array_equal(found.log_likelihood_E, same.log_likelihood_E)
    one = likelihood.likelihood(model, params, TEXTS[2:3], "left_to_right", **settings)
    np.testing.assert_allclose(found.log_likelihood_E[2], one.log_likelihood_E[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="exact"), "kind must be one of causal, left_to_right"),
        (dict(texts=[]), "texts must be at least one"),
        (dict(texts=["a", ""]), "a text has no token: ''"),
        (dict(mask_id=None), "mask_id is missing"),
        (dict(mask_id=1), r"a text holds token 1, \[M\]: 'aéa'"),
        (dict(mask_id=4), "token 4 is not below the model's vocabulary, 4"),
        (dict(prefix=[7]), "token 7 is not below the model's vocabulary, 4"),
        (dict(kind="causal", prefix=[]), "a causal model needs a prefix"),
        (dict(prefix=[-1]), "prefix holds -1, which no text begins with"),
        (dict(prefix=[3], mask_id=3), "prefix holds 3, which no text begins with"),
        (dict(texts="aé"), "texts must be a list of texts, got one text"),
        (dict(batch_size=-1), "batch_size must be a whole number from 1, got -1"),
        (dict(batch_size=0), "batch_size must be a whole number from 1, got 0"),
        (dict(kind="random_order", passes=-3), "passes must be a whole number from 1, got -3"),
        (dict(passes=math.nan), "passes must be a whole number from 1, got nan"),
        (dict(batch_size="2"), "batch_size must be a whole number from 1, got '2'"),
        (dict(batch_size=2.0), "batch_size must be a whole number from 1, got 2.0"),
        (dict(passes=1), "needs 2 samples"),
        (dict(texts=["xyz"]), "characters outside the alphabet"),
    ],
)
def test_bad_input_is_named(settings, message):
    settings = dict(kind="stratified") | settings
    with pytest.raises(ValueError, match=message):
        _read(settings.pop("kind"), **settings)


@pytest.mark.slow
def test_variances_at_equal_passes_are_those_of_the_docs(monkeypatch):
    """The table of docs/models.md, measured again with other draws of the same sizes."""
    kept = likelihood_benchmark.likelihood
    reseeded = functools.partial(kept, seed=1)
    monkeypatch.setattr(likelihood_benchmark, "likelihood", reseeded)
    found = {x["kind"]: x for x in likelihood_benchmark.variances(likelihood_benchmark.Config())}
    first = found["monte_carlo"]
    for kind in ("stratified", "random_order"):
        line, share = found[kind], likelihood_table.relative(kind)
        ratio = line["variance"] * line["passes"] / (first["variance"] * first["passes"])
        assert 0.75 * share < ratio < 1.33 * share, (kind, ratio)  # each is known to about 4 %
    for line in found.values():
        assert 0.8 < line["reported"] / line["variance"] < 1.25


def test_estimates_are_drawn_by_their_seed():
    first, again, other = (
        _read("monte_carlo", texts=TEXTS[:1], passes=4, seed=seed).log_likelihood_E
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, rtol=1e-3)
    one, same = _read("monte_carlo", texts=TEXTS[:1] * 2, passes=4, batch_size=1).log_likelihood_E
    assert abs(one - same) > 1e-3  # each text has draws of its own, in a batch of its own too


def test_a_mask_that_is_given_goes_before_the_tokenizers_own():
    letters = tokenizers.Characters("aé")
    want = _read("left_to_right").log_likelihood_E
    for own, given in ((1, MASK), (MASK, None)):
        letters.mask_id = own
        found = _read("left_to_right", tokenizer=letters, mask_id=given)
        np.testing.assert_array_equal(found.log_likelihood_E, want)


def test_a_model_that_gives_nan_is_an_error_of_the_text():
    broken = np.where(np.arange(VOCAB + 1) == 1, np.nan, TABLE)
    with pytest.raises(ValueError, match="probabilities are NaN at 'aéa'"):
        likelihood.likelihood(causal_model, broken, TEXTS, "causal", tokenizer=LETTERS)
