"""Oracles that know the table score zero in the corrected units, for every K and factorisation."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import intervals, objectives
from dirasym.analysis import excess
from dirasym.data import batching, string_maps, tokenizers

KEY = jax.random.key(0)


PAD = -1  # in the oracles' tables


def _rows_that_agree(tokens_BL, table_RL, free_id):
    """Which rows of the table each sequence may be, position by position: [B, L, R]."""
    same_BLR = tokens_BL[:, :, None] == table_RL.T[None]
    free_BL1 = (tokens_BL == free_id)[:, :, None]
    return same_BLR | (free_BL1 & (table_RL != PAD).T[None])


def _causal_oracle(table_RL, vocab):
    """p(x_l+1 | x_..l) among the rows that begin like x."""
    no_id = -2
    next_RLV = jax.nn.one_hot(jnp.roll(table_RL, -1, axis=1), vocab, dtype=float)

    def apply_fn(params, tokens_BL, valid_BL=None):
        table = table_RL[:, : tokens_BL.shape[1]]
        agree_BLR = jnp.cumprod(_rows_that_agree(tokens_BL, table, no_id), axis=1).astype(float)
        return jnp.log(jnp.einsum("blr,rlv->blv", agree_BLR, next_RLV[:, : tokens_BL.shape[1]]))

    return apply_fn


def _masked_oracle(table_RL, vocab, mask_id):
    """p(x_l | what is not masked), position by position."""
    own_RLV = jax.nn.one_hot(table_RL, vocab, dtype=float)

    def apply_fn(params, tokens_BL, valid_BL=None):
        agree_BR = _rows_that_agree(tokens_BL, table_RL, mask_id).all(axis=1).astype(float)
        return jnp.log(jnp.einsum("br,rlv->blv", agree_BR, own_RLV))

    return apply_fn


def _texts(tokenizer, sources, targets):
    prompts, answers = string_maps.texts(sources, targets)
    data = batching.encode_rows(tokenizer, prompts, answers)
    return data, tokenizer.encode(answers)


def _pairs(control, K, size=6):
    generate = string_maps.exchangeable_pairs if control else string_maps.generate_pairs
    return generate(K, size * K * K, 8, 42 + K)


CASES = [(K, control, turned) for K in (1, 2, 5) for control in (0, 1) for turned in (0, 1)]


@pytest.mark.parametrize(("K", "control", "turned"), CASES)
def test_oracles_score_zero(K, control, turned):
    sources, targets = _pairs(control, K, size=2)[:: -1 if turned else 1]
    tokenizer = tokenizers.Characters()
    data, target_tokens = _texts(tokenizer, sources, targets)
    joint = excess.exact_floor(sources, target_tokens, "joint")
    parallel = excess.exact_floor(sources, target_tokens, "parallel")
    assert joint.tokens_per_target == 9  # the space, and 8 characters
    assert joint.nats_per_string == pytest.approx(math.log(K) if control or turned else 0)
    assert parallel.nats_per_string >= joint.nats_per_string
    mask = tokenizer.eos_id
    with jax.enable_x64(True):
        table = jnp.asarray(data["tokens_BL"])
        causal = _causal_oracle(table, tokenizer.vocab_size)
        masked = _masked_oracle(table, tokenizer.vocab_size, mask)
        for objective, oracle, floor in (
            (objectives.next_token, causal, joint),
            (functools.partial(objectives.any_order, mask_id=mask), masked, joint),
            (functools.partial(objectives.parallel_target, mask_id=mask), masked, parallel),
        ):
            loss = excess.clean_loss(objective, oracle, None, data, KEY, batch_size=16)
            assert float(loss) - floor.nats_per_string == pytest.approx(0, abs=1e-6)
            assert float(loss) / floor.tokens_per_target == pytest.approx(
                floor.nats_per_token, abs=1e-6
            )


@pytest.mark.parametrize("K", [1, 5])
def test_the_character_mlps_oracle_scores_zero(K):
    """Source and target characters side by side, as `StringMLP` reads them."""
    second, first = string_maps.generate_pairs(K, 40, 8, 42 + K)
    index = {character: n for n, character in enumerate(string_maps.ALPHABET)}
    tokens = np.array([[index[c] for c in a + b] for a, b in zip(first, second, strict=True)])
    data = {"tokens_BL": tokens, "scored_BL": np.broadcast_to(np.arange(16) >= 8, tokens.shape)}
    floor = excess.exact_floor(first, second, "parallel")
    with jax.enable_x64(True):
        oracle = _masked_oracle(jnp.asarray(tokens), 36, mask_id=36)
        objective = functools.partial(objectives.parallel_target, mask_id=36)
        loss = excess.clean_loss(objective, oracle, None, data, KEY, batch_size=7)
    assert float(loss) - floor.nats_per_string == pytest.approx(0, abs=1e-6)


@pytest.mark.skipif(
    next(tokenizers._installed_merges(), None) is None, reason="needs GPT-2's merges"
)
def test_oracles_score_zero_on_bpe_of_unequal_lengths():
    sources, targets = string_maps.generate_pairs(5, 20, 8, 47)[::-1]
    data, target_tokens = _texts(tokenizers.gpt2(), sources, targets)
    used, compact = np.unique(data["tokens_BL"], return_inverse=True)  # a small vocabulary
    data["tokens_BL"] = compact.reshape(data["tokens_BL"].shape).astype(np.int32)
    mask = len(used)
    assert len(set(map(len, target_tokens))) > 1
    joint = excess.exact_floor(sources, target_tokens, "joint")
    assert joint.nats_per_string == pytest.approx(math.log(5))
    known = excess.exact_floor(sources, target_tokens, "joint", length_known=True)
    parallel = excess.exact_floor(sources, target_tokens, "parallel", length_known=True)
    assert known.nats_per_string < joint.nats_per_string
    with jax.enable_x64(True):
        table = jnp.asarray(np.where(data["valid_BL"], data["tokens_BL"], PAD))
        data["tokens_BL"] = np.asarray(table)
        causal = _causal_oracle(table, mask + 1)
        masked = _masked_oracle(table, mask + 1, mask)
        for objective, oracle, floor in (
            (objectives.next_token, causal, joint),
            (functools.partial(objectives.any_order, mask_id=mask), masked, known),
            (functools.partial(objectives.parallel_target, mask_id=mask), masked, parallel),
        ):
            loss = excess.clean_loss(objective, oracle, None, data, KEY, batch_size=8)
            assert float(loss) - floor.nats_per_string == pytest.approx(0, abs=1e-6)


def test_any_order_has_the_expectation_of_masked_diffusion():
    """A model whose conditionals disagree: average over both objectives' own randomness."""
    tokens_BL = np.array([[3, 0, 1, 2], [3, 2, 2, 1]])
    data = {"tokens_BL": tokens_BL, "scored_BL": np.broadcast_to(np.arange(4) > 0, (2, 4))}
    table = jax.random.normal(KEY, (5, 4, 5))

    def apply_fn(params, tokens_BL):
        return jnp.einsum("blw,wlv->blv", jax.nn.one_hot(jnp.roll(tokens_BL, 1, axis=1), 5), table)

    # Exactly: a set of k of n tokens weighs (k−1)!(n−k)!/n!.
    exact = 0.0
    for size in (1, 2, 3):
        for hidden in itertools.combinations((1, 2, 3), size):
            read_BL = tokens_BL.copy()
            read_BL[:, hidden] = 4
            nll_BL = objectives.token_nll(apply_fn(None, read_BL), tokens_BL, 4)
            weight = math.factorial(size - 1) * math.factorial(3 - size) / math.factorial(3)
            exact += weight * float(nll_BL[:, list(hidden)].sum()) / 2

    def mean(objective, draws=40_000):
        def one(key):
            return excess.clean_loss(objective, apply_fn, None, data, key, batch_size=2)

        losses = jax.lax.map(one, jax.random.split(KEY, draws), batch_size=4000)
        return float(losses.mean()), float(losses.std()) / math.sqrt(draws)

    found, error = mean(functools.partial(objectives.any_order, mask_id=4))
    assert abs(found - exact) < 4 * error < 0.01 * exact
    for weighting, precision in (("k", 0.01), ("t", 0.05)):
        other, other_error = mean(
            functools.partial(objectives.masked_diffusion, mask_id=4, weighting=weighting)
        )
        assert abs(other - exact) < 4 * other_error < precision * exact, weighting
        assert error < other_error


