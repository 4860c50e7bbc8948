"""What the toy task reports, from models whose answers are known by hand."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import case_recall
from dirasym.data import case_pairs
from dirasym.data.case_pairs import LOWER, MASK, PAD, UPPER, VOCAB_SIZE

# P(the partner of the row's first letter), by what is given: lowercase or uppercase.
KNOWN = {"forward": 0.75, "reverse": 0.25}
# P(the lowercase at [M]), by whether [M] stands before or behind the uppercase.
ASKED = {"forward": 0.6, "reverse": 0.3}


def _logits(tokens_BL, partner_B, p_B, mask_weight):
    """p of a token and the rest for `0`, at every position; [M] has a weight of its own."""
    p_BV = p_B[:, None] * jax.nn.one_hot(partner_B, VOCAB_SIZE)
    p_BV = p_BV.at[:, PAD].set(1 - p_B).at[:, MASK].set(mask_weight)
    return jnp.broadcast_to(jnp.log(p_BV)[:, None], (*tokens_BL.shape, VOCAB_SIZE))


def _first_letter(tokens_BL):
    is_letter_BL = (tokens_BL != PAD) & (tokens_BL != MASK)
    place_B = jnp.argmax(is_letter_BL, axis=1)
    return jnp.take_along_axis(tokens_BL, place_B[:, None], axis=1)[:, 0], place_B


def _known(mask_weight):
    """Answers with the partner of the first letter, with the KNOWN probability."""
    distance = UPPER[0] - LOWER[0]

    def apply_fn(params, tokens_BL):
        del params
        letter_B, _ = _first_letter(tokens_BL)
        is_lower_B = (letter_B >= LOWER[0]) & (letter_B <= LOWER[-1])
        partner_B = jnp.where(is_lower_B, letter_B + distance, letter_B - distance)
        p_B = jnp.where(is_lower_B, KNOWN["forward"], KNOWN["reverse"])
        return _logits(tokens_BL, partner_B, p_B, mask_weight)

    return apply_fn


def _asked(params, tokens_BL):
    """Answers a query of the theory with the ASKED probability of its order."""
    del params
    letter_B, place_B = _first_letter(tokens_BL)
    is_forward_B = jnp.argmax(tokens_BL == MASK, axis=1) < place_B
    p_B = jnp.where(is_forward_B, ASKED["forward"], ASKED["reverse"])
    return _logits(tokens_BL, letter_B - (UPPER[0] - LOWER[0]), p_B, mask_weight=1.0)


def test_the_masked_models_queries_differ_by_order_alone():
    for direction, asked in case_recall.queries(5, "masked").items():
        p = case_recall.true_probability(_asked, {}, asked, kind="masked")
        np.testing.assert_allclose(p, ASKED[direction], rtol=1e-6, err_msg=direction)


def test_the_causal_models_queries_ask_for_what_is_not_given():
    for direction, asked in case_recall.queries(5, "causal").items():
        p = case_recall.true_probability(_known(0.0), {}, asked, kind="causal")
        np.testing.assert_allclose(p, KNOWN[direction], rtol=1e-6, err_msg=direction)


@pytest.mark.parametrize("chunk_rows", [7, 130, 10_000])
def test_chunks_change_nothing(monkeypatch, chunk_rows):
    def apply_fn(params, tokens_BL):  # another probability at every placement
        weight_L = 1 + np.arange(tokens_BL.shape[1])
        where_B = (weight_L[None] * (tokens_BL != PAD)).sum(1) % 7
        logits_BL = jnp.broadcast_to(where_B[:, None], tokens_BL.shape)
        return logits_BL[..., None] * jax.nn.one_hot(tokens_BL.max(1) % 5, VOCAB_SIZE)[:, None]

    asked = case_recall.queries(6, "masked")["reverse"]
    want = case_recall.true_probability(apply_fn, {}, asked, kind="masked")
    monkeypatch.setattr(case_recall, "CHUNK_TOKENS", 6 * chunk_rows)
    got = case_recall.true_probability(apply_fn, {}, asked, kind="masked")
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_generations_succeed_as_often_as_the_letter_is_drawn(kind):
    """Each of L − 1 positions draws the partner with p, so 1 − (1 − p)^(L−1) of the outputs do."""
    apply_fn = _known(1.0 if kind == "masked" else 0.0)
    how = dict(kind=kind, generations=150, order="at_once")
    generate = jax.jit(functools.partial(case_recall.generation_percent, apply_fn, {}, **how))
    for direction, p in KNOWN.items():
        got = generate(case_pairs.prompts(3, direction), jax.random.key(0))
        share = 1 - (1 - p) ** 2
        error = np.sqrt(share * (1 - share) / (26 * 150))
        assert abs(got / 100 - share) < 4 * error, (direction, got, share)


def test_the_panel_is_of_the_reverse_and_leaves_zero_out():
    right, wrong = case_recall.reverse_panel(_known(1.0), {}, 4, kind="masked")
    np.testing.assert_allclose(right, KNOWN["reverse"], rtol=1e-6)
    np.testing.assert_allclose(wrong, 0, atol=1e-6)  # `0` has the rest, and [M] is excluded


def test_the_panel_has_the_likeliest_wrong_letter_of_each():
    """Of a, A: 0.2. Of b, B: 0.3. Of all others: 0.3; and `0`, with a half, is none."""
    p_V = np.zeros(VOCAB_SIZE)
    p_V[[LOWER[0], LOWER[1], PAD]] = 0.3, 0.2, 0.5
    known = lambda params, x: jnp.broadcast_to(jnp.log(p_V), (*x.shape, VOCAB_SIZE))  # noqa: E731
    right, wrong = case_recall.reverse_panel(known, {}, 4, kind="masked")
    np.testing.assert_allclose(right, 0.5 / 26, rtol=1e-5)
    np.testing.assert_allclose(wrong, (0.2 + 25 * 0.3) / 26, rtol=1e-5)


def test_evaluate_names_each_weight_and_direction():
    def apply_fn(params, tokens_BL):
        return _known(0.0)({}, tokens_BL) * params["scale"]

    weights = {"raw": {"scale": jnp.ones(())}, "ema": {"scale": jnp.full((), 2.0)}}
    got = case_recall.evaluate(
        apply_fn,
        weights,
        3,
        jax.random.key(0),
        kind="masked",
        generations=2,
        top_k=3,
        order="random",
    )
    squared = np.array([0.25, 0.75]) ** 2
    np.testing.assert_allclose(got["p_reverse_raw"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(got["p_reverse_ema"], squared[0] / squared.sum(), rtol=1e-5)
    assert got["panel_right_ema"].shape == (3,)
    labels = {"p_forward", "p_reverse", "percent_forward", "percent_reverse"}
    labels |= {"panel_right", "panel_wrong"}
    assert got.keys() == {f"{label}_{name}" for label in labels for name in weights}


def test_each_direction_is_generated_with_draws_of_its_own(monkeypatch):
    drawn = lambda apply_fn, params, prompts, key, **_: jax.random.uniform(key)  # noqa: E731
    monkeypatch.setattr(case_recall, "generation_percent", drawn)
    key = jax.random.key(5)
    got = case_recall.evaluate(_known(0.0), {"raw": {"x": jnp.ones(())}}, 3, key, kind="masked")
    for direction, of_it in zip(("forward", "reverse"), jax.random.split(key), strict=True):
        np.testing.assert_array_equal(got[f"percent_{direction}_raw"], jax.random.uniform(of_it))


@pytest.mark.parametrize("order", ["right_to_left", "at_once"])
def test_a_masked_model_is_asked_in_its_order_and_blocks(order, monkeypatch):
    told = {}

    def unmask(apply_fn, params, tokens_BL, key, **how):
        told.update(how)
        return tokens_BL

    monkeypatch.setattr(case_recall.decoding, "unmask", unmask)
    how = dict(kind="masked", generations=2, top_k=5, order=order, block_size=2)
    prompts = case_pairs.prompts(4, "reverse")
    case_recall.generation_percent(None, {}, prompts, jax.random.key(0), **how)
    steps = dict(order="random", num_steps=1) if order == "at_once" else dict(order=order)
    assert told == dict(num_steps=None, mask_id=MASK, top_k=5, block_size=2) | steps


def test_a_causal_model_is_asked_behind_its_letter_among_the_most_probable(monkeypatch):
    told = {}
    write = lambda apply_fn, params, tokens_BL, key, **how: told.update(how) or tokens_BL  # noqa: E731
    monkeypatch.setattr(case_recall.decoding, "left_to_right", write)
    prompts, key = case_pairs.prompts(4, "forward"), jax.random.key(0)
    case_recall.generation_percent(None, {}, prompts, key, kind="causal", generations=2, top_k=5)
    assert told == dict(prompt_length=1, bos_id=MASK, top_k=5)


def test_attention_is_from_the_mask_to_the_uppercase_and_correlated_over_letters():
    """One head scores a letter alike in both orders, and one with the opposite sign."""
    value_V = np.zeros(VOCAB_SIZE)
    value_V[UPPER] = np.random.default_rng(0).normal(size=len(UPPER))

    def internals(params, tokens_EL):
        tokens_EL = jnp.asarray(tokens_EL)
        is_ahead_LS = jnp.triu(jnp.ones((tokens_EL.shape[1],) * 2, bool))[None]
        same = jnp.where(tokens_EL[:, :, None] == MASK, jnp.asarray(value_V)[tokens_EL][:, None], 9)
        scores = jnp.stack([same, jnp.where(is_ahead_LS, same, -same)], axis=1)[None]
        return {"scores": scores, "weights": jnp.zeros_like(scores)}

    asked = case_recall.queries(4, "masked")
    paid = case_recall.attention_to_context(internals, None, asked)
    for direction, sign in (("forward", 1), ("reverse", -1)):
        want = value_V[UPPER][asked[direction].letter_E]
        np.testing.assert_allclose(paid[direction].scores[0], [want, sign * want], rtol=1e-5)
    got = case_recall.score_correlation(internals, None, 4, 2)
    np.testing.assert_array_equal(got.total, np.arange(2, 7))
    np.testing.assert_allclose(got.mean[0], np.outer([1, -1], np.ones(5)), rtol=1e-5)


def test_the_sample_of_rows_is_fixed():
    asked = types.SimpleNamespace(target_E=np.arange(10))
    assert case_recall.sampled_rows(asked, 4).tolist() == [4, 6, 2, 7]


def test_a_causal_models_panel_is_read_behind_the_letter_and_zeros():
    read = []

    def apply_fn(params, tokens_BL):
        read.append(np.asarray(tokens_BL))
        return _known(0.0)(params, tokens_BL)

    right, _ = case_recall.reverse_panel(apply_fn, {}, 4, kind="causal")
    (rows_EL,) = read
    np.testing.assert_array_equal(rows_EL[0], [MASK, UPPER[0], PAD, PAD])
    np.testing.assert_allclose(right[1:], KNOWN["reverse"], rtol=1e-6)
