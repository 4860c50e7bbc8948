"""Generation and answer likelihoods of causal and masked language models."""

import itertools

import chex
import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import decoding, likelihood, models, objectives
from dirasym.types import Batch

MASK = 10


SIZE = dict(
    vocab_size=11, num_layers=2, width=16, num_heads=4, num_kv_heads=2, mlp_width=24, max_len=32,
    init="uniform_fan_in",
)  # fmt: skip


def _model(causal, seed=0, **overrides):
    preset = models.llama if causal else models.llada
    model = models.Transformer(preset(**(SIZE | overrides)))
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 2), int))["params"]
    return model, jax.tree.map(lambda x: 3 * np.asarray(x), params)


def _pad(rows, left, extra=1):
    length = max(map(len, rows)) + extra
    tokens, valid = np.full((len(rows), length), 7), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(len(row))
        tokens[number, place], valid[number, place] = row, True
    return tokens, valid


PROMPTS = [[1, 2, 3], [4, 5], [6, 1, 8, 2]]


@pytest.mark.parametrize(
    ("scan_layers", "positions"),
    [members.slow((False, "rope")), (True, "learned"), (True, "alibi")],
)
def test_greedy_is_the_argmax_of_the_whole_model_whatever_the_padding(scan_layers, positions):
    model, params = _model(True, scan_layers=scan_layers, positions=positions)
    apply, extend = jax.jit(model.apply), models.make_extend_fn(model)
    want = []
    for prompt in PROMPTS:
        row = list(prompt)
        for _ in range(4):
            padded = np.array([row + [0] * (8 - len(row))])
            logits = apply({"params": params}, padded)
            row.append(int(logits[0, len(row) - 1].argmax()))
        want.append(row[len(prompt) :])

    @jax.jit
    def run(tokens, valid, eos_id):
        return decoding.greedy(extend, params, tokens, valid, num_new=4, eos_id=eos_id)

    anew = decoding.recomputing(
        lambda params, tokens_BL: model.apply({"params": params}, tokens_BL)
    )
    for left in (True, False):
        tokens, valid = _pad(PROMPTS, left)
        np.testing.assert_array_equal(run(tokens, valid, -1), want)
        said = decoding.greedy(anew, params, tokens, valid, num_new=4)
        np.testing.assert_array_equal(said, want)
    eos = want[0][1]
    for row, whole in zip(run(tokens, valid, eos).tolist(), want, strict=True):
        stop = whole.index(eos) + 1 if eos in whole else 4
        assert row == whole[:stop] + [eos] * (4 - stop)


def test_a_cache_needs_a_causal_model_and_room():
    tokens, valid = _pad(PROMPTS, left=True)
    for causal, num_new, message in ((False, 2, "causal model"), (True, 60, "than max_len 32")):
        model = models.Transformer(models.llama(**SIZE, causal=causal))
        extend = models.make_extend_fn(model)
        with pytest.raises(ValueError, match=message):
            decoding.greedy(extend, {}, tokens, valid, num_new=num_new)