def test_clean_loss_does_not_depend_on_its_batches():
    """Nor do levels that are dealt out: a cell for each example of the whole data set."""
    data = {"tokens_BL": np.arange(12).reshape(6, 2) % 5}  # all scored, as in a `Batch`
    table = jax.random.normal(KEY, (6, 6))
    for objective in (objectives.any_order, objectives.masked_diffusion):
        losses = [
            excess.clean_loss(
                functools.partial(objective, mask_id=5), lambda params, x: table[x], None, data,
                KEY, batch_size=batch_size,
            )
            for batch_size in (1, 4, 6, 8)
        ]  # fmt: skip
        np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_a_clean_loss_of_fields_that_do_not_fit_is_refused():
    data = {"tokens_BL": np.zeros((4, 3), np.int32), "scored_BL": np.ones((1, 3), bool)}
    for fields, batch_size, words in (
        (data, 2, "leading size"),
        (data | {"scored_BL": None}, 0, ""),
    ):
        given = {name: x for name, x in fields.items() if x is not None}
        with pytest.raises(ValueError, match=words or "batch_size"):
            excess.clean_loss(None, None, None, given, KEY, batch_size=batch_size)


def test_a_case_has_the_floor_of_its_scored_tokens_and_may_know_their_number():
    """Two targets of one source, of one token and of two: with their number there is no choice."""
    of = string_maps.StringMap(2, 2, 1)
    data = {
        "tokens_BL": np.array([[7, 8, 0], [7, 8, 9]]),
        "scored_BL": np.array([[False, True, False], [False, True, True]]),
    }
    for direction, how, floor in (
        ("inverse", {}, math.log(2)),
        ("inverse", dict(length_known=True), 0.0),
        ("forward", {}, 0.0),
    ):
        case = excess.make_case(of, direction, data, "joint", **how)
        assert case[:3] == (of, direction, data)
        assert case.floor == ("joint", pytest.approx(floor), 1.5)


def test_a_runs_last_epoch_is_what_counts_in_every_unit():
    of = string_maps.StringMap(5, 40, 8, seed=0)
    case = excess.Case(of, "inverse", {}, excess.exact_floor(*of.oriented("inverse"), "joint"))
    found = excess.in_all_units(
        case, np.array([6.0, 5.0, 3.0]), np.array([50.0, 40.0, 20.0]), np.array([60.0, 30.0, 10.0])
    )
    least = case.floor.nats_per_string
    assert found["excess_loss"] == pytest.approx(3 - math.log(5))
    assert found["excess_nats_per_string"] == pytest.approx(20 - least)
    assert found["eval_excess_nats_per_string"] == pytest.approx(10 - least)
    per_bit = (10 - least) / math.log(2) / of.bits_to_store("inverse")
    assert found["excess_bits_per_stored_bit"] == pytest.approx(per_bit)


def test_gap_is_paired_by_seed():
    gap = excess.directional_gap([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert gap.mean == 0.5 and gap.half_width == pytest.approx(0, abs=1e-12)
    assert excess.excess_bits_per_stored_bit(math.log(2), 40) == pytest.approx(1 / 40)
    assert math.isnan(excess.excess_bits_per_stored_bit(math.log(2), 0))
    with pytest.raises(ValueError, match="'joint' or 'parallel'"):
        excess.exact_floor("a", ["b"], "both")


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        (["a"], ["b", "c"], "as many, one or more, got 1 and 2"),
        ([], [], "as many, one or more, got 0 and 0"),
        ([1, 1], [2, 3], "targets must be strings or sequences of tokens, got 2"),
        (["a"], [""], "targets hold no token"),
    ],
)
def test_a_floor_of_what_are_no_pairs_is_refused(sources, targets, message):
    for kind in ("joint", "parallel"):
        with pytest.raises(ValueError, match=message):
            excess.exact_floor(sources, targets, kind)


def test_a_floor_is_in_bits_too():
    floor = excess.exact_floor("aaaa", ["xx", "yy", "xx", "yy"], "parallel")
    assert floor.bits_per_string == pytest.approx(2)  # each of two letters is a fair guess


def test_a_gap_has_the_interval_of_its_level():
    forward, inverse = [1.0, 2.0, 4.0], [1.5, 3.5, 4.0]
    for level in (0.95, 0.8):
        want = intervals.student_interval([0.5, 1.5, 0.0], level)
        assert excess.directional_gap(forward, inverse, level) == want