def _remask_by_hand(model, params, prompt, num_new, num_steps, block_length):
    """LLaDA's published loop, one row, in numpy."""
    x = np.array(list(prompt) + [MASK] * num_new)
    apply = jax.jit(model.apply)
    blocks = num_new // block_length
    for block in range(blocks):
        end = len(prompt) + (block + 1) * block_length
        masked = int((x[:end] == MASK).sum())
        steps = num_steps // blocks
        for step in range(steps):
            logits = np.array(apply({"params": params}, x[None])[0], np.float64)
            logits[:, MASK] = -np.inf
            p = np.exp(logits - logits.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            confidence = np.where(x == MASK, p.max(-1), -np.inf)
            confidence[end:] = -np.inf
            count = masked // steps + (step < masked % steps)
            keep = np.argsort(-confidence)[:count]
            x[keep] = p.argmax(-1)[keep]
    return x[len(prompt) :]


@pytest.mark.parametrize(("num_steps", "block_length"), [(4, 6), (6, 3)])
def test_low_confidence_remasking_is_lladas_whatever_the_padding(num_steps, block_length):
    model, params = _model(False)
    apply_fn = models.make_apply_fn(model)
    settings = dict(num_steps=num_steps, block_length=block_length)
    want = [_remask_by_hand(model, params, p, 6, **settings) for p in PROMPTS[:2]]

    @jax.jit
    def run(tokens, valid):
        return decoding.remask(apply_fn, params, tokens, valid, mask_id=MASK, num_new=6, **settings)

    for left in (True, False):
        np.testing.assert_array_equal(run(*_pad(PROMPTS[:2], left)), want)


def test_random_remasking_follows_its_key_and_fills_everything():
    model, params = _model(False)
    tokens, valid = _pad(PROMPTS, left=True)

    @jax.jit
    def run(key):
        return decoding.remask(
            models.make_apply_fn(model), params, tokens, valid, key,
            mask_id=MASK, num_new=8, num_steps=8, block_length=4, remasking="random",
        )  # fmt: skip

    drawn = [run(jax.random.key(seed)) for seed in range(4)]
    assert not (np.stack(drawn) == MASK).any()
    chex.assert_trees_all_equal(drawn[0], run(jax.random.key(0)))
    assert any((drawn[0] != other).any() for other in drawn[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_new=6, block_length=4), "6 new tokens do not divide"),
        (dict(num_new=8, block_length=4, num_steps=3), "3 steps do not divide"),
        (dict(remasking="entropy"), "remasking must be"),
        (dict(remasking="random"), "needs a key"),
    ],
)
def test_settings_of_remasking_are_checked(settings, message):
    tokens, valid = _pad(PROMPTS, left=True)
    with pytest.raises(ValueError, match=message):
        decoding.remask(lambda *_: None, {}, tokens, valid, mask_id=MASK, **settings)


def _answer_batch():
    tokens = np.array([[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]], np.int32)
    scored = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0]], bool)
    return Batch(tokens_BL=tokens, index_B=np.arange(2), global_size=2, scored_BL=scored)


def test_causal_answer_likelihood_is_a_product_of_conditionals():
    model, params = _model(True)
    batch = _answer_batch()
    got = likelihood.answer_log_likelihood(models.make_apply_fn(model), params, batch)
    log_p = jax.nn.log_softmax(model.apply({"params": params}, batch.tokens_BL), -1)
    want = [log_p[0, 1, 3] + log_p[0, 2, 4], log_p[1, 0, 6] + log_p[1, 1, 7] + log_p[1, 2, 8]]
    chex.assert_trees_all_close(got, jnp.stack(want), atol=1e-5)


@pytest.mark.parametrize("counts", ["stratified", "uniform"])
def test_masked_likelihood_is_the_mean_over_orders_within_its_error(counts):
    model, params = _model(False)
    batch = _answer_batch()

    @jax.jit
    def log_p(tokens):
        logits = objectives.exclude(model.apply({"params": params}, tokens), MASK)
        return jax.nn.log_softmax(logits, -1)

    exact = []
    for tokens, scored in zip(batch.tokens_BL, batch.scored_BL, strict=True):
        orders = list(itertools.permutations(np.flatnonzero(scored)))
        total = 0.0
        for order in orders:
            row = np.where(scored, MASK, tokens)
            for place in order:
                total += float(log_p(row[None])[0, place, tokens[place]])
                row[place] = tokens[place]
        exact.append(total / len(orders))
    settings = dict(mask_id=MASK, num_samples=400, counts=counts)
    apply_fn = models.make_apply_fn(model)
    estimate = jax.jit(
        lambda key: likelihood.masked_log_likelihood(apply_fn, params, batch, key, **settings)
    )(jax.random.key(0))
    assert (estimate.standard_error > 0).all()
    assert (np.abs(estimate.mean - np.array(exact)) < 4 * estimate.standard_error).all()


def test_a_standard_error_needs_two_samples():
    with pytest.raises(ValueError, match="needs 2 samples"):
        likelihood.masked_log_likelihood(
            lambda *_: None, {}, _answer_batch(), jax.random.key(0), mask_id=MASK, num_samples=1
        )
